"""From a tile to the output: scaled, moved, converted, and written around the caches."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import types

from numba_ce.cpu.compile.jit import inner, inner_overload, smaller
from numba_ce.cpu.rows.tile import with_lane
from numba_ce.cpu.simd.element import (
    KINDS,
    get,
    load_some,
    load_vector,
    put,
    store_element,
    store_some,
    store_vector,
    stream_line,
)
from numba_ce.cpu.simd.exp import times_pair
from numba_ce.cpu.simd.memory import load
from numba_ce.cpu.simd.vector import LANES, VECTOR_BYTES, fma

# The line that a worker has not finished, where it writes around the caches: 64 bytes, then its
# address (0: there is none), and from which byte up to which it is there. Written as two parts,
# through the caches, it would have to be read first, and what is stored afterwards would wait for
# it: with rows that do not begin at a line (those of NumPy do not) 64 classes took 230 ns a row
# instead of 110, 1000 classes 350 instead of 260.
LINE, BEGIN, END = VECTOR_BYTES, VECTOR_BYTES + 8, VECTOR_BYTES + 16
EDGE_BYTES = 2 * VECTOR_BYTES
NOWHERE = np.int64(0)
FIRST = np.int64(0)  # the literal 0 has a type of its own


@inner
def begin_line(edge):
    """There is no unfinished line yet."""
    put(edge + LINE, NOWHERE)


@inner
def end_line(edge):
    """Write what there is of the unfinished line."""
    line = get(edge + LINE, NOWHERE)
    begin, end = get(edge + BEGIN, NOWHERE), get(edge + END, NOWHERE)
    if line == 0:
        return
    if end - begin == VECTOR_BYTES:
        stream_line("float32", line, (load(edge, np.float32(0)),))
    else:  # the rest belongs to other rows, or to somebody else
        for i in range(begin, end, 2):
            put(line + i, get(edge + i, np.int16(0)))
    put(edge + LINE, NOWHERE)


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
        return lambda x, t, how: times_pair(x, how.value, how.low) * how.power
    if isinstance(t, types.NoneType):
        if single:
            return lambda x, t, how: fma(x * how.value, how.power, -how.common)
        return lambda x, t, how: fma(times_pair(x, how.value, how.low), how.power, -how.common)
    if single:
        return lambda x, t, how: fma(x * how.value, how.power, fma(t, -how.share, -how.common))

    def minus_weights(x, t, how):
        product = times_pair(x, how.value, how.low)
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
    lanes = LANES[KINDS[kind][1]]
    per_line = VECTOR_BYTES // out_size
    load_weights = weights_loader(weights_kind)

    @inner
    def map_some(source, weights, target, start, end, how, k, value):
        """Elements from `start` to `end`, through masks."""
        for j in range(start, end, lanes):
            count = smaller(lanes, end - j)
            y = mapped(
                load_some(kind, source + j * size, count), load_weights(weights, j, count), how
            )
            if 0 <= k - j < lanes:
                y = with_lane(y, k - j, value)
            store_some(out_kind, target + j * out_size, y, count)

    @inner
    def map_whole(source, weights, j, how):
        """A whole vector."""
        t = load_weights(weights, j, lanes)
        return mapped(load_vector(kind, source + j * size), t, how)

    @inner
    def map_line(source, weights, j, how):
        """The vectors of a whole line."""
        if per_line == lanes:
            return (map_whole(source, weights, j, how),)
        else:
            low = map_whole(source, weights, j, how)
            return low, map_whole(source, weights, j + lanes, how)

    @inner
    def patched(vectors, inside, value):
        """The same with `value` at an index."""
        if per_line == lanes:
            return (with_lane(vectors[0], inside, value),)
        else:
            low = with_lane(vectors[0], inside, value)
            return low, with_lane(vectors[1], inside - lanes, value)

    @inner
    def map_part(source, weights, target, start, end, how, k, value, edge):
        """Elements of one line, but not all of it; it is written when the others have come."""
        inside = (target + start * out_size) % VECTOR_BYTES
        line = target + start * out_size - inside
        if get(edge + LINE, NOWHERE) != line or get(edge + END, NOWHERE) != inside:
            end_line(edge)
            put(edge + LINE, line)
            put(edge + BEGIN, inside)
        here = edge + inside - start * out_size
        map_some(source, weights, here, start, end, how, k, value)
        put(edge + END, inside + (end - start) * out_size)
        if inside + (end - start) * out_size == VECTOR_BYTES:
            end_line(edge)

    @inner
    def map_to(source, weights, target, count, how, k, value, streaming, edge):
        """target[:count] = `mapped` source and weights, addresses; `value` at the index k.

        `streaming` writes whole lines around the caches (they are not read first: 8 bytes of
        traffic per float32 element instead of 12); `edge` is the worker's unfinished line. The
        class k is put into its vector: a second visit of a line that has just been streamed would
        wait for the memory.
        """
        # An array that is not even aligned to its elements has no whole lines
        if streaming and target % out_size == 0:
            start = smaller(count, (-target % VECTOR_BYTES) // out_size)
            if start > 0:
                map_part(source, weights, target, FIRST, start, how, k, value, edge)
            whole = start + (count - start) // per_line * per_line
            first, last = start, whole
            if start <= k < whole:
                last = start + (k - start) // per_line * per_line
            for _ in range(2):  # up to the line of k, and from there: no test in the loop
                for j in range(first, last, per_line):
                    line = map_line(source, weights, j, how)
                    stream_line(out_kind, target + j * out_size, line)
                if last < whole:
                    line = patched(map_line(source, weights, last, how), k - last, value)
                    stream_line(out_kind, target + last * out_size, line)
                first, last = last + per_line, whole
            if whole < count:
                map_part(source, weights, target, whole, count, how, k, value, edge)
        else:
            whole = count // lanes * lanes
            for j in range(0, whole, lanes):
                y = map_whole(source, weights, j, how)
                store_vector(out_kind, target + j * out_size, y)
            map_some(source, weights, target, whole, count, how, k, value)
            if 0 <= k < whole:
                store_element(out_kind, target + k * out_size, value, False)

    return map_to
