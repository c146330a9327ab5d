"""The first pass over a row: its maximum, its sum of exponentials, and what an option adds."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import types

from numba_ce import row
from numba_ce.cpu.compile.jit import inner, larger, smaller
from numba_ce.cpu.rows.effective_targets import stored_kind, weight_filler
from numba_ce.cpu.rows.loops import (
    make_cappers,
    make_count_above,
    make_exp_tile,
    make_peak_loops,
    make_sum_below,
    make_sum_weighted,
)
from numba_ce.cpu.rows.tile import (
    TILE,
    group_size,
    make_find_tile,
    make_leave_out,
    no_sums,
    plus_one,
    plus_times,
    real_name,
    real_type,
    reduction_of,
    times,
    total_of,
    whole_tile,
)
from numba_ce.cpu.simd.element import KINDS, get, load_element, put
from numba_ce.cpu.simd.exp import BIAS, EXPONENT_BIAS, LOG2E, times_two_to

difference = inner(row.difference)
LN2 = math.log(2.0)
# With reference 0 the difference z - max is never formed, so never rounded. The range reduction
# is exact up to these |max| / T; beyond them the reference is the maximum itself.
ZERO_REFERENCE = {types.float32: 128.0, types.float64: 600.0}
# A reference serves as long as the maximum stays between these, in units of the exponent: above,
# a sum of exp(16) * 2**64 is far from overflow; below, exp(-25 - 104) * 2**64 is still normal
REFERENCE_LOW, REFERENCE_HIGH = -25.0, 16.0
UNBIAS = 2.0**-BIAS
# A subnormal factor times a small scale would lose its digits before it meets a large exponential
LIFT_BITS = np.int64(64)
LIFT = 2.0**LIFT_BITS
UNLIFT = UNBIAS / LIFT
NO_POWER = np.int64(0)
# Groups by which the prefetch runs ahead of the loops. 16 cost 5 to 15% of the loss and gradient of
# 1000 to 4000 classes in one thread, and 20% in place; 64 cost as much of the loss in two threads
AHEAD = 32
PROBABILITIES_AHEAD = 16  # 32: 10% slower


class Variant(NamedTuple):
    """What the first pass is compiled for."""

    kind: str  # dtype of the logits
    tempered: bool = False
    softcap: bool = False
    keep: bool = False  # keep the exponentials for a second pass
    dense: bool = False  # sums over q: probabilities or label smoothing
    smoothing: bool = False
    targets_kind: str | None = None  # dtype of the probabilities
    entropy: bool = False
    rank: bool = False
    lead: bool = False  # the class left out is the row's first maximum, found along the way


@lru_cache
def scale_functions(real_dtype):
    """`fits` and `choose` for references of tiles computed in float32 or float64."""
    limit = ZERO_REFERENCE[real_dtype]

    @inner
    def fits(row_max, reference, power, temperature):
        """Whether exponentials scaled by this reference and power neither over- nor underflow."""
        if math.isinf(row_max):
            return True
        above = (row_max - reference) / temperature - power * LN2
        return REFERENCE_LOW <= above <= REFERENCE_HIGH

    @inner
    def choose(row_max, temperature):
        """The reference and the power of two that serve a maximum best."""
        scaled = row_max / temperature
        if abs(scaled) <= limit:
            return 0.0, np.int64(round(scaled * LOG2E))
        return np.float64(row_max), np.int64(0)

    return fits, choose


@inner
def rescale(from_reference, from_power, to_reference, to_power, temperature):
    """exp((from - to) / T) * 2**(from_power - to_power)"""
    d, lost = difference(from_reference, to_reference, temperature)
    if abs(d) < 700.0:
        e = math.exp(d)
        return times_two_to(e + e * lost, from_power - to_power)
    # The exponential alone leaves the range of float64, its product with the power may not
    half = (from_power - to_power) // 2
    root = math.exp(0.5 * d)
    if root < math.inf:
        root += root * (0.5 * lost)
    return times_two_to(root, half) * times_two_to(root, from_power - to_power - half)


@inner
def lifted_factor(scale, origin, temperature):
    """exp((reference - origin) / T) * 2**power * LIFT, for an origin not below the maximum."""
    factor = rescale(scale.reference, scale.power + LIFT_BITS, origin, NO_POWER, temperature)
    # Too large only where all classes are masked, so that the exponentials are 0
    return LIFT if factor == math.inf else factor


@inner
def unscaled(total, scale, origin, temperature):
    """A sum of stored exponentials as one of exp((z_j - origin) / T)."""
    return total * UNLIFT * lifted_factor(scale, origin, temperature)


@lru_cache
def peak_finder(kind):
    """The function that finds a row's first maximum."""
    real, group = real_type(kind), group_size(kind)
    minus_inf = real(-np.inf)
    find_tile = make_find_tile(kind)
    largest, find = make_peak_loops(kind)

    @inner
    def find_peak(plan, source, work):
        """Index and value of the first maximum; the index is 0 for a row of -inf or NaN."""
        row_max, argmax = minus_inf, 0
        step = plan.logits_step
        for start in range(0, plan.n_classes, TILE):
            count = smaller(TILE, plan.n_classes - start)
            n_groups = (count + group - 1) // group
            here = source + start * step
            tile = find_tile(here, step, plan.logits_swapped, count, minus_inf, work.tile)
            peak = largest(tile, n_groups, here + AHEAD * group * step, minus_inf)
            if peak > row_max:
                row_max = peak
                argmax = start + find(tile, n_groups, peak)
        return argmax, row_max

    return find_peak


@lru_cache
def nan_finder(kind):
    """The function that finds the first NaN of a row."""

    @inner
    def first_nan(plan, source):
        """Its index, or -1."""
        for j in range(plan.n_classes):
            value = load_element(kind, source + j * plan.logits_step, plan.logits_swapped)
            if value != value:
                return j
        return -1

    return first_nan


class Scale(NamedTuple):
    """How the exponentials of the last tile were stored, see `exp_scaled`."""

    reference: float
    power: int


class Measured(NamedTuple):
    """A row without its class k, and what an option adds to it."""

    row_max: float  # m
    total: float  # sum of the exponentials as they were stored
    q_rest: float  # sum of q_c
    a_rest: float  # sum of q_c (m - z_c) / T
    e_total: float  # sum of the exponentials times (m - z_c)
    n_above: float  # number of classes above a threshold
    scale: Scale
    k: int  # the class left out, and with `lead` its logit
    peak: float


@lru_cache
def measurer(variant):
    """The function that measures a row without its class k."""
    kind, keep = variant.kind, variant.keep
    tempered, softcap, dense = variant.tempered, variant.softcap, variant.dense
    entropy, rank, lead = variant.entropy, variant.rank, variant.lead
    smoothing, targets_kind = variant.smoothing, variant.targets_kind
    real_dtype = KINDS[kind][1]
    real = real_type(kind)
    width, group = np.dtype(real).itemsize, group_size(kind)
    minus_inf, one, zero = real(-np.inf), real(1), real(0)
    bias = EXPONENT_BIAS[real_dtype] + BIAS
    fits, choose = scale_functions(real_dtype)
    find_tile, cap_tile = make_find_tile(kind), make_cappers(kind)[0]
    # What the loops read: a soft cap makes its own copy of a tile
    tile_kind = real_name(kind) if softcap else kind
    leave_out, exp_tile = make_leave_out(tile_kind), make_exp_tile(tile_kind)
    largest, find = make_peak_loops(tile_kind)
    sum_kept, count_above = (
        make_sum_weighted(tile_kind, real_name(kind)),
        make_count_above(tile_kind),
    )
    fill_weights, sum_below = weight_filler(kind, targets_kind), make_sum_below(tile_kind)
    if targets_kind is not None:
        weights_kind = stored_kind(kind, targets_kind)
        find_weights, leave_out_weight = (
            make_find_tile(targets_kind, weights_kind),
            make_leave_out(weights_kind),
        )
        sum_targets = make_sum_weighted(tile_kind, weights_kind)

    @inner
    def measure(plan, source, k, targets, threshold, work):
        """source : address of the row; k : class left out, or -1; targets : see `fill_weights`

        With `keep`, the scaled exponentials stay in `work.exps` and what is known of the tiles in
        `work.scales`. With `lead`, the class left out is the largest so far; when a larger one
        comes, it joins the others as a number.
        """
        n_classes, step, swapped = plan.n_classes, plan.logits_step, plan.logits_swapped
        temperature = plan.temperature if tempered else 1.0
        if tempered:
            constants = reduction_of(plan.tempered, real)
        else:
            constants = None
        if softcap and not dense:
            slopes = work.weights
        else:
            slopes = None
        row_max, pivot = minus_inf, zero
        q_k = q_before = zero
        peak = displaced = z_k = minus_inf
        if lead:
            k = np.int64(-1)
        reference, power = 0.0, np.int64(0)
        sums, q_sums, a_sums, e_sums, above = no_sums(), no_sums(), no_sums(), no_sums(), no_sums()
        below = no_sums()
        for start in range(0, n_classes, TILE):
            count = smaller(TILE, n_classes - start)
            n_groups = (count + group - 1) // group
            here = source + start * step
            ahead = AHEAD * group
            if lead:
                # The next tile is read at once, for its maximum: without this that waits for 80 ns
                # in a row of 1000 classes
                ahead += smaller(n_classes, TILE)
            upcoming = here + ahead * step
            if softcap:
                tile = find_tile(here, step, swapped, count, minus_inf, work.logits)
                capping = reduction_of(plan.capping, real)
                cap_tile(tile, work.tile, slopes, n_groups, real(plan.softcap), capping)
                tile = whole_tile(work.tile, width)
            else:
                tile = find_tile(here, step, swapped, count, minus_inf, work.tile)
            if lead:
                highest = largest(tile, n_groups, None, minus_inf)
                has_k = highest > peak
                if has_k:
                    displaced, peak = peak, highest
                    k = start + find(tile, n_groups, highest)
                else:
                    displaced = minus_inf
            else:
                has_k = start <= k < start + count
            if has_k:
                tile, z_k = leave_out(tile, k - start, minus_inf)
            if keep:
                kept = work.exps + start * width
            elif entropy or width == 8:
                # In float64 for their order alone: without these stores LLVM computes four vectors
                # abreast and keeps constants on the stack, which doubles the time
                kept = work.exps
            else:
                kept = None
            alive = row_max > minus_inf
            for _ in range(2):  # the second time with a scale that serves this tile
                lowest = real((power - (bias - 1)) * LN2 * temperature)
                scale = (real(reference), bias - power, lowest)
                highest, new_sums = exp_tile(
                    tile, kept, slopes, n_groups, scale, constants, sums, upcoming, minus_inf
                )
                row_max = larger(larger(row_max, highest), displaced)
                if fits(row_max, reference, power, temperature):
                    break
                new_reference, new_power = choose(row_max, temperature)
                # Nothing alive so far: the sums are 0 (or NaN), and the factor may be infinite
                factor = 0.0
                if alive:
                    factor = rescale(reference, power, new_reference, new_power, temperature)
                sums = times(sums, factor)
                if entropy:
                    e_sums = times(e_sums, factor)
                reference, power = new_reference, new_power
            if keep:
                scales = work.scales + start // TILE * 32
                put(scales, reference)
                put(scales + 8, np.float64(power))
                put(scales + 16, k if has_k else np.int64(-1))
                put(scales + 24, np.float64(z_k))
            if (dense or entropy) and row_max > minus_inf and row_max != pivot:
                step_up = np.float64(row_max) - np.float64(pivot)
                pivot = row_max
                if dense:
                    a_sums = plus_times(a_sums, q_sums, step_up)
                if smoothing and start > 0:
                    below = plus_one(below, np.float64(start) * step_up, one)
                if entropy:
                    e_sums = plus_times(e_sums, sums, step_up)
            sums = new_sums
            if lead and displaced > minus_inf:
                z = np.float64(displaced)
                e = rescale(z, np.int64(BIAS), reference, power, temperature)
                sums = plus_one(sums, e, one)
                if entropy:
                    e_sums = plus_one(e_sums, e * (np.float64(pivot) - z), one)
                if rank and displaced > threshold:
                    above = plus_one(above, 1.0, one)
            if dense and lead and has_k:
                q_before = q_k
            if dense and plan.class_weight != 0:
                fill_weights(plan, targets, start, count, 1.0, work)
                weights = whole_tile(work.weights, width)
                if has_k:
                    q_k = get(work.weights + (k - start) * width, zero)
                    put(work.weights + (k - start) * width, zero)
                q_sums, a_sums = sum_kept(weights, tile, n_groups, pivot, q_sums, a_sums, None)
            elif dense:
                if targets_kind is not None:
                    t_step, t_swapped = plan.targets_step, plan.targets_swapped
                    t_here = targets + start * t_step
                    weights = find_weights(t_here, t_step, t_swapped, count, zero, work.weights)
                    if has_k:
                        weights, q_k = leave_out_weight(weights, k - start, zero)
                    upcoming = t_here + PROBABILITIES_AHEAD * group * t_step
                    q_sums, a_sums = sum_targets(
                        weights, tile, n_groups, pivot, q_sums, a_sums, upcoming
                    )
                if smoothing:
                    below = sum_below(tile, count, pivot, below)
            if dense and lead and displaced > minus_inf and q_before != zero:
                q = np.float64(q_before)
                q_sums = plus_one(q_sums, q, one)
                a_sums = plus_one(a_sums, q * (np.float64(pivot) - np.float64(displaced)), one)
            if entropy:
                e_sums = sum_kept(
                    whole_tile(kept, width), tile, n_groups, pivot, no_sums(), e_sums, None
                )[1]
            if rank:
                above = count_above(tile, n_groups, threshold, above)
        q_rest, a_rest = 0.0, 0.0
        if dense:
            q_rest, a_rest = total_of(q_sums, one), total_of(a_sums, one)
            if smoothing and plan.class_weight == 0:
                q_rest, a_rest = q_rest * (1.0 - plan.smoothing), a_rest * (1.0 - plan.smoothing)
                common, n_rest, rest = plan.smoothing / plan.all_classes, n_classes, 0.0
                if k >= 0:
                    n_rest -= 1
                    # Its rounding is one of the loss: the class k itself contributes as much
                    rest = np.float64(pivot) - np.float64(z_k)
                rest = total_of(below, one) - (rest if rest < math.inf else 0.0)
                q_rest += common * n_rest
                a_rest += common * rest
        return Measured(
            np.float64(row_max),
            total_of(sums, one),
            q_rest,
            a_rest / temperature if dense else 0.0,
            total_of(e_sums, one) if entropy else 0.0,
            total_of(above, one) if rank else 0.0,
            Scale(reference, power),
            k,
            np.float64(peak),
        )

    return measure
