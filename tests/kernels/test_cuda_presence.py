"""Why there is no CUDA, in words; and what is kept of compiled kernels."""

from __future__ import annotations

import importlib.util
from importlib import import_module
from types import SimpleNamespace

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
    assert "there is no CUDA driver (libcuda.so.1 not found): install" in why_no_cuda()
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


def test_a_damaged_file_is_compiled_anew(cache):
    """As one example of what test_cache.py tests of every backend's files."""
    folder, load = cache
    first, _ = load()
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert load() == (first, True)
    assert load() == (first, False)


@pytest.mark.parametrize("what", ["sources", "version", "another library", "renewed library"])
def test_another_compiler_is_another_kernel(cache, monkeypatch, tmp_path, what):
    _, load = cache
    compiled = import_module("numba_ce.cuda.compiled")
    library = tmp_path / "library"
    library.write_bytes(b"1")
    found = SimpleNamespace(abs_path=library)
    monkeypatch.setattr(compiled, "load_nvidia_dynamic_lib", lambda name: found)
    version = compiled.importlib.metadata.version

    def again():
        compiled._origin.cache_clear()
        return load()[1]

    try:
        assert again() and not again()
        if what == "sources":
            monkeypatch.setattr(compiled._cache, "SOURCES", b"changed")
            monkeypatch.setattr(compiled._cache, "sources", lambda: b"changed")
        elif what == "version":
            newer = {"cuda-core": "999"}
            metadata = SimpleNamespace(
                version=lambda name: newer.get(name) or version(name),
                PackageNotFoundError=compiled.importlib.metadata.PackageNotFoundError,
            )
            monkeypatch.setattr(compiled, "importlib", SimpleNamespace(metadata=metadata))
        elif what == "another library":
            found.abs_path = tmp_path / "other"
            found.abs_path.write_bytes(b"1")
        else:
            library.write_bytes(b"12")
        assert again() and not again()
    finally:
        compiled._origin.cache_clear()


def test_an_unknown_compiler_is_not_kept(cache, monkeypatch):
    folder, load = cache
    compiled = import_module("numba_ce.cuda.compiled")

    def missing(name):
        raise compiled.DynamicLibNotFoundError(name)

    monkeypatch.setattr(compiled, "load_nvidia_dynamic_lib", missing)
    compiled._origin.cache_clear()
    try:
        assert load()[1] and load()[1]
        assert not folder.exists()
    finally:
        compiled._origin.cache_clear()


def test_no_cache(cache, monkeypatch):
    folder, load = cache
    monkeypatch.setenv("NUMBA_CE_CACHE_DIR", "0")
    assert load()[1]
    assert not folder.exists()
