"""Rows in shared memory: read once and written once by 128 bits, in between as often as needed.

A block brings in the rows that it is about to do, neighbours in memory, as one run of 16 bytes each
(and up to twice 15 bytes at its ends, one element at a time); its threads then walk along them
wherever a row begins. A gradient takes the place of its logits and leaves the same way.

Where a row begins is counted in bytes of the run. A word is left out after every 128 bytes (for
float64 two), so that threads that each read a row of their own read from different banks: without
it 16 of them would wait for each other at 16 classes.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from numba_ce.cuda.intrinsics import KINDS, inner, make_loader, make_quads, make_storer, stage_gap
from numba_ce.cuda.quads import add, made, over
from numba_ce.cuda.thread_layout import THREADS

SLOTS = 4  # 16 bytes that each thread has under way
ROW_BYTES = 40 << 10  # of a block: with what else a block needs, below the 48 KB of any device


class Run(NamedTuple):
    """The rows of a block in global memory."""

    skew: int  # bytes between the 16-byte boundary before it and the first element
    head: int  # elements before the first full 16 bytes
    n_quads: int  # full 16 bytes
    edge: int  # the element outside these that the thread takes, or one beyond the end


def fits(kind, n_classes, n_rows=1):
    """Whether so many rows can be staged at once."""
    return n_rows * n_classes * KINDS[kind][0] <= ROW_BYTES


def stage_bytes(kind, n_classes, n_rows):
    """Shared memory for so many rows, with any skew."""
    nbytes = n_rows * n_classes * KINDS[kind][0] + 16
    return nbytes + (nbytes // 128 + 1) * stage_gap(KINDS[kind][0])


@cache
def make_stager(kind):
    """The functions that bring the rows of a block into the stage, and their output out of it."""
    size, lanes, _ = KINDS[kind]
    load, store = make_loader(kind), make_storer(kind)
    read, write = make_loader(kind, True), make_storer(kind, True)
    (load_quad, store_quad), (read_quad, write_quad) = make_quads("float16"), make_quads(kind, True)
    step = THREADS

    @inner
    def load_slot(slot, address, left):
        if slot * step < left:
            return load_quad(address + slot * step * 16)
        return np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)

    @inner
    def keep_slot(quad, slot, byte, left):
        if slot * step < left:
            write_quad(byte + slot * step * 16, quad[0], quad[1], quad[2], quad[3])
        return 0

    load_slots, keep_slots = made(SLOTS, load_slot), over(SLOTS, keep_slot, add)

    @inner
    def find(address, length, thread):
        head = min((-address % 16) // size, length)
        n_quads = (length - head) // lanes
        edge = thread if thread < head else thread + n_quads * lanes
        return Run(address % 16, head, n_quads, edge)

    @inner
    def bring(source, length, thread):
        """source : address of the first element; length : elements of all rows of the block"""
        run = find(source, length, thread)
        slot = thread
        address, byte = source + run.head * size, run.skew + run.head * size
        while slot < run.n_quads:
            left = run.n_quads - slot
            quads = load_slots(0, address + slot * 16, left)
            keep_slots(quads, 0, byte + slot * 16, left)
            slot += SLOTS * step
        if run.edge < length:
            write(run.skew + run.edge * size, load(source + run.edge * size))
        cuda.syncthreads()  # the rows are there

    @inner
    def leave(target, length, thread):
        """target : address of the first element of the output, aligned as the logits are"""
        cuda.syncthreads()  # every thread has written its part
        run = find(target, length, thread)
        slot = thread
        address, byte = target + run.head * size, run.skew + run.head * size
        while slot < run.n_quads:
            quad = read_quad(byte + slot * 16)
            store_quad(address + slot * 16, quad[0], quad[1], quad[2], quad[3])
            slot += step
        if run.edge < length:
            store(target + run.edge * size, read(run.skew + run.edge * size))

    return bring, leave
