"""Gradient and diagonal Hessian of a row's loss."""

from numba_ce.cpu.compile.jit import inlined
from numba_ce.cpu.plan import Operation
from numba_ce.cpu.rows.batch import F64_0
from numba_ce.cpu.rows.finish import F64_1, finishing
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.simd.vector import maximum, select, splat


def hess_operation(kernel):
    """The first maximum is left out: of no other class is 1 - p small."""
    real, indices = real_type(kernel.kind), kernel.targets_kind is None
    times_amount = finishing(real).amount
    target_gradient = finishing(real).formulas.target_gradient

    @inlined
    def finish(plan, first, count, batch, end, temperature):
        if indices:
            q = select(batch.y == batch.k, F64_1, splat(F64_0))
            q_rest = 1.0 - q
        else:
            q, q_rest = batch.q, batch.q_rest
        total, s = q + q_rest, batch.s
        curvature = total * plan.hess_factor
        h_k = curvature * end.p_k * end.rest
        if plan.hess_floor > 0.0:
            h_k = maximum(splat(plan.hess_floor), h_k)  # NaN stays NaN
        g_k = target_gradient(q, end.rest, q_rest, end.p_k, None, end.lse)
        factor = times_amount(end.factor, splat(F64_1))
        return splat(F64_0), (factor, s * g_k, s * h_k, s * total, curvature)

    return Operation(
        leaves="largest", targets="counted", finish=finish, writes="hessian", dense=not indices
    )
