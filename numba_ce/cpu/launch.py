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
import math
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
from numba_ce.cpu.element import get, put, take_ticket
from numba_ce.cpu.jit import smaller, whole_kernel
from numba_ce.cpu.measure import workspace_bytes, workspace_finder
from numba_ce.cpu.operations import OPERATIONS, Kernel
from numba_ce.cpu.plan import PLAN_TYPE, address_of, packed
from numba_ce.cpu.sixteen import narrow_bytes
from numba_ce.cpu.vector import fence

# A block is long enough (some 20 us) that drawing it costs nothing
BLOCK_ELEMENTS = 65536
# Below this many logits waking the threads (5 to 50 us) costs more than they save
SERIAL_ELEMENTS = 32768
SCAN = Kernel("scan")


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


@cache
@collector_paused()
def scan_first():
    """The function that scans the targets of one block and then runs a kernel on it.

    For small problems: the second call from Python would cost 4 us.
    """

    @whole_kernel(types.void(types.CPointer(PLAN_TYPE), types.intp))
    def scan_and_run(pointer, worker):
        plan = carray(pointer, 1)[0]
        _call(plan.scan, pointer, worker)
        weight = get(plan.block_sum, 0.0)
        put(plan.weight, weight)
        if plan.checked and get(plan.block_bad, np.int64(0)) > 0:
            return
        if plan.averaged:
            plan.grad_scale = 1.0 / weight if weight != 0.0 else 0.0
        put(plan.tickets, np.int64(0))
        _call(plan.kernel, pointer, worker)

    return scan_and_run, scan_and_run.ctypes


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


def run(kernel, fields, *, after_scan=False):
    """Run a kernel over all rows of a plan, given as the dictionary of its fields.

    after_scan : scan the targets and weights first. A bad target stops it, if `checked`; the
    weights set `grad_scale`, if `averaged`.

    Returns the sums of the blocks added up in order, the first bad row or -1, and the sum of the
    weights if there was a scan.
    """
    function, call = compiled(kernel)
    n_rows, n_classes = fields["n_rows"], fields["n_classes"]
    per_block = rows_per_block(n_classes)
    n_blocks = -(-n_rows // per_block)
    n_workers = 1
    if n_blocks > 1 and n_rows * n_classes >= SERIAL_ELEMENTS and not is_serial():
        n_workers = min(numba.get_num_threads(), n_blocks)
    size = narrow_bytes(n_classes) if kernel.block else workspace_bytes(n_classes, kernel.kind)
    # the counter of the tickets, the weight, then for each block its sum and its first bad row
    results = np.zeros(2 + 2 * n_blocks)
    workspace = np.empty(n_workers * size, np.uint8)
    tickets = address_of(results)
    fields["rows_per_block"], fields["n_blocks"] = per_block, n_blocks
    fields["tickets"], fields["weight"] = tickets, tickets + 8
    fields["block_sum"], fields["block_bad"] = tickets + 16, tickets + 16 + 8 * n_blocks
    fields["workspace"], fields["workspace_bytes"] = address_of(workspace), size
    if after_scan:
        scan = compiled(SCAN)
        if n_blocks == 1:
            fields["scan"], fields["kernel"] = scan[0].address, function.address
            call = scan_first()[1]
        else:
            scanning = n_workers if n_rows >= SERIAL_ELEMENTS else 1
            results[1], bad = _launch(*scan, fields, scanning, results)
            if bad >= 0 and fields["checked"]:
                return math.nan, bad, math.nan
            if fields["averaged"]:
                fields["grad_scale"] = 1.0 / results[1] if results[1] != 0.0 else 0.0
            results[0] = 0.0
    total, bad = _launch(function, call, fields, n_workers, results)
    return total, bad, float(results[1])


def _launch(function, call, fields, n_workers, results):
    """Run one kernel in so many threads; returns the sum of the blocks and the first bad row."""
    record = packed(fields)
    if n_workers == 1:
        call(address_of(record), 0)
    else:
        parallel_loop()(function.address, address_of(record), np.zeros(n_workers, np.int64))
    n_blocks = fields["n_blocks"]
    block_sum, block_bad = results[2 : 2 + n_blocks], results[2 + n_blocks :].view(np.int64)
    if n_blocks == 1:
        return float(block_sum[0]), int(block_bad[0]) - 1
    bad = block_bad[block_bad > 0]
    return float(block_sum.sum()), int(bad[0]) - 1 if bad.size else -1
