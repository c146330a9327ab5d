"""What a row is told to be: its target, its weights, and whether it counts at all."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inner, smaller
from numba_ce.cpu.plan import locate, locate_rows
from numba_ce.cpu.rows.effective_targets import class_weight, probability_reader, smoothed
from numba_ce.cpu.rows.measure import peak_finder
from numba_ce.cpu.rows.tile import real_type, reduction_of
from numba_ce.cpu.simd.element import KINDS, get, load_element, load_indices, load_integer, put
from numba_ce.cpu.simd.exp import power_of_two, soft_cap_and_slope, two_sum
from numba_ce.cpu.simd.memory import (
    gather_float64,
    load_rows,
    prefetch,
)
from numba_ce.cpu.simd.vector import (
    as_float64,
    lane,
    select,
    splat,
    splat_rows,
    sum_of_lanes,
)
from numba_ce.cpu.simd.width import ROWS_ACROSS

KEPT, IGNORED, BAD = 0, 1, 2
# In the place of a class, where rows are done many at a time
IGNORED_TARGET, BAD_TARGET = -1.0, -2.0
FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = range(len(KINDS))  # in the order of KINDS
TARGETS_AHEAD = 2048  # bytes by which prefetches run ahead


class Target(NamedTuple):
    """What a row is told to be."""

    status: int  # KEPT, IGNORED or BAD
    index: int  # of the class left out, in this shard; -1: not here
    weight: float  # s_i
    q: float  # q_k without s_i
    z_weight: float  # v_i


@inner
def float16_of(bits):
    """The number that the bits of a float16 stand for; not every processor has a conversion."""
    exponent, fraction = (bits >> 10) & 31, np.float64(bits & 1023)
    if exponent == 31:
        size = math.inf if fraction == 0.0 else math.nan
    elif exponent == 0:
        size = fraction * 2.0**-24
    else:
        size = (fraction + 1024.0) * power_of_two(exponent - 25)
    return -size if bits & 0x8000 else size


@inner
def load_weight(plan, offset):
    """s_i as float64; 1 without sample weights."""
    if plan.sample_weight == 0:
        return 1.0
    address, swapped = plan.sample_weight + offset, plan.sample_weight_swapped
    if plan.sample_weight_kind == FLOAT16:
        return float16_of(load_integer(address, 2, False, swapped))
    if plan.sample_weight_kind == BFLOAT16:
        return np.float64(load_element("bfloat16", address, swapped))
    if plan.sample_weight_kind == FLOAT32:
        return np.float64(load_element("float32", address, swapped))
    return load_element("float64", address, swapped)


@inner
def index_target(plan, targets_offset, weight_offset):
    """The `Target` of a row with a class index; q without the smoothed part of the others."""
    y = load_integer(
        plan.targets + targets_offset,
        plan.targets_bytes,
        plan.targets_signed,
        plan.targets_swapped,
    )
    if plan.has_ignore_index and y == plan.ignore_index:
        return Target(IGNORED, -1, 0.0, 0.0, 0.0)
    if y < 0 or y >= plan.all_classes:
        return Target(BAD, -1, math.nan, math.nan, math.nan)
    s = load_weight(plan, weight_offset)
    k = y - plan.class_offset
    here = 0 <= k < plan.n_classes
    w = class_weight(plan, k) if here else 0.0
    q = smoothed(1.0, plan.smoothing, plan.all_classes, w)
    return Target(KEPT if s != 0.0 else IGNORED, k if here else -1, s, q, w)


@inner
def note_weight(plan, row):
    """The weight of a row in the mean, s_i w_y or s_i; notes the first bad target of its block."""
    _, targets_at, weight_at, _, _ = locate(plan, row)
    if plan.targets_bytes == 0:  # probabilities
        return load_weight(plan, weight_at)
    target = index_target(plan, targets_at, weight_at)
    if target.status == BAD:
        bad = plan.block_bad + row // plan.rows_per_block * 8
        if get(bad, np.int64(0)) == 0:
            put(bad, np.int64(row + 1))
    return target.weight * target.z_weight if target.status == KEPT else 0.0


@inner
def neighbours(plan, steps, even):
    """Whether `load_indices` can read the targets of the next rows across."""
    return even and plan.targets_bytes != 0 and steps[1] == plan.targets_bytes


@inner
def targets_of_rows(plan, offset):
    """The targets of rows across, see `load_indices`."""
    upcoming = plan.targets + offset + TARGETS_AHEAD
    prefetch(upcoming)
    prefetch(upcoming + 64)
    return load_indices(
        plan.targets + offset,
        plan.targets_bytes,
        plan.targets_signed,
        plan.targets_swapped,
        plan.ignore_index,
        plan.has_ignore_index,
        plan.all_classes,
    )


@inner
def weights_are_neighbours(plan, steps):
    """Whether `weights_of_rows` can read the sample weights of the next rows across."""
    kind, step = plan.sample_weight_kind, steps[2]
    floats = (kind == FLOAT32 and step == 4) or (kind == FLOAT64 and step == 8)
    return plan.sample_weight == 0 or (floats and not plan.sample_weight_swapped)


@inner
def weights_of_rows(plan, offset):
    """s_i of rows across, neighbours in memory, as float64; 1 without sample weights."""
    if plan.sample_weight == 0:
        return splat_rows(1.0)
    source = plan.sample_weight + offset
    if plan.sample_weight_kind == FLOAT64:
        return load_rows(source, 0.0)
    return as_float64(load_rows(source, np.float32(0)))


@inner
def scan(plan, first, last, work):
    """The weights of the rows of a block in the mean; notes its first bad target.

    Many at a time where they are neighbours: 0.4 ns a row on two cores.
    """
    unweighted = plan.sample_weight == 0 and plan.class_weight == 0
    indices = plan.targets_bytes != 0
    # In a shard of the classes targets may lie beyond the class weights
    in_reach = plan.class_weight == 0 or plan.n_classes == plan.all_classes
    one, zero = splat_rows(np.float32(1)), splat_rows(np.float32(0))
    kept, total, lost = zero, 0.0, 0.0
    totals, all_lost = splat_rows(0.0), splat_rows(0.0)
    for row in range(first, last, ROWS_ACROSS):
        offsets, steps, even = locate_rows(plan, row)
        whole = (
            in_reach and even and last - row >= ROWS_ACROSS and weights_are_neighbours(plan, steps)
        )
        if whole and (not indices or neighbours(plan, steps, even)):
            y = targets_of_rows(plan, offsets[1]) if indices else zero
            if sum_of_lanes(select(y == np.float32(-2), one, zero)) == 0.0:
                if unweighted:
                    kept = kept + select(y < np.float32(0), zero, one)
                    continue
                s = weights_of_rows(plan, offsets[2])
                weight = s
                if indices and plan.class_weight != 0:
                    weight = s * gather_float64(plan.class_weight, y)
                weight = select(y < np.float32(0), 0.0, select(s == 0.0, 0.0, weight))
                totals, roundings = two_sum(totals, weight)
                all_lost = all_lost + roundings
                continue
        for i in range(row, smaller(row + ROWS_ACROSS, last)):
            total, rounding = two_sum(total, note_weight(plan, i))
            lost += rounding
    for sums in (totals, all_lost):
        for i in range(ROWS_ACROSS):
            total, rounding = two_sum(total, lane(sums, i))
            lost += rounding
    if math.isinf(total) or math.isnan(lost):
        return total
    return (total + lost) + np.float64(sum_of_lanes(kept))


@lru_cache
def make_read_logit(kind, softcap):
    """The function that reads one logit as the tiles see it."""
    real = real_type(kind)

    @inner
    def read_logit(plan, source, index):
        value = load_element(kind, source + index * plan.logits_step, plan.logits_swapped)
        if softcap:
            capping = reduction_of(plan.capping, real)
            value = lane(soft_cap_and_slope(splat(value), real(plan.softcap), capping)[0], 0)
        return value

    return read_logit


@lru_cache
def make_read_target(kind, targets_kind, finds_peak):
    """The function that finds the class to leave out, and its q.

    finds_peak : with probabilities, look for the largest logit; else the index stays -1
    """
    find_peak, probability = peak_finder(kind), probability_reader(targets_kind)

    @inner
    def read_target(plan, source, targets_at, weight_at, work):
        if targets_kind is None:
            return index_target(plan, targets_at, weight_at)
        s = load_weight(plan, weight_at)
        if s == 0.0:
            return Target(IGNORED, -1, 0.0, 0.0, 0.0)
        k, q = np.int64(-1), 0.0
        if finds_peak:
            k, _ = find_peak(plan, source, work)
            q = probability(plan, plan.targets + targets_at, k)
        return Target(KEPT, k, s, q, 1.0)

    return read_target
