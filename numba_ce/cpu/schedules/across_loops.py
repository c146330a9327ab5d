"""Loops over the classes of sixteen rows, one row in each lane: maxima, scales, exponentials."""

from functools import lru_cache

import numpy as np

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.rows.measure import LN2, ZERO_REFERENCE
from numba_ce.cpu.rows.tile import add_to, reduction_of
from numba_ce.cpu.simd.element import KINDS
from numba_ce.cpu.simd.exp import BIAS, EXPONENT_BIAS, LOG2E, MAGIC, exp_scaled
from numba_ce.cpu.simd.memory import load_sixteen, store
from numba_ce.cpu.simd.transpose import ROWS
from numba_ce.cpu.simd.vector import absolute, fma, maximum, select, splat, splat_sixteen

F32_0, F32_1 = np.float32(0), np.float32(1)


@lru_cache
def peak_of_sixteen(real):
    """The function that finds the maxima of sixteen rows."""
    pitch, zero, nan = ROWS * real().itemsize, real(0), real(np.nan)
    minus_inf = real(-np.inf)

    @inner
    def find_peaks(tile, end):
        """Maximum, its first class, NaN for a row that has one, else 0, the others' maximum."""
        peak, poison = splat_sixteen(minus_inf), splat_sixteen(zero)
        row_max, k, c = splat_sixteen(minus_inf), splat(F32_0), F32_0
        for at in range(tile, end, pitch):
            x = load_sixteen(at, zero)
            higher = x > peak
            row_max = maximum(select(higher, peak, x), row_max)
            peak, k = select(higher, x, peak), select(higher, c, k)
            poison = select(x == x, poison, nan)
            c += F32_1
        return peak, k, poison, row_max

    return find_peaks


@lru_cache
def scale_finder(real, tempered):
    """`measure.choose` for sixteen rows."""
    dtype = KINDS[real.__name__][1]
    magic, log2e, near_limit = MAGIC[dtype], real(LOG2E), real(ZERO_REFERENCE[dtype])
    minus_inf, zero, ln2 = real(-np.inf), real(0), real(LN2)
    lowest_plain = real(-(EXPONENT_BIAS[dtype] + BIAS - 1) * LN2)

    @inner
    def scales(plan, row_max):
        """Reference, power, and the bounds of `exp_scaled`; 0 and 0 for a row of -inf."""
        scaled = row_max
        if tempered:
            scaled = row_max * real(1.0 / plan.temperature)
        power = fma(scaled, log2e, magic) - magic
        near, masked = absolute(scaled) < near_limit, row_max == minus_inf
        power = select(near, power, zero)
        reference = select(near, splat_sixteen(zero), select(masked, zero, row_max))
        lowest = fma(power, ln2, lowest_plain)
        if tempered:
            lowest = lowest * real(plan.temperature)
        return reference, power, splat_sixteen(real(BIAS)) - power, lowest

    return scales


def no_sums_of_sixteen(real):
    """`tile.no_sums` for sixteen rows, one in each lane; `tile.add_to` adds to them."""
    splat_any = splat_sixteen if real is np.float64 else splat
    return inner(lambda: (splat_any(0.0), splat_any(0.0)))


@lru_cache
def exp_summer(real, tempered, keep, ask):
    """The function that turns a tile into exponentials, and adds them up.

    ask(ahead, c) is called for each class, see `sixteen.asker`.
    """
    pitch, zero = ROWS * real().itemsize, real(0)
    no_sums = no_sums_of_sixteen(real)

    @inner
    def sum_exps(plan, tile, end, scale, ahead):
        """The sums of the sixteen rows; the exponentials stay if they are kept."""
        reference, _, exponent, lowest = scale
        if tempered:
            constants = reduction_of(plan.tempered, real)
        else:
            constants = None
        sums = no_sums()
        for n in range((end - tile) // pitch):
            ask(ahead, n)
            at = tile + n * pitch
            e = exp_scaled(load_sixteen(at, zero), reference, exponent, lowest, constants)
            sums = add_to(sums, e)
            if keep:
                store(at, e)
        return sums

    return sum_exps
