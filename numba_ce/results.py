"""Dtypes and arrays of results, the loss of a `Problem`, and what a mean over nothing is.

A mean over nothing, whose weights sum to 0, is NaN, and its gradient 0: `mean_of`, `mean_scale` and
`clear_mean_over_nothing`, for all who divide outside a kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_ce._backend import backend
from numba_ce._validate import Array, Problem, as_array, classes_last, cuda_arrays, on_device

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
NAN = float("nan")


def result_dtype(logits: Array) -> np.dtype[Any]:
    """The dtype of losses: float64 for float64 logits, otherwise float32."""
    return FLOAT64 if logits.dtype.itemsize == 8 else FLOAT32


def fresh_output(logits: Array) -> Array:
    """A dense array in native byte order and the axis order of the logits."""
    if on_device(logits):
        return cuda_arrays().empty_like(logits)  # type: ignore[no-any-return]
    native = logits.dtype.isnative
    return np.empty_like(logits, None if native else logits.dtype.newbyteorder("="))


def fresh_rows(logits: Array, shape: tuple[int, ...], dtype: Any) -> Any:
    """A dense array with results of the rows, where the logits are."""
    if on_device(logits):
        return cuda_arrays().empty(logits, shape, np.dtype(dtype))
    return np.empty(shape, dtype)


def returned(array: Any) -> Any:
    """What the caller gets: on the device, an array of the family that was passed."""
    return array.owner if on_device(array) else array


def no_classes(logits: Array, axis: int) -> ValueError:
    """The error for rows without a class."""
    return ValueError(
        f"logits of shape {logits.shape} have no classes along axis {axis}: expected at least one"
    )


def mean_of(total: Any, weight: float) -> Any:
    """The mean, from the sums of the losses and of the weights; NaN over nothing."""
    return total / weight if weight != 0.0 else total * NAN


def mean_scale(weight: float) -> float:
    """What the gradient of the sum is times in that of the mean; 0 over nothing."""
    return 1.0 / weight if weight != 0.0 else 0.0


def clear_mean_over_nothing(grad: Any, weight: float, reduction: str) -> None:
    """Zeros in the gradient of such a mean.

    Its scale of 0 leaves NaN where a bad target that was not to be checked gave NaN.
    """
    if reduction == "mean" and weight == 0.0:
        grad[...] = 0


def reduced(total: float, weight: float, reduction: str, dtype: np.dtype[Any]) -> Any:
    """The mean or sum as it is returned, from the sums of the losses and of the weights."""
    return dtype.type(mean_of(total, weight) if reduction == "mean" else total)


def loss_sums(
    problem: Problem, logits: Array, axis: int, per_row: Array | None, grad: Array | None
) -> tuple[float, float]:
    """The sums of the weighted losses and of the weights, in float64; fills `per_row` and `grad`.

    Losses of both signs that are too large for a float32 may have a sum that is a number.
    """
    shape = problem.logits.shape
    if 0 in shape:
        if 0 not in shape[:-1]:
            raise no_classes(logits, axis)
        return 0.0, 0.0
    moved = None if grad is None else classes_last(grad, axis)
    return backend().run_loss(problem, per_row, moved)


def compute_loss(
    problem: Problem, logits: Array, axis: int, grad: Array | None, dtype: Any = None
) -> Any:
    """The loss in the shape that the reduction gives; fills `grad`.

    dtype : of a mean or sum; row losses have that of `result_dtype`
    """
    dtype = result_dtype(logits) if dtype is None else dtype
    rows = problem.logits.shape[:-1]
    if on_device(logits):
        if problem.logits.shape[-1] == 0 and 0 not in rows:
            raise no_classes(logits, axis)
        result = fresh_rows(logits, rows if problem.reduction == "none" else (), dtype)
        moved = None if grad is None else classes_last(grad, axis)
        backend(True).loss_on_device(problem, result, moved)
        return returned(result)
    per_row = np.empty(rows, dtype) if problem.reduction == "none" else None
    total, weight = loss_sums(problem, logits, axis, per_row, grad)
    if per_row is None:
        return reduced(total, weight, problem.reduction, dtype)
    return per_row if rows else per_row[()]


def plain_loss(
    logits: Any, targets: Any, axis: Any, reduction: Any, with_grad: bool, out: Any = None
) -> tuple[Any, Array | None] | None:
    """Loss and gradient of a call without options that needs no look at its arguments, or None."""
    if not (type(logits) is type(targets) is np.ndarray and type(axis) is int):
        return None
    if type(reduction) is not str or reduction not in ("mean", "sum"):
        return None
    if out is not None and type(out) is not np.ndarray:
        return None
    run = getattr(backend(), "run_plain", None)
    if run is None:
        return None
    grad = fresh_output(logits) if with_grad and out is None else out
    loss = run(logits, targets, axis, reduction, grad, out is not None)
    return None if loss is None else (loss, grad)


def inputs(problem: Problem, class_weight: Any) -> tuple[tuple[Any, str], ...]:
    """What `out` must not overlap, as arrays: a Series, too, lends its memory to one."""
    if on_device(problem.logits):
        class_weight = problem.class_weight
    elif class_weight is not None:
        # the problem holds a copy, unless it was float64
        class_weight = as_array(class_weight, "class_weight")
    return (
        (problem.targets, "targets"),
        (class_weight, "class_weight"),
        (problem.sample_weight, "sample_weight"),
    )
