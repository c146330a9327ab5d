"""From a plan to threads: compile the kernel, share the blocks of rows out, add up the results.

Rows are cut into blocks whose length depends on the number of classes and the layout. Workers draw
the next blocks from a common counter, so a core that is busy elsewhere does not hold up the others,
and the sums of the blocks are added in the order of the blocks, so they have the same bits for any
number of threads. The parallel loop knows nothing of any operation: it is compiled once and calls
serial functions by their address.
"""

import ctypes
import math
import struct
from array import array
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import carray, types

from numba_ce._backend import is_serial
from numba_ce.cpu.choose import SERIAL_ELEMENTS, rows_gathered, rows_packed, rows_per_block
from numba_ce.cpu.compile.cache import cached
from numba_ce.cpu.compile.jit import call_address, collector_paused, smaller, whole_kernel
from numba_ce.cpu.compile.numba_core import assembly
from numba_ce.cpu.operations import make_rows
from numba_ce.cpu.plan import PLAN_BYTES, PLAN_TYPE, Kernel, address_of, fixed_part, pack_plan
from numba_ce.cpu.rows.output import begin_line, end_line
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.rows.workspace import workspace_bytes, workspace_finder
from numba_ce.cpu.run.threads import n_threads, run_blocks
from numba_ce.cpu.schedules.across_tile import across_bytes
from numba_ce.cpu.schedules.gather import Copier, compile_copier, copier_of, near_bytes
from numba_ce.cpu.simd.element import atomic_add, get, put
from numba_ce.cpu.simd.memory import fence
from numba_ce.cpu.simd.width import VECTOR_BITS

SCAN = Kernel("scan", "along")
ONE_BLOCK = struct.Struct("=qddq")  # the results of one block, see `run`
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t)


class Compiled(NamedTuple):
    """A kernel, twice."""

    function: Any  # has its address
    call: Any  # for Python


@cache
@collector_paused()
def compiled(kernel):
    """The serial function that works on the blocks of a plan."""
    compile_it = compile_copier if isinstance(kernel, Copier) else compile_kernel
    name = f"{kernel} {VECTOR_BITS}"
    function = cached(name, KERNEL, lambda: compile_it(kernel))
    return Compiled(function, function.ctypes)


def compile_kernel(kernel):
    if kernel.kind == "float16" or "float16" in (kernel.targets_kind, kernel.grad_kind):
        require_float16()
    do_rows = make_rows(kernel)
    find_workspace = workspace_finder(kernel.kind)

    @whole_kernel(types.void(types.CPointer(PLAN_TYPE), types.intp))
    def work_on_blocks(pointer, worker):
        plan = carray(pointer, 1)[0]
        work = find_workspace(plan, worker)
        begin_line(work.edge)
        while True:
            drawn = atomic_add(plan.tickets, plan.blocks_drawn)
            if drawn >= plan.n_blocks:
                break
            for block in range(drawn, smaller(drawn + plan.blocks_drawn, plan.n_blocks)):
                first = block * plan.rows_per_block
                last = smaller(first + plan.rows_per_block, plan.n_rows)
                put(plan.block_sum + block * 8, do_rows(plan, first, last, work))
        end_line(work.edge)
        fence()

    return work_on_blocks


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
    return "hfsf2" not in assembly(text)


@cache
@collector_paused()
def scan_first():
    """The function that scans the targets of one block and then runs a kernel on it.

    For small problems: the second call from Python would cost 4 us.
    """
    function = cached("scan_first", KERNEL, compile_scan_first)
    return Compiled(function, function.ctypes)


def compile_scan_first():
    @whole_kernel(types.void(types.CPointer(PLAN_TYPE), types.intp))
    def scan_and_run(pointer, worker):
        plan = carray(pointer, 1)[0]
        call_address(plan.scan, pointer, worker)
        weight = get(plan.block_sum, 0.0)
        put(plan.weight, weight)
        if plan.checked and get(plan.block_bad, np.int64(0)) > 0:
            return
        if plan.averaged:
            plan.grad_scale = 1.0 / weight if weight != 0.0 else 0.0
        put(plan.tickets, np.int64(0))
        call_address(plan.kernel, pointer, worker)

    return scan_and_run


class Job(NamedTuple):
    """What calls have in common that differ in addresses and numbers alone, see `prepare`."""

    fixed: bytes  # of the plan
    axes: array  # its address is in there
    kernel: Compiled  # does everything but, with several blocks, the scan
    scan: Compiled | None  # for several blocks, if there is to be a scan
    checked: bool
    averaged: bool
    n_rows: int
    n_classes: int
    n_blocks: int
    rows_per_block: int
    workspace_bytes: int  # of a worker


def prepare(kernel, fields, axes, *, scans):
    """The `Job` of a kernel, from a dictionary of the fixed fields of its plan, and their axes.

    scans : look at the targets and weights first. A bad target stops it, if `checked`; the weights
    set `grad_scale`, if `averaged`.
    """
    main, scan = compiled(kernel), compiled(SCAN) if scans else None
    n_rows, n_classes = fields["n_rows"], fields["n_classes"]
    far = fields["logits_far"] or fields["targets_far"] or fields["grad_far"] or fields["hess_far"]
    per_block = rows_per_block(n_classes, far)
    n_blocks = -(-n_rows // per_block)
    across = kernel.schedule == "across"
    width = real_type(kernel.kind)().itemsize
    size = (across_bytes if across else workspace_bytes)(n_classes, width)
    size += _copies(kernel, fields, far)
    fields["rows_per_block"], fields["workspace_bytes"] = per_block, size
    if scans and n_blocks == 1:
        fields["scan"], fields["kernel"] = scan.function.address, main.function.address
        main, scan = scan_first(), None
    return Job(
        fixed_part(fields),
        axes,
        main,
        scan,
        fields["checked"],
        fields["averaged"],
        n_rows,
        n_classes,
        n_blocks,
        per_block,
        size,
    )


def _copies(kernel, fields, far):
    """The fields of a plan that `copies` wants; returns the bytes it needs for each worker."""
    packed = (
        fields["grad_packed"]
        and fields["streaming"]
        and kernel.prefetch_by_class
        and not kernel.hess_kind
    )
    if not (far or packed):
        fields["grad_packed"] = False
        return 0
    n_classes, n_axes = fields["n_classes"], fields["n_axes"]
    fields["grad_packed"], copier = not far, copier_of(kernel, packed=not far)
    fields["copier"] = compiled(copier).function.address
    fields["together"] = (rows_gathered if far else rows_packed)(n_classes)
    fields["near_bytes"] = near_bytes(copier, n_classes, n_axes)
    return fields["near_bytes"]


def run_job(job, fields):
    """Do a job, given the dictionary of what this call adds to its plan.

    Returns the sums of the blocks added up in order, the first bad row or -1, and the sum of the
    weights if there was a scan.
    """
    n_blocks, n_workers = job.n_blocks, 1
    if n_blocks > 1 and job.n_rows * job.n_classes >= SERIAL_ELEMENTS and not is_serial():
        n_workers = min(n_threads(), n_blocks)
    # the counter of the tickets, the weight, then for each block its sum and its first bad row
    results = np.zeros(2 + 2 * n_blocks)
    memory = np.empty(PLAN_BYTES + n_workers * job.workspace_bytes, np.uint8)
    tickets = address_of(results)
    fields["n_blocks"], fields["tickets"], fields["weight"] = n_blocks, tickets, tickets + 8
    fields["blocks_drawn"] = 1
    fields["block_sum"], fields["block_bad"] = tickets + 16, tickets + 16 + 8 * n_blocks
    plan = address_of(memory)
    fields["workspace"] = plan + PLAN_BYTES
    if n_blocks == 1:
        pack_plan(memory, job.fixed, fields)
        job.kernel.call(plan, 0)
        _, weight, total, bad = ONE_BLOCK.unpack(results)
        return total, bad - 1, weight
    if job.scan:
        scanning = n_workers if job.n_rows >= SERIAL_ELEMENTS else 1
        results[1], bad = _launch(job, job.scan, fields, memory, scanning, results)
        if bad >= 0 and job.checked:
            return math.nan, bad, math.nan
        if job.averaged:
            fields["grad_scale"] = 1.0 / results[1] if results[1] != 0.0 else 0.0
    total, bad = _launch(job, job.kernel, fields, memory, n_workers, results)
    return total, bad, float(results[1])


def _launch(job, kernel, fields, memory, n_workers, results):
    """Run one kernel in so many threads; returns the sum of the blocks and the first bad row."""
    n_blocks = job.n_blocks
    results[0] = 0.0
    run_blocks(job, kernel, fields, memory, n_workers, results[:1].view(np.int64))
    bad = results[2 + n_blocks :].view(np.int64)
    bad = bad[bad > 0]
    return float(results[2 : 2 + n_blocks].sum()), int(bad[0]) - 1 if bad.size else -1
