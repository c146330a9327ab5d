"""Eight rows in the lanes of float64 vectors, before they are finished and afterwards."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.simd.memory import store_lanes, store_whole_numbers
from numba_ce.cpu.simd.vector import first_lanes, rounded

BATCH = 8  # rows
F32_0, F64_0 = np.float32(0), np.float64(0)


class Batch(NamedTuple):
    """What is known of eight rows before they are finished: float64 vectors."""

    total: float  # of the exponentials of the classes but k, as they were stored,
    lost: float  # and what its roundings lost; float64 only
    # How they were stored, see `exp_scaled`; -inf if no class but k is alive, NaN if z_k is spoilt
    reference: float
    power: float
    row_max: float  # m
    t: float  # z_k
    k: float  # the class left out; -1: none
    q: float  # q_k
    q_rest: float  # sum of the other q_c
    a_rest: float  # sum of q_c (m - z_c) / T
    s: float  # s_i; 0: the row does not count, NaN: its target is no class
    w: float  # v_i
    y: float  # the target; -1: the row does not count, -2: no such class
    target_logit: float  # z_y
    e_total: float  # sum of the stored exponentials times (m - z_c)
    above: float  # number of classes above z_y
    poison: float  # NaN if one of the logits is, else 0


class FinishedRows(NamedTuple):
    """Eight rows in float64 vectors, see `row.make_formulas`."""

    surprise: float
    above: float
    rest: float
    p_k: float
    lse: float
    factor: tuple  # p_j = stored exponential * factor; see `Finishing.amount`


@lru_cache
def make_putters(real):
    """The functions that write results of `count` rows from the row `first`, of eight."""
    size = real().itemsize

    if real is np.float64:

        @inner
        def put_floats(address, first, count, values):
            store_lanes(address + first * size, first_lanes(count, F64_0), values)

    else:

        @inner
        def put_floats(address, first, count, values):
            here = first_lanes(count, F64_0)
            store_lanes(address + first * size, here, rounded(values, F32_0))

    @inner
    def put_integers(address, first, count, values):
        store_whole_numbers(address + first * 8, first_lanes(count, F64_0), values)

    return put_floats, put_integers
