"""First pass over a row in the general kernel: maximum, sum of exponentials, sums of an option."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from numba_ce.cuda.exp import make_exponential
from numba_ce.cuda.intrinsics import KINDS, inner
from numba_ce.cuda.targets import load_q
from numba_ce.cuda.thread_layout import make_reducer
from numba_ce.cuda.walk import (
    MINUS_INF,
    chunk_size,
    make_capper,
    make_chunk_loader,
    make_inside,
    make_maximum,
)

NOWHERE = 2**52  # no class; exact in float64


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
    load_chunk, chunk = make_chunk_loader(access), chunk_size(access)
    real, minus_inf = KINDS[access.kind][2], MINUS_INF[access.kind]
    largest, smallest = make_reducer("max"), make_reducer("min")

    @inner
    def find_peak(plan, row, n_classes, shared):
        """n_classes : of the row, or 0 to take part without looking"""
        values = cuda.local.array(chunk, real)
        best, index, nan_at = minus_inf, NOWHERE, NOWHERE
        start = row.start
        while start < n_classes:
            load_chunk(row, start, n_classes, values)
            for i in range(chunk):
                j = start + i * row.apart
                if values[i] > best:
                    best, index = values[i], j
                if values[i] != values[i]:
                    nan_at = min(nan_at, j)
            start += row.team.sharing * chunk
        peak = largest(np.float64(best), row.team, shared)
        if best != peak:
            index = NOWHERE
        first = np.int64(smallest(np.float64(index), row.team, shared))
        nan_first = np.int64(smallest(np.float64(nan_at), row.team, shared))
        return Peak(peak, first if first < NOWHERE else np.int64(0), nan_first)

    return find_peak


@cache
def make_measurer(access, dense=False, stats=False):
    """The function that measures a row; every thread of the row gets the result.

    dense : every class has a q; stats : with `e_rest` and `n_above`
    """
    kind, capped = access.kind, access.softcap
    load_chunk, chunk = make_chunk_loader(access), chunk_size(access)
    real, minus_inf = KINDS[kind][2], MINUS_INF[kind]
    rate_of, exp = make_exponential(kind)
    maximum_of, (cap, _), inside = make_maximum(kind), make_capper(kind), make_inside(access)
    largest, add_up = make_reducer("max"), make_reducer("sum")
    zero = real(0)

    @inner
    def measure(plan, row, n_classes, k, t, shared):
        """k : class left out, or -1; t : what `n_above` is counted against

        The maximum and the sum of each thread are merged as the parts of a row: a thread that saw
        nothing but masked classes has m = -inf and adds nothing.
        """
        values = cuda.local.array(chunk, real)
        rate = rate_of(plan.temperature)
        m = minus_inf
        sum_exp = q_rest = a_rest = e_rest = n_above = 0.0
        start = row.start
        while start < n_classes:
            load_chunk(row, start, n_classes, values)
            top = m
            for i in range(chunk):
                z = minus_inf if start + i * row.apart == k else values[i]
                values[i] = cap(z, plan.softcap) if capped else z
                top = maximum_of(top, values[i])
            if top > m:
                if m > minus_inf:
                    shift, shrink = np.float64(top) - np.float64(m), exp(m, top, rate)
                    if stats:
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
                if stats and values[i] > minus_inf:
                    chunk_entropy += e * (origin - values[i])
                if stats and values[i] > t:
                    n_above += 1.0
                if dense:
                    j = start + i * row.apart
                    if inside(j, n_classes) and j != k:
                        q = load_q(plan, row.targets, j)
                        if q != 0.0:
                            gap = math.inf
                            if values[i] != minus_inf:
                                gap = np.float64(origin) - np.float64(values[i])
                            q_rest += q
                            a_rest += q * (gap / plan.temperature)
            sum_exp += np.float64(chunk_sum)
            e_rest += np.float64(chunk_entropy)
            start += row.team.sharing * chunk

        row_max = largest(np.float64(m), row.team, shared)
        shift, shrink = 0.0, 1.0
        if m > minus_inf and row_max > np.float64(m):
            shift, shrink = row_max - np.float64(m), np.float64(exp(m, real(row_max), rate))
        if stats:
            e_rest = add_up((e_rest + sum_exp * shift) * shrink, row.team, shared)
            n_above = add_up(n_above, row.team, shared)
        if dense:
            if m > minus_inf:
                a_rest += q_rest * (shift / plan.temperature)
            a_rest = add_up(a_rest, row.team, shared)
            q_rest = add_up(q_rest, row.team, shared)
        sum_exp = add_up(sum_exp * shrink, row.team, shared)
        return Measured(row_max, sum_exp, q_rest, a_rest, e_rest, n_above)

    return measure
