"""The commands as a user types them, and what they say about bad files."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import numba_ce as nc
from numba_ce.cli import app
from numba_ce.evaluate import _Clock, evaluate


@pytest.fixture
def files(tmp_path, rng):
    logits = rng.standard_normal((300, 12)).astype(np.float32)
    targets = rng.integers(0, 12, 300)
    targets[:20] = -100
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "targets.npy", targets)
    return tmp_path, logits, targets


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_eval_agrees_with_the_functions(files, monkeypatch):
    folder, logits, targets = files
    monkeypatch.setattr("numba_ce.blocks.BLOCK_BYTES", 7 * 12 * 4)  # 43 blocks
    result = run(
        "eval", folder / "logits.npy", folder / "targets.npy", "--json",
        "--label-smoothing", 0.1, "--temperature", 0.5, "--grad-out", folder / "grad.npy",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, label_smoothing=0.1, temperature=0.5)
    np.testing.assert_allclose(values["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(values["perplexity"], np.exp(loss), rtol=1e-5)
    np.testing.assert_allclose(np.load(folder / "grad.npy"), grad, rtol=1e-5, atol=1e-10)
    stats, kept = nc.row_stats(logits, targets), targets != -100
    assert values["n_kept"] == kept.sum() == 280
    np.testing.assert_allclose(values["accuracy"], (stats.rank[kept] == 0).mean(), rtol=1e-12)
    np.testing.assert_allclose(values["top5_accuracy"], (stats.rank[kept] < 5).mean(), rtol=1e-12)
    entropy = nc.row_stats(logits / np.float32(0.5)).entropy[kept].mean()  # of what the loss sees
    np.testing.assert_allclose(values["mean_entropy"], entropy, rtol=1e-6)
    umask = os.umask(0)
    os.umask(umask)
    assert (folder / "grad.npy").stat().st_mode & 0o777 == 0o666 & ~umask
    assert sorted(p.name for p in folder.iterdir()) == ["grad.npy", "logits.npy", "targets.npy"]


def test_class_axis_first_and_sum(files):
    folder, logits, targets = files
    np.save(folder / "turned.npy", logits.T)
    turned = run(
        "eval", folder / "turned.npy", folder / "targets.npy", "--axis", 0, "--reduction", "sum",
        "--json",
    )  # fmt: skip
    assert turned.exit_code == 0, turned.output
    expected = nc.cross_entropy(logits, targets, reduction="sum")
    np.testing.assert_allclose(json.loads(turned.stdout)["loss"], expected, rtol=1e-6)


def test_entropy_of_capped_logits_and_rank_of_stored_ones(files):
    folder, logits, targets = files
    logits = 100 * logits  # tanh rounds most of them to one number
    np.save(folder / "logits.npy", logits)
    result = run(
        "eval", folder / "logits.npy", folder / "targets.npy", "--json", "--softcap", 3,
        "--temperature", 2,
    )  # fmt: skip
    values, kept = json.loads(result.stdout), targets != -100
    capped = 3 * np.tanh(logits.astype(np.float64) / 3) / 2
    entropy = nc.row_stats(capped).entropy[kept].mean()
    np.testing.assert_allclose(values["mean_entropy"], entropy, rtol=1e-6)
    rank = nc.row_stats(logits, targets).rank
    np.testing.assert_allclose(values["accuracy"], (rank[kept] == 0).mean(), rtol=1e-12)


def test_class_weight(files):
    folder, logits, targets = files
    weight = np.linspace(0.5, 2, 12)
    np.save(folder / "weight.npy", weight)
    result = run(
        "eval", folder / "logits.npy", folder / "targets.npy", "--json",
        "--class-weight", folder / "weight.npy",
    )  # fmt: skip
    expected = nc.cross_entropy(logits, targets, class_weight=weight)
    np.testing.assert_allclose(json.loads(result.stdout)["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize(("n_blocks", "speed"), [(10, 1.0), (3, 3 / 22), (0, None)])
def test_throughput_is_that_without_compiling(monkeypatch, n_blocks, speed):
    """The first block takes 20 s, all others one second; of 1 GB each."""
    now = [0.0]
    monkeypatch.setattr("numba_ce.evaluate.time.perf_counter", lambda: now[0])
    seen = []
    clock = _Clock(lambda *a: seen.append(a))
    for i in range(n_blocks):
        now[0] += 1.0 if i else 20.0
        clock(7 * (i + 1), 7 * n_blocks)
    result = clock.gb_per_second(n_blocks * 10**9)
    assert np.isnan(result) if speed is None else result == pytest.approx(speed)
    assert len(seen) == n_blocks


def test_table(files):
    folder, *_ = files
    result = run("eval", folder / "logits.npy", folder / "targets.npy")
    assert result.exit_code == 0
    for word in ("mean loss", "perplexity", "accuracy", "entropy", "GB/s"):
        assert word in result.stdout


def bad_target(folder):
    targets = np.zeros(300, np.int64)
    targets[250] = 12
    np.save(folder / "targets.npy", targets)


def truncated(folder):
    path = folder / "logits.npy"
    path.write_bytes(path.read_bytes()[:1000])


def archive(folder):
    np.savez(folder / "logits.npz", a=1)
    (folder / "logits.npz").rename(folder / "logits.npy")


BAD_FILES = {
    "missing": (lambda f: (f / "logits.npy").unlink(), "logits.npy"),
    "not npy": (lambda f: (f / "logits.npy").write_text("hello"), "not a readable .npy"),
    "empty": (lambda f: (f / "logits.npy").write_bytes(b""), "not a readable .npy"),
    "truncated": (truncated, "not a readable .npy"),
    "archive": (archive, "archive"),
    "integers": (
        lambda f: np.save(f / "logits.npy", np.zeros((300, 12), int)),
        "logits have dtype",
    ),
    "three axes": (lambda f: np.save(f / "logits.npy", np.zeros((3, 4, 5))), "expected two"),
    "too few targets": (lambda f: np.save(f / "targets.npy", np.zeros(299, int)), "(299,)"),
    "float targets": (lambda f: np.save(f / "targets.npy", np.zeros(300)), "must be integers"),
    "bad target": (bad_target, "= 12 is not a class index"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_line_and_status_2(files, name):
    folder, *_ = files
    spoil, message = BAD_FILES[name]
    spoil(folder)
    result = run(
        "eval", folder / "logits.npy", folder / "targets.npy", "--grad-out", folder / "grad.npy"
    )
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
    assert not list(folder.glob("grad*"))


@pytest.mark.parametrize("options", [("--reduction", "none"), ("--label-smoothing", "2")])
def test_bad_options(files, options):
    folder, *_ = files
    result = run("eval", folder / "logits.npy", folder / "targets.npy", *options)
    assert result.exit_code == 2
    assert "expected" in result.stderr


def test_a_gradient_that_fails_half_way_leaves_nothing(files, monkeypatch):
    folder, logits, targets = files
    monkeypatch.setattr("numba_ce.blocks.BLOCK_BYTES", 7 * 12 * 4)

    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("numba_ce.streaming.loss_sums", fail)
    with pytest.raises(OSError, match="No space"):
        evaluate(logits, targets, grad_out=folder / "grad.npy")
    assert not list(folder.glob("grad*"))


def test_info():
    result = run("info")
    assert result.exit_code == 0
    for word in ("numba", "backend", "threading layer", "cuda", "processor"):
        assert word in result.stdout


def test_info_shows_all_of_a_reason(monkeypatch):
    """Brackets are markup to the library that prints."""
    reason = "pip install 'numba-ce[cu13]'"
    monkeypatch.setattr(nc, "available_backends", lambda: {"cpu": "no", "cuda": reason})
    assert reason in run("info").stdout


def test_demo():
    result = run("demo", "--steps", 150)
    assert result.exit_code == 0, result.output
    accuracy = float(result.stdout.split("test accuracy: ")[1].split("%")[0])
    assert accuracy > 90
    assert "whole loop" in result.stdout


def test_without_the_extra_it_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None\nfrom numba_ce.__main__ import main\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install 'numba-ce[cli]'" in result.stderr
