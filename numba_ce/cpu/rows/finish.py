"""Eight rows finished in the lanes of float64 vectors, by the formulas of `numba_ce.row`.

Rows of float32 need float64 numbers good to float32: `_single`. Rows of float64 need all digits:
`_double`, where every difference and every factor is kept in two parts. To finish eight rows takes
as long as to finish one number at a time one of them, so there is no scalar form.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce import row
from numba_ce.cpu.compile.jit import inlined, inner
from numba_ce.cpu.rows.batch import F32_0, FinishedRows
from numba_ce.cpu.rows.measure import LN2, UNBIAS
from numba_ce.cpu.simd.element import KINDS
from numba_ce.cpu.simd.exp import (
    BIAS,
    LOG2E,
    MAGIC,
    PLAIN,
    polynomial,
    product_lost,
    times_pair,
    two_sum,
)
from numba_ce.cpu.simd.log import log1p, log1p64
from numba_ce.cpu.simd.vector import (
    absolute,
    field_of,
    fma,
    joined,
    maximum,
    rounded,
    select,
    splat,
    splat_like,
    times_power_of_two,
)

F32_1, F64_1 = np.float32(1), np.float64(1)
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


class Finishing(NamedTuple):
    """What depends on the type that rows are computed in."""

    formulas: row.Formulas
    finish: object  # (what an operation leaves out) -> the function of a `Batch`: `FinishedRows`
    amount: object  # a factor times a float64 vector
    over: object  # a factor over a number, the temperature
    value: object  # a factor as one float64 vector
    joined: object  # a tuple of the factors of eight rows each as what `times` takes
    joined_shares: object  # the same where no class is left out: no factor leaves the real type
    times: object  # a vector of exponentials times a factor


def others_finder(leaves):
    """The function that says in which rows another class is larger than the class k."""
    if leaves == "target":
        return inlined(lambda batch: batch.t < batch.row_max)
    # k is the largest: a constant, so that what it would select is not compiled
    return inlined(lambda batch: splat(0.0) < 0.0)


@inner
def _only_factor(factor):
    """`FinishedRows` of which nothing else is asked."""
    return FinishedRows(None, None, None, None, None, factor)


# ---------------------------------------------------------------- good to float32


@inner
def _exp_down(x):
    """exp of a float64 vector of numbers below 700, to 2**-34: 1/2000 ULP of float32."""
    shifted = fma(x, LOG2E, F64_MAGIC)
    r = fma(shifted - F64_MAGIC, -LN2, x)
    r2 = r * r
    low, middle = fma(r, _P[4], _P[5]), fma(r, _P[2], _P[3])
    p = fma(fma(fma(r, _P[0], _P[1]), r2, middle), r2, low)
    y = fma(r2, p, r) + 1.0
    return select(x < F64_LOWEST, 0.0, times_power_of_two(y, shifted, F64_EXPONENT))


_single_formulas = row.make_formulas(
    inlined,
    select,
    log1p,
    inlined(lambda x: 1.0 / x),
    inlined(lambda a, inverse: a * inverse),
)
_finish_single = _single_formulas.finish


@inlined
def _single_whole(batch, temperature, over_temperature):
    """No class is left out, so the stored exponentials are divided by their own sum."""
    return _only_factor((1.0 / batch.total,))


@lru_cache
def single(leaves):
    """The function that finishes rows of float32 without such a class, with another origin.

    That is not m but what the exponentials were stored by, at most 25 away: so the sum needs no
    exponential of its own. Of that distance a row below m keeps 2**-48, and one above it all
    digits.
    """
    others_of = others_finder(leaves)
    if leaves == "none":
        return _single_whole

    @inlined
    def finish(batch, temperature, over_temperature):
        zero, one = splat(0.0), splat(1.0)
        t, row_max, power = batch.t, batch.row_max, batch.power
        reference = batch.reference
        others, d = others_of(batch), fma(power, -LN2, (t - reference) * over_temperature)
        below = _exp_down(select(others, d, zero - d))
        to_origin, small = select(others, UNBIAS, below * UNBIAS), select(others, below, one)
        surprise, above, rest, p_k, over, inverse = _finish_single(
            batch.total * to_origin, small, d, zero, others
        )
        away = select(row_max == reference, zero, (reference - row_max) * over_temperature)
        origin = fma(reference, over_temperature, power * LN2)
        return FinishedRows(
            surprise,
            above + fma(power, LN2, away),
            rest,
            p_k,
            over + select(others, origin, t * over_temperature),
            (to_origin * inverse,),
        )

    return finish


@inner
def _single_amount(factor, amount):
    return (factor[0] * amount,)


@inner
def _single_over(factor, temperature):
    return (factor[0] * (1.0 / temperature),)


@inner
def _single_value(factor):
    return factor[0]


@inner
def _single_joined(factors):
    """float64 factors as two float32 vectors whose product they are: one is a power of two."""
    factor = joined(field_of(factors, 0))
    size, one = absolute(factor), splat_like(1.0, factor)
    tiny, huge = size < SMALL, size > LARGE
    up = select(tiny, LARGE, select(huge, SMALL, one))
    down = select(tiny, SMALL, select(huge, LARGE, one))
    return rounded(factor * up, F32_0), rounded(down, F32_0)


@inner
def _single_joined_shares(factors):
    factor = rounded(joined(field_of(factors, 0)), F32_0)
    return factor, splat_like(F32_1, factor)


@inner
def _single_times(e, factor):
    return e * factor[0] * factor[1]


# ---------------------------------------------------------------- good to float64


@inner
def _difference(a, b, temperature):
    """`row.difference` for vectors."""
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
    product = quotient * temperature
    rest = (total - product) - product_lost(quotient, temperature, product)
    rest = select(size < 1e140, select(size > 1e-140, rest, zero), zero)
    if not 1e-140 < temperature < 1e140:
        rest = zero
    return quotient, select(finite, (rest + lost) / temperature, zero)


@inner
def _exp_near_zero(x):
    """exp of a float64 vector between -ln(2) / 2 and ln(2) / 2."""
    return fma(x * x, polynomial(x), x) + 1.0


@inner
def _exp_parts(x, lost):
    """(y, n) with exp(x + lost) = y * 2**n, x below 600."""
    lost = select(absolute(x) < -FAR_BELOW, lost, 0.0)  # what a distance beyond lost may be large
    x = maximum(splat(FAR_BELOW), splat(0.0) - maximum(splat(-600.0), splat(0.0) - x))
    n = fma(x, LOG2E, F64_MAGIC) - F64_MAGIC
    r = fma(n, -EXACT_LN2_LO, fma(n, -EXACT_LN2_HI, x)) + lost
    return _exp_near_zero(r), n


@inner
def _scaled(value, n):
    """value * 2**n, n whole numbers in a vector, above -2000: rounded once."""
    first = maximum(n, splat(HALF_WAY))
    value = times_power_of_two(value, first + F64_MAGIC, F64_EXPONENT)
    return times_power_of_two(value, (n - first) + F64_MAGIC, F64_EXPONENT)


@inner
def _inverse_in_parts(x):
    inverse = 1.0 / x
    product = x * inverse
    return inverse, ((1.0 - product) - product_lost(x, inverse, product)) * inverse


@inner
def _share_of_double(a, inverse):
    return times_pair(a, inverse[0], inverse[1])


_double_formulas = row.make_formulas(
    inlined,
    select,
    inner(lambda u, x: log1p64(u)),
    _inverse_in_parts,
    _share_of_double,
)
_finish_double = _double_formulas.finish


@inlined
def _double_whole(batch, temperature, over_temperature):
    inverse = _inverse_in_parts(batch.total + batch.lost)
    return _only_factor((inverse[0], inverse[1], splat(0.0)))


@lru_cache
def double(leaves):
    """The function that finishes rows of float64 without such a class."""
    others_of = others_finder(leaves)
    if leaves == "none":
        return _double_whole

    @inlined
    def finish(batch, temperature, over_temperature):
        zero, one = splat(0.0), splat(1.0)
        t, row_max = batch.t, batch.row_max
        others = others_of(batch)
        d, d_lost = _difference(t, row_max, temperature)
        away, away_lost = _difference(batch.reference, select(others, row_max, t), temperature)
        # Both parts of power * ln(2) go in before the exponential is rounded; power * HI is exact
        unscaled = batch.power == 0.0
        near, near_lost = two_sum(batch.power * EXACT_LN2_HI, away)
        near_lost = near_lost + fma(batch.power, EXACT_LN2_LO, away_lost)
        y, n = _exp_parts(select(unscaled, away, near), select(unscaled, away_lost, near_lost))
        y = select(d == d, y, d)  # no class is alive
        total = batch.total + batch.lost
        small_y, small_n = _exp_parts(select(others, d, zero), d_lost)
        small = select(others, _scaled(small_y, small_n), one)
        surprise, above, rest, p_k, over, inverse = _finish_double(
            _scaled(total * UNBIAS * y, n), small, d, d_lost, others
        )
        value = y * inverse[0]
        value_lost = product_lost(y, inverse[0], value) + y * inverse[1]
        return FinishedRows(
            surprise,
            above,
            rest,
            p_k,
            select(others, row_max, t) / temperature + over,
            (value, value_lost, n - float(BIAS)),
        )

    return finish


@inner
def _double_amount(factor, amount):
    value = factor[0] * amount
    lost = product_lost(factor[0], amount, value) + factor[1] * amount
    finite = absolute(value) < 1e300
    return value, select(finite, lost, 0.0), factor[2]


@inner
def _double_over(factor, temperature):
    value = factor[0] / temperature
    product = value * temperature
    rest = (factor[0] - product) - product_lost(value, splat(temperature), product)
    finite = absolute(value) < 1e300
    return value, select(finite, (rest + factor[1]) / temperature, 0.0), factor[2]


@inner
def _double_value(factor):
    return _scaled(factor[0] + factor[1], factor[2])


@inner
def _double_joined(factors):
    """A factor in two parts, and the two halves of the power of two."""
    n = joined(field_of(factors, 2))
    first = maximum(n, splat_like(HALF_WAY, n))
    one = splat_like(F64_1, n)
    return (
        joined(field_of(factors, 0)),
        joined(field_of(factors, 1)),
        times_power_of_two(one, first + F64_MAGIC, F64_EXPONENT),
        times_power_of_two(one, (n - first) + F64_MAGIC, F64_EXPONENT),
    )


@inner
def _double_joined_shares(factors):
    value = joined(field_of(factors, 0))
    one = splat_like(F64_1, value)
    return value, joined(field_of(factors, 1)), one, one


@inner
def _double_times(e, factor):
    return times_pair(e, factor[0], factor[1]) * factor[2] * factor[3]


SINGLE = Finishing(
    _single_formulas,
    single,
    _single_amount,
    _single_over,
    _single_value,
    _single_joined,
    _single_joined_shares,
    _single_times,
)
DOUBLE = Finishing(
    _double_formulas,
    double,
    _double_amount,
    _double_over,
    _double_value,
    _double_joined,
    _double_joined_shares,
    _double_times,
)


def finishing(real):
    """`Finishing` for rows computed in float32 or float64."""
    return DOUBLE if real is np.float64 else SINGLE


def factor_joiner(real, leaves):
    """The function that joins factors for `Finishing.times`."""
    return finishing(real).joined_shares if leaves == "none" else finishing(real).joined
