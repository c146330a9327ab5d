"""Rows of few classes, one in each lane: in, out, and their targets."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inlined, inner, smaller
from numba_ce.cpu.plan import locate, locate_rows
from numba_ce.cpu.rows.output import EDGE_BYTES
from numba_ce.cpu.rows.targets import (
    BAD,
    BAD_TARGET,
    IGNORED_TARGET,
    index_target,
    load_weight,
    neighbours,
    targets_of_rows,
    weights_are_neighbours,
    weights_of_rows,
)
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.rows.workspace import BATCH_BYTES
from numba_ce.cpu.simd.element import (
    KINDS,
    get,
    load_element,
    load_stored_rows,
    put,
    store_element,
    store_vector,
)
from numba_ce.cpu.simd.memory import (
    gather_float64,
    load_rows,
    prefetch,
    prefetch_to_write,
    store,
)
from numba_ce.cpu.simd.transpose import (
    EXACT_CLASSES,
    LARGEST_BLOCK,
    load_packed,
    load_turned,
    store_packed,
    store_turned,
)
from numba_ce.cpu.simd.vector import VECTOR_BYTES, first_lanes, select, splat_rows
from numba_ce.cpu.simd.width import CHEAP_MASKS, ROWS_ACROSS

F32_0 = np.float32(0)
# Bytes by which prefetches run ahead of the next rows. The hardware does little of it here:
# with C = 16, 2.1 times the speed for the loss alone, 1.9 times with the gradient
READ_AHEAD, WRITE_AHEAD = 1024, 512
NO_OFFSET = np.int64(0)
IGNORED_F32, BAD_F32 = np.float32(IGNORED_TARGET), np.float32(BAD_TARGET)


class Place(NamedTuple):
    """Where the rows are: see `plan.locate_rows`."""

    first: int
    count: int  # fewer than ROWS_ACROSS at the end of a block
    offsets: tuple
    steps: tuple
    even: bool


@inlined
def place_of(plan, first, count):
    """The `Place` of `count` rows."""
    offsets, steps, even = locate_rows(plan, first)
    return Place(first, count, offsets, steps, even)


class Lanes(NamedTuple):
    """Addresses in a worker's memory, R = ROWS_ACROSS."""

    targets: int  # float32 (R,); -1: the row does not count, -2: no such class
    weights: int  # float64 (R,): s_i
    class_weights: int  # float64 (R,): w_y
    tile: int  # (C, R) of the type the logits are computed in, then padding to whole blocks
    slopes: int  # the same: derivatives of the soft cap
    q: int  # the same: probabilities


def across_bytes(n_classes, width):
    """Bytes a worker needs; width : bytes of the type of the tiles."""
    padded = -(-n_classes // ROWS_ACROSS) * ROWS_ACROSS
    tiles = 3 * padded * ROWS_ACROSS * width
    return EDGE_BYTES + BATCH_BYTES + 6 * VECTOR_BYTES + tiles


@lru_cache
def make_cut_up(kind):
    """The function that cuts a worker's memory, at a multiple of VECTOR_BYTES, into `Lanes`."""
    pitch = ROWS_ACROSS * real_type(kind)().itemsize

    @inner
    def cut_up(work, n_classes):
        start = work.exps
        tile = start + 5 * VECTOR_BYTES
        size = (n_classes + ROWS_ACROSS - 1) // ROWS_ACROSS * ROWS_ACROSS * pitch
        return Lanes(
            start,
            start + VECTOR_BYTES,
            start + 3 * VECTOR_BYTES,
            tile,
            tile + size,
            tile + 2 * size,
        )

    return cut_up


@lru_cache
def make_count_classes(block):
    """The function that says how many classes a plan has; up to EXACT_CLASSES LLVM knows it."""
    if block <= EXACT_CLASSES:
        return inner(lambda plan: block)
    return inner(lambda plan: plan.n_classes)


@inner
def block_of(c, n_classes):
    """First class and number of classes of the block that the class c begins.

    Without masks the last one is whole as well: it does again some of what the one before did.
    """
    if CHEAP_MASKS:
        return c, smaller(LARGEST_BLOCK, n_classes - c)
    else:
        n = smaller(LARGEST_BLOCK, n_classes)
        return smaller(c, n_classes - n), n


@lru_cache
def make_read_tile(kind, block, many):
    """The function that reads rows into ``tile[class][row]``.

    many : classes, so that others prefetch, see `make_ask`
    """
    size, real = KINDS[kind][0] // 8, real_type(kind)
    width = real().itemsize
    pitch, count_classes = ROWS_ACROSS * width, make_count_classes(block)
    exact = block <= EXACT_CLASSES

    @inlined
    def read_tile(plan, place, operand, base, step, swapped, tile):
        """base, step, swapped : of the array; operand : its index in OPERANDS

        The lanes of rows that are not there hold anything.
        """
        n_classes = count_classes(plan)
        source, stride = base + place.offsets[operand], place.steps[operand]
        whole = place.even and place.count == ROWS_ACROSS and not swapped
        # Where rows are far apart, prefetches miss them
        longest = 2 * ROWS_ACROSS * n_classes * size
        if whole and step == size:
            if not many:
                following = source + ROWS_ACROSS * stride + READ_AHEAD
                for line in range(0, smaller(ROWS_ACROSS * stride, longest), VECTOR_BYTES):
                    prefetch(following + line)
            if exact and stride == n_classes * size:
                load_packed(kind, block, source, tile)
                return
            for c in range(0, n_classes, LARGEST_BLOCK):
                start, n = block_of(c, n_classes)
                at = tile + start * pitch
                load_turned(kind, block, source + start * size, stride, n, at)
        elif whole and stride == size:
            for c in range(n_classes):
                store(tile + c * pitch, load_stored_rows(kind, source + c * step))
        else:
            for i in range(place.count):
                source = base + locate(plan, place.first + i)[operand]
                for c in range(n_classes):
                    value = load_element(kind, source + c * step, swapped)
                    put(tile + c * pitch + i * width, value)

    return read_tile


@lru_cache
def make_write_tile(kind, block, many):
    """The function that writes ``tile[class][row]`` to rows."""
    size, real = KINDS[kind][0] // 8, real_type(kind)
    width, zero = real().itemsize, real(0)
    pitch, count_classes = ROWS_ACROSS * width, make_count_classes(block)
    exact = block <= EXACT_CLASSES

    @inlined
    def write_tile(plan, place, operand, base, step, swapped, tile):
        """Arguments as of `make_read_tile`."""
        n_classes = count_classes(plan)
        target, stride = base + place.offsets[operand], place.steps[operand]
        whole = place.even and place.count == ROWS_ACROSS and not swapped
        # Where rows are far apart, prefetches miss them
        longest = 2 * ROWS_ACROSS * n_classes * size
        if whole and step == size:
            if not many:
                following = target + ROWS_ACROSS * stride + WRITE_AHEAD
                for line in range(0, smaller(ROWS_ACROSS * stride, longest), VECTOR_BYTES):
                    prefetch_to_write(following + line)
            if exact and stride == n_classes * size:
                store_packed(kind, block, target, tile)
                return
            for c in range(0, n_classes, LARGEST_BLOCK):
                start, n = block_of(c, n_classes)
                at = tile + start * pitch
                store_turned(kind, block, target + start * size, stride, n, at)
        elif whole and stride == size:
            for c in range(n_classes):
                store_vector(kind, target + c * step, load_rows(tile + c * pitch, zero))
        else:
            for i in range(place.count):
                target = base + locate(plan, place.first + i)[operand]
                for c in range(n_classes):
                    value = get(tile + c * pitch + i * width, zero)
                    store_element(kind, target + c * step, value, swapped)

    return write_tile


class Ahead(NamedTuple):
    """What to ask for while a class is worked on: addresses, and bytes to those of the next."""

    logits: int
    logits_step: int
    targets: int
    targets_step: int
    grad: int
    grad_step: int


NOTHING_AHEAD = Ahead(0, 0, 0, 0, 0, 0)


@lru_cache
def make_ask(kernel):
    """`begin` and `ask`, the functions that prefetch what follows while the exponentials are done.

    All of it at once holds up the work for as long as the memory takes: with 64 classes the
    gradient moves at 23 GB/s instead of 21, softmax at 27 instead of 21. Up to FEW_CLASSES they do
    nothing: there it is slower by 5%.
    """
    many, has_targets = kernel.prefetch_by_class, kernel.targets_kind is not None
    # With a Hessian the two outputs are asked for by `make_write_tile`
    has_grad = kernel.grad_kind is not None and kernel.hess_kind is None
    kinds = (kernel.kind, kernel.targets_kind, kernel.grad_kind)
    size, targets_size, grad_size = (KINDS[kind or kernel.kind][0] // 8 for kind in kinds)

    @inlined
    def step_of(plan, place, operand, size):
        """The share of one class of these rows; where those are far apart, prefetches miss it."""
        return smaller(ROWS_ACROSS * place.steps[operand] // plan.n_classes, 2 * ROWS_ACROSS * size)

    @inlined
    def start_of(plan, place, operand, base):
        return base + place.offsets[operand] + ROWS_ACROSS * place.steps[operand]

    @inlined
    def begin(plan, place):
        """The `Ahead` of the rows after these."""
        if not many:
            return NOTHING_AHEAD
        grad = start_of(plan, place, 3, plan.grad) + WRITE_AHEAD
        grad_step = step_of(plan, place, 3, grad_size)
        if plan.grad_packed:  # a copy, which is in the cache
            grad, grad_step = plan.grad + place.offsets[3], 0
        return Ahead(
            start_of(plan, place, 0, plan.logits) + READ_AHEAD,
            step_of(plan, place, 0, size),
            start_of(plan, place, 1, plan.targets) + READ_AHEAD,
            step_of(plan, place, 1, targets_size),
            grad,
            grad_step,
        )

    @inlined
    def ask(ahead, c):
        if many:
            at = ahead.logits + c * ahead.logits_step
            prefetch(at)
            if size == 8:
                prefetch(at + VECTOR_BYTES)
            if has_targets:
                at = ahead.targets + c * ahead.targets_step
                prefetch(at)
                if targets_size == 8:
                    prefetch(at + VECTOR_BYTES)
            if has_grad:
                at = ahead.grad + c * ahead.grad_step
                prefetch_to_write(at)
                if grad_size == 8:
                    prefetch_to_write(at + VECTOR_BYTES)

    return begin, ask


@inlined
def read_targets(plan, place, lanes):
    """Target, s_i and w_y of the rows; weights are 0 for an ignored row, NaN for a bad one."""
    first, count = place.first, place.count
    if plan.targets_bytes == 0:  # probabilities
        there = splat_rows(F32_0)
        y = select(first_lanes(count, there), there, IGNORED_F32)
    elif count == ROWS_ACROSS and neighbours(plan, place.steps, place.even):
        y = targets_of_rows(plan, place.offsets[1])
    else:
        store(lanes.targets, splat_rows(IGNORED_F32))
        for i in range(count):
            target = index_target(plan, locate(plan, first + i)[1], NO_OFFSET)
            put(
                lanes.targets + i * 4,
                BAD_F32 if target.status == BAD else np.float32(target.index),
            )
        y = load_rows(lanes.targets, F32_0)
    s = splat_rows(1.0)
    if plan.sample_weight != 0:
        s = read_weights(plan, place, lanes)
        y = select(s == 0.0, select(y < F32_0, y, IGNORED_F32), y)
    store(lanes.targets, y)
    one = select(y == BAD_F32, math.nan, select(y < F32_0, 0.0, splat_rows(1.0)))
    store(lanes.weights, select(y < F32_0, one, s))
    if plan.class_weight != 0 and plan.targets_bytes != 0:
        one = select(y < F32_0, one, gather_float64(plan.class_weight, y))
    store(lanes.class_weights, one)


@inner
def read_weights(plan, place, lanes):
    """s_i of the rows; of one that is not there, anything."""
    if place.even and place.count == ROWS_ACROSS and weights_are_neighbours(plan, place.steps):
        return weights_of_rows(plan, place.offsets[2])
    for i in range(place.count):
        put(lanes.weights + i * 8, load_weight(plan, locate(plan, place.first + i)[2]))
    return load_rows(lanes.weights, 0.0)
