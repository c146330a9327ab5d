"""Hessian of rows of few classes: sixteen rows at a time, one in each lane, as in `narrow`."""

from functools import lru_cache

import numpy as np

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.rows.finish_rows import finishing
from numba_ce.cpu.rows.tile import add_to, real_type
from numba_ce.cpu.schedules.across import (
    asker,
    class_counter,
    cutter,
    place_of,
    read_targets,
    tile_reader,
    tile_writer,
)
from numba_ce.cpu.schedules.across_loops import (
    F32_0,
    F32_1,
    no_sums_of_sixteen,
    peak_of_sixteen,
    scale_finder,
)
from numba_ce.cpu.schedules.gather import block_doer
from numba_ce.cpu.simd.exp import exp_scaled
from numba_ce.cpu.simd.memory import load, load_sixteen, store
from numba_ce.cpu.simd.transpose import ROWS
from numba_ce.cpu.simd.vector import (
    VECTOR_BYTES,
    high_as_float64,
    joined,
    low_as_float64,
    maximum,
    select,
    splat,
    splat_sixteen,
    sum_of_lanes,
)


@lru_cache
def narrow_hess_operation(kernel):
    """Gradient and diagonal Hessian of the rows of a block."""
    kind, targets_kind = kernel.kind, kernel.targets_kind
    probabilities = targets_kind is not None
    real = real_type(kind)
    zero, one, minus_inf = real(0), real(1), real(-np.inf)
    pitch = ROWS * real().itemsize
    read_logits = tile_reader(kind, kernel.block, kernel.many)
    read_probabilities = tile_reader(targets_kind or kind, kernel.block, kernel.many)
    write_grad = tile_writer(kernel.grad_kind, kernel.block, False)
    write_hess = tile_writer(kernel.hess_kind, kernel.block, False)
    find_scale, find_peaks = scale_finder(real, False), peak_of_sixteen(real)
    no_sums, cut_up, finish = no_sums_of_sixteen(real), cutter(kind), finishing(real)
    finish_sixteen, times_amount, halves = finish.sixteen, finish.amount, finish.halves
    join_factors, times_factor = finish.joined, finish.times
    begin_ahead, ask = asker(kernel)
    count_classes = class_counter(kernel.block)

    @inner
    def clear_ignored(tile, end, y):
        """Zeros for the rows that do not count: their weight 0 makes no 0 of NaN."""
        for at in range(tile, end, pitch):
            store(at, select(y < F32_0, zero, load_sixteen(at, zero)))

    @inner
    def sum_exps(tile, end, k, scale, ahead):
        """The sums of the exponentials of all classes but k, which stay; 0 for k."""
        reference, _, exponent, lowest = scale
        sums, c = no_sums(), F32_0
        for n in range((end - tile) // pitch):
            ask(ahead, n)
            at = tile + n * pitch
            x = select(k == c, minus_inf, load_sixteen(at, zero))
            e = exp_scaled(x, reference, exponent, lowest, None)
            sums = add_to(sums, e)
            store(at, e)
            c += F32_1
        return sums

    @inner
    def sum_targets(q, end, k):
        """The probabilities of the classes k, and the sums of the others."""
        q_k, q_sums, c = splat_sixteen(zero), no_sums(), F32_0
        for at in range(q, end, pitch):
            x = load_sixteen(at, zero)
            q_k = select(k == c, x, q_k)
            q_sums = add_to(q_sums, select(k == c, zero, x))
            c += F32_1
        return q_k, halves(q_sums)

    @inner
    def finish_hess(plan, row, s, q_k, q_rest):
        """Of eight rows: g_k, h_k, s Q, and what p (1 - p) is multiplied by before the floor."""
        total = q_k + q_rest
        curvature = total * plan.hess_factor
        h_k = curvature * row.p_k * row.rest
        if plan.hess_floor > 0.0:
            h_k = maximum(splat(plan.hess_floor), h_k)  # NaN stays NaN
        return s * (q_rest * row.p_k - q_k * row.rest), s * h_k, s * total, curvature

    @inner
    def write_tiles(plan, lanes, k, y, factor, low, high, floor):
        """The tile of exponentials as gradients, and into another one the Hessian."""
        s_low, s_high = load(lanes.weights, 0.0), load(lanes.weights + VECTOR_BYTES, 0.0)
        s = joined(s_low, s_high, zero)
        g_k, h_k = joined(low[0], high[0], zero), joined(low[1], high[1], zero)
        slope, curvature = joined(low[2], high[2], zero), joined(low[3], high[3], zero)
        c = F32_0
        for at in range(0, count_classes(plan) * pitch, pitch):
            p = times_factor(load_sixteen(lanes.tile + at, zero), factor)
            if probabilities:
                g = p * slope - s * load_sixteen(lanes.q + at, zero)
            else:
                g = s * (p - select(y == c, one, splat_sixteen(zero)))
            h = s * maximum(splat_sixteen(floor), p * (one - p) * curvature)
            store(lanes.tile + at, select(k == c, g_k, g))
            store(lanes.slopes + at, select(k == c, h_k, h))
            c += F32_1

    @inner
    def do_rows(plan, first, count, work):
        lanes = cut_up(work, count_classes(plan))
        n_bytes = count_classes(plan) * pitch
        end, end_q = lanes.tile + n_bytes, lanes.q + n_bytes
        place = place_of(plan, first, count)
        read_logits(plan, place, 0, plan.logits, plan.logits_step, plan.logits_swapped, lanes.tile)
        if probabilities:
            step, swapped = plan.targets_step, plan.targets_swapped
            read_probabilities(plan, place, 1, plan.targets, step, swapped, lanes.q)
        read_targets(plan, place, lanes)
        y = load(lanes.targets, F32_0)
        if sum_of_lanes(select(y < F32_0, F32_1, splat(F32_0))) > F32_0:
            clear_ignored(lanes.tile, end, y)
            if probabilities:
                clear_ignored(lanes.q, end_q, y)
        # The first maximum is left out: of no other class is 1 - p small
        peak, k, _, row_max = find_peaks(lanes.tile, end)
        scale = find_scale(plan, row_max)
        sums = sum_exps(lanes.tile, end, k, scale, begin_ahead(plan, place))
        low, high = finish_sixteen(sums, row_max, peak, scale, 1.0, 1.0)
        if probabilities:
            q_k, (rest_low, rest_high) = sum_targets(lanes.q, end_q, k)
            q_low, q_high = low_as_float64(q_k), high_as_float64(q_k)
        else:
            q_k = select(y == k, one, splat_sixteen(zero))
            q_low, q_high = low_as_float64(q_k), high_as_float64(q_k)
            rest_low, rest_high = 1.0 - q_low, 1.0 - q_high
        s_low, s_high = load(lanes.weights, 0.0), load(lanes.weights + VECTOR_BYTES, 0.0)
        unit = splat(1.0)
        factor = join_factors(times_amount(low.factor, unit), times_amount(high.factor, unit))
        write_tiles(
            plan,
            lanes,
            k,
            y,
            factor,
            finish_hess(plan, low, s_low, q_low, rest_low),
            finish_hess(plan, high, s_high, q_high, rest_high),
            real(plan.hess_floor) if plan.hess_floor > 0.0 else minus_inf,
        )
        write_grad(plan, place, 3, plan.grad, plan.grad_step, plan.grad_swapped, lanes.tile)
        write_hess(plan, place, 4, plan.hess, plan.hess_step, plan.hess_swapped, lanes.slopes)
        return 0.0

    return block_doer(ROWS, do_rows)
