"""Nothing is read or written outside the arrays: they end, or begin, at a forbidden page."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: One row, or one class, more than there is memory for.
TOO_FAR = """
import sys
sys.path.insert(0, "tests")
import numpy as np
import numba_ce as nc
from guarded import Guarded

name, at_end = sys.argv[1], sys.argv[2] == "end"
arrays = {"logits": np.zeros((3, 20), "f4"), "targets": np.zeros(3, "i1")}
arrays |= {"sample_weight": np.ones(3), "class_weight": np.ones(20)}
arrays["out"] = np.zeros((3, 20), "f4")
whole = arrays[name]
view = Guarded(whole.nbytes).place(whole.shape, whole.strides, whole.dtype, at_end)
view[...] = whole
view = view[1:] if at_end else view[::-1][1:]
arrays[name] = np.lib.stride_tricks.as_strided(view, whole.shape, view.strides)
print("before", flush=True)
nc.cross_entropy_and_grad(**arrays)
"""


def run(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_array_beside_a_forbidden_page():
    done = run("-m", "tests.guard_pages")
    assert done.returncode == 0, (done.stdout[-300:], done.stderr[-2000:])
    assert "no access outside an array" in done.stdout


@pytest.mark.parametrize("end", ["end", "start"])
@pytest.mark.parametrize("name", ["logits", "targets", "sample_weight", "out"])
def test_one_element_too_far_is_noticed(name, end):
    """What the test above relies on."""
    done = run("-c", TOO_FAR, name, end)
    assert "before" in done.stdout, done.stderr
    assert done.returncode == -signal.SIGSEGV
