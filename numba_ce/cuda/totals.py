"""Sums over the rows: the check of the targets, and losses added up. Two small kernels.

Each block adds up a fixed part of the rows, one block then adds the parts in order, so that a sum
has the same bits in every run; where there is one part, one launch is enough.
Nothing goes to the host: the gradient's kernel reads the sum of the weights where it was left.
"""

import math

import numpy as np
from numba import cuda
from numba.core import types

from numba_ce.cuda.finish import put_result
from numba_ce.cuda.intrinsics import load_f64, load_i64, store
from numba_ce.cuda.plan import NO_ROW, locate
from numba_ce.cuda.targets import BAD, KEPT, index_target, load_weight
from numba_ce.cuda.thread_layout import THREADS, make_reducer, make_team

MAX_PARTIALS = 1024
ROWS_PER_PARTIAL = 4 * THREADS  # at least

_sum, _min = make_reducer("sum"), make_reducer("min")


def n_partials(n_rows):
    """Into how many parts so many rows are cut; a function of their number only."""
    return max(1, min(MAX_PARTIALS, -(-n_rows // ROWS_PER_PARTIAL)))


def scan(plan):
    """The weights of the rows in the mean, s_i w_y or s_i, and the first bad target."""
    shared = cuda.shared.array(THREADS, np.float64)
    block, thread = types.int64(cuda.blockIdx.x), types.int64(cuda.threadIdx.x)
    per_block = (plan.n_rows + plan.n_partials - 1) // plan.n_partials
    row = block * per_block + thread
    end = min((block + 1) * per_block, plan.n_rows)
    weight, bad = 0.0, NO_ROW
    while row < end:
        _, targets_at, weight_at, _, _ = locate(plan, row)
        if plan.targets_bytes == 0:  # probabilities
            weight += load_weight(plan, plan.sample_weight + weight_at)
        else:
            target = index_target(plan, plan.targets + targets_at, plan.sample_weight + weight_at)
            if target.status == BAD:
                bad = min(bad, row)
            elif target.status == KEPT:
                weight += target.weight * target.z_weight
        row += THREADS
    weight = _sum(weight, make_team(5, 1), shared)
    first_bad = _min(np.float64(bad), make_team(5, 1), shared)
    if thread == 0:
        store(plan.partial + block * 8, weight)
        store(plan.partial_bad + block * 8, np.int64(first_bad))


def fold(plan):
    """`n_partials` numbers added up, a part of them for each block: into STATE after `scan`.

    Otherwise into the loss, of which each block has an entry; divided by the weight in STATE.
    """
    shared = cuda.shared.array(THREADS, np.float64)
    block, thread = types.int64(cuda.blockIdx.x), types.int64(cuda.threadIdx.x)
    per_block = (plan.n_partials + cuda.gridDim.x - 1) // cuda.gridDim.x
    i = block * per_block + thread
    end = min((block + 1) * per_block, plan.n_partials)
    value, bad = 0.0, NO_ROW
    while i < end:
        value += load_f64(plan.partial + i * 8)
        if plan.partial_bad != 0:
            bad = min(bad, load_i64(plan.partial_bad + i * 8))
        i += THREADS
    value = _sum(value, make_team(5, 1), shared)
    first_bad = _min(np.float64(bad), make_team(5, 1), shared)
    if thread != 0:
        return
    if plan.partial_bad != 0:
        store(plan.state, value)
        store(plan.state + 8, np.int64(first_bad))
        return
    if plan.state != 0:
        weight = load_f64(plan.state)
        value = value / weight if weight != 0.0 else math.nan
    put_result(plan.loss, block, plan.loss_bytes, value)
