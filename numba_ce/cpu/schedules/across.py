"""Lanes across rows: rows of few classes, as many at a time as a vector has lanes, one in each.

A row of ten classes fills ten lanes of one vector, and what is done once per row costs more than
its exponentials: 50 ns a row in the kernels of `along`. Here the classes of ROWS_ACROSS rows are
transposed into a tile ``tile[class][row]`` and everything is done for all of them at once: with
sixteen lanes 4 ns a row of two classes, 9 ns of sixteen, on one core.

How many classes a row has decides whether it comes here, so its bits never depend on its
neighbours.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inlined, inner, smaller
from numba_ce.cpu.rows.batch import BATCH, Batch
from numba_ce.cpu.rows.finish import finishing
from numba_ce.cpu.rows.tile import add_to, real_type, reduction_of
from numba_ce.cpu.schedules.across_loops import (
    F32_0,
    F32_1,
    exp_summer,
    make_find_peaks,
    make_gradient_filler,
    make_hessian_filler,
    make_log_filler,
    make_no_sums,
    make_scales,
)
from numba_ce.cpu.schedules.across_tile import (
    make_ask,
    make_count_classes,
    make_cut_up,
    make_read_tile,
    make_write_tile,
    place_of,
    read_targets,
)
from numba_ce.cpu.schedules.gather import block_doer
from numba_ce.cpu.simd.element import get
from numba_ce.cpu.simd.exp import slope_of_gradient, soft_cap_and_slope
from numba_ce.cpu.simd.memory import load, load_rows, store
from numba_ce.cpu.simd.vector import (
    VECTOR_BYTES,
    absolute,
    batch_of,
    fma,
    maximum,
    select,
    splat,
    splat_rows,
    sum_of_lanes,
)
from numba_ce.cpu.simd.width import ROWS_ACROSS


class Measured(NamedTuple):
    """Rows, one in each lane."""

    row_max: float  # of the classes but k
    t: float  # z_k
    k: float  # float32, as y
    poison: float
    y: float
    target_logit: float
    q: float  # of the class k
    scale: tuple  # see `make_scales`
    sums: tuple  # see `add_to`, and so are the next three
    q_sums: tuple
    a_sums: tuple
    e_sums: tuple
    above: float


@lru_cache
def make_across(kernel, operation):
    """The function that does the rows of a block."""
    kind = kernel.kind
    measure, count_classes = make_measure(kernel, operation), make_count_classes(kernel.block)
    finish, cut_up = make_finish(kernel, operation), make_cut_up(kind)
    fill = element_filler(kernel, operation)
    hessian, many = operation.writes == "hessian", kernel.prefetch_by_class
    grad_kind, hess_kind = kernel.grad_kind or kind, kernel.hess_kind or kind
    write_grad = make_write_tile(grad_kind, kernel.block, many and not hessian)
    write_hess = make_write_tile(hess_kind, kernel.block, False)
    writes, tempered = operation.writes is not None, kernel.tempered

    @inner
    def do_rows(plan, first, count, work):
        """Returns a vector whose sum is that of the losses."""
        lanes, place = cut_up(work, count_classes(plan)), place_of(plan, first, count)
        temperature = plan.temperature if tempered else 1.0
        found = measure(plan, lanes, place)
        loss, batches = finish(plan, lanes, found, first, count, temperature)
        if writes:
            fill(plan, lanes, found, batches)
            write_grad(plan, place, 3, plan.grad, plan.grad_step, plan.grad_swapped, lanes.tile)
        if hessian:
            write_hess(plan, place, 4, plan.hess, plan.hess_step, plan.hess_swapped, lanes.slopes)
        return loss

    return block_doer(inner(lambda plan: ROWS_ACROSS), do_rows)


@lru_cache
def make_measure(kernel, operation):
    """The function that reads rows and measures them without their classes k."""
    kind, targets_kind = kernel.kind, kernel.targets_kind
    real, block, many = real_type(kind), kernel.block, kernel.prefetch_by_class
    pitch, zero, minus_inf = ROWS_ACROSS * real().itemsize, real(0), real(-np.inf)
    counted, looked_at = operation.targets == "counted", operation.targets == "looked at"
    leaves_target, leaves_largest = operation.leaves == "target", operation.leaves == "largest"
    softcap = kernel.softcap
    probabilities, dense = targets_kind is not None, operation.dense
    read_logits = make_read_tile(kind, block, many)
    read_probabilities = make_read_tile(targets_kind or kind, block, many)
    find_peaks, find_scale = make_find_peaks(real), make_scales(real, kernel.tempered)
    sum_exps = exp_summer(kernel, operation)
    begin_ahead, _ = make_ask(kernel)
    count_classes, no_sums = make_count_classes(block), make_no_sums(real)
    wants_grad = operation.writes == "gradient"

    @inner
    def cap_logits(plan, lanes, end, y):
        """Puts the soft cap on, and keeps its slopes.

        An ignored row is read as zeros: its gradient is 0 times the slope, which is not to be NaN.
        """
        capping = reduction_of(plan.capping, real)
        for at in range(lanes.tile, end, pitch):
            x = select(y < F32_0, zero, load_rows(at, zero))
            capped, slope = soft_cap_and_slope(x, real(plan.softcap), capping)
            store(at, capped)
            if wants_grad:
                store(at + (lanes.slopes - lanes.tile), slope_of_gradient(x, slope))

    @inner
    def clear_ignored(tile, end, y):
        """Zeros for the rows that do not count: their weight 0 makes no 0 of NaN."""
        for at in range(tile, end, pitch):
            store(at, select(y < F32_0, zero, load_rows(at, zero)))

    @inner
    def leave_out(lanes, end, y):
        """Puts -inf for the class y; returns the others' maximum, and the logit of y."""
        row_max, t, c = splat_rows(minus_inf), splat_rows(minus_inf), F32_0
        for at in range(lanes.tile, end, pitch):
            x = select(y < F32_0, zero, load_rows(at, zero))
            is_target = y == c
            t = select(is_target, x, t)
            x = select(is_target, minus_inf, x)
            row_max = maximum(x, row_max)
            store(at, x)
            c += F32_1
        return row_max, t

    @inner
    def pick(tile, end, y):
        """The logits of the classes y; -inf without one."""
        t, c = splat_rows(minus_inf), F32_0
        for at in range(tile, end, pitch):
            t = select(y == c, load_rows(at, zero), t)
            c += F32_1
        return t

    @inner
    def effective_targets(plan, lanes, k, y):
        """q_c of every class into a tile, 0 for the class k; returns those of k."""
        common, share = plan.smoothing / plan.all_classes, 1.0 - plan.smoothing
        q_k = splat_rows(zero)
        for c in range(count_classes(plan)):
            at = lanes.q + c * pitch
            q = splat_rows(real(common))
            if probabilities:
                q = fma(load_rows(at, zero), real(share), q)
            if plan.class_weight != 0:
                q = q * real(get(plan.class_weight + c * 8, 0.0))
            # What an ignored row says, or one that is not there, does not count
            q, is_k = select(y < F32_0, zero, q), k == np.float32(c)
            q_k = select(is_k, q, q_k)
            store(at, select(is_k, zero, q))
        return q_k

    @inner
    def sum_dense(plan, lanes, row_max):
        """Sums of q_c and of q_c (m - z_c) over the other classes."""
        pivot = select(row_max == minus_inf, zero, row_max)
        q_sums, a_sums = no_sums(), no_sums()
        for at in range(0, count_classes(plan) * pitch, pitch):
            q = load_rows(lanes.q + at, zero)
            below = pivot - load_rows(lanes.tile + at, zero)
            q_sums = add_to(q_sums, q)
            a_sums = add_to(a_sums, select(q == zero, zero, q * below))
        return q_sums, a_sums

    @inlined
    def measure(plan, lanes, place):
        end = lanes.tile + count_classes(plan) * pitch
        read_logits(plan, place, 0, plan.logits, plan.logits_step, plan.logits_swapped, lanes.tile)
        y, target_logit = splat_rows(np.float32(-1)), splat_rows(minus_inf)
        if counted:
            read_targets(plan, place, lanes)
            y = load_rows(lanes.targets, F32_0)
        elif looked_at:
            if plan.targets != 0:
                read_targets(plan, place, lanes)
                y = load_rows(lanes.targets, F32_0)
                target_logit = pick(lanes.tile, end, y)
        if softcap:
            cap_logits(plan, lanes, end, y)
        if probabilities:
            step, swapped = plan.targets_step, plan.targets_swapped
            read_probabilities(plan, place, 1, plan.targets, step, swapped, lanes.q)
        poison, k = splat_rows(zero), y
        if leaves_target:
            row_max, t = leave_out(lanes, end, y)
        else:
            if counted and not softcap:
                if sum_of_lanes(select(y < F32_0, F32_1, splat_rows(F32_0))) > F32_0:
                    clear_ignored(lanes.tile, end, y)
            t, k, poison, row_max = find_peaks(lanes.tile, end)
            if not leaves_largest:
                row_max, t = t, splat_rows(minus_inf)
        q_k, q_sums, a_sums = splat_rows(zero), no_sums(), no_sums()
        if dense:
            q_k = effective_targets(plan, lanes, k, y)
            q_sums, a_sums = sum_dense(plan, lanes, row_max)
        scale = find_scale(plan, row_max)
        sums, e_sums, above = sum_exps(
            plan, lanes.tile, end, k, row_max, target_logit, scale, begin_ahead(plan, place)
        )
        return Measured(
            row_max, t, k, poison, y, target_logit, q_k, scale, sums, q_sums, a_sums, e_sums, above
        )

    return measure


@lru_cache
def make_finish(kernel, operation):
    """The function that finishes the rows: the sum of their losses, and what of each batch its
    elements need.
    """
    real, counted = real_type(kernel.kind), operation.targets == "counted"
    pitch, zero, poison = ROWS_ACROSS * real().itemsize, real(0), operation.poison
    minus_inf, infinity, nan = real(-np.inf), real(np.inf), real(np.nan)
    count_classes = make_count_classes(kernel.block)
    make_low, make_high = (batch_maker(kernel, operation, i) for i in (0, 1))
    finish_batch, finish_operation = finishing(real).finish(operation.leaves), operation.finish

    @inner
    def first_nans(tile, end, k):
        """The first class that is NaN; k where there is none."""
        c = np.float32((end - tile) // pitch)
        for at in range(end - pitch, tile - pitch, -pitch):
            c -= F32_1
            x = load_rows(at, zero)
            k = select(x == x, k, c)
        return k

    @inlined
    def finish(plan, lanes, found, first, count, temperature):
        k = found.k
        if poison and not counted:
            if sum_of_lanes(found.poison) != zero:  # NaN
                n_bytes = count_classes(plan) * pitch
                k = first_nans(lanes.tile, lanes.tile + n_bytes, k)
        reference = select(found.row_max == minus_inf, minus_inf, found.scale[0])
        reference = select(found.t < infinity, reference, nan)
        low = make_low(plan, lanes, found, reference, k, temperature)
        high = make_high(plan, lanes, found, reference, k, temperature)
        # Both before what is done with either, so that none waits for the other: 10% at C = 2
        over_temperature = 1.0 / temperature
        low_end = finish_batch(low, temperature, over_temperature)
        high_end = finish_batch(high, temperature, over_temperature)
        n = smaller(count, BATCH)
        low_loss, of_low = finish_operation(plan, first, n, low, low_end, temperature)
        first, n = first + BATCH, count - BATCH
        high_loss, of_high = finish_operation(plan, first, n, high, high_end, temperature)
        return low_loss + high_loss, (of_low, of_high)

    return finish


@lru_cache
def batch_maker(kernel, operation, i):
    """The function that makes a `Batch` of the i-th eight rows."""
    real, probabilities = real_type(kernel.kind), kernel.targets_kind is not None
    dense, counted = operation.dense, operation.targets == "counted"
    double, infinity, zero = real is np.float64, real(np.inf), real(0)
    offset = i * VECTOR_BYTES

    @inlined
    def sum_of(sums):
        if double:
            # An infinite sum has lost infinity - infinity
            total = sums[0] + select(absolute(sums[0]) == infinity, zero, sums[1])
            return batch_of(total, i)
        else:
            return sums[i]

    @inlined
    def make_batch(plan, lanes, found, reference, k, temperature):
        q_rest = a_rest = lost = s = w = q = splat(0.0)
        if double:
            total, lost = batch_of(found.sums[0], i), batch_of(found.sums[1], i)
        else:
            total = found.sums[i]
        if counted:
            s, w = load(lanes.weights + offset, 0.0), load(lanes.class_weights + offset, 0.0)
            q = w
        if dense:
            q_rest, a_rest = sum_of(found.q_sums), sum_of(found.a_sums) / temperature
            if probabilities:
                q = batch_of(found.q, i)
            else:
                q = w * (1.0 - plan.smoothing + plan.smoothing / plan.all_classes)
        return Batch(
            total,
            lost,
            batch_of(reference, i),
            batch_of(found.scale[1], i),
            batch_of(found.row_max, i),
            batch_of(found.t, i),
            batch_of(k, i),
            q,
            q_rest,
            a_rest,
            s,
            w,
            batch_of(found.y, i),
            batch_of(found.target_logit, i),
            sum_of(found.e_sums),
            batch_of(found.above, i),
            batch_of(found.poison, i),
        )

    return make_batch


def element_filler(kernel, operation):
    """The function that makes of a tile what is written: gradients, logarithms, Hessians."""
    fillers = {
        "gradient": make_gradient_filler,
        "log_softmax": make_log_filler,
        "hessian": make_hessian_filler,
    }
    return fillers[operation.writes](kernel, operation) if operation.writes else None
