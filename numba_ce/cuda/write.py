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
from numba_ce.cuda.measure import make_weight_reader
from numba_ce.cuda.walk import (
    chunk_size,
    inside,
    make_capper,
    make_chunk_loader,
    make_chunk_storer,
    make_walker,
)


@cache
def make_gradient_writer(variant, out_kind):
    """The function that writes ``factor exp((z_j - m) / T) - q_factor q_j``, and g_k at k."""
    access = variant.access
    capped, dense = access.softcap, variant.dense
    chunk, real = chunk_size(access), KINDS[access.kind][2]
    load_chunk, store_chunk = make_chunk_loader(access), make_chunk_storer(access, out_kind)
    begin = make_walker(access)
    rate_of, exp = make_exponential(access.kind)
    cap, slope = make_capper(access.kind)
    read_weight = make_weight_reader(variant)

    @inner
    def write_gradient(
        plan, source, target, targets, row, n_classes, k, g_k, factor, q_factor, row_max, fill
    ):
        """source, targets, target : addresses of the row's logits, probabilities and gradient

        fill : whether `factor` is all there is to write
        """
        values, results = cuda.local.array(chunk, real), cuda.local.array(chunk, np.float64)
        rate = rate_of(plan.temperature)
        origin = real(row_max) if row_max > -math.inf else real(0)
        walk = begin(source, row)
        start = walk.start
        while start < n_classes:
            load_chunk(source, plan.logits_step, walk, start, n_classes, values)
            for i in range(chunk):
                j = inside(walk, start, i)
                x = cap(values[i], plan.softcap) if capped else values[i]
                result = np.float64(exp(x, origin, rate)) * factor
                if dense and 0 <= j < n_classes:
                    result -= q_factor * read_weight(plan, targets, j)
                if j == k:
                    result = g_k
                if capped:
                    result *= slope(values[i], plan.softcap)
                results[i] = factor if fill else result
            store_chunk(target, plan.grad_step, walk, start, n_classes, results)
            start += walk.advance

    return write_gradient


@cache
def make_log_softmax_writer(access, out_kind):
    """The function that writes ``(z_j - z_k) - surprise``, z_k the row's maximum."""
    chunk, real = chunk_size(access), KINDS[access.kind][2]
    load_chunk, store_chunk = make_chunk_loader(access), make_chunk_storer(access, out_kind)
    begin = make_walker(access)

    @inner
    def write_log_softmax(plan, source, target, row, n_classes, k, peak, surprise):
        values, results = cuda.local.array(chunk, real), cuda.local.array(chunk, np.float64)
        walk = begin(source, row)
        start = walk.start
        while start < n_classes:
            load_chunk(source, plan.logits_step, walk, start, n_classes, values)
            for i in range(chunk):
                below = (np.float64(values[i]) - peak) if inside(walk, start, i) != k else 0.0
                results[i] = below - surprise
            store_chunk(target, plan.grad_step, walk, start, n_classes, results)
            start += walk.advance

    return write_log_softmax


@cache
def make_hess_writer(variant, grad_kind, hess_kind):
    """The function that writes the gradient and the diagonal of the Hessian of a row."""
    access, dense = variant.access, variant.dense
    chunk, real = chunk_size(access), KINDS[access.kind][2]
    load_chunk = make_chunk_loader(access)
    store_grad, store_hess = (
        make_chunk_storer(access, grad_kind),
        make_chunk_storer(access, hess_kind, aside=True),
    )
    begin = make_walker(access)
    rate_of, exp = make_exponential(access.kind)
    read_weight = make_weight_reader(variant)

    @inner
    def write_hess(
        plan, source, grad, hess, targets, row, n_classes, k, y, g_k, g_y, h_k, factor, q_sum, s,
        row_max, fill,
    ):  # fmt: skip
        """p_j = factor exp(z_j - m); grad = s (Q p - t), hess = s max(c Q p (1 - p), floor)

        q_sum : Q; y : class whose gradient is s g_y, or -1; fill : whether `s` is all there is
        """
        values = cuda.local.array(chunk, real)
        grads, hessians = cuda.local.array(chunk, np.float64), cuda.local.array(chunk, np.float64)
        origin = real(row_max) if row_max > -math.inf else real(0)
        rate = rate_of(1.0)
        curvature, floor = q_sum * plan.hess_factor, plan.hess_floor
        walk = begin(source, row)
        start = walk.start
        while start < n_classes:
            load_chunk(source, plan.logits_step, walk, start, n_classes, values)
            for i in range(chunk):
                j = inside(walk, start, i)
                p = np.float64(exp(values[i], origin, rate)) * factor
                g, h = p * q_sum, curvature * p * (1.0 - p)
                if dense and 0 <= j < n_classes:
                    g -= read_weight(plan, targets, j)
                if j == y:
                    g = g_y
                if j == k:
                    g, h = g_k, curvature * h_k
                if h < floor:  # NaN stays NaN
                    h = floor
                grads[i] = s if fill else s * g
                hessians[i] = s if fill else s * h
            store_grad(grad, plan.grad_step, walk, start, n_classes, grads)
            store_hess(hess, plan.hess_step, walk, start, n_classes, hessians)
            start += walk.advance

    return write_hess
