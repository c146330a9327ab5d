"""Where blocks of rows come from: files, arrays, stores, iterables; read ahead by a thread."""

from __future__ import annotations

import math
import os
import threading
from _thread import start_new_thread
from collections.abc import Generator, Iterable, Iterator
from contextvars import copy_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.ma import MaskedArray

from numba_ce._foreign import is_sparse
from numba_ce._fork import importing
from numba_ce._validate import Array, as_array, check_logits, shown
from numba_ce.npy import Index, NpyReader

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

    def __init__(self, value: Any, name: str) -> None:
        """Open a path; anything with a shape, a dtype and slices is taken as it is."""
        self.name = name
        if isinstance(value, (str, os.PathLike)):
            value = _open(Path(value), name)
        elif not (hasattr(value, "shape") and numpy_dtype(value) is not None):
            value = as_array(value, name)
        if isinstance(value, MaskedArray) or is_sparse(value):
            as_array(value, name)  # raises
        self.array, self.shape, self.dtype = value, tuple(value.shape), np.dtype(value.dtype)
        # In memory a view will do; a map would be read by the kernel, page fault by page fault
        # What others hand out (xarray, for one) may be a view of what belongs to the caller
        self.ours = isinstance(value, (np.memmap, NpyReader))

    @classmethod
    def of(cls, value: Any, name: str) -> Source:
        """`value` itself if it is a source."""
        return value if isinstance(value, cls) else cls(value, name)

    def __getitem__(self, index: Index) -> Array:
        """A part of it, read into memory."""
        part = self.array[index]
        if isinstance(self.array, np.memmap):
            return np.array(part, order="K", subok=False)
        return as_array(part, self.name)

    def close(self) -> None:
        """Close what was opened here."""
        if isinstance(self.array, NpyReader):
            self.array.close()


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


def is_blocks(value: Any, name: str) -> bool:
    """Whether an argument is an iterable of blocks and not one array."""
    if isinstance(value, (str, os.PathLike, Source)) or hasattr(value, "shape"):
        return False
    if not hasattr(value, "__iter__"):
        raise TypeError(
            f"{name} = {shown(value)}: expected a path, an array or an iterable of arrays"
        )
    return not isinstance(value, (list, tuple)) or any(
        as_array(item, name).ndim for item in value[:1]
    )


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


def blocks_of_blocks(logits: Iterable[Any], others: dict[str, Any], axis: int) -> Generator[Block]:
    """Blocks that follow each other along the first axis, each with its rows of the others.

    others : targets and sample_weight, each a `Source`, an iterator of blocks, or None
    """
    n_rows, first = 0, None
    for number, item in enumerate(logits):
        z, last = check_logits(item, axis)
        if last == 0:
            raise ValueError(
                f"logits are blocks of shape {z.shape} with axis = {axis}: expected rows along the "
                "first axis and classes along another"
            )
        kind = (z.shape[1:], z.dtype.name)
        if kind != (first := first or kind):
            raise ValueError(
                f"logits block {number} has dtype {kind[1]} and rows of shape {kind[0]}: expected "
                f"{first[1]} and {first[0]}, as the first"
            )
        rows = z.shape[:last] + z.shape[last + 1 :]
        index = (slice(n_rows, n_rows + rows[0]), *(slice(0, n) for n in rows[1:]))
        n_rows += rows[0]
        parts: dict[str, Any] = {}
        for name, other in others.items():
            if isinstance(other, Source):
                if n_rows > other.shape[0]:
                    raise ValueError(f"{name} have {other.shape[0]} rows: logits have more")
                parts[name] = other[
                    full_index(index, last) if len(other.shape) == z.ndim else index
                ]
            elif other is not None:
                part = next(other, None)
                if part is None:
                    raise ValueError(f"{name} have fewer blocks than logits")
                parts[name] = as_array(part, name)
        yield Block(index, z, parts["targets"], parts.get("sample_weight"), False)
    for name, other in others.items():
        if isinstance(other, Source) and other.shape[0] != n_rows:
            raise ValueError(f"{name} have {other.shape[0]} rows: logits have {n_rows}")
        if isinstance(other, Iterator) and next(other, None) is not None:
            raise ValueError(f"{name} have more blocks than logits")
