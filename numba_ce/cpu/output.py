"""From a tile to the output: scaled, moved, converted, and written around the caches."""

from functools import lru_cache
from typing import NamedTuple

from numba import types

from numba_ce.cpu.element import (
    KINDS,
    load_some,
    load_vector,
    store_some,
    store_vector,
    stream_vector,
)
from numba_ce.cpu.jit import inner, inner_overload, smaller
from numba_ce.cpu.tile import real_type
from numba_ce.cpu.vector import LANES, VECTOR_BYTES, first_lanes, fma, select, splat


class Shift(NamedTuple):
    """(x - value) + offset"""

    value: float
    offset: float


class Factor(NamedTuple):
    """(value + low) * power, power a power of two: products with it are rounded once.

    `common` is subtracted from the product, or with weights t ``share * t + common``.
    """

    value: float
    low: float | None  # float64 only
    power: float
    share: float | None
    common: float | None


def mapped(x, t, how):
    """A vector of exponentials times a `Factor`, or one of logits moved by a `Shift`."""
    raise NotImplementedError


@inner_overload(mapped)
def _mapped(x, t, how):
    if how.instance_class is Shift:
        return lambda x, t, how: (x - how.value) + how.offset
    single = isinstance(how[1], types.NoneType)
    if isinstance(how[4], types.NoneType):
        if single:
            return lambda x, t, how: x * how.value * how.power
        return lambda x, t, how: fma(x, how.value, x * how.low) * how.power
    if isinstance(t, types.NoneType):
        if single:
            return lambda x, t, how: fma(x * how.value, how.power, -how.common)
        return lambda x, t, how: fma(fma(x, how.value, x * how.low), how.power, -how.common)
    if single:
        return lambda x, t, how: fma(x * how.value, how.power, fma(t, -how.share, -how.common))

    def minus_weights(x, t, how):
        product = fma(x, how.value, x * how.low)
        return fma(product, how.power, fma(t, -how.share, -how.common))

    return minus_weights


@lru_cache
def weights_loader(kind):
    """The function that loads some neighbouring weights, or None where there are none."""
    if kind is None:
        return inner(lambda weights, j, count: None)
    size, lanes = KINDS[kind][0] // 8, LANES[KINDS[kind][1]]

    @inner
    def load_weights(weights, j, count):
        at = weights + j * size
        return load_vector(kind, at) if count == lanes else load_some(kind, at, count)

    return load_weights


@lru_cache
def mapper(kind, weights_kind, out_kind):
    """The function that maps neighbouring elements, and weights unless None, to an output."""
    size, out_size = KINDS[kind][0] // 8, KINDS[out_kind][0] // 8
    lanes, like = LANES[KINDS[kind][1]], real_type(kind)(0)
    load_weights = weights_loader(weights_kind)

    @inner
    def patched(y, inside, value):
        """The vector with `value` in the lane `inside`, if it has that lane."""
        here = select(first_lanes(inside + 1, like), splat(value), y)
        return select(first_lanes(inside, like), y, here)

    @inner
    def map_some(source, weights, target, start, end, how, k, value):
        """Elements from `start` to `end`, through masks."""
        for j in range(start, end, lanes):
            count = smaller(lanes, end - j)
            y = mapped(
                load_some(kind, source + j * size, count), load_weights(weights, j, count), how
            )
            if 0 <= k - j < lanes:
                y = patched(y, k - j, value)
            store_some(out_kind, target + j * out_size, y, count)

    @inner
    def map_whole(source, weights, j, how):
        """A whole vector."""
        t = load_weights(weights, j, lanes)
        return mapped(load_vector(kind, source + j * size), t, how)

    @inner
    def map_to(source, weights, target, count, how, k, value, streaming):
        """target[:count] = `mapped` source and weights, addresses; `value` at the index k.

        `streaming` writes whole lines around the caches (they are not read first: 8 bytes of
        traffic per float32 element instead of 12); the partial lines at both ends are written
        through masks. The class k is put into its vector: a second visit of a line that has just
        been streamed would wait for the memory.
        """
        start = 0
        # An array that is not even aligned to its elements has no whole lines
        streaming = streaming and target % out_size == 0
        if streaming:
            start = smaller(count, (-target % VECTOR_BYTES) // out_size)
            map_some(source, weights, target, 0, start, how, k, value)
        whole = start + (count - start) // lanes * lanes
        first, last = start, whole
        if start <= k < whole:
            last = start + (k - start) // lanes * lanes
        for _ in range(2):  # up to the vector of k, and from there: no test in the loop
            if streaming:
                for j in range(first, last, lanes):
                    y = map_whole(source, weights, j, how)
                    stream_vector(out_kind, target + j * out_size, y)
            else:
                for j in range(first, last, lanes):
                    y = map_whole(source, weights, j, how)
                    store_vector(out_kind, target + j * out_size, y)
            if last < whole:
                y = patched(map_whole(source, weights, last, how), k - last, value)
                if streaming:
                    stream_vector(out_kind, target + last * out_size, y)
                else:
                    store_vector(out_kind, target + last * out_size, y)
            first, last = last + lanes, whole
        map_some(source, weights, target, whole, count, how, k, value)

    return map_to
