"""The one table of cases that drives the tests and the benchmarks.

A new loss option gets one row in ``OPTIONS``: it is then checked alone and together with every
other option, against finite differences, against mpmath, and between the backends.
"""

from __future__ import annotations

import itertools
import tempfile

import ml_dtypes
import numpy as np

from numba_ce.cpu.choose import ACROSS_CLASSES, FEW_CLASSES, IN_PLACE_CLASSES
from numba_ce.cpu.rows.tile import TILE

BACKENDS = ("numpy", "cpu")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = tuple(np.dtype(d) for d in (np.float16, BFLOAT16, np.float32, np.float64))
DTYPE_IDS = tuple(d.name for d in DTYPES)
TARGET_DTYPES = tuple(
    f"{order}{kind}" for kind in ("i2", "i4", "i8", "u2", "u4", "u8") for order in "<>"
) + ("i1", "u1")
REDUCTIONS = ("mean", "sum", "none")
TARGET_KINDS = ("index", "probabilities")

#: Vector width, tile borders and those between kernels: one below, at and above each of them.
CLASS_COUNTS = (
    *range(1, 141),
    *range(255, 274),
    *(TILE * k + d for k in (1, 2, 3) for d in (-17, -16, -15, -1, 0, 1, 15, 16, 17)),
)

#: Rows across lanes: of few classes, transposed in blocks, asked for class by class; along the
#: lanes: finished eight at a time, and in tiles.
ONE_OF_EACH_KERNEL = (
    IN_PLACE_CLASSES,
    FEW_CLASSES - 1,
    FEW_CLASSES + 16,
    ACROSS_CLASSES + 44,
    TILE + 6,
)


# ---------------------------------------------------------------- loss options

#: name -> value, or function (rng, row_shape, n_classes) -> value.
OPTIONS = {
    "class_weight": lambda rng, rows, n: rng.uniform(0.5, 2.0, n),
    "sample_weight": lambda rng, rows, n: rng.uniform(0.5, 2.0, rows),
    "label_smoothing": 0.1,
    "ignore_index": 1,
    "z_loss": 1e-2,
    "softcap": 3.0,
    "temperature": 0.7,
    "check_targets": False,
}
OPTION_SETS = (
    (),
    *((name,) for name in OPTIONS),
    *itertools.combinations(OPTIONS, 2),
    tuple(OPTIONS),
)
#: One at a time, none and all: for tests that multiply this by many other things.
FEW_OPTION_SETS = ((), *((name,) for name in OPTIONS), tuple(OPTIONS))


def option_id(names):
    return "+".join(names) or "plain"


def make_options(names, rng, row_shape, n_classes, kind="index"):
    """Keyword arguments for the options `names`."""
    made = {}
    for name in names:
        value = OPTIONS[name]
        made[name] = value(rng, row_shape, n_classes) if callable(value) else value
    if kind == "probabilities" and "ignore_index" in made:
        made["ignore_index"] = None  # the only other value that means something there
    return made


# ---------------------------------------------------------------- arrays


def make_logits(rng, shape, dtype=np.float64, scale=2.0):
    return (scale * rng.standard_normal(shape)).astype(dtype)


def make_targets(rng, row_shape, n_classes, kind="index", dtype=None):
    """Class indices of `row_shape`, or probabilities with a last axis that sums to about 1."""
    if kind == "index":
        return np.array(rng.integers(0, n_classes, row_shape), dtype or np.int64)
    t = rng.gamma(0.5, size=(*row_shape, n_classes)) + 1e-3
    return (t / t.sum(axis=-1, keepdims=True)).astype(dtype or np.float64)


# ---------------------------------------------------------------- memory layouts


def _strided(a):
    big = np.zeros(tuple(3 * n for n in a.shape), a.dtype)
    view = big[tuple(slice(1, None, 3) for _ in a.shape)]
    view[...] = a
    return view


def _reversed(a):
    flip = tuple(slice(None, None, -1) for _ in a.shape)
    return np.ascontiguousarray(a[flip])[flip]


def _misaligned(a):
    buffer = np.zeros(a.nbytes + 1, np.uint8)
    view = buffer[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _padded_rows(a):
    big = np.zeros((*a.shape[:-1], a.shape[-1] + 5), a.dtype)
    view = big[..., 2 : 2 + a.shape[-1]]
    view[...] = a
    return view


def _memmap(a):
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, dtype=a.dtype, mode="w+", shape=a.shape)
    mapped[...] = a
    return mapped


def _swapped(a):
    return a.astype(a.dtype.newbyteorder())


def _field(a):
    """A column of a packed record array: misaligned, and the stride no multiple of the item."""
    records = np.zeros(a.shape, np.dtype([("tag", np.uint8), ("value", a.dtype)]))
    records["value"] = a
    return records["value"]


class Series:
    """Something that is no array, but lends its memory to one, as those of pandas do."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


#: name -> function that returns the same values in another place in memory.
LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "strided": _strided,
    "reversed": _reversed,
    "padded": _padded_rows,
    "misaligned": _misaligned,
    "record_field": _field,
    "swapped": _swapped,
    "swapped_misaligned": lambda a: _misaligned(_swapped(a)),
    "read_only": _read_only,
    "memmap": _memmap,
}
