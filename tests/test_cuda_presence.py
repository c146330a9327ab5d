"""Why there is no CUDA, in words; and what is kept of compiled kernels."""

from __future__ import annotations

import importlib.util
import os
from importlib import import_module

import pytest

import numba_ce as nc
from numba_ce._cuda_presence import why_no_cuda


def test_package_missing(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "numba_cuda" else find(name)
    )
    reason = nc.available_backends()["cuda"]
    assert "numba-cuda is not installed" in reason
    assert "pip install 'numba-ce[cu13]'" in reason


def test_old_copy_inside_numba_is_refused(monkeypatch):
    pytest.importorskip("numba_cuda")
    import numba.cuda

    monkeypatch.setattr(numba.cuda, "__file__", "/somewhere/numba/cuda/__init__.py")
    assert "Numba's own old copy (/somewhere/numba/cuda/__init__.py)" in why_no_cuda()


@pytest.mark.parametrize(
    ("flag", "word"), [("ENABLE_CUDASIM", "simulator"), ("DISABLE_JIT", "compiled kernels")]
)
def test_settings_without_kernels(monkeypatch, flag, word):
    pytest.importorskip("numba_cuda")
    from numba import config

    monkeypatch.setattr(config, flag, 1)
    assert f"NUMBA_{flag}" in why_no_cuda()
    assert word in why_no_cuda()


def test_no_driver(monkeypatch):
    pytest.importorskip("numba_cuda")
    driver = import_module("numba_ce.cuda.driver")

    def absent():
        raise RuntimeError("libcuda.so.1 not found")

    monkeypatch.setattr(driver, "Driver", absent)
    monkeypatch.setattr(driver, "_driver", None)
    assert "no CUDA driver, or no GPU that it can use (libcuda.so.1 not found)" in why_no_cuda()
    with pytest.raises(RuntimeError, match="libcuda"):
        nc.use_backend("cuda")

    class Elsewhere:
        __cuda_array_interface__ = {}

    with pytest.raises(TypeError, match=r"logits \(Elsewhere\) is on a CUDA device, .*libcuda"):
        nc.logsumexp(Elsewhere())


# ---------------------------------------------------------------- kernels on disk


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """(folder, load): load() is a kernel as a new process would get it, and whether it compiled."""
    pytest.importorskip("numba_cuda")
    compiled = import_module("numba_ce.cuda.compiled")
    monkeypatch.setenv("NUMBA_CE_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "cuda"
    made = []

    def ptx_of(kernel, capability):
        made.append(kernel)
        return f"ptx of {kernel}", "entry"

    monkeypatch.setattr(compiled, "ptx_of", ptx_of)
    monkeypatch.setattr(compiled, "to_cubin", lambda text, capability: (text.encode() * 3, ""))

    def load(kernel="fold", capability=(9, 0)):
        monkeypatch.setattr(compiled, "_codes", {})
        before = len(made)
        return compiled.code_of(kernel, capability), len(made) > before

    return folder, load


def test_cache_is_used(cache):
    folder, load = cache
    first, compiled = load()
    assert compiled
    assert load() == (first, False)
    assert first.cubin == first.ptx.encode() * 3
    assert load("scan")[1]
    assert load(capability=(8, 0))[1]
    assert len(list(folder.iterdir())) == 3  # and nothing else is left lying about


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:40],
        lambda data: data[:-1],
        lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
    ],
    ids=["empty", "head", "truncated", "flipped"],
)
def test_a_damaged_file_is_compiled_anew(cache, damage):
    folder, load = cache
    first, _ = load()
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert load() == (first, True)
    assert load() == (first, False)


def test_changed_sources_are_another_kernel(cache, monkeypatch):
    _, load = cache
    load()
    compiled = import_module("numba_ce.cuda.compiled")
    monkeypatch.setattr(compiled, "_sources", lambda: b"changed")
    assert load()[1]


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_folder_that_others_can_write_is_not_trusted(cache):
    folder, load = cache
    load()
    folder.chmod(0o777)
    assert load()[1]


def test_a_folder_that_cannot_be_written_costs_only_time(cache):
    folder, load = cache
    folder.write_text("a file where the folder should be")
    assert load()[1]
    assert load()[1]


def test_no_cache(cache, monkeypatch):
    folder, load = cache
    monkeypatch.setenv("NUMBA_CE_CACHE_DIR", "0")
    assert load()[1]
    assert not folder.exists()
