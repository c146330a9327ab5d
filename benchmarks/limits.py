"""What the memory of this machine can do: the limits that a fused kernel is measured against.

The copy writes around the caches (non-temporal stores of whole 64-byte lines), which saves the read
of every line that an ordinary store needs. It is written here, not taken from the package, so that
the limit does not move with what is measured.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE = 64
VECTOR = ir.VectorType(ir.FloatType(), 16)


@intrinsic
def _copy_line(typingctx, target, source):  # type: ignore[no-untyped-def]
    """Copy 64 bytes around the caches; `target` is a multiple of 64."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        target, source = (builder.inttoptr(arg, VECTOR.as_pointer()) for arg in args)
        loaded = builder.load(source)
        loaded.align = 4
        stored = builder.store(loaded, target)
        stored.align = LINE
        mark = ir.Constant(ir.IntType(32), 1)
        stored.set_metadata("nontemporal", builder.module.add_metadata([mark]))
        return context.get_dummy_value()

    return types.none(types.intp, types.intp), codegen


@intrinsic
def _fence(typingctx):  # type: ignore[no-untyped-def]
    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


@numba.njit(parallel=True)
def _copy_lines(target, source, n_lines, n_workers):  # type: ignore[no-untyped-def]
    for worker in numba.prange(n_workers):
        first, last = worker * n_lines // n_workers, (worker + 1) * n_lines // n_workers
        for offset in range(first * LINE, last * LINE, LINE):
            _copy_line(target + offset, source + offset)
        _fence()


@numba.njit(parallel=True, fastmath=True)
def _scale(array):  # type: ignore[no-untyped-def]
    for i in numba.prange(array.size):
        array[i] *= np.float32(-1.0)


@numba.njit(parallel=True, fastmath=True)
def _sum(array):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in numba.prange(array.size):
        total += array[i]
    return total


def streaming_copy(source: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> None:
    """Copy all whole lines of `target`: the limit of loss and gradient in two arrays."""
    begin = target.ctypes.data
    skipped = -begin % LINE
    n_lines = (min(source.nbytes, target.nbytes) - skipped) // LINE
    address = source.ctypes.data + skipped
    _copy_lines(begin + skipped, address, n_lines, numba.get_num_threads())


def in_place(array: np.ndarray[Any, Any]) -> None:
    """Read and write every element: the limit of loss and gradient in place."""
    _scale(array.reshape(-1))


def read(array: np.ndarray[Any, Any]) -> float:
    """Read every element: the limit of the loss alone."""
    return float(_sum(array.reshape(-1)))
