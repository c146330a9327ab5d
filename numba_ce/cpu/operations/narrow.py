"""Rows of few classes: sixteen rows at a time, one in each lane.

A row of ten classes fills ten lanes of one vector, and what is done once per row costs more than
its exponentials: 100 ns a row in the kernels of `operations`, 50 ns in those of `eight`.
Here the classes of sixteen rows are turned into a tile ``tile[class][row]`` and everything is done
for sixteen rows at once: 4 ns a row of two classes, 9 ns of sixteen, on one core.

How many classes a row has decides whether it comes here, so its bits never depend on its
neighbours.
"""

from functools import lru_cache

import numpy as np

from numba_ce.cpu.compile.jit import inlined, inner
from numba_ce.cpu.rows.finish_rows import finishing, weigher
from numba_ce.cpu.rows.tile import add_to, real_type, reduction_of
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
    exp_summer,
    no_sums_of_sixteen,
    peak_of_sixteen,
    scale_finder,
)
from numba_ce.cpu.schedules.gather import VECTOR_SUMS, block_doer
from numba_ce.cpu.simd.element import get
from numba_ce.cpu.simd.exp import exp_scaled, slope_of_gradient, soft_cap_and_slope
from numba_ce.cpu.simd.memory import (
    load,
    load_sixteen,
    store,
    store_lanes,
)
from numba_ce.cpu.simd.transpose import ROWS
from numba_ce.cpu.simd.vector import (
    VECTOR_BYTES,
    absolute,
    first_lanes,
    fma,
    high_as_float64,
    joined,
    low_as_float64,
    maximum,
    select,
    splat,
    splat_sixteen,
)

# With so many classes it takes what `eight` takes, in float64 `operations`; with 128 half of that
NARROW_CLASSES = 256
# Up to so many, all of the next sixteen rows is asked for at once, and gradients go through the
# caches; beyond, see `sixteen.asker` and `copies`: with 40 classes 11.8 instead of 14.9 ns a row
FEW_CLASSES = 24


@lru_cache
def narrow_loss_operation(kernel):
    """Loss of the rows of a block, and their gradient if `grad_kind` is given."""
    kind, targets_kind, grad_kind = kernel.kind, kernel.targets_kind, kernel.grad_kind
    tempered, softcap, wants_grad = kernel.tempered, kernel.softcap, grad_kind is not None
    probabilities = targets_kind is not None
    dense = kernel.smoothing or probabilities
    real = real_type(kind)
    pitch, zero, minus_inf = ROWS * real().itemsize, real(0), real(-np.inf)
    read_logits = tile_reader(kind, kernel.block, kernel.many)
    read_probabilities = tile_reader(targets_kind or kind, kernel.block, kernel.many)
    write_tile, cut_up = tile_writer(grad_kind or kind, kernel.block, kernel.many), cutter(kind)
    find_scale, find_peaks = scale_finder(real, tempered), peak_of_sixteen(real)
    begin_ahead, ask = asker(kernel)
    count_classes = class_counter(kernel.block)
    sum_exps, no_sums = exp_summer(real, tempered, wants_grad, ask), no_sums_of_sixteen(real)
    finish = finishing(real)
    finish_sixteen, weigh = finish.sixteen, weigher(real, dense)
    join_factors, times_factor, halves = finish.joined, finish.times, finish.halves
    size = real().itemsize

    @inner
    def cap_logits(plan, lanes, end, y):
        """Puts the soft cap on, and keeps its slopes.

        An ignored row is read as zeros: its gradient is 0 times the slope, which is not to be NaN.
        """
        capping = reduction_of(plan.capping, real)
        for at in range(lanes.tile, end, pitch):
            x = select(y < F32_0, zero, load_sixteen(at, zero))
            capped, slope = soft_cap_and_slope(x, real(plan.softcap), capping)
            store(at, capped)
            if wants_grad:
                store(at + (lanes.slopes - lanes.tile), slope_of_gradient(x, slope))

    @inner
    def leave_out(lanes, end, y):
        """Puts -inf for the class y; returns the others' maximum, and the logit of y."""
        row_max, t, c = splat_sixteen(minus_inf), splat_sixteen(minus_inf), F32_0
        for at in range(lanes.tile, end, pitch):
            x = select(y < F32_0, zero, load_sixteen(at, zero))
            is_target = y == c
            t = select(is_target, x, t)
            x = select(is_target, minus_inf, x)
            row_max = maximum(x, row_max)
            store(at, x)
            c += F32_1
        return row_max, t

    @inner
    def effective_targets(plan, lanes, y):
        """q_c of every class into a tile, 0 for the class y; returns those of y."""
        common, share = plan.smoothing / plan.all_classes, 1.0 - plan.smoothing
        q_y = splat_sixteen(zero)
        for c in range(count_classes(plan)):
            at = lanes.q + c * pitch
            q = splat_sixteen(real(common))
            if probabilities:
                q = fma(load_sixteen(at, zero), real(share), q)
            if plan.class_weight != 0:
                q = q * real(get(plan.class_weight + c * 8, 0.0))
            is_target = y == np.float32(c)
            q_y = select(is_target, q, q_y)
            # What an ignored row says, or one that is not there, does not count
            store(at, select(is_target, zero, select(y < F32_0, zero, q)))
        return q_y

    @inner
    def sum_dense(plan, lanes, row_max):
        """Sums of q_c and of q_c (m - z_c) over the other classes."""
        pivot = select(row_max == minus_inf, zero, row_max)
        q_sums, a_sums = no_sums(), no_sums()
        for at in range(0, count_classes(plan) * pitch, pitch):
            q = load_sixteen(lanes.q + at, zero)
            below = pivot - load_sixteen(lanes.tile + at, zero)
            q_sums = add_to(q_sums, q)
            a_sums = add_to(a_sums, select(q == zero, zero, q * below))
        return q_sums, a_sums

    @inlined
    def fill_gradient(plan, lanes, y, g_k, factor):
        """The tile of exponentials as gradients."""
        scale = splat_sixteen(zero)
        if dense:
            over = plan.grad_scale / plan.temperature
            low, high = load(lanes.weights, 0.0), load(lanes.weights + VECTOR_BYTES, 0.0)
            scale = joined(low * over, high * over, zero)
        for c in range(count_classes(plan)):
            at = lanes.tile + c * pitch
            g = times_factor(load_sixteen(at, zero), factor)
            if dense:
                g = g - scale * load_sixteen(lanes.q + c * pitch, zero)
            g = select(y == np.float32(c), g_k, g)
            if softcap:
                g = g * load_sixteen(at + (lanes.slopes - lanes.tile), zero)
            store(at, g)

    @inner
    def clear_gradient(lanes, end):
        for at in range(lanes.tile, end, pitch):
            store(at, splat_sixteen(zero))

    @inner
    def do_rows(plan, first, count, work):
        """Returns the sums of the losses of a lower and an upper row, 0 where there is no row."""
        lanes = cut_up(work, count_classes(plan))
        end = lanes.tile + count_classes(plan) * pitch
        place = place_of(plan, first, count)
        read_logits(plan, place, 0, plan.logits, plan.logits_step, plan.logits_swapped, lanes.tile)
        read_targets(plan, place, lanes)
        y = load(lanes.targets, F32_0)
        temperature = plan.temperature if tempered else 1.0
        if softcap:
            cap_logits(plan, lanes, end, y)
        if probabilities:
            step, swapped = plan.targets_step, plan.targets_swapped
            read_probabilities(plan, place, 1, plan.targets, step, swapped, lanes.q)
            k = find_peaks(lanes.tile, end)[1]
            y = select(y < F32_0, y, k)
        row_max, t = leave_out(lanes, end, y)
        s, w = lanes.weights, lanes.class_weights
        w_low, w_high = load(w, 0.0), load(w + VECTOR_BYTES, 0.0)
        q_low, q_high = w_low, w_high
        q_rest_low = q_rest_high = a_rest_low = a_rest_high = splat(0.0)
        if dense:
            q_y = effective_targets(plan, lanes, y)
            q_sums, a_sums = sum_dense(plan, lanes, row_max)
            q_rest_low, q_rest_high = halves(q_sums)
            a_rest_low, a_rest_high = halves(a_sums)
            a_rest_low, a_rest_high = a_rest_low / temperature, a_rest_high / temperature
            if probabilities:
                q_low, q_high = low_as_float64(q_y), high_as_float64(q_y)
            else:
                own = 1.0 - plan.smoothing + plan.smoothing / plan.all_classes
                q_low, q_high = w_low * own, w_high * own
        scale = find_scale(plan, row_max)
        sums = sum_exps(plan, lanes.tile, end, scale, begin_ahead(plan, place))
        low, high = finish_sixteen(sums, row_max, t, scale, temperature, 1.0 / temperature)
        loss_low, g_low, f_low = weigh(
            plan, low, load(s, 0.0), w_low, q_low, q_rest_low, a_rest_low, temperature
        )
        s += VECTOR_BYTES
        loss_high, g_high, f_high = weigh(
            plan, high, load(s, 0.0), w_high, q_high, q_rest_high, a_rest_high, temperature
        )
        if plan.loss != 0:
            here = first_lanes(count, F32_0)
            losses = joined(loss_low, loss_high, zero)
            store_lanes(plan.loss + first * size, here, losses)
        if wants_grad:
            if plan.grad_scale == 0.0:
                clear_gradient(lanes, end)
            else:
                factor = join_factors(f_low, f_high)
                fill_gradient(plan, lanes, y, joined(g_low, g_high, zero), factor)
            write_tile(plan, place, 3, plan.grad, plan.grad_step, plan.grad_swapped, lanes.tile)
        return loss_low + loss_high

    return block_doer(ROWS, do_rows, VECTOR_SUMS)


@lru_cache
def narrow_normalize_operation(kernel):
    """softmax, log_softmax or logsumexp of the rows of a block."""
    kind = kernel.kind
    is_softmax = kernel.operation == "narrow_softmax"
    is_log = kernel.operation == "narrow_log_softmax"
    real = real_type(kind)
    pitch, zero, infinity = ROWS * real().itemsize, real(0), real(np.inf)
    minus_inf = real(-np.inf)
    read_logits, cut_up = tile_reader(kind, kernel.block, kernel.many), cutter(kind)
    write_tile = tile_writer(kernel.grad_kind or kind, kernel.block, kernel.many)
    find_scale, find_peaks = scale_finder(real, False), peak_of_sixteen(real)
    begin_ahead, ask = asker(kernel)
    count_classes = class_counter(kernel.block)
    no_sums = no_sums_of_sixteen(real)
    finish = finishing(real)
    finish_sixteen, times_amount = finish.sixteen, finish.amount
    join_factors, times_factor = finish.joined, finish.times
    size = real().itemsize

    @inner
    def do_rows(plan, first, count, work):
        lanes = cut_up(work, count_classes(plan))
        end = lanes.tile + count_classes(plan) * pitch
        place = place_of(plan, first, count)
        read_logits(plan, place, 0, plan.logits, plan.logits_step, plan.logits_swapped, lanes.tile)
        # Sums without the largest class are relative to the largest of the others
        peak, k, poison, others_max = find_peaks(lanes.tile, end)
        row_max = peak if is_softmax else others_max
        scale = find_scale(plan, row_max)
        reference, exponent, lowest = scale[0], scale[2], scale[3]
        sums, c, ahead = no_sums(), F32_0, begin_ahead(plan, place)
        for n in range(count_classes(plan)):
            ask(ahead, n)
            at = lanes.tile + n * pitch
            x = load_sixteen(at, zero)
            if not is_softmax:
                x = select(k == c, minus_inf, x)
            e = exp_scaled(x, reference, exponent, lowest, None)
            if is_softmax:
                store(at, e)
                e = select(k == c, zero, e)
            sums = add_to(sums, e)
            c += F32_1
        low, high = finish_sixteen(sums, row_max, peak, scale, 1.0, 1.0)
        if is_softmax:
            one = splat(1.0)
            factor = join_factors(times_amount(low.factor, one), times_amount(high.factor, one))
            for at in range(lanes.tile, end, pitch):
                store(at, times_factor(load_sixteen(at, zero), factor))
        elif is_log:
            surprise, c = joined(low.surprise, high.surprise, zero), F32_0
            for at in range(lanes.tile, end, pitch):
                # The largest class is 0 below itself, also where it is infinite
                below = select(k == c, zero, load_sixteen(at, zero) - peak)
                store(at, below - surprise)
                c += F32_1
        else:
            lse = joined(low.lse, high.lse, zero)
            lse = select(absolute(peak) == infinity, peak + poison, lse)
            store_lanes(plan.lse + first * size, first_lanes(count, F32_0), lse)
        if is_softmax or is_log:
            write_tile(plan, place, 3, plan.grad, plan.grad_step, plan.grad_swapped, lanes.tile)
        return 0.0

    return block_doer(ROWS, do_rows)
