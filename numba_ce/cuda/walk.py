"""How a thread of the general kernel walks along its row: which classes it sees, and as what.

A step takes a chunk of classes, every `sharing`-th from where the thread stands, so that threads
side by side read side by side. The address of a row is in bytes; of a staged row it is its byte in
the run (see `stage`).
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from numba_ce.cuda.intrinsics import (
    KINDS,
    inner,
    make_loader,
    make_storer,
    maximum_f32,
)


class Access(NamedTuple):
    """How the logits are read; what a general kernel is compiled for."""

    kind: str  # dtype of the logits
    staged: bool = False  # in shared memory meanwhile
    softcap: bool = False


def chunk_size(access):
    """Classes that a thread sees at a time: as many loads are under way; 16 bytes or less."""
    return KINDS[access.kind][1] if not access.staged else min(4, KINDS[access.kind][1])


def minus_infinity(kind):
    """-inf in the type that the kind is computed in."""
    return np.float64(-np.inf) if kind == "float64" else np.float32(-np.inf)


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
    chunk, minus_inf = chunk_size(access), minus_infinity(access.kind)
    load = make_loader(access.kind, access.staged)

    @inner
    def load_chunk(row, start, n_classes, values):
        """values : (CHUNK,)"""
        sharing = row.team.sharing
        address, stride = row.source + start * row.step, sharing * row.step
        if start + (chunk - 1) * sharing < n_classes:
            for i in range(chunk):
                values[i] = load(address + i * stride)
            return
        for i in range(chunk):
            inside = start + i * sharing < n_classes
            values[i] = load(address + i * stride) if inside else minus_inf

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
    store = make_storer(out_kind, through)

    @inner
    def store_chunk(target, step, row, start, n_classes, values):
        sharing = row.team.sharing
        address, stride = target + start * step, sharing * step
        for i in range(chunk):
            if start + i * sharing < n_classes:
                store(address + i * stride, real(values[i]))

    return store_chunk
