"""From a kernel's Python function to PTX and to machine code, with no driver and no GPU needed."""

import re
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numba.cuda
import numba.cuda.dispatcher

from numba_ce.cuda.plan import PLAN_TYPE

_lock = threading.RLock()


@contextmanager
def _no_device_asked(capability):
    """Compiling a function that a kernel calls asks the driver which GPU there is: tell it."""
    dispatcher = numba.cuda.dispatcher
    with _lock:
        asked = dispatcher.get_current_device
        dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
        try:
            yield
        finally:
            dispatcher.get_current_device = asked


def to_ptx(function, capability, threads, blocks_per_processor=1):
    """The PTX of a kernel that takes a plan, and the name of its entry.

    No fast-math: it would drop the tests for NaN and infinity. What may be approximate says so in
    `intrinsics`.
    """
    with _no_device_asked(capability):
        text, _ = numba.cuda.compile(
            function,
            (PLAN_TYPE,),
            device=False,
            abi="numba",
            cc=capability,
            launch_bounds=(threads, blocks_per_processor),
        )
    text = text.rstrip("\0")
    return text, re.search(r"\.entry\s+(\S+?)\(", text).group(1)


def to_cubin(text, capability):
    """Machine code for PTX, and the assembler's remarks (registers, spills)."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(
        arch=f"sm_{capability[0]}{capability[1]}", ptxas_options=["-v"], verbose=True
    )
    linker = Linker(ObjectCode.from_ptx(text.encode()), options=options)
    return bytes(linker.link("cubin").code), linker.get_info_log()


def toolkit_version():
    """The version of the CUDA toolkit whose linker makes the machine code."""
    from cuda.bindings import nvjitlink

    return "{}.{}".format(*nvjitlink.version())
