"""The script for a real GPU: all of it that runs without one."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("numba_cuda")

from emulated import emulated

import numba_ce as nc
from benchmarks import gpu_report


def test_correctness_finds_right_and_wrong_results(monkeypatch, capsys):
    with emulated():
        lines = gpu_report.correctness(("float32",), (1, 7)) + gpu_report.correctness(
            ("float16",), (130,)
        )
    assert [line["result"] for line in lines] == ["ok"] * 9, capsys.readouterr().out
    wrong = emulated(mutate=lambda text: text.replace("ex2.approx.f32", "lg2.approx.f32"))
    with wrong:
        (line, *_) = gpu_report.correctness(("float32",), (7,))
    assert line["result"] == "WRONG"


def test_a_failure_says_why_and_the_rest_goes_on(monkeypatch):
    def fail(kind, n_classes, options):
        raise OSError("no luck\nat all")

    monkeypatch.setattr(gpu_report, "largest_errors", fail)
    lines = gpu_report.correctness(("float32",), (7, 8))
    assert len(lines) == 6
    assert lines[0]["reason"].startswith("OSError: no luck at all (test_cuda_report.py:")


def test_report_is_saved(tmp_path):
    report = {
        "date": "2030-01-02",
        "gpu": "NVIDIA Some GPU 80GB",
        "versions": gpu_report.versions(),
    }
    path = gpu_report.save(report, tmp_path)
    assert path.name == "2030-01-02-gpu-nvidia-some-gpu-80gb.json"
    assert json.loads(path.read_text()) == report


def test_units():
    assert gpu_report.gb_per_second(3_000_000_000, 1000.0) == 3.0


@pytest.mark.skipif(nc.available_backends()["cuda"] is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu_report.main([]) == 2
    assert "no GPU report: there is no CUDA driver" in capsys.readouterr().out
