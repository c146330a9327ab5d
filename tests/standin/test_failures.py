"""Every call of the driver fails once: one clear error, nothing lost, nothing half written."""

from __future__ import annotations

import gc
from collections import Counter

import numpy as np
import pytest
from cuda.bindings.driver import CUresult
from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError

import numba_ce as nc
from numba_ce._validate import PARTLY_WRITTEN
from numba_ce.cuda import host
from numba_ce.cuda.driver import CudaError, current_driver

# After a kernel that went wrong Numba cannot give its memory back
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

rng = np.random.default_rng(0)
LOGITS = rng.standard_normal((60, 40)).astype(np.float32)
TARGETS = rng.integers(0, 40, 60)
CLASS_WEIGHT = rng.random(40).astype(np.float32)
OUT_OF_MEMORY, LAUNCH_FAILED = 2, 719


@pytest.fixture
def call(state, request, monkeypatch):
    """(call(out), its arrays' like): with arrays of NumPy in several pieces, or of Numba."""
    monkeypatch.setattr(host, "PIECE_BYTES", 4000)
    place = cuda.to_device if request.param == "Numba" else np.asarray
    arrays, weight = [place(a) for a in (LOGITS, TARGETS)], place(CLASS_WEIGHT)

    def run(out):
        with nc.use_backend("cuda"):
            loss, _ = nc.cross_entropy_and_grad(*arrays, class_weight=weight, out=out)
            return np.asarray(loss.copy_to_host() if hasattr(loss, "copy_to_host") else loss)

    run.place = place
    return run


BOTH = pytest.mark.parametrize("call", ["NumPy", "Numba"], indirect=True)


def on_host(array):
    return array.copy_to_host() if hasattr(array, "copy_to_host") else array


def calls_of(state, call, out):
    """The (name, use) of every call of the driver, in the order of a process's first use."""
    state.forget()
    call(out)
    counts, uses = Counter(), []
    for name, _ in list(state.log):
        counts[name] += 1
        uses.append((name, counts[name]))
    return uses


def kept(state):
    """What may be there between calls: modules that are loaded, slots that wait."""
    gpu, slots = current_driver(), [slot for idle in host._idle.values() for slot in idle]
    used = sum(slot.nbytes > 0 for slot in slots)
    return {
        "modules": len(gpu.functions),
        "streams": len(slots),
        "pinned": used,
        "allocated": used,
    }


def pooled(state):
    """Memory of the package: Numba's is from no pool."""
    return sum(from_pool for _, _, from_pool in state.allocated.values())


def attempt(call, out):
    """The error of a call, or None."""
    try:
        call(out)
    except Exception as error:
        return error
    return None


def assert_untouched_or_told(out, before, right, error):
    """An array of the caller is as it was, or wholly written, or the error says that it is not."""
    if isinstance(out, np.ndarray) and PARTLY_WRITTEN not in getattr(error, "__notes__", []):
        assert (out == before).all() or (out == right).all(), error


@BOTH
def test_a_call_that_fails_once(state, call):
    """Out of memory, at every call: the error names it, the memory is back, the next call works."""
    before = np.full_like(LOGITS, 7.0)
    expected, right = call(out := call.place(before.copy())), on_host(out)
    failed = set()
    for name, use in calls_of(state, call, call.place(before.copy())):
        state.forget()
        out = call.place(before.copy())
        state.log.clear()
        state.fail(name, OUT_OF_MEMORY, use)
        if name == "cuMemAlloc":  # Numba gives back what it keeps and asks again
            state.fail(name, OUT_OF_MEMORY, use + 1)
        error = attempt(call, out)
        assert not state.failures, (name, use)
        assert error is not None, (name, use)
        assert name in str(error) and "CUDA_ERROR_OUT_OF_MEMORY" in str(error), (name, use, error)
        assert_untouched_or_told(out, before, right, error)
        if "Synchronize" in name:  # never used again: who knows what still goes on
            continue
        del error
        live = state.live()
        live["allocated"] = pooled(state)
        assert {kind: live[kind] for kind in kept(state)} == kept(state), (name, use)
        assert call(out) == expected, (name, use)
        np.testing.assert_array_equal(on_host(out), right)
        failed.add(name)
    gc.collect()
    assert {"cuInit", "cuMemAllocAsync", "cuLaunchKernel", "cuModuleLoadData"} <= failed


@BOTH
def test_a_kernel_that_goes_wrong(state, call):
    """After it every call fails: the first error is the one to tell, and nothing is handed out."""
    before = np.full_like(LOGITS, 7.0)
    call(out := call.place(before.copy()))
    right = on_host(out)
    for name, use in calls_of(state, call, call.place(before.copy())):
        if name in ("cuInit", "cuDriverGetVersion"):
            continue
        state.forget()
        out = call.place(before.copy())
        state.log.clear()
        state.fail(name, LAUNCH_FAILED, use, sticky=True)
        error = attempt(call, out)
        assert "CUDA_ERROR_LAUNCH_FAILED" in str(error), (name, use, error)
        if not isinstance(error, CudaAPIError):  # Numba tells of its last one
            assert name in str(error), (name, use, error)
        assert_untouched_or_told(out, before, right, error)
        again = attempt(call, out)
        assert "CUDA_ERROR_LAUNCH_FAILED" in str(again)
        if isinstance(again, CudaError):
            assert "start it anew" in str(again)


@pytest.mark.parametrize("sticky", [False, True])
def test_a_failure_on_another_device(state, sticky):
    """The device is again what it was, and if that fails too the first error is told."""
    with cuda.gpus[1]:
        logits, targets = cuda.to_device(LOGITS), cuda.to_device(TARGETS)
    state.fail("cuLaunchKernel", LAUNCH_FAILED, sticky=sticky)
    with pytest.raises(CudaError, match=r"^cuLaunchKernel"):
        nc.cross_entropy(logits, targets)
    if sticky:
        state.sticky = 0
        state.contexts.pop()
    assert current_driver().device() == 0


def test_a_wild_access_is_told_by_the_call_that_waits(state):
    logits, targets = cuda.to_device(LOGITS), cuda.to_device(TARGETS)
    with nc.use_backend("cuda"):
        nc.cross_entropy(logits, targets)
        interface = dict(targets.__cuda_array_interface__)
        short = type("Short", (), {"__cuda_array_interface__": interface | {"shape": (60,)}})()
        start = interface["data"][0] + 40 * 8  # the last 40 lie beyond the end
        interface |= {"data": (start, False), "shape": (60,)}
        short.__class__.__cuda_array_interface__ = interface
        with pytest.raises(CudaError, match=r"ILLEGAL_ADDRESS.*start it anew"):
            nc.cross_entropy(logits, short)
    assert "out-of-bounds" in state.faults.pop()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuMemAllocAsync", r"cuMemAllocAsync of \d+ bytes: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuMemHostAlloc", r"cuMemHostAlloc of \d+ bytes of page-locked host memory: "),
        ("cuMemcpyHtoDAsync", r"cuMemcpyHtoDAsync of 9600 bytes: "),
        ("cuLaunchKernel", r"cuLaunchKernel of \d+ blocks of \d+ threads and \d+ bytes of shared"),
        ("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRetain for device 0: "),
    ],
)
def test_an_error_says_what_was_asked_for(state, name, said):
    state.fail(name, OUT_OF_MEMORY)
    state.contexts.clear()  # a new thread has none
    with pytest.raises(RuntimeError, match=said), nc.use_backend("cuda"):
        nc.cross_entropy(LOGITS, TARGETS)


def test_more_than_the_memory_there_is(state):
    state.settings.bytes = sum(size for size, *_ in state.allocated.values()) + 1000
    try:
        with pytest.raises(CudaError, match="OUT_OF_MEMORY"), nc.use_backend("cuda"):
            nc.cross_entropy(LOGITS, TARGETS)
    finally:
        state.settings.bytes = 1 << 30


def test_codes_are_those_of_the_bindings():
    assert CUresult(OUT_OF_MEMORY).name == "CUDA_ERROR_OUT_OF_MEMORY"
    assert CUresult(LAUNCH_FAILED).name == "CUDA_ERROR_LAUNCH_FAILED"
