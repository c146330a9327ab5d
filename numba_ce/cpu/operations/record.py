"""Operations on a part of a row: its record, and its gradient from the record of the whole row."""

import math
from functools import lru_cache

import numpy as np

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.plan import locate
from numba_ce.cpu.rows.finish import (
    finish_record,
    probability_weight,
    target_gradient,
)
from numba_ce.cpu.rows.measure import difference, measurer, unscaled, variant_of
from numba_ce.cpu.rows.targets import IGNORED, KEPT, logit_reader, target_reader
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.rows.write import Gradient, gradient_writer, row_filler
from numba_ce.cpu.simd.element import get, put


@lru_cache
def record_operation(kernel):
    """The record of a row, or of the part of it that this shard holds."""
    kind, targets_kind = kernel.kind, kernel.targets_kind
    variant = variant_of(kernel)
    zero = real_type(kind)(0)
    measure = measurer(variant)
    read_target = target_reader(kind, targets_kind)
    read_logit = logit_reader(kind, kernel.softcap)

    @inner
    def do_row(plan, row, work):
        logits_at, targets_at, weight_at, _, _ = locate(plan, row)
        source = plan.logits + logits_at
        target = read_target(plan, source, targets_at, weight_at, work)
        record = plan.record + row * 72
        put(record + 56, plan.temperature)
        put(record + 64, np.float64(plan.all_classes))
        if target.status != KEPT:
            nothing = 0.0 if target.status == IGNORED else math.nan
            put(record, -math.inf)
            put(record + 8, nothing)
            put(record + 16, 0.0 if target.status == IGNORED else -math.inf)
            for column in range(3, 7):
                put(record + column * 8, nothing)
            return 0.0
        k, s = target.index, target.weight
        t = -math.inf
        if k >= 0:
            t = np.float64(read_logit(plan, source, k))
            if targets_kind is not None and t == -math.inf:
                k = np.int64(-1)  # no class of this shard is alive, so none is the largest
        row_ = measure(plan, source, k, plan.targets + targets_at, zero, work)
        put(record, row_.row_max)
        sum_exp = unscaled(row_.total, row_.scale, row_.row_max, plan.temperature)
        put(record + 8, sum_exp if t < math.inf else math.nan)
        put(record + 16, t)
        put(record + 24, s * target.q if k >= 0 else 0.0)
        put(record + 32, s * row_.q_rest)
        put(record + 40, s * row_.a_rest)
        z_weight = target.z_weight
        if targets_kind is not None and plan.class_offset > 0:
            z_weight = 0.0  # shards add theirs up: the first one has it
        put(record + 48, s * z_weight * plan.z_loss)
        return 0.0

    return do_row


@lru_cache
def from_record_operation(kernel):
    """Gradient of the classes of this shard, from the merged record of the whole row."""
    kind, targets_kind, grad_kind = kernel.kind, kernel.targets_kind, kernel.grad_kind
    variant = variant_of(kernel, keep=True)
    zero = real_type(kind)(0)
    measure = measurer(variant)
    read_target = target_reader(kind, targets_kind)
    read_logit = logit_reader(kind, kernel.softcap)
    write_gradient = gradient_writer(variant, grad_kind)
    fill_row = row_filler(grad_kind)
    indices = targets_kind is None

    @inner
    def do_row(plan, row, work):
        logits_at, targets_at, weight_at, grad_at, _ = locate(plan, row)
        source, grad = plan.logits + logits_at, plan.grad + grad_at
        target = read_target(plan, source, targets_at, weight_at, work)
        if target.status != KEPT:
            value = 0.0 if target.status == IGNORED else math.nan
            fill_row(plan, grad, plan.grad_step, plan.grad_swapped, value, work)
            return 0.0
        record, temperature = plan.record + row * 72, plan.temperature
        row_max, t = get(record, 0.0), get(record + 16, 0.0)
        q_target, q_rest = get(record + 24, 0.0), get(record + 32, 0.0)
        z_weight = get(record + 48, 0.0)
        end = finish_record(row_max, get(record + 8, 0.0), t, temperature)
        alpha = probability_weight(q_target, q_rest, z_weight, end.lse)
        k, s = target.index, target.weight
        targets = plan.targets + targets_at
        row_ = measure(plan, source, k, targets, zero, work)
        g_k = 0.0
        if k >= 0:
            z_k = np.float64(read_logit(plan, source, k))
            q_k = s * target.q
            p_k, others, rest = end.p_k, q_rest, end.rest
            if not indices and (z_k != t or q_k != q_target):
                # The largest logit of this shard, but not of the row
                if z_k != t:
                    d, lost = difference(z_k, end.origin, temperature)
                    e_k = math.exp(d) * (1.0 + lost) if z_k > -math.inf else 0.0
                    p_k = e_k / end.bottom  # NaN, also for a masked class, if the row is
                    rest = 1.0 - p_k
                others = (q_target - q_k) + q_rest
            g_k = target_gradient(q_k, rest, others, p_k, z_weight, end.lse)
        form = Gradient(k, g_k, alpha, end.origin, end.bottom, s)
        write_gradient(plan, source, grad, targets, row_, form, work)
        return 0.0

    return do_row
