"""Handwritten digits and plays of Shakespeare: see LICENSE beside this file for their sources."""

from __future__ import annotations

import gzip
import re
from importlib import resources

import numpy as np

from numba_ce._validate import Array


def _unpacked(name: str) -> bytes:
    return gzip.decompress(resources.files(__package__).joinpath(name).read_bytes())


def load_digits() -> tuple[Array, Array]:
    """Images (1797, 64) as float32 between 0 and 1, and the digits (1797,) they show."""
    table = np.array([line.split(b",") for line in _unpacked("digits.csv.gz").split()], np.int64)
    return (table[:, :-1] / 16.0).astype(np.float32), table[:, -1]


def load_words() -> tuple[Array, Array]:
    """The 8815 words and marks of the text in order of the alphabet, and the text in their indices.

    Capitals count as small letters.
    """
    text = _unpacked("shakespeare.txt.gz").decode("ascii").lower()
    return np.unique(re.findall(r"[a-z]+(?:'[a-z]+)*|[.,;:?!-]", text), return_inverse=True)
