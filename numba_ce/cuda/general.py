"""The general kernel: every operation and option, any strides, in two reads of each row.

A block of threads measures its rows, one thread of each row finishes it in float64 and writes its
results, and all threads write the gradient. The second read of a row that fits the caches costs no
memory traffic. `Kernel` names what it is compiled for; everything else is in its plan.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda
from numba.core import types

from numba_ce.cuda.finish import (
    difference,
    finish_row,
    probability_weight,
    put_result,
    row_entropy,
    row_loss,
    target_gradient,
)
from numba_ce.cuda.group import THREADS, row_walker, rows_of_block
from numba_ce.cuda.intrinsics import KINDS, element_loader, inner, load_f64, store
from numba_ce.cuda.measure import Variant, measurer, peak_finder
from numba_ce.cuda.plan import locate
from numba_ce.cuda.targets import (
    BAD,
    IGNORED,
    KEPT,
    Target,
    class_weight,
    index_target,
    load_weight,
    smoothed,
)
from numba_ce.cuda.walk import Access, capper
from numba_ce.cuda.write import gradient_writer, hess_writer, log_softmax_writer

SLOTS = 6 * 32  # six numbers that the finishing thread of a row hands to the others


class Kernel(NamedTuple):
    """What one compiled general kernel is for."""

    operation: str
    access: Access
    targets_kind: str | None = None  # dtype of the probabilities; None: class indices or nothing
    grad_kind: str | None = None  # dtype of the gradient or of the probabilities written
    hess_kind: str | None = None
    smoothing: bool = False

    def variant(self, **changes):
        """What has to be measured for it."""
        dense = self.smoothing or self.targets_kind is not None
        return Variant(self.access, dense, self.targets_kind, **changes)


class Row(NamedTuple):
    """Where a thread stands."""

    number: int
    active: bool  # False: beyond the last row; takes part in barriers only
    lane: int  # of the row among those that the block does at once
    place: int  # of the thread among those of the row


@cache
def logit_reader(access):
    """The function that reads one logit, capped, as float64."""
    load, (cap, _) = element_loader(access.kind), capper(access.kind)
    capped = access.softcap

    @inner
    def read_logit(plan, source, index):
        value = load(source + index * plan.logits_step)
        return np.float64(cap(value, plan.softcap) if capped else value)

    return read_logit


@cache
def target_reader(kernel):
    """The function that finds the class to leave out, and its q."""
    access, targets_kind = kernel.access, kernel.targets_kind
    probabilities = targets_kind is not None
    find_peak = peak_finder(access)
    load_target = element_loader(targets_kind or "float32")

    @inner
    def read_target(plan, source, targets_at, weight_at, row, shared):
        if not probabilities:
            return index_target(plan, targets_at, weight_at)
        s = load_weight(plan, weight_at)
        kept = s != 0.0 and row.active
        peak = find_peak(plan, source, row.place, plan.n_classes if kept else 0, shared)
        if s == 0.0:
            return Target(IGNORED, np.int64(-1), 0.0, 0.0, 0.0)
        k = peak.k
        t = np.float64(load_target(plan.targets + targets_at + k * plan.targets_step))
        q = smoothed(t, plan.smoothing, plan.all_classes, class_weight(plan, k))
        return Target(KEPT, k, s, q, 1.0)

    return read_target


@inner
def grad_scale_of(plan):
    """1 / denominator of the mean, which a kernel before this one may have left on the device."""
    scale = plan.grad_scale
    if plan.state != 0:
        weight = load_f64(plan.state)
        scale = scale / weight if weight != 0.0 else 0.0
    return scale


@cache
def loss_operation(kernel):
    """Loss of a row, and its gradient if `grad_kind` is given."""
    wants_grad = kernel.grad_kind is not None
    variant = kernel.variant()
    measure = measurer(variant)
    read_target, read_logit = target_reader(kernel), logit_reader(kernel.access)
    write_gradient = gradient_writer(variant, kernel.grad_kind or "float32")
    zero = KINDS[kernel.access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, targets_at, weight_at, grad_at, _ = locate(plan, row.number)
        source, targets = plan.logits + logits_at, plan.targets + targets_at
        target = read_target(plan, source, targets_at, weight_at, row, shared)
        kept = target.status == KEPT
        k, s, temperature = target.k, target.weight, plan.temperature
        t = read_logit(plan, source, k) if kept else 0.0
        n_classes = plan.n_classes if kept and row.active else 0
        part = measure(plan, source, row.place, n_classes, k, targets, zero, shared)
        grad_scale = grad_scale_of(plan)
        scale = s * grad_scale / temperature
        if row.place == 0:
            slots[row.lane] = slots[32 + row.lane] = 0.0
        if row.place == 0 and row.active:
            loss = 0.0 if target.status == IGNORED else math.nan
            if kept:
                end = finish_row(part.row_max, part.sum_exp, t, temperature)
                z_weight = target.z_weight * plan.z_loss
                if wants_grad:
                    g_k = target_gradient(
                        target.q, end.rest, part.q_rest, end.p_k, z_weight, end.lse
                    )
                    alpha = probability_weight(target.q, part.q_rest, z_weight, end.lse)
                    slots[row.lane] = scale * g_k
                    slots[32 + row.lane] = scale * alpha * end.top / end.bottom
                loss = s * row_loss(
                    target.q, end.surprise, part.q_rest, part.a_rest, end.above, z_weight, end.lse
                )
            put_result(plan.loss, row.number, plan.loss_bytes, loss)
            put_result(plan.row_loss, row.number, 8, loss)
        if wants_grad:
            cuda.syncthreads()
            g_k, factor = slots[row.lane], slots[32 + row.lane]
            fill = False
            if not kept or grad_scale == 0.0:
                spoiled = target.status == BAD and grad_scale != 0.0
                factor, fill = math.nan if spoiled else 0.0, True
            write_gradient(
                plan,
                source,
                plan.grad + grad_at,
                targets,
                row.place,
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
def normalize_operation(kernel):
    """softmax, log_softmax or logsumexp of a row."""
    access = kernel.access
    is_softmax, is_log = kernel.operation == "softmax", kernel.operation == "log_softmax"
    variant = kernel.variant()
    measure, find_peak = measurer(variant), peak_finder(access)
    write_softmax = gradient_writer(variant, kernel.grad_kind or "float32")
    write_log = log_softmax_writer(access, kernel.grad_kind or "float32")
    zero = KINDS[access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, _, _, grad_at, _ = locate(plan, row.number)
        source, out = plan.logits + logits_at, plan.grad + grad_at
        n_classes = plan.n_classes if row.active else 0
        k, value, has_nan = np.int64(-1), -math.inf, False
        if not is_softmax:  # 1 + the sum of the others: its logarithm keeps all digits
            peak = find_peak(plan, source, row.place, n_classes, shared)
            k, value, has_nan = peak.k, peak.value, peak.nan_at < plan.n_classes
        part = measure(plan, source, row.place, n_classes, k, np.int64(0), zero, shared)
        if row.place == 0:
            end = finish_row(part.row_max, part.sum_exp, value, 1.0)
            if is_softmax:
                slots[row.lane] = end.top / end.bottom
            elif is_log:
                slots[row.lane] = end.surprise
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
            shared_value = slots[row.lane]
            if is_softmax:
                write_softmax(
                    plan, source, out, np.int64(0), row.place, n_classes, np.int64(-1), 0.0,
                    shared_value, 0.0, part.row_max, False,
                )  # fmt: skip
            else:
                write_log(plan, source, out, row.place, n_classes, k, value, shared_value)

    return do_row


@cache
def stats_operation(kernel):
    """The statistics of a row; with targets also what they say."""
    access = kernel.access
    measure = measurer(kernel.variant(entropy=True, rank=True))
    find_peak, load = peak_finder(access), element_loader(access.kind)
    zero = KINDS[access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, targets_at, weight_at, _, _ = locate(plan, row.number)
        source, size = plan.logits + logits_at, plan.loss_bytes
        limit = plan.n_classes if row.active else 0
        peak = find_peak(plan, source, row.place, limit, shared)
        status, y, t = IGNORED, np.int64(-1), zero
        if plan.targets != 0:
            target = index_target(plan, targets_at, weight_at)
            status, y = target.status, target.k
            if status == KEPT:
                t = load(source + y * plan.logits_step)
        part = measure(plan, source, row.place, limit, peak.k, np.int64(0), t, shared)
        if row.place != 0 or not row.active:
            return
        end = finish_row(part.row_max, part.sum_exp, peak.value, 1.0)
        row_max, lse, surprise, k = peak.value, end.lse, end.surprise, peak.k
        entropy = row_entropy(
            end.sum_exp, part.e_rest * end.top, row_max - part.row_max, surprise, end.p_k,
            end.bottom,
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
def hess_operation(kernel):
    """Gradient and diagonal Hessian of a row."""
    access, targets_kind = kernel.access, kernel.targets_kind
    variant = kernel.variant()
    measure, find_peak, read_logit = measurer(variant), peak_finder(access), logit_reader(access)
    write_hess = hess_writer(variant, kernel.grad_kind, kernel.hess_kind)
    indices = targets_kind is None
    load_target = element_loader(targets_kind or "float32")
    zero = KINDS[access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, targets_at, weight_at, grad_at, hess_at = locate(plan, row.number)
        source, targets = plan.logits + logits_at, plan.targets + targets_at
        s, y = load_weight(plan, weight_at), np.int64(-1)
        if indices:
            target = index_target(plan, targets_at, weight_at)
            y = target.k
            if target.status == BAD:
                s = math.nan
        fill = s == 0.0 or math.isnan(s)
        limit = plan.n_classes if row.active and not fill else 0
        peak = find_peak(plan, source, row.place, limit, shared)
        k = peak.k
        part = measure(plan, source, row.place, limit, k, targets, zero, shared)
        if row.place == 0:
            for i in range(5):
                slots[32 * i + row.lane] = 0.0
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
                q_k = np.float64(load_target(targets + k * plan.targets_step))
                g_k = target_gradient(q_k, end.rest, part.q_rest, end.p_k, 0.0, 0.0)
                q_sum = q_k + part.q_rest
            slots[row.lane], slots[32 + row.lane] = factor, q_sum
            slots[64 + row.lane], slots[96 + row.lane] = g_k, g_y
            slots[128 + row.lane] = end.p_k * end.rest
        cuda.syncthreads()
        write_hess(
            plan, source, plan.grad + grad_at, plan.hess + hess_at, targets, row.place,
            plan.n_classes if row.active else 0, k, y, slots[64 + row.lane], slots[96 + row.lane],
            slots[128 + row.lane], slots[row.lane], slots[32 + row.lane], s, part.row_max, fill,
        )  # fmt: skip

    return do_row


@cache
def record_operation(kernel):
    """The record of a row, or of the part of it that this shard holds."""
    measure = measurer(kernel.variant())
    read_target, read_logit = target_reader(kernel), logit_reader(kernel.access)
    probabilities = kernel.targets_kind is not None
    zero = KINDS[kernel.access.kind][2](0)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, targets_at, weight_at, _, _ = locate(plan, row.number)
        source, targets = plan.logits + logits_at, plan.targets + targets_at
        target = read_target(plan, source, targets_at, weight_at, row, shared)
        kept = target.status == KEPT
        k, s, t = target.k, target.weight, -math.inf
        if kept and k >= 0:
            t = read_logit(plan, source, k)
            if probabilities and t == -math.inf:
                k = np.int64(-1)  # no class of this shard is alive, so none is the largest
        limit = plan.n_classes if kept and row.active else 0
        part = measure(plan, source, row.place, limit, k, targets, zero, shared)
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
def from_record_operation(kernel):
    """Gradient of the classes of this shard, from the merged record of the whole row."""
    probabilities, real = kernel.targets_kind is not None, KINDS[kernel.access.kind][2]
    read_target, read_logit = target_reader(kernel), logit_reader(kernel.access)
    write_gradient = gradient_writer(kernel.variant(), kernel.grad_kind)

    @inner
    def do_row(plan, row, shared, slots):
        logits_at, targets_at, weight_at, grad_at, _ = locate(plan, row.number)
        source, targets = plan.logits + logits_at, plan.targets + targets_at
        target = read_target(plan, source, targets_at, weight_at, row, shared)
        kept, k, s = target.status == KEPT, target.k, target.weight
        z_k = read_logit(plan, source, k) if kept and k >= 0 else 0.0
        if probabilities and z_k == -math.inf:
            k = np.int64(-1)  # no class of this shard is alive, so none is the largest
        temperature, record = plan.temperature, plan.record + row.number * 72
        row_max, scale = load_f64(record), 1.0 / temperature
        if row.place == 0:
            slots[row.lane] = slots[32 + row.lane] = 0.0
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
            slots[row.lane], slots[32 + row.lane] = scale * g_k, factor
        cuda.syncthreads()
        g_k, factor = slots[row.lane], slots[32 + row.lane]
        if not kept:
            factor = 0.0 if target.status == IGNORED else math.nan
        write_gradient(
            plan, source, plan.grad + grad_at, targets, row.place,
            plan.n_classes if row.active else 0, k, g_k, factor, scale * s, row_max, not kept,
        )  # fmt: skip

    return do_row


OPERATIONS = {
    "loss": loss_operation,
    "softmax": normalize_operation,
    "log_softmax": normalize_operation,
    "logsumexp": normalize_operation,
    "stats": stats_operation,
    "hess": hess_operation,
    "record": record_operation,
    "from_record": from_record_operation,
}


@cache
def general_kernel(kernel):
    """The function that numba-cuda compiles for a `Kernel`."""
    do_row = OPERATIONS[kernel.operation](kernel)
    along_rows = kernel.access.along_rows
    at_once, _ = rows_of_block(along_rows)
    place_of = row_walker(along_rows)

    def general(plan):
        shared = cuda.shared.array(THREADS, np.float64)
        slots = cuda.shared.array(SLOTS, np.float64)
        lane, place = place_of()
        first = types.int64(cuda.blockIdx.x) * at_once
        while first < plan.n_rows:
            number = first + lane
            active = number < plan.n_rows
            if not active:
                number = plan.n_rows - 1
            do_row(plan, Row(number, active, lane, place), shared, slots)
            cuda.syncthreads()  # the next rows use the same shared memory
            first += types.int64(cuda.gridDim.x) * at_once

    return general
