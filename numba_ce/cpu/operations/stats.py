"""The statistics of a row; with targets also what they say."""

import math

import numpy as np

from numba_ce.cpu.compile.jit import inlined
from numba_ce.cpu.operations.softmax import lse_of
from numba_ce.cpu.plan import Operation
from numba_ce.cpu.rows.batch import F64_0, make_putters
from numba_ce.cpu.rows.finish import finishing
from numba_ce.cpu.rows.targets import BAD_TARGET
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.simd.memory import prefetch_to_write
from numba_ce.cpu.simd.vector import select, splat

# Rows by which prefetches of the results run ahead. Seven arrays are written, 36 bytes a row: with
# C = 10, 0.75 of the time in one thread, 0.9 in two. 32 or 128 rows do the same
WRITE_AHEAD = 64


def stats_operation(kernel):
    real = real_type(kernel.kind)
    put_floats, put_integers = make_putters(real)
    times_amount, value_of = finishing(real).amount, finishing(real).value
    row_entropy, size = finishing(real).formulas.row_entropy, real().itemsize

    @inlined
    def put(address, first, count, values):
        prefetch_to_write(address + (first + WRITE_AHEAD) * size)
        put_floats(address, first, count, values)

    @inlined
    def put_whole(address, first, count, values):
        prefetch_to_write(address + (first + WRITE_AHEAD) * 8)
        put_integers(address, first, count, values)

    @inlined
    def put_targets(plan, first, count, batch, end):
        """What the targets say; nothing of rows that do not count."""
        y, t = batch.y, batch.target_logit
        loss = select(y < 0.0, splat(F64_0), (batch.t - t) + end.surprise)
        all_classes = splat(np.float64(plan.n_classes))
        rank = select(end.surprise == end.surprise, batch.above, all_classes)
        put(plan.target_logit, first, count, select(y < 0.0, splat(math.nan), t))
        put(plan.loss, first, count, select(y == BAD_TARGET, splat(math.nan), loss))
        put_whole(plan.rank, first, count, select(y < 0.0, all_classes, rank))

    @inlined
    def finish(plan, first, count, batch, end, temperature):
        row_max = select(batch.poison == batch.poison, batch.t, math.nan)
        e_rest = value_of(times_amount(end.factor, batch.e_total))
        entropy = row_entropy(end.p_k, end.surprise, end.rest, batch.t - batch.row_max, e_rest)
        put(plan.row_max, first, count, row_max)
        put(plan.lse, first, count, lse_of(batch, end))
        put(plan.entropy, first, count, entropy)
        put_whole(plan.argmax, first, count, batch.k)
        if plan.targets != 0:
            put_targets(plan, first, count, batch, end)
        return splat(F64_0), None

    return Operation(
        leaves="largest", targets="looked at", finish=finish, entropy=True, poison=True
    )
