"""Neighbouring rows whose classes are far apart, as in images: copied, and written back.

A strip is some neighbouring rows of one class, in a worker's memory. The schedule across lanes
computes with strips as they are; for the other one sixteen classes at a time are transposed, so
that the classes of a row lie side by side.
"""

from functools import lru_cache

import numpy as np

from numba_ce.cpu.choose import rows_gathered
from numba_ce.cpu.compile.jit import inner, larger, smaller
from numba_ce.cpu.plan import locate
from numba_ce.cpu.simd.element import get, stream_line
from numba_ce.cpu.simd.memory import load, move_some, prefetch, store
from numba_ce.cpu.simd.transpose import make_transpose
from numba_ce.cpu.simd.vector import VECTOR_BYTES
from numba_ce.describe import OPERANDS

F32_0 = np.float32(0)
AXIS_BYTES = (1 + len(OPERANDS)) * 8
CLASSES = 16  # transposed at a time


def odd_lines(n_bytes):
    """So many bytes and more, an odd number of lines, lest columns share a set of the cache."""
    return ((n_bytes + VECTOR_BYTES - 1) // VECTOR_BYTES | 1) * VECTOR_BYTES


n_together, padded = inner(rows_gathered), inner(odd_lines)


@inner
def strip_pitch(n_classes, size):
    """Bytes of a strip: a line for what comes before some rows of one class, and those rows."""
    return padded(VECTOR_BYTES + n_together(n_classes) * size)


@lru_cache
def mover(size):
    """The function that copies neighbouring elements of so many bytes."""
    lanes = VECTOR_BYTES // size

    @inner
    def move(source, target, count):
        whole = count // lanes * lanes
        for j in range(0, whole * size, VECTOR_BYTES):
            store(target + j, load(source + j, F32_0))
        if whole < count:
            move_some(size, source + whole * size, target + whole * size, count - whole)

    return move


@lru_cache
def fetcher(size, across):
    """The function that copies rows of elements of so many bytes."""
    transpose, move = make_transpose(size), mover(size)

    @inner
    def move_in(far, strip, count):
        """Some rows of one class; it asks for as many of those that follow."""
        for j in range(0, count * size, VECTOR_BYTES):
            prefetch(far + count * size + j)
        move(far, strip, count)

    @inner
    def fetch(plan, first, last, operand, base, step, copies, strips):
        """The rows from `first` to `last`; base, step : of the operand"""
        n_classes, pitch = plan.n_classes, strip_pitch(plan.n_classes, size)
        length = get(plan.axes + (plan.n_axes - 1) * AXIS_BYTES, 0)
        row = first
        while row < last:  # in pieces that are neighbours
            count = smaller(last - row, length - row % length)
            far = base + locate(plan, row)[operand]
            if across:
                to = copies + VECTOR_BYTES + (row - first) * size
                for c in range(n_classes):
                    move_in(far + c * step, to + c * pitch, count)
            else:
                row_pitch = padded(n_classes * size)
                to = copies + (row - first) * row_pitch
                for start in range(0, n_classes, CLASSES):
                    n = smaller(CLASSES, n_classes - start)
                    for c in range(n):
                        move_in(far + (start + c) * step, strips + c * pitch, count)
                    transpose(strips, pitch, n, count, to + start * size, row_pitch)
            row += count

    return fetch


@lru_cache
def strip_putter(size):
    """The function that writes neighbouring rows of one class."""
    move = mover(size)

    @inner
    def put_strip(strip, line, far, count, fresh, last, streaming):
        """far[:count] = strip[:count]

        streaming : in whole lines, around the caches. What the rows before have left of a line is
        in `line` (unless `fresh`), and what these leave goes there (unless they are the last).
        """
        if not streaming or far % size != 0:
            move(strip, far, count)
            return
        n_bytes, inside, begin = count * size, far % VECTOR_BYTES, 0
        if inside > 0 and fresh:
            begin = smaller(VECTOR_BYTES - inside, n_bytes)
            move_some(size, strip, far, begin // size)
        elif inside > 0:
            store(strip - VECTOR_BYTES, load(line, F32_0))
            begin = -inside
        end = begin + (n_bytes - begin) // VECTOR_BYTES * VECTOR_BYTES
        for j in range(begin, end, VECTOR_BYTES):
            stream_line("float32", far + j, (load(strip + j, F32_0),))
        if last:
            move_some(size, strip + end, far + end, (n_bytes - end) // size)
        else:
            store(line, load(strip + n_bytes - VECTOR_BYTES, F32_0))

    return put_strip


@lru_cache
def deliverer(size, across):
    """The function that writes the copies of rows to where the rows are."""
    transpose, put_strip = make_transpose(size), strip_putter(size)

    @inner
    def deliver(plan, first, last, block, operand, base, step, copies, strips, lines):
        """The rows from `first` to `last` of the block; base, step : of the operand"""
        n_classes, pitch = plan.n_classes, strip_pitch(plan.n_classes, size)
        length = get(plan.axes + (plan.n_axes - 1) * AXIS_BYTES, 0)
        strips += VECTOR_BYTES
        row = first
        while row < last:
            begin = row - row % length
            end = smaller(block[1], begin + length)
            begin = larger(block[0], begin)
            following = smaller(last, end)
            count = following - row
            far = base + locate(plan, row)[operand]
            # Less than a line is not kept: a part of it may belong to other rows
            fresh = (row - begin) * size < VECTOR_BYTES
            is_last = following == end or (following - begin) * size < VECTOR_BYTES
            if across:
                of = copies + VECTOR_BYTES + (row - first) * size
                for c in range(n_classes):
                    line, to = lines + c * VECTOR_BYTES, far + c * step
                    put_strip(of + c * pitch, line, to, count, fresh, is_last, plan.streaming)
            else:
                row_pitch = padded(n_classes * size)
                of = copies + (row - first) * row_pitch
                for start in range(0, n_classes, CLASSES):
                    n = smaller(CLASSES, n_classes - start)
                    transpose(of + start * size, row_pitch, count, n, strips, pitch)
                    for c in range(n):
                        line = lines + (start + c) * VECTOR_BYTES
                        to = far + (start + c) * step
                        put_strip(
                            strips + c * pitch, line, to, count, fresh, is_last, plan.streaming
                        )
            row = following

    return deliver
