"""Compiled kernels, kept in the process and on disk.

A file is named by the hash of everything its content follows from (the package's sources, the
versions of the compilers, the kernel and the compute capability) and carries a checksum of its
content. It is written beside its place and moved there, so that nobody reads half a file. One that
is missing, foreign or damaged is compiled anew; a folder that cannot be written costs nothing but
time. Set NUMBA_CE_CUDA_CACHE to another folder, or to nothing for none at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from numba_ce.cuda.general import general_kernel
from numba_ce.cuda.group import THREADS
from numba_ce.cuda.kernel import Kernel
from numba_ce.cuda.ptx import to_cubin, to_ptx
from numba_ce.cuda.resident import Resident, resident_kernel
from numba_ce.cuda.table import blocks_per_processor
from numba_ce.cuda.totals import add_losses, fold, scan

VARIABLE = "NUMBA_CE_CUDA_CACHE"
SMALL_KERNELS = {"scan": scan, "add_losses": add_losses, "fold": fold}
COMPILERS = ("numba", "numba-cuda", "llvmlite", "nvidia-nvvm", "nvidia-nvjitlink")


class Code(NamedTuple):
    """A compiled kernel."""

    entry: str
    ptx: str
    cubin: bytes


def threads_of(kernel: Any) -> int:
    """Threads of a block."""
    return kernel.threads if isinstance(kernel, Resident) else THREADS


def function_of(kernel: Any) -> Any:
    """The Python function of a `Resident`, a general `Kernel`, or the name of a small one."""
    if isinstance(kernel, Resident):
        return resident_kernel(kernel)
    return general_kernel(kernel) if isinstance(kernel, Kernel) else SMALL_KERNELS[kernel]


def ptx_of(kernel: Any, capability: tuple[int, int]) -> tuple[str, str]:
    """PTX and the name of its entry."""
    blocks = blocks_per_processor(kernel, capability)
    text, entry = to_ptx(function_of(kernel), capability, threads_of(kernel), blocks)
    return text, entry


@cache
def _sources() -> bytes:
    """A hash of what every kernel is compiled from."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in [here.parent / "_row.py", *sorted(here.glob("*.py"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for name in COMPILERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    digest.update(sys.version.encode())
    return digest.digest()


def folder() -> Path | None:
    """Where compiled kernels are kept; None for nowhere."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return Path(chosen) if chosen else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    try:
        return Path(base).expanduser() / "numba_ce" / "cuda"
    except RuntimeError:  # there is no home
        return None


def _is_ours(path: Path) -> bool:
    """Nobody else can put files there: what is found is executed."""
    if os.name != "posix":
        return True
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _read(path: Path) -> Code | None:
    try:
        if not (_is_ours(path.parent) and _is_ours(path)):
            return None
        data = path.read_bytes()
    except OSError:
        return None
    checksum, content = data[:32], data[32:]
    if hashlib.sha256(content).digest() != checksum:
        return None
    head, _, rest = content.partition(b"\n")
    fields = json.loads(head)
    text, cubin = rest[: fields["ptx"]], rest[fields["ptx"] :]
    return Code(fields["entry"], text.decode(), cubin)


def _write(path: Path, code: Code) -> None:
    text = code.ptx.encode()
    head = json.dumps({"entry": code.entry, "ptx": len(text)}).encode()
    content = head + b"\n" + text + code.cubin
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(name, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)


_lock = threading.RLock()
_codes: dict[Any, Code] = {}


def code_of(kernel: Any, capability: tuple[int, int]) -> Code:
    """The compiled kernel, from the process, from disk, or compiled now."""
    key = kernel, capability
    code = _codes.get(key)
    if code is not None:
        return code
    with _lock:
        if key not in _codes:
            where, path = folder(), None
            if where is not None:
                name = hashlib.sha256(_sources() + repr(key).encode()).hexdigest()
                path = where / f"{name}.kernel"
            code = _read(path) if path is not None else None
            if code is None:
                text, entry = ptx_of(kernel, capability)
                code = Code(entry, text, to_cubin(text, capability)[0])
                if path is not None:
                    _write(path, code)
            _codes[key] = code
        return _codes[key]
