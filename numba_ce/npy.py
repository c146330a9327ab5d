""".npy files read and written in parts, with plain reads and writes.

A memory map would be shorter, but it needs an address space as large as the file, reports a full
disk or a truncated file by killing the process, and reads ahead of nothing but a page fault.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from numba_ce._files import Inputs, OutputFile, check_regular
from numba_ce._validate import Array

Index = tuple[slice, ...]


def _runs(shape: tuple[int, ...], index: Index) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The pieces of a part that are in one piece in a file in C order.

    Yields the element at which a piece starts in the file, and its index in the part.
    """
    lengths = [s.stop - s.start for s in index]
    tail = len(shape) - 1
    while tail > 0 and lengths[tail] == shape[tail]:
        tail -= 1
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    first = sum(s.start * stride for s, stride in zip(index, strides, strict=True))
    for lead in np.ndindex(*lengths[:tail]):
        yield first + sum(i * stride for i, stride in zip(lead, strides, strict=False)), lead


def _complete(shape: tuple[int, ...], index: Index) -> Index:
    """The same with a slice for every axis, and its start and stop."""
    index = (*index, *(slice(None) for _ in shape[len(index) :]))
    return tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True))


def _bytes(piece: Array) -> memoryview:
    """The memory of a dense array, of any dtype."""
    return memoryview(piece.reshape(-1).view(np.uint8).data)


def _at(part: Array, piece: tuple[int, ...]) -> Array:
    """A view of a piece, also if it is a single element."""
    index: Any = (*piece, ...)
    return np.asarray(part[index])


class NpyReader:
    """An open .npy file that is indexed with slices."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the header. ValueError for what is not an .npy file as long as its header says."""
        self._where = f"{name} {path}"
        check_regular(path, self._where)  # of a pipe nothing is read twice, and open() would wait
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> None:
        file, header = self._file, np.lib.format
        if file.read(2) == b"PK":
            raise ValueError(
                f"{self._where}: an archive of arrays, expected one .npy array, or an array of it "
                "as numpy.load(path)[name]"
            )
        file.seek(0)
        try:
            version = header.read_magic(file)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise ValueError(f"format {version}, expected 1.0, 2.0 or 3.0")
            first = version == (1, 0)
            # 3.0 differs from 2.0 in the encoding alone, of the names of fields
            read = header.read_array_header_1_0 if first else header.read_array_header_2_0
            self.shape, self._fortran, self.dtype = read(file)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{self._where}: not a readable .npy file ({error})") from None
        if self.dtype.hasobject:
            raise ValueError(f"{self._where}: not a readable .npy file (it holds Python objects)")
        self._data = file.tell()
        expected = self._data + math.prod(self.shape) * self.dtype.itemsize
        found = os.fstat(file.fileno()).st_size
        if found < expected:
            raise ValueError(
                f"{self._where}: not a readable .npy file (truncated: {found} bytes, its header "
                f"promises {expected})"
            )

    def __getitem__(self, index: Index) -> Array:
        """A fresh array with a part of the file."""
        index, shape = _complete(self.shape, index), self.shape
        if self._fortran:
            index, shape = index[::-1], shape[::-1]
        part = np.empty([s.stop - s.start for s in index], self.dtype)
        if part.size:
            for element, piece in _runs(shape, index):
                self._fill(_at(part, piece), self._data + element * self.dtype.itemsize)
        return part.T if self._fortran else part

    def _fill(self, piece: Array, position: int) -> None:
        self._file.seek(position)
        rest = _bytes(piece)
        while rest:
            n = self._file.readinto(rest)
            if not n:
                raise OSError(f"{self._where}: became shorter while it was read")
            rest = rest[n:]

    def fileno(self) -> int:
        """The number of the open file."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class NpyWriter(OutputFile):
    """An .npy file in the making, which appears under its name when it is complete."""

    def __init__(
        self,
        path: Any,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        fortran: bool,
        inputs: Inputs = (),
    ) -> None:
        """Start an unfinished file beside `path`, and claim its place on the disk."""
        super().__init__(path, name, inputs)
        self._shape, self._fortran, self._itemsize = shape, fortran, np.dtype(dtype).itemsize
        try:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "shape": shape}
            np.lib.format.write_array_header_1_0(self.file, header | {"fortran_order": fortran})
            self._data = self.file.tell()
            size = self._data + math.prod(shape) * self._itemsize
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now and not in an hour
                os.posix_fallocate(self.file.fileno(), 0, size)
            else:
                self.file.truncate(size)
        except BaseException:
            self.discard()
            raise

    def __setitem__(self, index: Index, part: Array) -> None:
        """Write a part of the file."""
        index, shape = _complete(self._shape, index), self._shape
        if self._fortran:
            index, shape, part = index[::-1], shape[::-1], part.T
        if part.size:
            for element, piece in _runs(shape, index):
                self.file.seek(self._data + element * self._itemsize)
                rest = _bytes(np.ascontiguousarray(_at(part, piece)))
                while rest:
                    rest = rest[self.file.write(rest) :]
