"""Rows whose classes are far apart, but whose neighbours are near: those of images.

With the class axis not the last one, an element of a row is next to that of another row. Some rows
at a time are copied into a worker's memory, and the kernels do with the copies what they do with
any rows; their gradients are copied back. The copies of `narrow` have the rows side by side, as
they lie, those of all others the classes.

What this is for: whole lines are read and written, where some classes a power of two apart push
each other out of the caches; and lines are written around the caches although rows do not begin at
one. Read number by number, 150 classes and more moved at 1.2 GB/s.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from numba_ce.cpu.element import KINDS, get, put, stream_line
from numba_ce.cpu.jit import inner, larger, smaller
from numba_ce.cpu.memory import load, move_some, prefetch, store
from numba_ce.cpu.plan import OPERANDS, PLAN, copy_plan, locate, plan_at
from numba_ce.cpu.turn import transposer
from numba_ce.cpu.vector import VECTOR_BYTES, splat, sum_of_lanes

F32_0 = np.float32(0)
# The operands that have classes, by their index in OPERANDS
LOGITS, TARGETS, GRAD, HESS = (OPERANDS.index(o) for o in ("logits", "targets", "grad", "hess"))
AXIS_BYTES = (1 + len(OPERANDS)) * 8
PLAN_BYTES = -(-PLAN.itemsize // VECTOR_BYTES) * VECTOR_BYTES
LINE = PLAN_BYTES  # where all rows lie side by side: what is left of a line, then the rows
PACKED = LINE + 2 * VECTOR_BYTES
CLASSES = 16  # turned at a time


def rows_together(n_classes):
    """Rows that are copied at a time: as many as leave the copies in the cache.

    Pieces of less than a line would break `put_strip`. 64 to 128 for few classes: images of 150
    move at 22.3 GB/s instead of 19.8.
    """
    if n_classes <= 256:
        return 128
    return 64 if n_classes <= 1024 else 32


def odd_lines(n_bytes):
    """So many bytes and more, an odd number of lines, lest columns share a set of the cache."""
    return ((n_bytes + VECTOR_BYTES - 1) // VECTOR_BYTES | 1) * VECTOR_BYTES


def rows_packed(n_classes):
    """Rows written together where all lie side by side: 16 KB of float32, whole lines."""
    n_rows = 4096 // n_classes // 16 * 16
    return n_rows if n_rows > 0 else 16


n_together, padded, n_packed = inner(rows_together), inner(odd_lines), inner(rows_packed)


@inner
def strip_pitch(n_classes, size):
    """Bytes of a strip: a line for what comes before some rows of one class, and those rows."""
    return padded(VECTOR_BYTES + n_together(n_classes) * size)


def _kinds(kernel):
    return kernel.kind, kernel.targets_kind, kernel.grad_kind, kernel.hess_kind


def _size(kind):
    return KINDS[kind or "float32"][0] // 8


def near_bytes(kernel, n_classes, n_axes):
    """Bytes that a worker needs, see `Rooms`."""
    n_rows = rows_together(n_classes)
    room = PLAN_BYTES + odd_lines(n_axes * AXIS_BYTES) + VECTOR_BYTES
    room += CLASSES * odd_lines(VECTOR_BYTES + n_rows * 8) + 2 * n_classes * VECTOR_BYTES
    for size in map(_size, _kinds(kernel)):
        if kernel.block:
            room += n_classes * odd_lines(VECTOR_BYTES + n_rows * size)
        else:
            room += n_rows * odd_lines(n_classes * size)
    return room


def packed_bytes(kernel, n_classes):
    """The same where only the gradient is copied, of rows that all lie side by side."""
    return PACKED + rows_packed(n_classes) * n_classes * _size(kernel.grad_kind) + VECTOR_BYTES


class Rooms(NamedTuple):
    """Addresses in a worker's memory."""

    axes: int  # of the plan for the copies
    strips: int  # CLASSES of them
    grad_lines: int  # for each class what comes before the next rows, see `put_strip`
    hess_lines: int
    logits: int  # copies
    targets: int
    grad: int
    hess: int


@lru_cache
def mover(size):
    """The function that copies neighbouring elements of so many bytes."""
    lanes = VECTOR_BYTES // size

    @inner
    def move(source, target, count):
        whole = count // lanes * lanes
        for j in range(0, whole * size, VECTOR_BYTES):
            store(target + j, load(source + j, F32_0))
        if whole < count:
            move_some(size, source + whole * size, target + whole * size, count - whole)

    return move


@lru_cache
def fetcher(size, narrow):
    """The function that copies rows of elements of so many bytes."""
    transpose, move = transposer(size), mover(size)

    @inner
    def move_in(far, strip, count):
        """Some rows of one class; it asks for as many of those that follow."""
        for j in range(0, count * size, VECTOR_BYTES):
            prefetch(far + count * size + j)
        move(far, strip, count)

    @inner
    def fetch(plan, first, last, operand, base, step, copies, strips):
        """The rows from `first` to `last`; base, step : of the operand"""
        n_classes, pitch = plan.n_classes, strip_pitch(plan.n_classes, size)
        length = get(plan.axes + (plan.n_axes - 1) * AXIS_BYTES, 0)
        row = first
        while row < last:  # in pieces that are neighbours
            count = smaller(last - row, length - row % length)
            far = base + locate(plan, row)[operand]
            if narrow:
                to = copies + VECTOR_BYTES + (row - first) * size
                for c in range(n_classes):
                    move_in(far + c * step, to + c * pitch, count)
            else:
                row_pitch = padded(n_classes * size)
                to = copies + (row - first) * row_pitch
                for start in range(0, n_classes, CLASSES):
                    n = smaller(CLASSES, n_classes - start)
                    for c in range(n):
                        move_in(far + (start + c) * step, strips + c * pitch, count)
                    transpose(strips, pitch, n, count, to + start * size, row_pitch)
            row += count

    return fetch


@lru_cache
def strip_putter(size):
    """The function that writes neighbouring rows of one class."""
    move = mover(size)

    @inner
    def put_strip(strip, line, far, count, fresh, last, streaming):
        """far[:count] = strip[:count]

        streaming : in whole lines, around the caches. What the rows before have left of a line is
        in `line` (unless `fresh`), and what these leave goes there (unless they are the last).
        """
        if not streaming or far % size != 0:
            move(strip, far, count)
            return
        n_bytes, inside, begin = count * size, far % VECTOR_BYTES, 0
        if inside > 0 and fresh:
            begin = smaller(VECTOR_BYTES - inside, n_bytes)
            move_some(size, strip, far, begin // size)
        elif inside > 0:
            store(strip - VECTOR_BYTES, load(line, F32_0))
            begin = -inside
        end = begin + (n_bytes - begin) // VECTOR_BYTES * VECTOR_BYTES
        for j in range(begin, end, VECTOR_BYTES):
            stream_line("float32", far + j, (load(strip + j, F32_0),))
        if last:
            move_some(size, strip + end, far + end, (n_bytes - end) // size)
        else:
            store(line, load(strip + n_bytes - VECTOR_BYTES, F32_0))

    return put_strip


@lru_cache
def deliverer(size, narrow):
    """The function that writes the copies of rows to where the rows are."""
    transpose, put_strip = transposer(size), strip_putter(size)

    @inner
    def deliver(plan, first, last, block, operand, base, step, copies, strips, lines):
        """The rows from `first` to `last` of the block; base, step : of the operand"""
        n_classes, pitch = plan.n_classes, strip_pitch(plan.n_classes, size)
        length = get(plan.axes + (plan.n_axes - 1) * AXIS_BYTES, 0)
        strips += VECTOR_BYTES
        row = first
        while row < last:
            begin = row - row % length
            end = smaller(block[1], begin + length)
            begin = larger(block[0], begin)
            following = smaller(last, end)
            count = following - row
            far = base + locate(plan, row)[operand]
            # Less than a line is not kept: a part of it may belong to other rows
            fresh = (row - begin) * size < VECTOR_BYTES
            is_last = following == end or (following - begin) * size < VECTOR_BYTES
            if narrow:
                of = copies + VECTOR_BYTES + (row - first) * size
                for c in range(n_classes):
                    line, to = lines + c * VECTOR_BYTES, far + c * step
                    put_strip(of + c * pitch, line, to, count, fresh, is_last, plan.streaming)
            else:
                row_pitch = padded(n_classes * size)
                of = copies + (row - first) * row_pitch
                for start in range(0, n_classes, CLASSES):
                    n = smaller(CLASSES, n_classes - start)
                    transpose(of + start * size, row_pitch, count, n, strips, pitch)
                    for c in range(n):
                        line = lines + (start + c) * VECTOR_BYTES
                        to = far + (start + c) * step
                        put_strip(
                            strips + c * pitch, line, to, count, fresh, is_last, plan.streaming
                        )
            row = following

    return deliver


@lru_cache
def copies(kernel):
    """`begin`, `fetch` and `deliver` for the blocks of a kernel.

    begin(plan, n_rows, work) returns the address of the plan by which the rows of the block are to
    be done, for `plan_at`, and how many of them at a time: between `fetch` and `deliver`.
    """
    narrow, packed = kernel.block > 0, kernel.many and kernel.hess_kind is None
    size, targets_size, grad_size, hess_size = map(_size, _kinds(kernel))
    _, has_targets, has_grad, has_hess = (kind is not None for kind in _kinds(kernel))
    fetch_logits, fetch_targets = fetcher(size, narrow), fetcher(targets_size, narrow)
    put_packed = strip_putter(grad_size)
    deliver_grad, deliver_hess = deliverer(grad_size, narrow), deliverer(hess_size, narrow)

    @inner
    def copy_bytes(n_classes, size):
        if narrow:
            return n_classes * strip_pitch(n_classes, size)
        else:
            return n_together(n_classes) * padded(n_classes * size)

    @inner
    def rooms_of(plan, work):
        n_classes = plan.n_classes
        axes = work.near + PLAN_BYTES
        strips = axes + padded(plan.n_axes * AXIS_BYTES)
        grad_lines = strips + CLASSES * strip_pitch(n_classes, 8)
        hess_lines = grad_lines + n_classes * VECTOR_BYTES
        logits = hess_lines + n_classes * VECTOR_BYTES
        targets = logits + copy_bytes(n_classes, size)
        grad = targets + copy_bytes(n_classes, targets_size)
        hess = grad + copy_bytes(n_classes, grad_size)
        return Rooms(axes, strips, grad_lines, hess_lines, logits, targets, grad, hess)

    @inner
    def class_step(n_classes, size):
        """Bytes from class to class of a copied row."""
        if narrow:
            return strip_pitch(n_classes, size)
        else:
            return size

    @inner
    def row_step(n_classes, size):
        """Bytes from one copied row to the next."""
        if narrow:
            return size
        else:
            return padded(n_classes * size)

    @inner
    def point(n_classes, first, copies, size):
        """The address for an operand whose copies begin with the row `first`."""
        if narrow:
            copies += VECTOR_BYTES
        return copies - first * row_step(n_classes, size)

    @inner
    def set_strides(plan, axes, operand, stride):
        """The strides of an operand over the row axes, where its rows lie side by side."""
        for axis in range(plan.n_axes - 1, -1, -1):
            entry = axis * AXIS_BYTES
            put(axes + entry + (1 + operand) * 8, stride)
            stride *= get(plan.axes + entry, 0)

    @inner
    def begin(plan, n_rows, work):
        if plan.near_bytes == 0:
            return 0, n_rows
        copy_plan(plan, work.near)
        if packed and plan.grad_packed:
            return work.near, n_packed(plan.n_classes)
        near, axes, n_classes = plan_at(plan, work.near), rooms_of(plan, work).axes, plan.n_classes
        near.axes = axes
        for i in range(0, plan.n_axes * AXIS_BYTES, 8):
            put(axes + i, get(plan.axes + i, 0))
        if plan.logits_far:
            near.logits_step = class_step(n_classes, size)
            set_strides(plan, axes, LOGITS, row_step(n_classes, size))
        if has_targets and plan.targets_far:
            near.targets_step = class_step(n_classes, targets_size)
            set_strides(plan, axes, TARGETS, row_step(n_classes, targets_size))
        if has_grad and plan.grad_far:
            near.grad_step, near.streaming = class_step(n_classes, grad_size), False
            set_strides(plan, axes, GRAD, row_step(n_classes, grad_size))
        if has_hess and plan.hess_far:
            near.hess_step = class_step(n_classes, hess_size)
            set_strides(plan, axes, HESS, row_step(n_classes, hess_size))
        return work.near, n_together(n_classes)

    @inner
    def fetch(plan, near, first, last, work):
        """Before the rows from `first` to `last`."""
        if plan.near_bytes == 0:
            return
        n_classes, rooms = plan.n_classes, rooms_of(plan, work)
        if packed and plan.grad_packed:
            near.grad = work.near + PACKED - first * n_classes * grad_size
            return
        if plan.logits_far:
            near.logits = point(n_classes, first, rooms.logits, size)
            step, copies = plan.logits_step, rooms.logits
            fetch_logits(plan, first, last, LOGITS, plan.logits, step, copies, rooms.strips)
        if has_targets and plan.targets_far:
            near.targets = point(n_classes, first, rooms.targets, targets_size)
            step, copies = plan.targets_step, rooms.targets
            fetch_targets(plan, first, last, TARGETS, plan.targets, step, copies, rooms.strips)
        if has_grad and plan.grad_far:
            near.grad = point(n_classes, first, rooms.grad, grad_size)
        if has_hess and plan.hess_far:
            near.hess = point(n_classes, first, rooms.hess, hess_size)

    @inner
    def deliver(plan, first, last, block, work):
        """After them; block : its first row, and the one after its last."""
        if plan.near_bytes == 0:
            return
        rooms = rooms_of(plan, work)
        if packed and plan.grad_packed:
            n_elements, row = (last - first) * plan.n_classes, plan.n_classes * grad_size
            fresh, is_last = (first - block[0]) * row < VECTOR_BYTES, last == block[1]
            rows, line, to = work.near + PACKED, work.near + LINE, plan.grad + first * row
            put_packed(rows, line, to, n_elements, fresh, is_last, True)
            return
        if has_grad and plan.grad_far:
            step, copies, lines = plan.grad_step, rooms.grad, rooms.grad_lines
            deliver_grad(
                plan, first, last, block, GRAD, plan.grad, step, copies, rooms.strips, lines
            )
        if has_hess and plan.hess_far:
            step, copies, lines = plan.hess_step, rooms.hess, rooms.hess_lines
            deliver_hess(
                plan, first, last, block, HESS, plan.hess, step, copies, rooms.strips, lines
            )

    return begin, fetch, deliver


class Sums(NamedTuple):
    """How what the rows of a block return is added up: three functions."""

    nothing: Callable[[], Any]
    add: Callable[[Any, Any], Any]
    total: Callable[[Any], float]


NO_SUMS = Sums(inner(lambda: 0.0), inner(lambda total, more: 0.0), inner(lambda total: total))
VECTOR_SUMS = Sums(
    inner(lambda: splat(0.0)),
    inner(lambda total, more: total + more),
    inner(lambda total: sum_of_lanes(total)),
)


def block_doer(kernel, n_rows, do_rows, sums=NO_SUMS):
    """From ``do_rows(plan, first, count, work)``, for up to `n_rows` rows, to a block of rows."""
    begin, fetch, deliver = copies(kernel)
    nothing, add, total_of = sums

    @inner
    def do_block(plan, first, last, work):
        total = nothing()
        address, together = begin(plan, last - first, work)
        near = plan_at(plan, address)
        for start in range(first, last, together):
            end = smaller(start + together, last)
            fetch(plan, near, start, end, work)
            for row in range(start, end, n_rows):
                total = add(total, do_rows(near, row, smaller(n_rows, end - row), work))
            deliver(plan, start, end, (first, last), work)
        return total_of(total)

    return do_block
