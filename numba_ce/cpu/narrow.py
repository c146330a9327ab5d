"""Rows of few classes: sixteen rows at a time, one in each lane.

A row of ten classes fills ten lanes of one vector, and what is done once per row, in float64 and
one number at a time, costs more than its exponentials: 100 ns a row in the kernels of `operations`.
Here the classes of sixteen rows are turned into a tile ``tile[class][row]`` and everything is done
for sixteen rows at once: 7 ns a row of two classes, 13 ns of sixteen, on one core.

Only logits computed in float32 come here, and how many classes a row has decides it, so a row's
bits never depend on its neighbours.
"""

from functools import lru_cache

import numpy as np

from numba_ce.cpu.element import get
from numba_ce.cpu.exp import exp_scaled, soft_cap, soft_cap_derivative
from numba_ce.cpu.jit import inner, smaller
from numba_ce.cpu.sixteen import (
    F32_0,
    F32_1,
    F32_INF,
    F32_NAN,
    MINUS_INF,
    as_two_factors,
    cut_up,
    exp_summer,
    finish_sixteen,
    place_of,
    read_targets,
    scale_finder,
    tile_functions,
    times0,
)
from numba_ce.cpu.tile import reduction_of
from numba_ce.cpu.turn import ROWS
from numba_ce.cpu.vector import (
    VECTOR_BYTES,
    absolute,
    as_float32,
    first_lanes,
    high_as_float64,
    load,
    low_as_float64,
    maximum,
    select,
    splat,
    store,
    store_lanes,
    sum_of_lanes,
)

# Beyond, one row after the other is as fast: at 256 classes the gradient took 0.76 of its time
# here, the loss 1.1; at 512 it is 1.09 and 1.4
NARROW_CLASSES = 256


@lru_cache
def narrow_loss_operation(kernel):
    """Loss of the rows of a block, and their gradient if `grad_kind` is given."""
    kind, grad_kind = kernel.kind, kernel.grad_kind
    tempered, softcap, smoothing = kernel.tempered, kernel.softcap, kernel.smoothing
    wants_grad = grad_kind is not None
    read_tile, write_tile = tile_functions(kind, grad_kind or "float32", kernel.block)
    find_scale = scale_finder(tempered)
    sum_exps = exp_summer(tempered, wants_grad)

    @inner
    def part_targets(plan, lanes, end, y):
        """Puts -inf for the target, and the soft cap on; returns the others' maximum and t."""
        row_max, t, c = splat(MINUS_INF), splat(MINUS_INF), F32_0
        for at in range(lanes.tile, end, VECTOR_BYTES):
            x = select(y < F32_0, F32_0, load(at, F32_0))
            if softcap:
                store(at + (lanes.logits - lanes.tile), x)
                capping = reduction_of(plan.capping, np.float32)
                x = soft_cap(x, np.float32(plan.softcap), capping)
            is_target = y == c
            t = select(is_target, x, t)
            x = select(is_target, MINUS_INF, x)
            row_max = maximum(x, row_max)
            store(at, x)
            c += F32_1
        return row_max, t

    @inner
    def shared_weight(plan, c):
        """q_c of a class that is not the target."""
        q = plan.smoothing / plan.all_classes
        if plan.class_weight != 0:
            q *= get(plan.class_weight + c * 8, 0.0)
        return np.float32(q)

    @inner
    def sum_smoothed(plan, lanes, y, row_max):
        """Sums of q_c and of q_c (m - z_c) over the other classes, each for eight rows twice."""
        pivot = select(row_max == MINUS_INF, F32_0, row_max)
        q_low, q_high, a_low, a_high = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for c in range(plan.n_classes):
            at = lanes.tile + c * VECTOR_BYTES
            q = select(y == np.float32(c), F32_0, splat(shared_weight(plan, c)))
            a = select(q == F32_0, F32_0, q * (pivot - load(at, F32_0)))
            q_low, q_high = q_low + low_as_float64(q), q_high + high_as_float64(q)
            a_low, a_high = a_low + low_as_float64(a), a_high + high_as_float64(a)
        return q_low, q_high, a_low, a_high

    @inner
    def weigh(plan, row, s, w, q_rest, a_rest, over_temperature):
        """Eight losses, g_k and the factor of the exponentials; see `_row.row_loss` and so on."""
        q = w
        if smoothing:
            q = w * (1.0 - plan.smoothing + plan.smoothing / plan.all_classes)
        loss, alpha, g = times0(q, row.surprise), q, splat(0.0) - q * row.rest
        if smoothing:
            loss = loss + a_rest * over_temperature + times0(q_rest, row.above)
            alpha, g = alpha + q_rest, g + times0(q_rest, row.p_k)
        if plan.z_loss != 0.0:
            z_weight = w * plan.z_loss
            loss = loss + times0(z_weight, row.lse * row.lse)
            extra = times0(z_weight, row.lse * 2.0)
            alpha, g = alpha + extra, g + extra * row.p_k
        scale = s * (plan.grad_scale * over_temperature)
        return s * loss, scale * g, scale * alpha * row.factor

    @inner
    def write_gradient(plan, place, lanes, y, g_k, f, power):
        """The tile of exponentials as gradients."""
        scale = splat(F32_0)
        if smoothing:
            over = plan.grad_scale / plan.temperature
            low, high = load(lanes.weights, 0.0), load(lanes.weights + VECTOR_BYTES, 0.0)
            scale = as_float32(low * over, high * over)
        for c in range(plan.n_classes):
            at = lanes.tile + c * VECTOR_BYTES
            g = load(at, F32_0) * f * power
            if smoothing:
                g = g - scale * shared_weight(plan, c)
            g = select(y == np.float32(c), g_k, g)
            if softcap:
                capping = reduction_of(plan.capping, np.float32)
                g = g * soft_cap_derivative(load(at + (lanes.logits - lanes.tile), F32_0), capping)
            store(at, g)
        write_tile(plan, place, lanes.tile)

    @inner
    def clear_gradient(plan, place, lanes, end):
        for at in range(lanes.tile, end, VECTOR_BYTES):
            store(at, splat(F32_0))
        write_tile(plan, place, lanes.tile)

    @inner
    def do_rows(plan, first, count, lanes):
        """Returns the losses of the lower and the upper eight rows, 0 where there is no row."""
        end = lanes.tile + plan.n_classes * VECTOR_BYTES
        place = place_of(plan, first, count)
        read_tile(plan, place, lanes.tile)
        read_targets(plan, place, lanes)
        y = load(lanes.targets, F32_0)
        over_temperature = 1.0 / plan.temperature if tempered else 1.0
        row_max, t = part_targets(plan, lanes, end, y)
        scale = find_scale(plan, row_max)
        q_low = q_high = a_low = a_high = splat(0.0)
        if smoothing:
            q_low, q_high, a_low, a_high = sum_smoothed(plan, lanes, y, row_max)
        low, high = sum_exps(plan, lanes.tile, end, scale)
        rows_low, rows_high = finish_sixteen(low, high, row_max, t, scale, over_temperature)
        s, w = lanes.weights, lanes.class_weights
        loss_low, g_low, f_low = weigh(
            plan, rows_low, load(s, 0.0), load(w, 0.0), q_low, a_low, over_temperature
        )
        s, w = s + VECTOR_BYTES, w + VECTOR_BYTES
        loss_high, g_high, f_high = weigh(
            plan, rows_high, load(s, 0.0), load(w, 0.0), q_high, a_high, over_temperature
        )
        if plan.loss != 0:
            here = first_lanes(count, F32_0)
            store_lanes(plan.loss + first * 4, here, as_float32(loss_low, loss_high))
        if wants_grad:
            if plan.grad_scale == 0.0:
                clear_gradient(plan, place, lanes, end)
            else:
                f, power = as_two_factors(f_low, f_high)
                g_k = as_float32(g_low, g_high)
                write_gradient(plan, place, lanes, y, g_k, f, power)
        return loss_low, loss_high

    @inner
    def do_block(plan, first, last, work):
        lanes = cut_up(work, plan.n_classes)
        low, high = splat(0.0), splat(0.0)
        for row in range(first, last, ROWS):
            more_low, more_high = do_rows(plan, row, smaller(ROWS, last - row), lanes)
            low, high = low + more_low, high + more_high
        return sum_of_lanes(low + high)

    return do_block


@lru_cache
def narrow_normalize_operation(kernel):
    """softmax, log_softmax or logsumexp of the rows of a block."""
    kind, out_kind = kernel.kind, kernel.grad_kind or "float32"
    is_softmax = kernel.operation == "narrow_softmax"
    is_log = kernel.operation == "narrow_log_softmax"
    read_tile, write_tile = tile_functions(kind, out_kind, kernel.block)
    find_scale = scale_finder(False)

    @inner
    def find_peaks(tile, end):
        """The maximum, its first class, and NaN where the row has one, else 0."""
        peak, k, poison, c = splat(MINUS_INF), splat(F32_0), splat(F32_0), F32_0
        for at in range(tile, end, VECTOR_BYTES):
            x = load(at, F32_0)
            higher = x > peak
            peak, k = select(higher, x, peak), select(higher, c, k)
            poison = select(x == x, poison, F32_NAN)
            c += F32_1
        return peak, k, poison

    @inner
    def do_rows(plan, first, count, lanes):
        end = lanes.tile + plan.n_classes * VECTOR_BYTES
        place = place_of(plan, first, count)
        read_tile(plan, place, lanes.tile)
        peak, k, poison = find_peaks(lanes.tile, end)
        scale = find_scale(plan, peak)
        reference, exponent, lowest = scale[0], scale[2], scale[3]
        low, high, c = splat(0.0), splat(0.0), F32_0
        for at in range(lanes.tile, end, VECTOR_BYTES):
            e = exp_scaled(load(at, F32_0), reference, exponent, lowest, None)
            if is_softmax:
                store(at, e)
            e = select(k == c, F32_0, e)
            low, high = low + low_as_float64(e), high + high_as_float64(e)
            c += F32_1
        # Nothing but the largest class is left out: the others are relative to it
        rows_low, rows_high = finish_sixteen(low, high, peak, peak, scale, 1.0)
        if is_softmax:
            f, down = as_two_factors(rows_low.factor, rows_high.factor)
            for at in range(lanes.tile, end, VECTOR_BYTES):
                store(at, load(at, F32_0) * f * down)
        elif is_log:
            surprise, c = as_float32(rows_low.surprise, rows_high.surprise), F32_0
            for at in range(lanes.tile, end, VECTOR_BYTES):
                # The largest class is 0 below itself, also where it is infinite
                below = select(k == c, F32_0, load(at, F32_0) - peak)
                store(at, below - surprise)
                c += F32_1
        else:
            lse = as_float32(rows_low.lse, rows_high.lse)
            lse = select(absolute(peak) == F32_INF, peak + poison, lse)
            store_lanes(plan.lse + first * 4, first_lanes(count, F32_0), lse)
        if is_softmax or is_log:
            write_tile(plan, place, lanes.tile)

    @inner
    def do_block(plan, first, last, work):
        lanes = cut_up(work, plan.n_classes)
        for row in range(first, last, ROWS):
            do_rows(plan, row, smaller(ROWS, last - row), lanes)
        return 0.0

    return do_block
