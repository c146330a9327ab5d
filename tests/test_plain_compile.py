"""Kernels compiled by Numba's own pipeline: the bits of those that the fast path makes."""

import hashlib
import os
import subprocess
import sys

import pytest

RESULTS = """
import hashlib
import numpy as np
import numba_ce
from numba_ce.cpu.compile import jit

rng = np.random.default_rng(0)
logits = rng.standard_normal((37, 10), dtype=np.float32)
targets = rng.integers(0, 10, 37)
results = numba_ce.cross_entropy_and_grad(logits, targets, reduction="none")
digest = hashlib.sha256(b"".join(np.asarray(result).tobytes() for result in results)).hexdigest()
"""
BROKEN = "import numba.core.compiler\ndel numba.core.compiler._LowerResult\n"


@pytest.mark.parametrize(
    ("prepare", "variables"),
    [("", {"NUMBA_CE_PLAIN_COMPILE": "1"}), (BROKEN, {})],
    ids=["asked for", "private part missing"],
)
def test_plain_path_has_the_same_bits(prepare, variables):
    code = prepare + RESULTS + "print(jit.PATH, digest)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert run.returncode == 0, run.stderr
    here: dict = {"hashlib": hashlib}
    exec(RESULTS, here)
    assert here["jit"].PATH == "fast"
    assert run.stdout.split() == ["plain", here["digest"]]
