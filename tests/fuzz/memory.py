"""Where the arrays of a case lie: between forbidden pages, in any order, stride and alignment."""

from __future__ import annotations

import numpy as np
from guarded import Guarded, span

ARENA_BYTES = 1 << 21
MARGIN = 512  # bytes around an array that must keep their values too


class Placed:
    """An array that was placed, and the bytes around it as they were."""

    def __init__(self, view, memory, first, last):
        self.view = view
        self._bytes = memory[max(first - MARGIN, 0) : last + MARGIN]
        self.remember()

    def remember(self):
        self._before = self._bytes.copy()

    def is_unchanged(self):
        return np.array_equal(self._bytes, self._before)

    def only_elements_changed(self):
        """Whether nothing but elements of the array was written; the elements are lost."""
        self.view[...] = 0
        after = self._bytes.copy()
        self._bytes[...] = self._before
        self.view[...] = 0
        return np.array_equal(after, self._bytes)


class Arenas:
    """Guarded memory for the arrays of one case, used again for the next one."""

    def __init__(self, count=10):
        self._all = [Guarded(ARENA_BYTES) for _ in range(count)]
        for arena in self._all:
            arena.memory[...] = 0xA5
        self.placed = {}
        self._free = list(self._all)

    def clear(self):
        self.placed = {}
        self._free = list(self._all)

    def put(self, rng, values, name, shared=False, plain=False):
        """`values` in some layout; with `shared` elements may be one and the same.

        The array has the values afterwards, or, where elements are shared, some of them.
        """
        dtype = values.dtype
        if not plain and rng.random() < 0.25:
            dtype = dtype.newbyteorder()
        strides = None if plain else random_strides(rng, values.shape, dtype.itemsize, shared)
        slack = 0 if plain or rng.random() < 0.7 else int(rng.integers(1, 9))
        low, high = (0, values.nbytes)
        if strides is not None:
            low, high = span(values.shape, strides, dtype.itemsize)
        if strides is None or high - low + slack > ARENA_BYTES:
            strides = np.empty(values.shape, np.int8).strides
            strides = tuple(s * dtype.itemsize for s in strides)
        return self.put_with(values, name, strides, dtype, rng.random() < 0.6, slack)

    def put_with(self, values, name, strides, dtype, at_end, slack=0):
        """The same with a given layout."""
        arena = self._free.pop()
        view = arena.place(values.shape, strides, dtype, at_end, slack)
        with np.errstate(all="ignore"):
            view[...] = values
        low, high = span(values.shape, strides, dtype.itemsize)
        first = arena.memory.size - slack - (high - low) if at_end else slack
        self.placed[name] = Placed(view, arena.memory, first, first + high - low)
        return view


def random_strides(rng, shape, itemsize, shared):
    """Strides for any order of the axes, forwards or backwards, with gaps of any size.

    With `shared` an axis may have stride 0, or one that makes neighbours overlap.
    """
    ndim = len(shape)
    shared = shared and rng.random() < 0.2
    order = range(ndim - 1, -1, -1) if rng.random() < 0.5 else rng.permutation(ndim)
    strides, extent = [0] * ndim, itemsize
    backwards = rng.random() < 0.4
    gaps = rng.random() < 0.4
    for axis in order:
        n = shape[axis]
        stride = extent
        if gaps:
            stride = extent * int(rng.choice([1, 1, 2, 3]))
            # Elements that share some of their bytes would hold other values than were drawn
            odd = itemsize if shared else 1
            stride += int(rng.choice([0, 0, 0, odd, itemsize, 5 * itemsize]))
        if shared and rng.random() < 0.5:
            stride = int(rng.choice([0, itemsize]))
        if n == 1 and rng.random() < 0.2:  # of no importance to anybody
            stride = int(rng.choice([0, 1, 2**40, 2**61 + 1]))
            strides[axis] = stride
            continue
        extent = max(extent, stride * (n - 1) + extent)
        if backwards and rng.random() < 0.5:
            stride = -stride
        strides[axis] = stride
    return tuple(strides)
