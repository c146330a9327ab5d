"""Sixteen rows of few classes, one in each lane: in, out, their targets, and how they are finished.

The formulas of `_row` stand here once more, for vectors: eight rows at a time in float64.
"""

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
    polynomial,
)
from numba_ce.cpu.jit import inlined, inner, smaller
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
    fma,
    high_as_float64,
    load,
    low_as_float64,
    prefetch,
    prefetch_to_write,
    select,
    splat,
    store,
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
# Bytes by which prefetches run ahead of the next sixteen rows. The hardware does little of it here:
# with C = 16, 2.1 times the speed for the loss alone, 1.9 times with the gradient
READ_AHEAD, WRITE_AHEAD = 1024, 512
IGNORED_F32, BAD_F32 = np.float32(-1), np.float32(-2)
# A factor below 2**-100 is a float32 times 2**-100; one above 2**100 times 2**100
LARGE, SMALL = 2.0**100, 2.0**-100


class Place(NamedTuple):
    """Where sixteen rows are: see `plan.locate_sixteen`."""

    first: int
    count: int  # fewer than 16 at the end of a block
    offsets: tuple
    steps: tuple
    even: bool


@inlined
def place_of(plan, first, count):
    """The `Place` of `count` rows."""
    offsets, steps, even = locate_sixteen(plan, first)
    return Place(first, count, offsets, steps, even)


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

    @inlined
    def read_tile(plan, place, tile):
        """The rows of a place; the lanes of rows that are not there hold anything."""
        n_classes, step, swapped = plan.n_classes, plan.logits_step, plan.logits_swapped
        source, stride = plan.logits + place.offsets[0], place.steps[0]
        whole = place.even and place.count == ROWS and not swapped
        longest = 2 * ROWS * n_classes * size  # where rows are far apart, prefetches miss them
        if whole and step == size:
            following = source + ROWS * stride + READ_AHEAD
            for line in range(0, smaller(ROWS * stride, longest), VECTOR_BYTES):
                prefetch(following + line)
            for c in range(0, n_classes, ROWS):
                n = smaller(ROWS, n_classes - c)
                load_turned(kind, block, source + c * size, stride, n, tile + c * VECTOR_BYTES)
        elif is_float32 and whole and stride == size:
            for c in range(n_classes):
                store(tile + c * VECTOR_BYTES, load(source + c * step, F32_0))
        else:
            for i in range(place.count):
                source = plan.logits + locate(plan, place.first + i)[0]
                for c in range(n_classes):
                    value = load_element(kind, source + c * step, swapped)
                    put(tile + c * VECTOR_BYTES + i * 4, value)

    @inlined
    def write_tile(plan, place, tile):
        """The rows of a place of the gradient."""
        n_classes, step, swapped = plan.n_classes, plan.grad_step, plan.grad_swapped
        target, stride = plan.grad + place.offsets[3], place.steps[3]
        whole = place.even and place.count == ROWS and not swapped
        longest = 2 * ROWS * n_classes * out_size
        if whole and step == out_size:
            following = target + ROWS * stride + WRITE_AHEAD
            for line in range(0, smaller(ROWS * stride, longest), VECTOR_BYTES):
                prefetch_to_write(following + line)
            for c in range(0, n_classes, ROWS):
                n, at = smaller(ROWS, n_classes - c), tile + c * VECTOR_BYTES
                store_turned(out_kind, block, target + c * out_size, stride, n, at)
        elif writes_float32 and whole and stride == out_size:
            for c in range(n_classes):
                store(target + c * step, load(tile + c * VECTOR_BYTES, F32_0))
        else:
            for i in range(place.count):
                target = plan.grad + locate(plan, place.first + i)[3]
                for c in range(n_classes):
                    value = get(tile + c * VECTOR_BYTES + i * 4, F32_0)
                    store_element(out_kind, target + c * step, value, swapped)

    return read_tile, write_tile


@inlined
def read_targets(plan, place, lanes):
    """Target, s_i and w_y of sixteen rows; weights are 0 for an ignored row, NaN for a bad one."""
    first, count = place.first, place.count
    if count == ROWS and neighbours(plan, place.steps, place.even):
        store(lanes.targets, sixteen_targets(plan, place.offsets[1]))
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
        at = place.offsets[2]
        for i in range(count):
            if not place.even:
                at = locate(plan, first + i)[2]
            if get(lanes.targets + i * 4, F32_0) >= F32_0:
                weight = load_weight(plan, at)
                put(lanes.weights + i * 8, weight)
                if weight == 0.0:
                    put(lanes.targets + i * 4, IGNORED_F32)
                    put(lanes.class_weights + i * 8, 0.0)
            at += place.steps[2]


# ---------------------------------------------------------------- sixteen rows, finished


@inner
def exp64(x):
    """exp of a float64 vector of numbers below 1."""
    return exp_scaled(x, 0.0, F64_EXPONENT, F64_LOWEST, None)


@inner
def exp_near_zero(x):
    """exp of a float64 vector between -ln(2) / 2 and ln(2) / 2."""
    return fma(x * x, polynomial(x), x) + 1.0


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
    away = (reference - row_max) * over_temperature
    away = fma(power, LN2_LO, fma(power, LN2_HI, away))
    to_max = exp_near_zero(select(absolute(away) < 1.0, away, 0.0)) * UNBIAS
    below = exp64(splat(0.0) - absolute(d))
    one = splat(1.0)
    to_origin, small = to_max * select(others, one, below), select(others, below, one)
    # Where no class is alive d is NaN, and with it to_origin
    sum_exp = total * to_origin
    inverse = splat(1.0) / (sum_exp + small)
    log = log1p(select(others, (sum_exp - splat(1.0)) + small, sum_exp))
    zero = splat(0.0)
    return FinishedRows(
        log - select(others, d, zero),
        log + select(others, zero, d),
        sum_exp * inverse,
        small * inverse,
        to_origin * inverse,
        fma(select(others, row_max, t), over_temperature, log),
    )


@inner
def as_two_factors(low, high):
    """float64 factors of sixteen rows as two float32 vectors whose product they are."""
    up_low, down_low = raised(low)
    up_high, down_high = raised(high)
    return as_float32(low * up_low, high * up_high), as_float32(down_low, down_high)


@inner
def raised(factor):
    """The power of two that makes a float32 of a factor, and its inverse."""
    size, one = absolute(factor), splat(1.0)
    tiny, huge = size < SMALL, size > LARGE
    up = select(tiny, LARGE, select(huge, SMALL, one))
    return up, select(tiny, SMALL, select(huge, LARGE, one))


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
    def sum_exps(plan, tile, end, scale):
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


@inlined
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
