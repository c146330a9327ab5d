"""Lanes along the classes: each row measured and written by itself, finished eight at a time.

Rows of one tile share a batch, whose eight rows are finished together in the time of one. A longer
row is a batch of its own: its finish is little beside its exponentials.
"""

from functools import lru_cache

import numpy as np

from numba_ce.cpu.choose import BATCHED_BYTES
from numba_ce.cpu.compile.jit import inner, larger
from numba_ce.cpu.plan import locate
from numba_ce.cpu.rows.batch import BATCH, Batch
from numba_ce.cpu.rows.effective_targets import probability_reader
from numba_ce.cpu.rows.finish import factor_joiner, finishing
from numba_ce.cpu.rows.measure import Variant, measurer, nan_finder
from numba_ce.cpu.rows.targets import (
    BAD_TARGET,
    IGNORED,
    IGNORED_TARGET,
    KEPT,
    make_read_logit,
    make_read_target,
)
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.rows.workspace import ELEMENTS, FIELDS, row_workspace
from numba_ce.cpu.rows.write import (
    gradient_writer,
    hess_writer,
    log_softmax_writer,
    row_filler,
    row_recaller,
)
from numba_ce.cpu.schedules.gather import block_doer
from numba_ce.cpu.simd.element import get, put
from numba_ce.cpu.simd.memory import load, store

NO_CLASS = np.int64(-1)


def variant_of(kernel, operation):
    """The `Variant` of an operation."""
    return Variant(
        kernel.kind,
        kernel.tempered,
        kernel.softcap,
        keep=operation.writes in ("gradient", "hessian"),
        dense=operation.dense,
        smoothing=kernel.smoothing,
        targets_kind=kernel.targets_kind,
        entropy=operation.entropy,
        rank=operation.entropy,
        lead=operation.leaves == "largest",
    )


@lru_cache
def make_along(kernel, operation):
    """The function that does the rows of a block."""
    measure_row = row_measurer(kernel, operation)
    write_row = row_writer(kernel, operation)
    finish_batch, finish = (
        finishing(real_type(kernel.kind)).finish(operation.leaves),
        operation.finish,
    )
    keep_elements = element_keeper(real_type(kernel.kind), operation)
    writes, tempered = operation.writes is not None, kernel.tempered

    @inner
    def do_rows(plan, first, count, work):
        """Returns the losses of eight rows, 0 where there is no row."""
        for i in range(count):
            measure_row(plan, first + i, i, work)
        temperature = plan.temperature if tempered else 1.0
        batch = load_batch(work)
        end = finish_batch(batch, temperature, 1.0 / temperature)
        losses, elements = finish(plan, first, count, batch, end, temperature)
        if writes:
            keep_elements(work, elements)
            for i in range(count):
                write_row(plan, first + i, i, work)
        return losses

    batched = BATCHED_BYTES // real_type(kernel.kind)().itemsize
    rows_of_a_batch = inner(lambda plan: BATCH if plan.n_classes <= batched else 1)
    return block_doer(rows_of_a_batch, do_rows)


@inner
def load_batch(work):
    at = work.batch
    return Batch(
        load(at + FIELDS.total, 0.0),
        load(at + FIELDS.lost, 0.0),
        load(at + FIELDS.reference, 0.0),
        load(at + FIELDS.power, 0.0),
        load(at + FIELDS.row_max, 0.0),
        load(at + FIELDS.t, 0.0),
        load(at + FIELDS.k, 0.0),
        load(at + FIELDS.q, 0.0),
        load(at + FIELDS.q_rest, 0.0),
        load(at + FIELDS.a_rest, 0.0),
        load(at + FIELDS.s, 0.0),
        load(at + FIELDS.w, 0.0),
        load(at + FIELDS.y, 0.0),
        load(at + FIELDS.target_logit, 0.0),
        load(at + FIELDS.e_total, 0.0),
        load(at + FIELDS.above, 0.0),
        load(at + FIELDS.poison, 0.0),
    )


@lru_cache
def element_keeper(real, operation):
    """The function that keeps what an operation returned for its elements: float64 vectors."""
    join, double = factor_joiner(real, operation.leaves), real is np.float64

    @inner
    def keep(work, n, value):
        store(work.batch + ELEMENTS.values + n * 64, value)

    @inner
    def keep_factor(work, factor):
        """Returns the number of the next value."""
        keep(work, 0, factor[0])
        if double:
            keep(work, 1, factor[1])
            keep(work, 2, factor[2])
            return 3
        else:
            single = join((factor,))
            store(work.batch + ELEMENTS.single, single[0])
            store(work.batch + ELEMENTS.single + 64, single[1])
            return 1

    @inner
    def keep_gradient(work, elements):
        factor, g_k = elements
        keep(work, keep_factor(work, factor), g_k)

    @inner
    def keep_hessian(work, elements):
        factor, g_k, h_k, slope, curvature = elements
        n = keep_factor(work, factor)
        keep(work, n, g_k)
        keep(work, n + 1, h_k)
        keep(work, n + 2, slope)
        keep(work, n + 3, curvature)

    @inner
    def keep_log_softmax(work, elements):
        keep(work, 0, elements[0])

    keepers = {
        "gradient": keep_gradient,
        "hessian": keep_hessian,
        "log_softmax": keep_log_softmax,
        None: None,
    }
    return keepers[operation.writes]


@lru_cache
def row_measurer(kernel, operation):
    """The function that measures the i-th row of a batch and keeps what is known of it."""
    kind, targets_kind = kernel.kind, kernel.targets_kind
    leaves_target = operation.leaves == "target"
    lead, zero = operation.leaves == "largest", real_type(kind)(0)
    counted, looked_at = operation.targets == "counted", operation.targets == "looked at"
    from_record, entropy = operation.from_record, operation.entropy
    poison = operation.poison
    weighted = operation.dense and targets_kind is not None
    variant = variant_of(kernel, operation)
    measure, read_target = measurer(variant), make_read_target(kind, targets_kind, not lead)
    read_logit, probability = (
        make_read_logit(kind, kernel.softcap),
        probability_reader(targets_kind),
    )
    first_nan, workspace_of = nan_finder(kind), row_workspace(kind)

    @inner
    def keep_target(plan, at, status, target):
        # Of a row that counts, but whose target is not a class of this part, 0
        y = np.float64(larger(target.index, 0)) if status == KEPT else BAD_TARGET
        put(at + FIELDS.y, IGNORED_TARGET if status == IGNORED else y)
        put(at + FIELDS.s, 0.0 if status == IGNORED else target.weight)
        put(at + FIELDS.q, target.q)
        put(at + FIELDS.w, target.z_weight)
        put(at + ELEMENTS.q_factor, target.weight * plan.grad_scale / plan.temperature)

    @inner
    def keep_measured(at, found, k, t):
        put(at + FIELDS.total, found.total)
        put(at + FIELDS.lost, 0.0)
        reference = found.scale.reference if found.row_max > -np.inf else -np.inf
        put(at + FIELDS.reference, reference if t < np.inf else np.nan)
        put(at + FIELDS.power, np.float64(found.scale.power))
        put(at + FIELDS.row_max, found.row_max)
        put(at + FIELDS.t, t)
        put(at + FIELDS.k, np.float64(k))
        put(at + FIELDS.q_rest, found.q_rest)
        put(at + FIELDS.a_rest, found.a_rest)

    @inner
    def keep_statistics(plan, source, at, found, threshold):
        if entropy:
            put(at + FIELDS.e_total, found.e_total)
            put(at + FIELDS.above, found.n_above + (1.0 if found.peak > threshold else 0.0))
        # NaN or infinite, of which a row without NaN is the second
        spoilt = not found.total < np.inf or not abs(found.peak) < np.inf
        nan_at = first_nan(plan, source) if spoilt else NO_CLASS
        put(at + FIELDS.poison, np.nan if nan_at >= 0 else 0.0)
        if nan_at >= 0:
            put(at + FIELDS.k, np.float64(nan_at))
        elif found.k < 0:
            put(at + FIELDS.k, 0.0)

    @inner
    def keep_record(at, record, q_k):
        """What is known of the whole row, of which this is a part; s is in all of it already."""
        q_target, q_rest = get(record + 24, 0.0), get(record + 32, 0.0)
        put(at + FIELDS.total, get(record + 8, 0.0) * 2.0**64)
        put(at + FIELDS.row_max, get(record, 0.0))
        put(at + FIELDS.reference, get(record, 0.0))
        put(at + FIELDS.power, 0.0)
        put(at + FIELDS.t, get(record + 16, 0.0))
        put(at + FIELDS.q, q_k)
        put(at + FIELDS.q_rest, (q_target - q_k) + q_rest)
        put(at + FIELDS.w, get(record + 48, 0.0))
        put(at + FIELDS.s, 1.0)

    @inner
    def measure_row(plan, row, i, work):
        at, work = work.batch + i * 8, workspace_of(work, i)
        logits_at, targets_at, weight_at, _, _ = locate(plan, row)
        source, targets = plan.logits + logits_at, plan.targets + targets_at
        k, t, threshold, s_q = NO_CLASS, -np.inf, zero, 0.0
        if counted:
            target = read_target(plan, source, targets_at, weight_at, work)
            keep_target(plan, at, target.status, target)
            if target.status != KEPT:
                return
            k = target.index
            if from_record:
                t = np.float64(read_logit(plan, source, k)) if k >= 0 else -np.inf
                if weighted and t != get(plan.record + row * 72 + 16, 0.0):
                    k = NO_CLASS  # the largest of this part, but not of the row: as any other class
                s_q = target.weight * target.q if k >= 0 else 0.0
            elif leaves_target:
                t = np.float64(read_logit(plan, source, k))
        elif looked_at:
            if plan.targets != 0:
                target = read_target(plan, source, targets_at, weight_at, work)
                keep_target(plan, at, target.status, target)
                if target.status == KEPT:
                    threshold = read_logit(plan, source, target.index)
            put(at + FIELDS.target_logit, np.float64(threshold))
        found = measure(plan, source, k, targets, threshold, work)
        if lead:
            k, t = found.k, found.peak
            if weighted and k >= 0:
                put(at + FIELDS.q, probability(plan, targets, k))
        keep_measured(at, found, k, t)
        if poison:
            keep_statistics(plan, source, at, found, np.float64(threshold))
        if from_record:
            keep_record(at, plan.record + row * 72, s_q)

    return measure_row


@lru_cache
def row_writer(kernel, operation):
    """The function that writes the elements of the i-th row of a batch, which is finished."""
    kind, grad_kind = kernel.kind, kernel.grad_kind or "float32"
    variant = variant_of(kernel, operation)
    counted, has_hess = operation.targets == "counted", operation.writes == "hessian"
    is_log, workspace_of = operation.writes == "log_softmax", row_workspace(kind)
    recall = row_recaller(kind, kernel.targets_kind, variant.dense and not has_hess)
    fill_grad, fill_hess = row_filler(grad_kind), row_filler(kernel.hess_kind or grad_kind)
    write_log = log_softmax_writer(kind, grad_kind)
    write_gradient = gradient_writer(variant, grad_kind, operation.leaves == "none")
    write_hess = hess_writer(variant, grad_kind, kernel.hess_kind or grad_kind)

    @inner
    def write_row(plan, row, i, work):
        own = workspace_of(work, i)
        logits_at, targets_at, _, grad_at, hess_at = locate(plan, row)
        source, targets = plan.logits + logits_at, plan.targets + targets_at
        grad, hess, y = plan.grad + grad_at, plan.hess + hess_at, 0.0
        if is_log:
            at = work.batch + i * 8
            t, surprise = get(at + FIELDS.t, 0.0), get(at + ELEMENTS.values, 0.0)
            write_log(plan, source, grad, t, surprise, own)
            return
        if counted:
            y = get(work.batch + i * 8 + FIELDS.y, 0.0)
            if y < 0.0 or plan.grad_scale == 0.0:
                value = np.nan if y == BAD_TARGET and plan.grad_scale != 0.0 else 0.0
                fill_grad(plan, grad, plan.grad_step, plan.grad_swapped, value, work)
                if has_hess:
                    fill_hess(plan, hess, plan.hess_step, plan.hess_swapped, value, work)
                return
        if has_hess:
            write_hess(plan, grad, hess, targets, recall(plan, work, i), np.int64(y), own)
        else:
            write_gradient(plan, source, grad, targets, recall(plan, work, i), own)

    return write_row
