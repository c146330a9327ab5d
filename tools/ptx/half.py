"""float16 and bfloat16, stored as integers of 16 bits, two of them in 32."""

from __future__ import annotations

import numpy as np

from . import floats
from .apply import F32

HALVES = {"f16", "bf16", "f16x2", "bf16x2"}


def half_to_float(bits, kind, wide=F32):
    if kind == "f16":
        return bits.view(np.float16).astype(wide)
    value = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return value if wide == F32 else value.astype(wide)


def float_to_half(value, kind):
    """Nearest, ties to even, NaN canonical; from float32 or float64, with one rounding."""
    if kind == "bf16":
        name = "bfloat16" if value.dtype == F32 else "bfloat16_from_double"
        return floats.ufunc(name, value.dtype)(value)
    bits = value.astype(np.float16).view(np.uint16)
    nan = value != value
    return np.where(nan, np.uint16(0x7FFF), bits) if nan.any() else bits


def on_halves(function, kind, wide):
    """A function of float arrays -> one of packed or single half-precision bits."""
    if not kind.endswith("x2"):
        return lambda *bits: float_to_half(
            function(*(half_to_float(b, kind, wide) for b in bits)), kind
        )
    one = on_halves(function, kind[:-2], wide)

    def both(*words):
        low = one(*(w.astype(np.uint16) for w in words))
        high = one(*((w >> np.uint32(16)).astype(np.uint16) for w in words))
        return low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)

    return both
