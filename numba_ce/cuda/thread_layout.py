"""The threads that share a row in the general kernel, and how they agree on a number.

Four arrangements of a block of THREADS:

    row      all threads take one row, neighbours taking neighbouring classes
    staged   the same, the row in shared memory meanwhile
    few      as many neighbouring rows as there are threads for, from 1 to 32 for each, in shared
             memory meanwhile
    beside   lane i of every warp takes row i of 32, the warps share out the classes: for a class
             axis that is not the last, whose neighbouring rows lie side by side

A number is agreed on in two steps: within a warp by shuffles, then across the warps through shared
memory, where each lane has a column of its own; "beside" needs only the second, "few" only the
first. Everywhere all threads of a row end up with the same bits, added in the same order in every
run.
"""

from functools import cache

import numpy as np
from numba import cuda
from numba.core import types

from numba_ce.cuda.intrinsics import inner

THREADS = 256
WARPS = THREADS // 32
ALL_LANES = 0xFFFFFFFF
STAGED = ("staged", "few")  # the arrangements that keep their rows in shared memory
FEW_CLASSES = 512  # the most of "few"
CLASSES_OF_A_LANE = 16


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


OPERATIONS = {"max": larger, "min": smaller, "sum": total}


@cache
def make_block_reducer(operation, layout="row"):
    """The function by which all threads of a row get `operation` over their float64 values."""
    operation = OPERATIONS[operation]
    in_warp = layout != "beside"

    @inner
    def reduce(value, shared):
        """shared : float64 (THREADS,), used by one reduction after the other"""
        thread = cuda.threadIdx.x
        if in_warp:
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
def make_row_reducer(operation, layout):
    """The same for any arrangement: the function (value, row, shared), `row` as of `kernel.Row`."""
    of_block, of_lanes = make_block_reducer(operation, layout), OPERATIONS[operation]
    few = layout == "few"

    @inner
    def reduce(value, row, shared):
        if not few:
            return of_block(value, shared)
        distance = row.sharing // 2
        while distance > 0:
            value = of_lanes(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
            distance //= 2
        return value

    return reduce


def doublings(n_classes):
    """How many lanes share a row of so few classes, one for each 16: 2 to this power."""
    power = 0
    while power < 5 and (CLASSES_OF_A_LANE << power) < n_classes:
        power += 1
    return power


def rows_of_block(layout, n_classes):
    """Rows that a block does at once."""
    if layout == "few":
        return THREADS >> doublings(n_classes)
    return 32 if layout == "beside" else 1


def most_rows(layout):
    """The same for the fewest classes."""
    return rows_of_block(layout, 1)


doublings_on_device = inner(doublings)


@cache
def make_row_walker(layout):
    """The function that tells a thread (row in the block, place, threads of it, rows at once)."""

    @inner
    def place(n_classes):
        thread = types.int64(cuda.threadIdx.x)
        if layout == "few":
            power = doublings_on_device(n_classes)
            sharing = types.int64(1 << power)
            return thread >> power, thread & (sharing - 1), sharing, types.int64(THREADS >> power)
        if layout == "beside":
            return thread % 32, thread // 32, np.int64(WARPS), np.int64(32)
        return np.int64(0), thread, np.int64(THREADS), np.int64(1)

    return place
