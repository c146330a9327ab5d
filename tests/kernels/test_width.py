"""Kernels compiled for shorter vectors than the processor has give the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Results of few classes in each layout that is read or written in its own way, as one digest each.
RESULTS = """
import hashlib, sys
sys.path.insert(0, "tests")
import numpy as np
from cases import BFLOAT16
import numba_ce as nc

def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()

rng = np.random.default_rng(5)
few, more = (3, 10), (1, 2, 3, 5, 6, 7, 8, 9, 16, 17, 31)
for dtype, counts in ((np.dtype("f4"), more), (np.dtype("f8"), few), (BFLOAT16, few)):
    for n_classes in counts:
        values = (3 * rng.standard_normal((37, n_classes))).astype(dtype)
        targets = rng.integers(0, n_classes, 37)
        targets[::5] = -100
        packed = values.copy(), np.empty_like(values)
        gaps = np.full((2, 37, n_classes + 1), 7, dtype)
        far = np.full((2, n_classes, 37), 7, dtype).transpose(0, 2, 1)
        for logits, out in (packed, gaps[:, :, :-1], far):
            logits[...] = values
            loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", out=out)
            print(dtype, n_classes, digest(loss, grad))
            print(digest(nc.log_softmax(logits, out=out)))
        assert (gaps[:, :, -1].astype("f4") == 7).all(), (dtype, n_classes)
        if dtype.itemsize > 2:
            print(digest(*nc.row_stats(values, targets)))
"""


def run(code, **environment):
    environment = os.environ | {"NUMBA_CE_BACKEND": "cpu"} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def results():
    found = run(RESULTS)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("bits", ["256", "128"])
def test_the_same_bits_at_every_width(results, bits):
    """Only the registers differ in which lanes are worked on, not what is done in a lane."""
    found = run(RESULTS, NUMBA_CE_VECTOR_BITS=bits)
    assert found.returncode == 0, found.stderr
    assert found.stdout == results


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("NUMBA_CE_VECTOR_BITS", "64", "512, 256, 128"),
        ("NUMBA_CE_VECTOR_BITS", "256.0", "512, 256, 128"),
        ("NUMBA_CE_PLAIN_COMPILE", "yes", "0, 1"),
    ],
)
def test_an_unknown_value_is_refused_at_each_call_not_at_import(name, value, known):
    code = """
import numpy as np, numba_ce
for _ in range(2):
    try:
        numba_ce.cross_entropy(np.zeros((2, 3)), np.zeros(2, int))
    except ValueError as error:
        print(error)
"""
    found = run(code, **{name: value})
    message = f"environment variable {name}: {value!r} is not one of {known}\n"
    assert (found.returncode, found.stdout) == (0, 2 * message), found.stderr


def test_the_width_of_a_named_processor():
    """LLVM knows the registers of a processor; their names need not be among its features."""
    for name, bits in {"nehalem": 128, "haswell": 256, "skylake-avx512": 512}.items():
        found = run(
            "from numba_ce.cpu.simd.width import VECTOR_BITS as bits; print(bits)",
            NUMBA_CPU_NAME=name,
            NUMBA_CPU_FEATURES="",
            NUMBA_CE_VECTOR_BITS="",
        )
        assert found.stdout == f"{bits}\n", found.stderr
