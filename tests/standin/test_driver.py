"""`numba_ce.cuda.driver` itself, through NVIDIA's bindings."""

from __future__ import annotations

import os
import threading
import time
from ctypes import addressof, c_int64, c_uint64, c_void_p
from types import SimpleNamespace

import numpy as np
import pytest
from cuda.bindings import driver as bindings

import numba_ce as nc
from numba_ce.cuda import driver as driver_module
from numba_ce.cuda.compiled import code_of
from numba_ce.cuda.driver import LEGACY_STREAM, CudaError, Driver, current_driver
from numba_ce.cuda.launch import function_of

STORE = """
.version 8.0
.target sm_90
.address_size 64

.visible .entry store(.param .u64 where, .param .u64 what)
{
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [where];
    ld.param.u64 %rd2, [what];
    st.global.u64 [%rd1], %rd2;
    ret;
}
"""


@pytest.fixture
def gpu(state):
    gpu = current_driver()
    gpu.device()
    return gpu


def test_what_is_said_of_the_device(gpu):
    assert (gpu.name(0), gpu.capability(1), gpu.count) == ("Stand-in, no GPU", (9, 0), 2)
    assert gpu.version == "13.5"


def test_devices_on_a_stack(gpu):
    gpu.push(1)
    address = gpu.allocate(100, 0)
    assert gpu.device() == gpu.device_of(address) == 1
    gpu.pop()
    assert gpu.device() == 0
    gpu.free(address, 0)


def test_a_thread_has_no_device_until_it_asks(gpu):
    found = []
    thread = threading.Thread(target=lambda: found.append(gpu.device()))
    thread.start()
    thread.join()
    assert found == [0]


def test_memory_streams_and_copies(gpu, state):
    before, stream = state.live(), gpu.new_stream()
    pinned = gpu.pinned(64)
    pinned[:] = np.arange(64)
    address = gpu.allocate(64, stream)
    gpu.copy_in(address, pinned, stream)
    back = np.empty(64, np.uint8)
    gpu.copy_out(back, address, stream)
    gpu.synchronize(stream)
    np.testing.assert_array_equal(back, pinned)
    gpu.free_pinned(pinned)
    gpu.free(address, stream)
    assert state.live() == before | {"streams": 1}


def test_streams_are_waited_for_one_by_one(gpu):
    """The stand-in does nothing before it is waited for, and ours wait for no other stream."""
    ours, caller = gpu.new_stream(), int(bindings.cuStreamCreate(0)[1])
    address, values = gpu.allocate(64, ours), np.arange(64, dtype=np.uint8)
    gpu.copy_in(address, values, ours)
    pinned = {stream: gpu.pinned(64) for stream in (ours, caller)}
    for stream, back in pinned.items():
        back[:] = 77
        gpu.copy_out(back, address, stream)
    assert (pinned[ours] == 77).all()
    gpu.synchronize(LEGACY_STREAM)  # of all streams that it waits for this has the work of one
    assert (pinned[ours] == 77).all()
    assert not (pinned[caller] == 77).any()
    gpu.synchronize(ours)
    np.testing.assert_array_equal(pinned[ours], values)
    for back in pinned.values():
        gpu.free_pinned(back)
    gpu.free(address, ours)
    bindings.cuStreamDestroy(caller)


def test_memory_for_nothing(gpu):
    gpu.free(gpu.allocate(0, 0), 0)  # the driver refuses 0 bytes


def test_what_the_driver_refuses(gpu):
    address = gpu.allocate(64, 0)
    with pytest.raises(CudaError, match="cuMemcpyHtoDAsync of 65 bytes: CUDA_ERROR_INVALID_VALUE"):
        gpu.copy_in(address, np.zeros(65, np.uint8), 0)
    gpu.free(address, 0)
    with pytest.raises(CudaError, match="cuMemFreeAsync: CUDA_ERROR_INVALID_VALUE"):
        gpu.free(address, 0)
    gpu.synchronize(0)
    with pytest.raises(CudaError, match="cuPointerGetAttribute: CUDA_ERROR_INVALID_VALUE"):
        gpu.device_of(address)


@pytest.mark.parametrize("where", ["buffer", "pointers"])
def test_parameters_of_a_launch(gpu, state, where):
    """One buffer, as the package packs them, and an array of pointers, as Numba does."""
    code = SimpleNamespace(cubin=STORE.encode() + b"\0", entry="store")
    function, address = gpu.load(code), gpu.allocate(8, 0)
    if where == "buffer":
        gpu.launch(function, 1, 1, np.array([address, -5], np.int64).tobytes(), 0)
    else:
        values = c_uint64(address), c_int64(-5)
        pointers = (c_void_p * 2)(*map(addressof, values))
        code = bindings.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, addressof(pointers), 0)
        assert code == (bindings.CUresult.CUDA_SUCCESS,)
    back = np.empty(1, np.int64)
    gpu.copy_out(back, address, 0)
    assert back == -5
    with pytest.raises(CudaError, match=r"cuLaunchKernel of 1 blocks of 1 threads.*INVALID_VALUE"):
        gpu.launch(function, 1, 1, bytes(24), 0)
    gpu.free(address, 0)


def test_a_module_without_its_function_is_unloaded(gpu, state):
    code, modules = code_of("fold", (9, 0)), len(state.modules)
    with pytest.raises(CudaError, match="cuModuleGetFunction: CUDA_ERROR_NOT_FOUND"):
        gpu.load(code._replace(entry="another"))
    assert len(state.modules) == modules


def test_machine_code_of_another_gpu(gpu):
    with pytest.raises(CudaError, match=r"NO_BINARY_FOR_GPU, .*\[cu12\]"):
        gpu.load(code_of("fold", (8, 0)))


def test_a_device_without_memory_pools(state):
    state.settings.pools = 0
    try:
        gpu = current_driver()
        gpu.device()
        logits, targets = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(3)
        with nc.use_backend("cuda"):
            weight = np.ones(4, np.float32)
            loss = nc.cross_entropy(logits, targets, class_weight=weight)
        assert loss == pytest.approx(2.4401896, rel=1e-6)
        names = [name for name, _ in state.log]
        assert "cuMemAlloc" in names and "cuMemFree" in names
        assert not {"cuMemAllocAsync", "cuMemFreeAsync"} & set(names)
        # Given back when the stream is done with it
        assert names[names.index("cuMemFree") - 1] == "cuStreamSynchronize"
    finally:
        state.settings.pools = 1


def at_once(function, n=4):
    """What a function returns in several threads that start together."""
    barrier, results = threading.Barrier(n), []

    def work():
        barrier.wait()
        results.append(function())

    threads = [threading.Thread(target=work) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == n
    return results


def test_the_first_use_by_several_threads(state, monkeypatch):
    """One driver, one context, one module: however slow each is made."""
    make, load, retain = Driver.__init__, Driver.load, state.retained[0]

    def slowly(method):
        def slow(*arguments):
            time.sleep(0.05)
            return method(*arguments)

        return slow

    monkeypatch.setattr(Driver, "__init__", slowly(make))
    monkeypatch.setattr(Driver, "load", slowly(load))
    assert len(set(map(id, at_once(current_driver)))) == 1
    assert at_once(lambda: current_driver().device()) == [0] * 4
    assert state.retained[0] == retain + 1
    at_once(lambda: current_driver().device() or function_of("fold", 0))
    assert len(state.modules) == 1


def test_calls_from_several_threads(state):
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((8, 30)).astype("f4"), rng.integers(0, 30, 8)

    def call():
        with nc.use_backend("cuda"):
            return float(nc.cross_entropy(logits, targets))

    assert len(set(at_once(call))) == 1
    assert state.live()["modules"] == len(current_driver().functions)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told(gpu):
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with nc.use_backend("cuda"):
                nc.cross_entropy(np.zeros((2, 3)), np.zeros(2, int))
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    said = os.read(read, 10_000).decode()
    os.close(read)
    os.close(write)
    assert "CUDA_ERROR_NOT_INITIALIZED, CUDA does not survive a fork" in said
    assert "use 'auto', 'cpu', 'numpy'" in said


def test_a_fork_does_not_take_a_lock_along():
    assert driver_module._fork.locks[1] is driver_module.once
