"""exp of a difference, on the device.

``ex2.approx`` is good to 2 units in the last place. What is lost before it, in z - m and in its
product with log2(e), is up to |z - m| of them more; in float32 and float64 it is kept and put back,
for some ten instructions where memory allows 38 for each element (H100, loss alone; twice that
with the gradient). Rows of 16 bits leave it out: their results are rounded at 2**-9 or 2**-12.
"""

import math
from functools import cache

import numpy as np

from numba_ce.cuda.finish import difference
from numba_ce.cuda.intrinsics import ex2, fma, inner, minimum_f32, nearest

LOG2_E_EXACT = math.log2(math.e)
LOG2_E = np.float32(LOG2_E_EXACT)
LOG2_E_LOST = np.float32(LOG2_E_EXACT - float(LOG2_E))
LN2 = np.float32(math.log(2))
LN2_HIGH, LN2_LOW = np.float32(355 / 512), np.float32(math.log(2) - 355 / 512)
MINUS_INF = np.float32(-np.inf)
ONE = np.float32(1)


@inner
def two_difference(a, b):
    """a - b exactly, as the rounded difference and what it lost (Knuth's TwoSum)."""
    d = a - b
    minus_b = d - a
    return d, (a - (d - minus_b)) - (b + minus_b)


@inner
def exp_difference(x, m, rate, rate_lost):
    """exp(x - m) for rate = log2(e), in float32, x <= m; 0 for x = -inf, NaN for NaN."""
    d, lost = two_difference(x, m)
    t = d * rate
    rest = fma(d, rate, -t) + fma(d, rate_lost, lost * rate)
    e = ex2(t)
    # Where t = -inf the rest is NaN or inf and e = 0: the minimum ignores NaN
    return fma(e, minimum_f32(rest * LN2, ONE), e)


@cache
def make_exponential(kind):
    """The functions (rate, exp): exp(x, m, rate(T)) is exp((x - m) / T) for x <= m."""
    if kind == "float64":

        @inner
        def rate(temperature):
            return temperature

        @inner
        def exp(x, m, rate):
            d, lost = difference(x, m, rate)
            e = math.exp(d)
            return e + e * lost
    else:

        @inner
        def rate(temperature):
            exact = LOG2_E_EXACT / temperature  # math.log2 would run on the device
            high = np.float32(exact)
            return high, np.float32(exact - np.float64(high))

        @inner
        def exp(x, m, rate):
            return exp_difference(x, m, rate[0], rate[1])

    return rate, exp


@cache
def make_exp_below(kind):
    """The function exp(x - m) for rows in registers; 0 for x = -inf, also where m = -inf."""
    if kind == "float32":

        @inner
        def exp_below(x, m):
            origin = m if m > MINUS_INF else np.float32(0)
            return exp_difference(x, origin, LOG2_E, LOG2_E_LOST)
    else:

        @inner
        def exp_below(x, m):
            return ex2((x - (m if m > MINUS_INF else np.float32(0))) * LOG2_E)

    return exp_below


@inner
def exp_minus(high, low):
    """exp(-(high + low)) for high >= 0, as two factors that may underflow in their product.

    To 3 units in the last place however large it is: n ln(2) is taken off first, and LN2_HIGH has 9
    bits, so that the first subtraction is exact.
    """
    if high > np.float32(200):
        return np.float32(0), np.float32(0)
    n = nearest(high * LOG2_E)
    rest = ((high - n * LN2_HIGH) - n * LN2_LOW) + low
    return ex2(-rest * LOG2_E), ex2(-n)
