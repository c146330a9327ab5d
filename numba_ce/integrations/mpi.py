"""Cross-entropy of arrays spread over MPI ranks: by classes, or by rows.

Classes (vocabulary-parallel): each rank has some classes of every row. A rank sums them up in
one record per row (`numba_ce.row_record`), the records of all ranks are merged in one collective,
and each rank computes the gradient of its own classes from the result.

Rows (data-parallel): each rank has some rows. Only sums are exchanged.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any, Unpack

import numpy as np
from mpi4py import MPI
from numpy.lib.array_utils import normalize_axis_index

import numba_ce
from numba_ce._foreign import numpy_array
from numba_ce._quiet import quiet
from numba_ce.options import Keywords, check_reduction, documented, with_defaults
from numba_ce.records import N_FIELDS, scaled
from numba_ce.results import clear_mean_over_nothing, mean_scale, reduced, result_dtype
from numba_ce.weights import mean_weights, row_weights

# A record, and what the row adds to the denominator of the mean
N_NUMBERS = N_FIELDS + 1


# ---------------------------------------------------------------- merging over ranks


def _merge(a: Any, b: Any) -> Any:
    weights = a[..., N_FIELDS:] + b[..., N_FIELDS:]
    record = numba_ce.merge_records(a[..., :N_FIELDS], b[..., :N_FIELDS])
    return np.concatenate([record, weights], axis=-1)


def _merge_buffers(received: Any, result: Any, datatype: Any) -> None:
    a, b = (np.frombuffer(x, np.float64).reshape(-1, N_NUMBERS) for x in (received, result))
    b[...] = _merge(a, b)


@functools.cache
def _operation() -> tuple[Any, Any]:
    """The merging operation, and the datatype of one record, which keeps it from being split.

    Not commutative, so that MPI merges in the order of the ranks: the same bits in every run.
    """
    record = MPI.DOUBLE.Create_contiguous(N_NUMBERS).Commit()
    return MPI.Op.Create(_merge_buffers, commute=False), record


def _merged(parts: Any, comm: Any, collectives: int) -> Any:
    """The records of all ranks as one, on every rank."""
    merged = np.empty_like(parts)
    n_records = parts.size // N_NUMBERS
    if collectives != 2:
        operation, record = _operation()
        comm.Allreduce([parts, n_records, record], [merged, n_records, record], op=operation)
        return merged
    everybody = np.empty((comm.Get_size(), *parts.shape)) if comm.Get_rank() == 0 else None
    comm.Gather(parts, everybody)
    if everybody is not None:
        merged[...] = functools.reduce(_merge, everybody)
    comm.Bcast(merged)
    return merged


# ---------------------------------------------------------------- ranks that fail


def _n_rows(targets: Any, logits: Any, axis: Any) -> int:
    """The number of rows as the targets tell it, which every rank has; also if all else is bad."""
    shape = [0]
    with contextlib.suppress(Exception):  # it is raised when they are made arrays
        shape = list(_shape(targets))
        if len(shape) == len(_shape(logits)):  # probabilities
            del shape[axis]
    return math.prod(shape)


def _shape(value: Any) -> Any:
    return value.shape if hasattr(value, "shape") else np.shape(value)


def _flag(error: BaseException | None, rank: int) -> Any:
    """One more record: it carries the number of the ranks that failed, and the highest of them."""
    flag = np.zeros((1, N_NUMBERS))
    flag[0, :3] = (-np.inf if error is None else rank, 0.0, -np.inf)
    flag[0, 7:] = (1.0, 1.0, error is not None)
    return flag


def _check_choices(reduction: Any, collectives: Any) -> None:
    if collectives not in (1, 2):
        raise ValueError(f"collectives = {collectives!r}: expected 1 or 2")
    check_reduction(reduction)


def _check_out(out: Any, logits: Any, axis: int) -> None:
    """Raise for an `out` that would not do once the other ranks have their results."""
    if out is None:
        return
    if np.shape(out) != logits.shape:
        raise ValueError(f"out has shape {np.shape(out)}: expected {logits.shape}, as the logits")
    nothing = np.arange(logits.ndim) == axis % logits.ndim
    index = tuple(slice(None) if classes else slice(0) for classes in nothing)
    targets = np.zeros([0] * (logits.ndim - 1), np.int8)
    numba_ce.cross_entropy_and_grad(logits[index], targets, axis=axis, out=out[index])


def _raise_together(error: BaseException | None, n_failed: int, highest: int) -> None:
    """The error of this rank, or that there is one on another."""
    if error is not None:
        raise error
    if n_failed:
        others = f" and {n_failed - 1} more" if n_failed > 1 else ""
        raise RuntimeError(
            f"cross-entropy failed on rank {highest}{others}: the errors there say why"
        )


def _agree(here: int, n_rows: int, error: BaseException | None, comm: Any) -> int:
    """The number of classes of all ranks; raises on every rank unless all have as many rows."""
    everybody = np.empty((comm.Get_size(), 3), np.int64)
    comm.Allgather(np.array([here, n_rows, error is not None]), everybody)
    failed = np.flatnonzero(everybody[:, 2])
    _raise_together(error, failed.size, failed.max(initial=-1))
    rows = everybody[:, 1].tolist()
    if len(set(rows)) > 1:
        raise ValueError(f"the ranks have {rows} rows: expected the same on each")
    return int(everybody[:, 0].sum())


# ---------------------------------------------------------------- what a row weighs


def _weights(
    targets: Any, rows: tuple[int, ...], class_weight: Any, sample_weight: Any, first: bool,
    **options: Any,
) -> Any:  # fmt: skip
    """The part of each row's s_i w_{y_i} that belongs to these classes, 0 on the other ranks.

    first : whether this rank counts the rows of probabilities, which weigh s_i
    options : of `row_weights`
    """
    w = None if class_weight is None else np.asarray(class_weight, np.float64)
    s = None if sample_weight is None else np.asarray(sample_weight, np.float64)
    if targets.ndim == len(rows):
        return row_weights(targets, w, s, **options)
    return np.broadcast_to((1.0 if s is None else s) if first else 0.0, rows)


# ---------------------------------------------------------------- public functions


@documented
@quiet
def cross_entropy_and_grad(
    local_logits: Any,
    targets: Any,
    class_offset: int,
    comm: Any,
    *,
    n_classes: int | None = None,
    axis: int = -1,
    reduction: str = "mean",
    out: Any = None,
    collectives: int = 1,
    **options: Unpack[Keywords],
) -> tuple[Any, Any]:
    """`numba_ce.cross_entropy_and_grad` of rows whose classes are spread over the ranks.

    Every rank of `comm` calls it with its own classes; rows, their order and the options
    are the same on all.

    Parameters
    ----------
    local_logits : array_like
        The classes ``class_offset, class_offset + 1, ...`` of each row; there may be none.
    targets : array_like
        Class indices counted over all ranks, the same on each; or the probabilities of the classes
        here.
    class_offset : int
        The first class of this rank.
    comm : mpi4py.MPI.Comm
        The ranks.
    n_classes : int, optional
        Number of classes of all ranks. If it is not given the ranks add theirs up, and make sure
        that all have as many rows, in one more collective of 24 bytes per rank.
    axis
    reduction
    out : ndarray, optional
        Where the gradient goes: shape and dtype of `local_logits`, or float32 for 16-bit logits.
        ``out=local_logits`` works in place.
    collectives : {1, 2}
        1: one reduction, of 80 bytes per row and 80 more, with an operation that merges records.
        2: a gather to the first rank, which merges, and a broadcast, where the MPI library or the
        communicator has no operations of its own.
    class_weight : array_like, optional
        The weights of the classes here. Given on all ranks or on none.
    **options

    Returns
    -------
    loss : numpy scalar or ndarray
        Of all classes; the same bits on every rank, and in every run on as many ranks.
    grad : ndarray
        Of the classes here.

    Raises
    ------
    ValueError, TypeError
        As `numba_ce.row_record`, on the rank whose arguments they are about. Bad targets are found
        by all ranks. If the ranks have different numbers of rows, and n_classes is not given.
    RuntimeError
        On the other ranks then. If n_classes is given, all must have as many rows: there is no
        exchange in which they could learn that they do not.

    Notes
    -----
    Shoeybi et al., "Megatron-LM" (2019), section 3, needs three collectives for this. Records merge
    in one: Milakov & Gimelshein, "Online normalizer calculation for softmax" (2018).

    Examples
    --------
    >>> import numpy as np
    >>> from mpi4py import MPI
    >>> from numba_ce.integrations.mpi import cross_entropy_and_grad
    >>> loss, grad = cross_entropy_and_grad(np.zeros((2, 4)), [0, 3], 0, MPI.COMM_SELF)
    >>> round(float(loss), 4)
    1.3863
    """
    given = with_defaults(options)
    class_weight, sample_weight = given["class_weight"], given.pop("sample_weight")
    shard: dict[str, Any] = {"class_offset": class_offset, "axis": axis, **given}
    error: Exception | None = None
    n_rows = here = 0
    logits: Any = None
    record: Any = None
    # Whatever this rank finds wrong, the others wait for it: it takes part, and raises afterwards
    try:
        n_rows = _n_rows(targets, local_logits, axis)
        logits = numpy_array(local_logits, "local_logits")
        targets = numpy_array(targets, "targets")
        here = logits.shape[normalize_axis_index(axis, logits.ndim)] if logits.ndim else 0
        _check_choices(reduction, collectives)
    except Exception as caught:
        error = caught
    if n_classes is None:
        n_classes = _agree(here, n_rows, error, comm)
    parts = np.zeros((n_rows, N_NUMBERS))
    try:
        if error is None:
            _check_out(out, logits, axis)
            record = numba_ce.row_record(
                logits, targets, n_classes=n_classes, sample_weight=sample_weight, **shard
            )
            weights = _weights(
                targets, record.shape[:-1], class_weight, sample_weight, comm.Get_rank() == 0,
                n_classes=here, ignore_index=given["ignore_index"], class_offset=class_offset,
            )  # fmt: skip
            parts[:, :N_FIELDS] = record.reshape(-1, N_FIELDS)
            parts[:, N_FIELDS] = weights.ravel()
    except Exception as caught:
        error = caught
    merged = _merged(np.concatenate([parts, _flag(error, comm.Get_rank())]), comm, collectives)
    _raise_together(error, int(merged[-1, N_FIELDS]), int(max(merged[-1, 0], 0.0)))
    merged = merged[:-1].reshape(*record.shape[:-1], N_NUMBERS)
    record, weight = merged[..., :N_FIELDS], float(merged[..., N_FIELDS].sum())
    loss, dtype = numba_ce.loss_from_record(record), result_dtype(logits)
    if reduction == "mean":
        record = scaled(record, mean_scale(weight))
        sample_weight = mean_weights(sample_weight, record.shape[:-1], weight)
    grad = numba_ce.grad_from_record(
        logits, targets, record, sample_weight=sample_weight, out=out, **shard
    )
    clear_mean_over_nothing(grad, weight, reduction)
    if reduction == "none":
        return loss.astype(dtype), grad
    return reduced(float(loss.sum()), weight, reduction, dtype), grad


@documented
@quiet
def row_sharded_cross_entropy_and_grad(
    local_logits: Any,
    local_targets: Any,
    comm: Any,
    *,
    axis: int = -1,
    reduction: str = "mean",
    out: Any = None,
    **options: Unpack[Keywords],
) -> tuple[Any, Any]:
    """`numba_ce.cross_entropy_and_grad` of rows that are spread over the ranks.

    Every rank calls it with its own rows, or none, and the same options. Three numbers per rank are
    exchanged, in one collective. The gradient of the mean is divided afterwards, in one more pass
    over it.

    Parameters
    ----------
    local_logits : array_like
        The logits of the rows here, classes along `axis`.
    local_targets : array_like
        Class indices in the shape of `local_logits` without `axis`, or probabilities in its shape.
    comm
    axis
    reduction : {"mean", "sum", "none"}
        "mean" and "sum" are over the rows of all ranks; "none" gives the losses of the rows here.
    out
    class_weight : array_like of shape (C,), optional
        One weight per class, of any sign.
    sample_weight : array_like, optional
        One weight per row here, of any sign; a row of weight 0 counts as ignored.
    **options

    Returns
    -------
    loss : numpy scalar or ndarray
        The same bits on every rank for "mean" and "sum".
    grad : ndarray
        Of the rows here. Losses and gradients have the bits of an unsharded call; with "mean" the
        gradient is rounded once more.

    Raises
    ------
    ValueError, TypeError
        As `numba_ce.cross_entropy_and_grad`, on the rank whose arguments they are about.
    RuntimeError
        On the other ranks then.

    Examples
    --------
    >>> import numpy as np
    >>> from mpi4py import MPI
    >>> from numba_ce.integrations.mpi import row_sharded_cross_entropy_and_grad
    >>> loss, grad = row_sharded_cross_entropy_and_grad(np.zeros((2, 4)), [0, 3], MPI.COMM_SELF)
    >>> round(float(loss), 4)
    1.3863
    """
    error: Exception | None = None
    numbers = np.zeros(3)
    logits: Any = None
    loss: Any = None
    grad: Any = None
    try:
        check_reduction(reduction)
        logits = numpy_array(local_logits, "local_logits")
        targets = numpy_array(local_targets, "local_targets")
        loss, grad = numba_ce.cross_entropy_and_grad(
            logits, targets, axis=axis, reduction="none", out=out, **options
        )
        given = with_defaults(options)
        weights = _weights(
            targets, np.shape(loss), given["class_weight"], given["sample_weight"], True,
            n_classes=logits.shape[axis], ignore_index=given["ignore_index"],
        )  # fmt: skip
        numbers[:2] = np.sum(loss, dtype=np.float64), weights.sum()
    except Exception as caught:  # the other ranks are waiting for this one
        error, numbers[2] = caught, 1.0
    everybody = np.empty((comm.Get_size(), 3))
    comm.Allgather(numbers, everybody)
    failed = np.flatnonzero(everybody[:, 2])
    _raise_together(error, failed.size, failed.max(initial=-1))
    if reduction == "none":
        return loss, grad
    total, weight = everybody[:, :2].sum(axis=0).tolist()
    if reduction == "mean":
        # The factor unrounded: in the dtype of a 16-bit gradient it cost one ULP more
        np.multiply(grad, np.float64(mean_scale(weight)), out=grad, casting="same_kind")
        clear_mean_over_nothing(grad, weight, reduction)
    return reduced(total, weight, reduction, result_dtype(logits)), grad
