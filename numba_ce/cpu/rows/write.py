"""The second pass over a row: from the kept exponentials to a gradient or to probabilities."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inlined, inner, smaller
from numba_ce.cpu.rows.batch import F32_0
from numba_ce.cpu.rows.effective_targets import probability_reader, stored_kind, weight_filler
from numba_ce.cpu.rows.loops import make_cappers
from numba_ce.cpu.rows.measure import LIFT_BITS, Scale, rescale
from numba_ce.cpu.rows.output import Factor, Shift, mapped, mapper
from numba_ce.cpu.rows.tile import (
    TILE,
    group_size,
    make_find_tile,
    make_store_tile,
    real_name,
    real_type,
    reduction_of,
)
from numba_ce.cpu.rows.workspace import ELEMENTS, FIELDS, SCALE_BYTES
from numba_ce.cpu.simd.element import KINDS, get, load_element, store_element, store_vector
from numba_ce.cpu.simd.exp import (
    BIAS,
    mantissa_and_exponent,
    power_of_two,
    soft_cap_and_slope,
    times_two_to,
)
from numba_ce.cpu.simd.memory import load, store
from numba_ce.cpu.simd.vector import LANES, VECTOR_BYTES, lane, maximum, splat

BIAS_POWER, NO_CLASS = np.int64(BIAS), np.int64(-1)


class Finished(NamedTuple):
    """A finished row, as far as its elements need it."""

    k: int  # the class left out; -1: none
    q_factor: float
    values: int  # address of what the operation returned, see `value_at`
    factor: Factor  # of the exponentials with this scale, and the same in three float64
    amount: float
    amount_lost: float
    amount_power: float
    scale: Scale
    share: float  # of the `Factor`
    common: float


@inner
def value_at(row, n):
    """The n-th value that the operation returned for a row, after the factor."""
    return get(row.values + n * 64, 0.0)


@lru_cache
def factor_splitter(kind):
    """The function that makes a `Factor` of (amount + lost) * 2**power."""
    real = real_type(kind)
    smallest, largest = np.finfo(real).minexp, np.finfo(real).maxexp - 1
    paired = real is np.float64

    @inner
    def split(amount, lost, power, share, common):
        if not abs(amount) < math.inf:
            return Factor(real(amount), real(0) if paired else None, real(1), share, common)
        mantissa, exponent = mantissa_and_exponent(amount)
        exponent += np.int64(power)
        n = smaller(exponent, largest) if exponent > smallest else smallest
        # Larger only where all exponentials are 0: infinity would make NaN of them
        value = real(times_two_to(mantissa, smaller(exponent - n, largest - 1)))
        if paired:
            low = value * (lost / amount) if amount != 0.0 else 0.0
        else:
            low = None
        return Factor(value, low, real(power_of_two(n)), share, common)

    return split


@lru_cache
def row_recaller(kind, targets_kind, dense):
    """The function that reads a `Finished` row from a worker's memory."""
    real = real_type(kind)
    double, split = real is np.float64, factor_splitter(kind)

    @inlined
    def recall(plan, work, i):
        """The i-th of eight rows."""
        at = work.batch + i * 8
        q_factor = get(at + ELEMENTS.q_factor, 0.0)
        if dense:
            share = real(q_factor * (1.0 - plan.smoothing))
            common = real(q_factor * (plan.smoothing / plan.all_classes))
        else:
            share = common = None
        values = at + ELEMENTS.values
        amount = get(values, 0.0)
        if double:
            lost, power = get(values + 64, 0.0), get(values + 128, 0.0)
            factor, values = split(amount, lost, power, share, common), values + 192
        else:
            lost = power = 0.0
            single = work.batch + ELEMENTS.single + i * 4
            factor = Factor(get(single, F32_0), None, get(single + 64, F32_0), share, common)
            values += 64
        scale = Scale(get(at + FIELDS.reference, 0.0), np.int64(get(at + FIELDS.power, 0.0)))
        k = np.int64(get(at + FIELDS.k, 0.0))
        return Finished(k, q_factor, values, factor, amount, lost, power, scale, share, common)

    return recall


@lru_cache
def tile_recaller(kind):
    """The functions that say how a tile of a row was stored."""
    split = factor_splitter(kind)

    @inlined
    def recall_tile(plan, work, start, row, temperature):
        """The `Factor` of its exponentials, the class left out of it, and the logit of that."""
        at = work.scales + start // TILE * SCALE_BYTES
        reference, power = get(at, 0.0), get(at + 8, 0.0)
        factor = row.factor
        if reference != row.scale.reference or power != np.float64(row.scale.power):
            # A subnormal number would lose its digits before it meets a large exponential
            lifted = np.int64(power) + LIFT_BITS
            to_row = rescale(reference, lifted, row.scale.reference, row.scale.power, temperature)
            if to_row == math.inf:  # all classes of the tile are masked
                to_row = 1.0
            factor = split(
                row.amount * to_row,
                row.amount_lost * to_row,
                row.amount_power - np.float64(LIFT_BITS),
                row.share,
                row.common,
            )
        return factor, get(at + 16, np.int64(0)), get(at + 24, 0.0)

    @inner
    def times_factor(row, logit, temperature):
        """What the factor of a row makes of one class that was left out of its tile."""
        e = rescale(logit, BIAS_POWER, row.scale.reference, row.scale.power, temperature)
        return times_two_to(row.amount * e, np.int64(row.amount_power))

    return recall_tile, times_factor


@lru_cache
def row_filler(out_kind):
    """The function that fills a row of the output with one value."""
    real = real_type(out_kind)
    name = real_name(out_kind)
    lanes = LANES[KINDS[out_kind][1]]
    out_size, width = KINDS[out_kind][0] // 8, np.dtype(real).itemsize
    store_tile, map_to = make_store_tile(out_kind), mapper(name, None, out_kind)
    zero, one, low = real(0), real(1), real(0) if real is np.float64 else None

    @inner
    def fill_row(plan, target, step, swapped, value, work):
        # A Factor, as of a gradient: for a Shift `map_to` would be compiled once more
        same = Factor(one, low, one, None, None)
        for i in range(0, TILE, lanes):
            store(work.tile + i * width, splat(real(value)))
        contiguous = step == out_size and not swapped
        for start in range(0, plan.n_classes, TILE):
            count = smaller(TILE, plan.n_classes - start)
            here = target + start * step
            to = here if contiguous else work.logits
            streaming = contiguous and plan.streaming
            map_to(work.tile, None, to, count, same, NO_CLASS, zero, streaming, work.edge)
            if not contiguous:
                store_tile(to, here, step, swapped, count)

    return fill_row


@lru_cache
def cap_slope_reader(kind, softcap):
    """The function that computes the derivative of the soft cap at one class."""
    real = real_type(kind)

    @inner
    def cap_slope(plan, source, k):
        if softcap and k >= 0:
            capping = reduction_of(plan.capping, real)
            z = load_element(kind, source + k * plan.logits_step, plan.logits_swapped)
            if not math.isinf(z):
                slopes = soft_cap_and_slope(splat(z), real(plan.softcap), capping)[1]
                return np.float64(lane(slopes, 0))
        return 1.0

    return cap_slope


@lru_cache
def gradient_tile_writer(variant, out_kind):
    """The function that writes one tile of a gradient."""
    kind, dense, targets_kind = variant.kind, variant.dense, variant.targets_kind
    name, real = real_name(kind), real_type(kind)
    out_size, group = KINDS[out_kind][0] // 8, group_size(kind)
    one, zero, minus_inf = real(1), real(0), real(-np.inf)
    uncapped = variant.softcap and dense
    to_kind = name if uncapped else out_kind
    find_tile, store_tile = make_find_tile(kind), make_store_tile(out_kind)
    times_cap_derivative = make_cappers(kind)[1]
    fill_weights = weight_filler(kind, targets_kind)
    map_plain, map_weighted = mapper(name, None, to_kind), mapper(name, name, to_kind)
    map_out = mapper(name, None, out_kind)
    if targets_kind is not None:
        weights_kind = stored_kind(kind, targets_kind)
        targets_size = KINDS[targets_kind][0] // 8
        find_weights = make_find_tile(targets_kind, weights_kind)
        map_targets = mapper(name, weights_kind, to_kind)

    @inner
    def write_tile(plan, source, target, targets, start, exps, factor, q_factor, k, g_k, work):
        """source, targets, target : addresses of the row's logits, probabilities and gradient

        start : first class of the tile; exps : address of its exponentials; k : the class, counted
        from there, whose gradient is g_k
        """
        step, swapped = plan.grad_step, plan.grad_swapped
        contiguous = step == out_size and not swapped
        streaming = contiguous and plan.streaming and not uncapped
        count = smaller(TILE, plan.n_classes - start)
        here, patch = target + start * step, real(g_k)
        to = here if contiguous else work.tile
        if uncapped:
            to = work.tile
        if not dense:
            map_plain(exps, None, to, count, factor, k, patch, streaming, work.edge)
        elif plan.class_weight != 0:
            fill_weights(plan, targets, start, count, q_factor, work)
            f = Factor(factor.value, factor.low, factor.power, one, zero)
            map_weighted(exps, work.weights, to, count, f, k, patch, streaming, work.edge)
        elif targets_kind is not None:
            t_step, weights = plan.targets_step, targets + start * plan.targets_step
            if weights_kind != targets_kind or t_step != targets_size or plan.targets_swapped:
                find_weights(weights, t_step, plan.targets_swapped, count, zero, work.weights)
                weights = work.weights
            map_targets(exps, weights, to, count, factor, k, patch, streaming, work.edge)
        else:
            map_plain(exps, None, to, count, factor, k, patch, streaming, work.edge)
        if uncapped:
            capping = reduction_of(plan.capping, real)
            n_groups = (count + group - 1) // group
            at, logits_step = source + start * plan.logits_step, plan.logits_step
            tile = find_tile(at, logits_step, plan.logits_swapped, count, minus_inf, work.logits)
            times_cap_derivative(work.tile, tile, n_groups, real(plan.softcap), capping)
            to = here if contiguous else work.weights
            streaming = contiguous and plan.streaming
            same = Shift(zero, zero)
            map_out(work.tile, None, to, count, same, NO_CLASS, zero, streaming, work.edge)
        if not contiguous:
            store_tile(to, here, step, swapped, count)

    return write_tile


@lru_cache
def gradient_writer(variant, out_kind, leaves_none):
    """The function that writes ``factor * exponential - q_factor q_j``, and g_k at k.

    leaves_none : there is no k, as for softmax
    """
    kind, lead = variant.kind, variant.lead
    real = real_type(kind)
    width = np.dtype(real).itemsize
    probability = probability_reader(variant.targets_kind)
    cap_slope = cap_slope_reader(kind, variant.softcap and not variant.dense)
    (recall_tile, number_of), write_tile = (
        tile_recaller(kind),
        gradient_tile_writer(variant, out_kind),
    )

    @inlined
    def write_gradient(plan, source, target, targets, row, work):
        """source, targets, target : addresses of the row's logits, probabilities and gradient"""
        temperature, q_factor = plan.temperature, row.q_factor
        g_k = value_at(row, 0) * cap_slope(plan, source, row.k)
        for start in range(0, plan.n_classes, TILE):
            factor, left_out, logit = recall_tile(plan, work, start, row, temperature)
            value = g_k
            if lead and left_out >= 0 and left_out != row.k:
                # The largest class of its tile, not of the row: kept as a number
                value = number_of(row, logit, temperature)
                value -= q_factor * probability(plan, targets, left_out)
            exps = work.exps + start * width
            k = NO_CLASS if leaves_none else left_out - start
            write_tile(plan, source, target, targets, start, exps, factor, q_factor, k, value, work)

    return write_gradient


@lru_cache
def hess_writer(variant, grad_kind, hess_kind):
    """The function that writes the gradient and the diagonal of the Hessian of a row."""
    kind, dense = variant.kind, variant.targets_kind is not None
    real = real_type(kind)
    lanes, width = LANES[KINDS[kind][1]], np.dtype(real).itemsize
    one = real(1)
    grad_size, hess_size = KINDS[grad_kind][0] // 8, KINDS[hess_kind][0] // 8
    store_grad, store_hess = make_store_tile(grad_kind), make_store_tile(hess_kind)
    recall_tile, number_of = tile_recaller(kind)
    fill_weights = weight_filler(kind, variant.targets_kind)
    probability = probability_reader(variant.targets_kind)

    @inner
    def target_of(plan, targets, y, c):
        if dense:
            return probability(plan, targets, c)
        else:
            return 1.0 if c == y else 0.0

    @inner
    def put_class(work, at, g, h):
        store_element(grad_kind, work.tile + at * grad_size, real(g), False)
        store_element(hess_kind, work.logits + at * hess_size, real(h), False)

    @inner
    def write_hess(plan, grad, hess, targets, row, y, work):
        """grad = s (Q p - q), hess = s max(c Q p (1 - p), floor); y : the target, or -1"""
        s, g_k, h_k = row.q_factor, value_at(row, 0), value_at(row, 1)
        slope, curvature = value_at(row, 2), value_at(row, 3)
        floor = plan.hess_floor if plan.hess_floor > 0.0 else -math.inf
        for start in range(0, plan.n_classes, TILE):
            count = smaller(TILE, plan.n_classes - start)
            factor, left_out, logit = recall_tile(plan, work, start, row, 1.0)
            exps = work.exps + start * width
            if dense:
                fill_weights(plan, targets, start, count, s, work)
            for i in range((count + lanes - 1) // lanes):
                p = mapped(load(exps + i * VECTOR_BYTES, one), None, factor)
                g = p * real(slope)
                if dense:
                    g = g - load(work.weights + i * VECTOR_BYTES, one)
                store_vector(grad_kind, work.tile + i * lanes * grad_size, g)
                h = maximum(splat(real(floor)), p * (splat(one) - p) * real(curvature))
                store_vector(hess_kind, work.logits + i * lanes * hess_size, h * real(s))
            if not dense and start <= y < start + count:
                of_y = mapped(load(exps + (y - start) * width, one), None, factor)
                g_y = real(slope * np.float64(lane(of_y, 0)) - s)
                store_element(grad_kind, work.tile + (y - start) * grad_size, g_y, False)
            if left_out >= 0 and left_out == row.k:
                put_class(work, left_out - start, g_k, h_k)
            elif left_out >= 0:
                p_k = number_of(row, logit, 1.0)
                h_left = p_k * (1.0 - p_k) * curvature
                h_left = s * (floor if h_left < floor else h_left)
                g_left = slope * p_k - s * target_of(plan, targets, y, left_out)
                put_class(work, left_out - start, g_left, h_left)
            grad_tile, hess_tile = grad + start * plan.grad_step, hess + start * plan.hess_step
            store_grad(work.tile, grad_tile, plan.grad_step, plan.grad_swapped, count)
            store_hess(work.logits, hess_tile, plan.hess_step, plan.hess_swapped, count)

    return write_hess


@lru_cache
def log_softmax_writer(kind, out_kind):
    """The function that writes ``(z_j - peak) - surprise``, peak the row's maximum."""
    real = real_type(kind)
    size, out_size = KINDS[kind][0] // 8, KINDS[out_kind][0] // 8
    minus_inf, zero = real(-np.inf), real(0)
    find_tile, store_tile = make_find_tile(kind), make_store_tile(out_kind)
    map_to = mapper(kind, None, out_kind)

    @inner
    def write_log_softmax(plan, source, target, peak, surprise, work):
        step, swapped = plan.logits_step, plan.logits_swapped
        out_step, out_swapped = plan.grad_step, plan.grad_swapped
        shift = Shift(real(peak), real(-surprise))
        direct = step == size and not swapped
        contiguous = out_step == out_size and not out_swapped
        streaming = contiguous and plan.streaming
        for start in range(0, plan.n_classes, TILE):
            count = smaller(TILE, plan.n_classes - start)
            at, here = source + start * step, target + start * out_step
            if not direct:
                find_tile(at, step, swapped, count, minus_inf, work.tile)
                at = work.tile
            to = here if contiguous else work.logits
            map_to(at, None, to, count, shift, NO_CLASS, zero, streaming, work.edge)
            if not contiguous:
                store_tile(to, here, out_step, out_swapped, count)

    return write_log_softmax
