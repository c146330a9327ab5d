"""The general kernel: every operation and option, any strides.

The threads of a row measure it, one of them finishes it in float64 and writes its results, and all
write the gradient. Rows that fit are staged in shared memory, and so read once and written once;
others are read again from where they lie, at no memory traffic while the caches hold them.
`Kernel` names what it is compiled for; everything else is in its plan.
"""

import math
from functools import cache

import numpy as np
from numba import cuda
from numba.core import types

from numba_ce.cuda.finish import (
    finish_row,
    probability_weight,
    put_result,
    row_entropy,
    row_loss,
    target_gradient,
)
from numba_ce.cuda.intrinsics import KINDS, inner, store
from numba_ce.cuda.kernel import (
    Row,
    grad_scale_of,
    make_logit_reader,
    make_placer,
    make_target_reader,
)
from numba_ce.cuda.measure import make_measurer, make_peak_finder
from numba_ce.cuda.plan import locate
from numba_ce.cuda.record import make_from_record_operation, make_record_operation
from numba_ce.cuda.stage import make_stager
from numba_ce.cuda.targets import BAD, IGNORED, KEPT, index_target, load_probability, load_weight
from numba_ce.cuda.thread_layout import THREADS, make_row_walker, most_rows
from numba_ce.cuda.walk import make_logit_loader, staged_out
from numba_ce.cuda.write import make_gradient_writer, make_hess_writer, make_log_softmax_writer

SLOTS = 5  # numbers that the finishing thread of a row hands to the others


@cache
def make_weigher(dense):
    """The function that gives the loss of a row, g_k, and what multiplies the other p_j."""

    @inner
    def weigh(q, part, end, z_weight):
        q_rest = part.q_rest if dense else None
        loss = row_loss(q, end.surprise, q_rest, part.a_rest, end.above, z_weight, end.lse)
        g_k = target_gradient(q, end.rest, q_rest, end.p_k, z_weight, end.lse)
        return loss, g_k, probability_weight(q, q_rest, z_weight, end.lse)

    return weigh


@cache
def make_loss_operation(kernel):
    """Loss of a row, and its gradient if `grad_kind` is given."""
    wants_grad = kernel.grad_kind is not None
    variant = kernel.variant()
    measure, weigh = make_measurer(variant), make_weigher(variant.dense)
    read_target, read_logit = make_target_reader(kernel), make_logit_reader(kernel.access)
    write_gradient = make_gradient_writer(variant, kernel.grad_kind or "float32")
    find = make_placer(kernel.access, kernel.grad_kind)
    zero = KINDS[kernel.access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, targets_at, weight_at, grad_at, _ = locate(plan, row.number)
        source, grad = find(plan, row, logits_at, grad_at)
        targets = plan.targets + targets_at
        target = read_target(plan, source, targets_at, weight_at, row, shared)
        kept = target.status == KEPT
        k, s, temperature = target.k, target.weight, plan.temperature
        t = read_logit(plan, source, k) if kept else 0.0
        n_classes = plan.n_classes if kept and row.active else 0
        part = measure(plan, source, row, n_classes, k, targets, zero, shared)
        grad_scale = grad_scale_of(plan)
        scale = s * grad_scale / temperature
        if row.place == 0:
            slots[0, row.lane] = slots[1, row.lane] = 0.0
        if row.place == 0 and row.active:
            loss = 0.0 if target.status == IGNORED else math.nan
            if kept:
                end = finish_row(part.row_max, part.sum_exp, t, temperature)
                if plan.z_loss == 0.0:  # neither lse nor p_k may be needed: a division each
                    loss, g_k, alpha = weigh(target.q, part, end, None)
                else:
                    z_weight = target.z_weight * plan.z_loss
                    loss, g_k, alpha = weigh(target.q, part, end, z_weight)
                loss *= s
                if wants_grad:
                    slots[0, row.lane] = scale * g_k
                    slots[1, row.lane] = scale * alpha * end.top / end.bottom
            put_result(plan.loss, row.number, plan.loss_bytes, loss)
            put_result(plan.row_loss, row.number, 8, loss)
        if wants_grad:
            cuda.syncthreads()
            g_k, factor = slots[0, row.lane], slots[1, row.lane]
            fill = False
            if not kept or grad_scale == 0.0:
                spoiled = target.status == BAD and grad_scale != 0.0
                factor, fill = math.nan if spoiled else 0.0, True
            write_gradient(
                plan,
                source,
                grad,
                targets,
                row,
                plan.n_classes if row.active else 0,
                k,
                g_k,
                factor,
                scale,
                part.row_max,
                fill,
            )

    return do_row


@cache
def make_normalize_operation(kernel):
    """softmax, log_softmax or logsumexp of a row."""
    access = kernel.access
    is_softmax, is_log = kernel.operation == "softmax", kernel.operation == "log_softmax"
    variant = kernel.variant()
    measure, find_peak = make_measurer(variant), make_peak_finder(access)
    write_softmax = make_gradient_writer(variant, kernel.grad_kind or "float32")
    write_log = make_log_softmax_writer(access, kernel.grad_kind or "float32")
    find = make_placer(access, kernel.grad_kind)
    zero = KINDS[access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, _, _, grad_at, _ = locate(plan, row.number)
        source, out = find(plan, row, logits_at, grad_at)
        n_classes = plan.n_classes if row.active else 0
        k, value, has_nan = np.int64(-1), -math.inf, False
        if not is_softmax:  # 1 + the sum of the others: its logarithm keeps all digits
            peak = find_peak(plan, source, row, n_classes, shared)
            k, value, has_nan = peak.k, peak.value, peak.nan_at < plan.n_classes
        part = measure(plan, source, row, n_classes, k, np.int64(0), zero, shared)
        if row.place == 0:
            end = finish_row(part.row_max, part.sum_exp, value, 1.0)
            if is_softmax:
                slots[0, row.lane] = end.top / end.bottom
            elif is_log:
                slots[0, row.lane] = end.surprise
            else:
                lse = end.lse
                if has_nan:
                    lse = math.nan
                elif math.isinf(value):  # inf, or -inf: no class at all
                    lse = value
                if row.active:
                    put_result(plan.lse, row.number, plan.loss_bytes, lse)
        if is_softmax or is_log:
            cuda.syncthreads()
            shared_value = slots[0, row.lane]
            if is_softmax:
                write_softmax(
                    plan, source, out, np.int64(0), row, n_classes, np.int64(-1), 0.0,
                    shared_value, 0.0, part.row_max, False,
                )  # fmt: skip
            else:
                write_log(plan, source, out, row, n_classes, k, value, shared_value)

    return do_row


@cache
def make_stats_operation(kernel):
    """The statistics of a row; with targets also what they say."""
    access = kernel.access
    measure = make_measurer(kernel.variant(entropy=True, rank=True))
    find_peak, load, find = (
        make_peak_finder(access),
        make_logit_loader(access),
        make_placer(access, None),
    )
    zero = KINDS[access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, targets_at, weight_at, _, _ = locate(plan, row.number)
        source, _ = find(plan, row, logits_at, 0)
        size = plan.loss_bytes
        limit = plan.n_classes if row.active else 0
        peak = find_peak(plan, source, row, limit, shared)
        status, y, t = IGNORED, np.int64(-1), zero
        if plan.targets != 0:
            target = index_target(plan, targets_at, weight_at)
            status, y = target.status, target.k
            if status == KEPT:
                t = load(source, plan.logits_step, y)
        part = measure(plan, source, row, limit, peak.k, np.int64(0), t, shared)
        if row.place != 0 or not row.active:
            return
        end = finish_row(part.row_max, part.sum_exp, peak.value, 1.0)
        row_max, lse, surprise, k = peak.value, end.lse, end.surprise, peak.k
        entropy = row_entropy(
            end.p_k, surprise, end.rest, row_max - part.row_max,
            part.e_rest * end.top / end.bottom,
        )  # fmt: skip
        broken = math.isnan(surprise)
        if broken:
            if peak.nan_at < plan.n_classes:
                k, row_max, lse = peak.nan_at, math.nan, math.nan
            else:
                lse = row_max  # inf, or -inf for a row of nothing else
            entropy = math.nan
        put_result(plan.row_max, row.number, size, row_max)
        put_result(plan.lse, row.number, size, lse)
        put_result(plan.entropy, row.number, size, entropy)
        store(plan.argmax + row.number * 8, np.int64(k))
        if plan.targets != 0:
            loss, rank, target_logit = 0.0, plan.n_classes, math.nan
            if status == KEPT:
                target_logit, loss = np.float64(t), surprise
                if y != k and not broken:
                    loss = (peak.value - target_logit) + surprise
                if not broken:
                    rank = np.int64(part.n_above) + (1 if peak.value > target_logit else 0)
            elif status == BAD:
                loss = math.nan
            put_result(plan.target_logit, row.number, size, target_logit)
            put_result(plan.loss, row.number, size, loss)
            store(plan.rank + row.number * 8, np.int64(rank))

    return do_row


@cache
def make_hess_operation(kernel):
    """Gradient and diagonal Hessian of a row."""
    access = kernel.access
    variant = kernel.variant()
    measure, find_peak, read_logit = (
        make_measurer(variant),
        make_peak_finder(access),
        make_logit_reader(access),
    )
    write_hess = make_hess_writer(variant, kernel.grad_kind, kernel.hess_kind)
    indices = not kernel.probabilities
    find = make_placer(access, kernel.grad_kind)
    zero = KINDS[access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, targets_at, weight_at, grad_at, hess_at = locate(plan, row.number)
        source, grad = find(plan, row, logits_at, grad_at)
        targets = plan.targets + targets_at
        s, y = load_weight(plan, weight_at), np.int64(-1)
        if indices:
            target = index_target(plan, targets_at, weight_at)
            y = target.k
            if target.status == BAD:
                s = math.nan
        fill = s == 0.0 or math.isnan(s)
        limit = plan.n_classes if row.active and not fill else 0
        peak = find_peak(plan, source, row, limit, shared)
        k = peak.k
        part = measure(plan, source, row, limit, k, targets, zero, shared)
        if row.place == 0:
            for i in range(5):
                slots[i, row.lane] = 0.0
        if row.place == 0 and row.active and not fill:
            end = finish_row(part.row_max, part.sum_exp, peak.value, 1.0)
            factor, q_sum, g_k, g_y = end.top / end.bottom, 1.0, 0.0, 0.0
            if indices:
                g_k = -end.rest if y == k else end.p_k
                if y != k:
                    d = read_logit(plan, source, y) - part.row_max
                    g_y = (math.exp(d) * factor if d <= 0.0 else 0.0) - 1.0
                    if math.isnan(factor):
                        g_y = math.nan
            else:
                q_k = load_probability(plan, targets, k)
                g_k = target_gradient(q_k, end.rest, part.q_rest, end.p_k, None, end.lse)
                q_sum = q_k + part.q_rest
            slots[0, row.lane], slots[1, row.lane] = factor, q_sum
            slots[2, row.lane], slots[3, row.lane] = g_k, g_y
            slots[4, row.lane] = end.p_k * end.rest
        cuda.syncthreads()
        write_hess(
            plan, source, grad, plan.hess + hess_at, targets, row,
            plan.n_classes if row.active else 0, k, y, slots[2, row.lane], slots[3, row.lane],
            slots[4, row.lane], slots[0, row.lane], slots[1, row.lane], s, part.row_max, fill,
        )  # fmt: skip

    return do_row


OPERATIONS = {
    "loss": make_loss_operation,
    "softmax": make_normalize_operation,
    "log_softmax": make_normalize_operation,
    "logsumexp": make_normalize_operation,
    "stats": make_stats_operation,
    "hess": make_hess_operation,
    "record": make_record_operation,
    "from_record": make_from_record_operation,
}


@cache
def make_general_kernel(kernel):
    """The function that numba-cuda compiles for a `Kernel`."""
    do_row = OPERATIONS[kernel.operation](kernel)
    access = kernel.access
    layout, staged, size = access.layout, access.staged, KINDS[access.kind][0]
    through = staged_out(access, kernel.grad_kind)
    at_most = most_rows(layout)
    scratch = 1 if layout == "few" else THREADS  # "few" reduces by shuffles alone
    place_of = make_row_walker(layout)
    find_run, bring, leave = make_stager(access)

    def general(plan):
        shared = cuda.shared.array(scratch, np.float64)
        slots = cuda.shared.array((SLOTS, at_most), np.float64)
        lane, place, sharing, at_once = place_of(plan.n_classes)
        thread = types.int64(cuda.threadIdx.x)
        first = types.int64(cuda.blockIdx.x) * at_once
        while first < plan.n_rows:
            number = first + lane
            active = number < plan.n_rows
            if not active:
                number = plan.n_rows - 1
            byte = types.int64(0)
            if staged:
                run = find_run(plan, first, min(at_once, plan.n_rows - first))
                bring(run, thread)
                byte = run.skew + (number - first) * plan.n_classes * size
            do_row(plan, Row(number, active, lane, place, sharing, byte), shared, slots)
            if through:
                leave(run, plan.grad + locate(plan, first)[3], thread)
            cuda.syncthreads()  # the next rows use the same shared memory
            first += types.int64(cuda.gridDim.x) * at_once

    return general
