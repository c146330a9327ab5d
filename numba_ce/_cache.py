"""Compiled kernels on disk: where, which files are trusted, how one is read and written.

A file is named by a hash of everything its content follows from, so none is ever out of date, and
begins with a checksum of its name and content, so a damaged one, or one under the name of another,
counts as absent. It is written beside its place and moved there: nobody reads half a file, and of
several processes that write the same one the last wins. What goes wrong here costs time and nothing
else: a kernel that cannot be read is compiled, one that cannot be written is compiled again by the
next process.

Files are plain bytes, but of machine code. A folder or a file that belongs to another user, or that
others may write to, is neither read nor written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

VARIABLE = "NUMBA_CE_CACHE_DIR"
# Of one folder. The file of a kernel has 15 to 60 KB; those of other versions are the first to go.
LIMIT_BYTES = 64 << 20
SUFFIXES = (".py", ".pyc")
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def folder(backend: str) -> Path | None:
    """Where the kernels of a backend are kept; None for nowhere."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "0":
        return None
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)), backend)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = Path(os.path.expanduser(base), "numba_ce", backend)
    return place if place.is_absolute() else None  # relative, or still with a ~: there is no home


def distrust(status: os.stat_result) -> str | None:
    """Why a folder or file is left alone; None if only this user can have written it.

    Folders above are not asked: whoever may write to them can put another folder in place of this
    one, but no file that belongs to this user.
    """
    if os.name != "posix":
        return None
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others can write to it"
    return None


def _code() -> list[tuple[str, bytes]]:
    """Name and content of every file from which Python may import a module of the package."""
    here = Path(__file__).parent
    if here.is_dir():
        return [
            (path.relative_to(here).as_posix(), path.read_bytes())
            for path in here.rglob("*.py*")
            if path.suffix in SUFFIXES and path.parent.name != "__pycache__"  # made from the others
        ]
    archive = next((path for path in here.parents if path.is_file()), here)
    folder = here.relative_to(archive).as_posix()
    with zipfile.ZipFile(archive) as file:
        return [
            (name, file.read(name))
            for name in file.namelist()
            if name.startswith(folder + "/") and name.endswith(SUFFIXES)
        ]


def sources() -> bytes | None:
    """A hash of the package's code as it is in its files now; None if they cannot be read.

    Of source files, or, where there are none, of compiled ones; in a folder or in a zip file.
    """
    try:
        code = _code()
    except (OSError, zipfile.BadZipFile, zlib.error):
        return None
    digest = hashlib.sha256()
    for name, content in sorted(code):
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(content).digest())
    return digest.digest() if code else None


# Of the code that this process runs: `numba_ce` imports this module before all others. Once the
# files say anything else, nothing is read or written any more: of the modules that were imported
# since, nobody knows which are new.
SOURCES = sources()


def sources_are_known() -> bool:
    return SOURCES is not None and sources() == SOURCES  # in 2 ms


def read(where: Path, name: str) -> bytes | None:
    """The content of a file; None if it is absent, damaged or not to be trusted."""
    if not sources_are_known():
        return None
    try:
        if distrust(os.stat(where)):
            return None
        handle = os.open(where / name, _READ)
        with open(handle, "rb") as file:  # what was opened is asked, not what has the name by now
            if distrust(os.fstat(handle)):
                return None
            data = file.read()
    except OSError:
        return None
    checksum, content = data[:32], data[32:]
    if _checksum(name, content) != checksum:
        return None
    with contextlib.suppress(OSError):
        os.utime(where / name)  # those unused for longest are deleted first
    return content


def write(where: Path, name: str, content: bytes) -> None:
    """Write a file, whole or not at all, and delete the oldest if there are too many."""
    if not sources_are_known():
        return
    with contextlib.suppress(OSError):
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        if distrust(os.stat(where)):
            return
        handle, temporary = tempfile.mkstemp(prefix=".", dir=where)
        try:
            with open(handle, "wb") as file:
                file.write(_checksum(name, content) + content)
            os.replace(temporary, where / name)
        except BaseException:
            os.unlink(temporary)
            raise
        _delete_oldest(where)


def _checksum(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def files(where: Path) -> list[tuple[float, int, str]]:
    """Time of last use, bytes and path of the files in a folder, the newest first."""
    found = []
    with os.scandir(where) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # deleted by another process
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime, status.st_size, entry.path))
    return sorted(found, reverse=True)


def _delete_oldest(where: Path) -> None:
    total = 0
    for _, size, path in files(where):
        total += size
        if total > LIMIT_BYTES:
            with contextlib.suppress(OSError):
                os.unlink(path)


def describe(backend: str) -> str:
    """The folder and what is in it, or why it is not used, for people."""
    where = folder(backend)
    if where is None:
        chosen = os.environ.get(VARIABLE)
        return f"nowhere: {f'{VARIABLE}={chosen}' if chosen else 'there is no home folder'}"
    if not sources_are_known():
        why = "cannot be read" if SOURCES is None else "have changed since the import"
        return f"{where}: not used, the files of the package {why}"
    try:
        reason = distrust(os.stat(where))
        if reason:
            return f"{where}: not used, {reason}"
        found = files(where)
    except FileNotFoundError:
        found = []
    except OSError as error:
        return f"{where}: not used, {error.strerror}"
    megabytes = sum(size for _, size, _ in found) / 1e6
    return f"{where}: {len(found)} files, {megabytes:.1f} MB"
