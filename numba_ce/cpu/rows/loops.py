"""The loops over the groups of one tile of a row: exponentials, sums, the largest, the soft cap."""

from functools import lru_cache

import numpy as np
from numba import types

from numba_ce.cpu.compile.jit import inner, inner_overload
from numba_ce.cpu.rows.tile import (
    GROUP_BYTES,
    VECTORS,
    add_to,
    group_at,
    group_size,
    real_type,
    with_rounding,
)
from numba_ce.cpu.simd.element import KINDS, load_vector
from numba_ce.cpu.simd.exp import exp_scaled, slope_of_gradient, soft_cap_and_slope
from numba_ce.cpu.simd.memory import load, prefetch, store
from numba_ce.cpu.simd.vector import (
    VECTOR_BYTES,
    first_lanes,
    first_set,
    largest_lane,
    maximum,
    select,
    splat,
)


def kept_of(e, slopes, offset):
    """What is kept of a vector of exponentials: with slopes, at an address, the product."""
    raise NotImplementedError


@inner_overload(kept_of)
def _kept_of(e, slopes, offset):
    if isinstance(slopes, types.NoneType):
        return lambda e, slopes, offset: e
    zero = np.float32(0) if e.dtype == types.float32 else np.float64(0)
    return lambda e, slopes, offset: e * load(slopes + offset, zero)


@lru_cache
def make_exp_tile(kind):
    """The function that computes the exponentials of a tile of dtype `kind`."""
    n_bytes = group_size(kind) * KINDS[kind][0] // 8
    step = n_bytes // VECTORS

    @inner
    def exp_tile(tile, kept, slopes, n_groups, scale, constants, sums, upcoming, minus_inf):
        """exp of a tile, its sum and the largest logit, in one loop.

        kept : address for the exponentials (times the slopes, if not None), or None
        scale : reference, exponent and lowest of `exp_scaled`; constants : its `Reduction` or None
        sums : of the tiles before; upcoming : address to prefetch along with the loop
        Returns the largest logit (a NaN may be lost; the sum has it) and the new sums.
        """
        reference, exponent, lowest = scale
        peak = splat(minus_inf)
        for g in range(n_groups):
            for i in range(0, n_bytes, VECTOR_BYTES):
                prefetch(upcoming + g * n_bytes + i)
            at, i = group_at(tile, g * n_bytes), g * GROUP_BYTES
            x0 = load_vector(kind, at)
            x1 = load_vector(kind, at + step)
            x2 = load_vector(kind, at + 2 * step)
            x3 = load_vector(kind, at + 3 * step)
            peak = maximum(peak, maximum(maximum(x0, x1), maximum(x2, x3)))
            e0 = exp_scaled(x0, reference, exponent, lowest, constants)
            e1 = exp_scaled(x1, reference, exponent, lowest, constants)
            e2 = exp_scaled(x2, reference, exponent, lowest, constants)
            e3 = exp_scaled(x3, reference, exponent, lowest, constants)
            sums = add_to(sums, (e0 + e1) + (e2 + e3))
            if kept is not None:
                store(kept + i, kept_of(e0, slopes, i))
                store(kept + i + VECTOR_BYTES, kept_of(e1, slopes, i + VECTOR_BYTES))
                store(kept + i + 2 * VECTOR_BYTES, kept_of(e2, slopes, i + 2 * VECTOR_BYTES))
                store(kept + i + 3 * VECTOR_BYTES, kept_of(e3, slopes, i + 3 * VECTOR_BYTES))
        return largest_lane(peak), with_rounding(sums, e0, e1)

    return exp_tile


@lru_cache
def make_peak_loops(kind):
    """The functions that find the largest element of a tile of dtype `kind`, and where it is."""
    group, size = group_size(kind), KINDS[kind][0] // 8
    lanes, n_bytes = group // VECTORS, group * size
    step = n_bytes // VECTORS

    @inner
    def largest(tile, n_groups, upcoming, lowest):
        """The largest element of a tile, or `lowest`; NaN is ignored.

        upcoming : address to prefetch along with the loop, or None
        """
        peak0 = peak1 = peak2 = peak3 = splat(lowest)
        for g in range(n_groups):
            if upcoming is not None:
                for i in range(0, n_bytes, VECTOR_BYTES):
                    prefetch(upcoming + g * n_bytes + i)
            at = group_at(tile, g * n_bytes)
            peak0 = maximum(load_vector(kind, at), peak0)
            peak1 = maximum(load_vector(kind, at + step), peak1)
            peak2 = maximum(load_vector(kind, at + 2 * step), peak2)
            peak3 = maximum(load_vector(kind, at + 3 * step), peak3)
        return largest_lane(maximum(maximum(peak3, peak2), maximum(peak1, peak0)))

    @inner
    def find(tile, n_groups, value):
        """The index of the first element equal to a value, which the tile holds."""
        for g in range(n_groups):
            at = group_at(tile, g * n_bytes)
            for i in range(0, group, lanes):
                inside = first_set(load_vector(kind, at + i * size) == value)
                if inside < lanes:
                    return g * group + i + inside
        return 0

    return largest, find


@inner
def weighted_below(q, x, pivot, zero):
    """q (pivot - x); a weight of zero adds zero, also where x is -inf."""
    return select(q == zero, splat(zero), q * (pivot - x))


@lru_cache
def make_sum_weighted(kind, weights_kind):
    """The function that sums up weights and weighted logits of tiles of these dtypes."""
    n_bytes = group_size(kind) * KINDS[kind][0] // 8
    weights_bytes = group_size(weights_kind) * KINDS[weights_kind][0] // 8
    step, weights_step = n_bytes // VECTORS, weights_bytes // VECTORS
    zero = real_type(kind)(0)

    @inner
    def sum_weighted(weights, tile, n_groups, pivot, total, weighted, upcoming):
        """Adds weights[c] to `total` and weights[c] * (pivot - tile[c]) to `weighted`.

        upcoming : address to prefetch along with the loop, or None
        """
        for g in range(n_groups):
            if upcoming is not None:
                for i in range(0, weights_bytes, VECTOR_BYTES):
                    prefetch(upcoming + g * weights_bytes + i)
            at, weights_at = group_at(tile, g * n_bytes), group_at(weights, g * weights_bytes)
            q0 = load_vector(weights_kind, weights_at)
            q1 = load_vector(weights_kind, weights_at + weights_step)
            q2 = load_vector(weights_kind, weights_at + 2 * weights_step)
            q3 = load_vector(weights_kind, weights_at + 3 * weights_step)
            a0 = weighted_below(q0, load_vector(kind, at), pivot, zero)
            a1 = weighted_below(q1, load_vector(kind, at + step), pivot, zero)
            a2 = weighted_below(q2, load_vector(kind, at + 2 * step), pivot, zero)
            a3 = weighted_below(q3, load_vector(kind, at + 3 * step), pivot, zero)
            total = add_to(total, (q0 + q1) + (q2 + q3))
            weighted = add_to(weighted, (a0 + a1) + (a2 + a3))
        return total, weighted

    return sum_weighted


@lru_cache
def make_sum_below(kind):
    """The function that sums up how far the logits of a tile of dtype `kind` are below a number."""
    group, size = group_size(kind), KINDS[kind][0] // 8
    lanes, n_bytes = group // VECTORS, group * size
    step = n_bytes // VECTORS
    zero = real_type(kind)(0)

    @inner
    def sum_below(tile, count, pivot, below):
        """Adds pivot - tile[c] to `below` for all `count` classes, the one left out included."""
        whole = count // group
        for g in range(whole):
            at = tile.at + g * n_bytes
            x0 = splat(pivot) - load_vector(kind, at)
            x1 = splat(pivot) - load_vector(kind, at + step)
            x2 = splat(pivot) - load_vector(kind, at + 2 * step)
            x3 = splat(pivot) - load_vector(kind, at + 3 * step)
            below = add_to(below, (x0 + x1) + (x2 + x3))
        at = tile.at + whole * n_bytes if tile.end < 0 else tile.end_at
        for i in range(0, count - whole * group, lanes):
            x = splat(pivot) - load_vector(kind, at + i * size)
            here = first_lanes(count - whole * group - i, zero)
            below = add_to(below, select(here, x, splat(zero)))
        return below

    return sum_below


@lru_cache
def make_count_above(kind):
    """The function that counts the elements of a tile of dtype `kind` above a number."""
    n_bytes = group_size(kind) * KINDS[kind][0] // 8
    step = n_bytes // VECTORS
    one, zero = real_type(kind)(1), real_type(kind)(0)

    @inner
    def count_above(tile, n_groups, threshold, count):
        """Adds the number of elements above `threshold` to `count`."""
        n = splat(zero)
        for g in range(n_groups):
            at = group_at(tile, g * n_bytes)
            for i in range(0, n_bytes, step):
                n = select(load_vector(kind, at + i) > threshold, n + one, n)
        return add_to(count, n)

    return count_above


@lru_cache
def make_cappers(kind):
    """The functions that apply the soft cap and its derivative to a tile of dtype `kind`."""
    n_bytes = group_size(kind) * KINDS[kind][0] // 8
    step = n_bytes // VECTORS

    @inner
    def cap_tile(tile, capped, slopes, n_groups, cap, constants):
        """capped = cap * tanh(tile / cap), slopes = the derivative; addresses, slopes or None"""
        for g in range(n_groups):
            at, i = group_at(tile, g * n_bytes), g * GROUP_BYTES
            for v in range(VECTORS):
                x = load_vector(kind, at + v * step)
                value, slope = soft_cap_and_slope(x, cap, constants)
                store(capped + i + v * VECTOR_BYTES, value)
                if slopes is not None:
                    store(slopes + i + v * VECTOR_BYTES, slope)

    @inner
    def times_cap_derivative(values, tile, n_groups, cap, constants):
        """values *= the derivative of the soft cap at the logits of a tile"""
        for g in range(n_groups):
            at, i = group_at(tile, g * n_bytes), g * GROUP_BYTES
            for v in range(VECTORS):
                x = load_vector(kind, at + v * step)
                slope = slope_of_gradient(x, soft_cap_and_slope(x, cap, constants)[1])
                here = values + i + v * VECTOR_BYTES
                store(here, load(here, constants[0]) * slope)

    return cap_tile, times_cap_derivative
