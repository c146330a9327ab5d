"""Where blocks of rows come from: files, arrays, stores, iterables; read ahead by a thread."""

from __future__ import annotations

import math
import os
import threading
from _thread import start_new_thread
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from contextvars import copy_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.ma import MaskedArray

from numba_ce._foreign import is_sparse, readable
from numba_ce._fork import importing
from numba_ce._validate import FLOATS, Array, as_array, check_logits, float_name, shown
from numba_ce.npy import Index, NpyReader
from numba_ce.weights import stand_in

# Requests to the disk and wake-ups of the threads cost little; longer ones leave the caches
BLOCK_BYTES = 8 << 20
AHEAD = 2


class Block(NamedTuple):
    """Some rows; `logits` has the axes of the whole array."""

    rows: Index  # one slice for each axis but that of the classes
    logits: Array
    targets: Array
    sample_weight: Array | None
    ours: bool  # whether `logits` may be overwritten


def numpy_dtype(value: Any) -> np.dtype[Any] | None:
    """The dtype of an array that names one of NumPy's; torch, for one, has others."""
    try:
        dtype: np.dtype[Any] = np.dtype(value.dtype)
    except (AttributeError, TypeError):
        return None
    return dtype


class Source:
    """An array in a file, in memory, or in a store that is indexed with slices."""

    def __init__(self, value: Any, name: str, dtype: Any = None) -> None:
        """Open a path; anything with a shape, a dtype and slices is taken as it is.

        dtype : what "|V2" stands for, as which NumPy stores bfloat16
        """
        self.name = name
        if is_path(value):
            value = _open(Path(value), name)
        else:
            value = readable(value, name)
            if not (hasattr(value, "shape") and numpy_dtype(value) is not None):
                value = as_array(_no_container(value, name), name)
        if isinstance(value, MaskedArray) or is_sparse(value):
            as_array(value, name)  # raises
        self.array, self.shape = value, tuple(value.shape)
        try:
            self.dtype = _element(np.dtype(value.dtype), name, dtype)
        except BaseException:
            self.close()
            raise
        if isinstance(value, np.ndarray) and value.dtype != self.dtype:
            self.array = value.view(self.dtype)
        if any(n != n for n in self.shape):  # NaN, of Dask
            raise ValueError(
                f"{name} have unknown chunk sizes: expected {name}.compute_chunk_sizes()"
            )
        # In memory a view will do; a map would be read by the kernel, page fault by page fault
        # What others hand out (xarray, for one) may be a view of what belongs to the caller
        self.ours = isinstance(value, (np.memmap, NpyReader))

    @classmethod
    def of(cls, value: Any, name: str, dtype: Any = None) -> Source:
        """`value` itself if it is a source."""
        return value if isinstance(value, cls) else cls(value, name, dtype)

    def __getitem__(self, index: Index) -> Array:
        """A part of it, read into memory."""
        part = self.array[index]
        if isinstance(self.array, np.memmap):
            return np.array(part, order="K", subok=False)
        part = as_array(part, self.name)
        return part if part.dtype.kind != "V" else part.view(self.dtype)

    def close(self) -> None:
        """Close what was opened here."""
        if isinstance(self.array, NpyReader):
            self.array.close()


def is_path(value: Any) -> bool:
    """Whether an argument names a file or folder."""
    return isinstance(value, (str, os.PathLike))


def _no_container(value: Any, name: str) -> Any:
    """The same, but for an open file or an archive, which NumPy would make an array of bytes."""
    mapping = isinstance(value, Mapping) and not is_sparse(value)  # one kind of those is a dict
    if mapping or isinstance(value, (bytes, bytearray)) or hasattr(value, "read"):
        raise TypeError(
            f"{name} = {shown(value)}: expected a path, an array or an iterable of arrays (of an "
            "open file its path, of an .npz archive one array, as numpy.load(path)[name])"
        )
    return value


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """A dtype that may be given as "bfloat16", which NumPy alone does not know."""
    try:
        if isinstance(dtype, str) and dtype == "bfloat16":
            with importing:
                import ml_dtypes

            dtype = ml_dtypes.bfloat16
        found: np.dtype[Any] = np.dtype(dtype)
    except ImportError:
        raise ImportError("dtype = 'bfloat16' needs pip install ml_dtypes") from None
    except TypeError:
        found = np.dtype(object)
    if float_name(found) is None:
        raise ValueError(f"dtype = {shown(dtype)}: expected one of {', '.join(FLOATS)}")
    return found


def _element(found: np.dtype[Any], name: str, dtype: np.dtype[Any] | None) -> np.dtype[Any]:
    """The dtype of an array's elements: its own, or that given for bytes without a type."""
    untyped = found.kind == "V" and found.names is None and float_name(found) is None
    if not untyped:
        if dtype is not None and name == "logits" and found.name != dtype.name:
            raise ValueError(f"dtype = {dtype.name!r}: logits have dtype {found}, expected |V")
        return found
    if dtype is None:
        raise TypeError(
            f"{name} have dtype {found}, bytes without a type: expected what they are as dtype "
            "(--dtype of eval), 'bfloat16' where NumPy saved that"
        )
    if dtype.itemsize != found.itemsize:
        raise ValueError(f"dtype = {dtype.name!r}: {name} have elements of {found.itemsize} bytes")
    return dtype


def _open(path: Path, name: str) -> Any:
    if not path.is_dir():
        return NpyReader(path, name)
    try:
        with importing:
            import zarr
    except ImportError:
        raise ImportError(
            f"{name} {path} is a directory: a Zarr array needs pip install 'numba-ce[zarr]'"
        ) from None
    array = zarr.open(path, mode="r")
    if not hasattr(array, "dtype"):
        raise ValueError(f"{name} {path}: a Zarr group, expected one array")
    return array


def block_indices(shape: tuple[int, ...], axis: int, itemsize: int, chunks: Any) -> Iterator[Index]:
    """Blocks of rows of about BLOCK_BYTES that together are all rows, in order.

    chunks : lengths of the chunks of a store, so that none is read for two blocks
    """
    rows = shape[:axis] + shape[axis + 1 :]
    if 0 in rows:
        return
    # Cut the first axis of which one step is small enough; those before it are taken one by one
    cut, size = 0, math.prod(shape) * itemsize // rows[0]
    while cut < len(rows) - 1 and size > BLOCK_BYTES:
        cut += 1
        size //= rows[cut]
    steps = [1] * cut + [max(1, BLOCK_BYTES // max(size, 1))] + list(rows[cut + 1 :])
    # Dask's are tuples of lengths: a lazy array, which remembers no block
    if isinstance(chunks, tuple) and all(isinstance(c, int) for c in chunks):
        chunks = tuple(chunks[:axis]) + tuple(chunks[axis + 1 :])
        steps = [max(step // c, 1) * c for step, c in zip(steps, chunks, strict=True)]
    for number in np.ndindex(*(-(-n // step) for n, step in zip(rows, steps, strict=True))):
        starts = [i * step for i, step in zip(number, steps, strict=True)]
        yield tuple(
            slice(a, min(a + step, n)) for a, step, n in zip(starts, steps, rows, strict=True)
        )


def read_ahead(items: Generator[Block]) -> Generator[Block]:
    """The same items, made by another thread before they are asked for; closes `items`.

    With queues and locks in C alone: the exception of a signal handler may come at any step, and
    leaves those written in Python, of futures and of threads that are being started, torn.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[tuple[Block | None, BaseException | None]] = SimpleQueue()
    reading, closed, process = threading.RLock(), False, os.getpid()
    context = copy_context()  # the backend and the error state of NumPy are the caller's there too

    def read() -> None:
        while wanted.get():
            with reading:
                if closed:
                    return
                try:
                    made.put((next(items, None), None))
                except BaseException as error:
                    made.put((None, error))

    def start() -> None:
        """Start a thread that debuggers see, as it runs code of the user, where no signal comes."""
        try:
            threading.Thread(
                target=context.run, args=(read,), name="numba_ce-read-ahead", daemon=True
            ).start()
        except BaseException as error:
            made.put((None, error))

    error = None
    try:
        start_new_thread(start, ())
        for _ in range(AHEAD):
            wanted.put(True)
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is None:
                return
            wanted.put(True)
            yield item
    finally:
        del error  # it has this frame in its traceback
        closed = True
        try:
            if os.getpid() == process:  # a child has the lock, and not the thread that holds it
                with reading:  # what is being read is read to its end
                    items.close()
        finally:
            wanted.put(False)


def is_blocks(value: Any, name: str, n_axes: int, lists: bool = False) -> bool:
    """Whether an argument is an iterable of blocks and not one array.

    n_axes : a list of arrays of so many axes is one of blocks
    lists : whether a list in that list counts as an array
    """
    if is_path(value) or isinstance(value, Source) or hasattr(readable(value, name), "shape"):
        return False
    if not hasattr(_no_container(value, name), "__iter__"):
        raise TypeError(
            f"{name} = {shown(value)}: expected a path, an array or an iterable of arrays"
        )
    if not isinstance(value, (list, tuple)):
        return True
    return any(is_path(item) or _n_axes(item, name, lists) >= n_axes for item in value[:1])


def _n_axes(item: Any, name: str, lists: bool) -> int:
    return as_array(item, name).ndim if lists else len(getattr(item, "shape", ()))


def full_index(index: Index, axis: int) -> Index:
    """The index of the logits of some rows."""
    return (*index[:axis], slice(None), *index[axis:])


def blocks_of_arrays(
    logits: Source, targets: Source, sample_weight: Source | None, axis: int, indices: list[Index]
) -> Generator[Block]:
    """The rows of `indices`, read from one array each."""
    probabilities = len(targets.shape) == len(logits.shape)
    for index in indices:
        full = full_index(index, axis)
        y = targets[full if probabilities else index]
        s = None if sample_weight is None else sample_weight[index]
        yield Block(index, logits[full], y, s, logits.ours)


def _block(item: Any, name: str, number: int, dtype: Any) -> Source:
    """An array of an iterable, or a file in its place."""
    if isinstance(item, tuple) and any(
        is_path(part) or len(getattr(part, "shape", ())) > 1 for part in item[:1]
    ):
        raise TypeError(
            f"{name} block {number} is a tuple of {len(item)}: expected an array or a path (make "
            "two iterables of pairs, with itertools.tee)"
        )
    return Source(item if is_path(item) else as_array(_no_container(item, name), name), name, dtype)


def blocks_of_blocks(
    logits: Iterable[Any], others: dict[str, Any], axis: int, dtype: Any
) -> Generator[Block]:
    """Blocks that follow each other along the first axis, each with its rows of the others.

    others : targets and sample_weight, each a `Source`, an iterator of blocks, or None
    dtype : as for `Source`
    """
    n_rows, first = 0, None
    for number, item in enumerate(logits):
        with ExitStack() as stack:
            z = stack.enter_context(closing(_block(item, "logits", number, dtype)))
            _, last = check_logits(stand_in(z.shape, z.dtype), axis)
            if last == 0:
                raise ValueError(
                    f"logits are blocks of shape {z.shape} with axis = {axis}: expected rows along "
                    "the first axis and classes along another"
                )
            kind = (z.shape[1:], z.dtype.name)
            if kind != (first := first or kind):
                raise ValueError(
                    f"logits block {number} has dtype {kind[1]} and rows of shape {kind[0]}: "
                    f"expected {first[1]} and {first[0]}, as the first"
                )
            parts: dict[str, Source] = {}
            for name, other in others.items():
                if isinstance(other, Source):
                    parts[name] = other
                    if n_rows + z.shape[0] > other.shape[0]:
                        raise ValueError(f"{name} have {other.shape[0]} rows: logits have more")
                elif other is not None:
                    part = next(other, None)
                    if part is None:
                        raise ValueError(f"{name} have fewer blocks than logits")
                    parts[name] = _block(part, name, number, dtype)
                    stack.callback(parts[name].close)
                    if parts[name].shape[:1] != z.shape[:1]:
                        raise ValueError(
                            f"{name} block {number} has shape {parts[name].shape}: expected "
                            f"{z.shape[0]} rows"
                        )
            rows = z.shape[:last] + z.shape[last + 1 :]
            cuts: Iterable[Index] = [tuple(slice(0, n) for n in rows)]
            if is_path(item):
                chunks = getattr(z.array, "chunks", None)
                cuts = block_indices(z.shape, last, z.dtype.itemsize, chunks)
            for cut in cuts:
                moved = (slice(n_rows + cut[0].start, n_rows + cut[0].stop), *cut[1:])
                at = {}
                for name, source in parts.items():
                    index = moved if source is others[name] else cut
                    at[name] = source[
                        full_index(index, last) if len(source.shape) == len(z.shape) else index
                    ]
                yield Block(
                    moved,
                    z[full_index(cut, last)],
                    at["targets"],
                    at.get("sample_weight"),
                    z.ours,
                )
            n_rows += z.shape[0]
    for name, other in others.items():
        if isinstance(other, Source) and other.shape[0] != n_rows:
            raise ValueError(f"{name} have {other.shape[0]} rows: logits have {n_rows}")
        if isinstance(other, Iterator) and next(other, None) is not None:
            raise ValueError(f"{name} have more blocks than logits")
