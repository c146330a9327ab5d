"""The record of a part of a row. Its gradient, from the record of the whole row, is in `loss`."""

import math
from functools import lru_cache

import numpy as np

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.plan import locate
from numba_ce.cpu.rows.measure import Variant, measurer, unscaled
from numba_ce.cpu.rows.targets import IGNORED, KEPT, make_read_logit, make_read_target
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.schedules.gather import block_doer
from numba_ce.cpu.simd.element import put
from numba_ce.cpu.simd.vector import splat


@lru_cache
def make_record(kernel):
    """The record of a row, or of the part of it that this shard holds."""
    kind, targets_kind = kernel.kind, kernel.targets_kind
    variant = Variant(
        kind,
        kernel.tempered,
        kernel.softcap,
        dense=kernel.smoothing or targets_kind is not None,
        smoothing=kernel.smoothing,
        targets_kind=targets_kind,
    )
    zero = real_type(kind)(0)
    measure = measurer(variant)
    read_target = make_read_target(kind, targets_kind, True)
    read_logit = make_read_logit(kind, kernel.softcap)

    @inner
    def do_row(plan, row, count, work):
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
            return splat(0.0)
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
        return splat(0.0)

    return block_doer(inner(lambda plan: 1), do_row)
