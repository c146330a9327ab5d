"""Arrays on the device: what is taken, what is refused, whose streams and whose results."""

from __future__ import annotations

import sys
import types
from importlib import import_module

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from emulated import FakeArray, emulated

import numba_ce as nc
from numba_ce.cuda import arrays


@pytest.fixture
def gpu():
    with emulated() as driver:
        yield driver.gpu


def arrays_on(gpu):
    logits, targets = np.zeros((3, 4), np.float32), np.zeros(3, np.int32)
    return FakeArray(gpu, logits), FakeArray(gpu, targets)


def test_sides_must_not_be_mixed(gpu):
    x, y = arrays_on(gpu)
    host = np.zeros((3, 4), np.float32)
    for logits, targets in ((x, np.zeros(3, int)), (host, y)):
        with pytest.raises(TypeError, match=r"logits are on .* and targets on .*: expected all"):
            nc.cross_entropy(logits, targets)
    with pytest.raises(TypeError, match="and class_weight on the host"):
        nc.cross_entropy(x, y, class_weight=[1.0] * 4)
    with pytest.raises(TypeError, match="and out on the host"):
        nc.cross_entropy_and_grad(x, y, out=host)
    with pytest.raises(TypeError, match="logits are on the host and out on a CUDA device"):
        nc.softmax(host, out=x)


@pytest.mark.parametrize("name", ["cpu", "numpy"])
def test_other_backends_refuse_them(gpu, name):
    x, _ = arrays_on(gpu)
    with nc.use_backend(name), pytest.raises(ValueError, match=f"'{name}' cannot read arrays on a"):
        nc.logsumexp(x)


def test_auto_is_where_the_data_lives(gpu, monkeypatch):
    x, y = arrays_on(gpu)
    monkeypatch.setattr(
        arrays,
        "empty",
        lambda like, shape, dtype: arrays.device_array(
            FakeArray(gpu, np.zeros(shape, dtype)), "result"
        ),
    )
    with nc.use_backend("auto"):
        loss = nc.cross_entropy(x, y, reduction="none")
        np.testing.assert_allclose(loss.get(), np.full(3, np.log(4)), rtol=1e-6)
        assert isinstance(nc.logsumexp(np.zeros(3)), float)


def test_out_is_checked(gpu):
    x, y = arrays_on(gpu)
    with pytest.raises(ValueError, match="read-only"):
        nc.cross_entropy_and_grad(x, y, out=FakeArray(gpu, np.zeros((3, 4), "f4"), readonly=True))
    with pytest.raises(ValueError, match=r"expected \(3, 4\)"):
        nc.cross_entropy_and_grad(x, y, out=FakeArray(gpu, np.zeros((3, 5), "f4")))
    with pytest.raises(ValueError, match="dtype float64: expected float32"):
        nc.cross_entropy_and_grad(x, y, out=FakeArray(gpu, np.zeros((3, 4))))
    with pytest.raises(ValueError, match=r"out has strides \(0, 4\): its elements overlap"):
        nc.cross_entropy_and_grad(x, y, out=FakeArray(gpu, np.zeros((3, 4), "f4"), (0, 1)))
    shifted = FakeArray(gpu, np.zeros((3, 4), np.float32))
    shifted.address = x.address + 4
    with pytest.raises(ValueError, match="out overlaps logits"):
        nc.cross_entropy_and_grad(x, y, out=shifted)
    shifted.address = y.address - 40
    with pytest.raises(ValueError, match="out overlaps targets"):
        nc.cross_entropy_and_grad(x, y, out=shifted)


def test_dtypes(gpu):
    x, y = arrays_on(gpu)
    with pytest.raises(TypeError, match="byte order"):
        nc.logsumexp(FakeArray(gpu, np.zeros((3, 4), ">f4")))
    with pytest.raises(TypeError, match="dtype int32"):
        nc.logsumexp(y)
    unaligned = FakeArray(gpu, np.zeros((3, 4), np.float32), offset=2)
    with pytest.raises(ValueError, match="not aligned to its 4 bytes"):
        nc.logsumexp(unaligned)
    with pytest.raises(TypeError, match="copy it to the host"):
        np.asarray(arrays.device_array(x, "logits"))


def test_empty(gpu, monkeypatch):
    monkeypatch.setattr(
        arrays,
        "empty",
        lambda like, shape, dtype: arrays.device_array(
            FakeArray(gpu, np.zeros(shape, dtype)), "result"
        ),
    )
    x, y = FakeArray(gpu, np.zeros((0, 4), np.float32)), FakeArray(gpu, np.zeros(0, int))
    assert np.isnan(nc.cross_entropy(x, y).get())
    assert nc.cross_entropy(x, y, reduction="sum").get() == 0


def test_streams_and_families(monkeypatch):
    """The caller's stream, and results of the caller's library, for stand-ins of torch and CuPy."""

    class Tensor:
        __module__ = "torch"
        device, dtype = "cuda:0", "torch.bfloat16"
        __cuda_array_interface__ = {
            "shape": (2, 3),
            "strides": None,
            "typestr": "<V2",
            "data": (4096, False),
            "version": 2,
        }

    made = []

    def torch_empty(shape, dtype, device):
        made.append((shape, dtype, device))
        return Tensor()

    torch = types.ModuleType("torch")
    torch.bfloat16, torch.empty = "torch.bfloat16", torch_empty
    torch.cuda = types.SimpleNamespace(
        current_stream=lambda device: types.SimpleNamespace(cuda_stream=77)
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    array = arrays.device_array(Tensor(), "logits")
    assert (array.stream, array.dtype.name, array.strides) == (77, "bfloat16", (6, 2))
    arrays.empty(array, (5,), array.dtype)
    assert made == [((5,), "torch.bfloat16", "cuda:0")]

    class Ndarray(Tensor):
        __module__ = "cupy._core"
        dtype = np.dtype(np.float32)
        __cuda_array_interface__ = Tensor.__cuda_array_interface__ | {"typestr": "<f4"}

    cupy = types.ModuleType("cupy")
    cupy.empty = lambda shape, dtype: made.append((shape, dtype)) or Ndarray()
    cupy.cuda = types.SimpleNamespace(get_current_stream=lambda: types.SimpleNamespace(ptr=0))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    array = arrays.device_array(Ndarray(), "logits")
    assert array.stream == import_module("numba_ce.cuda.driver").LEGACY_STREAM
    arrays.empty(array, (), np.dtype(np.float32))
    assert made[-1] == ((), np.dtype(np.float32))


def test_more_axes_than_a_kernel_walks(gpu):
    logits = np.zeros((2, 3, 2, 3, 2, 4), np.float32)
    strides = [4096, 1000, 300, 90, 30, 1]
    x = FakeArray(gpu, logits, strides)
    y = FakeArray(gpu, np.zeros(logits.shape[:-1], int))
    with pytest.raises(ValueError, match="5 axes that cannot be merged: expected at most 4"):
        nc.cross_entropy_grad_and_hess(x, y, out=(x, FakeArray(gpu, logits)))
