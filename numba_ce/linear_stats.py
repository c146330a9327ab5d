"""Statistics of the rows of a linear layer, without its logits: perplexity and policy gradients."""

from __future__ import annotations

from typing import Any, overload

import numpy as np

from numba_ce._quiet import quiet
from numba_ce._validate import Array, as_array
from numba_ce.linear import make_layer
from numba_ce.options import (
    TABLE,
    AnyArray,
    DeviceArray,
    HostArray,
    LossOptions,
    check_ignore_index,
    documented,
)
from numba_ce.row_statistics import RowStats, row_stats
from numba_ce.weights import check_indices, stand_in


# fmt: off
@overload
def linear_row_stats(
    hidden: DeviceArray, weight: Any, targets: Any = ..., *, bias: Any = ...,
    ignore_index: int | None = ..., temperature: float = ..., chunk_rows: int | None = ...,
) -> RowStats[Any]: ...
@overload
def linear_row_stats(
    hidden: HostArray, weight: HostArray, targets: None = ..., *, bias: HostArray | None = ...,
    ignore_index: int | None = ..., temperature: float = ..., chunk_rows: int | None = ...,
) -> RowStats[None]: ...
@overload
def linear_row_stats(
    hidden: HostArray, weight: HostArray, targets: HostArray, *, bias: HostArray | None = ...,
    ignore_index: int | None = ..., temperature: float = ..., chunk_rows: int | None = ...,
) -> RowStats[Array]: ...
# fmt: on
@documented
@quiet
def linear_row_stats(
    hidden: Any,
    weight: AnyArray,
    targets: AnyArray | None = None,
    *,
    bias: AnyArray | None = None,
    ignore_index: int | None = -100,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
) -> RowStats[Any]:
    """`row_stats` of the logits ``hidden @ weight.T + bias``, which are never held at once.

    The log-probability of the target is ``-loss``: with it and the entropy, policy gradients and
    perplexity need no N x C array.

    Parameters
    ----------
    hidden : array_like of shape (N, D)
        float32 or float64; or a CuPy array, also float16 or bfloat16. All arrays lie on one side.
    weight : array_like of shape (C, D)
        Of the dtype of `hidden`; pass the transposed view of a (D, C) matrix.
    targets : array_like of int, optional
        Class indices (N,).
    bias : array_like of shape (C,), optional
        Of the dtype of `hidden`.
    ignore_index : int or None
        Rows with this class index have loss 0, target_logit NaN and rank C.
    temperature : float
        The logits are divided by it, so every field is that of the tempered distribution.
    chunk_rows : int, optional
        Rows whose logits are held at a time; 512, or more if there are few classes.

    Returns
    -------
    RowStats
        As `row_stats`, each field of shape (N,).

    Raises
    ------
    ValueError, TypeError
        As `row_stats` and `linear_cross_entropy`.

    Notes
    -----
    Each chunk is one product of BLAS and one pass of `row_stats`, which writes nothing of its size.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import linear_row_stats
    >>> stats = linear_row_stats(np.eye(2), np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), [0, 2])
    >>> stats.argmax, stats.rank, (-stats.loss).round(3)
    (array([0, 1]), array([0, 1]), array([-0.24, -2.24]))
    """
    check = TABLE["temperature"].check
    assert check is not None
    temperature = check(temperature)
    options = LossOptions(ignore_index=check_ignore_index(ignore_index))
    if targets is None and not hasattr(hidden, "shape"):
        hidden = as_array(hidden, "hidden")
    # Any will do where there are none: they are not looked at
    checked = stand_in(hidden.shape[:1], np.int64) if targets is None else targets
    layer = make_layer(hidden, weight, checked, bias, None, None, options, "none", chunk_rows)
    if layer.problem.probabilities:
        raise TypeError("targets are probabilities: linear_row_stats expects class indices")
    n_rows, n_classes = layer.problem.logits.shape
    check_indices(layer.problem, n_classes)
    xp, step = layer.xp, layer.chunk_rows
    buffer = xp.empty((step, n_classes), layer.problem.logits.dtype)
    found: list[RowStats[Any]] = []
    for start in range(0, max(n_rows, 1), step):
        rows = slice(start, start + step)
        logits = buffer[: len(layer.hidden[rows])]
        xp.matmul(layer.hidden[rows], layer.weight.T, out=logits)
        if layer.bias is not None:
            logits += layer.bias
        if temperature != 1.0:
            logits /= temperature
        given = None if targets is None else layer.targets[rows]
        found.append(row_stats(logits, given, ignore_index=ignore_index))
    parts = zip(*found, strict=True)
    fields: list[Any] = [None if part[0] is None else xp.concatenate(part) for part in parts]
    return RowStats(*fields)
