"""Results compared bit by bit: what "the same bits" means in every test.

Numbers have the same bits, -0.0 is not 0.0, and a NaN is a NaN: its sign and payload depend on the
order of the operands of an addition, which compilers may exchange, and nobody reads them.
"""

from __future__ import annotations

import numpy as np


def bits_of(result):
    """The bytes of an array, in native byte order and with one NaN for all; of a tuple, a tuple."""
    if isinstance(result, tuple):
        return tuple(map(bits_of, result))
    array = np.asarray(result)
    array = array.astype(array.dtype.newbyteorder("="))
    spoilt = array != array
    if spoilt.any():
        array[spoilt] = np.nan
    return array.tobytes()


def assert_same_bits(actual, expected):
    """The same `bits_of`; dtypes are equal too, but for their byte order."""
    if isinstance(actual, tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same_bits(one, other)
        return
    actual, expected = (np.asarray(a) for a in (actual, expected))
    assert actual.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
    assert actual.shape == expected.shape
    differ = (actual != expected) & ((actual == actual) | (expected == expected))
    assert bits_of(actual) == bits_of(expected), f"{differ.sum()} of {differ.size} differ"
