"""Compiled code is of one version of this package: told at load time, and at each call.

Numba keeps the code of a function with ``cache=True`` for as long as the caller's file stays as it
is, whatever becomes of this package. So each function that calls `enter` has a `Stamp` among the
constants that Numba keeps beside the code. Unpickled by another version it raises OSError, which
Numba takes for a file that is gone: it compiles the function anew. Where Numba keeps code without
constants (the wrappers of `guvectorize`), `enter` compares the number that the code passes.
"""

from __future__ import annotations

import os
from typing import Any

from numba_ce import _cache

#: What tells this version's code from others'. If the package cannot read its own files, no other
#: process takes what this one compiled.
STAMP = int.from_bytes((_cache.SOURCES or os.urandom(8))[:8], "little", signed=True)


class Stamp:
    """A constant of a compiled function; only a process with the same sources can unpickle it."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Sources that have changed since the import: nobody knows from which of them this code is
        known = _cache.sources_are_known()
        return _unpickled, (STAMP if known else None,)


def _unpickled(stamp: int | None) -> Stamp:
    """Kept under this name: files that older versions wrote ask for it."""
    if stamp != STAMP:
        raise OSError("compiled with another version of numba_ce")
    from numba_ce.integrations.numba.entry import register

    register()  # the code is about to be linked
    return Stamp()
