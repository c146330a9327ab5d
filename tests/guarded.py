"""Memory that begins behind, and ends before, pages that nobody may touch.

A read or a write one byte too far ends the process with SIGSEGV, where anywhere else it would go
unnoticed. Tests that use it for the kernels do so in a process of their own.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
PROT_NONE = 0


def span(shape, strides, itemsize):
    """Bytes from the first element to the lowest one, and to the end of the highest one."""
    if 0 in shape:
        return 0, 0
    reach = [stride * (n - 1) for n, stride in zip(shape, strides, strict=True)]
    return sum(r for r in reach if r < 0), sum(r for r in reach if r > 0) + itemsize


class Guarded:
    """At least `nbytes` of memory between two forbidden pages: `memory`, an array of uint8."""

    def __init__(self, nbytes):
        size = -(-nbytes // PAGE) * PAGE
        self._map = mmap.mmap(-1, size + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for guard in (start, start + PAGE + size):
            if _libc.mprotect(guard, PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "mprotect")
        self.memory = np.frombuffer(self._map, np.uint8, size, PAGE)

    def place(self, shape, strides, dtype, at_end, slack=0):
        """An array whose highest element ends `slack` bytes before the forbidden page behind.

        Or, unless `at_end`, whose lowest element begins `slack` bytes after the one in front.
        """
        low, high = span(shape, strides, dtype.itemsize)
        offset = self.memory.size - high - slack if at_end else slack - low
        if high == 0 or 1 in shape:  # any stride will do, but not to NumPy
            own = [s if n > 1 and high else 0 for s, n in zip(strides, shape, strict=True)]
            view = np.ndarray(shape, dtype, self.memory, min(offset, self.memory.size), own)
            return np.lib.stride_tricks.as_strided(view, shape, strides)
        return np.ndarray(shape, dtype, self.memory, offset, strides)
