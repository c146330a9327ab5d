"""softmax, log_softmax and logsumexp of a row; lse goes where losses go."""

import math

from numba_ce.cpu.compile.jit import inlined
from numba_ce.cpu.plan import Operation
from numba_ce.cpu.rows.batch import F64_0, make_putters
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.simd.vector import absolute, select, splat


def softmax_operation(kernel):
    @inlined
    def finish(plan, first, count, batch, end, temperature):
        return splat(F64_0), (end.factor, splat(F64_0))

    return Operation(leaves="none", targets="none", finish=finish, writes="gradient")


def log_softmax_operation(kernel):
    """The largest class is left out, for 1 + the sum of the others has all digits."""

    @inlined
    def finish(plan, first, count, batch, end, temperature):
        return splat(F64_0), (end.surprise,)

    return Operation(leaves="largest", targets="none", finish=finish, writes="log_softmax")


@inlined
def lse_of(batch, end):
    """An infinite maximum is the result: of no class at all, or inf, unless there is a NaN."""
    return select(absolute(batch.t) == math.inf, batch.t + batch.poison, end.lse)


def logsumexp_operation(kernel):
    put = make_putters(real_type(kernel.kind))[0]

    @inlined
    def finish(plan, first, count, batch, end, temperature):
        put(plan.lse, first, count, lse_of(batch, end))
        return splat(F64_0), None

    return Operation(leaves="largest", targets="none", finish=finish, poison=True)
