"""numba_ce inside functions that Numba compiles: `cross_entropy` and its kin under ``@njit``.

Numba finds this package by its entry point ``numba_extensions``, so there is nothing to import.
Where the package is not installed but only on the path, import this module.

========== ==================================================================
overloads  the public functions, as Numba's compiler sees them
accept     which types they take in compiled code
glue       what is compiled into the caller's function: it lists numbers and calls
call       those numbers
entry      what is called: it describes the call and runs a kernel
check      what is wrong with a call; `errors` says it
reduction, the same bits as in Python: constants of the kernels, sums of blocks
sums
stamp      code that Numba keeps on disk is of one version of this package
========== ==================================================================

Compiled code runs in the thread that calls it: the parallel loop is the caller's `numba.prange`.
"""

from __future__ import annotations

from numba_ce.integrations.numba import overloads as overloads


def init() -> None:
    """What Numba calls before it compiles anything; the import has done it."""
