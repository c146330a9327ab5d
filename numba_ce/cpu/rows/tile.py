"""Work on one tile of a row: at most TILE neighbouring classes, in groups of four vectors.

The loops read a tile where the caller's array is, in the caller's dtype, if it is in native order
and without gaps; of all other arrays a copy is made, in the same dtype. Two groups may lie in
scratch memory in any case: the one from which a class is left out, and the last one, filled up. So
the bits of a row do not depend on where it lies, and 1000 classes need no copy (it took 15%).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import types

from numba_ce.cpu.compile.jit import inner, inner_overload
from numba_ce.cpu.simd.element import (
    KINDS,
    load_element,
    load_some,
    store_element,
    store_vector,
)
from numba_ce.cpu.simd.exp import two_sum
from numba_ce.cpu.simd.memory import load, store
from numba_ce.cpu.simd.vector import (
    LANES,
    VECTOR_BYTES,
    as_float64,
    batch_of,
    first_lanes,
    lane,
    select,
    splat,
    sum_of_lanes,
)

TILE = 1024
VECTORS = 4  # of a group
GROUP_BYTES = VECTORS * VECTOR_BYTES  # as float32 or float64


def real_type(kind):
    """The NumPy scalar type in which logits of dtype `kind` are computed."""
    return np.float32 if KINDS[kind][1] == types.float32 else np.float64


def real_name(kind):
    """The name of `real_type`."""
    return np.dtype(real_type(kind)).name


def group_size(kind):
    """Elements of a group."""
    return VECTORS * LANES[KINDS[kind][1]]


class Tile(NamedTuple):
    """Where the groups of a tile lie."""

    at: int  # address of the first
    end: int  # offset of the group that lies at `end_at`; -1: none
    end_at: int
    without: int  # offset of the group that lies at `without_at`, a class left out; -1: none
    without_at: int


@inner
def group_at(tile, offset):
    """The address of the group `offset` bytes from the first; compares and moves, no branch."""
    at = tile.at + offset
    at = tile.end_at if offset == tile.end else at
    return tile.without_at if offset == tile.without else at


@inner
def whole_tile(address, width):
    """A `Tile` of elements of `width` bytes in scratch memory, padded there."""
    return Tile(address, -1, address, -1, address + TILE * width)


@lru_cache
def make_find_tile(kind, tile_kind=None):
    """The function that makes a `Tile` in dtype `tile_kind` from a part of a row of dtype `kind`.

    It needs room in scratch memory: TILE elements and two groups.
    """
    tile_kind = tile_kind or kind
    size, own_size = KINDS[kind][0] // 8, KINDS[tile_kind][0] // 8
    real, group = real_type(tile_kind), group_size(tile_kind)
    lanes, zero, same = group // VECTORS, real(0), tile_kind == kind

    @inner
    def find_tile(source, step, swapped, count, padding, room):
        """source : address of `count` elements, `step` bytes apart; then comes `padding`"""
        without_at = room + TILE * own_size
        end_at = without_at + group * own_size
        whole = count // group * group
        at, end_offset = source, whole * own_size
        if same:  # else it does not compile
            direct = step == size and not swapped
        else:
            direct = False
        if not direct:
            at, end_at = room, room + end_offset
        for i in range(0, group if whole < count else 0, lanes):
            x = splat(padding)
            if same:
                if direct:
                    # A whole vector: a load of one stored in parts would have to wait for it
                    n, here = count - whole - i, source + end_offset + i * size
                    x = select(first_lanes(n, zero), load_some(kind, here, n), x)
            store_vector(tile_kind, end_at + i * own_size, x)
        if not direct:
            for j in range(count):
                value = real(load_element(kind, source + j * step, swapped))
                store_element(tile_kind, at + j * own_size, value, False)
            end_offset = -1
        if whole == count:
            end_offset = -1
        return Tile(at, end_offset, end_at, -1, without_at)

    return find_tile


@inner
def with_lane(x, index, value):
    """A vector with `value` in the lane `index`, if it has that lane."""
    before = select(first_lanes(index + 1, value), splat(value), x)
    return select(first_lanes(index, value), x, before)


@lru_cache
def make_leave_out(kind):
    """The function that leaves a class out of a tile of dtype `kind`."""
    size, group = KINDS[kind][0] // 8, group_size(kind)

    @inner
    def leave_out(tile, index, value):
        """The tile with `value` in the place of an element, and the element."""
        offset = index // group * (group * size)
        at, to, inside = group_at(tile, offset), tile.without_at, index % group * size
        for i in range(0, group * size, VECTOR_BYTES):
            store(to + i, load(at + i, np.float32(0)))
        left = load_element(kind, at + inside, False)
        store_element(kind, to + inside, value, False)
        return Tile(tile.at, tile.end, tile.end_at, offset, to), left

    return leave_out


@lru_cache
def make_store_tile(kind):
    """The function that writes a tile from scratch memory to any strides and byte order."""
    size = KINDS[kind][0] // 8

    @inner
    def store_tile(tile, target, step, swapped, count):
        """The elements at `target`, `step` bytes apart, = tile[:count]."""
        for j in range(count):
            value = load_element(kind, tile + j * size, False)
            store_element(kind, target + j * step, value, swapped)

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
            return sums[0] + batch_of(terms, 0), sums[1] + batch_of(terms, 1)

        def batch(sums, terms):
            return (sums[0] + as_float64(terms),)

        return halves if terms.lanes == LANES[terms.dtype] else batch

    def compensated(sums, terms):
        total, lost = two_sum(sums[0], terms)
        return total, sums[1] + lost

    return compensated


def with_rounding(sums, a, b):
    """The row's `sums` plus what a + b lost in the terms of a group.

    Of rows of up to 16 classes this is the only rounding, and 1 ULP counts there.
    """
    raise NotImplementedError


@inner_overload(with_rounding)
def _with_rounding(sums, a, b):
    if a.dtype == types.float32:
        return lambda sums, a, b: sums
    return lambda sums, a, b: (sums[0], sums[1] + two_sum(a, b)[1])


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
