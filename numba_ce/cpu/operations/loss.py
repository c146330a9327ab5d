"""The loss of a row and its gradient; the same from the record of the row."""

from numba_ce.cpu.compile.jit import inlined
from numba_ce.cpu.plan import Operation
from numba_ce.cpu.rows.batch import F64_0, make_putters
from numba_ce.cpu.rows.finish import finishing
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.simd.vector import first_lanes, select, splat


def loss_operation(kernel):
    """The target is left out; of probabilities, whose rows have many, the largest logit."""
    real, probabilities = real_type(kernel.kind), kernel.targets_kind is not None
    dense, from_record = kernel.smoothing or probabilities, kernel.operation == "from_record"
    over, tempered = finishing(real).over, kernel.tempered
    times_amount, put = finishing(real).amount, make_putters(real)[0]
    row_loss = finishing(real).formulas.row_loss
    probability_weight = finishing(real).formulas.probability_weight
    target_gradient = finishing(real).formulas.target_gradient
    dense_sums = dense or from_record

    @inlined
    def weigh(batch, end, q_rest, a_rest, z_weight):
        loss = row_loss(batch.q, end.surprise, q_rest, a_rest, end.above, z_weight, end.lse)
        alpha = probability_weight(batch.q, q_rest, z_weight, end.lse)
        g_k = target_gradient(batch.q, end.rest, q_rest, end.p_k, z_weight, end.lse)
        return loss, alpha, g_k

    @inlined
    def finish(plan, first, count, batch, end, temperature):
        if dense_sums:
            q_rest, a_rest = batch.q_rest, batch.a_rest
        else:
            q_rest = a_rest = None
        if from_record:
            loss, alpha, g_k = weigh(batch, end, q_rest, splat(F64_0), batch.w)
        elif plan.z_loss != 0.0:
            loss, alpha, g_k = weigh(batch, end, q_rest, a_rest, batch.w * plan.z_loss)
        else:
            loss, alpha, g_k = weigh(batch, end, q_rest, a_rest, None)
        # Of a row that does not count, the batch may hold anything
        loss = select(batch.s == 0.0, splat(F64_0), batch.s * loss)
        if plan.loss != 0:
            put(plan.loss, first, count, loss)
        scale = batch.s * plan.grad_scale
        factor, g_k = times_amount(end.factor, scale * alpha), scale * g_k
        if tempered:
            factor, g_k = over(factor, temperature), g_k / temperature
        return select(first_lanes(count, F64_0), loss, splat(F64_0)), (factor, g_k)

    return Operation(
        leaves="largest" if probabilities and not from_record else "target",
        targets="counted",
        finish=finish,
        writes=None if kernel.grad_kind is None else "gradient",
        dense=dense,
        from_record=from_record,
    )
