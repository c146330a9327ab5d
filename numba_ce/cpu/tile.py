"""Work on one tile of a row: at most TILE neighbouring classes, whole vectors, padded at the end.

A tile lies either where the caller's array is (float32 or float64 in native order and without
gaps) or in scratch memory, where every dtype, stride and byte order has been made into one form.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import types

from numba_ce.cpu.element import (
    KINDS,
    load_element,
    load_vector,
    put,
    store_element,
    store_vector,
)
from numba_ce.cpu.exp import exp_scaled, soft_cap, soft_cap_derivative, two_sum
from numba_ce.cpu.jit import inner, inner_overload, smaller
from numba_ce.cpu.vector import (
    LANES,
    VECTOR_BYTES,
    first_lanes,
    first_set,
    fma,
    high_as_float64,
    lane,
    largest_lane,
    load,
    load_lanes,
    low_as_float64,
    maximum,
    prefetch,
    select,
    splat,
    store,
    store_lanes,
    stream,
    sum_of_lanes,
)

TILE = 1024
NATIVE = ("float32", "float64")


def real_type(kind):
    """The NumPy scalar type in which logits of dtype `kind` are computed."""
    return np.float32 if KINDS[kind][1] == types.float32 else np.float64


@lru_cache
def tile_loader(kind, real=None):
    """The function that brings a tile of dtype `kind` into scratch memory, as type `real`."""
    real = real or real_type(kind)
    size, width = KINDS[kind][0] // 8, np.dtype(real).itemsize
    lanes = VECTOR_BYTES // width
    whole_vectors = real is real_type(kind)
    native = whole_vectors and kind in NATIVE

    @inner
    def load_tile(source, step, swapped, count, padding, tile):
        """tile[:count] = the elements at `source`, `step` bytes apart; then `padding`."""
        done = 0
        dense = step == size and not swapped
        if whole_vectors and dense:
            done = count // lanes * lanes
            for j in range(0, done, lanes):
                store(tile + j * width, load_vector(kind, source + j * size))
        if native and dense:
            if done < count:
                mask = first_lanes(count - done, padding)
                rest = load_lanes(source + done * size, mask, splat(padding))
                store(tile + done * width, rest)
        else:
            for j in range(done, count):
                put(tile + j * width, real(load_element(kind, source + j * step, swapped)))
            for j in range(count, (count + lanes - 1) // lanes * lanes):
                put(tile + j * width, padding)

    return load_tile


@lru_cache
def tile_storer(kind):
    """The function that writes a tile from scratch memory as dtype `kind`."""
    size, real = KINDS[kind][0] // 8, real_type(kind)
    lanes, width = LANES[KINDS[kind][1]], real().itemsize
    native = kind in NATIVE
    like = real(0)

    @inner
    def store_tile(tile, target, step, swapped, count):
        """The elements at `target`, `step` bytes apart, = tile[:count]."""
        done = 0
        if step == size and not swapped:
            done = count // lanes * lanes
            for j in range(0, done, lanes):
                store_vector(kind, target + j * size, load(tile + j * width, like))
        if native and step == size and not swapped:
            if done < count:
                rest = load(tile + done * width, like)
                store_lanes(target + done * size, first_lanes(count - done, like), rest)
        else:
            for j in range(done, count):
                value = load_element(REAL_NAME, tile + j * width, False)
                store_element(kind, target + j * step, value, swapped)

    REAL_NAME = "float32" if real is np.float32 else "float64"
    return store_tile


@inner
def reduction_of(constants, real):
    """Four float64 of a plan as the `Reduction` of a kernel in float32 or float64."""
    return real(constants[0]), real(constants[1]), real(constants[2]), real(constants[3])


# Sums over a row: two float64 vectors. float32 terms: one vector for each half of the lanes.
# float64 terms: the sum and what its roundings lost, for 262144 equal terms add up an error of
# tens of ULP otherwise.


def add_to(sums, terms):
    """The row's `sums` plus a vector of terms."""
    raise NotImplementedError


@inner_overload(add_to)
def _add_to(sums, terms):
    if terms.dtype == types.float32:

        def halves(sums, terms):
            return sums[0] + low_as_float64(terms), sums[1] + high_as_float64(terms)

        return halves

    def compensated(sums, terms):
        total, lost = two_sum(sums[0], terms)
        return total, sums[1] + lost

    return compensated


@inner
def no_sums():
    """The sums of no terms."""
    return splat(np.float64(0)), splat(np.float64(0))


def total_of(sums, like):
    """The sum over the lanes, in a fixed order, as a float64; `like` is a scalar like the terms."""
    raise NotImplementedError


@inner_overload(total_of)
def _total_of(sums, like):
    if like == types.float32:
        return lambda sums, like: sum_of_lanes(sums[0] + sums[1])

    def compensated(sums, like):
        total, lost = 0.0, sum_of_lanes(sums[1])
        for i in range(8):
            total, rounding = two_sum(total, lane(sums[0], i))
            lost += rounding
        return total if math.isinf(total) else total + lost

    return compensated


@inner
def times(sums, factor):
    """Sums of terms that are all `factor` times larger."""
    return sums[0] * factor, sums[1] * factor


@inner
def plus_times(sums, others, factor):
    """Sums of terms to each of which `factor` times the other term was added."""
    return sums[0] + others[0] * factor, sums[1] + others[1] * factor


def plus_one(sums, value, like):
    """Sums with one more term, a float64."""
    raise NotImplementedError


@inner_overload(plus_one)
def _plus_one(sums, value, like):
    if like == types.float32:
        return lambda sums, value, like: (
            sums[0] + select(first_lanes(1, 0.0), splat(value), 0.0),
            sums[1],
        )
    return lambda sums, value, like: add_to(sums, select(first_lanes(1, 0.0), splat(value), 0.0))


# The loops


@inner
def exp_tile(tile, kept, n_vectors, scale, constants, sums, upcoming, minus_inf):
    """exp of a tile, its sum and the largest logit, in one loop.

    tile, kept : addresses; the exponentials are written to `kept` unless it is None
    scale : reference, exponent and lowest of `exp_scaled`; constants : its `Reduction` or None
    sums : of the tiles before; upcoming : address to prefetch along with the loop
    Returns the largest logit (a NaN may be lost; the sum has it) and the new sums.
    """
    reference, exponent, lowest = scale
    peak = splat(minus_inf)
    grouped = n_vectors // 4 * 4
    for i in range(0, grouped * VECTOR_BYTES, 4 * VECTOR_BYTES):
        prefetch(upcoming + i)
        prefetch(upcoming + i + VECTOR_BYTES)
        prefetch(upcoming + i + 2 * VECTOR_BYTES)
        prefetch(upcoming + i + 3 * VECTOR_BYTES)
        x0 = load(tile + i, minus_inf)
        x1 = load(tile + i + VECTOR_BYTES, minus_inf)
        x2 = load(tile + i + 2 * VECTOR_BYTES, minus_inf)
        x3 = load(tile + i + 3 * VECTOR_BYTES, minus_inf)
        peak = maximum(peak, maximum(maximum(x0, x1), maximum(x2, x3)))
        e0 = exp_scaled(x0, reference, exponent, lowest, constants)
        e1 = exp_scaled(x1, reference, exponent, lowest, constants)
        e2 = exp_scaled(x2, reference, exponent, lowest, constants)
        e3 = exp_scaled(x3, reference, exponent, lowest, constants)
        sums = add_to(sums, (e0 + e1) + (e2 + e3))
        if kept is not None:
            store(kept + i, e0)
            store(kept + i + VECTOR_BYTES, e1)
            store(kept + i + 2 * VECTOR_BYTES, e2)
            store(kept + i + 3 * VECTOR_BYTES, e3)
    for i in range(grouped * VECTOR_BYTES, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
        prefetch(upcoming + i)
        x = load(tile + i, minus_inf)
        peak = maximum(peak, x)
        e = exp_scaled(x, reference, exponent, lowest, constants)
        sums = add_to(sums, e)
        if kept is not None:
            store(kept + i, e)
    return largest_lane(peak), sums


@inner
def largest(tile, n_vectors, upcoming, lowest):
    """The largest element of a tile, or `lowest`; NaN is ignored.

    upcoming : address to prefetch along with the loop
    """
    peak0 = peak1 = peak2 = peak3 = splat(lowest)
    grouped = n_vectors // 4 * 4
    for i in range(0, grouped * VECTOR_BYTES, 4 * VECTOR_BYTES):
        prefetch(upcoming + i)
        prefetch(upcoming + i + VECTOR_BYTES)
        prefetch(upcoming + i + 2 * VECTOR_BYTES)
        prefetch(upcoming + i + 3 * VECTOR_BYTES)
        peak0 = maximum(load(tile + i, lowest), peak0)
        peak1 = maximum(load(tile + i + VECTOR_BYTES, lowest), peak1)
        peak2 = maximum(load(tile + i + 2 * VECTOR_BYTES, lowest), peak2)
        peak3 = maximum(load(tile + i + 3 * VECTOR_BYTES, lowest), peak3)
    for i in range(grouped * VECTOR_BYTES, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
        prefetch(upcoming + i)
        peak0 = maximum(load(tile + i, lowest), peak0)
    return largest_lane(maximum(maximum(peak3, peak2), maximum(peak1, peak0)))


@inner
def find(tile, n_vectors, value, lanes):
    """The index of the first element equal to a value, which the tile holds."""
    for i in range(n_vectors):
        at = first_set(load(tile + i * VECTOR_BYTES, value) == value)
        if at < lanes:
            return i * lanes + at
    return 0


@inner
def sum_weighted(weights, tile, n_vectors, pivot, total_weight, weighted, like):
    """Adds weights[c] to `total_weight` and weights[c] * (pivot - tile[c]) to `weighted`.

    A weight of zero adds zero, also where the tile holds -inf.
    """
    zero = like - like
    for i in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
        q = load(weights + i, like)
        below = splat(pivot) - load(tile + i, like)
        total_weight = add_to(total_weight, q)
        weighted = add_to(weighted, select(q == zero, splat(zero), q * below))
    return total_weight, weighted


@inner
def count_above(tile, n_vectors, threshold, count, one):
    """Adds the number of elements above `threshold` to `count`; `one` is 1 of the tile's type."""
    zero = one - one
    for i in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
        above = load(tile + i, threshold) > threshold
        count = add_to(count, select(above, splat(one), splat(zero)))
    return count


@inner
def cap_tile(tile, n_vectors, cap, constants):
    """tile = cap * tanh(tile / cap)"""
    for i in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
        store(tile + i, soft_cap(load(tile + i, cap), cap, constants))


@inner
def times_cap_derivative(tile, logits, n_vectors, constants):
    """tile *= the derivative of the soft cap at `logits`"""
    like = constants[0]
    for i in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
        slope = soft_cap_derivative(load(logits + i, like), constants)
        store(tile + i, load(tile + i, like) * slope)


@inner
def fill(tile, n_vectors, value):
    """tile[:] = value"""
    for i in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
        store(tile + i, splat(value))


class Shift(NamedTuple):
    """(x - value) + offset"""

    value: float
    offset: float


def mapped(x, how):
    """A vector of exponentials times a `Factor`, or one of logits moved by a `Shift`."""
    raise NotImplementedError


@inner_overload(mapped)
def _mapped(x, how):
    if how.instance_class is Shift:
        return lambda x, how: (x - how.value) + how.offset
    if isinstance(how[1], types.NoneType):
        return lambda x, how: x * how.value * how.power
    return lambda x, how: fma(x, how.value, x * how.low) * how.power


@inner
def map_to(source, target, count, how, size, streaming):
    """target = `mapped` source, for `count` neighbouring elements of `size` bytes.

    `streaming` writes whole lines around the caches (they are not read first: 8 bytes of traffic
    per float32 element instead of 12); the partial lines at both ends are written through masks.
    """
    lanes, like = VECTOR_BYTES // size, how.value
    start = 0
    # An array that is not even aligned to its elements has no whole lines
    streaming = streaming and target % size == 0
    if streaming:
        start = smaller(count, (-target % VECTOR_BYTES) // size)
        if start > 0:
            head = first_lanes(start, like)
            store_lanes(target, head, mapped(load_lanes(source, head, splat(like)), how))
    whole = start + (count - start) // lanes * lanes
    if streaming:
        for j in range(start * size, whole * size, VECTOR_BYTES):
            stream(target + j, mapped(load(source + j, like), how))
    else:
        for j in range(start * size, whole * size, VECTOR_BYTES):
            store(target + j, mapped(load(source + j, like), how))
    if whole < count:
        tail, j = first_lanes(count - whole, like), whole * size
        rest = load_lanes(source + j, tail, splat(like))
        store_lanes(target + j, tail, mapped(rest, how))
