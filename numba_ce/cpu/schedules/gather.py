"""Rows copied into a worker's memory, computed with there, and written back.

Two kinds of arrays are better copied than read or written where they are:

* those of images, whose class axis is not the last one, so that an element of a row is next to that
  of another row. Some rows at a time are copied. So whole lines are read and written, where some
  classes a power of two apart push each other out of the caches, and all kernels know them:
  number by number, 150 classes and more moved at 1.2 GB/s, and go at 10 to 16 now.
* the gradient of rows across lanes of more than FEW_CLASSES, if all lie side by side. Written
  where it is it goes through the caches; from a copy, in whole lines around them.

The kernels do not notice: they are given a plan that says where the copies are.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import carray, types

from numba_ce.cpu.choose import rows_gathered, rows_packed
from numba_ce.cpu.compile.jit import call_address, inner, smaller, whole_kernel
from numba_ce.cpu.plan import PLAN_BYTES, PLAN_TYPE, copy_plan, plan_at
from numba_ce.cpu.schedules.strips import (
    AXIS_BYTES,
    CLASSES,
    deliverer,
    fetcher,
    n_together,
    odd_lines,
    padded,
    strip_pitch,
    strip_putter,
)
from numba_ce.cpu.simd.element import KINDS, get, put
from numba_ce.cpu.simd.vector import VECTOR_BYTES, splat, sum_of_lanes
from numba_ce.describe import OPERANDS

COPIED = ("logits", "targets", "grad", "hess")  # the operands that have classes
LINE = PLAN_BYTES  # where all rows lie side by side: what is left of a line, then the rows
PACKED = LINE + 2 * VECTOR_BYTES


class Copier(NamedTuple):
    """What a copying kernel is compiled for: bytes of an element, 0 of what is not there."""

    logits: int
    targets: int
    grad: int
    hess: int
    across: bool  # for rows across lanes: pieces of a class stay as they are
    packed: bool  # only the gradient is copied, of rows that all lie side by side


def copier_of(kernel, packed):
    """The kernel that makes the copies for another one; few kinds of them serve all."""
    kinds = (kernel.kind, kernel.targets_kind, kernel.grad_kind, kernel.hess_kind)
    sizes = [KINDS[kind][0] // 8 if kind else 0 for kind in kinds]
    if packed:
        return Copier(sizes[2], 0, sizes[2], 0, across=True, packed=True)
    return Copier(*sizes, across=kernel.schedule == "across", packed=False)


def near_bytes(copier, n_classes, n_axes):
    """Bytes that a worker needs, see `Rooms`; for operands that are not there next to none."""
    if copier.packed:
        copies = rows_packed(n_classes) * n_classes * copier.grad
        return PLAN_BYTES + PACKED + copies + VECTOR_BYTES
    n_rows = rows_gathered(n_classes)
    room = 2 * PLAN_BYTES + odd_lines(n_axes * AXIS_BYTES) + VECTOR_BYTES
    room += CLASSES * odd_lines(VECTOR_BYTES + n_rows * 8) + 2 * n_classes * VECTOR_BYTES
    for size in copier[:4]:
        if copier.across:
            room += n_classes * odd_lines(VECTOR_BYTES + n_rows * size)
        else:
            room += n_rows * odd_lines(n_classes * size)
    return room


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


class Part(NamedTuple):
    """What is done with one operand: before the rows of a block, and before and after some."""

    begin: Callable[..., None]
    fetch: Callable[..., None]
    deliver: Callable[..., None]


def copy_far(copier):
    """`begin`, `fetch` and `deliver` for rows whose classes are far apart.

    Each takes the plan as it was given, and the one that says where the copies are.
    """
    across = copier.across
    logits, targets, grad, hess = (part_of(copier, name) for name in COPIED)

    @inner
    def copy_bytes(n_classes, size):
        if across:
            return n_classes * strip_pitch(n_classes, size)
        else:
            return n_together(n_classes) * padded(n_classes * size)

    @inner
    def rooms_of(plan):
        n_classes = plan.n_classes
        axes = plan.near + PLAN_BYTES
        strips = axes + padded(plan.n_axes * AXIS_BYTES)
        grad_lines = strips + CLASSES * strip_pitch(n_classes, 8)
        hess_lines = grad_lines + n_classes * VECTOR_BYTES
        of_logits = hess_lines + n_classes * VECTOR_BYTES
        of_targets = of_logits + copy_bytes(n_classes, copier.logits)
        of_grad = of_targets + copy_bytes(n_classes, copier.targets)
        of_hess = of_grad + copy_bytes(n_classes, copier.grad)
        return Rooms(axes, strips, grad_lines, hess_lines, of_logits, of_targets, of_grad, of_hess)

    @inner
    def begin(plan, near):
        near.axes = axes = rooms_of(plan).axes
        for i in range(0, plan.n_axes * AXIS_BYTES, 8):
            put(axes + i, get(plan.axes + i, 0))
        logits.begin(plan, near)
        targets.begin(plan, near)
        grad.begin(plan, near)
        hess.begin(plan, near)
        if plan.grad_far:
            near.streaming = False

    @inner
    def fetch(plan, near):
        rooms = rooms_of(plan)
        logits.fetch(plan, near, rooms, rooms.logits)
        targets.fetch(plan, near, rooms, rooms.targets)
        grad.fetch(plan, near, rooms, rooms.grad)
        hess.fetch(plan, near, rooms, rooms.hess)

    @inner
    def deliver(plan):
        rooms = rooms_of(plan)
        grad.deliver(plan, rooms, rooms.grad, rooms.grad_lines)
        hess.deliver(plan, rooms, rooms.hess, rooms.hess_lines)

    return begin, fetch, deliver


def part_of(copier, name):
    """The `Part` of an operand; of one that is not there, nothing."""
    size, across, operand = getattr(copier, name), copier.across, OPERANDS.index(name)
    if size == 0:
        return Part(*(inner(lambda *arguments: None),) * 3)
    far_field, step_field, is_input = name + "_far", name + "_step", name in ("logits", "targets")
    fetch_rows, deliver_rows = fetcher(size, across), deliverer(size, across)

    @inner
    def row_step(n_classes):
        """Bytes from one copied row to the next."""
        if across:
            return size
        else:
            return padded(n_classes * size)

    @inner
    def begin(plan, near):
        if plan[far_field]:
            near[step_field] = strip_pitch(plan.n_classes, size) if across else size
            # The strides over the row axes: the copied rows lie side by side
            stride = row_step(plan.n_classes)
            for axis in range(plan.n_axes - 1, -1, -1):
                put(near.axes + axis * AXIS_BYTES + (1 + operand) * 8, stride)
                stride *= get(plan.axes + axis * AXIS_BYTES, 0)

    @inner
    def fetch(plan, near, rooms, copies):
        if plan[far_field]:
            first, begin = plan.near_first, VECTOR_BYTES if across else 0
            near[name] = copies + begin - first * row_step(plan.n_classes)
            if is_input:
                base, step = plan[name], plan[step_field]
                fetch_rows(plan, first, plan.near_last, operand, base, step, copies, rooms.strips)

    @inner
    def deliver(plan, rooms, copies, lines):
        if plan[far_field]:
            block, base, step = (plan.block_first, plan.block_last), plan[name], plan[step_field]
            first, last = plan.near_first, plan.near_last
            deliver_rows(plan, first, last, block, operand, base, step, copies, rooms.strips, lines)

    return Part(begin, fetch, deliver)


def copy_packed(copier):
    """The same where only the gradient is copied, of rows that all lie side by side."""
    size = copier.grad
    put_strip = strip_putter(size)

    @inner
    def begin(plan, near):
        pass

    @inner
    def fetch(plan, near):
        near.grad = plan.near + PACKED - plan.near_first * plan.n_classes * size

    @inner
    def deliver(plan):
        first, last, row = plan.near_first, plan.near_last, plan.n_classes * size
        fresh, is_last = (first - plan.block_first) * row < VECTOR_BYTES, last == plan.block_last
        rows, line, to = plan.near + PACKED, plan.near + LINE, plan.grad + first * row
        put_strip(rows, line, to, (last - first) * plan.n_classes, fresh, is_last, True)

    return begin, fetch, deliver


BEGIN, FETCH, DELIVER = np.int64(0), np.int64(1), np.int64(2)


def compile_copier(copier):
    """A kernel of its own, for the few calls that need it: the others compile 0.3 s faster."""
    begin, fetch, deliver = (copy_packed if copier.packed else copy_far)(copier)

    @whole_kernel(types.void(types.CPointer(PLAN_TYPE), types.intp))
    def copy(pointer, task):
        plan = carray(pointer, 1)[0]
        near = plan_at(plan, plan.near)
        if task == BEGIN:
            begin(plan, near)
        elif task == FETCH:
            fetch(plan, near)
        else:
            deliver(plan)

    return copy


def block_doer(rows_at_a_time, do_rows):
    """From ``do_rows(plan, first, count, work)``, which returns a vector of losses, to a block."""

    @inner
    def begin(plan, first, last, work):
        """The address of the plan for the rows of a block, 0 for `plan` itself."""
        if plan.copier == 0:
            return 0
        copy_plan(plan, work.near)
        copy_plan(plan, work.near + PLAN_BYTES)
        given = plan_at(plan, work.near)
        given.near = work.near + PLAN_BYTES
        given.block_first, given.block_last = first, last
        call_address(plan.copier, work.near, BEGIN)
        return given.near

    @inner
    def copy(plan, start, end, work, task):
        if plan.copier != 0:
            given = plan_at(plan, work.near)
            given.near_first, given.near_last = start, end
            call_address(plan.copier, work.near, task)

    @inner
    def do_block(plan, first, last, work):
        total = splat(0.0)
        near = plan_at(plan, begin(plan, first, last, work))
        together = last - first if plan.copier == 0 else plan.together
        n_rows = rows_at_a_time(plan)
        for start in range(first, last, together):
            end = smaller(start + together, last)
            copy(plan, start, end, work, FETCH)
            for row in range(start, end, n_rows):
                total = total + do_rows(near, row, smaller(n_rows, end - row), work)
            copy(plan, start, end, work, DELIVER)
        return sum_of_lanes(total)

    return do_block
