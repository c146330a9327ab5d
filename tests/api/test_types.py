"""Type checkers find what is wrong in a user's script, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import numba_ce

SCRIPT = Path(__file__).with_name("typed_script.py")
EXPECTED = [n for n, text in enumerate(SCRIPT.read_text().splitlines(), 1) if "  # error" in text]


def check(module, folder, *options):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    package = Path(numba_ce.__file__).parent.parent
    command = [sys.executable, "-m", module, *options, str(SCRIPT)]
    environment = os.environ | {"MYPYPATH": "" if "site-packages" in str(package) else str(package)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_mypy(tmp_path):
    result = check("mypy", tmp_path, "--strict", "--cache-dir", str(tmp_path))
    found = re.findall(r"typed_script.py:(\d+): error", result.stdout)
    assert sorted(set(map(int, found))) == EXPECTED, result.stdout + result.stderr


def test_pyright(tmp_path):
    result = check("pyright", tmp_path, "--outputjson", "--pythonpath", sys.executable)
    assert result.stdout, result.stderr
    faults = json.loads(result.stdout)["generalDiagnostics"]
    found = {f["range"]["start"]["line"] + 1 for f in faults if f["severity"] == "error"}
    assert sorted(found) == EXPECTED, result.stdout
