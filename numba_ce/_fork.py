"""What a fork waits for, so that the child can call this package whatever the other threads do.

Of the threads a child has only the one that forked, but it has all locks as they were: one that
another thread held is locked there for ever. Two kinds are held in calls of this package, Numba's
for its compiler and Python's for each module that is being imported. Nobody can take those of
Python, so imports within a call happen under a lock of this package, and a fork takes that.

The package cannot protect the child from what others import meanwhile.
"""

from __future__ import annotations

import os
import threading

# With `logging` it tells Python what to do before and after a fork. Imported while a fork waits it
# would be asked only afterwards, to release what it has not taken
from concurrent.futures import thread as thread
from contextlib import suppress
from typing import Any

#: Held by a thread that imports within a call
importing = threading.RLock()
#: What a fork takes, in this order: while it has the first one nobody appends
locks: list[Any] = [importing]


def _take() -> None:
    for lock in locks:
        lock.acquire()


def _release() -> None:
    for lock in reversed(locks):
        with suppress(RuntimeError):  # not taken: the exception of a signal handler came before
            lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take, after_in_parent=_release, after_in_child=_release)
