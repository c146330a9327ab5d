"""Who works on the blocks of a plan: this thread alone, Numba's parallel loop, a pool of threads.

========= ========================================================================
tbb, omp  Numba's parallel loop; any number of callers may be in it at once
workqueue the pool: this layer of Numba ends the process when two threads are in it,
          whichever packages they come from, so this package never enters it
a child   forked after the layer was started: the pool; the threads of the layer are
          not in the child, which Numba then ends (omp) or which waits for them (tbb)
========= ========================================================================

All of them call the same serial function, and no caller ever waits for another one: what nobody
helps with it does alone. Long calls are cut into slices of blocks, because Python looks for
signals, such as Ctrl-C, only between two calls of compiled code.
"""

import ctypes
import importlib.metadata
import os
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from time import perf_counter

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from numba_ce.cpu.jit import collector_paused

# The first slice takes 2 ms with the usual kernels and 0.1 s with the slowest; the time that it
# took gives the length of the next one
FIRST_SLICE_ELEMENTS = 1 << 23
SLICE_SECONDS = 0.05
NOTHING = np.zeros(0, np.int64)


@intrinsic
def _call(typingctx, function, plan, worker):
    """Call the serial function at an address."""

    def codegen(context, builder, sig, args):
        i64 = ir.IntType(64)
        signature = ir.FunctionType(ir.VoidType(), [i64, i64])
        builder.call(builder.inttoptr(args[0], signature.as_pointer()), args[1:])
        return i64(1)

    return types.int64(types.intp, types.intp, types.intp), codegen


@cache
@collector_paused()
def parallel_loop():
    """The one parallel loop, compiled when it is first needed, which starts the threading layer.

    Given no function it returns the number of threads that Numba allows the caller:
    `numba.get_num_threads` takes locks that a fork may leave locked in the child.
    """
    _preload_tbb()

    @njit("int64(intp, intp, int64[::1])", parallel=True, nogil=True)
    def run_workers(function, plan, done):
        if function == 0:
            return numba.get_num_threads()
        for worker in prange(done.size):
            done[worker] = _call(function, plan, worker)
        return 0

    return run_workers


def _preload_tbb():
    """Let Numba find the library of the `tbb` wheel, which is on no loader's path."""
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == "libtbb.so.12":
            try:
                ctypes.CDLL(os.path.realpath(file.locate()), mode=ctypes.RTLD_GLOBAL)
            except OSError:  # Numba then chooses among the layers that it finds by itself
                return


def n_threads():
    """How many threads may work for this caller.

    As many as Numba allows it, and no more than the processors that were left to it since.
    """
    allowed = parallel_loop()(0, 0, NOTHING)
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
        if processors < numba.config.NUMBA_DEFAULT_NUM_THREADS:
            return min(allowed, processors)
    return allowed


def _started_layer():
    """The name of the threading layer that runs in this process; None before it is started."""
    try:
        return numba.threading_layer()
    except ValueError:
        return None


# Whether Numba's layer is not to be entered here. OpenMP that was started before this module was
# imported may have been started by a parent.
_layer_is_unsafe = _started_layer() == "omp"


def _in_child():
    global _layer_is_unsafe
    global_compiler_lock.release()
    pool.cache_clear()  # its threads stayed in the parent
    _layer_is_unsafe = _layer_is_unsafe or _started_layer() is not None


if hasattr(os, "register_at_fork"):
    # A fork waits until no thread compiles: the child would wait for ever for Numba's lock
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_in_child,
    )


@cache
def pool():
    """Threads that help where Numba's layer cannot; started when they first have work."""
    return ThreadPoolExecutor(max(numba.config.NUMBA_NUM_THREADS - 1, 1), "numba_ce")


def run_slice(call, plan, n_workers, memory):
    """Run a serial function over the blocks of a plan that its counter has not given out yet.

    call : the function, for ctypes; plan : 0-d array of PLAN
    memory : whatever holds the arrays behind its addresses
    """
    if n_workers == 1:
        call(plan.ctypes.data, 0)
    elif _layer_is_unsafe or numba.threading_layer() == "workqueue":
        _run_with_pool(call, plan, n_workers, memory)
    else:
        address = ctypes.cast(call, ctypes.c_void_p).value
        parallel_loop()(address, plan.ctypes.data, np.zeros(n_workers, np.int64))


def _run_with_pool(call, plan, n_workers, memory):
    helpers = []
    try:
        with suppress(RuntimeError):  # no thread can be started: the work is done with fewer
            for worker in range(1, n_workers):
                helpers.append(pool().submit(_help, call, plan, worker, memory))
        call(plan.ctypes.data, 0)
    finally:
        # After an exception of a signal handler, too, nobody writes any more when the call returns
        ctypes.c_int64.from_address(int(plan["tickets"])).value = int(plan["n_blocks"])
        _end(helpers)


def _help(call, plan, worker, memory):
    """A helper's share; it holds the memory, so that one that starts late finds no work there."""
    call(plan.ctypes.data, worker)


def _end(helpers):
    """Return when none of the helpers works, whatever signals arrive."""
    interruption = None
    for helper in helpers:
        while not helper.cancel() and not helper.done():
            try:
                wait((helper,))
            except BaseException as error:
                interruption = error
    if interruption is not None:
        raise interruption


def run_blocks(call, plan, n_workers, memory):
    """Run a serial function over all blocks of a plan, in slices that take some 50 ms.

    Between two slices Python handles signals. Block sums are stored for each block, so slices
    change no bit. A slice has a counter of its own: a helper that comes late finds no block left.
    """
    n_blocks, block = int(plan["n_blocks"]), int(plan["rows_per_block"] * plan["n_classes"])
    length, first = max(FIRST_SLICE_ELEMENTS // block, n_workers), 0
    try:
        if n_blocks <= length:
            return run_slice(call, plan, n_workers, memory)
        while first < n_blocks:
            last = min(first + length, n_blocks)
            counter, part = np.array([first]), plan.copy()
            part["tickets"], part["n_blocks"] = counter.ctypes.data, last
            began = perf_counter()
            run_slice(call, part, n_workers, (memory, counter))
            fits = SLICE_SECONDS / max(perf_counter() - began, 1e-9)
            length = max(int(length * min(fits, 4.0)), n_workers)
            first = last
    except BaseException as error:
        error.add_note("numba_ce was interrupted: arrays given as `out` are partly written")
        raise
