"""NVIDIA's own bindings on a stand-in for the driver's library: each file of tests/standin."""

from __future__ import annotations

import subprocess
import sys

import pytest
import standin

pytest.importorskip("numba_cuda")
if standin.COMPILER is None:
    pytest.skip("there is no C compiler to build a libcuda.so.1", allow_module_level=True)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The folder of the stand-in."""
    folder = tmp_path_factory.mktemp("standin")
    standin.build(folder)
    return folder


def run(library, *command, **settings):
    """A Python process that has the stand-in."""
    return subprocess.run(
        [sys.executable, *command],
        env=standin.environment(library, **settings),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", sorted(p.stem for p in standin.HERE.glob("test_*.py")))
def test_on_the_stand_in(library, name):
    arguments = ("-q", "-n0", "--durations=3", "-p", "no:cacheprovider")
    done = run(library, "-m", "pytest", *arguments, standin.HERE / f"{name}.py", devices=2)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
