"""A CUDA driver that is not there: memory and kernels by the PTX interpreter.

It has the interface of `numba_ce.cuda.driver.Driver`, so that everything above it (plans, launch
table, streams of pieces, public functions) runs as it is. Streams are synchronous.
"""

from __future__ import annotations

import struct

import numpy as np
from ptx import Device

from numba_ce.cuda.compiled import threads_of
from numba_ce.cuda.plan import PACKER


class EmulatedDriver:
    """One device; `launches` lists what was started."""

    def __init__(self, capability=(9, 0), order_seed=None, approx="within", mutate=None):
        self.gpu = Device(order_seed=order_seed, approx=approx)
        self.compute_capability = capability
        self.mutate = mutate  # function from PTX to PTX
        self.functions = {}
        self.launches = []
        self.allocated = {}
        self.largest = 0

    def device(self):
        return 0

    def device_of(self, address):
        return 0

    def capability(self, device):
        return self.compute_capability

    def load(self, code):
        return code

    def launch(self, function, grid, threads, plan, stream):
        text = function.ptx if self.mutate is None else self.mutate(function.ptx)
        assert len(plan) == PACKER.size
        counts = self.gpu.launch(text, grid, threads, PACKER.unpack(plan), entry=function.entry)
        self.launches.append((function.entry, grid, threads, counts))

    def allocate(self, nbytes, stream):
        address = self.gpu.empty(max(nbytes, 16))
        self.allocated[address] = nbytes
        self.largest = max(self.largest, sum(self.allocated.values()))
        return address

    def free(self, address, stream):
        del self.allocated[address]

    def pinned(self, nbytes):
        return np.empty(nbytes, np.uint8)

    def free_pinned(self, array):
        pass

    def copy_in(self, to, array, stream):
        assert array.flags.c_contiguous
        data, flags = self.gpu.memory.bytes_of(to, array.nbytes)
        data[:] = array.reshape(-1).view(np.uint8)
        flags[:] = USABLE

    def copy_out(self, array, source, stream):
        array[...] = self.gpu.get(source, np.empty(array.shape, array.dtype))

    def new_stream(self):
        return 7

    def synchronize(self, stream):
        pass


from ptx.memory import USABLE  # noqa: E402

_ = struct
