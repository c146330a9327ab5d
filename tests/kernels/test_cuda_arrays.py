"""Arrays on the device: what is taken, what is refused, whose streams and whose results."""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager, nullcontext
from importlib import import_module

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from emulated import FakeArray, emulated

import numba_ce as nc
from numba_ce.cuda import arrays

REAL_EMPTY = arrays.empty  # `emulated` puts another one in its place


@pytest.fixture
def gpu_driver():
    with emulated() as driver:
        yield driver


@pytest.fixture
def gpu(gpu_driver):
    return gpu_driver.gpu


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


def test_auto_is_where_the_data_lives(gpu):
    x, y = arrays_on(gpu)
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


def test_empty(gpu):
    x, y = FakeArray(gpu, np.zeros((0, 4), np.float32)), FakeArray(gpu, np.zeros(0, int))
    assert np.isnan(nc.cross_entropy(x, y).get())
    assert nc.cross_entropy(x, y, reduction="sum").get() == 0


def records_of(gpu, out=None):
    """Record and gradient of two shards of device arrays."""
    rng = np.random.default_rng(3)
    z, y = rng.standard_normal((3, 8)).astype(np.float32), np.array([7, -100, 2])
    whole = nc.row_record(z, y, class_offset=0, n_classes=8)
    x, t = FakeArray(gpu, z[:, 4:]), FakeArray(gpu, y)
    record = nc.row_record(x, t, class_offset=4, n_classes=8)
    grad = nc.grad_from_record(x, t, whole, class_offset=4, out=out)
    return z, y, record, grad


@pytest.mark.parametrize("given", [False, True])
def test_records_of_device_arrays(gpu, given):
    """Records are handed out on the host; the gradient stays where the logits are."""
    out = FakeArray(gpu, np.zeros((3, 4), np.float32)) if given else None
    z, y, record, grad = records_of(gpu, out)
    assert grad is out or not given
    with nc.use_backend("numpy"):
        expected = nc.row_record(z[:, 4:], y, class_offset=4, n_classes=8)
        _, grad_0 = nc.cross_entropy_and_grad(z, y, reduction="sum")
    np.testing.assert_allclose(record, expected, rtol=1e-6)
    np.testing.assert_allclose(grad.get(), grad_0[:, 4:], rtol=1e-6)


def test_a_record_on_the_device_is_refused(gpu):
    x, y = arrays_on(gpu)
    record = FakeArray(gpu, np.zeros((3, 9)))
    with pytest.raises(TypeError, match="record is on a CUDA device: expected a host array"):
        nc.grad_from_record(x, y, record, class_offset=0)
    with pytest.raises(TypeError, match="b is on a CUDA device: expected a host array"):
        nc.merge_records(np.zeros((3, 9)), record)


def test_a_shard_without_classes(gpu):
    """Its targets are checked all the same, wherever they lie."""
    logits, targets = np.zeros((3, 0), np.float32), np.array([5, -100, 7])
    x, backwards = FakeArray(gpu, logits), FakeArray(gpu, targets[::-1], [2])
    backwards.address, backwards.strides = backwards.address + 2 * 16, (-16,)
    for y in (FakeArray(gpu, targets), FakeArray(gpu, targets, [3]), backwards):
        record = nc.row_record(x, y, class_offset=4, n_classes=8)
        with nc.use_backend("numpy"):
            host = nc.row_record(logits, targets, class_offset=4, n_classes=8)
        np.testing.assert_array_equal(record, host)
        with pytest.raises(ValueError, match=r"targets\[2\] = 7 is not a class index"):
            nc.row_record(x, y, class_offset=4, n_classes=7)
        loose = nc.row_record(x, y, class_offset=4, n_classes=7, check_targets=False)
        np.testing.assert_array_equal(np.isnan(loose[:, 1]), [False, False, True])
    assert nc.grad_from_record(x, y, host, class_offset=4).shape == (3, 0)


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

    class Ndarray:
        __module__ = "cupy._core"
        dtype, device = np.dtype(np.float32), nullcontext()
        __cuda_array_interface__ = Tensor.__cuda_array_interface__ | {"typestr": "<f4"}

    cupy = types.ModuleType("cupy")
    cupy.empty = lambda shape, dtype: made.append((shape, dtype)) or Ndarray()
    cupy.cuda = types.SimpleNamespace(get_current_stream=lambda: types.SimpleNamespace(ptr=0))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    array = arrays.device_array(Ndarray(), "logits")
    assert array.stream == import_module("numba_ce.cuda.driver").LEGACY_STREAM
    arrays.empty(array, (), np.dtype(np.float32))
    assert made[-1] == ((), np.dtype(np.float32))
    assert arrays.family(type("Mine", (Tensor,), {"__module__": "mine"})()) == "torch"
    assert arrays.family(type("Mine", (), {"__module__": "mine.torch"})()) == "numba"


def test_results_are_on_the_device_of_the_logits(monkeypatch):
    """CuPy and Numba put fresh arrays on the current device, which may be another one."""
    numba, entered = import_module("numba.cuda"), []

    @contextmanager
    def device(number):
        entered.append(number)
        yield
        entered.append("left")

    with emulated() as driver:
        fake = FakeArray(driver.gpu, np.zeros((3, 4), np.float32))
        none = FakeArray(driver.gpu, np.zeros((0, 4), np.float32))
        driver.count, driver.homes = 2, {fake.address: 1}

        def made(shape, dtype, stream):
            assert entered[-1] != "left"
            return FakeArray(driver.gpu, np.zeros(shape, dtype), stream=stream)

        monkeypatch.setattr(numba, "gpus", [device(0), device(1)])
        monkeypatch.setattr(numba, "device_array", made)
        monkeypatch.setattr(numba, "external_stream", lambda stream: stream)
        for like in (fake, none):
            array = REAL_EMPTY(arrays.device_array(like, "logits"), (2,), np.dtype(np.float32))
            assert array.shape == (2,)
    assert entered == [1, "left", 0, "left"]


def test_another_device_than_the_current_one():
    """It is the current one while its kernels are loaded and launched, after an error too."""
    with emulated() as driver:
        x, y = arrays_on(driver.gpu)
        out = FakeArray(driver.gpu, np.zeros((3, 4), np.float32))
        driver.count, driver.device_of = 2, lambda address: 1
        launch, used = driver.launch, set()
        driver.launch = lambda *arguments: used.add(driver.device()) or launch(*arguments)
        nc.cross_entropy(x, y)
        nc.cross_entropy_and_grad(x, y, out=out)
        nc.cross_entropy_grad_and_hess(x, y)
        nc.row_stats(x, y)
        nc.softmax(x)
        record = nc.row_record(x, y, class_offset=0, n_classes=4)
        nc.grad_from_record(x, y, record, class_offset=0)
        bad = FakeArray(driver.gpu, np.array([0, 9, 0]))
        with pytest.raises(ValueError, match=r"targets\[1\] = 9 is not a class"):
            nc.cross_entropy(x, bad)
        assert driver.current == [0]
        loaded = set(driver.functions) - {("fold", 0)}  # by which it was seen that CUDA works
        assert used == {device for _, device in loaded} == {1}
        driver.device_of = lambda address: int(address == y.address)
        with pytest.raises(ValueError, match="targets is on CUDA device 1 and logits on 0"):
            nc.cross_entropy(x, y)


@pytest.mark.parametrize("name", ["targets", "class_weight", "sample_weight", "out"])
def test_other_streams_are_waited_for(gpu_driver, name):
    """Before the kernels start, and the kernels before the other stream may go on."""
    gpu = gpu_driver.gpu
    values = {
        "logits": np.zeros((3, 4), np.float32),
        "targets": np.zeros(3, np.int32),
        "class_weight": np.ones(4),
        "sample_weight": np.ones(3),
        "out": np.zeros((3, 4), np.float32),
    }
    mine = {key: FakeArray(gpu, a, stream=77) for key, a in values.items()}

    def call():
        gpu_driver.log.clear()
        nc.cross_entropy_and_grad(**mine, reduction="none", check_targets=False)
        return gpu_driver.log

    assert call() == [("launch", 77)]
    mine[name].stream = 78
    assert call() == [("wait", 78), ("launch", 77), ("wait", 77)]
    mine[name].stream = None  # somebody else's affair, says the interface
    assert call() == [("launch", 77)]


def test_more_axes_than_a_kernel_walks(gpu):
    logits = np.zeros((2, 3, 2, 3, 2, 4), np.float32)
    strides = [4096, 1000, 300, 90, 30, 1]
    x = FakeArray(gpu, logits, strides)
    y = FakeArray(gpu, np.zeros(logits.shape[:-1], int))
    with pytest.raises(ValueError, match="5 axes that cannot be merged: expected at most 4"):
        nc.cross_entropy_grad_and_hess(x, y, out=(x, FakeArray(gpu, logits)))
