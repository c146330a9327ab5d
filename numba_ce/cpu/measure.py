"""The first pass over a row: its maximum, its sum of exponentials, and what an option adds."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import types

from numba_ce import _row
from numba_ce.cpu.element import KINDS, put
from numba_ce.cpu.exp import BIAS, EXPONENT_BIAS, LOG2E, times_two_to
from numba_ce.cpu.jit import inner, larger, smaller
from numba_ce.cpu.tile import (
    NATIVE,
    TILE,
    cap_tile,
    count_above,
    exp_tile,
    find,
    largest,
    no_sums,
    plus_one,
    plus_times,
    real_type,
    reduction_of,
    sum_weighted,
    tile_loader,
    times,
    total_of,
)
from numba_ce.cpu.vector import LANES, VECTOR_BYTES, fma, load, splat, store

difference = inner(_row.difference)
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
AHEAD = 1024  # elements by which the prefetch runs ahead of the loop


class Variant(NamedTuple):
    """What the first pass is compiled for."""

    kind: str  # dtype of the logits
    tempered: bool = False
    softcap: bool = False
    keep: bool = False  # keep the exponentials for a second pass
    dense: bool = False  # sums over q: probabilities or label smoothing
    targets_kind: str | None = None  # dtype of the probabilities
    entropy: bool = False
    rank: bool = False
    lead: bool = False  # the class left out is the row's first maximum, found along the way


class Workspace(NamedTuple):
    """Addresses in a worker's memory, see `workspace_finder`."""

    exps: int
    scales: int  # float64 (n_tiles, 2): reference and power of each tile
    tile: int
    weights: int
    logits: int


def workspace_bytes(n_classes, kind):
    """Bytes a worker needs: O(n_classes), whatever the number of rows."""
    width = 8 if kind == "float64" else 4
    n_tiles = -(-n_classes // TILE)
    return n_tiles * (TILE * width + 64) + 3 * TILE * width + 128


@lru_cache
def workspace_finder(kind):
    """The function that cuts a worker's memory into a `Workspace`."""
    width = np.dtype(real_type(kind)).itemsize

    @inner
    def find_workspace(plan, worker):
        start = plan.workspace + worker * plan.workspace_bytes
        start = (start + 63) // 64 * 64
        n_tiles = (plan.n_classes + TILE - 1) // TILE
        tile = start + n_tiles * TILE * width
        scales = tile + 3 * TILE * width
        return Workspace(start, scales, tile, tile + TILE * width, tile + 2 * TILE * width)

    return find_workspace


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
    real = real_type(kind)
    lanes, size = LANES[KINDS[kind][1]], KINDS[kind][0] // 8
    native = kind in NATIVE
    minus_inf = real(-np.inf)
    load_tile = tile_loader(kind)

    @inner
    def find_peak(plan, source, work):
        """Index and value of the first maximum; the index is 0 for a row of -inf or NaN."""
        row_max, argmax = minus_inf, 0
        step, swapped = plan.logits_step, plan.logits_swapped
        for start in range(0, plan.n_classes, TILE):
            count = smaller(TILE, plan.n_classes - start)
            n_vectors = (count + lanes - 1) // lanes
            tile = source + start * step
            upcoming = tile + AHEAD * step
            if not (native and step == size and not swapped and count % lanes == 0):
                load_tile(tile, step, swapped, count, minus_inf, work.tile)
                tile = work.tile
            peak = largest(tile, n_vectors, upcoming, minus_inf)
            if peak > row_max:
                row_max = peak
                argmax = start + find(tile, n_vectors, peak, lanes)
        return argmax, row_max

    return find_peak


@lru_cache
def weight_filler(kind, targets_kind):
    """The function that computes a tile of q_c = w_c ((1 - e) t_c + e / C)."""
    real = real_type(kind)
    lanes, width = LANES[KINDS[kind][1]], np.dtype(real).itemsize
    one, zero = real(1), real(0)
    if targets_kind is not None:
        load_targets = tile_loader(targets_kind, real)

    @inner
    def fill_weights(plan, targets, start, count, factor, work):
        """work.weights = factor * q, 0 in the padding.

        targets : address of the row's probabilities; for index targets the part of q that all
        classes have in common, the target's share is added by the caller.
        """
        share = real(factor * (1.0 - plan.smoothing))
        common = real(factor * (plan.smoothing / plan.all_classes))
        n_vectors = (count + lanes - 1) // lanes
        if targets_kind is not None:
            step = plan.targets_step
            source = targets + start * step
            load_targets(source, step, plan.targets_swapped, count, zero, work.weights)
        for i in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
            q = splat(common)
            if targets_kind is not None:
                q = fma(load(work.weights + i, one), share, common)
            if plan.class_weight != 0:
                q = q * load(plan.class_weight_real + start * width + i, one)
            store(work.weights + i, q)
        for j in range(count, n_vectors * lanes):
            put(work.weights + j * width, zero)

    return fill_weights


def variant_of(kernel, **more):
    """The `Variant` of a kernel that works on a loss."""
    return Variant(
        kernel.kind,
        kernel.tempered,
        kernel.softcap,
        dense=kernel.smoothing or kernel.targets_kind is not None,
        targets_kind=kernel.targets_kind,
        **more,
    )


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
    real_dtype = KINDS[kind][1]
    real = real_type(kind)
    lanes, width, size = LANES[real_dtype], np.dtype(real).itemsize, KINDS[kind][0] // 8
    native = kind in NATIVE and not softcap
    minus_inf, one, zero = real(-np.inf), real(1), real(0)
    bias = EXPONENT_BIAS[real_dtype] + BIAS
    load_tile = tile_loader(kind)
    fits, choose = scale_functions(real_dtype)
    fill_weights = weight_filler(kind, variant.targets_kind)

    @inner
    def measure(plan, source, k, targets, threshold, work):
        """source : address of the row; k : class left out, or -1; targets : see `fill_weights`

        With `keep`, the scaled exponentials stay in `work.exps` and their scales in `work.scales`;
        the exponential of k is 0. With `lead`, only those of the last tile stay. The class left out
        is then the largest so far; when a larger one comes, it joins the others as a number.
        """
        n_classes, step, swapped = plan.n_classes, plan.logits_step, plan.logits_swapped
        temperature = plan.temperature if tempered else 1.0
        if tempered:
            constants = reduction_of(plan.tempered, real)
        else:
            constants = None
        direct = native and step == size and not swapped
        row_max, pivot = minus_inf, zero
        peak = displaced = minus_inf
        if lead:
            k = 0
        reference, power = 0.0, np.int64(0)
        sums, q_sums, a_sums, e_sums, above = no_sums(), no_sums(), no_sums(), no_sums(), no_sums()
        for start in range(0, n_classes, TILE):
            count = smaller(TILE, n_classes - start)
            n_vectors = (count + lanes - 1) // lanes
            tile = source + start * step
            upcoming = tile + AHEAD * step
            copied = not direct or count % lanes != 0
            if copied:
                load_tile(tile, step, swapped, count, minus_inf, work.tile)
                tile = work.tile
            if lead:
                here = largest(tile, n_vectors, upcoming, minus_inf)
                has_k = here > peak
                if has_k:
                    displaced, peak = peak, here
                    k = start + find(tile, n_vectors, here, lanes)
                else:
                    displaced = minus_inf
            else:
                has_k = start <= k < start + count
            if has_k and not copied:
                load_tile(tile, step, swapped, count, minus_inf, work.tile)
                tile = work.tile
            if softcap:
                capping = reduction_of(plan.capping, real)
                cap_tile(tile, n_vectors, real(plan.softcap), capping)
            if has_k:
                put(tile + (k - start) * width, minus_inf)
            if keep:
                kept = work.exps if lead else work.exps + start * width
            else:
                kept = None
            alive = row_max > minus_inf
            for _ in range(2):  # the second time with a scale that serves this tile
                lowest = real((power - (bias - 1)) * LN2 * temperature)
                scale = (real(reference), bias - power, lowest)
                highest, new_sums = exp_tile(
                    tile, kept, n_vectors, scale, constants, sums, upcoming, minus_inf
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
            if keep and not lead:
                scales = work.scales + start // TILE * 16
                put(scales, reference)
                put(scales + 8, np.float64(power))
            if (dense or entropy) and row_max > minus_inf and row_max != pivot:
                step_up = np.float64(row_max) - np.float64(pivot)
                pivot = row_max
                if dense:
                    a_sums = plus_times(a_sums, q_sums, step_up)
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
            if dense:
                fill_weights(plan, targets, start, count, 1.0, work)
                if has_k:
                    put(work.weights + (k - start) * width, zero)
                q_sums, a_sums = sum_weighted(
                    work.weights, tile, n_vectors, pivot, q_sums, a_sums, one
                )
            if entropy:
                e_sums = sum_weighted(kept, tile, n_vectors, pivot, no_sums(), e_sums, one)[1]
            if rank:
                above = count_above(tile, n_vectors, threshold, above, one)
        return Measured(
            np.float64(row_max),
            total_of(sums, one),
            total_of(q_sums, one) if dense else 0.0,
            total_of(a_sums, one) / temperature if dense else 0.0,
            total_of(e_sums, one) if entropy else 0.0,
            total_of(above, one) if rank else 0.0,
            Scale(reference, power),
            k,
            np.float64(peak),
        )

    return measure
