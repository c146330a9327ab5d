"""Threads of this package that help where those of Numba's layer cannot.

A caller offers its helpers shares of the work, then does its own and waits for theirs in one call
of compiled code. The exception of a signal handler may come between any two steps of Python; before
that call the call is still made, and after it no helper is at work. Python could not count helpers:
the exception may come between a step and its record.
"""

import ctypes
import os
from _thread import start_new_thread
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from threading import RLock

import numba
import numpy as np
from numba import types

from numba_ce.cpu.compile.cache import cached
from numba_ce.cpu.compile.jit import call_address, collector_paused, whole_kernel
from numba_ce.cpu.plan import address_of
from numba_ce.cpu.simd.element import atomic_add, get

# Python's own locks, which its stable ABI names: compiled code can wait for them
_ABI = ctypes.pythonapi
_new_lock = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyThread_allocate_lock", _ABI))
_acquire = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(("PyThread_acquire_lock", _ABI))
ACQUIRE, RELEASE = (
    ctypes.cast(function, ctypes.c_void_p).value
    for function in (_ABI.PyThread_acquire_lock, _ABI.PyThread_release_lock)
)
# The words of a gate, in bytes: how many helpers came and left, the lock, and what works it
CAME, LEFT, LOCK, ACQUIRE_LOCK, RELEASE_LOCK = range(0, 40, 8)
CLOSED = 1 << 32  # is added to CAME: more than helpers can be

# Locked, for the next calls: a helper may still be about to return from opening one, so none is
# ever freed
_locks = []


def locked_lock():
    """The address of a lock that is locked."""
    with suppress(IndexError):
        return _locks.pop()
    lock = _new_lock()
    if not lock:
        raise MemoryError("no lock for the threads that help")
    _acquire(lock, 1)
    return lock


@cache
@collector_paused()
def share_function():
    """The function that does a share, of four addresses and numbers: (gate, kernel, plan, worker).

    Worker 0 is the caller. When it has returned the gate is closed and no helper is inside.
    """
    signature = ctypes.CFUNCTYPE(None, *(ctypes.c_ssize_t,) * 4)
    return cached("share", signature, compile_share).ctypes


def compile_share():
    @whole_kernel(types.void(*(types.intp,) * 4))
    def do_share(gate, kernel, plan, worker):
        lock = get(gate + LOCK, np.int64(0))
        if worker == 0:
            call_address(kernel, plan, worker)
            inside = atomic_add(gate + CAME, CLOSED)
            # From here LEFT counts up to 0, and the helper that makes it 0 opens the lock
            if atomic_add(gate + LEFT, -inside) < inside:
                call_address(get(gate + ACQUIRE_LOCK, np.int64(0)), lock, 1)
        elif atomic_add(gate + CAME, 1) < CLOSED:
            call_address(kernel, plan, worker)
            if atomic_add(gate + LEFT, 1) == -1:
                call_address(get(gate + RELEASE_LOCK, np.int64(0)), lock, 0)

    return do_share


class Pool:
    """Threads, started when they first have work, that wait for shares of it."""

    def __init__(self):
        # A signal handler that interrupts `start` may call it
        self.offers, self.n_threads, self._starting = SimpleQueue(), 0, RLock()

    def start(self):
        """Start the threads that are missing; whether there is any.

        By a function in C: the exception of a signal handler would tear `threading.Thread.start`.
        """
        wanted = max(numba.config.NUMBA_NUM_THREADS - 1, 1)
        if self.n_threads < wanted:
            with self._starting, suppress(RuntimeError):  # no thread can be started
                while self.n_threads < wanted:
                    start_new_thread(_help, (self.offers,))
                    self.n_threads += 1
        return self.n_threads > 0


def _help(offers):
    do_share = share_function()
    while True:
        gate, kernel, plan, worker = offers.get()
        do_share(address_of(gate), kernel, plan, worker)
        del gate  # before the next one comes


pool = Pool()


def _in_child():
    global pool
    pool = Pool()  # the threads stayed in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def run_with_pool(kernel, plan, n_workers):
    """Call the kernel at an address as worker 0 here, as the others in threads that are free."""
    do_share, lock = share_function(), locked_lock()
    gate = np.array([0, 0, lock, ACQUIRE, RELEASE], np.int64)  # helpers that come late need it
    address = address_of(gate)
    try:
        if pool.start():  # else the work is done alone
            for worker in range(1, n_workers):
                pool.offers.put((gate, kernel, plan, worker))
    finally:
        try:
            # Nothing before this call: a signal is handled before or after it
            do_share(address, kernel, plan, 0)
        finally:
            _locks.append(lock)
