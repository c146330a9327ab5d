"""The threads that share a row in the general kernel, and how they agree on a number.

Two arrangements of a block of THREADS:

    along classes   all threads take one row, neighbours taking neighbouring classes
    along rows      lane i of every warp takes row i of 32, the warps share out the classes: for a
                    class axis that is not the last, whose neighbouring rows lie side by side

A number is agreed on in two steps: within a warp by shuffles (along classes only), then across
the warps through shared memory, where each lane has a column of its own. In both arrangements all
threads of a row end up with the same bits, added in the same order in every run.
"""

from functools import cache

import numpy as np
from numba import cuda
from numba.core import types

from numba_ce.cuda.intrinsics import inner

THREADS = 256
WARPS = THREADS // 32
ALL_LANES = 0xFFFFFFFF


@inner
def larger(a, b):
    """The larger one; NaN only if both are."""
    return a if a >= b or b != b else b


@inner
def smaller(a, b):
    """The smaller of two numbers."""
    return a if a <= b else b


@inner
def total(a, b):
    """a + b"""
    return a + b


@cache
def block_reducer(operation, along_rows):
    """The function by which all threads of a row get `operation` over their float64 values."""
    operation = {"max": larger, "min": smaller, "sum": total}[operation]

    @inner
    def reduce(value, shared):
        """shared : float64 (THREADS,), used by one reduction after the other"""
        thread = cuda.threadIdx.x
        if not along_rows:
            for distance in (16, 8, 4, 2, 1):
                value = operation(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
        cuda.syncthreads()  # whoever still reads the reduction before this one
        shared[thread] = value
        cuda.syncthreads()
        lane = thread % 32
        value = shared[lane]
        for warp in range(1, WARPS):
            value = operation(value, shared[warp * 32 + lane])
        return value

    return reduce


@cache
def row_walker(along_rows):
    """The function that tells a thread its row in the block, its place in it, and their number."""

    @inner
    def place():
        thread = types.int64(cuda.threadIdx.x)
        if along_rows:
            return thread % 32, thread // 32
        return np.int64(0), thread

    return place


def rows_of_block(along_rows):
    """Rows that a block does at once, and the threads that share each of them."""
    return (32, WARPS) if along_rows else (1, THREADS)
