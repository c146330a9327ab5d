"""The fuzz run, a short one, and that it would notice what it looks for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from fuzz import __main__ as driver
from fuzz.judge import WrongError, bound, compare
from fuzz.memory import Arenas
from mutate import ROOT


def test_a_short_run():
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "800", "--flavours", "1"]
    done = subprocess.run(
        [*command, "--jobs", "1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "800 cases" in done.stdout
    assert "0 wrong, 0 crashes" in done.stdout


#: In the place of a worker: ends by a signal in its fourth case.
CRASHES = """
import os, signal, struct, sys
status, start, stop, step = sys.argv[2], *map(int, sys.argv[3:6])
for number in range(start, stop, step):
    open(status, "r+b").write(struct.pack("q", number))
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    print('{"done": 1}', flush=True)
"""


def test_a_crash_is_named_and_the_run_goes_on(tmp_path, monkeypatch):
    script, done = tmp_path / "worker.py", []
    script.write_text(CRASHES)
    monkeypatch.setattr(driver, "__file__", str(script))
    options = driver.parse(["--cases", "9", "--jobs", "2"])
    found = driver.run(options, lambda n, wrong: done.append(n))
    assert [(case["wrong"], case["crash"]) for case in found.wrong] == [(3, True)]
    assert "ended with -11" in found.wrong[0]["why"]
    assert sum(done) == 8


@pytest.mark.parametrize("value", [1.0 + 1e-6, np.inf, np.nan, -1.0])
def test_a_wrong_number_is_noticed(value):
    expected = np.array([0.5, 1.0])
    allowed = bound(expected, 4, np.float32, np.float32, expected)
    compare(np.array([0.5, 1.0 + 2e-7], np.float32), expected, allowed, "x")
    with pytest.raises(WrongError, match=r"x\[1\] = "):
        compare(np.array([0.5, value], np.float32), expected, allowed, "x")


def test_a_changed_byte_is_noticed(rng):
    arenas = Arenas(2)
    view = arenas.put_with(np.ones((3, 4)), "a", (72, 8), np.dtype(float), True)
    placed = arenas.placed["a"]
    assert placed.is_unchanged()
    view[1, 1] = 2.0
    assert not placed.is_unchanged()
    assert placed.only_elements_changed()
    gap = np.lib.stride_tricks.as_strided(view, (3, 5), (72, 8))[0, 4:]
    gap[...] = 1.5
    assert not placed.only_elements_changed()
