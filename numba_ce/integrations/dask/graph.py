"""The parts of a Dask graph: arguments as arrays that fit each other, records, their merging."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from numpy.lib.array_utils import normalize_axis_index

import numba_ce
from numba_ce._foreign import numpy_array
from numba_ce.integrations.dask import tasks
from numba_ce.options import with_defaults
from numba_ce.records import N_FIELDS
from numba_ce.results import result_dtype
from numba_ce.weights import row_weights

# So many records, one for each block of classes, are merged by one task
SPLIT_EVERY = 8


class Arrays(NamedTuple):
    """The arguments as Dask arrays whose blocks fit each other, and the names of their axes."""

    z: Any
    y: Any
    s: Any
    w: Any
    offset: Any  # the first class of each block of classes
    axis: int
    every: tuple[int, ...]  # the axes of z
    rows: tuple[int, ...]  # these without the classes

    @property
    def of_targets(self) -> tuple[int, ...]:
        """The axes of the targets."""
        return self.every if self.y.ndim == self.z.ndim else self.rows

    @property
    def whole_rows(self) -> bool:
        """Whether no row is cut."""
        return len(self.z.chunks[self.axis]) == 1

    @property
    def dtype(self) -> Any:
        """The dtype of losses."""
        return result_dtype(self.z)

    def call(self, task: Any, out: tuple[int, ...], *pairs: Any, **options: Any) -> Any:
        """da.blockwise, where an absent array is an ordinary argument."""
        arguments: list[Any] = []
        for array, axes in zip(pairs[::2], pairs[1::2], strict=True):
            arguments += [array, None if array is None else axes]
        options = {"concatenate": True, "align_arrays": False, "token": task.__name__} | options
        options["token"] = "cross_entropy-" + options["token"]
        options.setdefault("meta", np.empty((0,) * len(out), options.get("dtype", object)))
        return da.blockwise(task, out, *arguments, **options)

    def of_problem(self) -> tuple[Any, ...]:
        """The first arguments of most tasks, with their axes."""
        return (
            self.z,
            self.every,
            self.y,
            self.of_targets,
            self.s,
            self.rows,
            self.w,
            (self.axis,),
        )


def _check_known(array: Any, name: str) -> None:
    if any(math.isnan(n) for n in getattr(array, "shape", ())):
        raise ValueError(f"{name} have unknown chunk sizes: expected {name}.compute_chunk_sizes()")


def check_logits(logits: Any, axis: Any) -> int:
    """The class axis of a Dask array with known chunks."""
    if not isinstance(logits, da.Array):
        raise TypeError(f"logits are a {type(logits).__name__}: expected a dask.array.Array")
    _check_known(logits, "logits")
    if logits.ndim < 2:
        raise ValueError(f"logits have shape {logits.shape}: expected rows and classes")
    return normalize_axis_index(axis, logits.ndim)


def _like(value: Any, chunks: Any, name: str) -> Any:
    """An argument with a value for each row, in the blocks of the rows."""
    shape = tuple(map(sum, chunks))
    _check_known(value, name)
    array = (
        value if isinstance(value, da.Array) else da.from_array(numpy_array(value, name), chunks=-1)
    )
    if array.shape != shape:
        raise ValueError(f"{name} have shape {array.shape}: expected {shape}")
    return array.rechunk(chunks)


def make_arrays(
    logits: Any, targets: Any, axis: Any, class_weight: Any = None, sample_weight: Any = None,
    **options: Any,
) -> Arrays:  # fmt: skip
    """Check everything but the values of the targets, and cut the arguments as the logits are."""
    axis = check_logits(logits, axis)
    every = tuple(range(logits.ndim))
    rows = every[:axis] + every[axis + 1 :]
    row_chunks = tuple(logits.chunks[i] for i in rows)
    classes = logits.chunks[axis]
    if not isinstance(targets, da.Array):
        targets = numpy_array(targets, "targets")
    y = _like(targets, logits.chunks if targets.ndim == logits.ndim else row_chunks, "targets")
    s = w = None
    if sample_weight is not None:
        s = _like(sample_weight, row_chunks, "sample_weight")
    if class_weight is not None:
        _check_known(class_weight, "class_weight")
        class_weight = numpy_array(class_weight, "class_weight")
    # No rows, all classes: raises now for whatever the tasks would raise but for bad targets
    nothing = [0 if i != axis else n for i, n in enumerate(logits.shape)]
    numba_ce.cross_entropy(
        np.empty(nothing, logits.dtype),
        np.empty([nothing[i] for i in (every if y.ndim == logits.ndim else rows)], y.dtype),
        axis=axis,
        class_weight=class_weight,
        sample_weight=None if s is None else np.empty((0,) * len(rows), s.dtype),
        **options,
    )
    if logits.shape[axis] == 0 and math.prod(map(sum, row_chunks)):
        raise ValueError(f"logits of shape {logits.shape} have no classes along axis {axis}")
    if class_weight is not None:
        w = da.from_array(class_weight.astype(np.float64), chunks=(classes,))
    if y.ndim < logits.ndim and options.get("check_targets", True):
        # Here, where it is known which part of the targets a block is; once for the rows of a band
        ignore_index = with_defaults(options)["ignore_index"]
        y = y.map_blocks(
            tasks.checked, logits.shape[axis], ignore_index, dtype=y.dtype,
            meta=np.empty((0,) * y.ndim, y.dtype),
        )  # fmt: skip
    starts = np.cumsum((0, *classes[:-1]))
    return Arrays(logits, y, s, w, da.from_array(starts, chunks=1), axis, every, rows)


def denominator_of(arrays: Arrays, ignore_index: int | None, class_weight: Any) -> Any:
    """What the mean divides by, 0-d; it never waits for the logits."""
    if arrays.y.ndim == arrays.z.ndim:
        n_rows = math.prod(arrays.z.shape[i] for i in arrays.rows)
        return da.asarray(np.float64(n_rows)) if arrays.s is None else total_of(arrays.s)
    weights = arrays.call(
        row_weights, arrays.rows, arrays.y, arrays.rows,
        None if class_weight is None else np.asarray(class_weight, np.float64), None,
        arrays.s, arrays.rows,
        dtype=np.dtype("f8"), n_classes=arrays.z.shape[arrays.axis], ignore_index=ignore_index,
    )  # fmt: skip
    return total_of(weights)


def records_of(arrays: Arrays, **options: Any) -> Any:
    """The merged record of each row, (*rows, 9)."""
    last = len(arrays.every)
    parts = arrays.call(
        tasks.record, (*arrays.rows, arrays.axis, last), *arrays.of_problem(),
        arrays.offset, (arrays.axis,), new_axes={last: N_FIELDS}, adjust_chunks={arrays.axis: 1},
        dtype=np.dtype("f8"), n_classes=arrays.z.shape[arrays.axis], axis=arrays.axis, **options,
    )  # fmt: skip
    return reduced(parts, tasks.merged)


def losses_of(record: Any) -> Any:
    """The loss of each row, in float64."""
    return record.map_blocks(
        numba_ce.loss_from_record, drop_axis=record.ndim - 1, dtype=np.dtype("f8")
    )


def rounded(array: Any, dtype: Any) -> Any:
    """`astype` that says nothing about what becomes infinite."""
    return array.map_blocks(tasks.rounded, dtype.name, dtype=dtype)


def total_of(values: Any) -> Any:
    """Their sum in float64, 0-d."""
    return da.reduction(
        values, chunk=tasks.total, aggregate=tasks.total, dtype=np.dtype("f8"), concatenate=True
    )


def reduced(parts: Any, merge: Any) -> Any:
    """The parts of the blocks of classes, the last axis but one, merged in a tree."""
    return da.reduction(
        parts, chunk=tasks.kept, combine=merge, aggregate=merge, axis=parts.ndim - 2,
        split_every=SPLIT_EVERY, concatenate=True, dtype=np.dtype("f8"),
        meta=np.empty((0,) * (parts.ndim - 1)),
    )  # fmt: skip
