"""The second pass over a row: from the kept exponentials to a gradient or to probabilities."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inner, smaller
from numba_ce.cpu.rows.effective_targets import probability_reader, stored_kind, weight_filler
from numba_ce.cpu.rows.loops import cappers
from numba_ce.cpu.rows.measure import LIFT_BITS, Scale, difference, lifted_factor
from numba_ce.cpu.rows.output import Factor, Shift, mapped, mapper
from numba_ce.cpu.rows.tile import (
    TILE,
    group_size,
    real_name,
    real_type,
    reduction_of,
    tile_finder,
    tile_storer,
)
from numba_ce.cpu.simd.element import KINDS, get, load_element, store_element, store_vector
from numba_ce.cpu.simd.exp import (
    BIAS,
    mantissa_and_exponent,
    power_of_two,
    soft_cap_and_slope,
    times_two_to,
)
from numba_ce.cpu.simd.memory import load, store
from numba_ce.cpu.simd.vector import (
    LANES,
    VECTOR_BYTES,
    lane,
    maximum,
    splat,
)


class Gradient(NamedTuple):
    """A row to write: ``amount exp((z_j - origin) / T) / bottom - q_factor q_j``, and g_k at k,
    all divided by the temperature.

    One exponential leads from the scale of a tile to `origin`, so that few roundings meet.
    """

    k: int  # -1: nowhere
    g_k: float
    amount: float
    origin: float
    bottom: float
    q_factor: float


@lru_cache
def factor_maker(kind):
    """The function that makes the `Factor` of a tile."""
    real = real_type(kind)
    smallest, largest = np.finfo(real).minexp, np.finfo(real).maxexp - 1
    paired = real is np.float64

    @inner
    def make_factor(scale, form, temperature, share, common):
        """What leads from the exponentials of a tile to the gradient: amount / (bottom T), scaled.

        In float64 the roundings of the two divisions are kept; in float32 they do not count.
        share, common : of the `Factor`
        """
        lifted = lifted_factor(scale, form.origin, temperature)
        if paired:
            quotient, lost = difference(lifted, 0.0, form.bottom)
            if temperature != 1.0:
                again = difference(quotient, 0.0, temperature)
                quotient, lost = again[0], again[1] + lost / temperature
            factor = form.amount * quotient
        else:
            factor = form.amount * lifted / (form.bottom * temperature)
        if not abs(factor) < math.inf:
            return Factor(real(factor), real(0) if paired else None, real(1), share, common)
        mantissa, exponent = mantissa_and_exponent(factor)
        exponent -= BIAS + LIFT_BITS
        power = smaller(exponent, largest) if exponent > smallest else smallest
        # Larger only where all exponentials are 0: infinity would make NaN of them
        value = real(times_two_to(mantissa, smaller(exponent - power, largest - 1)))
        if paired:
            low = value * (lost / quotient) if quotient != 0.0 else 0.0
        else:
            low = None
        return Factor(value, low, real(power_of_two(power)), share, common)

    return make_factor


@lru_cache
def row_filler(out_kind):
    """The function that fills a row of the output with one value."""
    real = real_type(out_kind)
    name = real_name(out_kind)
    lanes = LANES[KINDS[out_kind][1]]
    out_size, width = KINDS[out_kind][0] // 8, np.dtype(real).itemsize
    store_tile, map_to = tile_storer(out_kind), mapper(name, None, out_kind)
    zero = real(0)

    @inner
    def fill_row(plan, target, step, swapped, value, work):
        for i in range(0, TILE, lanes):
            store(work.tile + i * width, splat(real(value)))
        contiguous = step == out_size and not swapped
        for start in range(0, plan.n_classes, TILE):
            count = smaller(TILE, plan.n_classes - start)
            here = target + start * step
            to = here if contiguous else work.logits
            streaming = contiguous and plan.streaming
            map_to(work.tile, None, to, count, Shift(zero, zero), -1, zero, streaming, work.edge)
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
    find_tile, store_tile = tile_finder(kind), tile_storer(out_kind)
    times_cap_derivative = cappers(kind)[1]
    fill_weights = weight_filler(kind, targets_kind)
    map_plain, map_weighted = mapper(name, None, to_kind), mapper(name, name, to_kind)
    map_out = mapper(name, None, out_kind)
    if targets_kind is not None:
        weights_kind = stored_kind(kind, targets_kind)
        targets_size = KINDS[targets_kind][0] // 8
        find_weights = tile_finder(targets_kind, weights_kind)
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
            map_out(work.tile, None, to, count, same, -1, zero, streaming, work.edge)
        if not contiguous:
            store_tile(to, here, step, swapped, count)

    return write_tile


@lru_cache
def gradient_writer(variant, out_kind):
    """The function that writes a `Gradient`."""
    kind, dense, lead = variant.kind, variant.dense, variant.lead
    real = real_type(kind)
    width = np.dtype(real).itemsize
    probability = probability_reader(variant.targets_kind)
    cap_slope = cap_slope_reader(kind, variant.softcap and not dense)
    make_factor, write_tile = factor_maker(kind), gradient_tile_writer(variant, out_kind)

    @inner
    def write_gradient(plan, source, target, targets, row, form, work):
        """source, targets, target : addresses of the row's logits, probabilities and gradient

        row : what `measure` returned; form : the `Gradient`
        """
        temperature, k, scale = plan.temperature, form.k, row.scale
        g_k = form.g_k / temperature * cap_slope(plan, source, k)
        q_factor = form.q_factor / temperature
        if dense:
            share = real(q_factor * (1.0 - plan.smoothing))
            common = real(q_factor * (plan.smoothing / plan.all_classes))
        else:
            share = common = None
        f_reference, f_power = scale.reference, np.float64(scale.power)
        factor = make_factor(scale, form, temperature, share, common)
        for start in range(0, plan.n_classes, TILE):
            scales = work.scales + start // TILE * 32
            reference, scale_power = get(scales, 0.0), get(scales + 8, 0.0)
            if reference != f_reference or scale_power != f_power:
                f_reference, f_power = reference, scale_power
                scale = Scale(reference, np.int64(scale_power))
                factor = make_factor(scale, form, temperature, share, common)
            left_out, value = get(scales + 16, np.int64(0)), g_k
            if lead:
                if left_out >= 0 and left_out != k:
                    # The largest class of its tile, not of the row: kept as a number
                    d, lost = difference(get(scales + 24, 0.0), form.origin, temperature)
                    value = form.amount / temperature * (math.exp(d) * (1.0 + lost) / form.bottom)
                    value -= q_factor * probability(plan, targets, left_out)
            exps, left_out = work.exps + start * width, left_out - start
            write_tile(
                plan, source, target, targets, start, exps, factor, q_factor, left_out, value, work
            )

    return write_gradient


@lru_cache
def log_softmax_writer(kind, out_kind):
    """The function that writes ``(z_j - peak) - surprise``, peak the row's maximum."""
    real = real_type(kind)
    size, out_size = KINDS[kind][0] // 8, KINDS[out_kind][0] // 8
    minus_inf, zero = real(-np.inf), real(0)
    find_tile, store_tile = tile_finder(kind), tile_storer(out_kind)
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
            map_to(at, None, to, count, shift, -1, zero, streaming, work.edge)
            if not contiguous:
                store_tile(to, here, out_step, out_swapped, count)

    return write_log_softmax


@lru_cache
def hess_writer(variant, grad_kind, hess_kind):
    """The function that writes the gradient and the diagonal of the Hessian of a row."""
    kind, dense = variant.kind, variant.targets_kind is not None
    real = real_type(kind)
    lanes, width = LANES[KINDS[kind][1]], np.dtype(real).itemsize
    one = real(1)
    grad_size, hess_size = KINDS[grad_kind][0] // 8, KINDS[hess_kind][0] // 8
    store_grad, store_hess = tile_storer(grad_kind), tile_storer(hess_kind)
    make_factor = factor_maker(kind)
    fill_weights = weight_filler(kind, variant.targets_kind)

    @inner
    def write_hess(plan, grad, hess, targets, form, y, g_y, p_k, rest, total, work):
        """p_j = exp(z_j - origin) / bottom; grad = s (Q p - t), hess = s max(c Q p (1 - p), floor)

        form : the `Gradient`, with amount 1 and s as q_factor; total : Q; y : class whose gradient
        is s g_y, or -1
        """
        k, s = form.k, form.q_factor
        curvature, floor = real(total * plan.hess_factor), real(plan.hess_floor)
        slope, weight = real(s * total), real(s)
        for start in range(0, plan.n_classes, TILE):
            count = smaller(TILE, plan.n_classes - start)
            n_vectors = (count + lanes - 1) // lanes
            scales = work.scales + start // TILE * 32
            scale = Scale(get(scales, 0.0), np.int64(get(scales + 8, 0.0)))
            factor = make_factor(scale, form, 1.0, None, None)
            exps = work.exps + start * width
            if dense:
                fill_weights(plan, targets, start, count, s, work)
            for i in range(n_vectors):
                p = mapped(load(exps + i * VECTOR_BYTES, one), None, factor)
                g = p * slope
                if dense:
                    g = g - load(work.weights + i * VECTOR_BYTES, one)
                store_vector(grad_kind, work.tile + i * lanes * grad_size, g)
                h = p * (splat(one) - p) * curvature
                if plan.hess_floor > 0.0:
                    h = maximum(splat(floor), h)  # NaN stays NaN
                store_vector(hess_kind, work.logits + i * lanes * hess_size, h * weight)
            if start <= k < start + count:
                h_k = total * plan.hess_factor * p_k * rest
                if plan.hess_floor > 0.0 and h_k < plan.hess_floor:
                    h_k = plan.hess_floor
                g_at, h_at = (k - start) * grad_size, (k - start) * hess_size
                store_element(grad_kind, work.tile + g_at, real(s * form.g_k), False)
                store_element(hess_kind, work.logits + h_at, real(s * h_k), False)
            if y != k and start <= y < start + count:
                g_at = (y - start) * grad_size
                store_element(grad_kind, work.tile + g_at, real(s * g_y), False)
            grad_tile, hess_tile = grad + start * plan.grad_step, hess + start * plan.hess_step
            store_grad(work.tile, grad_tile, plan.grad_step, plan.grad_swapped, count)
            store_hess(work.logits, hess_tile, plan.hess_step, plan.hess_swapped, count)

    return write_hess
