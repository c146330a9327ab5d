"""Rows of few classes: sixteen rows at a time, one in each lane.

A row of ten classes fills ten lanes of one vector, and what is done once per row, in float64 and
one number at a time, costs more than its exponentials: 100 ns a row in the kernels of `operations`.
Here the classes of sixteen rows are turned into a tile ``tile[class][row]``, everything is done for
sixteen rows at once, and the same formulas as in `_row.finish` are written for vectors.

Only the plain loss (with weights) of logits computed in float32 comes here, and how many classes a
row has decides it, so a row's bits never depend on its neighbours.
"""

import math
from functools import lru_cache

import numpy as np

from numba_ce.cpu.element import KINDS, get, load_element, put, store_element
from numba_ce.cpu.exp import BIAS, EXPONENT_BIAS, LN2, LOG2E, MAGIC, exp_scaled
from numba_ce.cpu.finish import put_result
from numba_ce.cpu.jit import inner, smaller
from numba_ce.cpu.log import LN2_HI, LN2_LO, log1p
from numba_ce.cpu.measure import ZERO_REFERENCE
from numba_ce.cpu.plan import locate
from numba_ce.cpu.targets import BAD, KEPT, index_target
from numba_ce.cpu.vector import (
    VECTOR_BYTES,
    absolute,
    as_float32,
    fma,
    high_as_float64,
    load,
    low_as_float64,
    maximum,
    select,
    splat,
    store,
)

NARROW_CLASSES = 64  # then a tile fills 4 KiB, what a worker has for any tile
ROWS = 16  # lanes of a float32 vector

MINUS_INF = np.float32(-np.inf)
F32_0, F32_INF, F32_NAN = np.float32(0), np.float32(np.inf), np.float32(np.nan)
EXPONENT = EXPONENT_BIAS[KINDS["float32"][1]] + BIAS
LOWEST = np.float32(-(EXPONENT - 1) * float(LN2))
NEAR = np.float32(ZERO_REFERENCE[KINDS["float32"][1]])
MAGIC_F32 = MAGIC[KINDS["float32"][1]]
LOG2E_F32, LN2_F32 = np.float32(LOG2E), np.float32(LN2)
F64_EXPONENT = 1023
F64_LOWEST = -1022 * float(LN2)
UNBIAS = 2.0**-BIAS


@inner
def exp64(x):
    """exp of a float64 vector of numbers below 1."""
    return exp_scaled(x, 0.0, F64_EXPONENT, F64_LOWEST, None)


@inner
def finish_rows(sum_exp, d):
    """loss, 1 - p_y and factor of `_row.finish`, for eight rows; NaN where d is NaN or +inf.

    d = +inf stands for a +inf target, or for a row of which only the target is alive: the latter
    has sum_exp 0.
    """
    others = d < 0.0
    small = exp64(splat(0.0) - absolute(d))
    u = select(others, (sum_exp - splat(1.0)) + small, sum_exp * small)
    z = select(others, sum_exp + small, u + 1.0)
    loss = log1p(u) + select(others, splat(0.0) - d, splat(0.0))
    rest = select(others, sum_exp, u) / z
    factor = select(others, splat(1.0), small) / z
    return loss, rest, factor


@inner
def scales(row_max):
    """Reference and power of `measure.choose` for sixteen rows; 0 and 0 for a row of -inf."""
    power = fma(row_max, LOG2E_F32, MAGIC_F32) - MAGIC_F32
    near, masked = absolute(row_max) < NEAR, row_max == MINUS_INF
    power = select(near, power, F32_0)
    return select(near, splat(F32_0), select(masked, F32_0, row_max)), power


@inner
def to_max(row_max, reference, power):
    """exp(reference - m) * 2**(power - BIAS), for eight rows; 2**-BIAS for a row of -inf."""
    away = fma(power, LN2_LO, fma(power, LN2_HI, reference - row_max))
    return exp64(select(absolute(away) < 1.0, away, 0.0)) * UNBIAS


@lru_cache
def narrow_operation(kernel):
    """Loss of the rows of a block, and their gradient if `grad_kind` is given."""
    kind, grad_kind = kernel.kind, kernel.grad_kind
    size = KINDS[kind][0] // 8
    wants_grad = grad_kind is not None
    out_kind = grad_kind or "float32"
    out_size = KINDS[out_kind][0] // 8

    @inner
    def read_rows(plan, first, count, work):
        """tile[class][row], zeros for a row that is not there or does not count; y; weights."""
        n_classes, step, swapped = plan.n_classes, plan.logits_step, plan.logits_swapped
        targets, weights = work.weights, work.weights + VECTOR_BYTES
        for i in range(ROWS):
            kept, y, weight = False, np.int64(0), 0.0
            source = plan.logits
            if i < count:
                logits_at, targets_at, weight_at, _, _ = locate(plan, first + i)
                target = index_target(plan, targets_at, weight_at)
                if target.status == KEPT:
                    kept, y, weight = True, target.index, target.weight * target.q
                    source += logits_at
                elif target.status == BAD:
                    weight = math.nan
            put(targets + i * 4, np.float32(y))
            put(weights + i * 8, weight)
            tile = work.tile + i * 4
            if not kept:
                for c in range(n_classes):
                    put(tile + c * VECTOR_BYTES, F32_0)
            elif step == size and not swapped:
                for c in range(n_classes):
                    put(tile + c * VECTOR_BYTES, load_element(kind, source + c * size, False))
            else:
                for c in range(n_classes):
                    put(tile + c * VECTOR_BYTES, load_element(kind, source + c * step, swapped))

    @inner
    def write_rows(plan, first, count, work):
        """The gradient of each row = tile[:][row]."""
        n_classes, step, swapped = plan.n_classes, plan.grad_step, plan.grad_swapped
        for i in range(count):
            grad = plan.grad + locate(plan, first + i)[3]
            tile = work.tile + i * 4
            if step == out_size and not swapped:
                for c in range(n_classes):
                    value = get(tile + c * VECTOR_BYTES, F32_0)
                    store_element(out_kind, grad + c * out_size, value, False)
            else:
                for c in range(n_classes):
                    value = get(tile + c * VECTOR_BYTES, F32_0)
                    store_element(out_kind, grad + c * step, value, swapped)

    @inner
    def do_rows(plan, first, count, work):
        read_rows(plan, first, count, work)
        tile, end = work.tile, work.tile + plan.n_classes * VECTOR_BYTES
        y = load(work.weights, F32_0)
        # The record: the target apart from the others
        row_max, t = splat(MINUS_INF), splat(MINUS_INF)
        c = F32_0
        for at in range(tile, end, VECTOR_BYTES):
            x, is_target = load(at, F32_0), y == c
            t = select(is_target, x, t)
            row_max = maximum(select(is_target, MINUS_INF, x), row_max)
            c += np.float32(1)
        reference, power = scales(row_max)
        exponent = splat(np.float32(BIAS)) - power
        lowest = fma(power, LN2_F32, LOWEST)
        low, high = splat(0.0), splat(0.0)
        c = F32_0
        for at in range(tile, end, VECTOR_BYTES):
            x = select(y == c, MINUS_INF, load(at, F32_0))
            e = exp_scaled(x, reference, exponent, lowest, None)
            low, high = low + low_as_float64(e), high + high_as_float64(e)
            store(at, e)
            c += np.float32(1)
        to_max_low = to_max(
            low_as_float64(row_max), low_as_float64(reference), low_as_float64(power)
        )
        to_max_high = to_max(
            high_as_float64(row_max), high_as_float64(reference), high_as_float64(power)
        )
        broken = select(t < F32_INF, splat(F32_0), F32_NAN)
        low = low * to_max_low + low_as_float64(broken)
        high = high * to_max_high + high_as_float64(broken)
        # d in float64 is exact enough: both are float32
        d_low = low_as_float64(t) - low_as_float64(row_max)
        d_high = high_as_float64(t) - high_as_float64(row_max)
        loss_low, rest_low, factor_low = finish_rows(low, d_low)
        loss_high, rest_high, factor_high = finish_rows(high, d_high)
        weights = work.weights + VECTOR_BYTES
        weight_low, weight_high = load(weights, 0.0), load(weights + VECTOR_BYTES, 0.0)
        losses = weights + 2 * VECTOR_BYTES
        store(losses, loss_low)
        store(losses + VECTOR_BYTES, loss_high)
        total = 0.0
        for i in range(count):
            weight, loss = get(weights + i * 8, 0.0), get(losses + i * 8, 0.0)
            # a weight of zero makes nothing of an infinite loss, but not of NaN
            loss = 0.0 if weight == 0.0 and loss == math.inf else weight * loss
            put_result(plan.loss, first + i, plan.loss_bytes, loss)
            total += loss
        if wants_grad:
            scale = plan.grad_scale
            if scale == 0.0:
                for at in range(tile, end, VECTOR_BYTES):
                    store(at, splat(F32_0))
            else:
                weight_low, weight_high = weight_low * scale, weight_high * scale
                g_y = as_float32(
                    splat(0.0) - weight_low * rest_low, splat(0.0) - weight_high * rest_high
                )
                factor_low = factor_low * weight_low * to_max_low
                factor_high = factor_high * weight_high * to_max_high
                c = F32_0
                for at in range(tile, end, VECTOR_BYTES):
                    e = load(at, F32_0)
                    g = as_float32(low_as_float64(e) * factor_low, high_as_float64(e) * factor_high)
                    store(at, select(y == c, g_y, g))
                    c += np.float32(1)
            write_rows(plan, first, count, work)
        return total

    @inner
    def do_block(plan, first, last, work):
        total = 0.0
        for row in range(first, last, ROWS):
            total += do_rows(plan, row, smaller(ROWS, last - row), work)
        return total

    return do_block
