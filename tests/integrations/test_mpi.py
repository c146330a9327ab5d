"""Ranks that share the classes or the rows, started as a user starts them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mpi4py", reason="needs mpi4py")
# Beside the interpreter if MPI came from a wheel
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
ONE_THREAD = {"NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
TESTS = str(Path(__file__).resolve().parents[1])
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="needs an MPI: pip install mpich")


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_ranks(n_ranks):
    result = subprocess.run(
        # By way of mpi4py: a rank that fails ends the others
        [MPIEXEC, "-n", str(n_ranks), sys.executable, "-m", "mpi4py",
         Path(__file__).with_name("mpi_program.py")],
        capture_output=True, text=True, timeout=120,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": TESTS},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    for rank in range(n_ranks):
        assert f"rank {rank} of {n_ranks}: right" in result.stdout
