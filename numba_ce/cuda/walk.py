"""How a thread of the general kernel walks along its row: which classes it sees, and as what.

A step takes a chunk of classes, every `sharing`-th from where the thread stands, so that threads
side by side read side by side; a wide one 16 bytes of neighbours. Of a row that does not start on
16 bytes the first wide chunk begins before it. The address of a row is in bytes; of a staged row it
is its byte in the run (see `stage`).
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from numba_ce.cuda.intrinsics import (
    KINDS,
    inner,
    make_loader,
    make_quads,
    make_storer,
    make_unpacker,
    maximum_f32,
    packer,
)


class Access(NamedTuple):
    """How the logits are read; what a general kernel is compiled for."""

    kind: str  # dtype of the logits
    staged: bool = False  # in shared memory meanwhile
    softcap: bool = False
    wide: bool = False  # 16-bit classes side by side, by 128 bits where they lie (from sm_80 on)


def chunk_size(access):
    """Classes that a thread sees at a time: as many loads are under way; 16 bytes or less."""
    return KINDS[access.kind][1] if not access.staged else min(4, KINDS[access.kind][1])


# In the type that a kind is computed in
MINUS_INF = {
    kind: (np.float64 if size == 8 else np.float32)(-np.inf) for kind, (size, *_) in KINDS.items()
}


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
def make_inside(access):
    """The function that tells whether a row has a class j: a wide chunk may begin before it."""
    wide = access.wide

    @inner
    def inside(j, n_classes):
        return j < n_classes and (j >= 0 or not wide)

    return inside


@cache
def make_chunk_loader(access):
    """The function that fills a local array with a chunk; -inf where the row has no class."""
    (kind, staged, _, wide), chunk = access, chunk_size(access)
    load, inside, minus_inf = make_loader(kind, staged), make_inside(access), MINUS_INF[kind]
    (load_quad, _), unpack = make_quads(kind), make_unpacker(kind)

    @inner
    def load_chunk(row, start, n_classes, values):
        """values : (CHUNK,)"""
        address, stride = row.source + start * row.step, row.apart * row.step
        full = not staged and start + (chunk - 1) * row.apart < n_classes
        if full and (start >= 0 or not wide):
            if wide:
                quad = load_quad(address)
                for i in range(4):
                    values[2 * i], values[2 * i + 1] = unpack(quad[i], np.uint32(0))
            else:
                for i in range(chunk):
                    values[i] = load(address + i * stride)
            return
        for i in range(chunk):
            here = inside(start + i * row.apart, n_classes)
            values[i] = load(address + i * stride) if here else minus_inf

    return load_chunk


def staged_out(access, out_kind):
    """Whether an output of this kind leaves through the stage, in the place of its logits."""
    return access.staged and out_kind == access.kind


@cache
def make_chunk_storer(access, out_kind, through):
    """The function that writes a chunk of float64 values, rounded to the kind of the output.

    A 16-bit result is the float32 result rounded once more. through : see `staged_out`
    """
    chunk, real = chunk_size(access), np.float64 if out_kind == "float64" else np.float32
    store, inside = make_storer(out_kind, through), make_inside(access)
    wide = access.wide and out_kind == access.kind
    (_, store_quad), pack = make_quads(out_kind), packer.get(out_kind)

    @inner
    def packed(values, i):
        return pack(real(values[i]), real(values[i + 1]))

    @inner
    def store_chunk(target, step, row, start, n_classes, values):
        address, stride = target + start * step, row.apart * step
        if wide and step == 2 and address % 16 == 0 and start >= 0 and start + chunk <= n_classes:
            store_quad(
                address, packed(values, 0), packed(values, 2), packed(values, 4), packed(values, 6)
            )
            return
        for i in range(chunk):
            if inside(start + i * row.apart, n_classes):
                store(address + i * stride, real(values[i]))

    return store_chunk
