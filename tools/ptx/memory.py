"""Byte-addressed memories: global (allocations with guards), shared and local.

Every byte has flags: ALLOCATED and WRITTEN. A load needs both on all its bytes, a store the first.
Addresses are those of PTX: global and generic ones are 64-bit, and shared and local memory have
windows in the generic space. A shared address may carry the rank of a block of the cluster in its
upper bits (`mapa`).
"""

from __future__ import annotations

import bisect

import numpy as np

from .fault import Fault

ALLOCATED, WRITTEN = 1, 2
USABLE = ALLOCATED | WRITTEN

SHARED_WINDOW = 1 << 40
LOCAL_WINDOW = 1 << 41
WINDOW = 1 << 32  # size of the two windows
GLOBAL_BASE = 1 << 44
SHARED_START = 1024  # sm_90 keeps the first KiB of shared memory for itself
RANK_SHIFT = 24  # shared address = (rank + 1) << 24 | offset within that block's memory
GUARD = 256  # bytes that belong to nobody, around every allocation


def pattern(flag, dtype):
    """The flag in every byte of a word."""
    return np.frombuffer(bytes([flag]) * dtype.itemsize, dtype)[0]


class Space:
    """Bytes and their flags, seen as words or as rows of words (for vector access)."""

    def __init__(self, size):
        self.resize(size)

    def resize(self, size):
        data, flags = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        if hasattr(self, "data"):
            data[: self.data.size], flags[: self.flags.size] = self.data, self.flags
        self.data, self.flags, self._views = data, flags, {}

    def words(self, dtype, count=1):
        """The memory as an array of dtype, or of rows of `count` of them."""
        key = dtype.char, count
        view = self._views.get(key)
        if view is None:
            view = self.data.view(dtype)
            self._views[key] = view = view.reshape(-1, count) if count > 1 else view
        return view

    def flag_words(self, width):
        """Flags of accesses of that width: array of one word per access, or of rows of words."""
        key = "flags", width
        view = self._views.get(key)
        if view is None:
            view = self.flags.view(f"u{min(width, 8)}")
            self._views[key] = view = view.reshape(-1, width // 8) if width > 8 else view
        return view

    def lacking(self, index, width, flag):
        """Which accesses (index in units of width) have a byte without the flag; None if none."""
        words = self.flag_words(width)
        mask = pattern(flag, words.dtype)
        wrong = (words[index] & mask) != mask
        if width > 8:
            wrong = wrong.any(axis=-1)
        return wrong if wrong.any() else None

    def mark_written(self, index, width):
        words = self.flag_words(width)
        words[index] = pattern(USABLE, words.dtype)

    def load(self, index, dtype, count):
        """The values of one access per lane: an array, or `count` of them."""
        words = self.words(dtype, count)
        if count == 1:
            return words[index]
        rows = words[index]
        if rows.ndim == 1:  # every lane reads the same address
            return [rows[j] for j in range(count)]
        return list(np.ascontiguousarray(rows.T))

    def store(self, index, dtype, values):
        words = self.words(dtype, len(values))
        if index.ndim == 0:  # every lane writes the same address: the last one stays
            values = [v[-1] if v.ndim else v for v in values]
        if len(values) == 1:
            words[index] = values[0]
        else:
            for j, value in enumerate(values):
                words[..., j][index] = value


class Allocation:
    def __init__(self, start, size, readonly):
        self.start, self.size, self.end, self.readonly = start, size, start + size, readonly
        self.complete = False  # every byte has been written
        self.bytes_read = self.bytes_written = 0

    def __str__(self):
        return f"the allocation of {self.size} bytes at {self.start:#x}"


class GlobalMemory(Space):
    """Allocations, each surrounded by bytes that belong to nobody."""

    def __init__(self):
        super().__init__(1 << 20)
        self.top = GUARD
        self.starts, self.allocations = [], []
        self.recent = Allocation(0, 0, False)
        self.touched = ()  # the allocations of the latest access

    def allocate(self, size, misalign=0, readonly=False):
        if not 0 <= misalign < 256:
            raise ValueError(f"misalign={misalign}: 0 to 255 bytes are possible")
        start = -(-self.top // 256) * 256 + misalign
        self.top = start + size + GUARD
        if self.top > self.data.size:
            self.resize(max(2 * self.data.size, -(-self.top // 4096) * 4096))
        self.flags[start : start + size] = ALLOCATED
        allocation = Allocation(GLOBAL_BASE + start, size, readonly)
        self.starts.append(allocation.start)
        self.allocations.append(allocation)
        return allocation

    def free(self, address):
        """Gives the memory back; it is not used again, so that a late access is out of bounds."""
        place = bisect.bisect_left(self.starts, address)
        if place == len(self.starts) or self.starts[place] != address:
            raise Fault(f"{address:#x} is not the start of an allocation")
        allocation = self.allocations.pop(place)
        del self.starts[place]
        self.flags[address - GLOBAL_BASE : allocation.end - GLOBAL_BASE] = 0
        self.recent = Allocation(0, 0, False)

    def find(self, address):
        """The allocation that contains the address, or None."""
        place = bisect.bisect_right(self.starts, address) - 1
        if place >= 0 and address < self.allocations[place].end:
            return self.allocations[place]
        return None

    def bytes_of(self, address, size):
        """(data, flags) of `size` bytes from the host's point of view."""
        allocation = self.find(address)
        if allocation is None or address + size > allocation.end:
            raise Fault(f"{size} bytes at {address:#x} are not within one allocation")
        place = slice(address - GLOBAL_BASE, address - GLOBAL_BASE + size)
        return self.data[place], self.flags[place]

    def start_launch(self):
        for allocation in self.allocations:
            allocation.bytes_read = allocation.bytes_written = 0
            if not allocation.complete:
                _, flags = self.bytes_of(allocation.start, allocation.size)
                allocation.complete = bool((flags == USABLE).all())

    def index(self, address, width, write, lanes, fault):
        """Checks one access per lane; the index in units of width.

        fault(which, message): raises for the first lane of which (None: any lane).
        """
        if address.ndim:
            low, high = int(address.min()), int(address.max())
            ored = int(np.bitwise_or.reduce(address))
        else:
            low = high = ored = int(address)
        if ored & (width - 1):
            fault(address & np.uint64(width - 1) != 0, f"misaligned access of {width} bytes")
        allocation = self.recent
        if not (allocation.start <= low and high + width <= allocation.end):
            allocation = self.find(low)
        index = (address - np.uint64(GLOBAL_BASE)).view(np.int64) >> (width.bit_length() - 1)
        if allocation is None or high + width > allocation.end:
            return self._index_of_many(address, index, width, write, fault, lanes)
        self.recent, self.touched = allocation, (allocation,)
        if write:
            if allocation.readonly:
                fault(None, f"write to {allocation}, which is read-only")
            allocation.bytes_written += lanes * width
            if not allocation.complete:
                self.mark_written(index, width)
        else:
            allocation.bytes_read += lanes * width
            if not allocation.complete:
                wrong = self.lacking(index, width, WRITTEN)
                if wrong is not None:
                    fault(wrong, f"read of bytes of {allocation} that nobody has written")
        return index

    def _index_of_many(self, address, index, width, write, fault, lanes):
        """The slow way: lanes that access different allocations, or none."""
        each, touched = np.atleast_1d(address), []
        place = np.searchsorted(np.array(self.starts, np.uint64), each, side="right") - 1
        for which in np.unique(place):
            mine = place == which
            allocation = self.allocations[which] if which >= 0 else Allocation(0, 0, False)
            outside = mine & (each + np.uint64(width) > np.uint64(allocation.end))
            if outside.any():
                near = f"; the nearest below is {allocation}" if which >= 0 else ""
                fault(outside, f"out-of-bounds access of {width} bytes{near}")
            if write and allocation.readonly:
                fault(mine, f"write to {allocation}, which is read-only")
            touched.append(allocation)
            moved = int(mine.sum()) * width * (1 if address.ndim else lanes)
            if write:
                allocation.bytes_written += moved
            else:
                allocation.bytes_read += moved
        self.touched = tuple(touched)
        if write:
            self.mark_written(index, width)
        elif (wrong := self.lacking(index, width, WRITTEN)) is not None:
            fault(wrong, "read of bytes that nobody has written")
        return index


def layout(variables, start, gap):
    """({name: address}, flags of the bytes from `start` on): variables with gaps between them."""
    addresses, top = {}, start
    for item in variables:
        top = -(-top // max(item.align, 16)) * max(item.align, 16)
        addresses[item.name] = top
        top += item.size + gap
    flags = np.zeros(-(-(top - start) // 128) * 128, np.uint8)
    for item in variables:
        first = addresses[item.name] - start
        flags[first : first + item.size] = ALLOCATED
    return addresses, flags


class BlockMemory(Space):
    """Shared memory of several blocks, or local memory of several threads: one part for each."""

    def __init__(self, parts, template):
        super().__init__(parts * template.size)
        self.stride = template.size
        self.flags[:] = np.tile(template, parts)
