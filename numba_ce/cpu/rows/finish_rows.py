"""Sixteen rows finished: the formulas of `_row` once more, for vectors, eight rows at a time.

Rows of float32 need float64 numbers good to float32: `_single`. Rows of float64 need all digits:
`_double`, where every difference and every factor is kept in two parts.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inlined, inner
from numba_ce.cpu.rows.measure import LN2, REFERENCE_LOW, UNBIAS
from numba_ce.cpu.simd.element import KINDS
from numba_ce.cpu.simd.exp import (
    BIAS,
    LOG2E,
    MAGIC,
    PLAIN,
    exp_scaled,
    polynomial,
    two_sum,
)
from numba_ce.cpu.simd.log import LN2_HI, LN2_LO, log1p, log1p64
from numba_ce.cpu.simd.vector import (
    absolute,
    fma,
    high_as_float64,
    joined,
    low_as_float64,
    maximum,
    select,
    splat,
    splat_sixteen,
    times_power_of_two,
)

F64_0, F64_1 = np.float64(0), np.float64(1)
F64_EXPONENT = 1023
F64_LOWEST = -1022 * LN2
_, EXACT_LN2_HI, EXACT_LN2_LO, _ = PLAIN[KINDS["float64"][1]]
F64_MAGIC = MAGIC[KINDS["float64"][1]]
# exp(x) = 1 + x + x**2 P(x), minimax on |x| <= ln(2) / 2, to 2**-34.2
_P = (
    0.00019790297368920412,
    0.001394470355653069,
    0.00833349734223843,
    0.04166629436489173,
    0.1666666586700313,
    0.5000000067839562,
)
# A factor below 2**-100 is a float32 times 2**-100; one above 2**100 times 2**100
LARGE, SMALL = 2.0**100, 2.0**-100
# exp of less is 0 whatever it meets; 2**-1000 twice reaches every number above
FAR_BELOW, HALF_WAY = -1300.0, -1000.0


class FinishedRows(NamedTuple):
    """Eight rows in float64 vectors; see `_row.finish`."""

    surprise: float
    above: float
    rest: float
    p_k: float
    factor: tuple  # p_j = stored exponential * factor; see `times_amount`
    lse: float


@inner
def times0(weight, x):
    """weight * x, where no weight makes nothing of an infinity, but not of NaN."""
    return select(weight == 0.0, select(x == x, 0.0, x), weight * x)


@inner
def exp64(x):
    """exp of a float64 vector of numbers below 100."""
    return exp_scaled(x, 0.0, F64_EXPONENT, F64_LOWEST, None)


@inner
def exp_near_zero(x):
    """exp of a float64 vector between -ln(2) / 2 and ln(2) / 2."""
    return fma(x * x, polynomial(x), x) + 1.0


# ---------------------------------------------------------------- good to float32


@inner
def _exp_down(x):
    """exp of a float64 vector of numbers not above 0, to 2**-34: 1/2000 ULP of float32."""
    shifted = fma(x, LOG2E, F64_MAGIC)
    r = fma(shifted - F64_MAGIC, -LN2, x)
    r2 = r * r
    low, middle = fma(r, _P[4], _P[5]), fma(r, _P[2], _P[3])
    p = fma(fma(fma(r, _P[0], _P[1]), r2, middle), r2, low)
    y = fma(r2, p, r) + 1.0
    return select(x < F64_LOWEST, 0.0, times_power_of_two(y, shifted, F64_EXPONENT))


@inner
def _single(total, lost, row_max, t, reference, power, temperature, over_temperature):
    """total : sum of the stored exponentials of the other classes, NaN for a spoilt row.

    `_row.finish` with another origin: not the others' maximum m but what `scale_finder` chose,
    reference / T + power ln(2), m itself or within ln(2) / 2 of it. So the sum needs no exponential
    of its own. log(sum_exp + small) may be down to -0.35 for that, but only where -d is above 1.2.
    """
    zero, one = splat(0.0), splat(1.0)
    # infinite where no other class is alive; NaN where no class is
    d = fma(power, -LN2, (t - reference) * over_temperature)
    others, size = d < 0.0, absolute(d)
    below = _exp_down(zero - size)
    to_origin, small = select(others, UNBIAS, below * UNBIAS), select(others, below, one)
    sum_exp = total * to_origin
    bottom = sum_exp + small
    inverse = one / bottom
    log = log1p(select(others, bottom - one, sum_exp), bottom)
    away = select(row_max == reference, zero, (reference - row_max) * over_temperature)
    origin = fma(reference, over_temperature, power * LN2)
    return FinishedRows(
        log + select(others, size, zero),
        log + (select(others, zero, d) + fma(power, LN2, away)),
        sum_exp * inverse,
        small * inverse,
        (to_origin * inverse,),
        log + select(others, origin, t * over_temperature),
    )


@inner
def single_from_anywhere(total, row_max, t, reference, power, temperature):
    """`_single` of exponentials whose reference and power may be far from the maximum."""
    over_temperature, zero = 1.0 / temperature, splat(0.0)
    away = (reference - row_max) * over_temperature
    away = fma(power, LN2_LO, fma(power, LN2_HI, away))
    # Larger only where no other class is alive
    to_max = exp64(select(absolute(away) < -2 * REFERENCE_LOW, away, 0.0))
    row = _single(total * to_max, zero, row_max, t, row_max, zero, temperature, over_temperature)
    factor = (row.factor[0] * to_max,)
    return FinishedRows(row.surprise, row.above, row.rest, row.p_k, factor, row.lse)


@inner
def _single_amount(factor, amount):
    return (factor[0] * amount,)


@inner
def _single_value(factor):
    return factor[0]


@inner
def _single_joined(low, high):
    """float64 factors of sixteen rows as two float32 vectors whose product they are."""
    up_low, down_low = _raised(low[0])
    up_high, down_high = _raised(high[0])
    like = np.float32(0)
    return joined(low[0] * up_low, high[0] * up_high, like), joined(down_low, down_high, like)


@inner
def _raised(factor):
    """The power of two that makes a float32 of a factor, and its inverse."""
    size, one = absolute(factor), splat(1.0)
    tiny, huge = size < SMALL, size > LARGE
    up = select(tiny, LARGE, select(huge, SMALL, one))
    return up, select(tiny, SMALL, select(huge, LARGE, one))


@inner
def _single_times(e, factor):
    return e * factor[0] * factor[1]


# ---------------------------------------------------------------- good to float64


@inner
def _difference(a, b, temperature):
    """`_row.difference` for vectors."""
    zero = splat(0.0)
    total = a - b
    minus_b = total - a
    finite = absolute(total) < 1e300
    lost = (a - (total - minus_b)) - (b + minus_b)
    lost = select(finite, lost, zero)
    if temperature == 1.0:
        return total, lost
    quotient = total / temperature
    size = absolute(quotient)
    many = quotient * 134217729.0
    q_hi = many - (many - quotient)
    q_lo = quotient - q_hi
    one = 134217729.0 * temperature
    t_hi = one - (one - temperature)
    t_lo = temperature - t_hi
    product = quotient * temperature
    product_lost = ((q_hi * t_hi - product) + q_hi * t_lo + q_lo * t_hi) + q_lo * t_lo
    rest = (total - product) - product_lost
    rest = select(size < 1e140, select(size > 1e-140, rest, zero), zero)
    if not 1e-140 < temperature < 1e140:
        rest = zero
    return quotient, select(finite, (rest + lost) / temperature, zero)


@inner
def _exp_parts(x, lost):
    """(y, n) with exp(x + lost) = y * 2**n, x below 600."""
    lost = select(absolute(x) < -FAR_BELOW, lost, 0.0)  # what a distance beyond lost may be large
    x = maximum(splat(FAR_BELOW), splat(0.0) - maximum(splat(-600.0), splat(0.0) - x))
    n = fma(x, LOG2E, F64_MAGIC) - F64_MAGIC
    r = fma(n, -EXACT_LN2_LO, fma(n, -EXACT_LN2_HI, x)) + lost
    return exp_near_zero(r), n


@inner
def _scaled(value, n):
    """value * 2**n, n whole numbers in a vector, above -2000: rounded once."""
    first = maximum(n, splat(HALF_WAY))
    value = times_power_of_two(value, first + F64_MAGIC, F64_EXPONENT)
    return times_power_of_two(value, (n - first) + F64_MAGIC, F64_EXPONENT)


@inner
def _double(total, lost, row_max, t, reference, power, temperature, over_temperature):
    """total, lost : sum of the stored exponentials of the other classes, in two parts."""
    zero, one = splat(0.0), splat(1.0)
    d, d_lost = _difference(t, row_max, temperature)
    others = d < 0.0
    away, away_lost = _difference(reference, select(others, row_max, t), temperature)
    # Both parts of power * ln(2) go in before the exponential is rounded; power * HI is exact
    unscaled = power == 0.0
    near, near_lost = two_sum(power * EXACT_LN2_HI, away)
    near_lost = near_lost + fma(power, EXACT_LN2_LO, away_lost)
    y, n = _exp_parts(select(unscaled, away, near), select(unscaled, away_lost, near_lost))
    y = select(d == d, y, d)  # no class is alive
    sum_exp = _scaled((total + lost) * UNBIAS * y, n)
    small_y, small_n = _exp_parts(select(others, d, zero), d_lost)
    small = select(others, _scaled(small_y, small_n), one)
    bottom = sum_exp + small
    inverse = one / bottom
    inverse_lost = fma(zero - bottom, inverse, one) * inverse
    log = log1p64(select(others, (sum_exp - one) + small, sum_exp))
    value = y * inverse
    value_lost = fma(y, inverse, zero - value) + y * inverse_lost
    return FinishedRows(
        select(others, log - d - d_lost, log),
        log + select(others, zero, d),
        fma(sum_exp, inverse, sum_exp * inverse_lost),
        fma(small, inverse, small * inverse_lost),
        (value, value_lost, n - float(BIAS)),
        select(others, row_max, t) / temperature + log,
    )


@inner
def _double_amount(factor, amount):
    value = factor[0] * amount
    lost = fma(factor[0], amount, splat(0.0) - value) + factor[1] * amount
    finite = absolute(value) < 1e300
    return value, select(finite, lost, 0.0), factor[2]


@inner
def _double_value(factor):
    return _scaled(factor[0] + factor[1], factor[2])


@inner
def _double_joined(low, high):
    """Of sixteen rows: a factor in two parts, and the two halves of the power of two."""
    like = F64_0
    n = joined(low[2], high[2], like)
    first = maximum(n, splat_sixteen(HALF_WAY))
    one = splat_sixteen(F64_1)
    return (
        joined(low[0], high[0], like),
        joined(low[1], high[1], like),
        times_power_of_two(one, first + F64_MAGIC, F64_EXPONENT),
        times_power_of_two(one, (n - first) + F64_MAGIC, F64_EXPONENT),
    )


@inner
def _double_times(e, factor):
    return fma(e, factor[0], e * factor[1]) * factor[2] * factor[3]


# ---------------------------------------------------------------- for one type or the other


class Finishing(NamedTuple):
    """What depends on the type."""

    sixteen: object  # sixteen rows from their sums: two `FinishedRows`
    amount: object  # a factor times a float64 vector
    value: object  # a factor as one float64 vector
    joined: object  # the factors of eight and eight rows as what `times` takes
    times: object  # sixteen exponentials times a factor
    halves: object  # the sums of the lower and the upper eight rows


@lru_cache
def finishing(real):
    """`Finishing` for rows computed in float32 or float64."""
    double = real is np.float64
    rows = _double if double else _single
    infinity, minus_inf, nan, zero = real(np.inf), real(-np.inf), real(np.nan), real(0)

    @inlined
    def finish_sixteen(sums, row_max, t, scale, temperature, over_temperature):
        """sums : of the exponentials of the other classes"""
        reference, power, _, _ = scale
        if double:
            broken = select(t < infinity, splat_sixteen(zero), nan)
            total = sums[0] + broken
            low, high = low_as_float64(total), high_as_float64(total)
            lost_low, lost_high = low_as_float64(sums[1]), high_as_float64(sums[1])
        else:
            low, high = sums
            lost_low = lost_high = splat(0.0)
            reference = select(row_max == minus_inf, minus_inf, reference)
            reference = select(t < infinity, reference, nan)
        return (
            rows(
                low,
                lost_low,
                low_as_float64(row_max),
                low_as_float64(t),
                low_as_float64(reference),
                low_as_float64(power),
                temperature,
                over_temperature,
            ),
            rows(
                high,
                lost_high,
                high_as_float64(row_max),
                high_as_float64(t),
                high_as_float64(reference),
                high_as_float64(power),
                temperature,
                over_temperature,
            ),
        )

    @inner
    def halves(sums):
        if double:
            # An infinite sum has lost infinity - infinity
            total = sums[0] + select(absolute(sums[0]) == infinity, zero, sums[1])
            return low_as_float64(total), high_as_float64(total)
        else:
            return sums

    if double:
        factors = _double_amount, _double_value, _double_joined, _double_times
    else:
        factors = _single_amount, _single_value, _single_joined, _single_times
    return Finishing(finish_sixteen, *factors, halves)


@lru_cache
def weigher(real, dense):
    """The function that finishes the losses of eight rows, by `_row.row_loss` and so on."""
    times_amount = finishing(real).amount

    @inner
    def weigh(plan, row, s, w, q, q_rest, a_rest, temperature):
        """Eight losses, the gradients of the classes left out, and the factors of the others.

        row : `FinishedRows`; s, w, q : s_i, w_y and q_k; q_rest, a_rest : as in `_row.row_loss`
        """
        loss, alpha, g = times0(q, row.surprise), q, splat(0.0) - q * row.rest
        if dense:
            loss = loss + a_rest + times0(q_rest, row.above)
            alpha, g = alpha + q_rest, g + times0(q_rest, row.p_k)
        if plan.z_loss != 0.0:
            z_weight = w * plan.z_loss
            loss = loss + times0(z_weight, row.lse * row.lse)
            extra = times0(z_weight, row.lse * 2.0)
            alpha, g = alpha + extra, g + extra * row.p_k
        scale = s * (plan.grad_scale / temperature)
        return s * loss, scale * g, times_amount(row.factor, scale * alpha)

    return weigh
