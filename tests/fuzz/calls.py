"""What a case consists of: a function, its arguments, and the kernels that it needs.

A `Call` has the arguments in their place in memory, and the same numbers as plain float64 arrays,
from which the judge gets what should come out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from cases import DTYPES

import numba_ce as nc

F16, BF16, F32, F64 = DTYPES


class Flavour(NamedTuple):
    """What kernels are compiled for; cases draw from few of them, since each takes a second."""

    dtype: Any
    probabilities: Any = None  # their dtype; None: class indices
    out: Any = None  # dtype of the gradient; None: that of the logits
    hess: Any = None
    smoothing: bool = False
    tempered: bool = False
    softcap: bool = False


def flavours():
    """Forty-eight, the first four with something of everything."""
    first = [
        Flavour(F32),
        Flavour(F16, None, F32, F16, True, True, True),
        Flavour(BF16, F16, None, F32, True, False, True),
        Flavour(F64, F32, None, None, False, True, False),
    ]
    rng = np.random.default_rng(1)
    for i in range(44):
        dtype = DTYPES[(3 * i + i // 4) % 4]
        outs = [dtype, np.dtype(np.float32)] if dtype.itemsize == 2 else [dtype]
        kind = None if i % 5 < 3 else DTYPES[rng.integers(4)]
        drawn = [outs[rng.integers(len(outs))] for _ in range(2)]
        first.append(Flavour(dtype, kind, *drawn, *(bool(b) for b in rng.random(3) < 0.4)))
    return first


@dataclass
class Call:
    """A function and its arguments."""

    function: str
    arguments: dict[str, Any]
    plain: dict[str, Any]  # the same for the reference, classes last: float64, contiguous
    axis: int = -1  # counted from the front
    dtype: Any = F64  # of the logits
    part: tuple[int, int] = (0, 0)  # records: the classes of the shard
    allowed: list[tuple[Any, str]] = field(default_factory=list)  # exceptions, pattern
    unchecked: bool = False  # weights of infinities and the like: anything may come out

    def __call__(self):
        return getattr(nc, self.function)(**self.arguments)

    def describe(self):
        lines = [f"numba_ce.{self.function}("]
        for name, value in self.arguments.items():
            lines.append(f"    {name}={_described(value)},")
        return "\n".join([*lines, ")"])


def _described(value):
    if isinstance(value, np.ndarray) and value.ndim:
        kind = "" if type(value) is np.ndarray else f"{type(value).__name__} "
        access = "" if value.flags.writeable else " read-only"
        return (
            f"<{kind}{value.dtype.name}{value.dtype.byteorder}{value.shape} strides {value.strides}"
            f" at ...{value.ctypes.data % 4096}{access}>"
        )
    text = repr(value)
    return text if len(text) < 200 else text[:200] + "..."


class Lender:
    """No array, but NumPy makes one of it that shares its memory, as of a pandas Series."""

    def __init__(self, array):
        self._array = array
        self.dtype = array.dtype

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._array, dtype)


def may_be_written(logits):
    """Whether an argument can be its own output: an array without shared elements."""
    if not isinstance(logits, np.ndarray) or not logits.flags.writeable:
        return False
    end = logits.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(logits.strides, logits.shape, strict=True)):
        if n > 1:
            if stride < end:
                return False
            end += stride * (n - 1)
    return True
