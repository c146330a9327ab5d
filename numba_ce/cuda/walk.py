"""How a thread of the general kernel walks along its row: which classes it sees, and as what.

A step takes CHUNK classes: neighbours read by 128-bit loads where the row is contiguous, otherwise
every n-th class, so that the threads side by side read side by side. A row that does not start on
16 bytes is seen as if it did: its first and last chunk reach over its ends, and what is there of
them is read one by one.

The address of a row is in bytes; of a staged row it is its byte in the run (see `stage`).
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from numba_ce.cuda.intrinsics import (
    KINDS,
    inner,
    make_element_loader,
    make_element_storer,
    make_quad_loader,
    make_quad_storer,
    make_stage_loader,
    make_stage_storer,
    make_unpacker,
    maximum_f32,
    packer,
)
from numba_ce.cuda.thread_layout import STAGED


class Access(NamedTuple):
    """How the logits are read; what a general kernel is compiled for."""

    kind: str  # dtype of the logits
    vector: bool = False  # contiguous rows, by 128 bits
    layout: str = "row"  # see `thread_layout`
    softcap: bool = False

    @property
    def staged(self):
        """Whether the rows are in shared memory."""
        return self.layout in STAGED


class Walk(NamedTuple):
    """A thread's way along a row: chunks start at start, start + advance, ..."""

    start: int
    advance: int
    step: int  # from class to class of a chunk


def chunk_size(access):
    """Classes that a thread sees at a time: 16 bytes, or four loads (two of float64: registers)."""
    if access.kind == "float64":
        return 2
    return KINDS[access.kind][1] if access.vector else 4


def minus_infinity(kind):
    """-inf in the type that the kind is computed in."""
    return np.float64(-np.inf) if kind == "float64" else np.float32(-np.inf)


@inner
def inside(walk, start, i):
    """The class of element i of a chunk."""
    return start + i * walk.step


@cache
def make_walker(access):
    """The function that begins a thread's `Walk` along a row."""
    size = KINDS[access.kind][0]
    chunk = chunk_size(access)
    vector = access.vector

    @inner
    def begin(source, row):
        """source : address of the row; row : see `kernel.Row`"""
        if vector:
            start = row.place * chunk - (source % 16) // size
            return Walk(start, row.sharing * chunk, np.int64(1))
        return Walk(row.place, row.sharing * chunk, row.sharing)

    return begin


@cache
def make_logit_loader(access):
    """The function (source, step, j) that reads the logit of class j."""
    kind, staged = access.kind, access.staged
    size = KINDS[kind][0]
    load, read = make_element_loader(kind), make_stage_loader(kind)

    @inner
    def load_logit(source, step, j):
        if staged:
            return read(source + j * size)
        return load(source + j * step)

    return load_logit


@cache
def make_maximum(kind):
    """The larger of two numbers; NaN is ignored."""
    if kind != "float64":
        return maximum_f32

    @inner
    def maximum_f64(a, b):
        return b if b > a else a

    return maximum_f64


@cache
def make_capper(kind):
    """The functions (cap, slope): softcap tanh(z / softcap), and its derivative."""
    real = np.float64 if kind == "float64" else np.float32

    @inner
    def cap(z, softcap):
        if math.isinf(z):
            return z
        return real(softcap * np.float64(math.tanh(real(np.float64(z) / softcap))))

    @inner
    def slope(z, softcap):
        if math.isinf(z):
            return 1.0
        a = math.exp(-2.0 * abs(np.float64(z)) / softcap)
        return 4.0 * a / ((1.0 + a) * (1.0 + a))

    return cap, slope


@cache
def make_chunk_loader(access):
    """The function that fills a local array with a chunk; -inf where the row has no class."""
    kind, chunk = access.kind, chunk_size(access)
    sixteen_bits = KINDS[kind][0] == 2
    load = make_logit_loader(access)
    load_quad = make_quad_loader(kind)
    unpack = make_unpacker(kind) if sixteen_bits else None
    minus_inf = minus_infinity(kind)
    vector = access.vector and kind != "float64"

    @inner
    def load_chunk(source, step, walk, start, n_classes, values):
        """values : (CHUNK,)"""
        if vector:
            if start >= 0 and start + chunk <= n_classes:
                quad = load_quad(source + start * step)
                if sixteen_bits:
                    for i in range(4):
                        pair = unpack(quad[i], np.uint32(0))
                        values[2 * i] = pair[0]
                        values[2 * i + 1] = pair[1]
                else:
                    for i in range(4):
                        values[i] = quad[i]
                return
        for i in range(chunk):
            j = inside(walk, start, i)
            here = j < n_classes and (j >= 0 or not access.vector)
            values[i] = load(source, step, j) if here else minus_inf

    return load_chunk


def staged_out(access, out_kind):
    """Whether an output of this kind leaves through the stage, in the place of its logits."""
    return access.staged and out_kind == access.kind


@cache
def make_chunk_storer(access, out_kind, aside=False):
    """The function that writes a chunk of float64 values, rounded to the kind of the output.

    A 16-bit result is the float32 result rounded once more. aside : not in the place of the logits,
    also where they are staged
    """
    chunk = chunk_size(access)
    size, lanes, real = KINDS[out_kind]
    real = np.float64 if out_kind == "float64" else np.float32
    sixteen_bits = size == 2
    store_element = make_element_storer(out_kind)
    store_quad = make_quad_storer(out_kind)
    pack = packer[out_kind] if sixteen_bits else None
    write = make_stage_storer(out_kind)
    staged = staged_out(access, out_kind) and not aside
    vector = access.vector and out_kind != "float64" and chunk % lanes == 0
    packable = vector and not sixteen_bits

    @inner
    def store_chunk(target, step, walk, start, n_classes, values):
        if vector:
            address = target + start * size
            if step == size and address % 16 == 0 and start >= 0 and start + chunk <= n_classes:
                for i in range(0, chunk, lanes):
                    if packable:
                        store_quad(
                            address + i * size,
                            real(values[i]),
                            real(values[i + 1]),
                            real(values[i + 2]),
                            real(values[i + 3]),
                        )
                    else:
                        store_quad(
                            address + i * size,
                            pack(real(values[i]), real(values[i + 1])),
                            pack(real(values[i + 2]), real(values[i + 3])),
                            pack(real(values[i + 4]), real(values[i + 5])),
                            pack(real(values[i + 6]), real(values[i + 7])),
                        )
                return
        for i in range(chunk):
            j = inside(walk, start, i)
            if j < n_classes and (j >= 0 or not access.vector):
                if staged:
                    write(target + j * size, real(values[i]))
                else:
                    store_element(target + j * step, real(values[i]))

    return store_chunk
