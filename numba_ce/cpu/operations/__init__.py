"""WHAT is done with rows, and HOW they are walked: the product of the two."""

from numba_ce.cpu.operations.hess import hess_operation
from numba_ce.cpu.operations.loss import loss_operation
from numba_ce.cpu.operations.record import make_record
from numba_ce.cpu.operations.softmax import (
    log_softmax_operation,
    logsumexp_operation,
    softmax_operation,
)
from numba_ce.cpu.operations.stats import stats_operation
from numba_ce.cpu.rows.targets import scan
from numba_ce.cpu.schedules.across import make_across
from numba_ce.cpu.schedules.along import make_along

OPERATIONS = {
    "loss": loss_operation,
    "from_record": loss_operation,
    "softmax": softmax_operation,
    "log_softmax": log_softmax_operation,
    "logsumexp": logsumexp_operation,
    "stats": stats_operation,
    "hess": hess_operation,
}
SCHEDULES = {"along": make_along, "across": make_across}
# What finishes no row
OTHERS = {"record": make_record, "scan": lambda kernel: scan}


def make_rows(kernel):
    """The function that does a block: (plan, first, last, work) -> the sum of its losses."""
    if kernel.operation in OTHERS:
        return OTHERS[kernel.operation](kernel)
    return SCHEDULES[kernel.schedule](kernel, OPERATIONS[kernel.operation](kernel))
