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
    arguments = ("-q", "-n0", "--tb=native", "-p", "no:cacheprovider")
    done = run(library, "-m", "pytest", *arguments, standin.HERE / f"{name}.py", devices=2)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_info(library):
    done = run(library, "-m", "numba_ce", "info", devices=1)
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.replace("│", " ").split())
    assert "cuda available" in said
    assert "GPU Stand-in, no GPU, sm_90, driver for CUDA 13.5, compilers of CUDA 13." in said


def test_what_is_set_from_outside(library):
    """A process of its own, whose first call of the driver fails."""
    code = "import numba_ce; print(numba_ce.available_backends()['cuda'])"
    done = run(library, "-c", code, fail="cuInit:1:100")
    assert done.stdout.startswith("cuInit: CUDA_ERROR_NO_DEVICE, there is no GPU")


def test_a_call_that_the_stand_in_lacks_is_named(library):
    code = "from cuda.bindings import driver as d; d.cuInit(0); d.cuGraphCreate(0)"
    done = run(library, "-c", code)
    assert "cuGraphCreate" in done.stderr and "not found" in done.stderr
