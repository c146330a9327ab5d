"""The commands as a user types them, and what they say about bad files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress
from typer.testing import CliRunner

import numba_ce as nc
from numba_ce.cli import app
from numba_ce.data import load_words
from numba_ce.demo import curve
from numba_ce.evaluate import evaluate

ROOT = Path(nc.__file__).resolve().parent.parent  # of the package that is tested


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


def test_throughput_and_seconds_are_of_one_clock(files):
    folder, logits, _ = files
    values = json.loads(run("eval", folder / "logits.npy", folder / "targets.npy", "--json").stdout)
    assert values["seconds"] > 0
    found = values["gb_per_second"] * values["seconds"] * 1e9
    np.testing.assert_allclose(found, logits.nbytes, rtol=1e-12)


def test_progress_has_no_total_before_the_first_block(files, monkeypatch):
    folder, *_ = files
    totals, add_task = [], Progress.add_task

    def note(self, *arguments, **options):
        task = add_task(self, *arguments, **options)
        totals.append(self.tasks[0].total)
        return task

    monkeypatch.setattr(Progress, "add_task", note)
    run("eval", folder / "logits.npy", folder / "targets.npy")
    assert totals == [None]


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_three_axes(files, rng, axis, monkeypatch):
    folder, *_ = files
    monkeypatch.setattr("numba_ce.blocks.BLOCK_BYTES", 100)
    logits = rng.integers(-2, 3, (6, 8, 7)).astype(np.float32)  # with ties
    shape = np.delete(logits.shape, axis)
    targets = rng.integers(0, logits.shape[axis], shape)
    targets[0, :2] = -100
    np.save(folder / "logits.npy", logits)
    np.save(folder / "targets.npy", targets)
    result = run("eval", folder / "logits.npy", folder / "targets.npy", "--json", "--axis", axis)
    assert result.exit_code == 0, result.stderr
    values, kept = json.loads(result.stdout), targets != -100
    np.testing.assert_allclose(
        values["loss"], nc.cross_entropy(logits, targets, axis=axis), rtol=1e-6
    )
    assert (values["n_rows"], values["n_kept"]) == (targets.size, kept.sum())
    order = np.argsort(-logits, axis=axis, kind="stable")
    hits = np.moveaxis(order, axis, -1) == targets[..., None]
    np.testing.assert_allclose(values["accuracy"], hits[kept][:, 0].mean(), rtol=1e-12)
    np.testing.assert_allclose(values["top5_accuracy"], hits[kept][:, :5].any(1).mean(), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (np.zeros, {}),
        (lambda shape: np.arange(shape[1]) // 2.0 % 3 + np.zeros(shape), {}),
        (lambda shape: -np.arange(shape[1]) / 1000 + np.full(shape, 50.0), {"softcap": 3.0}),
    ],
    ids=["all equal", "some equal", "equal once capped"],
)
@pytest.mark.parametrize("n_classes", [1, 2, 4, 5, 6, 100])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", ">f8"])
def test_of_equal_classes_the_first_counts_as_the_higher(rng, make, options, n_classes, dtype):
    """As np.argmax and a stable sort have it; softcap changes nothing, it is of stored logits."""
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    logits = make((300, n_classes)).astype(dtype)
    targets = rng.integers(0, n_classes, 300).astype(np.uint64)
    order = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")
    for ignore_index in (-100, 0):
        kept = targets != np.uint64(0) if ignore_index == 0 else np.ones(300, bool)
        if not kept.any():
            continue
        found = evaluate(logits, targets, ignore_index=ignore_index, **options)
        hits = (order == targets[:, None])[kept]
        np.testing.assert_allclose(found.accuracy, hits[:, 0].mean(), rtol=1e-12)
        np.testing.assert_allclose(found.top5_accuracy, hits[:, :5].any(1).mean(), rtol=1e-12)


@pytest.mark.parametrize("n_classes", [3, 8])
def test_rows_without_an_order_are_no_hits(n_classes):
    logits = np.zeros((5, n_classes), np.float32)
    logits[0, 1], logits[1, 1], logits[2] = np.nan, np.inf, -np.inf
    logits[3, 0] = -np.inf
    targets = np.array([1, 1, 0, 1, 0])
    found = evaluate(logits, targets)
    assert found.accuracy == found.top5_accuracy == 2 / 5


@pytest.mark.parametrize(
    ("logits", "targets", "nulls"),
    [
        ([[1e4, 0, 0]], [1], {"perplexity"}),
        ([[0, -np.inf, 0]], [1], {"loss", "log_perplexity", "perplexity"}),
        ([[np.nan, 0, 0]], [1], {"loss", "log_perplexity", "perplexity", "mean_entropy"}),
        (
            [[0, 0, 0]],
            [-100],
            {"loss", "log_perplexity", "perplexity", "accuracy", "top5_accuracy", "mean_entropy"},
        ),
    ],
)
def test_json_has_null_for_what_is_not_finite(tmp_path, logits, targets, nulls):
    np.save(tmp_path / "logits.npy", np.array(logits, np.float32))
    np.save(tmp_path / "targets.npy", targets)
    result = run("eval", tmp_path / "logits.npy", tmp_path / "targets.npy", "--json")

    def refuse(name):
        raise AssertionError(name)

    values = json.loads(result.stdout, parse_constant=refuse)
    assert {name for name, value in values.items() if value is None} == nulls
    if nulls == {"perplexity"}:
        assert values["log_perplexity"] == values["loss"] == 1e4


def test_log_perplexity_is_the_mean_also_with_a_sum(files):
    folder, logits, targets = files
    found = run(
        "eval", folder / "logits.npy", folder / "targets.npy", "--json", "--reduction", "sum"
    )
    expected = nc.cross_entropy(logits, targets)
    np.testing.assert_allclose(json.loads(found.stdout)["log_perplexity"], expected, rtol=1e-6)


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
    "three axes": (lambda f: np.save(f / "logits.npy", np.zeros((3, 4, 5))), "of shape (3, 4)"),
    "one axis": (lambda f: np.save(f / "logits.npy", np.zeros(3)), "expected rows and classes"),
    "probabilities": (
        lambda f: np.save(f / "targets.npy", np.zeros((300, 12))),
        "expected class indices",
    ),
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
    monkeypatch.setattr(
        nc, "available_backends", lambda: {"cpu": "no", "cuda": reason, "numpy": None}
    )
    result = run("info")
    assert reason in result.stdout
    assert result.exit_code == 0


def test_demo(tmp_path):
    pytest.importorskip("matplotlib")
    result = run("demo", "--steps", 3, "--plot", tmp_path / "curves.svg")
    assert result.exit_code == 0, result.output
    text = result.stdout
    accuracies = re.findall(r"([\d.]+)% with", text)
    assert len(accuracies) == 2
    assert min(map(float, accuracies)) > 90
    differences = re.findall(r"at most ([\d.e+-]+\d)", text)
    assert len(differences) == 2
    assert max(map(float, differences)) < 1e-5
    losses, memory = (
        re.findall(r"[\d.]+", line)[:2]
        for line in text.splitlines()
        if "final loss" in line or "logits and loss, MB" in line
    )
    assert 7.0 < float(losses[0]) < np.log(8815)
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6)
    assert 3 * float(memory[0]) < float(memory[1])
    assert max(map(len, text.splitlines())) <= 80
    for words in ("loss +--", "loss step", "whole loop", "less memory"):
        assert words in text
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_demo_refuses_a_bad_plot_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("numba_ce.cli.train_digits", lambda *_: pytest.fail("trained"))
    for path, message in (
        (tmp_path / "curves.pdf", "expected a name that ends in .png or .svg"),
        (tmp_path / "missing" / "curves.svg", "expected a file in a folder"),
    ):
        result = run("demo", "--plot", path)
        assert result.exit_code == 2
        assert message in result.stderr


def test_curve_of_losses():
    lines = curve([3.0, 2.0, 1.0], height=3).splitlines()
    assert lines == ["  3.00 |*  ", "       | * ", "  1.00 |  *", "  loss +---", "  step  1 3"]
    assert "*" in curve([1.0])
    assert max(map(len, curve(list(map(float, range(1000)))).splitlines())) <= 80


def test_text_of_the_demo():
    words, text = load_words()
    assert (len(words), words.dtype.kind, text.dtype.kind) == (8815, "U", "i")
    assert " ".join(words[text[:8]]) == "first citizen : before we proceed any further"


def test_without_the_extra_it_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None\nfrom numba_ce.__main__ import main\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install 'numba-ce[cli]'" in result.stderr


COMMANDS = {
    "info": (),
    "eval": ("logits.npy", "targets.npy"),
    "demo": ("--steps", "5"),
    "bench": ("--shapes", "9x5", "--peers", "none", "--seconds", "0", "--output", "results.json"),
}
BAD_ENVIRONMENTS = {
    "unknown backend": ({"NUMBA_CE_BACKEND": "gpu"}, "'gpu', expected one of auto, cpu, cuda"),
    "no GPU": (
        {"NUMBA_CE_BACKEND": "cuda", "CUDA_VISIBLE_DEVICES": ""},
        "backend 'cuda' is not available",
    ),
    "Numba's": ({"NUMBA_NUM_THREADS": "0"}, "Number of threads specified must be > 0."),
}


@pytest.mark.parametrize("environment", BAD_ENVIRONMENTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_bad_environment_gives_one_line_and_status_2(files, command, environment):
    """In processes of their own: the variables are read once."""
    folder, *_ = files
    variables, message = BAD_ENVIRONMENTS[environment]
    result = subprocess.run(
        [sys.executable, "-m", "numba_ce", command, *COMMANDS[command]],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith(f"numba-ce {command}: ")
    assert len(result.stderr.splitlines()) == 1
    if command == "info":  # all the rest is there
        for word in ("numba_ce", "Python", "backend", "failed", "processor", "GPU"):
            assert word in result.stdout
        assert ("threading layer" in result.stdout) == ("NUMBA_CE_BACKEND" in variables)
    else:
        assert result.stdout == ""
        assert not (folder / "results.json").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("two\nlines"), OSError(5, "disk")])
def test_what_is_expected_to_fail_gives_one_line(files, monkeypatch, error):
    folder, *_ = files

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("numba_ce.cli.evaluate", fail)
    result = run("eval", folder / "logits.npy", folder / "targets.npy")
    assert result.exit_code == 2
    message = " ".join(str(error).split()) or "MemoryError"
    assert result.stderr == f"numba-ce eval: {message}\n"


def test_a_fault_of_ours_keeps_its_traceback(files, monkeypatch):
    folder, *_ = files
    monkeypatch.setattr("numba_ce.cli.evaluate", lambda *_, **__: {}["key"])
    result = run("eval", folder / "logits.npy", folder / "targets.npy")
    assert isinstance(result.exception, KeyError)


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"numba-ce {nc.__version__}\n")


@pytest.mark.parametrize("words", ["numba-ce ev", "numba-ce eval --grad"])
def test_completion(words):
    """What the script of `numba-ce --install-completion` asks."""
    code = "import sys; sys.argv = ['numba-ce']\nfrom numba_ce.__main__ import main\nmain()"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "_NUMBA_CE_COMPLETE": "complete_bash"} | asked,
    )
    assert result.stderr == ""
    assert result.stdout.split() == ["eval" if words.endswith("ev") else "--grad-out"]
