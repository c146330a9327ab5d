"""Records in the general kernel: of a row or a shard's part of it, and the gradient from one."""

import math
from functools import cache

import numpy as np

from numba_ce.cuda.finish import difference, finish_row, probability_weight, target_gradient
from numba_ce.cuda.intrinsics import KINDS, inner, load_f64, store
from numba_ce.cuda.kernel import make_logit_reader, make_target_reader
from numba_ce.cuda.measure import make_measurer
from numba_ce.cuda.targets import IGNORED, KEPT
from numba_ce.cuda.thread_layout import tell
from numba_ce.cuda.write import make_gradient_writer


@cache
def make_shard_target_reader(kernel):
    """The function that finds the `Target` in this shard, its k, and the logit there (-inf: none).

    Where no class of the shard is alive, none of its probabilities has the largest logit: k = -1.
    """
    read_target, read_logit = make_target_reader(kernel), make_logit_reader(kernel.access)

    @inner
    def read(plan, row, shared):
        target = read_target(plan, row, shared)
        k, z_k = target.k, -math.inf
        if target.status == KEPT and k >= 0 and row.active:
            z_k = read_logit(plan, row, k)
            if plan.targets_bytes == 0 and z_k == -math.inf:
                k = np.int64(-1)
        return target, k, z_k

    return read


@cache
def make_record_operation(kernel):
    """The record of a row, or of the part of it that this shard holds."""
    measure = make_measurer(kernel.access, kernel.dense)
    read_target = make_shard_target_reader(kernel)
    zero = KINDS[kernel.access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        target, k, t = read_target(plan, row, shared)
        kept, s = target.status == KEPT, target.weight
        part = measure(plan, row, plan.n_classes if kept and row.active else 0, k, zero, shared)
        if row.team.place != 0 or not row.active:
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
        if plan.targets_bytes == 0 and plan.class_offset > 0:
            z_weight = 0.0  # shards add theirs up: the first one has it
        store(record + 48, s * z_weight * plan.z_loss)

    return do_row


@cache
def make_from_record_operation(kernel):
    """Gradient of the classes of this shard, from the merged record of the whole row."""
    real = KINDS[kernel.access.kind][2]
    read_target, write_gradient = make_shard_target_reader(kernel), make_gradient_writer(kernel)

    @inner
    def do_row(plan, row, shared, slots):
        target, k, z_k = read_target(plan, row, shared)
        kept, s = target.status == KEPT, target.weight
        temperature, record = plan.temperature, plan.record + row.number * 72
        row_max, scale = load_f64(record), 1.0 / temperature
        g_k = factor = 0.0
        if row.team.place == 0 and row.active and kept:
            t, q_target = load_f64(record + 16), load_f64(record + 24)
            q_rest, z_weight = load_f64(record + 32), load_f64(record + 48)
            end = finish_row(row_max, load_f64(record + 8), t, temperature)
            if k >= 0:
                q_k = s * target.q
                p_k, others, rest = end.p_k, q_rest, end.rest
                if plan.targets_bytes == 0 and (z_k != t or q_k != q_target):
                    # The largest logit of this shard, but not of the row
                    if z_k != t:
                        d, lost = difference(z_k, row_max, temperature)
                        p_k = math.exp(d) * (1.0 + lost) * end.top / end.bottom
                        rest = 1.0 - p_k
                    others = (q_target - q_k) + q_rest
                g_k = scale * target_gradient(q_k, rest, others, p_k, z_weight, end.lse)
            alpha = probability_weight(q_target, q_rest, z_weight, end.lse)
            factor = scale * alpha * end.top / end.bottom
            if not math.isinf(row_max):  # a record may hold more digits than the logits have
                origin = np.float64(real(row_max))
                factor *= math.exp((origin - row_max) / temperature)
        g_k, factor = tell(g_k, factor, row.team, slots)
        if not kept:
            factor = 0.0 if target.status == IGNORED else math.nan
        limit = plan.n_classes if row.active else 0
        write_gradient(plan, row, limit, k, g_k, factor, scale * s, row_max, not kept)

    return do_row
