"""What a kernel is told: one record of addresses, strides and numbers.

A kernel takes the address of one `PLAN` record and nothing else, so the layout of an array (its
strides, byte order, integer width) never compiles another kernel. Byte addresses and strides are
int64: arrays beyond 2**31 elements are nothing special.
"""

import struct
from array import array
from collections.abc import Callable
from ctypes import c_ssize_t
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numba import from_dtype, types
from numba.extending import intrinsic

from numba_ce.cpu.compile.jit import inlined, inner
from numba_ce.cpu.compile.numba_core import raw_memcpy
from numba_ce.cpu.simd.element import get
from numba_ce.cpu.simd.vector import VECTOR_BYTES
from numba_ce.cpu.simd.width import ROWS_ACROSS
from numba_ce.describe import NUMBERS


class Kernel(NamedTuple):
    """What one compiled kernel is for; everything else is in its `PLAN`."""

    operation: str  # a name in `operations.OPERATIONS`
    schedule: str  # a name in `operations.SCHEDULES`
    kind: str = "float32"  # dtype of the logits
    targets_kind: str | None = None  # dtype of the probabilities; None: class indices or nothing
    grad_kind: str | None = None  # dtype of the gradient or of the probabilities written
    hess_kind: str | None = None
    smoothing: bool = False
    tempered: bool = False
    softcap: bool = False
    block: int = 0  # across: classes transposed at a time, up to EXACT_CLASSES all of them
    prefetch_by_class: bool = False  # across: see `across_tile.make_prefetcher`


class Operation(NamedTuple):
    """WHAT is done with rows, for every schedule."""

    leaves: str  # the class that is left out of the sums: "target", "largest" or "none"
    targets: str  # "counted": rows may be ignored; "looked at": if there are any; "none"
    # finish(plan, first, count, batch, end) -> (losses, elements): puts the results of eight rows,
    # a `Batch` and `FinishedRows`; returns what `writes` needs of them
    finish: Callable[..., Any]
    writes: str | None = None  # of each element: "gradient", "log_softmax", "hessian" or nothing
    dense: bool = False  # wants the sums over q: probabilities or smoothing
    entropy: bool = False  # wants e_total, above and target_logit
    poison: bool = False  # wants to know whether a row has a NaN
    from_record: bool = False  # the row is finished from its record


# What shapes, strides, dtypes, options, the reduction and "in place" decide: it is packed once for
# all calls that share them
FIXED = [
    # the problem
    ("n_rows", "i8"),
    ("n_classes", "i8"),
    ("axes", "i8"),  # address of int64 (n_axes, 1 + len(OPERANDS)), see `describe_layout`
    ("n_axes", "i8"),
    # what `copies` needs, and of which operands it makes copies
    ("copier", "i8"),  # address of a kernel, 0: there are no copies
    ("near_bytes", "i8"),  # of a worker
    ("together", "i8"),  # rows copied at a time
    ("near", "i8"),  # address of the plan that says where the copies are
    ("near_first", "i8"),  # the rows that are copied now, and those of the block
    ("near_last", "i8"),
    ("block_first", "i8"),
    ("block_last", "i8"),
    ("logits_far", "?"),
    ("targets_far", "?"),
    ("grad_far", "?"),
    ("grad_packed", "?"),
    ("hess_far", "?"),
    # how the work is cut up: n_classes and the layout decide, so the sums are the same bits
    ("rows_per_block", "i8"),
    ("workspace_bytes", "i8"),  # of a worker
    # `launch.scan_first`: addresses of two kernels, and what it does
    ("scan", "i8"),
    ("kernel", "i8"),
    ("checked", "?"),  # stop at a bad target
    ("averaged", "?"),  # grad_scale = 1 / weight
    # inputs: bytes from class to class, and how an element is stored
    ("logits_step", "i8"),
    ("targets_step", "i8"),  # probabilities only
    ("targets_bytes", "i8"),  # 1, 2, 4, 8
    ("sample_weight_kind", "i8"),
    ("logits_swapped", "?"),
    ("targets_swapped", "?"),
    ("targets_signed", "?"),
    ("sample_weight_swapped", "?"),
    # options
    ("has_ignore_index", "?"),
    ("ignore_index", "i8"),
    *((field, "f8") for field in NUMBERS.values()),
    ("tempered", "f8", 4),  # exp.Reduction for the temperature
    ("capping", "f8", 4),  # exp.Reduction for softcap / 2
    # outputs: bytes from class to class
    ("grad_step", "i8"),
    ("hess_step", "i8"),
    ("grad_swapped", "?"),
    ("hess_swapped", "?"),
    ("streaming", "?"),  # write around the caches
]
# What a call adds: addresses, 0 for what is not there, and numbers
OF_A_CALL = [
    ("logits", "i8"),
    ("targets", "i8"),
    ("sample_weight", "i8"),
    ("grad", "i8"),
    ("hess", "i8"),
    ("class_weight", "i8"),  # float64 (n_classes,)
    ("class_weight_real", "i8"),  # the same in the type of the tiles, padded by a vector
    ("class_offset", "i8"),  # the first class of this shard
    ("all_classes", "i8"),  # of the whole row; n_classes of it are here
    ("grad_scale", "f8"),  # 1 / denominator of the mean, or 1
    ("hess_factor", "f8"),  # hess = s max(factor Q p (1 - p), floor)
    ("hess_floor", "f8"),
    # results of the rows, C-contiguous
    ("loss", "i8"),
    ("loss_bytes", "i8"),  # 4 or 8: of every per-row result
    ("row_max", "i8"),
    ("lse", "i8"),
    ("entropy", "i8"),
    ("target_logit", "i8"),
    ("argmax", "i8"),  # int64
    ("rank", "i8"),  # int64
    ("record", "i8"),  # float64 (n_rows, 9)
    ("n_blocks", "i8"),
    ("workspace", "i8"),  # one part of workspace_bytes for each worker
    ("tickets", "i8"),  # the workers' counter: the next block
    ("blocks_drawn", "i8"),  # blocks that a worker draws at a time
    ("weight", "i8"),  # float64: where `launch.scan_first` puts the sum of the weights
    # one entry per block
    ("block_sum", "i8"),  # float64: sum of what the operation returned for each row
    ("block_bad", "i8"),  # int64: 1 + the first row with a bad target, or 0
]
PLAN = np.dtype(FIXED + OF_A_CALL, align=True)
PLAN_BYTES = -(-PLAN.itemsize // VECTOR_BYTES) * VECTOR_BYTES
PLAN_TYPE = from_dtype(PLAN)


def _codes(fields, start, end):
    """The fields of a PLAN between two offsets, for `struct`: NumPy takes 0.2 us for each."""
    codes = ""
    for name, *_ in fields:
        dtype, offset = PLAN.fields[name][:2]
        letter = f"{dtype.itemsize}s" if dtype.shape else {"i": "q", "f": "d", "b": "?"}[dtype.kind]
        codes += f"{offset - start}x{letter}"
        start = offset + dtype.itemsize
    return codes + f"{end - start}x"


FIXED_BYTES = PLAN.fields[OF_A_CALL[0][0]][1]
FIXED_PACKER = struct.Struct("=" + _codes(FIXED, 0, FIXED_BYTES))
PACKER = struct.Struct(f"={FIXED_BYTES}s" + _codes(OF_A_CALL, FIXED_BYTES, PLAN.itemsize))
FIXED_DEFAULTS = {name: b"" if PLAN[name].shape else 0 for name, *_ in FIXED}
CALL_DEFAULTS = {name: 0 for name, *_ in OF_A_CALL}


def fixed_part(fields):
    """The first part of a PLAN record, from a dictionary like FIXED_DEFAULTS, in its order."""
    return FIXED_PACKER.pack(*fields.values())


def pack_plan(memory, fixed, fields):
    """Put a PLAN record at the beginning of an array of bytes.

    fixed : see `fixed_part`; fields : a dictionary with the keys of CALL_DEFAULTS in order
    """
    PACKER.pack_into(memory, 0, fixed, *fields.values())


# A NumPy array is, for every version of its C interface, a PyObject followed by this pointer
_DATA = object.__basicsize__
_pointer_at = c_ssize_t.from_address


def _data_pointer(ndarray):
    return _pointer_at(id(ndarray) + _DATA).value


def _slow_data_pointer(ndarray):
    return ndarray.ctypes.data


def _is_where_expected():
    probe = np.arange(7)[2:]
    return np.ndarray.__basicsize__ >= _DATA + 8 and _data_pointer(probe) == probe.ctypes.data


# The address of an array's first element, in 0.1 us; `ctypes.data` takes 0.7 us, five times a call
address_of = _data_pointer if _is_where_expected() else _slow_data_pointer


@intrinsic
def copy_plan(typingctx, plan, address):
    """Copy the plan to an address."""

    def codegen(context, builder, sig, args):
        plan, address = args
        size = address.type(PLAN.itemsize)
        raw_memcpy(builder, builder.inttoptr(address, plan.type), plan, size, 1)
        return context.get_dummy_value()

    return types.none(plan, types.intp), codegen


@intrinsic
def plan_at(typingctx, plan, address):
    """The plan at an address; `plan` itself if that is 0."""

    def codegen(context, builder, sig, args):
        plan, address = args
        there = builder.inttoptr(address, plan.type)
        return builder.select(builder.icmp_unsigned("==", address, address.type(0)), plan, there)

    return plan(plan, types.intp), codegen


@inner
def locate(plan, row):
    """Byte offsets of one row in the five OPERANDS."""
    logits = targets = weight = grad = hess = 0
    axes = plan.axes
    rest = row
    for axis in range(plan.n_axes - 1, -1, -1):
        entry = axes + axis * 48
        i = rest
        if axis > 0:
            length = get(entry, 0)
            rest, i = divmod(rest, length)
        logits += i * get(entry + 8, 0)
        targets += i * get(entry + 16, 0)
        weight += i * get(entry + 24, 0)
        grad += i * get(entry + 32, 0)
        hess += i * get(entry + 40, 0)
    return logits, targets, weight, grad, hess


@inlined
def locate_rows(plan, row):
    """Byte offsets of a row, bytes to the next row, whether all ROWS_ACROSS rows follow like that.

    Offsets and steps : of the five OPERANDS
    """
    entry = plan.axes + (plan.n_axes - 1) * 48
    even = plan.n_axes == 1
    if not even:
        length = get(entry, 0)
        even = row % length + ROWS_ACROSS <= length
    steps = (
        get(entry + 8, 0),
        get(entry + 16, 0),
        get(entry + 24, 0),
        get(entry + 32, 0),
        get(entry + 40, 0),
    )
    return locate(plan, row), steps, even


def pack_axes(axes):
    """Row axes, see `describe_layout`, as `locate` reads them: int64 (n_axes, 1 + operands).

    Returns an `array.array`, which is 1 us cheaper to make than one of NumPy.
    """
    return array("q", chain.from_iterable(axes))
