"""Second pass over a row in the general kernel: gradient, probabilities, Hessian.

Each element is combined in float64 and rounded once; a thread writes what it has just read, so that
the output may be the logits themselves.
"""

import math
from functools import cache

import numpy as np
from numba import cuda

from numba_ce.cuda.exp import make_exponential
from numba_ce.cuda.intrinsics import KINDS, inner
from numba_ce.cuda.targets import load_q
from numba_ce.cuda.walk import (
    chunk_size,
    make_capper,
    make_chunk_loader,
    make_chunk_storer,
    make_inside,
    staged_out,
)


@cache
def make_writer(kernel, element):
    """The function that writes ``element(plan, row, z, j, facts)`` for each class.

    element : gives a float64 of the gradient and one of the Hessian, if that is written too
    """
    access, hess = kernel.access, kernel.hess_kind is not None
    chunk, real = chunk_size(access), KINDS[access.kind][2]
    through = staged_out(access, kernel.grad_kind)
    load_chunk = make_chunk_loader(access)
    store_grad = make_chunk_storer(access, kernel.grad_kind or "float32", through)
    store_hess = make_chunk_storer(access, kernel.hess_kind or "float32", False)

    @inner
    def write(plan, row, n_classes, facts):
        values, grads = cuda.local.array(chunk, real), cuda.local.array(chunk, np.float64)
        hessians = cuda.local.array(chunk, np.float64)
        start = row.start
        while start < n_classes:
            load_chunk(row, start, n_classes, values)
            for i in range(chunk):
                j = start + i * row.apart
                grads[i], hessians[i] = element(plan, row, values[i], j, facts)
            store_grad(row.grad, row.grad_step, row, start, n_classes, grads)
            if hess:
                store_hess(row.hess, plan.hess_step, row, start, n_classes, hessians)
            start += row.team.sharing * chunk

    return write


@cache
def make_gradient_writer(kernel):
    """The function that writes ``factor exp((z_j - m) / T) - q_factor q_j``, and g_k at k."""
    access, dense = kernel.access, kernel.dense
    capped, real = access.softcap, KINDS[access.kind][2]
    (rate_of, exp), inside = make_exponential(access.kind), make_inside(access)
    cap, slope = make_capper(access.kind)

    @inner
    def element(plan, row, z, j, facts):
        k, g_k, factor, q_factor, origin, rate, fill = facts
        x = cap(z, plan.softcap) if capped else z
        result = np.float64(exp(x, origin, rate)) * factor
        if dense and inside(j, plan.n_classes):
            result -= q_factor * load_q(plan, row.targets, j)
        if j == k:
            result = g_k
        if capped:
            result *= slope(z, plan.softcap)
        return factor if fill else result, 0.0

    write = make_writer(kernel, element)

    @inner
    def write_gradient(plan, row, n_classes, k, g_k, factor, q_factor, row_max, fill):
        """fill : whether `factor` is all there is to write"""
        origin = real(row_max) if row_max > -math.inf else real(0)
        rate = rate_of(plan.temperature)
        write(plan, row, n_classes, (k, g_k, factor, q_factor, origin, rate, fill))

    return write_gradient


@cache
def make_log_softmax_writer(kernel):
    """The function that writes ``(z_j - z_k) - surprise``, z_k the row's maximum."""

    @inner
    def element(plan, row, z, j, facts):
        k, peak, surprise = facts
        return ((np.float64(z) - peak) if j != k else 0.0) - surprise, 0.0

    return make_writer(kernel, element)


@cache
def make_hess_writer(kernel):
    """The function that writes the gradient and the diagonal of the Hessian of a row."""
    access, dense = kernel.access, kernel.dense
    real = KINDS[access.kind][2]
    (rate_of, exp), inside = make_exponential(access.kind), make_inside(access)

    @inner
    def element(plan, row, z, j, facts):
        k, y, g_k, g_y, h_k, factor, q_sum, s, origin, rate, fill = facts
        p = np.float64(exp(z, origin, rate)) * factor
        curvature = q_sum * plan.hess_factor
        g, h = p * q_sum, curvature * p * (1.0 - p)
        if dense and inside(j, plan.n_classes):
            g -= load_q(plan, row.targets, j)
        if j == y:
            g = g_y
        if j == k:
            g, h = g_k, curvature * h_k
        if h < plan.hess_floor:  # NaN stays NaN
            h = plan.hess_floor
        return (s, s) if fill else (s * g, s * h)

    write = make_writer(kernel, element)

    @inner
    def write_hess(plan, row, n_classes, k, y, g_k, g_y, h_k, factor, q_sum, s, row_max, fill):
        """p_j = factor exp(z_j - m); grad = s (Q p - t), hess = s max(c Q p (1 - p), floor)

        q_sum : Q; y : class whose gradient is s g_y, or -1; fill : whether `s` is all there is
        """
        origin, rate = real(row_max) if row_max > -math.inf else real(0), rate_of(1.0)
        facts = k, y, g_k, g_y, h_k, factor, q_sum, s, origin, rate, fill
        write(plan, row, n_classes, facts)

    return write_hess
