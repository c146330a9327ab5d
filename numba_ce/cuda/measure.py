"""First pass over a row in the general kernel: maximum, sum of exponentials, sums of an option."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from numba_ce.cuda.exp import make_exponential
from numba_ce.cuda.intrinsics import KINDS, inner
from numba_ce.cuda.targets import class_weight, load_probability, smoothed
from numba_ce.cuda.thread_layout import make_row_reducer
from numba_ce.cuda.walk import (
    Access,
    chunk_size,
    inside,
    make_capper,
    make_chunk_loader,
    make_maximum,
    make_walker,
    minus_infinity,
)

NOWHERE = 2**52  # no class; exact in float64


class Variant(NamedTuple):
    """What of a row is measured."""

    access: Access
    dense: bool = False  # every class has a q: smoothing or probabilities
    probabilities: bool = False
    entropy: bool = False
    rank: bool = False


class Measured(NamedTuple):
    """m, S and the sums of the options over the classes that are not left out."""

    row_max: float
    sum_exp: float
    q_rest: float  # sum of q_j
    a_rest: float  # sum of q_j (m - z_j) / T
    e_rest: float  # sum of exp(z_j - m) (m - z_j)
    n_above: float  # how many z_j > t


class Peak(NamedTuple):
    """The largest logit, its first class, and the class of the first NaN (or NOWHERE)."""

    value: float
    k: int
    nan_at: int


@cache
def make_peak_finder(access):
    """The function that finds the `Peak` of a row; index 0 if nothing is above -inf."""
    load_chunk = make_chunk_loader(access)
    begin = make_walker(access)
    chunk = chunk_size(access)
    real = KINDS[access.kind][2]
    largest = make_row_reducer("max", access.layout)
    smallest = make_row_reducer("min", access.layout)
    minus_inf = minus_infinity(access.kind)

    @inner
    def find_peak(plan, source, row, n_classes, shared):
        """n_classes : of the row, or 0 to take part without looking"""
        values = cuda.local.array(chunk, real)
        best, index, nan_at = minus_inf, NOWHERE, NOWHERE
        walk = begin(source, row)
        start = walk.start
        while start < n_classes:
            load_chunk(source, plan.logits_step, walk, start, n_classes, values)
            for i in range(chunk):
                if values[i] > best:
                    best, index = values[i], inside(walk, start, i)
                if values[i] != values[i]:
                    nan_at = min(nan_at, inside(walk, start, i))
            start += walk.advance
        peak = largest(np.float64(best), row, shared)
        if best != peak:
            index = NOWHERE
        first = np.int64(smallest(np.float64(index), row, shared))
        nan_first = np.int64(smallest(np.float64(nan_at), row, shared))
        return Peak(peak, first if first < NOWHERE else np.int64(0), nan_first)

    return find_peak


@cache
def make_weight_reader(variant):
    """The function that reads q_j, without the sample weight; class indices: the smoothed part."""
    probabilities = variant.probabilities

    @inner
    def read_weight(plan, targets, j):
        t = 0.0
        if probabilities:
            t = load_probability(plan, targets, j)
        return smoothed(t, plan.smoothing, plan.all_classes, class_weight(plan, j))

    return read_weight


@cache
def make_measurer(variant):
    """The function that measures a row; every thread of the row gets the result."""
    access = variant.access
    kind, capped = access.kind, access.softcap
    dense, entropy, rank = variant.dense, variant.entropy, variant.rank
    real = KINDS[kind][2]
    load_chunk = make_chunk_loader(access)
    begin = make_walker(access)
    chunk = chunk_size(access)
    rate_of, exp = make_exponential(kind)
    maximum_of = make_maximum(kind)
    cap, _ = make_capper(kind)
    read_weight = make_weight_reader(variant)
    largest = make_row_reducer("max", access.layout)
    add_up = make_row_reducer("sum", access.layout)
    minus_inf = minus_infinity(kind)
    zero = real(0)

    @inner
    def measure(plan, source, row, n_classes, k, targets, t, shared):
        """k : class left out, or -1; t : what `n_above` is counted against

        The maximum and the sum of each thread are merged as the parts of a row: a thread that saw
        nothing but masked classes has m = -inf and adds nothing.
        """
        values = cuda.local.array(chunk, real)
        rate = rate_of(plan.temperature)
        m = minus_inf
        sum_exp = q_rest = a_rest = e_rest = n_above = 0.0
        walk = begin(source, row)
        start = walk.start
        while start < n_classes:
            load_chunk(source, plan.logits_step, walk, start, n_classes, values)
            top = m
            for i in range(chunk):
                z = minus_inf if inside(walk, start, i) == k else values[i]
                values[i] = cap(z, plan.softcap) if capped else z
                top = maximum_of(top, values[i])
            if top > m:
                if m > minus_inf:
                    shift, shrink = np.float64(top) - np.float64(m), exp(m, top, rate)
                    if entropy:
                        e_rest = (e_rest + sum_exp * shift) * shrink
                    if dense:
                        a_rest += q_rest * (shift / plan.temperature)
                    sum_exp *= shrink
                m = top
            origin = m if m > minus_inf else zero
            chunk_sum = chunk_entropy = zero
            for i in range(chunk):
                e = exp(values[i], origin, rate)
                chunk_sum += e
                if entropy and values[i] > minus_inf:
                    chunk_entropy += e * (origin - values[i])
                if rank and values[i] > t:
                    n_above += 1.0
                if dense:
                    j = inside(walk, start, i)
                    if 0 <= j < n_classes and j != k:
                        q = read_weight(plan, targets, j)
                        if q != 0.0:
                            gap = math.inf
                            if values[i] != minus_inf:
                                gap = np.float64(origin) - np.float64(values[i])
                            q_rest += q
                            a_rest += q * (gap / plan.temperature)
            sum_exp += np.float64(chunk_sum)
            e_rest += np.float64(chunk_entropy)
            start += walk.advance

        row_max = largest(np.float64(m), row, shared)
        shift, shrink = 0.0, 1.0
        if m > minus_inf and row_max > np.float64(m):
            shift, shrink = row_max - np.float64(m), np.float64(exp(m, real(row_max), rate))
        if entropy:
            e_rest = add_up((e_rest + sum_exp * shift) * shrink, row, shared)
        if dense:
            if m > minus_inf:
                a_rest += q_rest * (shift / plan.temperature)
            a_rest = add_up(a_rest, row, shared)
            q_rest = add_up(q_rest, row, shared)
        if rank:
            n_above = add_up(n_above, row, shared)
        sum_exp = add_up(sum_exp * shrink, row, shared)
        return Measured(row_max, sum_exp, q_rest, a_rest, e_rest, n_above)

    return measure
