"""Statistics of rows that are too long for `narrow_stats`: one at a time, or finished by eight."""

import math
from functools import lru_cache

import numpy as np

from numba_ce.cpu.compile.jit import inner, larger
from numba_ce.cpu.plan import locate
from numba_ce.cpu.rows.finish import finish_row, nan_finder, put_result, row_entropy
from numba_ce.cpu.rows.finish_rows import finishing, times0
from numba_ce.cpu.rows.measure import Variant, measurer, unscaled
from numba_ce.cpu.rows.targets import BAD, IGNORED, KEPT, index_target
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.schedules.along import (
    EIGHT,
    NO_CLASS,
    ROWS,
    finish_rows,
    keep_row,
    load_field,
)
from numba_ce.cpu.schedules.gather import block_doer
from numba_ce.cpu.simd.element import get, load_element, put
from numba_ce.cpu.simd.memory import store

# What eight rows keep in fields of no use to statistics, or no more; `keep_row` writes some of them
E_TOTAL, N_ABOVE, TARGET_LOGIT, Y = ROWS.a_rest, ROWS.q_rest, ROWS.s, ROWS.w
SURPRISE, LSE, ENTROPY = ROWS.q, ROWS.g_k, ROWS.reference


@lru_cache
def row_measurer(kind):
    """The function that measures a row for its statistics."""
    zero = real_type(kind)(0)
    measure = measurer(Variant(kind, entropy=True, rank=True, lead=True))

    @inner
    def measure_row(plan, row, work):
        """What it found, the status and the index of the target, and the target's logit."""
        logits_at, targets_at, weight_at, _, _ = locate(plan, row)
        source = plan.logits + logits_at
        status, y, t = IGNORED, NO_CLASS, zero
        if plan.targets != 0:
            target = index_target(plan, targets_at, weight_at)
            status, y = target.status, target.index
            if status == KEPT:
                at = source + y * plan.logits_step
                t = load_element(kind, at, plan.logits_swapped)
        return measure(plan, source, -1, 0, t, work), status, y, np.float64(t)

    return measure_row


@lru_cache
def results_putter(kind):
    """The function that writes the statistics of a row."""
    first_nan = nan_finder(kind)

    @inner
    def put_results(plan, row, k, row_max, lse, surprise, entropy, status, y, t, n_above):
        """k, row_max : its first maximum; t : the target's logit; n_above : without k"""
        size, broken = plan.loss_bytes, math.isnan(surprise)
        k, peak = larger(k, 0), row_max
        if broken:
            nan_at = first_nan(plan, plan.logits + locate(plan, row)[0])
            if nan_at >= 0:
                k, row_max, lse = nan_at, math.nan, math.nan
            else:
                lse = row_max  # inf, or -inf for a row of nothing else
            entropy = math.nan
        put_result(plan.row_max, row, size, row_max)
        put_result(plan.lse, row, size, lse)
        put_result(plan.entropy, row, size, entropy)
        put(plan.argmax + row * 8, np.int64(k))
        if plan.targets != 0:
            loss, rank, target_logit = 0.0, plan.n_classes, math.nan
            if status == KEPT:
                target_logit, loss = t, surprise
                if not broken:
                    if y != k:
                        loss = (peak - t) + surprise
                    rank = np.int64(n_above) + (1 if peak > t else 0)
            elif status == BAD:
                loss = math.nan
            put_result(plan.target_logit, row, size, target_logit)
            put_result(plan.loss, row, size, loss)
            put(plan.rank + row * 8, np.int64(rank))

    return put_results


@lru_cache
def stats_operation(kernel):
    """The statistics of a row; with targets also what they say."""
    measure_row, put_results = row_measurer(kernel.kind), results_putter(kernel.kind)

    @inner
    def do_row(plan, row, work):
        found, status, y, t = measure_row(plan, row, work)
        end = finish_row(found, found.peak, 1.0)
        e_rest = unscaled(found.e_total, found.scale, end.origin, 1.0)
        d = found.peak - found.row_max
        entropy = row_entropy(end.sum_exp, e_rest, d, end.surprise, end.p_k, end.bottom)
        put_results(
            plan, row, found.k, found.peak, end.lse, end.surprise, entropy, status, y, t,
            found.n_above,
        )  # fmt: skip
        return 0.0

    return do_row


@lru_cache
def eight_stats_operation(kernel):
    """The same for the rows of a block."""
    measure_row, put_results = row_measurer(kernel.kind), results_putter(kernel.kind)
    finish = finishing(np.float32)
    times_amount, value_of = finish.amount, finish.value

    @inner
    def do_rows(plan, first, count, work):
        for i in range(count):
            found, status, y, t = measure_row(plan, first + i, work)
            at = work.rows + i * 8
            keep_row(at, found, found.peak)
            put(at + E_TOTAL, found.e_total)
            put(at + N_ABOVE, found.n_above)
            put(at + TARGET_LOGIT, t)
            put(at + Y, np.int64(y))
            put(at + ROWS.k, np.int64(found.k))
            put(at + ROWS.status, np.int64(status))
        end = finish_rows(work, 1.0)
        # `_row.row_entropy`
        d = load_field(work, ROWS.t) - load_field(work, ROWS.row_max)
        others = value_of(times_amount(end.factor, load_field(work, E_TOTAL)))
        entropy = end.p_k * end.surprise + times0(end.rest, d + end.surprise) + others
        store(work.rows + SURPRISE, end.surprise)
        store(work.rows + LSE, end.lse)
        store(work.rows + ENTROPY, entropy)
        for i in range(count):
            at = work.rows + i * 8
            put_results(
                plan,
                first + i,
                get(at + ROWS.k, NO_CLASS),
                get(at + ROWS.t, 0.0),
                get(at + LSE, 0.0),
                get(at + SURPRISE, 0.0),
                get(at + ENTROPY, 0.0),
                get(at + ROWS.status, NO_CLASS),
                get(at + Y, NO_CLASS),
                get(at + TARGET_LOGIT, 0.0),
                get(at + N_ABOVE, 0.0),
            )
        return 0.0

    return block_doer(EIGHT, do_rows)
