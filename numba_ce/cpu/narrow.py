"""Rows of few classes: sixteen rows at a time, one in each lane.

A row of ten classes fills ten lanes of one vector, and what is done once per row, in float64 and
one number at a time, costs more than its exponentials: 100 ns a row in the kernels of `operations`.
Here the classes of sixteen rows are turned into a tile ``tile[class][row]``, everything is done for
sixteen rows at once, and the same formulas as in `_row` are written for vectors.

Only logits computed in float32 come here, and how many classes a row has decides it, so a row's
bits never depend on its neighbours.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.element import KINDS, get, load_element, put, store_element
from numba_ce.cpu.exp import (
    BIAS,
    EXPONENT_BIAS,
    LN2,
    LOG2E,
    MAGIC,
    exp_scaled,
    soft_cap,
    soft_cap_derivative,
)
from numba_ce.cpu.jit import inner, smaller
from numba_ce.cpu.log import LN2_HI, LN2_LO, log1p
from numba_ce.cpu.measure import ZERO_REFERENCE
from numba_ce.cpu.plan import locate, locate_sixteen
from numba_ce.cpu.targets import (
    BAD,
    class_weight,
    index_target,
    load_weight,
    neighbours,
    sixteen_targets,
)
from numba_ce.cpu.tile import reduction_of
from numba_ce.cpu.turn import ROWS, load_turned, store_turned
from numba_ce.cpu.vector import (
    VECTOR_BYTES,
    absolute,
    as_float32,
    first_lanes,
    fma,
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

MINUS_INF = np.float32(-np.inf)
F32_0, F32_1, F32_INF, F32_NAN = (np.float32(v) for v in (0, 1, np.inf, np.nan))
EXPONENT = EXPONENT_BIAS[KINDS["float32"][1]] + BIAS
LOWEST = np.float32(-(EXPONENT - 1) * float(LN2))
NEAR = np.float32(ZERO_REFERENCE[KINDS["float32"][1]])
MAGIC_F32 = MAGIC[KINDS["float32"][1]]
LOG2E_F32, LN2_F32 = np.float32(LOG2E), np.float32(LN2)
F64_EXPONENT = 1023
F64_LOWEST = -1022 * float(LN2)
UNBIAS = 2.0**-BIAS
IGNORED_F32, BAD_F32 = np.float32(-1), np.float32(-2)
NARROW_CLASSES = 64
# A factor below 2**-100 is a float32 times 2**-100; one above 2**100 times 2**100
LARGE, SMALL = 2.0**100, 2.0**-100


class Lanes(NamedTuple):
    """Addresses in a worker's memory: sixteen rows at a time."""

    targets: int  # float32 (16,); -1: the row does not count, -2: no such class
    weights: int  # float64 (16,): s_i
    class_weights: int  # float64 (16,): w_y
    tile: int  # float32 (C, 16), then padding to whole blocks
    logits: int  # the same: a copy of the logits for the soft cap


def narrow_bytes(n_classes):
    """Bytes a worker needs."""
    padded = -(-n_classes // ROWS) * ROWS
    return 6 * VECTOR_BYTES + 2 * padded * VECTOR_BYTES


@inner
def cut_up(work, n_classes):
    """A worker's memory, which begins at a multiple of VECTOR_BYTES."""
    start = work.exps
    tile = start + 5 * VECTOR_BYTES
    padded = (n_classes + ROWS - 1) // ROWS * ROWS
    return Lanes(
        start,
        start + VECTOR_BYTES,
        start + 3 * VECTOR_BYTES,
        tile,
        tile + padded * VECTOR_BYTES,
    )


# ---------------------------------------------------------------- rows in and out


@lru_cache
def tile_functions(kind, out_kind, block):
    """`read_tile` and `write_tile` between sixteen rows and ``tile[class][row]``."""
    size, out_size = KINDS[kind][0] // 8, KINDS[out_kind][0] // 8
    is_float32, writes_float32 = kind == "float32", out_kind == "float32"

    @inner
    def read_tile(plan, first, count, tile):
        """Rows first .. first + count; the lanes of rows that are not there hold anything."""
        n_classes, step, swapped = plan.n_classes, plan.logits_step, plan.logits_swapped
        offsets, steps, even = locate_sixteen(plan, first)
        source, stride = plan.logits + offsets[0], steps[0]
        whole = even and count == ROWS and not swapped
        if whole and step == size:
            for c in range(0, n_classes, ROWS):
                n = smaller(ROWS, n_classes - c)
                load_turned(kind, block, source + c * size, stride, n, tile + c * VECTOR_BYTES)
        elif is_float32 and whole and stride == size:
            for c in range(n_classes):
                store(tile + c * VECTOR_BYTES, load(source + c * step, F32_0))
        else:
            for i in range(count):
                source = plan.logits + locate(plan, first + i)[0]
                for c in range(n_classes):
                    value = load_element(kind, source + c * step, swapped)
                    put(tile + c * VECTOR_BYTES + i * 4, value)

    @inner
    def write_tile(plan, first, count, tile):
        """Rows first .. first + count of the gradient."""
        n_classes, step, swapped = plan.n_classes, plan.grad_step, plan.grad_swapped
        offsets, steps, even = locate_sixteen(plan, first)
        target, stride = plan.grad + offsets[3], steps[3]
        whole = even and count == ROWS and not swapped
        if whole and step == out_size:
            for c in range(0, n_classes, ROWS):
                n, at = smaller(ROWS, n_classes - c), tile + c * VECTOR_BYTES
                store_turned(out_kind, block, target + c * out_size, stride, n, at)
        elif writes_float32 and whole and stride == out_size:
            for c in range(n_classes):
                store(target + c * step, load(tile + c * VECTOR_BYTES, F32_0))
        else:
            for i in range(count):
                target = plan.grad + locate(plan, first + i)[3]
                for c in range(n_classes):
                    value = get(tile + c * VECTOR_BYTES + i * 4, F32_0)
                    store_element(out_kind, target + c * step, value, swapped)

    return read_tile, write_tile


@inner
def read_targets(plan, first, count, lanes):
    """Target, s_i and w_y of sixteen rows; weights are 0 for an ignored row, NaN for a bad one."""
    offsets, steps, even = locate_sixteen(plan, first)
    if count == ROWS and neighbours(plan, offsets, steps, even):
        store(lanes.targets, sixteen_targets(plan, offsets[1]))
    else:
        store(lanes.targets, splat(IGNORED_F32))
        for i in range(count):
            target = index_target(plan, locate(plan, first + i)[1], 0)
            put(
                lanes.targets + i * 4,
                BAD_F32 if target.status == BAD else np.float32(target.index),
            )
    y = load(lanes.targets, F32_0)
    one = select(y == BAD_F32, F32_NAN, select(y < F32_0, F32_0, splat(F32_1)))
    for address in (lanes.weights, lanes.class_weights):
        store(address, low_as_float64(one))
        store(address + VECTOR_BYTES, high_as_float64(one))
    if plan.class_weight != 0:
        for i in range(count):
            index = get(lanes.targets + i * 4, F32_0)
            if index >= F32_0:
                put(lanes.class_weights + i * 8, class_weight(plan, np.int64(index)))
    if plan.sample_weight != 0:
        at = offsets[2]
        for i in range(count):
            if not even:
                at = locate(plan, first + i)[2]
            if get(lanes.targets + i * 4, F32_0) >= F32_0:
                weight = load_weight(plan, at)
                put(lanes.weights + i * 8, weight)
                if weight == 0.0:
                    put(lanes.targets + i * 4, IGNORED_F32)
                    put(lanes.class_weights + i * 8, 0.0)
            at += steps[2]


# ---------------------------------------------------------------- sixteen rows, finished


@inner
def exp64(x):
    """exp of a float64 vector of numbers below 1."""
    return exp_scaled(x, 0.0, F64_EXPONENT, F64_LOWEST, None)


@inner
def times0(weight, x):
    """weight * x, where no weight makes nothing of an infinity, but not of NaN."""
    return select(weight == 0.0, select(x == x, 0.0, x), weight * x)


class FinishedRows(NamedTuple):
    """Eight rows in float64 vectors; see `_row.finish`."""

    surprise: float
    above: float
    rest: float
    p_k: float
    factor: float  # p_j = stored exponential * factor
    lse: float


@inner
def finish_rows(total, row_max, t, reference, power, over_temperature):
    """total : sum of the stored exponentials of the other classes, NaN for a spoilt row."""
    d = (t - row_max) * over_temperature
    others = d < 0.0
    origin = select(others, row_max, t)
    away = (reference - origin) * over_temperature
    away = fma(power, LN2_LO, fma(power, LN2_HI, away))
    # Above 1 only where all others are masked, and total is 0
    to_origin = exp64(select(away < 1.0, away, 0.0)) * UNBIAS
    # d is NaN where target and maximum are infinite, so that no finite class is there
    sum_exp = select(d == d, total, math.nan) * to_origin
    small = exp64(select(others, d, 0.0))
    inverse = splat(1.0) / (sum_exp + small)
    log = log1p(select(others, (sum_exp - splat(1.0)) + small, sum_exp))
    zero = splat(0.0)
    return FinishedRows(
        log - select(others, d, zero),
        log + select(others, zero, d),
        sum_exp * inverse,
        small * inverse,
        to_origin * inverse,
        fma(origin, over_temperature, log),
    )


@inner
def as_two_factors(low, high):
    """float64 factors of sixteen rows as two float32 vectors whose product they are."""
    up_low, up_high = raise_of(low), raise_of(high)
    down_low, down_high = splat(1.0) / up_low, splat(1.0) / up_high
    return as_float32(low * up_low, high * up_high), as_float32(down_low, down_high)


@inner
def raise_of(factor):
    """The power of two that makes a float32 of a factor."""
    size = absolute(factor)
    return select(size < SMALL, LARGE, select(size > LARGE, SMALL, splat(1.0)))


@lru_cache
def scale_finder(tempered):
    """`measure.choose` for sixteen rows."""

    @inner
    def scales(plan, row_max):
        """Reference, power, and the bounds of `exp_scaled`; 0 and 0 for a row of -inf."""
        scaled = row_max
        if tempered:
            scaled = row_max * np.float32(1.0 / plan.temperature)
        power = fma(scaled, LOG2E_F32, MAGIC_F32) - MAGIC_F32
        near, masked = absolute(scaled) < NEAR, row_max == MINUS_INF
        power = select(near, power, F32_0)
        reference = select(near, splat(F32_0), select(masked, F32_0, row_max))
        lowest = fma(power, LN2_F32, LOWEST)
        if tempered:
            lowest = lowest * np.float32(plan.temperature)
        return reference, power, splat(np.float32(BIAS)) - power, lowest

    return scales


@lru_cache
def exp_summer(tempered, keep):
    """The function that turns a tile into exponentials, and adds them up."""

    @inner
    def sum_exps(plan, tile, end, row_max, scale):
        """Sums of the lower and the upper eight rows; the exponentials stay if they are kept."""
        reference, _, exponent, lowest = scale
        if tempered:
            constants = reduction_of(plan.tempered, np.float32)
        else:
            constants = None
        low, high = splat(0.0), splat(0.0)
        for at in range(tile, end, VECTOR_BYTES):
            e = exp_scaled(load(at, F32_0), reference, exponent, lowest, constants)
            low, high = low + low_as_float64(e), high + high_as_float64(e)
            if keep:
                store(at, e)
        return low, high

    return sum_exps


@inner
def finish_sixteen(low, high, row_max, t, scale, over_temperature):
    """Two times `finish_rows`."""
    reference, power, _, _ = scale
    broken = select(t < F32_INF, splat(F32_0), F32_NAN)
    return (
        finish_rows(
            low + low_as_float64(broken),
            low_as_float64(row_max),
            low_as_float64(t),
            low_as_float64(reference),
            low_as_float64(power),
            over_temperature,
        ),
        finish_rows(
            high + high_as_float64(broken),
            high_as_float64(row_max),
            high_as_float64(t),
            high_as_float64(reference),
            high_as_float64(power),
            over_temperature,
        ),
    )


# ---------------------------------------------------------------- the operations


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
    def sum_smoothed(plan, lanes, end, y, row_max):
        """Sums of q_c and of q_c (m - z_c) over the other classes, each for eight rows twice."""
        pivot = select(row_max == MINUS_INF, F32_0, row_max)
        q_low, q_high, a_low, a_high = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        c = 0
        for at in range(lanes.tile, end, VECTOR_BYTES):
            q = select(y == np.float32(c), F32_0, splat(shared_weight(plan, c)))
            a = select(q == F32_0, F32_0, q * (pivot - load(at, F32_0)))
            q_low, q_high = q_low + low_as_float64(q), q_high + high_as_float64(q)
            a_low, a_high = a_low + low_as_float64(a), a_high + high_as_float64(a)
            c += 1
        return q_low, q_high, a_low, a_high

    @inner
    def weigh(plan, row, s, w, q_rest, a_rest):
        """Eight losses, g_k and the factor of the exponentials; see `_row.row_loss` and so on."""
        q = w
        if smoothing:
            q = w * (1.0 - plan.smoothing + plan.smoothing / plan.all_classes)
        loss, alpha, g = times0(q, row.surprise), q, splat(0.0) - q * row.rest
        if smoothing:
            over_temperature = 1.0 / plan.temperature
            loss = loss + a_rest * over_temperature + times0(q_rest, row.above)
            alpha, g = alpha + q_rest, g + times0(q_rest, row.p_k)
        if plan.z_loss != 0.0:
            z_weight = w * plan.z_loss
            loss = loss + times0(z_weight, row.lse * row.lse)
            extra = times0(z_weight, row.lse * 2.0)
            alpha, g = alpha + extra, g + extra * row.p_k
        scale = s * (plan.grad_scale / plan.temperature)
        return s * loss, scale * g, scale * alpha * row.factor

    @inner
    def write_gradient(plan, first, count, lanes, end, y, g_k, f, power):
        """The tile of exponentials as gradients."""
        scale = splat(F32_0)
        if smoothing:
            over = plan.grad_scale / plan.temperature
            low, high = load(lanes.weights, 0.0), load(lanes.weights + VECTOR_BYTES, 0.0)
            scale = as_float32(low * over, high * over)
        c = 0
        for at in range(lanes.tile, end, VECTOR_BYTES):
            g = load(at, F32_0) * f * power
            if smoothing:
                g = g - scale * shared_weight(plan, c)
            g = select(y == np.float32(c), g_k, g)
            if softcap:
                capping = reduction_of(plan.capping, np.float32)
                g = g * soft_cap_derivative(load(at + (lanes.logits - lanes.tile), F32_0), capping)
            store(at, g)
            c += 1
        write_tile(plan, first, count, lanes.tile)

    @inner
    def clear_gradient(plan, first, count, lanes, end):
        for at in range(lanes.tile, end, VECTOR_BYTES):
            store(at, splat(F32_0))
        write_tile(plan, first, count, lanes.tile)

    @inner
    def do_rows(plan, first, count, lanes):
        """Returns the losses of the lower and the upper eight rows, 0 where there is no row."""
        end = lanes.tile + plan.n_classes * VECTOR_BYTES
        read_tile(plan, first, count, lanes.tile)
        read_targets(plan, first, count, lanes)
        y = load(lanes.targets, F32_0)
        row_max, t = part_targets(plan, lanes, end, y)
        scale = find_scale(plan, row_max)
        q_low = q_high = a_low = a_high = splat(0.0)
        if smoothing:
            q_low, q_high, a_low, a_high = sum_smoothed(plan, lanes, end, y, row_max)
        low, high = sum_exps(plan, lanes.tile, end, row_max, scale)
        rows_low, rows_high = finish_sixteen(low, high, row_max, t, scale, 1.0 / plan.temperature)
        w, s = lanes.class_weights, lanes.weights
        loss_low, g_low, f_low = weigh(plan, rows_low, load(s, 0.0), load(w, 0.0), q_low, a_low)
        w, s = w + VECTOR_BYTES, s + VECTOR_BYTES
        loss_high, g_high, f_high = weigh(
            plan, rows_high, load(s, 0.0), load(w, 0.0), q_high, a_high
        )
        if plan.loss != 0:
            here = first_lanes(count, F32_0)
            store_lanes(plan.loss + first * 4, here, as_float32(loss_low, loss_high))
        if wants_grad:
            if plan.grad_scale == 0.0:
                clear_gradient(plan, first, count, lanes, end)
            else:
                f, power = as_two_factors(f_low, f_high)
                g_k = as_float32(g_low, g_high)
                write_gradient(plan, first, count, lanes, end, y, g_k, f, power)
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
        read_tile(plan, first, count, lanes.tile)
        peak, k, poison = find_peaks(lanes.tile, end)
        reference, power, exponent, lowest = scale = find_scale(plan, peak)
        low, high, c = splat(0.0), splat(0.0), F32_0
        for at in range(lanes.tile, end, VECTOR_BYTES):
            x = select(k == c, MINUS_INF, load(at, F32_0))
            e = exp_scaled(x, reference, exponent, lowest, None)
            low, high = low + low_as_float64(e), high + high_as_float64(e)
            if is_softmax:
                store(at, e)
            c += F32_1
        # Nothing but the largest class is left out: the others are relative to it
        rows_low, rows_high = finish_sixteen(low, high, peak, peak, scale, 1.0)
        if is_softmax:
            f, down = as_two_factors(rows_low.factor, rows_high.factor)
            p_k, c = as_float32(rows_low.p_k, rows_high.p_k), F32_0
            for at in range(lanes.tile, end, VECTOR_BYTES):
                store(at, select(k == c, p_k, load(at, F32_0) * f * down))
                c += F32_1
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
            write_tile(plan, first, count, lanes.tile)

    @inner
    def do_block(plan, first, last, work):
        lanes = cut_up(work, plan.n_classes)
        for row in range(first, last, ROWS):
            do_rows(plan, row, smaller(ROWS, last - row), lanes)
        return 0.0

    return do_block
