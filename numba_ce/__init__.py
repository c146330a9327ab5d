"""Softmax cross-entropy for people who work in NumPy: loss and gradient in one pass."""

from numba_ce import _cache as _cache  # first: it notes from which sources the others are made
from numba_ce import integrations as integrations
from numba_ce._backend import available_backends, get_backend, serial, set_backend, use_backend
from numba_ce.api import (
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_grad_and_hess,
    row_loss_and_grad,
)
from numba_ce.linear import LinearGrad, linear_cross_entropy, linear_cross_entropy_and_grad
from numba_ce.linear_stats import linear_row_stats
from numba_ce.normalize import log_softmax, logsumexp, softmax
from numba_ce.objective import multinomial_objective
from numba_ce.options import relate as _relate
from numba_ce.records import grad_from_record, loss_from_record, merge_records, row_record
from numba_ce.row_statistics import RowStats, row_stats
from numba_ce.streaming import StreamResult, stream

__version__ = "0.1.0"
__all__ = [
    "LinearGrad",
    "RowStats",
    "StreamResult",
    "available_backends",
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_grad_and_hess",
    "get_backend",
    "grad_from_record",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "linear_row_stats",
    "log_softmax",
    "logsumexp",
    "loss_from_record",
    "merge_records",
    "multinomial_objective",
    "row_loss_and_grad",
    "row_record",
    "row_stats",
    "serial",
    "set_backend",
    "softmax",
    "stream",
    "use_backend",
]
_relate(
    globals(),
    "cross_entropy cross_entropy_and_grad row_stats stream linear_cross_entropy",
    "cross_entropy_and_grad row_loss_and_grad cross_entropy_grad_and_hess",
    "linear_cross_entropy linear_cross_entropy_and_grad linear_row_stats multinomial_objective",
    "logsumexp softmax log_softmax row_stats",
    "row_record merge_records loss_from_record grad_from_record",
    "set_backend use_backend get_backend available_backends serial",
)


def __dir__() -> list[str]:
    """What users may build on; other modules are attributes too, once they are imported."""
    special = [name for name in globals() if name.startswith("__")]
    return [*special, *__all__, "integrations"]
