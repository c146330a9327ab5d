"""From a plan to threads: compile the kernel, share the blocks of rows out, add up the results.

Rows are cut into blocks whose length depends on the number of classes alone. Workers draw the next
block from a common counter, so a core that is busy elsewhere does not hold up the others, and the
sums of the blocks are added in the order of the blocks, so they have the same bits for any number
of threads. The parallel loop knows nothing of any operation: it is compiled once and calls serial
functions by their address.
"""

import ctypes
import gc
import importlib.metadata
import os
from contextlib import contextmanager
from functools import cache

import numba
import numpy as np
from llvmlite import binding, ir
from numba import carray, njit, prange, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from numba_ce._backend import is_serial
from numba_ce.cpu.element import put, take_ticket
from numba_ce.cpu.jit import smaller, whole_kernel
from numba_ce.cpu.measure import workspace_bytes, workspace_finder
from numba_ce.cpu.operations import OPERATIONS
from numba_ce.cpu.plan import PLAN_TYPE, address_of, packed
from numba_ce.cpu.sixteen import narrow_bytes
from numba_ce.cpu.vector import fence

# A block is long enough (some 20 us) that drawing it costs nothing
BLOCK_ELEMENTS = 65536
# Below this many logits waking the threads (5 to 50 us) costs more than they save
SERIAL_ELEMENTS = 32768


def rows_per_block(n_classes):
    """Rows of a block; a function of the number of classes only, for reproducible sums."""
    return min(max(BLOCK_ELEMENTS // n_classes, 1), 1024)


@contextmanager
def collector_paused():
    """No garbage collection while compiling: there is little garbage, and looking costs 10%."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
@collector_paused()
def compiled(kernel):
    """The serial function that works on the blocks of a plan, and its address."""
    if kernel.kind == "float16" or "float16" in (kernel.targets_kind, kernel.grad_kind):
        require_float16()
    do_rows = OPERATIONS[kernel.operation](kernel)
    find_workspace = workspace_finder(kernel.kind)

    @whole_kernel(types.void(types.CPointer(PLAN_TYPE), types.intp))
    def work_on_blocks(pointer, worker):
        plan = carray(pointer, 1)[0]
        work = find_workspace(plan, worker)
        while True:
            block = take_ticket(plan.tickets)
            if block >= plan.n_blocks:
                break
            first = block * plan.rows_per_block
            last = smaller(first + plan.rows_per_block, plan.n_rows)
            put(plan.block_sum + block * 8, do_rows(plan, first, last, work))
        fence()

    return work_on_blocks, work_on_blocks.ctypes


def require_float16():
    """float16 needs the processor's conversions; without them LLVM ends the process."""
    if not converts_float16():
        raise NotImplementedError(
            "float16 needs a processor with the F16C instructions (NUMBA_CPU_NAME may name one "
            "without): convert the array to float32"
        )


@cache
def converts_float16():
    """Whether Numba's target converts float16 by itself, or by calling a function."""
    text = "define float @f(half %x) {\n %y = fpext half %x to float\n ret float %y\n}"
    machine = cpu_target.target_context.codegen()._tm
    return "hfsf2" not in machine.emit_assembly(binding.parse_assembly(text))


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
    """The one parallel loop, compiled when it is first needed."""
    _preload_tbb()

    @njit("void(intp, intp, int64[::1])", parallel=True, nogil=True)
    def run_workers(function, plan, done):
        for worker in prange(done.size):
            done[worker] = _call(function, plan, worker)

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


def run(kernel, fields, kept_alive):
    """Run a kernel over all rows of a plan, given as the dictionary of its fields.

    kept_alive : the arrays behind the addresses in the plan, held until the rows are done
    Returns the sums of the blocks added up in order, and the first bad row or -1.
    """
    function, call = compiled(kernel)
    n_rows, n_classes = fields["n_rows"], fields["n_classes"]
    per_block = rows_per_block(n_classes)
    n_blocks = -(-n_rows // per_block)
    n_workers = 1
    if n_blocks > 1 and n_rows * n_classes >= SERIAL_ELEMENTS and not is_serial():
        loop = parallel_loop()
        n_workers = min(numba.get_num_threads(), n_blocks)
    size = narrow_bytes(n_classes) if kernel.block else workspace_bytes(n_classes, kernel.kind)
    # one counter for the tickets, then for each block its sum and its first bad row
    results = np.zeros(1 + 2 * n_blocks)
    workspace = np.empty(n_workers * size, np.uint8)
    tickets = results.ctypes.data
    fields = fields | {
        "rows_per_block": per_block,
        "n_blocks": n_blocks,
        "tickets": tickets,
        "block_sum": tickets + 8,
        "block_bad": tickets + 8 + 8 * n_blocks,
        "workspace": workspace.ctypes.data,
        "workspace_bytes": size,
    }
    plan, _view = address_of(packed(fields))
    if n_workers == 1:
        call(plan, 0)
    else:
        loop(function.address, plan, np.zeros(n_workers, np.int64))
    del kept_alive
    block_sum, block_bad = results[1 : 1 + n_blocks], results[1 + n_blocks :].view(np.int64)
    if n_blocks == 1:
        return float(block_sum[0]), int(block_bad[0]) - 1
    bad = block_bad[block_bad > 0]
    return float(block_sum.sum()), int(bad[0]) - 1 if bad.size else -1
