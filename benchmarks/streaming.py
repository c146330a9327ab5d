"""The limit on a CPU: a copy with stores that go around the caches, on two threads."""

from __future__ import annotations

import numba
import numpy as np

from numba_ce.cpu.vector import VECTOR_BYTES, fence, load, stream

LINES = 4096  # per turn of the loop over threads


@numba.njit(parallel=True)
def _copy(source, target, n_lines):  # type: ignore[no-untyped-def]
    for part in numba.prange((n_lines + LINES - 1) // LINES):
        last = min((part + 1) * LINES, n_lines)
        for i in range(part * LINES * VECTOR_BYTES, last * VECTOR_BYTES, VECTOR_BYTES):
            stream(target + i, load(source + i, np.float32(0)))
        fence()


def streaming_copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copy what lies between the first and the last whole cache line of `target`."""
    skip = -target.ctypes.data % VECTOR_BYTES
    n_lines = (target.nbytes - skip) // VECTOR_BYTES
    _copy(source.ctypes.data + skip, target.ctypes.data + skip, n_lines)
