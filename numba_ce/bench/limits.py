"""What the memory of this machine can do: the limits that a fused kernel is measured against.

Copies and sums are stored around the caches (non-temporal stores of whole 64-byte lines), which
saves the read of every line that an ordinary store needs. It is written here, not taken from the
kernels, so that the limit does not move with what is measured.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_ce.cpu.run.threads import parallel_loop

LINE = 64
VECTOR = ir.VectorType(ir.IntType(64), 8)

parallel_loop()  # first: it lets Numba find TBB


@intrinsic
def _put_line(typingctx, target, first, second):
    """64 bytes from `first`, or `first` xor `second`, go to a multiple of 64 around the caches."""
    both = not isinstance(second, types.NoneType)

    def codegen(context, builder, sig, args):
        def load(address):
            loaded = builder.load(builder.inttoptr(address, VECTOR.as_pointer()))
            loaded.align = 4
            return loaded

        value = load(args[1])
        if both:
            value = builder.xor(value, load(args[2]))
        stored = builder.store(value, builder.inttoptr(args[0], VECTOR.as_pointer()))
        stored.align = LINE
        mark = ir.Constant(ir.IntType(32), 1)
        stored.set_metadata("nontemporal", builder.module.add_metadata([mark]))
        return context.get_dummy_value()

    return types.none(types.intp, types.intp, types.intp if both else types.none), codegen


@intrinsic
def _fence(typingctx):
    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


@numba.njit(parallel=True)
def _copy_lines(target, source, n_lines, n_workers):
    for worker in numba.prange(n_workers):
        first, last = worker * n_lines // n_workers, (worker + 1) * n_lines // n_workers
        for offset in range(first * LINE, last * LINE, LINE):
            _put_line(target + offset, source + offset, None)
        _fence()


@numba.njit(parallel=True)
def _combine_lines(target, first_source, second_source, n_lines, n_workers):
    for worker in numba.prange(n_workers):
        first, last = worker * n_lines // n_workers, (worker + 1) * n_lines // n_workers
        for offset in range(first * LINE, last * LINE, LINE):
            _put_line(target + offset, first_source + offset, second_source + offset)
        _fence()


@numba.njit(parallel=True)
def _flip(words):
    for i in numba.prange(words.size):
        words[i] ^= np.uint64(1)


@numba.njit(parallel=True)
def _sum(words):
    total = np.uint64(0)
    for i in numba.prange(words.size):
        total += words[i]
    return total


def _words(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    whole = array.reshape(-1).view(np.uint8)
    return whole[: whole.size // 8 * 8].view(np.uint64)


def _lines(target: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Bytes before the first whole line of an array, and its whole lines."""
    skipped = -target.ctypes.data % LINE
    return skipped, (target.nbytes - skipped) // LINE


def copy(source: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> None:
    """Copy all whole lines of `target`: the limit of a gradient in an array of its own."""
    skipped, n_lines = _lines(target)
    begin, address = target.ctypes.data + skipped, source.ctypes.data + skipped
    _copy_lines(begin, address, n_lines, numba.get_num_threads())


def combine(
    first: np.ndarray[Any, Any], second: np.ndarray[Any, Any], target: np.ndarray[Any, Any]
) -> None:
    """Read two arrays, write one: the limit of a gradient from probabilities."""
    skipped, n_lines = _lines(target)
    begin, one, two = (a.ctypes.data + skipped for a in (target, first, second))
    _combine_lines(begin, one, two, n_lines, numba.get_num_threads())


def flip(array: np.ndarray[Any, Any]) -> None:
    """Read and write every word: the limit of a gradient in place."""
    _flip(_words(array))


def read(array: np.ndarray[Any, Any]) -> int:
    """Read every word: the limit of the loss alone."""
    return int(_sum(_words(array)))
