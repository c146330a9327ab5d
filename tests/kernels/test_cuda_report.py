"""The script for a real GPU: all of it that runs without one."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

pytest.importorskip("numba_cuda")

from emulated import emulated

import numba_ce as nc
from benchmarks import gpu_report, gpu_timing, parts


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


@pytest.mark.parametrize("kind", gpu_report.ROUNDING | {"float32": 0, "float64": 0})
def test_a_wrong_entry_is_found_however_small(monkeypatch, kind):
    """The reference's own results, spoiled: every entry counts, relative to itself."""
    real = nc.cross_entropy_and_grad
    spoil = None

    def spoiled(logits, targets, **options):
        if nc.get_backend() != "cuda":
            return real(logits, targets, **options)
        with nc.use_backend("numpy"):
            loss, grad = real(logits.astype(float), targets, **options)
        spoil(loss, grad)
        loss = loss.astype("f8" if kind == "float64" else "f4")
        return loss, grad.astype(gpu_report.numpy_dtype(kind))

    monkeypatch.setattr(nc, "cross_entropy_and_grad", spoiled)
    # Several times what the soft cap and the rounding to 16 bits may do
    off = {"float16": 2.0**-9, "bfloat16": 2.0**-6, "float32": 2.0**-15, "float64": 2.0**-44}

    def small_ones_missing(loss, grad):
        small = abs(grad) < 1e-4 * abs(grad).max(axis=-1, keepdims=True)
        assert small[0].any() and not small[0].all()
        grad[small] = 0.0

    def one_a_little_off(loss, grad):
        grad[0, grad[0].argmax()] *= 1.0 + off[kind]

    def a_loss_off(loss, grad):
        loss[3] *= 1.0 + off["float64" if kind == "float64" else "float32"]

    def an_ignored_row(loss, grad):
        grad[1, 5] = 1e-6

    with emulated():
        for spoil, result in (
            (lambda loss, grad: None, "ok"),
            (small_ones_missing, "WRONG"),
            (one_a_little_off, "WRONG"),
            (a_loss_off, "WRONG"),
            (an_ignored_row, "WRONG"),
        ):
            lines = gpu_report.correctness((kind,), (600,))
            assert [line["result"] for line in lines] == [result] * 3, (spoil, lines)


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


def test_a_report_that_cannot_be_saved_is_as_it_was(tmp_path, monkeypatch):
    report = {"date": "2030-01-02", "gpu": "Some GPU"}
    path = gpu_report.save(report, tmp_path)

    def disk_full(self, text):
        self.write_bytes(text[:10].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(type(path), "write_text", disk_full)
    with pytest.raises(OSError, match="No space"):
        gpu_report.save(report | {"speed": []}, tmp_path)
    assert json.loads(path.read_text()) == report


def test_a_part_ends_with_the_one_who_asked():
    code = f"import os, time; print({parts.MARK!r} + str(os.getpid()), flush=True); time.sleep(60)"
    lines = parts.lines_of([sys.executable, "-c", code], 60)
    process = next(lines)
    lines.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_the_sanitizer_is_asked_and_its_cases_counted(tmp_path, monkeypatch):
    program = tmp_path / "compute-sanitizer"
    line = parts.MARK + json.dumps({"result": "ok"})
    program.write_text(f"#!/bin/sh\necho \"$@\"\necho '{line}'\ntest $2 = memcheck\n")
    program.chmod(0o755)
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name: str(program))
    good, bad = gpu_report.sanitizers(60)
    assert good == {"tool": "memcheck", "cases": 1, "failed": []}
    (failed,) = bad["failed"]
    asked = f"--tool racecheck --error-exitcode 9 {sys.executable} -m benchmarks.gpu_report"
    assert failed["failed"] == f"exit status 1: {asked} --small float32"
    assert [line["failed"] for line in gpu_report.sanitizers(9)] == ["no time left"] * 2


def test_parts_share_the_minutes(tmp_path, monkeypatch):
    asked = {}

    def lines_of(command, seconds):
        asked[command[command.index("--part") + 1]] = seconds
        yield {}

    monkeypatch.setattr(gpu_report, "lines_of", lines_of)
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name: None)
    gpu_report.all_parts({"date": "2030-01-02", "gpu": "G"}, "quick", tmp_path, minutes=4)
    assert asked["ours bfloat16"] == pytest.approx(30)
    assert asked["correctness float64"] == pytest.approx(60)
    assert sum(asked[f"peers {kind}"] for kind in gpu_report.KINDS[:1]) < 4 * 60 / 3


@pytest.mark.parametrize("minutes", ["0.5", "61", "nan"])
def test_minutes_out_of_range(minutes, capsys):
    with pytest.raises(SystemExit):
        gpu_report.main(["--minutes", minutes])
    assert f"--minutes {minutes}: expected 1 to 60" in capsys.readouterr().err


def test_a_part_that_hangs_or_crashes_costs_no_other(tmp_path, monkeypatch):
    """Parts are processes: here lines of Python, one of them endless, one with an error."""
    good = f'print({parts.MARK!r} + \'{{"kind": "x"}}\')'
    lines = list(parts.lines_of([sys.executable, "-c", good], 20))
    assert lines == [{"kind": "x"}]
    started = time.monotonic()
    hangs = good.replace("')", "', flush=True)") + "; import time; time.sleep(60)"
    lines = list(parts.lines_of([sys.executable, "-c", hangs], 3))
    assert lines == [{"kind": "x"}, {"failed": "stopped after 3 s"}]
    assert time.monotonic() - started < 20
    (line,) = parts.lines_of([sys.executable, "-c", "raise SystemExit('no luck')"], 20)
    assert line == {"failed": "exit status 1: no luck"}

    def lines_of(command, seconds):
        yield {"command": command[command.index("--part") + 1], "seconds": seconds}

    monkeypatch.setattr(gpu_report, "lines_of", lines_of)
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name: None)
    report = {"date": "2030-01-02", "gpu": "Some GPU"}
    gpu_report.all_parts(report, "full", tmp_path)
    saved = json.loads((tmp_path / "2030-01-02-gpu-some-gpu.json").read_text())
    assert saved == report
    assert [line["command"] for line in saved["speed"]] == [
        f"ours {kind}" for kind in ("bfloat16", "float32", "float16")
    ]
    assert len(saved["correctness"]) == 4 and len(saved["peers"]) == 3
    assert all("not on the PATH" in line["failed"] for line in saved["sanitizer"])


class Torch:
    """The little of torch that the report uses, on no device."""

    float32 = "float32"

    class cuda:  # noqa: N801
        @staticmethod
        def synchronize():
            pass

        class Event:
            def __init__(self, enable_timing):
                pass

            def record(self):
                pass

            def synchronize(self):
                pass

            def elapsed_time(self, other):
                return 2.0

    class Tensor:
        def to(self, dtype):
            return self

        def copy_(self, other):
            return self

        def sum(self, dtype):
            return self

    @classmethod
    def randn(cls, shape, device):
        return cls.Tensor()

    @classmethod
    def randint(cls, low, high, shape, device):
        return cls.Tensor()

    @classmethod
    def empty_like(cls, other):
        return cls.Tensor()


@pytest.mark.parametrize("peers", [False, True])
def test_a_failing_contender_is_named_and_the_others_are_timed(monkeypatch, peers):
    def broken(torch, x, y):
        yield "broken", 2, lambda: 1 / 0

    def fine(torch, x, y):
        yield "fine", 2, lambda: None

    monkeypatch.setattr(gpu_timing, "PEERS", (broken, fine))
    monkeypatch.setattr(gpu_timing, "ours", lambda x, y, grad: fine(None, x, y))
    line = gpu_timing.speed(gpu_timing.TorchArrays(Torch), "float32", 1024, 3, peers)
    n_bytes = 4 * 1024 * line["n_rows"]
    assert n_bytes >= 256 << 20
    per_call = 2.0 / gpu_timing.BATCH
    assert line["copy"] == line["fine"] == gpu_timing.gb_per_second(2 * n_bytes, per_call)
    assert line["read"] == gpu_timing.gb_per_second(n_bytes, per_call)
    if peers:
        assert "ZeroDivisionError" in line["failed"]["broken"]


def test_units():
    assert gpu_timing.gb_per_second(3_000_000_000, 1000.0) == 3.0
    assert gpu_timing.gb_per_second(3_141_592, 1.0) == 3.142


@pytest.mark.skipif(nc.available_backends()["cuda"] is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu_report.main([]) == 2
    assert "no GPU report: there is no CUDA driver" in capsys.readouterr().out
