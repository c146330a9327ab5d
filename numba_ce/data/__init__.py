"""Handwritten digits: see LICENSE beside this file for their source."""

from __future__ import annotations

import gzip
from importlib import resources

import numpy as np

from numba_ce._validate import Array


def load_digits() -> tuple[Array, Array]:
    """Images (1797, 64) as float32 between 0 and 1, and the digits (1797,) they show."""
    packed = resources.files(__package__).joinpath("digits.csv.gz").read_bytes()
    table = np.array([line.split(b",") for line in gzip.decompress(packed).split()], np.int64)
    return (table[:, :-1] / 16.0).astype(np.float32), table[:, -1]
