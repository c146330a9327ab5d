"""Loops over the classes of rows, one row in each lane: maxima, scales, what is written."""

from functools import lru_cache

import numpy as np

from numba_ce.cpu.compile.jit import inlined, inner
from numba_ce.cpu.rows.batch import BATCH
from numba_ce.cpu.rows.finish import factor_joiner, finishing
from numba_ce.cpu.rows.measure import LN2, ZERO_REFERENCE
from numba_ce.cpu.rows.tile import add_to, real_type, reduction_of
from numba_ce.cpu.schedules.across_tile import make_ask, make_count_classes
from numba_ce.cpu.simd.element import KINDS
from numba_ce.cpu.simd.exp import BIAS, EXPONENT_BIAS, LOG2E, MAGIC, exp_scaled
from numba_ce.cpu.simd.memory import load_lanes, load_rows, store
from numba_ce.cpu.simd.vector import (
    absolute,
    field_of,
    fma,
    half_of,
    joined,
    maximum,
    rounded,
    select,
    splat,
    splat_like,
    splat_rows,
)
from numba_ce.cpu.simd.width import ROWS_ACROSS, VECTOR_BITS

F32_0, F32_1 = np.float32(0), np.float32(1)


@lru_cache
def make_find_peaks(real):
    """The function that finds the maxima of rows."""
    pitch, zero, nan = ROWS_ACROSS * real().itemsize, real(0), real(np.nan)
    minus_inf = real(-np.inf)

    @inner
    def find_peaks(tile, end):
        """Maximum, its first class, NaN for a row that has one, else 0, the others' maximum."""
        peak, poison = splat_rows(minus_inf), splat_rows(zero)
        row_max, k, c = splat_rows(minus_inf), splat_rows(F32_0), F32_0
        for at in range(tile, end, pitch):
            x = load_rows(at, zero)
            higher = x > peak
            row_max = maximum(select(higher, peak, x), row_max)
            peak, k = select(higher, x, peak), select(higher, c, k)
            poison = select(x == x, poison, nan)
            c += F32_1
        return peak, k, poison, row_max

    return find_peaks


@lru_cache
def make_scales(real, tempered):
    """`measure.choose` for rows across."""
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
        reference = select(near, splat_rows(zero), select(masked, zero, row_max))
        lowest = fma(power, ln2, lowest_plain)
        if tempered:
            lowest = lowest * real(plan.temperature)
        return reference, power, splat_rows(real(BIAS)) - power, lowest

    return scales


def make_no_sums(real, lanes=ROWS_ACROSS):
    """`tile.no_sums` for rows across; `tile.add_to` adds to them.

    Of float64 the sums and what their roundings lost, of float32 a float64 vector for each batch.
    """
    if lanes == BATCH:
        one, two = lambda: (splat(0.0),), lambda: (splat(0.0), splat(0.0))
        return inner(two if real is np.float64 else one)
    if real is np.float64:
        return inner(lambda: (splat_rows(0.0), splat_rows(0.0)))
    return inner(lambda: (splat(0.0), splat(0.0)))


@lru_cache
def exp_summer(kernel, operation):
    """The function that turns a tile into exponentials, and adds them up.

    Sums over the classes but k: of the exponentials, of these times (m - z_c); and the number of
    classes above the target's logit. The exponentials stay if they are kept.
    """
    real = real_type(kernel.kind)
    half, float64 = ROWS_ACROSS // 2 * real().itemsize, real is np.float64
    if VECTOR_BITS == 512:
        return inlined(some_exp_summer(kernel, operation, ROWS_ACROSS))
    sum_some = inner(some_exp_summer(kernel, operation, BATCH))

    @inlined
    def both(low, high):
        if float64:
            return joined((low[0], high[0])), joined((low[1], high[1]))
        else:
            return low[0], high[0]

    @inlined
    def sum_halves(plan, tile, end, k, row_max, target_logit, scale, ahead):
        """One after the other: both at once need more registers than there are."""
        m, t = half_of(row_max, 0), half_of(target_logit, 0)
        some = half_of(scale[0], 0), None, half_of(scale[2], 0), half_of(scale[3], 0)
        low = sum_some(plan, tile, end, half_of(k, 0), m, t, some, ahead)
        m, t = half_of(row_max, 1), half_of(target_logit, 1)
        some = half_of(scale[0], 1), None, half_of(scale[2], 1), half_of(scale[3], 1)
        high = sum_some(plan, tile + half, end + half, half_of(k, 1), m, t, some, ahead)
        return both(low[0], high[0]), both(low[1], high[1]), joined((low[2], high[2]))

    return sum_halves


def some_exp_summer(kernel, operation, lanes):
    """`exp_summer` for so many of the rows."""
    real, tempered = real_type(kernel.kind), kernel.tempered
    pitch, zero, minus_inf = ROWS_ACROSS * real().itemsize, real(0), real(-np.inf)
    keep, entropy = operation.writes in ("gradient", "hessian"), operation.entropy
    leaves_largest, no_sums = operation.leaves == "largest", make_no_sums(real, lanes)
    _, ask = make_ask(kernel)

    def sum_exps(plan, tile, end, k, row_max, target_logit, scale, ahead):
        reference, _, exponent, lowest = scale
        if tempered:
            constants = reduction_of(plan.tempered, real)
        else:
            constants = None
        sums, e_sums, above, c = no_sums(), no_sums(), splat_like(F32_0, k), F32_0
        pivot = select(row_max == minus_inf, zero, row_max)
        for n in range((end - tile) // pitch):
            ask(ahead, n)
            at = tile + n * pitch
            x = load_lanes(at, row_max)
            if entropy:
                above = select(x > target_logit, above + F32_1, above)
            if leaves_largest:
                x = select(k == c, minus_inf, x)
                c += F32_1
            e = exp_scaled(x, reference, exponent, lowest, constants)
            sums = add_to(sums, e)
            if entropy:
                e_sums = add_to(e_sums, select(e == zero, zero, e * (pivot - x)))
            if keep:
                store(at, e)
        return sums, e_sums, above

    return sum_exps


# What is written of each element, from a tile of exponentials or of logits


@lru_cache
def make_gradient_filler(kernel, operation):
    real, softcap, dense = real_type(kernel.kind), kernel.softcap, operation.dense
    pitch, zero = ROWS_ACROSS * real().itemsize, real(0)
    join_factors, times_factor = factor_joiner(real, operation.leaves), finishing(real).times
    count_classes, leaves_none = make_count_classes(kernel.block), operation.leaves == "none"

    @inner
    def clear_gradient(lanes, n_bytes):
        for at in range(lanes.tile, lanes.tile + n_bytes, pitch):
            store(at, splat_rows(zero))

    @inlined
    def fill(plan, lanes, found, batches):
        """The tile of exponentials as gradients."""
        if plan.grad_scale == 0.0:
            clear_gradient(lanes, count_classes(plan) * pitch)
            return
        factor = join_factors(field_of(batches, 0))
        g_k = rounded(joined(field_of(batches, 1)), zero)
        scale, k = splat_rows(zero), found.k
        if dense:
            over = plan.grad_scale / plan.temperature
            scale = rounded(load_rows(lanes.weights, 0.0) * over, zero)
        for c in range(count_classes(plan)):
            at = lanes.tile + c * pitch
            g = times_factor(load_rows(at, zero), factor)
            if dense:
                g = g - scale * load_rows(lanes.q + c * pitch, zero)
            if not leaves_none:
                g = select(k == np.float32(c), g_k, g)
            if softcap:
                g = g * load_rows(at + (lanes.slopes - lanes.tile), zero)
            store(at, g)

    return fill


@lru_cache
def make_log_filler(kernel, operation):
    real = real_type(kernel.kind)
    pitch, zero = ROWS_ACROSS * real().itemsize, real(0)
    count_classes = make_count_classes(kernel.block)

    @inlined
    def fill(plan, lanes, found, batches):
        """The tile of logits as logarithms of probabilities."""
        surprise, c = rounded(joined(field_of(batches, 0)), zero), F32_0
        for at in range(lanes.tile, lanes.tile + count_classes(plan) * pitch, pitch):
            # The largest class is 0 below itself, also where it is infinite
            below = select(found.k == c, zero, load_rows(at, zero) - found.t)
            store(at, below - surprise)
            c += F32_1

    return fill


@lru_cache
def make_hessian_filler(kernel, operation):
    real, dense = real_type(kernel.kind), operation.dense
    pitch, zero, one = ROWS_ACROSS * real().itemsize, real(0), real(1)
    join_factors, times_factor = finishing(real).joined, finishing(real).times
    count_classes = make_count_classes(kernel.block)

    @inlined
    def fill(plan, lanes, found, batches):
        """The tile of exponentials as gradients, and into another one the Hessian."""
        factor = join_factors(field_of(batches, 0))
        g_k = rounded(joined(field_of(batches, 1)), zero)
        h_k = rounded(joined(field_of(batches, 2)), zero)
        slope = rounded(joined(field_of(batches, 3)), zero)
        curvature = rounded(joined(field_of(batches, 4)), zero)
        s = rounded(load_rows(lanes.weights, 0.0), zero)
        floor = splat_rows(real(plan.hess_floor) if plan.hess_floor > 0.0 else real(-np.inf))
        c = F32_0
        for at in range(0, count_classes(plan) * pitch, pitch):
            p = times_factor(load_rows(lanes.tile + at, zero), factor)
            if dense:
                g = p * slope - s * load_rows(lanes.q + at, zero)
            else:
                g = s * (p - select(found.y == c, one, splat_rows(zero)))
            h = s * maximum(floor, p * (one - p) * curvature)
            store(lanes.tile + at, select(found.k == c, g_k, g))
            store(lanes.slopes + at, select(found.k == c, h_k, h))
            c += F32_1

    return fill
