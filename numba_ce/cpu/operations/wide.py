"""What is done with a row, one function for each operation, built on measure and write.

Every function made here takes ``(plan, row, work)``, does the whole row and returns its share of
the block's sum of losses. `Kernel` names what it is compiled for.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.operations.narrow import narrow_loss_operation, narrow_normalize_operation
from numba_ce.cpu.operations.narrow_hess import narrow_hess_operation
from numba_ce.cpu.operations.narrow_stats import narrow_stats_operation
from numba_ce.cpu.operations.record import from_record_operation, record_operation
from numba_ce.cpu.operations.stats import eight_stats_operation, stats_operation
from numba_ce.cpu.plan import locate
from numba_ce.cpu.rows.effective_targets import probability_reader
from numba_ce.cpu.rows.finish import (
    finish_row,
    nan_finder,
    probability_weight,
    put_result,
    row_loss,
    target_gradient,
)
from numba_ce.cpu.rows.measure import Variant, measurer, peak_finder, variant_of
from numba_ce.cpu.rows.targets import (
    BAD,
    IGNORED,
    KEPT,
    Target,
    index_target,
    load_weight,
    logit_reader,
    scan,
)
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.rows.write import (
    Gradient,
    gradient_writer,
    hess_writer,
    log_softmax_writer,
    row_filler,
)
from numba_ce.cpu.schedules.along import eight_loss_operation, eight_normalize_operation
from numba_ce.cpu.schedules.gather import Sums, block_doer
from numba_ce.cpu.simd.element import load_element
from numba_ce.cpu.simd.exp import two_sum


class Kernel(NamedTuple):
    """What one compiled kernel is for; everything else is in its `PLAN`."""

    operation: str
    kind: str = "float32"  # dtype of the logits
    targets_kind: str | None = None  # dtype of the probabilities; None: class indices or nothing
    grad_kind: str | None = None  # dtype of the gradient or of the probabilities written
    hess_kind: str | None = None
    smoothing: bool = False
    tempered: bool = False
    softcap: bool = False
    block: int = 0  # narrow operations: classes turned at a time, up to EXACT_CLASSES all of them
    many: bool = False  # of them those for more than FEW_CLASSES


@lru_cache
def loss_operation(kernel):
    """Loss of a row, and its gradient if `grad_kind` is given."""
    kind, targets_kind, grad_kind = kernel.kind, kernel.targets_kind, kernel.grad_kind
    probabilities = targets_kind is not None
    variant = variant_of(kernel, keep=grad_kind is not None, lead=probabilities)
    zero = real_type(kind)(0)
    measure = measurer(variant)
    read_logit = logit_reader(kind, kernel.softcap)
    probability = probability_reader(targets_kind)
    wants_grad = grad_kind is not None
    write_gradient = gradient_writer(variant, grad_kind or "float32")
    fill_row = row_filler(grad_kind or "float32")

    @inner
    def do_row(plan, row, work):
        logits_at, targets_at, weight_at, grad_at, _ = locate(plan, row)
        source = plan.logits + logits_at
        if probabilities:
            s = load_weight(plan, weight_at)
            target = Target(KEPT if s != 0.0 else IGNORED, -1, s, 0.0, 1.0)
        else:
            target = index_target(plan, targets_at, weight_at)
        if target.status != KEPT:
            loss = 0.0 if target.status == IGNORED else math.nan
            put_result(plan.loss, row, plan.loss_bytes, loss)
            if wants_grad:
                grad, value = plan.grad + grad_at, 0.0 if plan.grad_scale == 0.0 else loss
                fill_row(plan, grad, plan.grad_step, plan.grad_swapped, value, work)
            return loss
        targets = plan.targets + targets_at
        s, k, q, temperature = target.weight, target.index, target.q, plan.temperature
        if probabilities:  # the largest logit is left out, which the measure finds
            row_ = measure(plan, source, k, targets, zero, work)
            k, t = row_.k, row_.peak
            if k >= 0:
                q = probability(plan, targets, k)
        else:
            t = np.float64(read_logit(plan, source, k))
            row_ = measure(plan, source, k, targets, zero, work)
        end = finish_row(row_, t, temperature)
        z_weight = target.z_weight * plan.z_loss
        loss = s * row_loss(q, end.surprise, row_.q_rest, row_.a_rest, end.above, z_weight, end.lse)
        put_result(plan.loss, row, plan.loss_bytes, loss)
        if wants_grad:
            grad = plan.grad + grad_at
            if plan.grad_scale == 0.0:
                fill_row(plan, grad, plan.grad_step, plan.grad_swapped, 0.0, work)
                return loss
            scale = s * plan.grad_scale
            g_k = target_gradient(q, end.rest, row_.q_rest, end.p_k, z_weight, end.lse)
            alpha = probability_weight(q, row_.q_rest, z_weight, end.lse)
            form = Gradient(k, scale * g_k, scale * alpha, end.origin, end.bottom, scale)
            write_gradient(plan, source, grad, targets, row_, form, work)
        return loss

    return do_row


@lru_cache
def normalize_operation(kernel):
    """softmax, log_softmax or logsumexp of a row; lse goes where losses go."""
    kind, grad_kind = kernel.kind, kernel.grad_kind
    real = real_type(kind)
    zero = real(0)
    is_softmax, is_log = kernel.operation == "softmax", kernel.operation == "log_softmax"
    # but for softmax 1 + the sum of the others: its logarithm keeps all digits
    variant = Variant(kind, keep=is_softmax, lead=not is_softmax)
    measure = measurer(variant)
    first_nan = nan_finder(kind)
    write_softmax = gradient_writer(variant, grad_kind or "float32")
    write_log = log_softmax_writer(kind, grad_kind or "float32")

    @inner
    def do_row(plan, row, work):
        logits_at, _, _, grad_at, _ = locate(plan, row)
        source, out = plan.logits + logits_at, plan.grad + grad_at
        row_ = measure(plan, source, -1, 0, zero, work)
        peak = row_.peak
        end = finish_row(row_, peak, 1.0)
        if is_log:
            write_log(plan, source, out, peak, end.surprise, work)
        elif is_softmax:
            form = Gradient(-1, 0.0, 1.0, end.origin, end.bottom, 0.0)
            write_softmax(plan, source, out, 0, row_, form, work)
        else:
            lse = end.lse
            if math.isinf(peak):
                # -inf: no class at all. inf: the sum is NaN, which may hide a NaN among the logits
                lse = peak if first_nan(plan, source) < 0 else math.nan
            put_result(plan.lse, row, plan.loss_bytes, lse)
        return 0.0

    return do_row


@lru_cache
def hess_operation(kernel):
    """Gradient and diagonal Hessian of a row."""
    kind, targets_kind = kernel.kind, kernel.targets_kind
    zero = real_type(kind)(0)
    variant = Variant(kind, keep=True, dense=targets_kind is not None, targets_kind=targets_kind)
    measure = measurer(variant)
    find_peak = peak_finder(kind)
    write_hess = hess_writer(variant, kernel.grad_kind, kernel.hess_kind)
    read_logit = logit_reader(kind, False)
    fill_grad, fill_hess = row_filler(kernel.grad_kind), row_filler(kernel.hess_kind)
    indices = targets_kind is None

    @inner
    def do_row(plan, row, work):
        logits_at, targets_at, weight_at, grad_at, hess_at = locate(plan, row)
        source = plan.logits + logits_at
        grad, hess = plan.grad + grad_at, plan.hess + hess_at
        s = load_weight(plan, weight_at)
        y = np.int64(-1)
        if indices:
            target = index_target(plan, targets_at, weight_at)
            y = target.index
            if target.status == BAD:
                s = math.nan
        if s == 0.0 or math.isnan(s):
            fill_grad(plan, grad, plan.grad_step, plan.grad_swapped, s, work)
            fill_hess(plan, hess, plan.hess_step, plan.hess_swapped, s, work)
            return 0.0
        k, peak = find_peak(plan, source, work)
        targets = plan.targets + targets_at
        row_ = measure(plan, source, k, targets, zero, work)
        end = finish_row(row_, np.float64(peak), 1.0)
        total, g_y = 1.0, 0.0
        if indices:
            g_k = -end.rest if y == k else end.p_k
            if y != k:
                d = np.float64(read_logit(plan, source, y)) - end.origin
                g_y = (math.exp(d) / end.bottom if d <= 0.0 else 0.0) - 1.0
                if math.isnan(end.bottom):
                    g_y = math.nan
        else:
            t = load_element(targets_kind, targets + k * plan.targets_step, plan.targets_swapped)
            q_k = np.float64(t)
            g_k = target_gradient(q_k, end.rest, row_.q_rest, end.p_k, 0.0, 0.0)
            total = q_k + row_.q_rest
        form = Gradient(k, g_k, 1.0, end.origin, end.bottom, s)
        write_hess(plan, grad, hess, targets, form, y, g_y, end.p_k, end.rest, total, work)
        return 0.0

    return do_row


# Sums of losses, and of what their additions lost
ROW_SUMS = Sums(
    inner(lambda: (0.0, 0.0)),
    inner(lambda sums, loss: (sums[0] + loss, sums[1] + two_sum(sums[0], loss)[1])),
    inner(lambda sums: sums[0] if math.isinf(sums[0]) else sums[0] + sums[1]),
)


def row_by_row(operation):
    """From the function that does a row to the one that does the rows of a block."""

    def block_operation(kernel):
        do_row = operation(kernel)

        @inner
        def do_rows(plan, row, count, work):
            return do_row(plan, row, work)

        return block_doer(1, do_rows, ROW_SUMS)

    return block_operation


OPERATIONS = {
    "loss": row_by_row(loss_operation),
    "eight_loss": eight_loss_operation,
    "eight_softmax": eight_normalize_operation,
    "eight_log_softmax": eight_normalize_operation,
    "eight_logsumexp": eight_normalize_operation,
    "eight_stats": eight_stats_operation,
    "narrow_loss": narrow_loss_operation,
    "narrow_softmax": narrow_normalize_operation,
    "narrow_log_softmax": narrow_normalize_operation,
    "narrow_logsumexp": narrow_normalize_operation,
    "narrow_stats": narrow_stats_operation,
    "narrow_hess": narrow_hess_operation,
    "softmax": row_by_row(normalize_operation),
    "log_softmax": row_by_row(normalize_operation),
    "logsumexp": row_by_row(normalize_operation),
    "stats": row_by_row(stats_operation),
    "hess": row_by_row(hess_operation),
    "record": row_by_row(record_operation),
    "from_record": row_by_row(from_record_operation),
    "scan": lambda kernel: scan,
}
