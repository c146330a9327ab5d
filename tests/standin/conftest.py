"""What the tests on the stand-in share; they run in a process that has it."""

from __future__ import annotations

import gc
import os
from importlib import import_module

import pytest

from . import SETTINGS

# Collected by tests/kernels/test_cuda_standin.py alone, which starts such a process
collect_ignore_glob = [] if SETTINGS in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def ready():
    """The modules are there, and Numba has its context: neither counts."""
    import numba_ce as nc

    assert nc.available_backends()["cuda"] is None
    from numba import cuda

    cuda.current_context()
    gc.collect()
    gc.freeze()  # collections are quick from here on


@pytest.fixture
def state(ready):
    """The stand-in as a process finds it that has not used the package yet."""
    from .state import STATE

    driver, host = (import_module(f"numba_ce.cuda.{name}") for name in ("driver", "host"))

    def forget():
        STATE.finish()
        STATE.leaving.clear()  # what a kernel that went wrong kept a stream from
        STATE.sticky = 0
        STATE.failures.clear()
        STATE.attributes.clear()
        driver._driver = None
        host._idle.clear()
        # What is Numba's stays, since Numba may give it back later
        for address, (_, _, pooled) in list(STATE.allocated.items()):
            if pooled:
                STATE.free(address)
        for stream, (_, waits_for_no_other) in list(STATE.streams.items()):
            if waits_for_no_other:
                del STATE.streams[stream]
        for table in (STATE.pinned, STATE.modules, STATE.functions):
            table.clear()
        STATE.log.clear()
        STATE.retained[0] = 1  # Numba's

    STATE.forget = forget
    forget()
    STATE.faults.clear()
    yield STATE
    forget()
    assert not STATE.faults
