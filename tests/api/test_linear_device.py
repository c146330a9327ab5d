"""The linear layer with arrays of CuPy: a stand-in for it, in the memory of the emulated driver."""

from __future__ import annotations

import sys
import types

import ml_dtypes
import numpy as np
import pytest
from test_linear import C, D, N, check, make, whole

pytest.importorskip("numba_cuda")

from emulated import emulated

import numba_ce as nc
from tools.ptx.memory import GLOBAL_BASE, USABLE


class DeviceArray:
    """What of `cupy.ndarray` is needed; mixed with an array of NumPy it fails, as that does."""

    __module__ = "cupy"
    memory = None

    def __init__(self, values):
        self.values = values
        self.shape, self.ndim, self.dtype = values.shape, values.ndim, values.dtype

    @property
    def __cuda_array_interface__(self):
        start = self.values.ctypes.data - self.memory.data.ctypes.data
        assert 0 < start < self.memory.data.size or not self.values.size
        return {
            "shape": self.shape,
            "strides": self.values.strides,
            "typestr": self.dtype.str,
            "data": (GLOBAL_BASE + start, False),
            "version": 3,
        }

    def fresh(self, array):
        return sys.modules["cupy"].asarray(array)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return DeviceArray(self.values[index])

    def __setitem__(self, index, value):
        index = index.values if isinstance(index, DeviceArray) else index
        self.values[index] = value if value == 0 else value.values

    def __eq__(self, other):
        return self is other

    def __iadd__(self, other):
        self.values += other.values
        return self

    def __mul__(self, scalar):
        return DeviceArray(np.asarray(self.values * scalar))

    @property
    def T(self):  # noqa: N802
        return DeviceArray(self.values.T)

    def sum(self, axis=None, dtype=None):
        return DeviceArray(np.asarray(self.values.sum(axis, dtype)))

    def astype(self, dtype, copy=True):
        return DeviceArray(self.values.astype(dtype, copy=copy))

    def copy(self):
        return DeviceArray(self.values.copy())

    def get(self):
        return self.values.copy()


def make_cupy(gpu):
    """The module."""
    memory = gpu.memory
    memory.resize(1 << 21)  # and no larger: the arrays are views of it

    def empty(shape, dtype=np.float64):
        dtype = np.dtype(dtype)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        data, flags = memory.bytes_of(gpu.empty(max(n_bytes, 16)), n_bytes)
        flags[:] = USABLE
        return DeviceArray(data.view(dtype).reshape(shape))

    def zeros(shape, dtype=np.float64):
        array = empty(shape, dtype)
        array.values[...] = 0
        return array

    def asarray(values):
        array = empty(values.shape, values.dtype)
        array.values[...] = values
        return array

    def matmul(a, b, out):
        # cuBLAS adds up in float32 and rounds once
        wide = np.float32 if out.dtype.itemsize == 2 else out.dtype
        out.values[...] = a.values.astype(wide) @ b.values.astype(wide)

    cupy = types.ModuleType("cupy")
    cupy.empty, cupy.zeros, cupy.asarray, cupy.matmul = empty, zeros, asarray, matmul
    cupy.empty_like = lambda like, dtype: empty(like.shape, dtype)
    cupy.zeros_like = lambda like, dtype: zeros(like.shape, dtype)
    cupy.cuda = types.SimpleNamespace(get_current_stream=lambda: types.SimpleNamespace(ptr=0))
    return cupy


@pytest.fixture
def cupy(monkeypatch):
    with emulated() as driver:
        module = make_cupy(driver.gpu)
        monkeypatch.setattr(DeviceArray, "memory", driver.gpu.memory)
        monkeypatch.setitem(sys.modules, "cupy", module)
        module.launches = driver.launches
        yield module


def on_device(cupy, arguments):
    return {k: cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}


def results(cupy, arguments):
    """Of both functions, copied to the host."""
    given = on_device(cupy, arguments)
    before = {k: v.get() for k, v in given.items() if isinstance(v, DeviceArray)}
    got = nc.linear_cross_entropy_and_grad(**given)
    assert cupy.launches
    assert all(g is None or type(g) is DeviceArray for g in got)
    loss = nc.linear_cross_entropy(**given)
    np.testing.assert_array_equal(loss.values, got.loss.values)
    for name, values in before.items():
        np.testing.assert_array_equal(given[name].values, values, err_msg=name)
    return nc.LinearGrad(*(None if g is None else g.values for g in got))


OPTIONS = {
    "plain": {},
    "weights": {"class_weight": np.linspace(0.5, 2, C), "sample_weight": np.linspace(0, 2, N)},
    "shape": {"z_loss": 0.1, "softcap": 3.0, "temperature": 0.7, "label_smoothing": 0.1},
}


@pytest.mark.parametrize(
    ("options", "kind", "reduction"),
    [
        ("plain", "index", "mean"),
        ("plain", "probabilities", "none"),
        ("weights", "index", "mean"),
        ("weights", "probabilities", "mean"),
        ("shape", "index", "sum"),
    ],
)
def test_as_on_the_host(cupy, rng, monkeypatch, options, kind, reduction):
    monkeypatch.setattr("numba_ce.linear.DEVICE_BUFFER_ELEMENTS", 3 * D)
    hidden, weight, bias, targets = make(rng, kind=kind)
    if kind == "index":
        targets[3] = -100
    options = OPTIONS[options] | {"reduction": reduction}
    expected = whole(hidden, weight, bias, targets, **options)
    if kind == "index":
        hidden[3] = np.nan
    layer = {"hidden": hidden, "weight": weight, "targets": targets, "bias": bias, "chunk_rows": 4}
    check(results(cupy, layer | options), expected, 1e-13)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_dtypes(cupy, rng, dtype):
    """Products are rounded to the dtype, but the sum over the chunks is not 16-bit."""
    n_rows, eps = 100, max(float(ml_dtypes.finfo(dtype).eps), 1e-6)
    hidden = rng.uniform(1, 2, (n_rows, D)).astype(dtype)
    weight, targets = rng.standard_normal((C, D)).astype(dtype), np.zeros(n_rows, np.int64)
    call = {"hidden": hidden, "weight": weight, "targets": targets, "reduction": "sum"}
    got = results(cupy, call | {"chunk_rows": 1})
    assert got.loss.dtype == np.float32 and got.grad_bias is None
    assert got.grad_hidden.dtype == got.grad_weight.dtype == dtype
    logits = np.float32(hidden) @ np.float32(weight).T
    loss, grad = nc.cross_entropy_and_grad(logits.astype(dtype), targets, reduction="sum")
    grad = np.float64(grad)
    np.testing.assert_allclose(got.loss, loss, rtol=1e-6)
    for name, a, b in (
        ("grad_hidden", got.grad_hidden, grad @ np.float64(weight)),
        ("grad_weight", got.grad_weight, grad.T @ np.float64(hidden)),
    ):
        np.testing.assert_allclose(
            np.float64(a), b, rtol=eps, atol=eps * np.abs(b).max() / 2, err_msg=name
        )


def test_bad_targets_and_nothing_to_average(cupy, rng):
    hidden, weight, bias, targets = make(rng)
    layer = {"hidden": hidden, "weight": weight, "targets": targets, "bias": bias, "chunk_rows": 4}
    targets[9] = C
    with pytest.raises(ValueError, match=r"targets\[9\] = 7 is not a class index"):
        results(cupy, layer)
    assert not cupy.launches
    loss = results(cupy, layer | {"check_targets": False, "reduction": "none"}).loss
    assert np.flatnonzero(np.isnan(loss)).tolist() == [9]
    targets[:] = -100
    got = results(cupy, layer)
    assert np.isnan(got.loss) and not any(g.any() for g in got[1:])
    empty = on_device(cupy, layer | {"hidden": hidden[:0], "targets": targets[:0]})
    got = nc.linear_cross_entropy_and_grad(**empty, reduction="sum")
    assert got.loss.get() == 0 and got.grad_hidden.shape == (0, D)
    assert not got.grad_weight.get().any()


@pytest.mark.parametrize("change", ["weight", "targets", "bias", "class_weight", "sample_weight"])
def test_all_arrays_on_one_side(cupy, rng, change):
    arguments = dict(zip(("hidden", "weight", "bias", "targets"), make(rng), strict=True))
    arguments |= {"class_weight": np.ones(C), "sample_weight": np.ones(N)}
    mixed = on_device(cupy, arguments) | {change: arguments[change]}
    with pytest.raises(TypeError, match=f"hidden is on a CUDA device and {change} on the host"):
        nc.linear_cross_entropy(**mixed)
    mixed = arguments | {change: cupy.asarray(arguments[change])}
    with pytest.raises(TypeError, match=f"{change} is on a CUDA device and hidden on the host"):
        nc.linear_cross_entropy(**mixed)


def test_errors(cupy, rng):
    hidden, weight, _, targets = map(cupy.asarray, make(rng))
    with pytest.raises(TypeError, match="hidden has dtype int64: expected float16, bfloat16"):
        nc.linear_cross_entropy(cupy.zeros((N, D), np.int64), weight, targets)
    with pytest.raises(TypeError, match="weight has dtype float32: expected float64"):
        nc.linear_cross_entropy(hidden, cupy.zeros((C, D), np.float32), targets)
    with pytest.raises(ValueError, match="targets have shape"):
        nc.linear_cross_entropy(hidden, weight, targets[1:])
