"""Records in the general kernel: of a row or a shard's part of it, and the gradient from one."""

import math
from functools import cache

import numpy as np
from numba import cuda

from numba_ce.cuda.finish import difference, finish_row, probability_weight, target_gradient
from numba_ce.cuda.intrinsics import KINDS, inner, load_f64, store
from numba_ce.cuda.kernel import make_logit_reader, make_placer, make_target_reader
from numba_ce.cuda.measure import make_measurer
from numba_ce.cuda.plan import locate
from numba_ce.cuda.targets import IGNORED, KEPT
from numba_ce.cuda.write import make_gradient_writer


@cache
def make_record_operation(kernel):
    """The record of a row, or of the part of it that this shard holds."""
    measure = make_measurer(kernel.variant())
    read_target, read_logit = make_target_reader(kernel), make_logit_reader(kernel.access)
    probabilities = kernel.probabilities
    find = make_placer(kernel.access, None)
    zero = KINDS[kernel.access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, targets_at, weight_at, _, _ = locate(plan, row.number)
        source, _ = find(plan, row, logits_at, 0)
        targets = plan.targets + targets_at
        target = read_target(plan, source, targets_at, weight_at, row, shared)
        kept = target.status == KEPT
        k, s, t = target.k, target.weight, -math.inf
        if kept and k >= 0:
            t = read_logit(plan, source, k)
            if probabilities and t == -math.inf:
                k = np.int64(-1)  # no class of this shard is alive, so none is the largest
        limit = plan.n_classes if kept and row.active else 0
        part = measure(plan, source, row, limit, k, targets, zero, shared)
        if row.place != 0 or not row.active:
            return
        record = plan.record + row.number * 72
        store(record + 56, plan.temperature)
        store(record + 64, np.float64(plan.all_classes))
        if not kept:
            nothing = 0.0 if target.status == IGNORED else math.nan
            store(record, -math.inf)
            store(record + 8, nothing)
            store(record + 16, 0.0 if target.status == IGNORED else -math.inf)
            for column in range(3, 7):
                store(record + column * 8, nothing)
            return
        store(record, part.row_max)
        store(record + 8, part.sum_exp if t < math.inf else math.nan)
        store(record + 16, t)
        store(record + 24, s * target.q if k >= 0 else 0.0)
        store(record + 32, s * part.q_rest)
        store(record + 40, s * part.a_rest)
        z_weight = target.z_weight
        if probabilities and plan.class_offset > 0:
            z_weight = 0.0  # shards add theirs up: the first one has it
        store(record + 48, s * z_weight * plan.z_loss)

    return do_row


@cache
def make_from_record_operation(kernel):
    """Gradient of the classes of this shard, from the merged record of the whole row."""
    probabilities, real = kernel.probabilities, KINDS[kernel.access.kind][2]
    read_target, read_logit = make_target_reader(kernel), make_logit_reader(kernel.access)
    find = make_placer(kernel.access, kernel.grad_kind)
    write_gradient = make_gradient_writer(kernel.variant(), kernel.grad_kind)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, targets_at, weight_at, grad_at, _ = locate(plan, row.number)
        source, grad = find(plan, row, logits_at, grad_at)
        targets = plan.targets + targets_at
        target = read_target(plan, source, targets_at, weight_at, row, shared)
        kept, k, s = target.status == KEPT, target.k, target.weight
        z_k = read_logit(plan, source, k) if kept and k >= 0 else 0.0
        if probabilities and z_k == -math.inf:
            k = np.int64(-1)  # no class of this shard is alive, so none is the largest
        temperature, record = plan.temperature, plan.record + row.number * 72
        row_max, scale = load_f64(record), 1.0 / temperature
        if row.place == 0:
            slots[0, row.lane] = slots[1, row.lane] = 0.0
        if row.place == 0 and row.active and kept:
            t, q_target, q_rest = (
                load_f64(record + 16),
                load_f64(record + 24),
                load_f64(record + 32),
            )
            z_weight = load_f64(record + 48)
            end = finish_row(row_max, load_f64(record + 8), t, temperature)
            g_k = 0.0
            if k >= 0:
                q_k = s * target.q
                p_k, others, rest = end.p_k, q_rest, end.rest
                if probabilities and (z_k != t or q_k != q_target):
                    # The largest logit of this shard, but not of the row
                    if z_k != t:
                        d, lost = difference(z_k, row_max, temperature)
                        p_k = math.exp(d) * (1.0 + lost) * end.top / end.bottom
                        rest = 1.0 - p_k
                    others = (q_target - q_k) + q_rest
                g_k = target_gradient(q_k, rest, others, p_k, z_weight, end.lse)
            alpha = probability_weight(q_target, q_rest, z_weight, end.lse)
            factor = scale * alpha * end.top / end.bottom
            if not math.isinf(row_max):  # a record may hold more digits than the logits have
                origin = np.float64(real(row_max))
                factor *= math.exp((origin - row_max) / temperature)
            slots[0, row.lane], slots[1, row.lane] = scale * g_k, factor
        cuda.syncthreads()
        g_k, factor = slots[0, row.lane], slots[1, row.lane]
        if not kept:
            factor = 0.0 if target.status == IGNORED else math.nan
        write_gradient(
            plan, source, grad, targets, row,
            plan.n_classes if row.active else 0, k, g_k, factor, scale * s, row_max, not kept,
        )  # fmt: skip

    return do_row
