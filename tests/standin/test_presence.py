"""Why CUDA cannot be used, for every cause that the driver tells of."""

from __future__ import annotations

import pytest
from numba import cuda

import numba_ce as nc
from numba_ce._cuda_presence import why_no_cuda
from numba_ce.cli import _gpu
from numba_ce.cuda import compiled, driver

# (call, code): what has to be said
CAUSES = {
    ("cuInit", 100): r"CUDA_ERROR_NO_DEVICE, there is no GPU.*CUDA_VISIBLE_DEVICES.*container",
    ("cuInit", 304): "permissions of /dev/nvidia",
    ("cuInit", 34): "toolkit's stub.*LD_LIBRARY_PATH",
    ("cuInit", 802): "nvidia-fabricmanager",
    ("cuInit", 803): "of different versions: restart the machine",
    ("cuInit", 999): "nvidia-uvm",
    ("cuDevicePrimaryCtxRetain", 2): "for device 0: CUDA_ERROR_OUT_OF_MEMORY.*nvidia-smi",
    ("cuDevicePrimaryCtxRetain", 46): "another process has the GPU.*compute mode",
    ("cuDevicePrimaryCtxRetain", 800): "permissions of /dev/nvidia",
    ("cuModuleLoadData", 200): r"CUDA_ERROR_INVALID_IMAGE.*newer driver, or 'numba-ce\[cu12\]'",
    ("cuModuleLoadData", 209): "CUDA_ERROR_NO_BINARY_FOR_GPU.*newer driver",
    ("cuModuleLoadData", 2): "cuModuleLoadData: CUDA_ERROR_OUT_OF_MEMORY",
}


def test_none(state):
    assert nc.available_backends()["cuda"] is None
    assert len(state.modules) == 1  # a kernel has been loaded
    assert nc.available_backends()["cuda"] is None
    assert len(state.modules) == 1


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: f"{cause[0]} {cause[1]}")
def test_each_cause(state, cause):
    state.contexts.clear()
    state.fail(*cause)
    with pytest.raises(RuntimeError, match=f"^use_backend: .*not available: .*{CAUSES[cause]}"):
        nc.use_backend("cuda")
    assert not state.failures
    assert _gpu() != "none that can be used"  # it is asked again each time


def test_no_device(state):
    state.settings.devices = 0
    try:
        assert "CUDA_ERROR_NO_DEVICE, there is no GPU" in nc.available_backends()["cuda"]
        assert _gpu() == "none that can be used"
    finally:
        state.settings.devices = 2


def test_a_driver_older_than_the_packages(state):
    state.settings.version = 12040
    try:
        said = nc.available_backends()["cuda"]
    finally:
        state.settings.version = 13050
    assert said.startswith("the driver is for CUDA 12.4 and the installed package cuda-bindings")
    assert said.endswith("install a newer driver, or 'numba-ce[cu12]' in place of [cu13]")
    assert "cuInit" not in [name for name, _ in state.log]


def test_no_compiler(state, monkeypatch):
    def fail(*_):
        raise OSError("libnvvm.so.4 cannot be found")

    monkeypatch.setattr(compiled, "code_of", fail)
    monkeypatch.setattr("numba_ce.cuda.launch.code_of", fail)
    assert why_no_cuda() == (
        "no kernel can be compiled (OSError: libnvvm.so.4 cannot be found): pip install "
        "'numba-ce[cu13]' (or [cu12] for an older driver)"
    )


def test_no_library(state, monkeypatch):
    def absent():
        raise RuntimeError("libcuda.so.1 is not there")

    monkeypatch.setattr(driver, "Driver", absent)
    assert "there is no CUDA driver (libcuda.so.1 is not there): install" in why_no_cuda()


def test_device_arrays_say_why_as_well(state):
    import numpy as np

    logits = cuda.to_device(np.zeros((2, 3), np.float32))
    state.forget()
    state.fail("cuModuleLoadData", 209)
    before = dict(nc._backend._loaded)
    nc._backend._loaded.clear()
    try:
        with pytest.raises((RuntimeError, TypeError), match=r"NO_BINARY_FOR_GPU.*newer driver"):
            nc.logsumexp(logits)
    finally:
        nc._backend._loaded.update(before)
