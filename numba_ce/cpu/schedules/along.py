"""Rows of some hundred classes: each measured and written by itself, finished eight at a time.

To finish a row in float64, one number at a time, takes 75 ns, as long as the exponentials of 700
classes; eight rows in the lanes of vectors take that long together. For rows of one tile whose
logits are computed in float32.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.plan import locate
from numba_ce.cpu.rows.effective_targets import probability_reader
from numba_ce.cpu.rows.finish import nan_finder
from numba_ce.cpu.rows.finish_rows import finishing, single_from_anywhere, weigher
from numba_ce.cpu.rows.measure import Variant, measurer, variant_of
from numba_ce.cpu.rows.output import Factor
from numba_ce.cpu.rows.targets import (
    BAD,
    IGNORED,
    KEPT,
    Target,
    index_target,
    load_weight,
    logit_reader,
)
from numba_ce.cpu.rows.tile import TILE
from numba_ce.cpu.rows.workspace import EIGHT, Workspace
from numba_ce.cpu.rows.write import (
    cap_slope_reader,
    gradient_tile_writer,
    log_softmax_writer,
    row_filler,
)
from numba_ce.cpu.schedules.gather import VECTOR_SUMS, block_doer
from numba_ce.cpu.simd.element import get, put
from numba_ce.cpu.simd.memory import load, store, store_lanes
from numba_ce.cpu.simd.vector import (
    first_lanes,
    joined,
    select,
    splat,
)

F32_0 = np.float32(0)
TILE_BYTES = TILE * 4
FIELD_BYTES = EIGHT * 8
NO_CLASS = np.int64(-1)


class Rows(NamedTuple):
    """Offsets in `Workspace.rows`: eight numbers each, float64 unless said."""

    total: int = 0  # of `Measured`, and so are the next five
    row_max: int = 1 * FIELD_BYTES
    reference: int = 2 * FIELD_BYTES
    power: int = 3 * FIELD_BYTES
    q_rest: int = 4 * FIELD_BYTES
    a_rest: int = 5 * FIELD_BYTES
    t: int = 6 * FIELD_BYTES  # z_k
    s: int = 7 * FIELD_BYTES  # of the `Target`, and so are the next two
    q: int = 8 * FIELD_BYTES
    w: int = 9 * FIELD_BYTES
    g_k: int = 10 * FIELD_BYTES
    k: int = 11 * FIELD_BYTES  # int64; of the `Target` or of `Measured`
    status: int = 12 * FIELD_BYTES  # int64, of the `Target`
    factor: int = 13 * FIELD_BYTES  # float32, of the exponentials; and a power of two
    factor_power: int = 14 * FIELD_BYTES


ROWS = Rows()


@inner
def keep_row(at, row, t):
    """What `measure` found, at the address of the row in `Workspace.rows`."""
    put(at + ROWS.total, row.total)
    put(at + ROWS.row_max, row.row_max)
    put(at + ROWS.reference, row.scale.reference)
    put(at + ROWS.power, np.float64(row.scale.power))
    put(at + ROWS.q_rest, row.q_rest)
    put(at + ROWS.a_rest, row.a_rest)
    put(at + ROWS.t, t)


@inner
def load_field(work, field):
    """One number of each of the eight rows."""
    return load(work.rows + field, 0.0)


@inner
def keep_factors(work, factors):
    """The factors of the exponentials of eight rows, see `finishing`."""
    store(work.rows + ROWS.factor, factors[0])
    store(work.rows + ROWS.factor_power, factors[1])


@inner
def factor_of(work, i, share, common):
    """The `Factor` of the i-th row."""
    value = get(work.rows + ROWS.factor + i * 4, F32_0)
    power = get(work.rows + ROWS.factor_power + i * 4, F32_0)
    return Factor(value, None, power, share, common)


@inner
def work_of(work, i):
    """The `Workspace` of the i-th of eight rows."""
    exps = work.exps + i * TILE_BYTES
    return Workspace(
        work.edge, work.rows, exps, work.scales, work.tile, work.weights, work.logits, work.near
    )


@inner
def finish_rows(work, temperature):
    """The eight rows in `Workspace.rows` as `FinishedRows`."""
    t = load_field(work, ROWS.t)
    return single_from_anywhere(
        select(t < math.inf, load_field(work, ROWS.total), math.nan),
        load_field(work, ROWS.row_max),
        t,
        load_field(work, ROWS.reference),
        load_field(work, ROWS.power),
        temperature,
    )


@inner
def put_eight(address, first, count, values):
    """Write a per-row result, float32, of `count` rows from the row `first`."""
    here = first_lanes(count, F32_0)
    store_lanes(address + first * 4, here, joined(values, splat(0.0), F32_0))


@lru_cache
def eight_loss_operation(kernel):
    """Loss of the rows of a block, and their gradient if `grad_kind` is given."""
    kind, targets_kind, grad_kind = kernel.kind, kernel.targets_kind, kernel.grad_kind
    probabilities, tempered = targets_kind is not None, kernel.tempered
    wants_grad = grad_kind is not None
    variant = variant_of(kernel, keep=wants_grad, lead=probabilities)
    dense, measure = variant.dense, measurer(variant)
    read_logit = logit_reader(kind, kernel.softcap)
    probability = probability_reader(targets_kind)
    weigh = weigher(np.float32, dense)
    join_factors = finishing(np.float32).joined
    write_tile = gradient_tile_writer(variant, grad_kind or "float32")
    fill_row = row_filler(grad_kind or "float32")
    cap_slope = cap_slope_reader(kind, kernel.softcap and not dense)

    @inner
    def measure_row(plan, row, i, work):
        """Measures the i-th row, and keeps what is known of it."""
        at, work = work.rows + i * 8, work_of(work, i)
        logits_at, targets_at, weight_at, _, _ = locate(plan, row)
        source, targets = plan.logits + logits_at, plan.targets + targets_at
        if probabilities:
            s = load_weight(plan, weight_at)
            target = Target(KEPT if s != 0.0 else IGNORED, -1, s, 0.0, 1.0)
        else:
            target = index_target(plan, targets_at, weight_at)
        k, q, s = target.index, target.q, target.weight
        if target.status == KEPT:
            if probabilities:  # the largest logit is left out, which the measure finds
                found = measure(plan, source, k, targets, F32_0, work)
                k, t = found.k, found.peak
                if k >= 0:
                    q = probability(plan, targets, k)
            else:
                t = np.float64(read_logit(plan, source, k))
                found = measure(plan, source, k, targets, F32_0, work)
            keep_row(at, found, t)
        elif target.status == IGNORED:
            s = 0.0
        put(at + ROWS.k, np.int64(k))
        put(at + ROWS.status, np.int64(target.status))
        put(at + ROWS.s, s)
        put(at + ROWS.q, q)
        put(at + ROWS.w, target.z_weight)

    @inner
    def write_row(plan, row, i, work):
        """Writes the gradient of the i-th row, of which all is known."""
        at, work = work.rows + i * 8, work_of(work, i)
        logits_at, targets_at, _, grad_at, _ = locate(plan, row)
        source, grad = plan.logits + logits_at, plan.grad + grad_at
        targets = plan.targets + targets_at
        status, k = get(at + ROWS.status, NO_CLASS), get(at + ROWS.k, NO_CLASS)
        if status != KEPT or plan.grad_scale == 0.0:
            value = math.nan if status == BAD and plan.grad_scale != 0.0 else 0.0
            fill_row(plan, grad, plan.grad_step, plan.grad_swapped, value, work)
            return
        q_factor = get(at + ROWS.s, 0.0) * plan.grad_scale / plan.temperature
        if dense:
            share = np.float32(q_factor * (1.0 - plan.smoothing))
            common = np.float32(q_factor * (plan.smoothing / plan.all_classes))
        else:
            share = common = None
        factor = factor_of(work, i, share, common)
        g_k = get(at + ROWS.g_k, 0.0) * cap_slope(plan, source, k)
        write_tile(plan, source, grad, targets, 0, work.exps, factor, q_factor, k, g_k, work)

    @inner
    def do_rows(plan, first, count, work):
        """Returns the losses of eight rows, 0 where there is no row."""
        for i in range(count):
            measure_row(plan, first + i, i, work)
        temperature = plan.temperature if tempered else 1.0
        loss, g_k, factor = weigh(
            plan,
            finish_rows(work, temperature),
            load_field(work, ROWS.s),
            load_field(work, ROWS.w),
            load_field(work, ROWS.q),
            load_field(work, ROWS.q_rest),
            load_field(work, ROWS.a_rest),
            temperature,
        )
        # Of a row that does not count, `rows` holds what was there before it
        loss = select(load_field(work, ROWS.s) == 0.0, splat(0.0), loss)
        if plan.loss != 0:
            put_eight(plan.loss, first, count, loss)
        if wants_grad:
            store(work.rows + ROWS.g_k, g_k)
            keep_factors(work, join_factors(factor, factor))
            for i in range(count):
                write_row(plan, first + i, i, work)
        return select(first_lanes(count, 0.0), loss, splat(0.0))

    return block_doer(EIGHT, do_rows, VECTOR_SUMS)


@lru_cache
def eight_normalize_operation(kernel):
    """softmax, log_softmax or logsumexp of the rows of a block."""
    kind, grad_kind = kernel.kind, kernel.grad_kind
    is_softmax, is_log = (
        kernel.operation == "eight_softmax",
        kernel.operation == "eight_log_softmax",
    )
    variant = Variant(kind, keep=is_softmax, lead=not is_softmax)
    measure, first_nan = measurer(variant), nan_finder(kind)
    join_factors = finishing(np.float32).joined
    write_tile = gradient_tile_writer(variant, grad_kind or "float32")
    write_log = log_softmax_writer(kind, grad_kind or "float32")

    @inner
    def do_rows(plan, first, count, work):
        for i in range(count):
            source = plan.logits + locate(plan, first + i)[0]
            found = measure(plan, source, NO_CLASS, 0, F32_0, work_of(work, i))
            keep_row(work.rows + i * 8, found, found.peak)
        end = finish_rows(work, 1.0)
        if is_softmax:
            keep_factors(work, join_factors(end.factor, end.factor))
        elif is_log:
            store(work.rows + ROWS.s, end.surprise)
        else:
            put_eight(plan.lse, first, count, end.lse)
            for i in range(count):
                t = get(work.rows + ROWS.t + i * 8, 0.0)
                if math.isinf(t):
                    # -inf: no class at all. inf: the sum is NaN, which may hide a NaN
                    source = plan.logits + locate(plan, first + i)[0]
                    lse = t if first_nan(plan, source) < 0 else math.nan
                    put(plan.lse + (first + i) * 4, np.float32(lse))
        if is_softmax or is_log:
            for i in range(count):
                logits_at, _, _, grad_at, _ = locate(plan, first + i)
                source, out, own = plan.logits + logits_at, plan.grad + grad_at, work_of(work, i)
                if is_softmax:
                    factor = factor_of(work, i, None, None)
                    write_tile(plan, source, out, 0, 0, own.exps, factor, 0.0, NO_CLASS, 0.0, own)
                else:
                    at = work.rows + i * 8
                    t, s = get(at + ROWS.t, 0.0), get(at + ROWS.s, 0.0)
                    write_log(plan, source, out, t, s, own)
        return 0.0

    return block_doer(EIGHT, do_rows)
