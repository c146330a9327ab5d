"""`inner`: the decorator of everything that only kernels call, and `whole_kernel` for the kernels.

`fast` compiles them where Numba has the private parts that it needs. Elsewhere, or where
NUMBA_CE_PLAIN_COMPILE=1 asks for it, Numba's own pipeline does.
"""

import gc
import importlib
import os
from contextlib import contextmanager

from llvmlite import ir
from numba import cfunc, njit, types, version_info
from numba.extending import intrinsic, overload

from numba_ce.cpu.compile.numba_core import global_compiler_lock

VARIABLE = "NUMBA_CE_PLAIN_COMPILE"
# The newest Numba with which the tests pass on the fast path. Newer ones compile one function on it
# first, for 50 ms, to see whether it works
TESTED = (0, 68)


_garbage = 0  # kernels compiled since the last collection


@contextmanager
def collector_paused():
    """No garbage collection while compiling: there is little garbage, and looking costs 10%.

    Under the lock for which a fork waits: the child would be left without collections.
    """
    global _garbage
    with global_compiler_lock:
        enabled = gc.isenabled()
        try:
            gc.disable()
            yield
        finally:
            if enabled:
                if _garbage >= 8:
                    _garbage = 0
                    gc.collect()  # 10 MB of each kernel, which nobody else would look at
                elif gc.get_freeze_count() == 0:  # else they are frozen by somebody else
                    # What is there now counts as old: to look at it at once would cost 0.1 s
                    gc.freeze()
                    gc.unfreeze()
                gc.enable()


def _choose():
    """Why the path is not the fast one, or None; and the options for parts and whole kernels."""
    asked = os.environ.get(VARIABLE) or "0"
    if asked not in ("0", "1"):
        raise ValueError(f"environment variable {VARIABLE}: {asked!r} is not one of 0, 1")
    if asked == "1":
        return f"{VARIABLE}=1", {}, {}
    try:
        fast = importlib.import_module("numba_ce.cpu.compile.fast")
        if version_info[:2] > TESTED:
            fast.try_out()
    except Exception as error:  # this version of Numba has other private parts
        return f"{type(error).__name__}: {error}".partition("\n")[0], {}, {}
    return None, fast.PART_OPTIONS, fast.KERNEL_OPTIONS


WHY_PLAIN, _part_options, _kernel_options = _choose()
# error_model: a division by zero is an infinity, not an exception
OPTIONS = {**_part_options, "error_model": "numpy"}
inner = njit(**OPTIONS)
# For what passes many vectors in and out and is called in one place: calls go through memory
inlined = njit(**OPTIONS, forceinline=True)


def inner_overload(function):
    """`numba.extending.overload` for what only kernels call."""
    return overload(function, jit_options=OPTIONS)


def whole_kernel(signature):
    """The decorator of a whole kernel, compiled at once; it has an address."""
    global _garbage
    _garbage += 1
    return cfunc(signature, **_kernel_options)


@inner
def smaller(a, b):
    """min(a, b): Numba compiles a function of its own for each call of the builtin."""
    return a if a < b else b


@inner
def larger(a, b):
    """a where it is larger, else b: a NaN in a is lost."""
    return a if a > b else b


@intrinsic
def call_address(typingctx, function, plan, worker):
    """Call the serial function at an address; the plan is an address or a pointer."""

    def codegen(context, builder, sig, args):
        i64 = ir.IntType(64)
        address, plan, worker = args
        if not isinstance(plan.type, ir.IntType):
            plan = builder.ptrtoint(plan, i64)
        signature = ir.FunctionType(ir.VoidType(), [i64, i64])
        builder.call(builder.inttoptr(address, signature.as_pointer()), [plan, worker])
        return i64(1)

    return types.int64(types.intp, plan, types.intp), codegen
