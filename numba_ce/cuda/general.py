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
from numba_ce.cuda.intrinsics import KINDS, inner, make_loader, store
from numba_ce.cuda.kernel import grad_scale_of, make_logit_reader, make_placer, make_target_reader
from numba_ce.cuda.measure import make_measurer, make_peak_finder
from numba_ce.cuda.plan import locate
from numba_ce.cuda.record import make_from_record_operation, make_record_operation
from numba_ce.cuda.stage import make_stager
from numba_ce.cuda.targets import BAD, IGNORED, KEPT, index_target, load_q, load_weight
from numba_ce.cuda.thread_layout import THREADS, make_team, rows_at_once, tell
from numba_ce.cuda.walk import staged_out
from numba_ce.cuda.write import make_gradient_writer, make_hess_writer, make_log_softmax_writer

at_once_on_device = inner(rows_at_once)


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
    """Loss of a row, and its gradient if `grad_kind` is given; softmax is that without target."""
    wants_grad, softmax = kernel.grad_kind is not None, kernel.operation == "softmax"
    measure, weigh = make_measurer(kernel.access, kernel.dense), make_weigher(kernel.dense)
    read_target, read_logit = make_target_reader(kernel), make_logit_reader(kernel.access)
    write_gradient = make_gradient_writer(kernel)
    zero = KINDS[kernel.access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        target = read_target(plan, row, shared)
        kept = target.status == KEPT
        k, s, temperature = target.k, target.weight, plan.temperature
        t = read_logit(plan, row, k) if kept and k >= 0 and row.active else -math.inf
        part = measure(plan, row, plan.n_classes if kept and row.active else 0, k, zero, shared)
        grad_scale = grad_scale_of(plan)
        scale = 1.0 if softmax else s * grad_scale / temperature
        g_k = factor = 0.0
        if row.team.place == 0 and row.active:
            loss = 0.0 if target.status == IGNORED else math.nan
            if kept:
                end = finish_row(part.row_max, part.sum_exp, t, temperature)
                if softmax:
                    alpha = 1.0
                elif plan.z_loss == 0.0:  # neither lse nor p_k may be needed: a division each
                    loss, g_k, alpha = weigh(target.q, part, end, None)
                else:
                    z_weight = target.z_weight * plan.z_loss
                    loss, g_k, alpha = weigh(target.q, part, end, z_weight)
                if wants_grad:
                    g_k *= scale
                    factor = scale * alpha * end.top / end.bottom
            put_result(plan.loss, row.number, plan.loss_bytes, s * loss)
            put_result(plan.row_loss, row.number, 8, s * loss)
        if wants_grad:
            g_k, factor = tell(g_k, factor, row.team, slots)
            fill = False
            if not kept or grad_scale == 0.0:
                spoiled = target.status == BAD and grad_scale != 0.0
                factor, fill = math.nan if spoiled else 0.0, True
            limit = plan.n_classes if row.active else 0
            write_gradient(plan, row, limit, k, g_k, factor, scale, part.row_max, fill)

    return do_row


@cache
def make_log_softmax_operation(kernel):
    """log_softmax of a row: from 1 + the sum of the others, whose logarithm keeps all digits."""
    measure, find_peak = make_measurer(kernel.access), make_peak_finder(kernel.access)
    write_log_softmax = make_log_softmax_writer(kernel)
    zero = KINDS[kernel.access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        limit, surprise = plan.n_classes if row.active else 0, 0.0
        peak = find_peak(plan, row, limit, shared)
        part = measure(plan, row, limit, peak.k, zero, shared)
        if row.team.place == 0:
            surprise = finish_row(part.row_max, part.sum_exp, peak.value, 1.0).surprise
        surprise, _ = tell(surprise, 0.0, row.team, slots)
        write_log_softmax(plan, row, limit, (peak.k, peak.value, surprise))

    return do_row


@cache
def make_stats_operation(kernel):
    """The statistics of a row, with targets also what they say; or logsumexp alone."""
    access, everything = kernel.access, kernel.operation == "stats"
    measure, find_peak = make_measurer(access, stats=everything), make_peak_finder(access)
    load, zero = make_loader(access.kind, access.staged), KINDS[access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        size, limit = plan.loss_bytes, plan.n_classes if row.active else 0
        peak = find_peak(plan, row, limit, shared)
        status, y, t = IGNORED, np.int64(-1), zero
        if everything and plan.targets != 0:
            target = index_target(plan, row.targets, row.weight)
            status, y = target.status, target.k
            if status == KEPT:
                t = load(row.source + y * row.step)
        part = measure(plan, row, limit, peak.k, t, shared)
        if row.team.place != 0 or not row.active:
            return
        end = finish_row(part.row_max, part.sum_exp, peak.value, 1.0)
        row_max, lse, surprise, k = peak.value, end.lse, end.surprise, peak.k
        broken = math.isnan(surprise)
        if broken and peak.nan_at < plan.n_classes:
            k, row_max, lse = peak.nan_at, math.nan, math.nan
        elif broken:
            lse = row_max  # inf, or -inf for a row of nothing else
        put_result(plan.lse, row.number, size, lse)
        if not everything:
            return
        entropy, m = math.nan, part.row_max
        if not broken:
            e_rest = part.e_rest * end.top / end.bottom
            entropy = row_entropy(end.p_k, surprise, end.rest, row_max - m, e_rest)
        put_result(plan.row_max, row.number, size, row_max)
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
    access, indices = kernel.access, not kernel.dense
    measure, find_peak = make_measurer(access, kernel.dense), make_peak_finder(access)
    read_logit, write_hess = make_logit_reader(access), make_hess_writer(kernel)
    zero = KINDS[access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        s, y = load_weight(plan, row.weight), np.int64(-1)
        if indices:
            target = index_target(plan, row.targets, row.weight)
            y = target.k
            if target.status == BAD:
                s = math.nan
        fill = s == 0.0 or math.isnan(s)
        limit = plan.n_classes if row.active and not fill else 0
        peak = find_peak(plan, row, limit, shared)
        k = peak.k
        part = measure(plan, row, limit, k, zero, shared)
        factor = g_k = g_y = h_k = 0.0
        q_sum = 1.0
        if row.team.place == 0 and limit > 0:
            end = finish_row(part.row_max, part.sum_exp, peak.value, 1.0)
            factor, h_k = end.top / end.bottom, end.p_k * end.rest
            if indices:
                g_k = -end.rest if y == k else end.p_k
                if y != k:
                    d = read_logit(plan, row, y) - part.row_max
                    g_y = (math.exp(d) * factor if d <= 0.0 else 0.0) - 1.0
                    if math.isnan(factor):
                        g_y = math.nan
            else:
                q_k = load_q(plan, row.targets, k)
                g_k = target_gradient(q_k, end.rest, part.q_rest, end.p_k, None, end.lse)
                q_sum = q_k + part.q_rest
        factor, q_sum = tell(factor, q_sum, row.team, slots)
        g_k, g_y = tell(g_k, g_y, row.team, slots, 2)
        h_k, _ = tell(h_k, 0.0, row.team, slots, 4)
        all_classes = plan.n_classes if row.active else 0
        write_hess(
            plan, row, all_classes, k, y, g_k, g_y, h_k, factor, q_sum, s, part.row_max, fill
        )

    return do_row


OPERATIONS = {
    "loss": make_loss_operation,
    "softmax": make_loss_operation,
    "log_softmax": make_log_softmax_operation,
    "logsumexp": make_stats_operation,
    "stats": make_stats_operation,
    "hess": make_hess_operation,
    "record": make_record_operation,
    "from_record": make_from_record_operation,
}


@cache
def make_general_kernel(kernel):
    """The function that numba-cuda compiles for a `Kernel`."""
    do_row, place_row = OPERATIONS[kernel.operation](kernel), make_placer(kernel)
    kind, staged = kernel.access.kind, kernel.access.staged
    through, size = staged_out(kernel.access, kernel.grad_kind), KINDS[kind][0]
    n_slots = 6 if kernel.operation == "hess" else 2
    bring, leave = make_stager(kind)

    def general(plan):
        shared = cuda.shared.array(THREADS, np.float64)
        slots = cuda.shared.array((n_slots, 32), np.float64)
        thread = types.int64(cuda.threadIdx.x)
        team = make_team(plan.lanes, plan.across)
        at_once = types.int64(at_once_on_device(plan.lanes, plan.across))
        first = types.int64(cuda.blockIdx.x) * at_once
        while first < plan.n_rows:
            number, byte = first + team.lane, types.int64(0)
            active = number < plan.n_rows
            if not active:
                number = plan.n_rows - 1
            length = min(at_once, plan.n_rows - first) * plan.n_classes
            if staged:
                source = plan.logits + locate(plan, first)[0]
                bring(source, length, thread)
                byte = source % 16 + (number - first) * plan.n_classes * size
            do_row(plan, place_row(plan, number, active, team, byte), shared, slots)
            if through:
                leave(plan.grad + locate(plan, first)[3], length, thread)
            cuda.syncthreads()  # the next rows use the same shared memory
            first += types.int64(cuda.gridDim.x) * at_once

    return general
