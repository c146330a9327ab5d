"""`python -m benchmarks.gpu_report` end to end. No figure of it is a speed: an interpreter runs."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest

from benchmarks import gpu_report, gpu_timing, parts


@pytest.fixture
def in_process(monkeypatch):
    """Parts run here instead of in processes of their own; what each printed is kept."""

    def lines_of(command, seconds):
        assert command[1:3] == ["-m", "benchmarks.gpu_report"]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert gpu_report.main(command[3:]) == 0
        for text in said.getvalue().splitlines():
            if text.startswith(parts.MARK):
                yield json.loads(text.removeprefix(parts.MARK))

    class InTurn:
        """A thread whose work is done at its start."""

        def __init__(self, target, args):
            self.start, self.join = (lambda: target(*args)), (lambda: None)

    monkeypatch.setattr(gpu_report, "lines_of", lines_of)
    monkeypatch.setattr(gpu_report.threading, "Thread", InTurn)
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name: None)


def test_the_whole_report(state, in_process, tmp_path, capsys):
    arguments = ["--sizes", "tiny", "--minutes", "5", "--folder", str(tmp_path / "new")]
    assert gpu_report.main(arguments) == 0
    (path,) = (tmp_path / "new").iterdir()
    assert path.name.endswith("-gpu-stand-in-no-gpu.json")
    report = json.loads(path.read_text())
    assert (report["gpu"], report["sizes"]) == ("Stand-in, no GPU", "tiny")
    assert (report["capability"], report["driver"]) == ([9, 0], "13.5")
    assert len(report["correctness"]) == 12
    assert {line["result"] for line in report["correctness"]} == {"ok"}
    names = {"copy", "loss", "loss+grad", "loss+grad mean, checked", "in place"}
    assert [line["kind"] for line in report["speed"]] == ["bfloat16", "float32", "float16"]
    for line in report["speed"]:
        assert "failed" not in line
        assert all(line[name] > 0 for name in names)
        assert line["of the copy"] == round(line["loss+grad"] / line["copy"], 3)
    (launch,) = report["launch_us"]
    assert all(launch[name] > 0 for name in names - {"copy"})
    assert all("not on the PATH" in line["failed"] for line in report["sanitizer"])
    assert [line["failed"] for line in report["peers"]] == ["there is no torch with CUDA"] * 3
    said = capsys.readouterr().out
    assert "12 cases, 0 not ok" in said and str(path) in said


def test_what_fails_is_named_and_the_rest_goes_on(state, in_process, tmp_path):
    """A driver that runs out of memory in the first part."""
    state.fail("cuMemAllocAsync", 2, 1)
    assert gpu_report.main(["--sizes", "tiny", "--folder", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    first, second, _ = json.loads(path.read_text())["speed"]
    (failed,) = first["failed"].values()
    assert "cuMemAllocAsync of" in failed and "OUT_OF_MEMORY" in failed
    assert "failed" not in second


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_what_is_timed_is_right(state, kind):
    """The calls that the report times give the gradient, and the copy copies."""
    arrays = gpu_timing.NumbaArrays()
    x, y = arrays.logits((5, 10), kind), arrays.targets(10, 5)
    grad = arrays.empty_like(x)

    def host(array):
        words = getattr(array, "words", array).copy_to_host()
        return words.view(gpu_report.numpy_dtype(kind)).astype(float)

    (_, _, copy), *_ = arrays.baselines(x, grad)
    copy()
    np.testing.assert_array_equal(host(grad), host(x))
    logits = host(x)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p[np.arange(5), y.copy_to_host()] -= 1
    (calls := {name: call for name, _, call in gpu_timing.ours(x, y, grad)})["loss+grad"]()
    np.testing.assert_allclose(host(grad), p, rtol=1e-5 if kind == "float32" else 2.0**-8)
    calls["in place"]()
    np.testing.assert_array_equal(host(x), host(grad))
