"""Who computes: precedence, threads, tasks, and what is said when a backend is absent."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest

import numba_ce as nc


@pytest.fixture(autouse=True)
def _reset():
    yield
    nc.set_backend("auto")


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def test_precedence():
    nc.set_backend("numpy")
    assert nc.get_backend() == "numpy"
    with nc.use_backend("cpu"):
        assert nc.get_backend() == "cpu"
        nc.set_backend("auto")
        with nc.use_backend("numpy"):
            assert nc.get_backend() == "numpy"
        assert nc.get_backend() == "cpu"
    assert nc.get_backend() == "auto"


def test_the_context_ends_with_an_exception():
    with pytest.raises(KeyError), nc.use_backend("numpy"):
        raise KeyError
    assert nc.get_backend() == "auto"


@pytest.mark.parametrize("choose", [nc.set_backend, nc.use_backend])
def test_unknown(choose):
    with pytest.raises(ValueError, match="unknown backend 'gpu', expected one of auto, cpu"):
        choose("gpu")
    with pytest.raises(TypeError, match="None is not a string"):
        choose(None)
    assert nc.get_backend() == "auto"


@pytest.mark.parametrize("choose", [nc.set_backend, nc.use_backend])
def test_absent(choose, monkeypatch):
    monkeypatch.setattr("numba_ce._cuda_presence.why_no_cuda", lambda: "no such thing")
    message = "'cuda' is not available: no such thing; use 'auto', 'cpu', 'numpy'"
    with pytest.raises(RuntimeError, match=message):
        choose("cuda")
    assert nc.get_backend() == "auto"


def test_available_backends():
    found = nc.available_backends()
    assert found["cpu"] is None
    assert found["numpy"] is None
    assert found["cuda"] is None or "pip install 'numba-ce[cu13]'" in found["cuda"]


def test_threads_choose_for_themselves():
    barrier = threading.Barrier(2, timeout=30)
    seen = {}

    def work(name):
        with nc.use_backend(name):
            barrier.wait()
            seen[name] = nc.get_backend()
            barrier.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("cpu", "numpy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"cpu": "cpu", "numpy": "numpy"}
    assert nc.get_backend() == "auto"


def test_tasks_choose_for_themselves():
    async def work(name):
        with nc.use_backend(name):
            await asyncio.sleep(0.01)
            return nc.get_backend()

    async def both():
        return await asyncio.gather(work("cpu"), work("numpy"), work("auto"))

    assert asyncio.run(both()) == ["cpu", "numpy", "auto"]


SHOW = "import numba_ce; print(numba_ce.get_backend())"


@pytest.mark.parametrize("name", ["auto", "cpu", "numpy"])
def test_variable(name):
    result = python(SHOW, NUMBA_CE_BACKEND=name)
    assert result.stdout.strip() == name, result.stderr


def test_a_bad_variable_is_no_reason_not_to_import():
    assert python("import numba_ce", NUMBA_CE_BACKEND="gpu").returncode == 0
    result = python(SHOW, NUMBA_CE_BACKEND="gpu")
    assert "NUMBA_CE_BACKEND: unknown backend 'gpu'" in result.stderr
    code = "import numba_ce; print(numba_ce.logsumexp([0.0]))"
    result = python(code, NUMBA_CE_BACKEND="cuda", CUDA_VISIBLE_DEVICES="")
    assert "NUMBA_CE_BACKEND: backend 'cuda' is not available" in result.stderr


def test_import_is_light():
    code = "import sys, numba_ce; print(*sys.modules)"
    loaded = python(code).stdout.split()
    for name in ("numba_ce.cpu", "numba.cuda", "typer", "rich", "scipy"):
        assert name not in loaded


def test_without_a_compiler_the_reference_is_named():
    code = "import numba_ce; print(numba_ce.logsumexp([0.0]))"
    result = python(code, NUMBA_DISABLE_JIT="1")
    assert "NUMBA_DISABLE_JIT is set" in result.stderr
    assert "'numpy'" in result.stderr
    assert python(code, NUMBA_DISABLE_JIT="1", NUMBA_CE_BACKEND="numpy").stdout.strip() == "0.0"


def test_a_context_may_be_entered_again():
    context = nc.use_backend("numpy")
    for _ in range(2):
        with context:
            with context:
                assert nc.get_backend() == "numpy"
            assert nc.get_backend() == "numpy"
        assert nc.get_backend() == "auto"


def test_one_context_in_two_threads():
    context, barrier, seen = nc.use_backend("numpy"), threading.Barrier(2, timeout=30), []

    def work():
        with context:
            barrier.wait()
            seen.append(nc.get_backend())
            barrier.wait()
        seen.append(nc.get_backend())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["auto", "auto", "numpy", "numpy"]


def test_the_variable_is_read_at_the_first_call():
    code = "import os, numba_ce; os.environ['NUMBA_CE_BACKEND'] = 'numpy'; "
    assert python(code + "print(numba_ce.get_backend())").stdout.strip() == "numpy"
    code = "import numba_ce; numba_ce.set_backend('numpy'); print(numba_ce.get_backend())"
    assert python(code, NUMBA_CE_BACKEND="gpu").stdout.strip() == "numpy"
    code = "import numba_ce; print(numba_ce.get_backend()); numba_ce.set_backend('auto'); "
    result = python(code + "print(numba_ce.get_backend())", NUMBA_CE_BACKEND="numpy")
    assert result.stdout.split() == ["numpy", "auto"]


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_without_a_compiler_nothing_unusable_is_advised(name):
    code = "import numba_ce; print(numba_ce.logsumexp([0.0]))"
    result = python(code, NUMBA_DISABLE_JIT="1", NUMBA_CE_BACKEND=name)
    assert result.stderr.strip().endswith("use 'numpy'")
    assert (
        python("import numba_ce; numba_ce.set_backend('auto')", NUMBA_DISABLE_JIT="1").stderr == ""
    )
