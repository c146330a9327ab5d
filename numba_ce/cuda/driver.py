"""The few calls of the CUDA driver that are needed, through NVIDIA's own bindings.

Kernels are launched here and not by Numba's dispatcher: it looks at the type of every argument, at
some 4 us for each array, and the kernels take plain numbers.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

LEGACY_STREAM = 1


class CudaError(RuntimeError):
    """A call of the driver failed."""


def _checked(result: tuple[Any, ...]) -> Any:
    code, *values = result
    if int(code) != 0:
        raise CudaError(f"CUDA driver: {code.name}")
    return values[0] if len(values) == 1 else tuple(values)


class Driver:
    """The driver and the current device; one object per process."""

    def __init__(self) -> None:
        from cuda.bindings import driver as api

        self._api = api
        _checked(api.cuInit(0))
        self.count = int(_checked(api.cuDeviceGetCount()))
        if self.count == 0:
            raise CudaError("there is no CUDA device")
        self.functions: dict[Any, Any] = {}  # what has been loaded, by kernel and device
        self._capabilities: dict[int, tuple[int, int]] = {}
        self._contexts: dict[int, Any] = {}

    def _context(self, device: int) -> Any:
        """The primary context of a device, in which CuPy, Numba and torch work."""
        if device not in self._contexts:
            self._contexts[device] = _checked(self._api.cuDevicePrimaryCtxRetain(device))
        return self._contexts[device]

    def device(self) -> int:
        """The number of this thread's current device; makes the first one current if none is."""
        if int(_checked(self._api.cuCtxGetCurrent())) == 0:
            _checked(self._api.cuCtxSetCurrent(self._context(0)))
        return int(_checked(self._api.cuCtxGetDevice()))

    def push(self, device: int) -> None:
        """Make a device the current one until `pop`."""
        _checked(self._api.cuCtxPushCurrent(self._context(device)))

    def pop(self) -> None:
        """Back to the device before `push`."""
        _checked(self._api.cuCtxPopCurrent())

    def capability(self, device: int) -> tuple[int, int]:
        """The compute capability of a device."""
        if device not in self._capabilities:
            attribute = self._api.CUdevice_attribute
            self._capabilities[device] = tuple(
                _checked(self._api.cuDeviceGetAttribute(a, device))
                for a in (
                    attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                    attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                )
            )
        return self._capabilities[device]

    def name(self, device: int) -> str:
        """What a device is called."""
        raw = _checked(self._api.cuDeviceGetName(100, device))
        return str(raw.split(b"\0")[0].decode())

    def device_of(self, address: int) -> int:
        """The device that an address belongs to."""
        ordinal = self._api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(_checked(self._api.cuPointerGetAttribute(ordinal, address)))

    def load(self, code: Any) -> Any:
        """A function to launch, from a `compiled.Code`, in the current context."""
        module = _checked(self._api.cuModuleLoadData(code.cubin))
        return _checked(self._api.cuModuleGetFunction(module, code.entry.encode()))

    def launch(
        self, function: Any, grid: int, threads: int, plan: bytes, stream: int, shared: int = 0
    ) -> None:
        """Start a kernel; `plan` is all its parameters, which the driver copies.

        shared : bytes of shared memory beyond what the kernel itself declares
        """
        buffer = ctypes.create_string_buffer(plan, len(plan))
        size = ctypes.c_size_t(len(plan))
        # CU_LAUNCH_PARAM_BUFFER_POINTER, .._BUFFER_SIZE, .._END
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), None)
        address = ctypes.addressof(extra)
        shape = grid, 1, 1, threads, 1, 1
        _checked(self._api.cuLaunchKernel(function, *shape, shared, stream, 0, address))

    def allocate(self, nbytes: int, stream: int) -> int:
        """Device memory, in the order of the stream."""
        return int(_checked(self._api.cuMemAllocAsync(max(nbytes, 16), stream)))

    def free(self, address: int, stream: int) -> None:
        """Give it back, once what the stream holds now is done."""
        _checked(self._api.cuMemFreeAsync(address, stream))

    def pinned(self, nbytes: int) -> np.ndarray[Any, Any]:
        """Page-locked host memory, which copies run to and from beside the kernels."""
        address = int(_checked(self._api.cuMemHostAlloc(nbytes, 0)))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_pinned(self, array: np.ndarray[Any, Any]) -> None:
        """Give back what `pinned` gave."""
        _checked(self._api.cuMemFreeHost(array.ctypes.data))

    def copy_in(self, to: int, array: np.ndarray[Any, Any], stream: int) -> None:
        """Start a copy of a contiguous host array to the device."""
        _checked(self._api.cuMemcpyHtoDAsync(to, array.ctypes.data, array.nbytes, stream))

    def copy_out(self, array: np.ndarray[Any, Any], source: int, stream: int) -> None:
        """Start a copy from the device into a contiguous host array."""
        _checked(self._api.cuMemcpyDtoHAsync(array.ctypes.data, source, array.nbytes, stream))

    def new_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        return int(_checked(self._api.cuStreamCreate(1)))

    def synchronize(self, stream: int) -> None:
        """Wait until everything in the stream is done."""
        _checked(self._api.cuStreamSynchronize(stream))


_driver: Any = None


def current_driver() -> Any:
    """The driver; raises an error if there is none, or no device."""
    global _driver
    if _driver is None:
        _driver = Driver()
    return _driver
