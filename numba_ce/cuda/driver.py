"""The few calls of the CUDA driver that are needed, through NVIDIA's own bindings.

Kernels are launched here and not by Numba's dispatcher: it looks at the type of every argument, at
some 4 us for each array, and the kernels take plain numbers.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress
from typing import Any

import numpy as np

from numba_ce import _fork

LEGACY_STREAM = 1


# What the driver's errors mean to whoever meets them, by their names after CUDA_ERROR_
_NEWER_DRIVER = "install a newer driver, or 'numba-ce[cu12]' in place of [cu13]"
_BROKEN = (
    "a kernel, of this or another library, went wrong on the GPU: no call works any more in this "
    "process, start it anew"
)
_MEANINGS = {
    "NO_DEVICE": "there is no GPU, or none that this process may use: see nvidia-smi, the variable "
    "CUDA_VISIBLE_DEVICES, and the devices that a container was given",
    "OUT_OF_MEMORY": "so much is not left: see nvidia-smi, or pass fewer rows at a time",
    "DEVICE_UNAVAILABLE": "another process has the GPU for itself, or its compute mode forbids its "
    "use: see nvidia-smi --query --display=COMPUTE",
    "NOT_PERMITTED": "this process may not use the GPU: see the permissions of /dev/nvidia*",
    "OPERATING_SYSTEM": "this process may not use the GPU: see the permissions of /dev/nvidia*",
    "NOT_INITIALIZED": "CUDA does not survive a fork: start processes by the method 'spawn'",
    "SYSTEM_DRIVER_MISMATCH": "the library and the kernel module of the driver are of different "
    "versions: restart the machine",
    "SYSTEM_NOT_READY": "a service that the GPUs need does not run: start nvidia-fabricmanager",
    "STUB_LIBRARY": "libcuda is the toolkit's stub: take its folder out of LD_LIBRARY_PATH",
    "UNKNOWN": "the driver is out of order: see nvidia-smi, and load the kernel module nvidia-uvm",
    **dict.fromkeys(
        ("INVALID_IMAGE", "NO_BINARY_FOR_GPU", "UNSUPPORTED_PTX_VERSION"),
        f"the driver does not take what the installed compilers make: {_NEWER_DRIVER}",
    ),
    **dict.fromkeys(
        (
            "ILLEGAL_ADDRESS",
            "MISALIGNED_ADDRESS",
            "ILLEGAL_INSTRUCTION",
            "LAUNCH_FAILED",
            "LAUNCH_TIMEOUT",
        ),
        _BROKEN,
    ),
}

#: Held where something is made once for the process
once = threading.RLock()
_fork.locks.insert(1, once)  # before that of Numba's compiler, which is taken while this is held


class CudaError(RuntimeError):
    """A call of the driver failed."""


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class Driver:
    """The driver and the current device; one object per process."""

    def __init__(self) -> None:
        from cuda.bindings import __version__
        from cuda.bindings import driver as api

        self._api = api
        self.version = _version(self._call("cuDriverGetVersion"))
        if int(self.version.partition(".")[0]) < int(__version__.partition(".")[0]):
            raise CudaError(
                f"the driver is for CUDA {self.version} and the installed package cuda-bindings "
                f"for {__version__}: {_NEWER_DRIVER}"
            )
        self._call("cuInit", 0)
        self.count = int(self._call("cuDeviceGetCount"))
        if self.count == 0:
            raise CudaError(f"there is no CUDA device: {_MEANINGS['NO_DEVICE']}")
        attribute = api.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
        self._pools = all(
            self._call("cuDeviceGetAttribute", attribute, n) for n in range(self.count)
        )
        self.functions: dict[Any, Any] = {}  # what has been loaded, by kernel and device
        self._capabilities: dict[int, tuple[int, int]] = {}
        self._contexts: dict[int, Any] = {}

    def _call(self, name: str, *arguments: Any, what: str = "") -> Any:
        """What a function of the driver returns.

        what : of the call, for a message
        """
        code, *values = getattr(self._api, name)(*arguments)
        if int(code) != 0:
            meaning = _MEANINGS.get(code.name.removeprefix("CUDA_ERROR_"))
            raise CudaError(f"{name}{what}: {code.name}" + (f", {meaning}" if meaning else ""))
        return values[0] if len(values) == 1 else tuple(values)

    def _context(self, device: int) -> Any:
        """The primary context of a device, in which CuPy, Numba and torch work."""
        context = self._contexts.get(device)
        if context is None:
            with once:
                if device not in self._contexts:
                    what = f" for device {device}"
                    self._contexts[device] = self._call(
                        "cuDevicePrimaryCtxRetain", device, what=what
                    )
                context = self._contexts[device]
        return context

    def device(self) -> int:
        """The number of this thread's current device; makes the first one current if none is."""
        if int(self._call("cuCtxGetCurrent")) == 0:
            self._call("cuCtxSetCurrent", self._context(0))
        return int(self._call("cuCtxGetDevice"))

    def push(self, device: int) -> None:
        """Make a device the current one until `pop`."""
        self._call("cuCtxPushCurrent", self._context(device))

    def pop(self) -> None:
        """Back to the device before `push`."""
        self._call("cuCtxPopCurrent")

    def capability(self, device: int) -> tuple[int, int]:
        """The compute capability of a device."""
        if device not in self._capabilities:
            attributes = self._api.CUdevice_attribute
            self._capabilities[device] = tuple(
                self._call("cuDeviceGetAttribute", attribute, device)
                for attribute in (
                    attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                    attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                )
            )
        return self._capabilities[device]

    def name(self, device: int) -> str:
        """What a device is called."""
        raw = self._call("cuDeviceGetName", 100, device)
        return str(raw.split(b"\0")[0].decode())

    def device_of(self, address: int) -> int:
        """The device that an address belongs to."""
        ordinal = self._api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(self._call("cuPointerGetAttribute", ordinal, address))

    def load(self, code: Any) -> Any:
        """A function to launch, from a `compiled.Code`, in the current context."""
        module = self._call("cuModuleLoadData", code.cubin)
        try:
            return self._call("cuModuleGetFunction", module, code.entry.encode())
        except CudaError:
            with suppress(CudaError):
                self._call("cuModuleUnload", module)
            raise

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
        what = f" of {grid} blocks of {threads} threads and {shared} bytes of shared memory"
        self._call("cuLaunchKernel", function, *shape, shared, stream, 0, address, what=what)

    def allocate(self, nbytes: int, stream: int) -> int:
        """Device memory, in the order of the stream where the devices have memory pools."""
        nbytes = max(nbytes, 16)
        what = f" of {nbytes} bytes"
        if self._pools:
            return int(self._call("cuMemAllocAsync", nbytes, stream, what=what))
        return int(self._call("cuMemAlloc", nbytes, what=what))

    def free(self, address: int, stream: int) -> None:
        """Give it back, once what the stream holds now is done."""
        if self._pools:
            self._call("cuMemFreeAsync", address, stream)
            return
        self.synchronize(stream)
        self._call("cuMemFree", address)

    def pinned(self, nbytes: int) -> np.ndarray[Any, Any]:
        """Page-locked host memory, which copies run to and from beside the kernels."""
        what = f" of {nbytes} bytes of page-locked host memory"
        address = int(self._call("cuMemHostAlloc", nbytes, 0, what=what))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_pinned(self, array: np.ndarray[Any, Any]) -> None:
        """Give back what `pinned` gave."""
        self._call("cuMemFreeHost", array.ctypes.data)

    def copy_in(self, to: int, array: np.ndarray[Any, Any], stream: int) -> None:
        """Start a copy of a contiguous host array to the device."""
        what = f" of {array.nbytes} bytes"
        self._call("cuMemcpyHtoDAsync", to, array.ctypes.data, array.nbytes, stream, what=what)

    def copy_out(self, array: np.ndarray[Any, Any], source: int, stream: int) -> None:
        """Start a copy from the device into a contiguous host array."""
        what = f" of {array.nbytes} bytes"
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, source, array.nbytes, stream, what=what)

    def new_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        return int(self._call("cuStreamCreate", 1))

    def synchronize(self, stream: int) -> None:
        """Wait until everything in the stream is done."""
        self._call("cuStreamSynchronize", stream)


_driver: Any = None


def current_driver() -> Any:
    """The driver; raises an error if there is none, or no device."""
    global _driver
    if _driver is None:
        with once:
            if _driver is None:
                _driver = Driver()
    return _driver
