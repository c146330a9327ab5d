"""Softmax cross-entropy for people who work in NumPy: loss and gradient in one pass."""

from numba_ce._backend import available_backends, get_backend, set_backend, use_backend
from numba_ce.api import (
    RowStats,
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_grad_and_hess,
    row_stats,
)
from numba_ce.normalize import log_softmax, logsumexp, softmax
from numba_ce.records import grad_from_record, loss_from_record, merge_records, row_record

__version__ = "0.1.0"
__all__ = [
    "RowStats",
    "available_backends",
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_grad_and_hess",
    "get_backend",
    "grad_from_record",
    "log_softmax",
    "logsumexp",
    "loss_from_record",
    "merge_records",
    "row_record",
    "row_stats",
    "set_backend",
    "softmax",
    "use_backend",
]
