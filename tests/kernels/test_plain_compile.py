"""Kernels compiled by Numba's own pipeline: the bits of those that the fast path makes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: A program that prints the path, and a digest of results for each operation
PROGRAM = """
import hashlib
import numpy as np
import numba_ce as nc
from numba_ce.cpu.compile import jit

print("plain" if jit.WHY_PLAIN else "fast")
rng = np.random.default_rng(0)


def show(name, results):
    values = results if isinstance(results, tuple) else (results,)
    data = b"".join(np.asarray(value).tobytes() for value in values)
    print(name, hashlib.sha256(data).hexdigest())


for n_classes, dtype, names in {problems}:
    logits = rng.standard_normal((37, n_classes)).astype(dtype) * 5
    targets, weights = rng.integers(0, n_classes, 37), rng.random(37)
    options = dict(sample_weight=weights, reduction="none")
    for name, calls in dict(
        loss=lambda: nc.cross_entropy_and_grad(logits, targets, **options),
        softmax=lambda: nc.softmax(logits),
        logsumexp=lambda: nc.logsumexp(logits),
        stats=lambda: nc.row_stats(logits, targets),
        hess=lambda: nc.cross_entropy_grad_and_hess(logits, targets),
        record=lambda: nc.row_record(logits, targets, class_offset=0, n_classes=n_classes),
        options=lambda: nc.cross_entropy_and_grad(
            logits, abs(logits), label_smoothing=0.1, softcap=3.0, temperature=0.7, **options
        ),
    ).items():
        if name in names:
            show(f"{{name}} {{n_classes}} {{dtype}}", calls())
"""
#: Every operation, and some of them for more classes, where each has code of its own
EVERY = (
    (10, "float32", ("loss", "softmax", "logsumexp", "stats", "hess", "record", "options")),
    (300, "float32", ("loss", "softmax", "stats")),
)
ONE = ((10, "float64", ("loss",)),)
#: Faults of a Numba that has other private parts
NO_MODULE = "import sys; sys.modules['numba_ce.cpu.compile.fast'] = None\n"
NO_PART = "import numba.core.codegen; del numba.core.codegen.JITCodeLibrary\n"
NEWER = "import numba; numba.version_info = numba.version_info._replace(minor=69)\n"
OTHER_PART = NEWER + (
    "import numba.core.codegen; numba.core.codegen.JITCodeLibrary = type('Other', (), {})\n"
)


def outputs(program, **variables):
    command = [sys.executable, "-W", "error", "-c", program]
    environment = {**os.environ, **variables}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    path, *digests = run.stdout.splitlines()
    return path, digests


def test_every_operation_has_the_same_bits():
    program = PROGRAM.format(problems=EVERY)
    fast, plain = outputs(program), outputs(program, NUMBA_CE_PLAIN_COMPILE="1")
    assert (fast[0], plain[0]) == ("fast", "plain")
    assert fast[1] == plain[1]
    assert len(fast[1]) == len(set(fast[1])) == 10


@pytest.mark.parametrize(
    ("fault", "path"),
    [(NO_MODULE, "plain"), (NO_PART, "plain"), (OTHER_PART, "plain"), (NEWER, "fast")],
    ids=["no module", "a part missing", "another part in a newer version", "a newer version"],
)
def test_another_version_of_numba(fault, path):
    program = PROGRAM.format(problems=ONE)
    assert outputs(fault + program) == (path, outputs(program)[1])
