"""Files that are written: checked before the work, never an input, in place when complete."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"d": "a folder", "p": "a pipe", "c": "a device", "b": "a device", "s": "a socket"}

# The names of inputs, and the file or folder of each: a path, or the number of an open file
Inputs = Iterable[tuple[str, Any]]


def check_regular(path: Any, where: str) -> os.stat_result:
    """The status of a regular file, links followed; ValueError for a pipe, a device or a folder."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.filemode(status.st_mode)[0], "no file")
        raise ValueError(f"{where} is {kind}: expected the path of a regular file")
    return status


def _map_of(array: Any) -> np.memmap[Any, Any] | None:
    """The map of a file that an array is a view of."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
            return array if array.filename is not None else None
        array = array.base
    return None


def origin(array: Any) -> Any:
    """The file or folder that an open array is read from, as in `Inputs`; None if in memory."""
    if hasattr(array, "fileno"):
        return array.fileno()
    if isinstance(array, np.ndarray):
        return getattr(_map_of(array), "filename", None)
    place = getattr(array, "store_path", None)  # of Zarr
    root = getattr(getattr(place, "store", None), "root", None)
    if place is not None and root is not None:
        return Path(root, place.path)
    return getattr(getattr(array, "file", None), "filename", None)  # of HDF5


def _same(a: Any, b: Any) -> bool:
    try:
        return os.path.samestat(os.stat(a), os.stat(b))
    except OSError:  # one of them is gone, or not there yet
        return False


def check_output(path: Any, name: str, inputs: Inputs) -> tuple[Path, int | None]:
    """Where a file goes, links followed, and its mode if there is one already.

    ValueError if it is no regular file, or is one of the inputs or in the folder of one.
    """
    where, mode = f"{name} = {os.fspath(path)!r}", None
    real = Path(os.path.realpath(path))
    try:
        mode = stat.S_IMODE(check_regular(Path(path), where).st_mode)
    except FileNotFoundError:
        pass
    else:
        if not os.access(real, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    for other, source in inputs:
        if source is not None and any(_same(p, source) for p in (real, *real.parents)):
            raise ValueError(f"{where} is a file of {other}: expected another file")
    return real, mode


def _shares_file(array: Any, other: Any) -> bool:
    """Whether two arrays are the same part of a file, though not of one memory."""
    ours, theirs = _map_of(array), _map_of(other)
    if ours is None:
        place = getattr(array, "store_path", None)
        return place is not None and place == getattr(other, "store_path", None)
    source = origin(other)
    if source is None or theirs is ours or ours.mode == "c" or not _same(source, ours.filename):
        return False
    return theirs is None or (
        ours.offset < theirs.offset + theirs.nbytes and theirs.offset < ours.offset + ours.nbytes
    )


def check_array(array: Any, name: str, logits: Any, others: Iterable[tuple[Any, str]]) -> None:
    """ValueError if an array that is written to and another one are the same in a file.

    It may be the array `logits` itself. What shares memory is found elsewhere.
    """
    stored = not isinstance(array, np.ndarray)
    for other, other_name in (*others, *(() if array is logits else ((logits, "logits"),))):
        if (stored and array is other) or _shares_file(array, other):
            raise ValueError(
                f"{name} is in the file of {other_name}: expected another file, or the array that "
                "is passed as logits, for in place"
            )


class OutputFile:
    """A file in the making, which appears under its name when it is complete."""

    def __init__(self, path: Any, name: str, inputs: Inputs = ()) -> None:
        """Start an unfinished file beside `path`, an argument called `name`."""
        self._path, mode = check_output(path, name, inputs)
        # A file of its own, made as open() makes files: tempfile would keep it from other users
        self._unfinished = self._path.with_name(f"{self._path.name}.{os.urandom(4).hex()}.part")
        self.file = open(self._unfinished, "xb", buffering=0)  # noqa: SIM115
        try:
            if mode is not None:
                os.chmod(self._unfinished, mode)
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Give the file its name."""
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self._unfinished, self._path)

    def discard(self) -> None:
        """Remove the unfinished file, of which nothing is left once it is committed."""
        self.file.close()
        self._unfinished.unlink(missing_ok=True)
