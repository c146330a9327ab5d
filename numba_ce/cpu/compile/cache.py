"""Kernels from disk: machine code that another process compiled, loaded without a compiler.

The name of a kernel's file is a hash of the package's sources, the versions of all that compiles,
the processor as Numba sees it, Numba's settings and the kernel. The content is the object file that
LLVM made, the name of the function in it and the symbols it wants; nothing is unpickled.

Where a version of Numba has other private parts than the functions below use, kernels are compiled
in every process, as without a cache.
"""

import hashlib
import json
import sys
from typing import Any, NamedTuple

import llvmlite
import numba
import numpy as np
from llvmlite import binding
from numba.core import config
from numba.core.registry import cpu_target

from numba_ce import _cache
from numba_ce.cpu.compile.jit import WHY_PLAIN
from numba_ce.cpu.compile.numba_core import global_compiler_lock, target_facts

# Settings of Numba that change no code, or not that of the CPU
OTHER_SETTINGS = {
    "CACHE_DIR",
    "COLOR_SCHEME",
    "NUMBA_DEFAULT_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "THREADING_LAYER",
    "THREADING_LAYER_PRIORITY",
}


# What owns the code that was loaded. It stays for the life of the process, as Numba's does: its
# addresses are everywhere.
_engines = []


class Loaded(NamedTuple):
    """A function in machine code, with what is used of Numba's `CFunc`."""

    address: int
    ctypes: Any  # the same, to be called


def cached(name, signature, compile_now):
    """The function called `name` from disk, or what `compile_now` returns: a `CFunc`.

    name : says all that tells it from the other functions of the package
    signature : its type for ctypes
    """
    # The plain path keeps no object code, and must not load what the fast one made
    where = None if WHY_PLAIN else _cache.folder("cpu")
    file = where and _soft(_file_name, name)
    if not file:
        return compile_now()
    content = _cache.read(where, file)
    function = content and _soft(_load, content, signature)
    if not function:
        function = compile_now()
        content = _soft(_content, function)
        if content:
            _cache.write(where, file, content)
    return function


def _soft(function, *arguments):
    """What one of the functions below returns; None where Numba's private parts are others."""
    try:
        return function(*arguments)
    except Exception:
        return None


def _file_name(name):
    """A hash of all that the machine code follows from."""
    facts = (_cache.SOURCES, *_fingerprint(), name)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _fingerprint():
    settings = {
        key: value
        for key, value in vars(config).items()
        if key.isupper() and not key.startswith("CUDA_") and key not in OTHER_SETTINGS
    }
    return (
        (numba.__version__, llvmlite.__version__, binding.llvm_version_info, np.__version__),
        (sys.version, sys.implementation.cache_tag),
        target_facts(),
        sorted(settings.items()),
    )


@global_compiler_lock  # also held while a process forks, so that no child inherits LLVM's own lock
def _load(content, signature):
    head, _, code = content.partition(b"\n")
    entry, wanted = json.loads(head)
    if not all(map(binding.address_of_symbol, wanted)):
        from numba.core.runtime import rtsys

        rtsys.initialize(cpu_target.target_context)  # names its functions to LLVM, in 20 ms
        if not all(map(binding.address_of_symbol, wanted)):
            return None  # LLVM would end the process
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(codemodel="jitdefault", jit=True)
    # An engine for each: kernels that were compiled in several processes may share their names
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    address = engine.get_function_address(entry)
    return Loaded(address, signature(address))


def _content(function):
    """The content of the file of a `CFunc`; None if its code holds addresses of this process."""
    library, module = function._library, function._library._final_module
    if library.has_dynamic_globals:
        return None
    wanted = [
        symbol.name
        for symbol in (*module.functions, *module.global_variables)
        if symbol.is_declaration and not symbol.name.startswith("llvm.")
    ]
    head = json.dumps([function.native_name, wanted]).encode()
    return head + b"\n" + library._get_compiled_object()
