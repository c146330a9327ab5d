"""``cache=True`` of the caller: hits in the next process, and nothing stale after an upgrade."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from numba import njit

import numba_ce
from numba_ce.integrations.numba import glue

ROOT = Path(numba_ce.__file__).parent.parent
PROGRAM = """
import json
import numpy as np
import numba_ce
from numba import carray, cfunc, guvectorize, njit, prange, types


@njit(cache=True)
def of_rows(z, y):
    return numba_ce.cross_entropy(z, y, temperature=2.0, z_loss=0.25)


@njit(cache=True)
def calls_another(z, y):
    return of_rows(z, y)


@njit(cache=True, parallel=True)
def in_parallel(z, y):
    losses = np.empty(len(z))
    for i in prange(len(z)):
        losses[i] = numba_ce.cross_entropy(z[i], y[i], temperature=2.0, z_loss=0.25)
    return losses.mean()


@cfunc(types.float64(types.CPointer(types.float64), types.intp, types.intp), cache=True)
def of_row(pointer, n_classes, y):
    return numba_ce.cross_entropy(carray(pointer, n_classes), y, temperature=2.0, z_loss=0.25)


@guvectorize([(types.float64[:], types.int64, types.float64[:])], "(c),()->()", cache=True)
def as_ufunc(z, y, out):
    out[0] = numba_ce.cross_entropy(z, y, temperature=2.0, z_loss=0.25)


z, y = np.arange(12.0).reshape(4, 3) % 5, np.array([0, 1, 2, 1])
pointer = z[0].ctypes.data_as(of_row.ctypes.argtypes[0])
with np.errstate(invalid="ignore"):
    of_ufunc = as_ufunc(z, y).mean()
print(json.dumps({
    "results": [calls_another(z, y), in_parallel(z, y), of_ufunc],
    "of_row": of_row.ctypes(pointer, 3, 0),
    "expected": float(numba_ce.cross_entropy(z, y, temperature=2.0, z_loss=0.25)),
    "expected_row": float(numba_ce.cross_entropy(z[0], 0, temperature=2.0, z_loss=0.25)),
    "hits": [sum(f.stats.cache_hits.values()) for f in (calls_another, in_parallel)]
    + [of_row.cache_hits],
}))
"""


def run(folder):
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder / "site"),
        "NUMBA_CACHE_DIR": str(folder / "numba"),
        "NUMBA_CE_CACHE_DIR": str(folder / "kernels"),
    }
    result = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    np.testing.assert_allclose(found["results"], found["expected"], rtol=1e-15)
    assert found["of_row"] == found["expected_row"]
    return found["hits"]


def test_two_processes_and_an_upgrade(tmp_path):
    """The functions are found by the entry point, as it stands in pyproject.toml."""
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "numba_ce", site / "numba_ce", ignore=ignored)
    points = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    hook = site / "hook-1.dist-info"
    hook.mkdir()
    (hook / "METADATA").write_text("Metadata-Version: 2.1\nName: hook\nVersion: 1\n")
    init = points["numba_extensions"]["init"]
    (hook / "entry_points.txt").write_text(f"[numba_extensions]\ninit = {init}\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    assert run(tmp_path) == [0, 0, 0]
    assert run(tmp_path) == [1, 1, 1]
    # A version that passes its numbers in another order: old code would take one for another
    file = site / "numba_ce" / "integrations" / "numba" / "call.py"
    text, line = file.read_text("utf-8"), "    z_loss: int  # float64\n"
    first, averaged = text.index(line), "    averaged: int\n"
    assert text.index(averaged) > first
    file.write_text(text.replace(line, "", 1).replace(averaged, averaged + line, 1), "utf-8")
    assert run(tmp_path) == [0, 0, 0]
    assert run(tmp_path) == [1, 1, 1]


def test_code_of_another_version(monkeypatch):
    """Where Numba keeps code without its constants, the call itself notices."""
    monkeypatch.setattr(glue, "STAMP", glue.STAMP ^ 1)

    @njit
    def stale(z):
        return numba_ce.softmax(z)

    with pytest.raises(RuntimeError, match="compiled with another version of numba_ce"):
        stale(np.zeros(3, np.float32)[::2])
