"""Tensors on a CUDA device: stand-ins whose memory is that of the emulated driver."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("numba_cuda")

from emulated import emulated  # noqa: E402

from numba_ce.cuda import arrays  # noqa: E402
from numba_ce.integrations.torch import cross_entropy  # noqa: E402


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on a device; torch and the kernels compute with the same memory."""

    is_cpu = False
    gpu = None

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": tuple(self.shape),
            "strides": tuple(s * self.element_size() for s in self.stride()),
            "typestr": np.dtype(str(self.dtype).removeprefix("torch.")).str,
            "data": (self.data_ptr() - self.gpu.host_start + self.gpu.start, False),
            "version": 3,
        }

    def numpy(self, **_):
        raise TypeError("copied to the host")

    item = tolist = cpu = numpy

    def fresh(self, array):
        return on_device(array, self.gpu)


@pytest.fixture
def gpu(monkeypatch):
    with emulated() as driver:
        gpu = driver.gpu
        gpu.launches = driver.launches
        gpu.memory.resize(1 << 20)  # and no larger: the tensors are views of it
        gpu.start = gpu.empty(256)
        data, _ = gpu.memory.bytes_of(gpu.start, 256)
        gpu.host_start = data.ctypes.data
        monkeypatch.setattr(DeviceTensor, "gpu", gpu)
        monkeypatch.setattr(arrays, "_current_stream", lambda owner, interface: 1)
        yield gpu


def on_device(array, gpu):
    array = np.asarray(array)
    data, _ = gpu.memory.bytes_of(gpu.put(array), array.nbytes)
    return torch.from_numpy(data.view(array.dtype).reshape(array.shape)).as_subclass(DeviceTensor)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("large", [False, True])
def test_loss_and_gradient(gpu, rng, reduction, large, monkeypatch):
    if large:
        monkeypatch.setattr("numba_ce.integrations.torch.SMALL", 0)
    z = rng.standard_normal((3, 5)).astype(np.float32)
    y, w = np.array([4, -100, 0]), rng.uniform(0.5, 2, 5).astype(np.float32)
    logits = on_device(z, gpu).requires_grad_()
    targets, weight = on_device(y, gpu), on_device(w, gpu)
    loss = cross_entropy(logits, targets, weight, reduction=reduction)
    assert isinstance(loss, DeviceTensor) and loss.requires_grad and gpu.launches
    upstream = on_device(rng.standard_normal(loss.shape).astype(np.float32), gpu)
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    assert isinstance(grad, DeviceTensor)
    plain = torch.from_numpy(z).requires_grad_()
    expected = torch.nn.functional.cross_entropy(
        plain, torch.from_numpy(y), torch.from_numpy(w), reduction=reduction
    )
    (expected_grad,) = torch.autograd.grad(expected, plain, upstream.as_subclass(torch.Tensor))
    for got, want in ((loss, expected), (grad, expected_grad)):
        torch.testing.assert_close(got.detach().as_subclass(torch.Tensor), want.detach())
    with torch.no_grad():
        again = cross_entropy(logits, targets, weight, reduction=reduction)
    torch.testing.assert_close(
        again.as_subclass(torch.Tensor), expected.detach(), rtol=1e-6, atol=1e-7
    )
