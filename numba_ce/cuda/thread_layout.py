"""The threads that share a row in the general kernel, and how they agree on a number.

A launch says it in two numbers of its plan, so that one kernel does for every arrangement: 2**lanes
neighbouring lanes of a warp share a row, and if `across`, so do all warps of the block.

    few classes         a lane for each 16, up to a warp; rows for all threads of the block
    more                the whole block takes one row, neighbours taking neighbouring classes
    rows side by side   lane i of every warp takes row i of 32, the warps share out the classes: for
                        a class axis that is not the last

A number is agreed on in two steps: within a warp by shuffles, then across the warps through shared
memory, where each lane has a column of its own. All threads of a row end up with the same bits,
added in the same order in every run.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda
from numba.core import types

from numba_ce.cuda.intrinsics import inner
from numba_ce.cuda.quads import add

THREADS = 256
WARPS = THREADS // 32
ALL_LANES = 0xFFFFFFFF
CLASSES_OF_A_LANE = 16


def lanes_for(n_classes):
    """How many lanes of a warp share a row of so many classes: 2 to this power."""
    return min(5, (-(-n_classes // CLASSES_OF_A_LANE) - 1).bit_length())


def rows_at_once(lanes, across):
    """Rows that a block does at once."""
    return (32 if across else THREADS) >> lanes


class Team(NamedTuple):
    """The threads of a row, and a thread among them."""

    lanes: int
    across: int
    lane: int  # of the row among those that the block does at once
    place: int  # of the thread among those of the row
    sharing: int  # threads of the row


@inner
def make_team(lanes, across):
    """The `Team` of this thread."""
    thread = types.int64(cuda.threadIdx.x)
    lane, place, sharing = thread >> lanes, thread & ((1 << lanes) - 1), types.int64(1) << lanes
    if across:
        lane, place = (thread & 31) >> lanes, place + ((thread >> 5) << lanes)
        sharing = types.int64(WARPS) << lanes
    return Team(lanes, across, lane, place, sharing)


@inner
def larger(a, b):
    """The larger one; NaN only if both are."""
    return a if a >= b or b != b else b


@inner
def smaller(a, b):
    """The smaller of two numbers."""
    return a if a <= b else b


OPERATIONS = {"max": larger, "min": smaller, "sum": add}


@cache
def make_reducer(operation):
    """The function by which all threads of a row get `operation` over their float64 values."""
    operation = OPERATIONS[operation]

    @inner
    def reduce(value, team, shared):
        """shared : float64 (THREADS,), used by one reduction after the other"""
        distance = (1 << team.lanes) >> 1
        while distance > 0:
            value = operation(value, cuda.shfl_xor_sync(ALL_LANES, value, distance))
            distance >>= 1
        if team.across:
            thread = types.uint64(cuda.threadIdx.x)  # unsigned: no look for a negative index
            cuda.syncthreads()  # whoever still reads the reduction before this one
            shared[thread] = value
            cuda.syncthreads()
            at = thread & types.uint64(31)
            value = shared[at]
            for _ in range(1, WARPS):
                at += types.uint64(32)
                value = operation(value, shared[at])
        return value

    return reduce


@inner
def tell(a, b, team, slots, n=0):
    """Two float64 of the thread at place 0, for all threads of its row.

    slots : float64 (.., 32), shared; of it this call has n and n + 1 to itself
    """
    if team.across:
        if team.place == 0:
            slots[n, team.lane] = a
            slots[n + 1, team.lane] = b
        cuda.syncthreads()
        return slots[n, team.lane], slots[n + 1, team.lane]
    cuda.syncwarp()  # what this thread has read of the row, the others may write now
    first = cuda.laneid - np.int32(team.place)
    return cuda.shfl_sync(ALL_LANES, a, first), cuda.shfl_sync(ALL_LANES, b, first)
