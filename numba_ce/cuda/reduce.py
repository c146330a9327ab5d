"""How the threads of a register-resident row agree on its maximum and its sum.

A thread's part of a row is (m, S), as in docs/mathematics.md. Within a warp the maximum is agreed
on before any exponential is taken, so that the sums simply add; warps and blocks then merge their
parts. A part in which everything is masked has m = -inf, S = 0 and adds nothing.
"""

from functools import cache

import numpy as np
from numba import cuda
from numba.core import types

from numba_ce.cuda.exp import MINUS_INF, exp_minus, make_exp_below, two_difference
from numba_ce.cuda.intrinsics import (
    cluster_wait,
    inner,
    maximum_f32,
    mbarrier_wait,
    send_pair,
    shared_address,
)
from numba_ce.cuda.quads import add
from numba_ce.cuda.thread_layout import ALL_LANES

exp_below = make_exp_below("float32")


@inner
def row_factor(m, sum_exp, t, scale):
    """scale * top / bottom of `Finished` in float32: the gradient is exp(z_j - m) times it."""
    if not t < np.float32(np.inf):
        return np.float32(np.nan)
    d, lost = two_difference(t, m)
    if not abs(d) < np.float32(1e30):
        lost = np.float32(0)
    if d >= np.float32(0):
        mantissa, power = exp_minus(d, lost)
        return scale * mantissa * power / (np.float32(1) + sum_exp * (mantissa * power))
    mantissa, power = exp_minus(-d, -lost)
    return scale / (sum_exp + mantissa * power)


@cache
def make_lanes_reducer(lanes, combine):
    """The function by which neighbouring lanes combine what each has, all in the same order."""
    distances = tuple(d for d in (16, 8, 4, 2, 1) if d < lanes)

    @inner
    def agree(value):
        for distance in distances:
            value = combine(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
        return value

    return agree


largest_of_warp, sum_of_warp = make_lanes_reducer(32, maximum_f32), make_lanes_reducer(32, add)


@inner
def merge_parts(m, sum_exp):
    """What the lanes of a warp hold, merged as the parts of a row."""
    row_max = largest_of_warp(m)
    return row_max, sum_of_warp(sum_exp * np.float64(exp_below(m, row_max)))


@cache
def make_warps_merger(warps):
    """The function by which the warps of a block merge their parts."""

    @inner
    def merge(m, sum_exp, maxima, sums):
        """maxima : float32 (32,), sums : float64 (32,), both shared"""
        thread = cuda.threadIdx.x
        lane, warp = thread % 32, thread // 32
        if lane == 0:
            maxima[warp] = m
            sums[warp] = sum_exp
        cuda.syncthreads()  # every warp has left its part
        m, sum_exp = MINUS_INF, 0.0
        if lane < warps:
            m = maxima[lane]
            sum_exp = sums[lane]
        return merge_parts(m, sum_exp)

    return merge


@cache
def make_blocks_merger(cluster):
    """The function by which the blocks of a cluster merge their parts."""

    @inner
    def merge(m, sum_exp, rank, inbox, barrier):
        """inbox : float64 (2 cluster,), barrier : uint64 (1,), both shared"""
        thread = cuda.threadIdx.x
        cluster_wait()  # every block has set up its barrier
        if thread < cluster:
            to, at_barrier = shared_address(inbox, rank * 2), shared_address(barrier, 0)
            send_pair(to, at_barrier, types.uint32(thread), np.float64(m), sum_exp)
        mbarrier_wait(shared_address(barrier, 0), types.uint32(0))  # all parts have arrived here
        lane = thread % 32
        m, sum_exp = MINUS_INF, 0.0
        if lane < cluster:
            m = np.float32(inbox[2 * lane])
            sum_exp = inbox[2 * lane + 1]
        return merge_parts(m, sum_exp)

    return merge
