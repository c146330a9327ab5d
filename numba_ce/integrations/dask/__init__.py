"""Lazy cross-entropy of Dask arrays, in chunks of rows and of classes.

A task calls the public functions on one block, serially: Dask runs as many tasks as there are
cores. Rows whose classes lie in one block take one task for loss and gradient. Rows cut into
several blocks of classes are summed up by a record for each block (`numba_ce.row_record`, 72 bytes
per row), the records are merged in a tree, and the gradient of a block follows from the merged
record and the block. No row is ever put together.
"""

from __future__ import annotations

from typing import Any, Unpack

import dask.array as da
import numpy as np
from dask.graph_manipulation import clone

import numba_ce
from numba_ce import RowStats
from numba_ce._quiet import quiet
from numba_ce.integrations.dask import tasks
from numba_ce.integrations.dask.graph import (
    Arrays,
    check_logits,
    denominator_of,
    losses_of,
    make_arrays,
    records_of,
    reduced,
    rounded,
    total_of,
)
from numba_ce.options import Keywords, documented, with_defaults


@documented
@quiet
def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    axis: int = -1,
    reduction: str = "mean",
    **options: Unpack[Keywords],
) -> Any:
    """`numba_ce.cross_entropy` of a Dask array, lazily.

    Parameters
    ----------
    logits : dask.array.Array
        In blocks of rows, of classes, or of both; at least two axes.
    targets : dask.array.Array or array_like
        Class indices in the shape of `logits` without `axis`, or probabilities in the shape of
        `logits`; cut as the logits are.
    axis
    reduction
    class_weight : array_like of shape (C,), optional
        One weight per class, of any sign, in memory.
    sample_weight : dask.array.Array or array_like, optional
        One weight per row, of any sign; cut as the logits are.
    **options

    Returns
    -------
    dask.array.Array
        0-d for "mean" and "sum", one loss per row for "none".

    Raises
    ------
    ValueError, TypeError
        As `numba_ce.cross_entropy`, at once; for a bad target when it is computed.

    Examples
    --------
    >>> import dask.array as da
    >>> from numba_ce.integrations.dask import cross_entropy
    >>> logits = da.zeros((100, 8), chunks=(30, 4))
    >>> round(float(cross_entropy(logits, da.zeros(100, dtype=int))), 4)
    2.0794
    """
    arrays = make_arrays(logits, targets, axis, reduction=reduction, **options)
    values = with_defaults(options)
    class_weight, ignore_index = values.pop("class_weight"), values["ignore_index"]
    del values["sample_weight"]
    if arrays.whole_rows:
        losses = arrays.call(
            tasks.loss,
            arrays.rows,
            *arrays.of_problem(),
            dtype=arrays.dtype,
            axis=arrays.axis,
            **values,
        )
    else:
        losses = losses_of(records_of(arrays, **values))
    if reduction == "none":
        return rounded(losses, arrays.dtype)
    total = total_of(losses)
    if reduction == "mean":
        denominator = denominator_of(arrays, ignore_index, class_weight)
        total = arrays.call(tasks.mean, (), total, (), denominator, (), dtype=np.dtype("f8"))
    return rounded(total, arrays.dtype)


@documented
@quiet
def cross_entropy_and_grad(
    logits: Any,
    targets: Any,
    *,
    axis: int = -1,
    reduction: str = "mean",
    reload: bool = False,
    **options: Unpack[Keywords],
) -> tuple[Any, Any]:
    """`numba_ce.cross_entropy_and_grad` of a Dask array, lazily.

    Compute both together, ``dask.compute(loss, grad)`` or by storing both: then each block of the
    logits is read once.

    Parameters
    ----------
    logits
    targets
    axis
    reduction
    **options
    reload : bool
        With rows cut into several blocks of classes, all blocks of a band of rows stay in memory
        until the last of them has been seen. If True each is dropped, and read (or computed) again
        for its gradient.

    Returns
    -------
    loss, grad : dask.array.Array
        The gradient in the blocks and the dtype of the logits.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> from numba_ce.integrations.dask import cross_entropy_and_grad
    >>> logits = da.zeros((100, 4), chunks=(30, 2))
    >>> loss, grad = cross_entropy_and_grad(logits, da.zeros(100, dtype=int), reduction="sum")
    >>> loss, grad = dask.compute(loss, grad)
    >>> grad[0]
    array([-0.75,  0.25,  0.25,  0.25])
    """
    arrays = make_arrays(logits, targets, axis, reduction=reduction, **options)
    values = with_defaults(options)
    class_weight, ignore_index = values.pop("class_weight"), values["ignore_index"]
    del values["sample_weight"]
    denominator = None
    if reduction == "mean":
        denominator = denominator_of(arrays, ignore_index, class_weight)
        if arrays.y.ndim == arrays.z.ndim and arrays.s is None:
            like: Any = da.zeros([arrays.z.shape[i] for i in arrays.rows],
                                 chunks=[arrays.z.chunks[i] for i in arrays.rows])  # fmt: skip
        else:
            like = arrays.y if arrays.s is None else arrays.s
        scaled = arrays.call(
            tasks.divided, arrays.rows, like, arrays.rows, arrays.s, arrays.rows, denominator, (),
            dtype=np.dtype("f8"),
        )  # fmt: skip
        arrays = arrays._replace(s=scaled)
    if arrays.whole_rows:
        both = arrays.call(
            tasks.loss_and_grad, arrays.rows, *arrays.of_problem(), axis=arrays.axis, **values
        )
        losses = arrays.call(
            tasks.field, arrays.rows, both, arrays.rows, field=0, dtype=arrays.dtype
        )
        grad = arrays.call(
            tasks.field, arrays.every, both, arrays.rows, field=1, dtype=arrays.z.dtype,
            new_axes={arrays.axis: arrays.z.shape[arrays.axis]},
        )  # fmt: skip
    else:
        record = records_of(arrays, **values)
        losses = losses_of(record)
        z, last = clone(arrays.z) if reload else arrays.z, len(arrays.every)
        grad = arrays.call(
            tasks.grad, arrays.every, z, arrays.every, *arrays.of_problem()[2:],
            arrays.offset, (arrays.axis,), record, (*arrays.rows, last), dtype=arrays.z.dtype,
            axis=arrays.axis, **values,
        )  # fmt: skip
    if reduction == "none":
        return rounded(losses, arrays.dtype), grad
    total = total_of(losses)
    if denominator is not None:
        total = arrays.call(tasks.nan_without, (), denominator, (), total, (), dtype=np.dtype("f8"))
        if not values["check_targets"]:  # a bad target gave NaN
            grad = arrays.call(
                tasks.zero_without, arrays.every, denominator, (), grad, arrays.every,
                dtype=grad.dtype,
            )  # fmt: skip
    return rounded(total, arrays.dtype), grad


@documented
@quiet
def logsumexp(logits: Any, axis: int = -1, *, keepdims: bool = False) -> Any:
    """`numba_ce.logsumexp` of a Dask array, lazily.

    ``log(sum(exp(logits)))`` along `axis`, which may be cut into blocks.

    Parameters
    ----------
    logits : dask.array.Array
        At least two axes.
    axis
    keepdims : bool
        Keep the class axis, with length 1.

    Returns
    -------
    dask.array.Array

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `numba_ce.logsumexp`.

    Examples
    --------
    >>> import dask.array as da
    >>> from numba_ce.integrations.dask import logsumexp
    >>> logsumexp(da.zeros((2, 8), chunks=(1, 2))).compute().round(4)
    array([2.0794, 2.0794])
    """
    axis = check_logits(logits, axis)
    numba_ce.logsumexp(np.empty((0, 1), logits.dtype))  # raises for the dtype
    if len(logits.chunks[axis]) == 1:
        every = tuple(range(logits.ndim))
        rows = every[:axis] + every[axis + 1 :]
        arrays = Arrays(logits, None, None, None, None, axis, every, rows)
        lse = arrays.call(tasks.lse, rows, logits, every, dtype=arrays.dtype, axis=axis)
    else:
        # Probabilities, so that the largest logit is left out. Dask holds one zero for each block
        nothing = da.zeros(logits.shape, chunks=logits.chunks, dtype=np.float32)
        arrays = make_arrays(logits, nothing, axis)
        lse = records_of(arrays).map_blocks(
            tasks.lse_of_record, drop_axis=len(arrays.rows), dtype=np.dtype("f8")
        )
        lse = rounded(lse, arrays.dtype)
    return da.expand_dims(lse, axis) if keepdims else lse


@documented
@quiet
def row_stats(
    logits: Any, targets: Any = None, *, axis: int = -1, ignore_index: int | None = -100
) -> RowStats[Any]:
    """`numba_ce.row_stats` of a Dask array, lazily.

    Parameters
    ----------
    logits : dask.array.Array
        At least two axes.
    targets : dask.array.Array or array_like of int, optional
        Class indices.
    axis
    ignore_index : int or None
        Rows with this class index have loss 0, target_logit NaN and rank C.

    Returns
    -------
    RowStats
        Of Dask arrays. With rows cut into several blocks of classes, `rank` sees every block again
        once the logit of the target is known; only what is computed costs anything.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `numba_ce.row_stats`; for a bad target when it is computed.

    Examples
    --------
    >>> import dask.array as da
    >>> from numba_ce.integrations.dask import row_stats
    >>> row_stats(da.arange(8, chunks=2).astype("f8")[None], [6]).rank.compute()
    array([1])
    """
    given = targets is not None
    axis = check_logits(logits, axis)
    if 0 in logits.chunks[axis]:  # a block without classes has no maximum
        logits = logits.rechunk({axis: tuple(n for n in logits.chunks[axis] if n) or (0,)})
    if not given:
        chunks = [lengths for i, lengths in enumerate(logits.chunks) if i != axis]
        targets = da.zeros([sum(lengths) for lengths in chunks], chunks=chunks, dtype=np.int8)
    arrays = make_arrays(logits, targets, axis, ignore_index=ignore_index)
    if arrays.y.ndim == logits.ndim:
        raise TypeError("targets are probabilities: row_stats expects class indices")
    dtypes: dict[str, Any] = dict.fromkeys(RowStats._fields, arrays.dtype)
    dtypes["argmax"] = dtypes["rank"] = np.dtype(np.int64)
    names = RowStats._fields if given else RowStats._fields[:4]
    fields: dict[str, Any] = dict.fromkeys(RowStats._fields)
    if arrays.whole_rows:
        stats = arrays.call(
            tasks.stats, arrays.rows, logits, arrays.every,
            arrays.y if given else None, arrays.rows, axis=axis, ignore_index=ignore_index,
        )  # fmt: skip
        for name in names:
            fields[name] = arrays.call(
                tasks.field, arrays.rows, stats, arrays.rows, field=RowStats._fields.index(name),
                dtype=dtypes[name],
            )  # fmt: skip
        return RowStats(**fields)
    last = len(arrays.every)
    parts = arrays.call(
        tasks.part, (*arrays.rows, axis, last), logits, arrays.every, arrays.offset, (axis,),
        new_axes={last: 4}, adjust_chunks={axis: 1}, dtype=np.dtype("f8"), axis=axis,
    )  # fmt: skip
    part = reduced(parts, tasks.merged_parts)
    for name in names[:4]:
        stat = part.map_blocks(
            tasks.stat, drop_axis=len(arrays.rows), dtype=np.dtype("f8"), stat=name
        )
        fields[name] = rounded(stat, dtypes[name])
    if given:
        record = records_of(arrays, ignore_index=ignore_index)
        loss = losses_of(record)
        logit = arrays.call(
            tasks.target_logit, arrays.rows, record, (*arrays.rows, last), arrays.y, arrays.rows,
            ignore_index=ignore_index, dtype=np.dtype("f8"),
        )  # fmt: skip
        above = arrays.call(
            tasks.above, (*arrays.rows, axis), logits, arrays.every, logit, arrays.rows,
            adjust_chunks={axis: 1}, dtype=np.dtype("i8"), axis=axis,
        ).sum(axis=-1)  # fmt: skip
        fields["rank"] = arrays.call(
            tasks.rank, arrays.rows, above, arrays.rows, loss, arrays.rows, arrays.y, arrays.rows,
            n_classes=logits.shape[axis], ignore_index=ignore_index, dtype=np.dtype("i8"),
        )  # fmt: skip
        fields["target_logit"] = rounded(logit, arrays.dtype)
        fields["loss"] = rounded(loss, arrays.dtype)
    return RowStats(**fields)
