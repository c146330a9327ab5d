"""The loss, its gradient and Hessian: check, choose a backend, reduce."""

from __future__ import annotations

from typing import Any, Literal, Unpack, get_args, overload

import numpy as np

from numba_ce._backend import backend
from numba_ce._quiet import quiet
from numba_ce._validate import (
    Array,
    check_choice,
    check_logits,
    check_out,
    classes_last,
    make_problem,
    on_device,
)
from numba_ce.options import (
    AnyArray,
    DeviceArray,
    HostArray,
    Keywords,
    LossOptions,
    Reduction,
    check_options,
    check_reduction,
    documented,
)
from numba_ce.results import (
    compute_loss,
    fresh_output,
    inputs,
    no_classes,
    plain_loss,
    returned,
)

Hess = Literal["diagonal", "xgboost", "lightgbm"]


# fmt: off
@overload
def cross_entropy(
    logits: DeviceArray, targets: Any, *, axis: int = ..., reduction: Reduction = ...,
    **options: Unpack[Keywords],
) -> Any: ...
@overload
def cross_entropy(
    logits: HostArray, targets: HostArray, *, axis: int = ...,
    reduction: Literal["mean", "sum"] = ..., **options: Unpack[Keywords],
) -> np.floating[Any]: ...
@overload
def cross_entropy(
    logits: HostArray, targets: HostArray, *, axis: int = ..., reduction: Literal["none"],
    **options: Unpack[Keywords],
) -> Array: ...
# fmt: on
@documented
@quiet
def cross_entropy(
    logits: AnyArray,
    targets: AnyArray,
    *,
    axis: int = -1,
    reduction: Reduction = "mean",
    **options: Unpack[Keywords],
) -> Any:
    """Softmax cross-entropy of the rows of `logits`.

    With z the logits of a row after softcap and temperature and p = softmax(z), the loss is
    ``s * (sum_c q_c (lse(z) - z_c) + v * z_loss * lse(z)**2)``, where q is the effective target:
    ``q_c = (1 - e) w_y [c = y] + (e / C) w_c`` for a class index y and
    ``q_c = w_c ((1 - e) t_c + e / C)`` for probabilities t.

    Parameters
    ----------
    logits
    targets
    axis
    reduction
    **options

    Returns
    -------
    numpy scalar or ndarray
        float64 for float64 logits, otherwise float32; one loss per row for "none".

    Raises
    ------
    ValueError
        For a target outside [0, C), which is named with its position; wrong shapes; values out of
        range.
    TypeError
        For dtypes other than those above, masked arrays, a non-integer `axis`.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    Notes
    -----
    The target is left out of the maximum and of the sum of exponentials, and each row is finished
    in float64, so a confident row loses no digits: see docs/mathematics.md.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import cross_entropy
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    >>> round(float(cross_entropy(logits, [0, 2])), 6)
    0.634229
    >>> bool(cross_entropy(np.array([40.0, 0.0]), 0) == np.log1p(np.exp(-40.0)))
    True
    """
    plain = None if options else plain_loss(logits, targets, axis, reduction, False)
    if plain is not None:
        return plain[0]
    array, axis = check_logits(logits, axis)
    checked = check_options(options, "cross_entropy")
    problem = make_problem(array, targets, axis, *checked, check_reduction(reduction))
    return compute_loss(problem, array, axis, None)


# fmt: off
@overload
def cross_entropy_and_grad(
    logits: DeviceArray, targets: Any, *, axis: int = ..., reduction: Reduction = ...,
    out: Any = ..., **options: Unpack[Keywords],
) -> tuple[Any, Any]: ...
@overload
def cross_entropy_and_grad(
    logits: HostArray, targets: HostArray, *, axis: int = ...,
    reduction: Literal["mean", "sum"] = ..., out: Array | None = ..., **options: Unpack[Keywords],
) -> tuple[np.floating[Any], Array]: ...
@overload
def cross_entropy_and_grad(
    logits: HostArray, targets: HostArray, *, axis: int = ..., reduction: Literal["none"],
    out: Array | None = ..., **options: Unpack[Keywords],
) -> tuple[Array, Array]: ...
# fmt: on
@documented
@quiet
def cross_entropy_and_grad(
    logits: AnyArray,
    targets: AnyArray,
    *,
    axis: int = -1,
    reduction: Reduction = "mean",
    out: Any = None,
    **options: Unpack[Keywords],
) -> tuple[Any, Array]:
    """Softmax cross-entropy and its gradient with respect to `logits`, in one pass.

    The gradient of a plain row is ``softmax(logits) - y``, y one-hot; in general ``Q p - q`` with
    q the effective target of `cross_entropy` and Q its sum.

    Parameters
    ----------
    logits
    targets
    axis
    reduction
    out
    **options

    Returns
    -------
    loss : numpy scalar or ndarray
        As `cross_entropy` returns it.
    grad : ndarray
        `out`, or a fresh array of the dtype of `logits`. 16-bit gradients are the float32 result,
        rounded once.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `cross_entropy`; also for an `out` that does not fit, is read-only or overlaps an input.
        Nothing has been written then.
    KeyboardInterrupt
        Within some 0.1 s of Ctrl-C; `out` may be partly written then, as a note on it says.

    Notes
    -----
    The gradient of the target is ``-(1 - p_y)`` from the sum of the other classes, never
    ``p_y - 1``: docs/mathematics.md.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import cross_entropy_and_grad
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    >>> loss, grad = cross_entropy_and_grad(logits, [0, 2], reduction="sum")
    >>> grad.round(3)
    array([[-0.156,  0.114,  0.042],
           [ 0.333,  0.333, -0.667]])
    """
    plain = None if options else plain_loss(logits, targets, axis, reduction, True, out)
    if plain is not None:
        return plain  # type: ignore[return-value]
    array, axis = check_logits(logits, axis)
    checked = check_options(options, "cross_entropy_and_grad")
    problem = make_problem(array, targets, axis, *checked, check_reduction(reduction))
    if out is None:
        grad = fresh_output(array)
    else:
        grad = check_out(out, array, inputs(problem, options.get("class_weight")))
    loss = compute_loss(problem, array, axis, grad)
    return loss, returned(grad) if out is None else out


@quiet
def row_loss_and_grad(
    logits_row: HostArray, target: int | np.integer[Any], out_row: Array
) -> np.floating[Any]:
    """The loss of one row; its gradient goes to `out_row`.

    For loops over rows in functions that Numba compiles, where it takes no options and makes no
    array: docs/recipes.md.

    Parameters
    ----------
    logits_row : array_like of shape (C,)
        Unnormalised scores.
    target : int
        The class index.
    out_row : ndarray of shape (C,)
        Where the gradient goes; ``out_row=logits_row`` works in place.

    Returns
    -------
    numpy scalar
        As `cross_entropy` returns it.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy_and_grad`.

    Notes
    -----
    ``cross_entropy_and_grad(logits_row, target, out=out_row)[0]``, with its bits.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import row_loss_and_grad
    >>> grad = np.empty(2)
    >>> bool(row_loss_and_grad(np.zeros(2), 0, grad) == np.log(2)), grad
    (True, array([-0.5,  0.5]))
    """
    return cross_entropy_and_grad(logits_row, target, out=out_row)[0]


# fmt: off
@overload
def cross_entropy_grad_and_hess(
    logits: DeviceArray, targets: Any, *, axis: int = ..., sample_weight: Any = ...,
    hess: Hess = ..., out: Any = ...,
) -> tuple[Any, Any]: ...
@overload
def cross_entropy_grad_and_hess(
    logits: HostArray, targets: HostArray, *, axis: int = ...,
    sample_weight: HostArray | None = ..., hess: Hess = ..., out: tuple[Array, Array] | None = ...,
) -> tuple[Array, Array]: ...
# fmt: on
@documented
@quiet
def cross_entropy_grad_and_hess(
    logits: AnyArray,
    targets: AnyArray,
    *,
    axis: int = -1,
    sample_weight: AnyArray | None = None,
    hess: Hess = "diagonal",
    out: Any = None,
) -> tuple[Array, Array]:
    """Gradient and diagonal Hessian of each row's loss, as gradient boosting wants them.

    ``grad = s (Q p - t)`` and ``hess = s Q p (1 - p)``, with Q = 1 for class indices and the sum
    of t for probabilities.

    Parameters
    ----------
    logits
    targets
    axis
    sample_weight
    hess : {"diagonal", "xgboost", "lightgbm"}
        ``p (1 - p)``; ``max(2 p (1 - p), 1e-16)`` as XGBoost uses it; ``C / (C - 1) p (1 - p)`` as
        LightGBM does.
    out : pair of ndarray, optional
        Where gradient and Hessian go: each of the shape and dtype of `logits`, or float32 for
        16-bit logits. One of them may be `logits`.

    Returns
    -------
    grad : ndarray
        `out[0]`, or a fresh array of the dtype of `logits`.
    hess : ndarray
        `out[1]`, or a fresh array of the dtype of `logits`.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `cross_entropy_and_grad`.

    Notes
    -----
    1 - p is the sum of the other classes over Z, never 1 minus p: docs/mathematics.md. The factors
    are those of the sources of XGBoost (`multiclass_obj`) and LightGBM (`MulticlassSoftmax`).

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import cross_entropy_grad_and_hess
    >>> grad, hess = cross_entropy_grad_and_hess(np.zeros((1, 4)), [1])
    >>> grad
    array([[ 0.25, -0.75,  0.25,  0.25]])
    >>> hess
    array([[0.1875, 0.1875, 0.1875, 0.1875]])
    """
    array, axis = check_logits(logits, axis)
    kind = check_choice(hess, "hess", get_args(Hess))
    options = LossOptions(ignore_index=None)
    problem = make_problem(array, targets, axis, None, sample_weight, options, "none")
    if out is None:
        grad, hessian = fresh_output(array), fresh_output(array)
    else:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise TypeError(f"out is a {type(out).__name__}: expected a pair of arrays")
        others = inputs(problem, None)
        grad = check_out(out[0], array, others, "out[0]")
        hessian = check_out(out[1], array, (*others, (grad, "out[0]")), "out[1]")
    if problem.logits.shape[-1] == 0 and 0 not in problem.logits.shape[:-1]:
        raise no_classes(array, axis)
    if array.size:
        backend(on_device(array)).run_grad_hess(
            problem, classes_last(grad, axis), classes_last(hessian, axis), kind
        )
    return (returned(grad), returned(hessian)) if out is None else (out[0], out[1])
