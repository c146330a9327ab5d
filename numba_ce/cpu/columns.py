"""Rows whose classes are far apart, but whose neighbours are near: those of images.

With the class axis not the last one, an element of one row is next to that of another row. Sixteen
such rows at a time are copied side by side, and the kernels do with the copies what they do with
any rows; their gradients are copied back. Read number by number instead, 150 classes moved at
1.2 GB/s, a tenth of what this does.
"""

from functools import lru_cache

from numba_ce.cpu.element import KINDS, get
from numba_ce.cpu.jit import inner, smaller
from numba_ce.cpu.plan import OPERANDS, PLAN, copy_plan, locate, plan_at
from numba_ce.cpu.turn import ROWS, transposer
from numba_ce.cpu.vector import VECTOR_BYTES

PLAN_BYTES = -(-PLAN.itemsize // VECTOR_BYTES) * VECTOR_BYTES
# The operands that have classes, by their index in OPERANDS
LOGITS, TARGETS, GRAD, HESS = (OPERANDS.index(o) for o in ("logits", "targets", "grad", "hess"))


def near_pitch(n_classes, size):
    """Bytes from one copied row to the next: an odd number of lines, for the sets of the cache."""
    return ((n_classes * size + VECTOR_BYTES - 1) // VECTOR_BYTES | 1) * VECTOR_BYTES


pitch_of = inner(near_pitch)


def _size(kind):
    return 0 if kind is None else KINDS[kind][0] // 8


def near_bytes(kernel, n_classes):
    """Bytes a worker needs for the copies."""
    kinds = (kernel.kind, kernel.targets_kind, kernel.grad_kind, kernel.hess_kind)
    return PLAN_BYTES + ROWS * sum(near_pitch(n_classes, _size(kind)) for kind in kinds if kind)


@lru_cache
def copier(kind):
    """The functions that copy rows of dtype `kind` side by side, and back."""
    size = _size(kind)
    transpose = transposer(size)

    @inner
    def pieces(plan, first, last, operand, base, step, copies, back):
        """Rows from `first` to `last`, in pieces that lie side by side."""
        n_classes, pitch = plan.n_classes, pitch_of(plan.n_classes, size)
        length = get(plan.axes + (plan.n_axes - 1) * 48, 0)
        row = first
        while row < last:
            count = smaller(last - row, length - row % length)
            far, near = base + locate(plan, row)[operand], copies + (row - first) * pitch
            if back:
                transpose(near, pitch, count, n_classes, far, step)
            else:
                transpose(far, step, n_classes, count, near, pitch)
            row += count

    return pieces


@lru_cache
def columns(kernel):
    """`begin`, `fetch` and `deliver` for the blocks of a kernel.

    begin(plan, n_rows, work) returns the address of the plan by which the rows of the block are to
    be done, for `plan_at`, and how many of them at a time: between `fetch` and `deliver`.
    """
    size, targets_size, grad_size, hess_size = (
        _size(kind)
        for kind in (kernel.kind, kernel.targets_kind, kernel.grad_kind, kernel.hess_kind)
    )
    copy_logits = copier(kernel.kind)
    copy_targets, copy_grad, copy_hess = (
        copier(kind or kernel.kind)
        for kind in (kernel.targets_kind, kernel.grad_kind, kernel.hess_kind)
    )
    has_targets, has_grad, has_hess = targets_size > 0, grad_size > 0, hess_size > 0

    @inner
    def rooms(n_classes, work):
        """Where the copies of the four operands lie."""
        logits = work.near + PLAN_BYTES
        targets = logits + ROWS * pitch_of(n_classes, size)
        grad = targets + (ROWS * pitch_of(n_classes, targets_size) if has_targets else 0)
        hess = grad + (ROWS * pitch_of(n_classes, grad_size) if has_grad else 0)
        return logits, targets, grad, hess

    @inner
    def begin(plan, n_rows, work):
        if plan.near_axes == 0:
            return 0, n_rows
        copy_plan(plan, work.near)
        near = plan_at(plan, work.near)
        near.axes = plan.near_axes
        if plan.logits_far:
            near.logits_step = size
        if plan.targets_far:
            near.targets_step = targets_size
        if plan.grad_far:
            near.grad_step, near.streaming = grad_size, False
        if plan.hess_far:
            near.hess_step = hess_size
        return work.near, ROWS

    @inner
    def fetch(plan, near, first, last, work):
        """Before the rows from `first` to `last`."""
        if plan.near_axes == 0:
            return
        n_classes = plan.n_classes
        logits, targets, grad, hess = rooms(n_classes, work)
        if plan.logits_far:
            near.logits = logits - first * pitch_of(n_classes, size)
            copy_logits(plan, first, last, LOGITS, plan.logits, plan.logits_step, logits, False)
        if has_targets and plan.targets_far:
            near.targets = targets - first * pitch_of(n_classes, targets_size)
            copy_targets(
                plan, first, last, TARGETS, plan.targets, plan.targets_step, targets, False
            )
        if has_grad and plan.grad_far:
            near.grad = grad - first * pitch_of(n_classes, grad_size)
        if has_hess and plan.hess_far:
            near.hess = hess - first * pitch_of(n_classes, hess_size)

    @inner
    def deliver(plan, first, last, work):
        """After them."""
        if plan.near_axes == 0:
            return
        _, _, grad, hess = rooms(plan.n_classes, work)
        if has_grad and plan.grad_far:
            copy_grad(plan, first, last, GRAD, plan.grad, plan.grad_step, grad, True)
        if has_hess and plan.hess_far:
            copy_hess(plan, first, last, HESS, plan.hess, plan.hess_step, hess, True)

    return begin, fetch, deliver
