"""logsumexp, softmax and log_softmax, by the same kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_ce._backend import backend
from numba_ce._quiet import quiet
from numba_ce._validate import (
    Array,
    check_flag,
    check_logits,
    check_out,
    classes_last,
    on_device,
)
from numba_ce.options import documented
from numba_ce.results import fresh_output, fresh_rows, result_dtype, returned


@documented
@quiet
def logsumexp(logits: Any, axis: int = -1, *, keepdims: bool = False) -> Any:
    """``log(sum(exp(logits)))`` along an axis.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64.
    axis : int
        The axis to sum over.
    keepdims : bool
        Keep it, with length 1.

    Returns
    -------
    numpy scalar or ndarray
        float64 for float64 logits, otherwise float32. -inf for a row of -inf or without classes,
        +inf for a row with +inf, NaN for a row with NaN.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For other dtypes, 0-d logits, an axis out of range.

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
    array, axis = check_logits(logits, axis)
    keepdims = check_flag(keepdims, "keepdims")
    moved, module = classes_last(array, axis), backend(on_device(array))
    lse = fresh_rows(array, moved.shape[:-1], result_dtype(array))
    if moved.shape[-1] == 0:
        returned(lse)[...] = -np.inf
    elif lse.size:
        module.run_normalize(moved, "logsumexp", lse)
    lse = returned(lse)
    if keepdims:
        lse = lse.reshape(*array.shape[:axis], 1, *array.shape[axis + 1 :])
    return lse if lse.ndim or on_device(array) else lse[()]


def _normalized(logits: Any, axis: Any, out: Any, what: str) -> Array:
    array, axis = check_logits(logits, axis)
    result = fresh_output(array) if out is None else check_out(out, array)
    if array.size:
        backend(on_device(array)).run_normalize(
            classes_last(array, axis), what, classes_last(result, axis)
        )
    return returned(result) if out is None else out  # type: ignore[no-any-return]


@documented
@quiet
def softmax(logits: Any, axis: int = -1, *, out: Any = None) -> Array:
    """``exp(logits) / sum(exp(logits))`` along an axis.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64.
    axis : int
        The axis that sums to one.
    out

    Returns
    -------
    ndarray
        Of the shape and dtype of `logits`; NaN in a row with NaN or +inf, or of nothing but -inf.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For other dtypes, 0-d logits, an axis out of range, an `out` that does not fit.

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


@documented
@quiet
def log_softmax(logits: Any, axis: int = -1, *, out: Any = None) -> Array:
    """``logits - logsumexp(logits)`` along an axis, without its cancellation.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64.
    axis : int
        The axis whose probabilities sum to one.
    out

    Returns
    -------
    ndarray
        Of the shape and dtype of `logits`; NaN in a row with NaN or +inf, or of nothing but -inf.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For other dtypes, 0-d logits, an axis out of range, an `out` that does not fit.

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
