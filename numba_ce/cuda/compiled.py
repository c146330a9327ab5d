"""Compiled kernels, kept in the process and on disk.

A file (see `numba_ce._cache`) is named by the hash of everything its content follows from: the
package's sources, the compilers, the kernel and the compute capability. Where the compilers cannot
be told, none is kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
from functools import cache
from typing import Any, NamedTuple

from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

from numba_ce import _cache
from numba_ce.cuda.choose import blocks_per_processor
from numba_ce.cuda.driver import once
from numba_ce.cuda.general import make_general_kernel
from numba_ce.cuda.kernel import Kernel
from numba_ce.cuda.ptx import to_cubin, to_ptx
from numba_ce.cuda.resident import Resident, make_resident_kernel
from numba_ce.cuda.thread_layout import THREADS
from numba_ce.cuda.totals import fold, scan

SMALL_KERNELS = {"scan": scan, "fold": fold}
COMPILERS = ("numba", "numba-cuda", "llvmlite", "cuda-core", "cuda-bindings")
# From wheels, conda or a toolkit: the file that is loaded tells what a version does not always
LIBRARIES = ("nvvm", "nvJitLink")


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
        return make_resident_kernel(kernel)
    return make_general_kernel(kernel) if isinstance(kernel, Kernel) else SMALL_KERNELS[kernel]


def ptx_of(kernel: Any, capability: tuple[int, int]) -> tuple[str, str]:
    """PTX and the name of its entry."""
    blocks = blocks_per_processor(kernel, capability)
    text, entry = to_ptx(function_of(kernel), capability, threads_of(kernel), blocks)
    return text, entry


@cache
def _origin() -> bytes | None:
    """A hash of what every kernel is compiled from and with; None if something cannot be found."""
    facts = [sys.version]
    try:
        facts += [f"{name} {importlib.metadata.version(name)}" for name in COMPILERS]
        for name in LIBRARIES:
            path = os.path.realpath(str(load_nvidia_dynamic_lib(name).abs_path))
            status = os.stat(path)
            facts.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    except (importlib.metadata.PackageNotFoundError, DynamicLibNotFoundError, OSError):
        return None
    return hashlib.sha256((_cache.SOURCES or b"") + "\n".join(facts).encode()).digest()


def _unpacked(content: bytes) -> Code:
    head, _, rest = content.partition(b"\n")
    entry, size = json.loads(head)
    return Code(entry, rest[:size].decode(), rest[size:])


def _packed(code: Code) -> bytes:
    text = code.ptx.encode()
    return json.dumps([code.entry, len(text)]).encode() + b"\n" + text + code.cubin


_codes: dict[Any, Code] = {}


def code_of(kernel: Any, capability: tuple[int, int]) -> Code:
    """The compiled kernel, from the process, from disk, or compiled now."""
    key = kernel, capability
    code = _codes.get(key)
    if code is not None:
        return code
    with once:
        if key not in _codes:
            origin = _origin()
            where = None if origin is None else _cache.folder("cuda")
            name = hashlib.sha256((origin or b"") + repr(key).encode()).hexdigest()
            content = None if where is None else _cache.read(where, name)
            if content is not None:
                code = _unpacked(content)
            else:
                text, entry = ptx_of(kernel, capability)
                code = Code(entry, text, to_cubin(text, capability)[0])
                if where is not None:
                    _cache.write(where, name, _packed(code))
            _codes[key] = code
        return _codes[key]
