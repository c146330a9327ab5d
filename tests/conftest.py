"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

# At least two threads everywhere, also on a machine with one core; read when numba is imported.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, os.cpu_count() or 1)))

import hypothesis
import numpy as np
import pytest
from cases import BACKENDS

import numba_ce

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks.families

# Each run compiles every kernel once, for its worker processes as well
_own_cache = "NUMBA_CE_CACHE_DIR" not in os.environ
if _own_cache:
    os.environ["NUMBA_CE_CACHE_DIR"] = tempfile.mkdtemp(prefix="numba_ce_tests_")

# The same examples in every run; HYPOTHESIS_PROFILE=explore looks for new ones.
_COMMON = {
    "deadline": None,  # the first call compiles
    "suppress_health_check": [
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
}
hypothesis.settings.register_profile(
    "default", max_examples=60, derandomize=True, database=None, **_COMMON
)
hypothesis.settings.register_profile("explore", max_examples=2000, **_COMMON)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# Of the tests that run once per backend, one in so many runs on CUDA too, its kernels executed by
# the interpreter in tools/ptx; with --cuda all of them do, and nothing else.
CUDA_SAMPLE = 300
# Arrays of gigabytes, and threads and forks: too much for an interpreter
NOT_EMULATED = ("test_large.py", "test_threads.py")


def pytest_addoption(parser):
    parser.addoption(
        "--cuda",
        action="store_true",
        help="the tests that run once per backend, all of them, on the backend cuda: its kernels "
        "executed on the CPU (tests/emulated.py)",
    )


def _has_cuda():
    return importlib.util.find_spec("numba_cuda") is not None


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        names = (
            ("cuda",) if metafunc.config.getoption("cuda") else BACKENDS + ("cuda",) * _has_cuda()
        )
        metafunc.parametrize("backend", names, indirect=True)


def number_of(item):
    """A hash of a test's name without its folder, so that nothing changes when a file moves."""
    test = item.nodeid.partition("::")[2]
    return zlib.crc32(f"tests/{item.path.name}::{test}".encode())


def _runs(item):
    name = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
    if name == "cuda" and item.path.name in NOT_EMULATED:
        return False
    if item.config.getoption("cuda"):
        return name == "cuda"
    return name != "cuda" or number_of(item) % CUDA_SAMPLE == 0


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if not _runs(item)]
    items[:] = [item for item in items if _runs(item)]
    if config.getoption("cuda"):
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Where NUMBA_CPU_NAME names a processor that converts no float16, its refusal is right."""
    try:
        return (yield)
    except NotImplementedError as error:
        if "NUMBA_CPU_NAME" in os.environ and "F16C" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture
def backend(request):
    """Runs the test once per backend, with that backend in use."""
    if request.param == "cuda":
        from emulated import emulated

        with emulated():
            yield request.param
        return
    with numba_ce.use_backend(request.param):
        yield request.param


@pytest.fixture
def cpu():
    """The fused kernels, for what only they promise."""
    with numba_ce.use_backend("cpu"):
        yield "cpu"


@pytest.fixture
def rng(request):
    """Random numbers that depend on nothing but the name of the test."""
    return np.random.default_rng(number_of(request.node))


def pytest_unconfigure():
    if _own_cache:
        shutil.rmtree(os.environ["NUMBA_CE_CACHE_DIR"], ignore_errors=True)
