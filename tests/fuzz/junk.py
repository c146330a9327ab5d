"""Values that no argument, or some argument only, can have."""

from __future__ import annotations

import datetime
from decimal import Decimal

import numpy as np

INF, NAN = np.inf, np.nan
BIG = 10**400


class Odd:
    """A callable, and nothing that a number or an array could be made of."""

    def __call__(self):
        return 1

    def __repr__(self):
        return "<odd>"


#: Anything at all, for any argument: the outcome must be the same for both backends, and an error
#: must name the argument.
JUNK = (
    None,
    True,
    0,
    -1,
    2,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    BIG,
    -BIG,
    0.0,
    -0.0,
    0.5,
    NAN,
    INF,
    1e-320,
    1e300,
    2 + 1j,
    Decimal("0.5"),
    "",
    "mean",
    "none",
    "0.5",
    b"none",
    [],
    [[]],
    [[], []],
    [0],
    [0.5],
    [None],
    [BIG],
    [[0.5, 1], [1, 2]],
    ["1", "2"],
    (),
    (1, 2),
    {},
    {1: 2},
    set(),
    range(3),
    slice(None),
    ...,
    int,
    len,
    Odd(),
    datetime.date(2020, 1, 1),
    np.float16(0.5),
    np.float32(NAN),
    np.longdouble(0.5),
    np.int8(1),
    np.uint64(2**64 - 1),
    np.bool_(False),
    np.str_("mean"),
    np.array(1),
    np.array(0.5),
    np.array([]),
    np.zeros(0, np.int64),
    np.zeros((0, 3)),
    np.zeros((2, 0), np.float32),
    np.zeros((2, 2), np.int8),
    np.ones((2, 2), np.float16),
    np.zeros((1,) * 64),
    np.zeros(3, ">f4"),
    np.zeros(2, "M8[s]"),
    np.zeros(2, [("a", "f4")]),
    np.array([None, 1.0], object),
    np.array(["a", "b"]),
    np.ma.masked,
    np.ma.masked_array([1.0, 2.0], [True, False]),
    np.matrix([[1.0, 2.0]]),
    np.dtype("f4"),
    memoryview(b"\0" * 8),
    bytearray(8),
)
