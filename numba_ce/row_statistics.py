"""`row_stats`: check, choose a backend."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np

from numba_ce._backend import backend
from numba_ce._quiet import quiet
from numba_ce._validate import (
    Array,
    Problem,
    check_logits,
    classes_last,
    make_problem,
    on_device,
)
from numba_ce.options import (
    AnyArray,
    DeviceArray,
    HostArray,
    LossOptions,
    check_ignore_index,
    documented,
)
from numba_ce.results import fresh_rows, no_classes, result_dtype, returned

OfTarget = TypeVar("OfTarget")


class RowStats(NamedTuple, Generic[OfTarget]):
    """What `row_stats` returns; every field has one entry per row.

    Of equal classes `argmax` is the first, and none counts in the `rank` of another.
    """

    row_max: Array
    lse: Array
    argmax: Array
    entropy: Array
    target_logit: OfTarget
    loss: OfTarget
    rank: OfTarget


# fmt: off
@overload
def row_stats(
    logits: DeviceArray, targets: Any = ..., *, axis: int = ..., ignore_index: int | None = ...
) -> RowStats[Any]: ...
@overload
def row_stats(
    logits: HostArray, targets: None = ..., *, axis: int = ..., ignore_index: int | None = ...
) -> RowStats[None]: ...
@overload
def row_stats(
    logits: HostArray, targets: HostArray, *, axis: int = ..., ignore_index: int | None = ...
) -> RowStats[Array]: ...
# fmt: on
@documented
@quiet
def row_stats(
    logits: AnyArray,
    targets: AnyArray | None = None,
    *,
    axis: int = -1,
    ignore_index: int | None = -100,
) -> RowStats[Any]:
    """Maximum, log-sum-exp, entropy and, with targets, loss and rank of each row, in one pass.

    ``lse = log(sum(exp(z)))``, ``entropy = -sum(p log p)``, ``loss = lse - z_y``.

    Parameters
    ----------
    logits
    targets : array_like of int, optional
        Class indices, in the shape of `logits` without `axis`.
    axis
    ignore_index : int or None
        Rows with this class index have loss 0, target_logit NaN and rank C.

    Returns
    -------
    RowStats
        ``row_max, lse, argmax, entropy`` and ``target_logit, loss, rank`` (None without targets).
        Floats have the dtype of `cross_entropy`'s loss. `argmax` (int64) is the first maximum;
        `rank` (int64) is the number of classes that score strictly above the target. Without ties
        ``rank < k`` says whether the target is among the top k; with ties it says so of all equal
        classes, while ``argmax == targets`` counts the first alone. A row with NaN or +inf has
        entropy and loss NaN and rank C.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `cross_entropy`; TypeError for probabilities.

    Notes
    -----
    The entropy is ``sum p_j ((m - z_j) + (lse - m))``, terms of one sign: docs/mathematics.md.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import row_stats
    >>> stats = row_stats(np.array([[1.0, 3.0, 2.0]]), [2])
    >>> stats.argmax, stats.rank
    (array([1]), array([1]))
    """
    array, axis = check_logits(logits, axis)
    options = LossOptions(ignore_index=check_ignore_index(ignore_index))
    if targets is None:
        problem = Problem(classes_last(array, axis), None, False, None, None, options, "none")
    else:
        problem = make_problem(array, targets, axis, None, None, options, "none")
        if problem.probabilities:
            raise TypeError("targets are probabilities: row_stats expects class indices")
    rows, dtype = problem.logits.shape[:-1], result_dtype(array)
    floats = ["row_max", "lse", "entropy"] + ([] if targets is None else ["target_logit", "loss"])
    outputs: dict[str, Any] = {name: fresh_rows(array, rows, dtype) for name in floats}
    for name in ("argmax",) if targets is None else ("argmax", "rank"):
        outputs[name] = fresh_rows(array, rows, np.int64)
    if 0 not in rows:
        if problem.logits.shape[-1] == 0:
            raise no_classes(array, axis)
        backend(on_device(array)).run_row_stats(problem, outputs)
    if on_device(array):
        outputs = {name: returned(value) for name, value in outputs.items()}
    elif not rows:
        outputs = {name: value[()] for name, value in outputs.items()}
    fields: list[Any] = [outputs.get(name) for name in RowStats._fields]
    return RowStats(*fields)
