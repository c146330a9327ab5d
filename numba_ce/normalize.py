"""logsumexp, softmax and log_softmax, by the same kernels."""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np

from numba_ce._backend import backend
from numba_ce._quiet import quiet
from numba_ce._validate import (
    Array,
    as_array,
    check_axis,
    check_flag,
    check_floats,
    check_out,
    classes_last,
    on_device,
)
from numba_ce.options import AnyArray, DeviceArray, HostArray, documented
from numba_ce.results import fresh_output, fresh_rows, result_dtype, returned

Axis = int | tuple[int, ...] | None


def _prepared(logits: Any, axis: Any) -> tuple[Array, tuple[int, ...]]:
    """The logits, of integers as float64, and the axes of the classes, fastest last."""
    array = as_array(logits, "logits")
    if array.dtype.kind in "iub" and not on_device(array):
        array = array.astype(np.float64)
    check_floats(array)
    if isinstance(axis, tuple) or axis is None:
        if on_device(array):
            raise TypeError(f"axis = {axis}: on a CUDA device expected an integer")
        given = range(array.ndim) if axis is None else axis
        axes = tuple(check_axis(i, array.ndim) for i in given)
        if len(set(axes)) < len(axes):
            raise ValueError(f"axis = {axis}: expected each axis once")
        axes = tuple(sorted(axes, key=lambda i: -abs(array.strides[i])))
    elif array.ndim == 0:
        raise ValueError("logits are 0-dimensional: expected at least one axis, or axis=None")
    else:
        axes = (check_axis(axis, array.ndim, "an integer, a tuple of integers or None"),)
    return array, axes


def _folded(array: Array, axes: tuple[int, ...]) -> Array:
    """The classes as one last axis: a view, or a copy where they lie too far apart for one."""
    if len(axes) == 1:
        return classes_last(array, axes[0])
    n_classes = math.prod(array.shape[i] for i in axes)
    moved = _moved(array, axes)
    return moved.reshape(*moved.shape[: array.ndim - len(axes)], n_classes)


def _moved(array: Array, axes: tuple[int, ...]) -> Array:
    return array.transpose(*(i for i in range(array.ndim) if i not in axes), *axes)


@documented
@quiet
def logsumexp(logits: AnyArray, axis: Axis = -1, *, keepdims: bool = False) -> Any:
    """``log(sum(exp(logits)))`` along an axis: the last one, where SciPy takes all.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64; integers and booleans as float64.
    axis : int, tuple of int or None
        The axis or axes to sum over; None: all of them.
    keepdims : bool
        Keep them, with length 1.

    Returns
    -------
    numpy scalar or ndarray
        float64 for float64 logits, otherwise float32. -inf for a row of -inf or without classes,
        +inf for a row with +inf, NaN for a row with NaN.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For other dtypes, 0-d logits unless `axis` is None, an axis out of range or given twice.

    Notes
    -----
    Blanchard, Higham & Higham, "Accurately computing the log-sum-exp and softmax functions" (2021),
    section 4: the maximum is left out of the sum, and log1p taken of the rest.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import logsumexp
    >>> bool(logsumexp(np.array([1000.0, 1000.0])) == 1000 + np.log(2))
    True
    """
    array, axes = _prepared(logits, axis)
    keepdims = check_flag(keepdims, "keepdims")
    folded, module = _folded(array, axes), backend(on_device(array))
    lse = fresh_rows(array, folded.shape[:-1], result_dtype(array))
    if folded.shape[-1] == 0:
        returned(lse)[...] = -np.inf
    elif lse.size:
        module.run_normalize(folded, "logsumexp", lse)
    lse = returned(lse)
    if keepdims:
        lse = lse.reshape(tuple(1 if i in axes else n for i, n in enumerate(array.shape)))
    return lse if lse.ndim or on_device(array) else lse[()]


def _normalized(logits: Any, axis: Any, out: Any, what: str) -> Any:
    array, axes = _prepared(logits, axis)
    result = fresh_output(array) if out is None else check_out(out, array)
    if array.size:
        given, folded = _folded(array, axes), _folded(result, axes)
        backend(on_device(array)).run_normalize(given, what, folded)
        if not (on_device(array) or np.may_share_memory(folded, result)):
            moved = _moved(result, axes)
            moved[...] = folded.reshape(moved.shape)
    if out is not None:
        return out
    return returned(result) if result.ndim or on_device(array) else result[()]


@overload
def softmax(logits: DeviceArray, axis: Axis = ..., *, out: Any = ...) -> Any: ...
@overload
def softmax(logits: HostArray, axis: Axis = ..., *, out: Array | None = ...) -> Array: ...
@documented
@quiet
def softmax(logits: Any, axis: Axis = -1, *, out: Any = None) -> Any:
    """``exp(logits) / sum(exp(logits))`` along an axis: the last one, where SciPy takes all.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64; integers and booleans as float64.
    axis : int, tuple of int or None
        The axis or axes that sum to one; None: all of them.
    out

    Returns
    -------
    numpy scalar or ndarray
        Of the shape and dtype of `logits`; NaN in a row with NaN or +inf, or of nothing but -inf.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For other dtypes, 0-d logits unless `axis` is None, an axis out of range or given twice, an
        `out` that does not fit.

    Notes
    -----
    Blanchard, Higham & Higham (2021), algorithm 3.2, the normalisation in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import softmax
    >>> softmax(np.log([[1.0, 2.0, 1.0]]))
    array([[0.25, 0.5 , 0.25]])
    """
    return _normalized(logits, axis, out, "softmax")


@overload
def log_softmax(logits: DeviceArray, axis: Axis = ..., *, out: Any = ...) -> Any: ...
@overload
def log_softmax(logits: HostArray, axis: Axis = ..., *, out: Array | None = ...) -> Array: ...
@documented
@quiet
def log_softmax(logits: Any, axis: Axis = -1, *, out: Any = None) -> Any:
    """``logits - logsumexp(logits)`` along an axis: the last one, where SciPy takes all.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64; integers and booleans as float64.
    axis : int, tuple of int or None
        The axis or axes whose probabilities sum to one; None: all of them.
    out

    Returns
    -------
    numpy scalar or ndarray
        Of the shape and dtype of `logits`; NaN in a row with NaN or +inf, or of nothing but -inf.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For other dtypes, 0-d logits unless `axis` is None, an axis out of range or given twice, an
        `out` that does not fit.

    Notes
    -----
    ``(z_j - m) - log1p(sum of the others)``; the maximum itself gets ``-log1p(...)``:
    docs/mathematics.md.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import log_softmax
    >>> log_softmax(np.array([0.0, 0.0])) == -np.log(2)
    array([ True,  True])
    """
    return _normalized(logits, axis, out, "log_softmax")
