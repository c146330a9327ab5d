"""Arrays larger than memory: block after block of rows, read ahead by a thread.

A thread reads the next blocks while the kernels work on this one. At most three blocks and one
gradient are in memory. The targets are read twice: the first time for the denominator of the
mean, so that one pass over the logits gives loss and scaled gradient.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, Unpack

import numpy as np

from numba_ce._files import check_array, origin
from numba_ce._foreign import is_sparse
from numba_ce._quiet import quiet
from numba_ce._validate import (
    Array,
    Problem,
    check_logits,
    check_out,
    make_problem,
    shown,
)
from numba_ce.blocks import (
    Block,
    Source,
    block_indices,
    blocks_of_arrays,
    blocks_of_blocks,
    float_dtype,
    full_index,
    is_blocks,
    is_path,
    numpy_dtype,
    read_ahead,
)
from numba_ce.npy import Index, NpyWriter
from numba_ce.options import (
    Keywords,
    LossOptions,
    Reduction,
    check_options,
    check_reduction,
    documented,
)
from numba_ce.results import (
    clear_mean_over_nothing,
    fresh_output,
    loss_sums,
    no_classes,
    reduced,
    result_dtype,
)
from numba_ce.weights import mean_weights, stand_in, total_weight

Progress = Callable[[int, int | None], None]


class StreamResult(NamedTuple):
    """What `stream` returns."""

    loss: Any  # as cross_entropy returns it
    weight: float  # the denominator of the mean
    n_rows: int
    n_classes: int
    n_bytes: int  # of the logits
    seconds: float


class Options(NamedTuple):
    """The arguments of `stream` that are the same for every block, the last two checked."""

    axis: int = -1
    class_weight: Any = None
    loss: LossOptions = LossOptions()
    reduction: str = "mean"

    @quiet
    def problem(self, logits: Array, targets: Any, sample_weight: Any) -> Problem:
        """The arguments of one call, checked."""
        array, axis = check_logits(logits, self.axis)
        return make_problem(
            array, targets, axis, self.class_weight, sample_weight, self.loss, self.reduction
        )


def _weigh(
    logits: Source,
    targets: Source,
    sample_weight: Source | None,
    options: Options,
    indices: list[Index],
) -> float:
    """The denominator of the mean; checks every argument and target before work begins."""
    shape, axis = logits.shape, options.axis
    s = None if sample_weight is None else stand_in(sample_weight.shape, sample_weight.dtype)
    y = stand_in(targets.shape, targets.dtype)
    whole = options.problem(stand_in(shape, logits.dtype), y, s)
    if whole.logits.shape[-1] == 0 and indices:
        raise no_classes(whole.logits, axis)
    total = 0.0
    for index in indices:
        lengths = [i.stop - i.start for i in index]
        here = (*lengths[:axis], shape[axis], *lengths[axis:])
        # Of probabilities only the shape counts
        y = stand_in(here, targets.dtype) if whole.probabilities else targets[index]
        s = None if sample_weight is None else sample_weight[index]
        problem = options.problem(stand_in(here, logits.dtype), y, s)
        total += total_weight(problem, tuple(i.start for i in index))
    return total


def _sink(grad_out: Any, logits: Source, axis: int, others: tuple[Any, ...]) -> Any:
    """Where gradients go: a new file, or anything that fits and takes slices.

    others : what it must not overwrite, with names, as for `check_out`
    """
    dtype = logits.dtype.newbyteorder("=")
    if is_path(grad_out):
        # Rows in one piece each, so that a block is written in one piece
        fortran = axis == 0 and len(logits.shape) > 1
        inputs = [(name, origin(array)) for array, name in ((logits.array, "logits"), *others)]
        return NpyWriter(grad_out, "grad_out", logits.shape, dtype, fortran, inputs)
    takes = hasattr(grad_out, "__setitem__") and not is_sparse(grad_out)
    if not takes or numpy_dtype(grad_out) is None:
        raise TypeError(f"grad_out is a {type(grad_out).__name__}: expected a path or an array")
    if tuple(grad_out.shape) != logits.shape:
        raise ValueError(f"grad_out has shape {grad_out.shape}: expected {logits.shape}")
    if np.dtype(grad_out.dtype).name != dtype.name:
        raise ValueError(f"grad_out has dtype {grad_out.dtype}: expected {dtype.name}")
    if isinstance(grad_out, np.ndarray):
        in_memory = isinstance(logits.array, np.ndarray)
        like = logits.array if in_memory else stand_in(logits.shape, dtype)
        check_out(grad_out, like, others, "grad_out")
    check_array(grad_out, "grad_out", logits.array, others)
    return grad_out


class _Job(NamedTuple):
    """What `run` works through; of blocks of logits only these and the options are known yet."""

    blocks: Generator[Block]
    options: Options
    rows: tuple[int, ...] | None  # their shape
    n_classes: int
    dtype: np.dtype[Any]  # of the losses
    weight: float
    sink: Any


@quiet
def _prepare(
    logits: Any,
    others: dict[str, Any],
    options: Options,
    grad_out: Any,
    dtype: Any,
    close_later: Any,
) -> _Job:
    """Open everything and check what can be checked."""
    class_weight = options.class_weight
    if is_path(class_weight):
        class_weight = Source(class_weight, "class_weight", dtype)
        close_later(class_weight.close)
        options = options._replace(class_weight=class_weight[()])
        class_weight = class_weight.array
    in_blocks = is_blocks(logits, "logits", 2)
    for name, value in others.items():
        if value is None:
            continue
        blocks_too = is_blocks(value, name, 1, lists=in_blocks)
        others[name] = iter(value) if blocks_too else Source.of(value, name, dtype)
        if isinstance(others[name], Source):
            close_later(others[name].close)
    if in_blocks:
        if grad_out is not None:
            raise ValueError("grad_out: not with blocks of logits, expected them in one array")
        blocks = blocks_of_blocks(logits, others, options.axis, dtype)
        return _Job(blocks, options, None, 0, np.dtype(np.float64), 0.0, None)
    source = Source.of(logits, "logits", dtype)
    close_later(source.close)
    shape = source.shape
    like = stand_in(shape, source.dtype)
    _, axis = check_logits(like, options.axis)
    if len(shape) < 2:
        raise ValueError(f"logits have shape {shape}: expected rows and classes")
    for name, other in others.items():
        if isinstance(other, Iterator):
            raise TypeError(f"{name} are blocks and logits are not: expected an array")
    options = options._replace(axis=axis)
    indices = list(
        block_indices(shape, axis, source.dtype.itemsize, getattr(source.array, "chunks", None))
    )
    targets, sample_weight = others["targets"], others["sample_weight"]
    weight = _weigh(source, targets, sample_weight, options, indices)
    blocks = blocks_of_arrays(source, targets, sample_weight, axis, indices)
    sink = None
    if grad_out is not None:
        arrays = [(other.array, name) for name, other in others.items() if other is not None]
        arrays.append((class_weight, "class_weight"))
        sink = _sink(grad_out, source, axis, tuple(arrays))
    rows = shape[:axis] + shape[axis + 1 :]
    return _Job(blocks, options, rows, shape[axis], result_dtype(like), weight, sink)


@quiet
def _compute(block: Block, job: _Job) -> tuple[float, Array | None, Array | None]:
    """The sum of a block's losses, and if wanted each of them, and the gradient."""
    options, s = job.options, block.sample_weight
    if job.sink is not None and options.reduction == "mean":
        s = mean_weights(s, tuple(i.stop - i.start for i in block.rows), job.weight)
    # The denominator of a mean is that of all blocks
    options = options._replace(reduction="none" if options.reduction == "none" else "sum")
    problem = options.problem(block.logits, block.targets, s)
    per_row = grad = None
    if options.reduction == "none":
        per_row = np.empty(problem.logits.shape[:-1], result_dtype(block.logits))
    if job.sink is not None:
        in_place = block.ours and block.logits.dtype.isnative
        grad = block.logits if in_place else fresh_output(block.logits)
    total, _ = loss_sums(problem, block.logits, options.axis, per_row, grad)
    if grad is not None:
        clear_mean_over_nothing(grad, job.weight, job.options.reduction)
    return total, per_row, grad


def run(
    logits: Any,
    targets: Any,
    sample_weight: Any,
    options: Options,
    grad_out: Any = None,
    progress: Progress | None = None,
    visit: Callable[[Block], None] | None = None,
    dtype: Any = None,
) -> StreamResult:
    """`stream`, which shows each block to `visit` before its gradient may overwrite it."""
    begin = time.perf_counter()
    per_row: list[tuple[Index, Array]] = []
    n_rows = n_bytes = 0
    total = 0.0
    with contextlib.ExitStack() as stack:
        others = {"targets": targets, "sample_weight": sample_weight}
        given = None if dtype is None else float_dtype(dtype)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress = {shown(progress)}: expected a function or None")
        job = _prepare(logits, others, options, grad_out, given, stack.callback)
        options, weight, dtype, n_classes = job.options, job.weight, job.dtype, job.n_classes
        if isinstance(job.sink, NpyWriter):
            stack.callback(job.sink.discard)  # of nothing, once it is committed
        elif job.sink is not None:
            stack.push(_note_parts)
        blocks = read_ahead(job.blocks)
        stack.callback(blocks.close)
        for block in blocks:
            if job.rows is None:
                problem = options.problem(block.logits, block.targets, block.sample_weight)
                weight += total_weight(problem, tuple(i.start for i in block.rows))
            if visit is not None:
                visit(block)
            loss, losses, grad = _compute(block, job)
            if grad is not None:
                job.sink[full_index(block.rows, options.axis)] = grad
            total += loss
            if losses is not None:
                per_row.append((block.rows, losses))
            n_rows += math.prod(i.stop - i.start for i in block.rows)
            n_bytes += block.logits.nbytes
            n_classes, dtype = block.logits.shape[options.axis], result_dtype(block.logits)
            if progress is not None:
                progress(n_rows, None if job.rows is None else math.prod(job.rows))
            del block, grad  # before another is asked for: no more than three are in memory
        if isinstance(job.sink, NpyWriter):
            job.sink.commit()
    result: Any
    if options.reduction == "none":
        result = _assembled(per_row, job.rows, dtype)
    else:
        # With a gradient the rows came out divided already
        divisor = weight if job.sink is None else float(weight != 0.0)
        result = quiet(reduced)(total, divisor, options.reduction, dtype)
    return StreamResult(result, weight, n_rows, n_classes, n_bytes, time.perf_counter() - begin)


def _note_parts(kind: Any, error: BaseException | None, traceback: Any) -> None:
    """Say with the exception that ended a stream into an array what it leaves there."""
    if error is not None:
        error.add_note("numba_ce was interrupted: the array grad_out may be partly written")


def _assembled(
    parts: list[tuple[Index, Array]], rows: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> Any:
    """The losses of all rows, whose shape is that of the blocks seen if it was not known before."""
    if rows is None:
        ends = zip(*(index for index, _ in parts), strict=True)
        rows = tuple(max(axis.stop for axis in axes) for axes in ends) or (0,)
    whole = np.empty(rows, dtype)
    for index, part in parts:
        whole[index] = part
    return whole


@documented
def stream(
    logits: Any,
    targets: Any,
    *,
    axis: int = -1,
    reduction: Reduction = "mean",
    grad_out: Any = None,
    progress: Progress | None = None,
    dtype: Any = None,
    **options: Unpack[Keywords],
) -> StreamResult:
    """`cross_entropy`, and its gradient, of logits that need not fit into memory.

    The formula is that of `cross_entropy`; the rows are read in blocks, the next blocks while this
    one is computed.

    Parameters
    ----------
    logits : path, array, or iterable of arrays and paths
        An .npy file, or the directory of a Zarr array (extra `zarr`); a memory map, a Zarr or HDF5
        array, or whatever else has a shape, a dtype and slices; or blocks that follow each other
        along their first axis, each an array or a file. At least two axes.
    targets : path, array, or iterable of arrays and paths
        Class indices in the shape of `logits` without `axis`, or probabilities in the shape of
        `logits`. With blocks of logits they may be blocks too, of the same rows.
    axis
    reduction
    grad_out : path or array, optional
        Where the gradient goes: an .npy file, which appears under its name when it is complete, or
        an array of the shape and dtype of the logits, as a memory map; ``grad_out=logits`` works
        in place. Not with blocks. A file that exists keeps its mode, and a link leads to the new
        file; anything but a file, and a file that is read, is refused.
    progress : callable, optional
        Called as ``progress(rows done, rows in all)`` after each block; the second is None if the
        logits are blocks.
    dtype : dtype_like, optional
        What ``"|V2"`` means in files and arrays: NumPy stores bfloat16 (also as a gradient) as
        two bytes without a type. ``dtype="bfloat16"`` needs `ml_dtypes`; elsewhere
        ``numpy.load(path).view(ml_dtypes.bfloat16)`` does the same.
    class_weight : path or array_like of shape (C,), optional
        One weight per class, of any sign.
    sample_weight : path, array, or iterable of arrays and paths, optional
        One weight per row, of any sign; with blocks of logits it may be blocks too.
    **options

    Returns
    -------
    StreamResult
        ``loss, weight, n_rows, n_classes, n_bytes, seconds``: the loss, the denominator of the
        mean, the size of the logits and the time for all of it.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `cross_entropy`, before anything is written; for a file that is not what it should be.
    OSError
        From reading or writing, as for a full disk. No file is left under the name `grad_out`; an
        array may be partly written, as a note on the exception says.
    ImportError
        For a directory, without Zarr; for bfloat16, without ml_dtypes.

    Notes
    -----
    Row losses are added in float64, before they are rounded. An .npy file is read with plain reads,
    not mapped, so that an address space smaller than the file will do.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import stream
    >>> blocks = (np.zeros((100, 4)) for _ in range(3))
    >>> result = stream(blocks, np.zeros(300, np.int64))
    >>> float(result.loss.round(4)), result.n_rows
    (1.3863, 300)
    """
    if targets is None:
        raise TypeError("targets is None: expected a path, an array or an iterable of arrays")
    class_weight, sample_weight, loss = check_options(options, "stream")
    for_all = Options(axis, class_weight, loss, check_reduction(reduction))
    return run(logits, targets, sample_weight, for_all, grad_out, progress, dtype=dtype)
