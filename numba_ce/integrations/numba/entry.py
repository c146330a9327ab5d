"""`enter`: the one function that compiled code calls; it describes the call and runs a kernel.

It does what `numba_ce.cpu` and `cpu.run.launch` do for a call from Python, for arrays of one or two
axes, in the calling thread. The kernels are the same machine code, so the results have the same
bits. A kernel that is not there yet is loaded, or compiled, by Python, which `enter` calls back.
"""

import _thread
import ctypes
import math
from functools import cache, wraps

import numpy as np
from llvmlite import binding, ir
from numba import types

from numba_ce.cpu.choose import (
    ACROSS_CLASSES,
    FEW_CLASSES,
    IN_PLACE_CLASSES,
    STREAMING_BYTES,
    rows_gathered,
    rows_per_block,
)
from numba_ce.cpu.compile.cache import cached
from numba_ce.cpu.compile.jit import (
    call_address,
    collector_paused,
    inner,
    inner_overload,
    whole_kernel,
)
from numba_ce.cpu.compile.numba_core import call_named
from numba_ce.cpu.plan import PLAN, PLAN_BYTES, PLAN_TYPE, Kernel
from numba_ce.cpu.rows.targets import FLOAT32, FLOAT64
from numba_ce.cpu.rows.workspace import workspace_bytes
from numba_ce.cpu.run.launch import SCAN, compiled
from numba_ce.cpu.schedules.across_tile import across_bytes
from numba_ce.cpu.simd.element import get, load_integer, put
from numba_ce.cpu.simd.lowered import lowered
from numba_ce.cpu.simd.transpose import BLOCK_CLASSES, LARGEST_BLOCK
from numba_ce.integrations.numba.call import (
    AT,
    BAD_TARGET,
    DONE,
    NO_KERNEL,
    NO_MEMORY,
    OPERATIONS,
    STALE,
    SYMBOL,
)
from numba_ce.integrations.numba.check import I0, check, fail
from numba_ce.integrations.numba.reduction import put_reduction
from numba_ce.integrations.numba.stamp import STAMP
from numba_ce.integrations.numba.sums import PAIRWISE, STACK_BYTES, sum_of

F32_0 = np.float32(0)
CROSS_ENTROPY, WITH_GRAD, SOFTMAX, LOG_SOFTMAX, LOGSUMEXP = range(len(OPERATIONS))
# Along; across with each block of classes; across with prefetches by class
FORMS = 2 + len(BLOCK_CLASSES)
SCAN_CODE = len(OPERATIONS) * 16 * FORMS
TABLE_SIZE = 2 + SCAN_CODE  # the address of `_fetch`, then those of the kernels
TEMPERED, CAPPING = (PLAN.fields[name][1] for name in ("tempered", "capping"))
AXIS_BYTES = 48  # of the one row axis, see `locate`
SIGNATURE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
FETCH = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)


def also_here(function):
    """Let kernels call a function of Python."""

    @inner_overload(function)
    @wraps(function)
    def itself(*arguments, **options):
        return function


for function in (rows_gathered, rows_per_block, workspace_bytes, across_bytes):
    also_here(function)


@lowered
def plan_of(address: types.intp):
    """The plan at an address."""
    plan = ir.ArrayType(ir.IntType(8), PLAN.itemsize).as_pointer()
    return PLAN_TYPE, lambda builder, address: builder.inttoptr(address, plan)


@lowered
def table():
    """The address of TABLE_SIZE words, zeros at first, that are a part of the code of `enter`."""

    def build(builder):
        words = ir.ArrayType(ir.IntType(64), TABLE_SIZE)
        variable = ir.GlobalVariable(builder.module, words, "numba_ce_table")
        variable.linkage, variable.initializer = "internal", ir.Constant(words, None)
        return builder.ptrtoint(variable, ir.IntType(64))

    return types.int64, build


@lowered
def allocate(size: types.int64):
    """The address of so many bytes; 0 if there are none."""
    return types.int64, lambda builder, size: call_named(builder, "malloc", size.type, size)


@lowered
def release(address: types.int64):
    """Give back what `allocate` gave."""
    return types.none, lambda builder, address: call_named(builder, "free", ir.VoidType(), address)


@inner
def first_bad(address, n):
    """The first row that a block noted as bad, counted from 1; 0 if there is none."""
    for i in range(n):
        bad = get(address + 8 * i, I0)
        if bad != 0:
            return bad
    return I0


@inner
def kernel_at(words, code):
    """The address of the kernel with a code; 0 if it cannot be had."""
    if get(words + 8 * (1 + code), I0) == 0:
        call_address(get(words, I0), words, code)
    return get(words + 8 * (1 + code), I0)


@inner
def form_of(n_classes):
    """The schedule that `choose_schedule` takes for so many classes, see FORMS."""
    if n_classes > ACROSS_CLASSES:
        return 0
    if n_classes > FEW_CLASSES:
        return 1 + len(BLOCK_CLASSES)
    form = 1
    for block in BLOCK_CLASSES:
        if block < n_classes and block < LARGEST_BLOCK:
            form += 1
    return form


@inner
def code_of(slots, n_classes):
    """The number of a kernel, of which `kernel_of` makes a `Kernel`."""
    code = get(slots + AT.operation, I0) * 2 + get(slots + AT.double, I0)
    code = code * 2 + (1 if get(slots + AT.label_smoothing, 0.0) != 0.0 else 0)
    code = code * 2 + (1 if get(slots + AT.temperature, 0.0) != 1.0 else 0)
    code = code * 2 + get(slots + AT.has_softcap, I0)
    return code * FORMS + form_of(n_classes)


def kernel_of(code):
    """The kernel that a code stands for."""
    if code == SCAN_CODE:
        return SCAN
    flags, form = divmod(code, FORMS)
    operation, double = flags >> 4, flags >> 3 & 1
    kind = "float64" if double else "float32"
    kernel = Kernel(
        "loss" if operation in (CROSS_ENTROPY, WITH_GRAD) else OPERATIONS[operation],
        "along",
        kind,
        None,
        kind if operation in (WITH_GRAD, SOFTMAX, LOG_SOFTMAX) else None,
        None,
        *(bool(flags >> bit & 1) for bit in (2, 1, 0)),
    )
    if form == 0:
        return kernel
    block = BLOCK_CLASSES[min(form, len(BLOCK_CLASSES)) - 1]
    return kernel._replace(
        schedule="across", block=block, prefetch_by_class=form > len(BLOCK_CLASSES)
    )


@inner
def describe_arrays(plan, slots, width):
    """Shape, strides and addresses; returns whether classes are far apart, as in `_layout`."""
    n_rows, n_classes = get(slots + AT.n_rows, I0), get(slots + AT.n_classes, I0)
    plan.n_rows, plan.n_classes, plan.all_classes = n_rows, n_classes, n_classes
    plan.n_axes = 1
    logits, grad = get(slots + AT.logits, I0), get(slots + AT.grad, I0)
    logits_row, grad_row = get(slots + AT.logits_row, I0), get(slots + AT.grad_row, I0)
    logits_step, grad_step = get(slots + AT.logits_step, I0), get(slots + AT.grad_step, I0)
    several = 0 if n_rows == 1 else 1
    axes = plan.axes
    put(axes, n_rows)
    put(axes + 8, several * logits_row)
    put(axes + 16, several * get(slots + AT.targets_row, I0))
    put(axes + 24, several * get(slots + AT.sample_weight_row, I0))
    put(axes + 32, several * grad_row)
    put(axes + 40, I0)
    plan.logits, plan.logits_step = logits, logits_step
    plan.grad, plan.grad_step = grad, grad_step
    plan.targets = get(slots + AT.targets, I0)
    plan.targets_bytes = get(slots + AT.targets_bytes, I0)
    plan.targets_signed = get(slots + AT.targets_signed, I0) != 0
    plan.sample_weight = get(slots + AT.sample_weight, I0)
    plan.sample_weight_kind = FLOAT64 if get(slots + AT.sample_weight_double, I0) else FLOAT32
    plan.streaming = grad != logits and n_rows * n_classes * width >= STREAMING_BYTES
    far = logits_row == width and logits_step != width and logits_step != 0
    far = far or (grad != 0 and grad_row == width and grad_step != width and grad_step != 0)
    return far and several != 0 and n_classes > IN_PLACE_CLASSES


@inner
def describe_options(plan, slots, double):
    """The options, and the constants by which the exponentials reduce their arguments."""
    plan.has_ignore_index = get(slots + AT.has_ignore_index, I0) != 0
    plan.ignore_index = get(slots + AT.ignore_index, I0)
    plan.smoothing = get(slots + AT.label_smoothing, 0.0)
    plan.z_loss = get(slots + AT.z_loss, 0.0)
    plan.softcap = get(slots + AT.softcap, 0.0)
    plan.temperature = get(slots + AT.temperature, 0.0)
    plan.checked = get(slots + AT.check_targets, I0) != 0
    plan.averaged = get(slots + AT.averaged, I0) != 0


@inner
def copy_class_weight(plan, slots, address, double):
    """The class weights as float64, and in the type of the tiles, padded by a vector."""
    given, step = get(slots + AT.class_weight, I0), get(slots + AT.class_weight_step, I0)
    n_classes = plan.n_classes
    plan.class_weight, plan.class_weight_real = address, address + 8 * n_classes
    for c in range(n_classes + 16):
        weight = 0.0
        if c < n_classes:
            if get(slots + AT.class_weight_double, I0) != 0:
                weight = get(given + c * step, 0.0)
            else:
                weight = np.float64(get(given + c * step, F32_0))
            put(plan.class_weight + 8 * c, weight)
        if double:
            put(plan.class_weight_real + 8 * c, weight)
        else:
            put(plan.class_weight_real + 4 * c, np.float32(weight))


@inner
def bad_target(plan, slots, row):
    """What the error for a bad target says."""
    at = plan.targets + row * get(plan.axes + 16, I0)
    value = load_integer(at, plan.targets_bytes, plan.targets_signed, False)
    return fail(slots, BAD_TARGET, row, value, plan.n_classes, 0 if plan.targets_signed else 1)


@inner
def run_loss(plan, slots, address, scan, kernel, stack):
    """The scan of the targets, then the rows, and the sum or mean of their losses."""
    n_blocks, averaged = plan.n_blocks, plan.averaged
    call_address(scan, address, 0)
    weight = sum_of(plan.block_sum, n_blocks, stack)
    bad = first_bad(plan.block_bad, n_blocks)
    if bad != 0 and plan.checked:
        return bad_target(plan, slots, bad - 1)
    if averaged:
        plan.grad_scale = 1.0 / weight if weight != 0.0 else 0.0
    put(plan.tickets, I0)
    call_address(kernel, address, 0)
    total = sum_of(plan.block_sum, n_blocks, stack)
    if averaged:
        total = total / weight if weight != 0.0 else math.nan
    put(slots + AT.result, total)
    return DONE


@inner
def run_nothing(slots, operation):
    """Without rows or without classes."""
    rows = get(slots + AT.rows, I0)
    if operation == LOGSUMEXP:
        double = get(slots + AT.double, I0) != 0
        for row in range(get(slots + AT.n_rows, I0)):
            if double:
                put(rows + 8 * row, -math.inf)
            else:
                put(rows + 4 * row, np.float32(-math.inf))
    put(slots + AT.result, math.nan if get(slots + AT.averaged, I0) != 0 else 0.0)
    return DONE


@inner
def line(size):
    """So many bytes, or some more: a whole number of lines."""
    return (size + 63) // 64 * 64


@inner
def run(slots, words, operation, is_loss):
    """A call that was checked, with rows and classes."""
    n_rows, n_classes = get(slots + AT.n_rows, I0), get(slots + AT.n_classes, I0)
    double = get(slots + AT.double, I0) != 0
    width = 8 if double else 4
    kernel = kernel_at(words, code_of(slots, n_classes))
    scan = kernel_at(words, SCAN_CODE) if is_loss else kernel
    if kernel == 0 or scan == 0:
        return NO_KERNEL
    if n_classes > ACROSS_CLASSES:
        work = line(workspace_bytes(n_classes, width))
    else:
        work = line(across_bytes(n_classes, width))
    # The plan, the row axis, the workspace, results of the blocks, class weights, in one piece
    most_blocks = n_rows // rows_per_block(n_classes, False) + 1
    has_class_weight = get(slots + AT.class_weight, I0) != 0
    size = PLAN_BYTES + 64 + work + line(16 + 16 * most_blocks)
    stack_at = size
    if most_blocks > PAIRWISE:
        size += STACK_BYTES
    weights_at = size
    if has_class_weight:
        size += (8 + width) * n_classes + 16 * width
    memory = allocate(size + 64)
    if memory == 0:
        return NO_MEMORY
    address = line(memory)
    for i in range(0, PLAN_BYTES, 8):
        put(address + i, I0)
    plan = plan_of(address)
    plan.axes, plan.workspace = address + PLAN_BYTES, address + PLAN_BYTES + 64
    plan.workspace_bytes = work
    per_block = rows_per_block(n_classes, describe_arrays(plan, slots, width))
    n_blocks = (n_rows + per_block - 1) // per_block
    plan.rows_per_block, plan.n_blocks, plan.blocks_drawn = per_block, n_blocks, n_blocks
    plan.tickets = plan.workspace + work
    plan.weight = plan.tickets + 8
    plan.block_sum, plan.block_bad = plan.tickets + 16, plan.tickets + 16 + 8 * n_blocks
    for i in range(2 + 2 * n_blocks):
        put(plan.tickets + 8 * i, I0)
    plan.grad_scale = 1.0
    rows = get(slots + AT.rows, I0)
    if is_loss:
        plan.loss, plan.loss_bytes = rows, width
        describe_options(plan, slots, double)
        if plan.temperature != 1.0:
            put_reduction(address + TEMPERED, plan.temperature, double)
        if plan.softcap != 0.0:
            put_reduction(address + CAPPING, plan.softcap / 2, double)
        if has_class_weight:
            copy_class_weight(plan, slots, address + weights_at, double)
        status = run_loss(plan, slots, address, scan, kernel, address + stack_at)
    else:
        plan.lse, plan.loss_bytes, plan.temperature = rows, width, 1.0
        call_address(kernel, address, 0)
        status = DONE
    release(memory)
    return status


def compile_enter():
    @whole_kernel(types.int64(types.int64, types.int64))
    def enter(slots, _):
        words = table()
        if slots == 0:
            return words
        if get(slots + AT.stamp, I0) != STAMP:
            return STALE
        operation = get(slots + AT.operation, I0)
        is_loss = operation <= WITH_GRAD
        status = check(slots, is_loss)
        if status != DONE:
            return status
        if get(slots + AT.n_rows, I0) == 0 or get(slots + AT.n_classes, I0) == 0:
            return run_nothing(slots, operation)
        return run(slots, words, operation, is_loss)

    return enter


#: Why the last kernel could not be had: an exception, for the error that tells of it.
failures = []


@FETCH
def _fetch(words, code):
    """Put the address of a kernel into the table; called by any thread, with the GIL."""
    try:
        address = compiled(kernel_of(code)).function.address
        ctypes.c_int64.from_address(words + 8 * (1 + code)).value = address
    except BaseException as error:  # there is no caller that it could be raised to
        failures[:] = [error]
        if isinstance(error, KeyboardInterrupt):
            _thread.interrupt_main()


@cache
@collector_paused()
def register():
    """Load or compile `enter`, and let LLVM find it by its name."""
    function = cached("enter", SIGNATURE, compile_enter)
    words = function.ctypes(0, 0)
    ctypes.c_int64.from_address(words).value = ctypes.cast(_fetch, ctypes.c_void_p).value
    binding.add_symbol(SYMBOL, function.address)
    return function
