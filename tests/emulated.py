"""A CUDA driver that is not there: memory and kernels by the PTX interpreter.

It has the interface of `numba_ce.cuda.driver.Driver`, so that everything above it (plans, launch
table, pieces of NumPy arrays, public functions) runs as it is. Streams are synchronous.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module

import numpy as np

import numba_ce as nc
from numba_ce.cuda.plan import PACKER
from tools.ptx import Device
from tools.ptx.memory import USABLE

driver_module = import_module("numba_ce.cuda.driver")


class EmulatedDriver:
    """A device; `launches` lists what was started.

    count, homes : of several devices the number, and which one has an address (0 if none is named).
    The memory is one, but a kernel works on the device that it was loaded on, and on no other.

    order_seed : as for `ptx.Device`; mutate : function from PTX to PTX, applied to every kernel
    """

    def __init__(self, capability=(9, 0), order_seed=None, mutate=None):
        self.gpu = Device(order_seed=order_seed)
        self.compute_capability = capability
        self.mutate = mutate
        self.functions = {}
        self.launches = []
        self.log = []  # (what, stream) of copies, launches and waits
        self.allocated, self.page_locked = {}, {}
        self.streams = 6
        self.count, self.homes, self.current = 1, {}, [0]

    def device(self):
        return self.current[-1]

    def push(self, device):
        self.current.append(device)

    def pop(self):
        self.current.pop()

    def device_of(self, address):
        if self.gpu.memory.find(address) is None:
            raise driver_module.CudaError("CUDA driver: CUDA_ERROR_INVALID_VALUE")
        return self.homes.get(address, 0)

    def capability(self, device):
        return self.compute_capability

    def load(self, code):
        return code, self.device()

    def launch(self, function, grid, threads, plan, stream, shared=0):
        function, device = function
        assert device == self.device(), "loaded on another device"
        text = function.ptx if self.mutate is None else self.mutate(function.ptx)
        assert len(plan) == PACKER.size
        fields = PACKER.unpack(plan)
        counts = self.gpu.launch(text, grid, threads, fields, shared, function.entry)
        self.launches.append((grid, threads, counts))
        self.log.append(("launch", stream))

    def allocate(self, nbytes, stream):
        address = self.gpu.empty(max(nbytes, 16))
        self.allocated[address] = nbytes
        return address

    def free(self, address, stream):
        del self.allocated[address]
        self.gpu.free(address)

    def pinned(self, nbytes):
        array = np.empty(nbytes, np.uint8)
        self.page_locked[array.ctypes.data] = array
        return array

    def free_pinned(self, array):
        del self.page_locked[array.ctypes.data]

    def copy_in(self, to, array, stream):
        assert array.flags.c_contiguous
        data, flags = self.gpu.memory.bytes_of(to, array.nbytes)
        data[:] = array.reshape(-1).view(np.uint8)
        flags[:] = USABLE
        self.log.append(("in", stream))

    def copy_out(self, array, source, stream):
        array[...] = self.gpu.get(source, np.empty(array.shape, array.dtype))
        self.log.append(("out", stream))

    def new_stream(self):
        self.streams += 1
        return self.streams

    def synchronize(self, stream):
        self.log.append(("wait", stream))


@contextmanager
def emulated(**arguments):
    """The backend "cuda" on an `EmulatedDriver`; results come from `fresh` of the logits' owner."""
    host, arrays = (import_module(f"numba_ce.cuda.{name}") for name in ("host", "arrays"))
    before, slots, empty = driver_module._driver, dict(host._idle), arrays.empty
    driver_module._driver = EmulatedDriver(**arguments)
    arrays.empty = lambda like, shape, dtype: arrays.device_array(
        like.owner.fresh(np.zeros(shape, dtype)), "result"
    )
    host._idle.clear()
    try:
        with nc.use_backend("cuda"):
            yield driver_module._driver
    finally:
        driver_module._driver, arrays.empty = before, empty
        host._idle.clear()
        host._idle.update(slots)


class FakeArray:
    """An array in emulated memory, as a library would hand it out.

    place : how it lies in memory: strides in elements, from `offset` bytes after 256-byte alignment
    """

    def __init__(self, gpu, array, strides=None, offset=0, stream=None, readonly=False):
        self.gpu, self.dtype, self.shape, self.ndim = gpu, array.dtype, array.shape, array.ndim
        if strides is None:
            strides = [s // array.itemsize for s in np.empty(array.shape, array.dtype).strides]
        self.strides = tuple(s * array.itemsize for s in strides)
        self.stream, self.readonly = stream, readonly
        self.extent = 1 + sum((n - 1) * s for n, s in zip(array.shape, strides, strict=True))
        flat = np.full(max(self.extent, 0), 77.0).astype(array.dtype)
        np.lib.stride_tricks.as_strided(flat, array.shape, self.strides)[...] = array
        self.before = flat.copy()
        # Libraries give an empty array no memory
        self.address = gpu.put(flat, misalign=offset) if array.size else 0

    def fresh(self, array):
        """Another array in the same memory."""
        return FakeArray(self.gpu, array)

    @property
    def __cuda_array_interface__(self):
        typestr = "<V2" if self.dtype.name == "bfloat16" else self.dtype.str
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": typestr,
            "data": (self.address, self.readonly),
            "version": 3,
            "stream": self.stream,
        }

    def get(self):
        """The values now; everything between them must be as it was."""
        flat = self.gpu.get(self.address, self.before)
        values = np.lib.stride_tricks.as_strided(flat, self.shape, self.strides).copy()
        untouched = self.before.copy()
        np.lib.stride_tricks.as_strided(untouched, self.shape, self.strides)[...] = values
        np.testing.assert_array_equal(flat.view(np.uint8), untouched.view(np.uint8))
        return values
