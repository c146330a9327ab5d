"""The device: global memory, and launches."""

from __future__ import annotations

import numpy as np

from .fault import Fault
from .launch import Counts, Launch
from .memory import USABLE, GlobalMemory
from .program import compiled
from .races import GlobalRaces
from .schedule import STEPS, Scheduler

LANES = 4096  # threads that execute together
LANES_IN_ORDER = 1024  # the same with an order_seed: more would be fewer different schedules


class Device:
    """Global memory and the means to run kernels on it.

    order_seed: None runs warps in step. A number: the warps of a cluster and asynchronous stores
    take turns in an order and for lengths drawn from it. approx: "within" moves the
    results of approximate instructions within their documented error, by an amount that depends
    on the argument only; "exact" rounds correctly. races: whether races in global memory are looked
    for (those in shared memory always are). limit: steps of a batch before it is endless.
    """

    def __init__(self, order_seed=None, approx="within", races=True, limit=STEPS):
        if approx not in ("within", "exact"):
            raise ValueError(f"approx={approx!r}: 'within' and 'exact' are possible")
        self.memory = GlobalMemory()
        self.order_seed, self.exact, self.races = order_seed, approx == "exact", races
        self.limit = limit
        self.counts = Counts()
        self._symbols = {}

    def put(self, array, misalign=0, readonly=False):
        """Copies an array into global memory; its address."""
        array = np.ascontiguousarray(array)
        allocation = self.memory.allocate(array.nbytes, misalign, readonly)
        data, flags = (
            self.memory.bytes_of(allocation.start, array.nbytes)
            if array.nbytes
            else (np.empty(0, np.uint8), np.empty(0, np.uint8))
        )
        data[:] = array.reshape(-1).view(np.uint8)
        flags[:] = USABLE
        return allocation.start

    def empty(self, nbytes, misalign=0):
        """Memory that nobody has written; its address."""
        return self.memory.allocate(int(nbytes), misalign).start

    def free(self, address):
        """Gives an allocation back."""
        self.memory.free(address)

    def get(self, address, like, fill=None):
        """An array of the shape and dtype of `like` from global memory.

        Bytes that nobody has written are a Fault, or, with fill, the bytes of that value.
        """
        like = np.asarray(like)
        if not like.nbytes:
            return np.empty_like(like)
        data, flags = self.memory.bytes_of(address, like.nbytes)
        written = flags == USABLE
        if not written.all() and fill is None:
            place = int(np.flatnonzero(~written)[0])
            count = int((~written).sum())
            raise Fault(
                f"{count} of {like.nbytes} bytes at {address:#x} have not been written, the first "
                f"in element {place // like.itemsize}"
            )
        result = data.copy()
        if fill is not None:
            filler = np.full(like.size, fill, like.dtype).view(np.uint8)
            result = np.where(written, result, filler)
        return result.view(like.dtype).reshape(like.shape)

    def symbol(self, program, name):
        """The address of a variable of a module."""
        key = id(program.module), name
        if key not in self._symbols:
            item = program.globals[name]
            allocation = self.memory.allocate(item.size, readonly=item.space == "const")
            data, flags = self.memory.bytes_of(allocation.start, item.size)
            values = np.array(item.values or [], item.dtype).view(np.uint8)
            data[: values.size] = values
            flags[:] = USABLE
            self._symbols[key] = allocation.start
        return self._symbols[key]

    def launch(self, ptx_text, grid, block, args, shared=0, entry=None, cluster=None):
        """Runs a kernel to its end; raises Fault if it does what it must not."""
        program = compiled(ptx_text, entry, self.order_seed is not None, self.exact)
        launch = Launch(program, grid, block, cluster, list(args), shared)
        for name in program.globals:
            self.symbol(program, name)
        self.counts = launch.counts
        self.memory.start_launch()
        if self.races:
            launch.global_races = GlobalRaces()
        clusters = list(launch.clusters())
        lanes = LANES if self.order_seed is None else LANES_IN_ORDER
        together = max(1, lanes // (launch.threads * len(clusters[0])))
        if self.order_seed is not None:
            np.random.default_rng(self.order_seed).shuffle(clusters)
        with np.errstate(all="ignore"):
            for first in range(0, len(clusters), together):
                blocks = [b for c in clusters[first : first + together] for b in c]
                Scheduler(self, program, launch, blocks, self.order_seed).run()
                launch.clusters_done += together
        for allocation in self.memory.allocations:
            launch.counts.bytes_read[allocation.start] = allocation.bytes_read
            launch.counts.bytes_written[allocation.start] = allocation.bytes_written
        return launch.counts
