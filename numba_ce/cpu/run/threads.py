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
from functools import cache
from time import perf_counter

import numba
import numpy as np
from llvmlite import ir
from numba import cfunc, prange, types
from numba.extending import intrinsic

from numba_ce import _fork
from numba_ce._validate import PARTLY_WRITTEN
from numba_ce.cpu.choose import blocks_drawn
from numba_ce.cpu.compile.cache import cached
from numba_ce.cpu.compile.jit import call_address, collector_paused
from numba_ce.cpu.compile.numba_core import call_named, global_compiler_lock
from numba_ce.cpu.plan import address_of, pack_plan
from numba_ce.cpu.run.pool import run_with_pool
from numba_ce.cpu.simd.element import put

# The time that a slice took gives the length of the next one. A row costs as much as its classes
# and 32 more: 0.15 to 11 ns each on two cores, so that the first slice takes 1 to 100 ms
FIRST_SLICE_CLASSES, CLASSES_OF_A_ROW = 1 << 23, 32
SLICE_SECONDS = 0.1
# Below this many logits, 0.1 ms, the pool costs more than it saves: waking it takes 30 us
POOL_ELEMENTS = 1 << 17


@cache
@collector_paused()
def parallel_loop():
    """The one parallel loop, from disk or compiled when it is first needed.

    Given no function it returns the number of threads that Numba allows the caller:
    `numba.get_num_threads` takes locks that a fork may leave locked in the child.
    """
    _preload_tbb()
    numba.get_num_threads()  # starts the threading layer, and names to LLVM what the loop calls
    signature = ctypes.CFUNCTYPE(ctypes.c_int64, *(ctypes.c_ssize_t,) * 4)
    return cached("parallel_loop", signature, compile_parallel_loop).ctypes


def compile_parallel_loop():
    @cfunc("int64(intp, intp, intp, intp)", parallel=True)
    def run_workers(function, plan, done, n_workers):
        if function == 0:
            return _allowed_threads()
        for worker in prange(n_workers):
            put(done + 8 * worker, call_address(function, plan, worker))
        return 0

    return run_workers


@intrinsic
def _allowed_threads(typingctx):
    """`get_num_threads` of Numba's layer by its name: its address would keep the loop off disk."""

    def codegen(context, builder, sig, args):
        # As Numba declares it; an int comes back
        number = call_named(builder, "get_num_threads", ir.IntType(64))
        number = builder.trunc(number, ir.IntType(32))
        return builder.sext(number, ir.IntType(64))

    return types.int64(), codegen


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


def n_threads() -> int:
    """How many threads may work for this caller.

    As many as Numba allows it, and no more than the processors that were left to it since.
    """
    allowed = parallel_loop()(0, 0, 0, 0)
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
    _layer_is_unsafe = _layer_is_unsafe or _started_layer() is not None


_fork.locks.append(global_compiler_lock)  # also held by a thread that loads a kernel
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def run_blocks(job, kernel, fields, memory, n_workers, counter):
    """Run a kernel over all blocks of a job, in slices of some 0.1 s.

    fields : what the call adds to the plan; memory : for the plan; counter : of the tickets
    Between two slices Python handles signals. Block sums are stored for each block, so slices
    change no bit.
    """
    block = job.rows_per_block * (job.n_classes + CLASSES_OF_A_ROW)
    length, last = FIRST_SLICE_CLASSES // block, 0
    if job.n_blocks <= length:
        fields["blocks_drawn"] = blocks_drawn(job.n_blocks, n_workers)
        return _run_slice(job, kernel, fields, memory, n_workers)
    try:
        while last < job.n_blocks:
            counter[0], length = last, max(length, n_workers)
            last = min(last + length, job.n_blocks)
            drawn = blocks_drawn(last - int(counter[0]), n_workers)
            here = fields | {"n_blocks": last, "blocks_drawn": drawn}
            began = perf_counter()
            _run_slice(job, kernel, here, memory, n_workers)
            fits = SLICE_SECONDS / max(perf_counter() - began, 1e-9)
            length = int(length * min(fits, 16.0))
    except BaseException as error:
        error.add_note(PARTLY_WRITTEN)
        raise


def _run_slice(job, kernel, fields, memory, n_workers):
    """Run a kernel over the blocks from the counter of the tickets to `n_blocks`."""
    pack_plan(memory, job.fixed, fields)
    by_pool = n_workers > 1 and (_layer_is_unsafe or numba.threading_layer() == "workqueue")
    if by_pool and job.n_rows * job.n_classes < POOL_ELEMENTS:
        n_workers = 1
    if n_workers == 1:
        kernel.call(address_of(memory), 0)
    elif by_pool:
        run_with_pool(kernel.function.address, address_of(memory), n_workers)
    else:
        done = np.empty(n_workers, np.int64)
        address = kernel.function.address
        parallel_loop()(address, address_of(memory), address_of(done), n_workers)
