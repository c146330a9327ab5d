"""Rows copied into a worker's memory, computed with there, and written back.

Two kinds of arrays are better copied than read or written where they are:

* those of images, whose class axis is not the last one, so that an element of a row is next to that
  of another row. Some rows at a time are copied. So whole lines are read and written, where some
  classes a power of two apart push each other out of the caches, and all kernels know them:
  number by number, 150 classes and more moved at 1.2 GB/s, and go at 10 to 16 now. Up to
  EXACT_CLASSES are used where they are: float32 softmax of 2 takes 2.9 instead of 4.3 ms on one
  core for 1.5 million rows, of 3 3.7 instead of 5.1; float64 of 24 would take 6.6 instead of 4.0.
* the gradient of `narrow` rows of more than FEW_CLASSES, if all rows lie side by side. Written
  where it is it goes through the caches; from a copy, in whole lines around them.

The kernels do not notice: they are given a plan that says where the copies are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import carray, types

from numba_ce.cpu.element import KINDS, get, put
from numba_ce.cpu.jit import call_address, inner, smaller, whole_kernel
from numba_ce.cpu.plan import OPERANDS, PLAN_BYTES, PLAN_TYPE, copy_plan, plan_at
from numba_ce.cpu.strips import (
    AXIS_BYTES,
    CLASSES,
    deliverer,
    fetcher,
    n_together,
    odd_lines,
    padded,
    rows_together,
    strip_pitch,
    strip_putter,
)
from numba_ce.cpu.vector import VECTOR_BYTES, splat, sum_of_lanes

# The operands that have classes, by their index in OPERANDS
LOGITS, TARGETS, GRAD, HESS = (OPERANDS.index(o) for o in ("logits", "targets", "grad", "hess"))
NO_OPTIONS = {"operation": "copies", "smoothing": False, "tempered": False, "softcap": False}
LINE = PLAN_BYTES  # where all rows lie side by side: what is left of a line, then the rows
PACKED = LINE + 2 * VECTOR_BYTES


def rows_packed(n_classes):
    """Rows written together where all lie side by side: 16 KB of float32, whole lines."""
    n_rows = 4096 // n_classes // 16 * 16
    return n_rows if n_rows > 0 else 16


def _kinds(kernel):
    return kernel.kind, kernel.targets_kind, kernel.grad_kind, kernel.hess_kind


def _size(kind):
    return KINDS[kind][0] // 8 if kind else 0


def near_bytes(kernel, n_classes, n_axes):
    """Bytes that a worker needs, see `Rooms`; for operands that are not there next to none."""
    n_rows = rows_together(n_classes)
    room = 2 * PLAN_BYTES + odd_lines(n_axes * AXIS_BYTES) + VECTOR_BYTES
    room += CLASSES * odd_lines(VECTOR_BYTES + n_rows * 8) + 2 * n_classes * VECTOR_BYTES
    for size in map(_size, _kinds(kernel)):
        if kernel.block:
            room += n_classes * odd_lines(VECTOR_BYTES + n_rows * size)
        else:
            room += n_rows * odd_lines(n_classes * size)
    return room


def packed_bytes(kernel, n_classes, n_axes):
    """The same where only the gradient is copied, of rows that all lie side by side."""
    return (
        PLAN_BYTES
        + PACKED
        + rows_packed(n_classes) * n_classes * _size(kernel.grad_kind)
        + VECTOR_BYTES
    )


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


def copy_far(kernel):
    """`begin`, `fetch` and `deliver` for rows whose classes are far apart.

    Each takes the plan as it was given, and the one that says where the copies are.
    """
    narrow = kernel.block > 0
    size, targets_size, grad_size, hess_size = map(_size, _kinds(kernel))
    _, has_targets, has_grad, has_hess = (kind is not None for kind in _kinds(kernel))
    fetch_logits, fetch_targets = fetcher(size, narrow), fetcher(targets_size or size, narrow)
    deliver_grad = deliverer(grad_size or size, narrow)
    deliver_hess = deliverer(hess_size or size, narrow)

    @inner
    def copy_bytes(n_classes, size):
        if narrow:
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
    def begin(plan, near):
        """Before the first row of a block."""
        axes, n_classes = rooms_of(plan).axes, plan.n_classes
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

    @inner
    def fetch(plan, near):
        """Before some rows."""
        n_classes, rooms = plan.n_classes, rooms_of(plan)
        first, last = plan.near_first, plan.near_last
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
    def deliver(plan):
        """After them."""
        rooms, block = rooms_of(plan), (plan.block_first, plan.block_last)
        first, last = plan.near_first, plan.near_last
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


def copy_packed(kernel):
    """The same where only the gradient is copied, of rows that all lie side by side."""
    size = _size(kernel.grad_kind)
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


def copier_of(kernel, packed):
    """The kernel that makes the copies for another one; few kinds of them serve all."""
    if packed:
        return kernel._replace(
            **NO_OPTIONS, kind=kernel.grad_kind, targets_kind=None, block=1, many=True
        )
    return kernel._replace(**NO_OPTIONS, block=int(kernel.block > 0), many=False)


BEGIN, FETCH, DELIVER = 0, 1, 2


def compile_copier(kernel):
    """A kernel of its own, for the few calls that need it: the others compile 0.3 s faster."""
    begin, fetch, deliver = (copy_packed if kernel.many else copy_far)(kernel)

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


def block_doer(n_rows, do_rows, sums=NO_SUMS):
    """From ``do_rows(plan, first, count, work)``, for up to `n_rows` rows, to a block of rows."""
    nothing, add, total_of = sums

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
        total = nothing()
        near = plan_at(plan, begin(plan, first, last, work))
        together = last - first if plan.copier == 0 else plan.together
        for start in range(first, last, together):
            end = smaller(start + together, last)
            copy(plan, start, end, work, FETCH)
            for row in range(start, end, n_rows):
                total = add(total, do_rows(near, row, smaller(n_rows, end - row), work))
            copy(plan, start, end, work, DELIVER)
        return total_of(total)

    return do_block
