"""The second pass over a row: from the kept exponentials to a gradient or to probabilities."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.element import KINDS, get, put
from numba_ce.cpu.exp import BIAS, mantissa_and_exponent, power_of_two, times_two_to
from numba_ce.cpu.jit import inner, smaller
from numba_ce.cpu.measure import LIFT_BITS, Scale, difference, lifted_factor, weight_filler
from numba_ce.cpu.tile import (
    NATIVE,
    TILE,
    Shift,
    fill,
    map_to,
    mapped,
    real_type,
    reduction_of,
    tile_loader,
    tile_storer,
    times_cap_derivative,
)
from numba_ce.cpu.vector import LANES, VECTOR_BYTES, load, maximum, splat, store


class Factor(NamedTuple):
    """(value + low) * power, power a power of two: products with it are rounded once."""

    value: float
    low: float | None  # float64 only
    power: float


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
    def make_factor(scale, form, temperature):
        """What leads from the exponentials of a tile to the gradient: amount / (bottom T), scaled.

        In float64 the roundings of the two divisions are kept; in float32 they do not count.
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
            return Factor(real(factor), real(0) if paired else None, real(1))
        mantissa, exponent = mantissa_and_exponent(factor)
        exponent -= BIAS + LIFT_BITS
        power = smaller(exponent, largest) if exponent > smallest else smallest
        value = real(times_two_to(mantissa, exponent - power))
        if paired:
            low = value * (lost / quotient) if quotient != 0.0 else 0.0
        else:
            low = None
        return Factor(value, low, real(power_of_two(power)))

    return make_factor


@lru_cache
def row_filler(out_kind):
    """The function that fills a row of the output with one value."""
    real = real_type(out_kind)
    size, n_vectors = KINDS[out_kind][0] // 8, TILE // LANES[KINDS[out_kind][1]]
    straight, one = out_kind in NATIVE, real(1)
    store_tile = tile_storer(out_kind)

    @inner
    def fill_row(plan, target, step, swapped, value, work):
        fill(work.tile, n_vectors, real(value))
        for start in range(0, plan.n_classes, TILE):
            count = smaller(TILE, plan.n_classes - start)
            tile = target + start * step
            if straight and step == size and not swapped:
                map_to(work.tile, tile, count, Factor(one, None, one), size, plan.streaming)
            else:
                store_tile(work.tile, tile, step, swapped, count)

    return fill_row


@inner
def scaled_tile(exps, weights, tile, n_vectors, factor):
    """tile = exps * factor - weights; weights may be None"""
    for i in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
        result = mapped(load(exps + i, factor.value), factor)
        if weights is not None:
            result = result - load(weights + i, factor.value)
        store(tile + i, result)


@lru_cache
def gradient_writer(variant, out_kind):
    """The function that writes a `Gradient`."""
    kind, softcap, dense = variant.kind, variant.softcap, variant.dense
    real = real_type(kind)
    lanes, width = LANES[KINDS[kind][1]], np.dtype(real).itemsize
    out_size = KINDS[out_kind][0] // 8
    plain = not dense and not softcap
    narrow = real is np.float32
    straight = plain and out_kind in NATIVE
    minus_inf = real(-np.inf)
    huge = math.sqrt(float(np.finfo(real).max)) * 1e10
    load_tile, store_tile = tile_loader(kind), tile_storer(out_kind)
    make_factor = factor_maker(kind)
    fill_weights = weight_filler(kind, variant.targets_kind)

    @inner
    def write_gradient(plan, source, target, targets, row, form, work):
        """source, targets, target : addresses of the row's logits, probabilities and gradient

        row : what `measure` returned; form : the `Gradient`
        """
        n_classes, temperature = plan.n_classes, plan.temperature
        k, scale = form.k, row.scale
        g_k, q_factor = form.g_k / temperature, form.q_factor / temperature
        step, swapped = plan.grad_step, plan.grad_swapped
        contiguous = straight and step == out_size and not swapped
        f_reference, f_power = scale.reference, np.float64(scale.power)
        factor = make_factor(scale, form, temperature)
        for start in range(0, n_classes, TILE):
            count = smaller(TILE, n_classes - start)
            n_vectors = (count + lanes - 1) // lanes
            exps = work.exps + start * width
            scales = work.scales + start // TILE * 16
            reference, scale_power = get(scales, 0.0), get(scales + 8, 0.0)
            if reference != f_reference or scale_power != f_power:
                f_reference, f_power = reference, scale_power
                scale = Scale(reference, np.int64(scale_power))
                factor = make_factor(scale, form, temperature)
            patch = has_k = start <= k < start + count
            if narrow and plain and has_k:
                # The value whose product with both factors is g_k (in float32 they have the digits
                # to spare): then k needs no second visit of a line that has just been written
                value = g_k / np.float64(factor.value) / np.float64(factor.power)
                if 1.0 / huge < abs(value) < huge or g_k == 0.0:
                    put(exps + (k - start) * width, real(value) if g_k != 0.0 else real(0))
                    patch = False
            tile_target = target + start * step
            if contiguous:
                map_to(exps, tile_target, count, factor, width, plan.streaming)
                if patch:
                    put(tile_target + (k - start) * width, real(g_k))
                continue
            if dense:
                fill_weights(plan, targets, start, count, q_factor, work)
                scaled_tile(exps, work.weights, work.tile, n_vectors, factor)
            else:
                scaled_tile(exps, None, work.tile, n_vectors, factor)
            if patch:
                put(work.tile + (k - start) * width, real(g_k))
            if softcap:
                capping = reduction_of(plan.capping, real)
                logits = source + start * plan.logits_step
                load_tile(
                    logits, plan.logits_step, plan.logits_swapped, count, minus_inf, work.logits
                )
                times_cap_derivative(work.tile, work.logits, n_vectors, capping)
            store_tile(work.tile, tile_target, step, swapped, count)

    return write_gradient


@lru_cache
def log_softmax_writer(kind, out_kind):
    """The function that writes ``(z_j - peak) - surprise``, peak the row's maximum."""
    real = real_type(kind)
    lanes, width = LANES[KINDS[kind][1]], np.dtype(real).itemsize
    straight = kind in NATIVE and out_kind == kind
    minus_inf = real(-np.inf)
    load_tile, store_tile = tile_loader(kind), tile_storer(out_kind)

    @inner
    def write_log_softmax(plan, source, target, peak, surprise, work):
        step, swapped = plan.logits_step, plan.logits_swapped
        out_step, out_swapped = plan.grad_step, plan.grad_swapped
        shift = Shift(real(peak), real(-surprise))
        direct = straight and step == width and not swapped
        direct = direct and out_step == width and not out_swapped
        for start in range(0, plan.n_classes, TILE):
            count = smaller(TILE, plan.n_classes - start)
            tile, out = source + start * step, target + start * out_step
            if direct:
                map_to(tile, out, count, shift, width, plan.streaming)
                continue
            load_tile(tile, step, swapped, count, minus_inf, work.tile)
            for i in range(0, (count + lanes - 1) // lanes * VECTOR_BYTES, VECTOR_BYTES):
                store(work.tile + i, mapped(load(work.tile + i, minus_inf), shift))
            store_tile(work.tile, out, out_step, out_swapped, count)

    return write_log_softmax


@lru_cache
def hess_writer(variant, grad_kind, hess_kind):
    """The function that writes the gradient and the diagonal of the Hessian of a row."""
    kind, dense = variant.kind, variant.targets_kind is not None
    real = real_type(kind)
    lanes, width = LANES[KINDS[kind][1]], np.dtype(real).itemsize
    one = real(1)
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
            scales = work.scales + start // TILE * 16
            scale = Scale(get(scales, 0.0), np.int64(get(scales + 8, 0.0)))
            factor = make_factor(scale, form, 1.0)
            scaled_tile(work.exps + start * width, None, work.logits, n_vectors, factor)
            if dense:
                fill_weights(plan, targets, start, count, s, work)
            for i in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
                p = load(work.logits + i, one)
                g = p * slope
                if dense:
                    g = g - load(work.weights + i, one)
                store(work.tile + i, g)
                h = p * (splat(one) - p) * curvature
                if plan.hess_floor > 0.0:
                    h = maximum(splat(floor), h)  # NaN stays NaN
                store(work.logits + i, h * weight)
            if start <= k < start + count:
                h_k = total * plan.hess_factor * p_k * rest
                if plan.hess_floor > 0.0 and h_k < plan.hess_floor:
                    h_k = plan.hess_floor
                put(work.tile + (k - start) * width, real(s * form.g_k))
                put(work.logits + (k - start) * width, real(s * h_k))
            if y != k and start <= y < start + count:
                put(work.tile + (y - start) * width, real(s * g_y))
            grad_tile, hess_tile = grad + start * plan.grad_step, hess + start * plan.hess_step
            store_grad(work.tile, grad_tile, plan.grad_step, plan.grad_swapped, count)
            store_hess(work.logits, hess_tile, plan.hess_step, plan.hess_swapped, count)

    return write_hess
