"""The command `bench`: small cases, with no other library and nothing that depends on a speed."""

from __future__ import annotations

import json
import os
import stat
import sys

import pytest
from typer.testing import CliRunner

from numba_ce.bench import measure, results
from numba_ce.bench.cases import OPERATIONS, PRESETS
from numba_ce.bench.command import parse_shape, select, select_peers
from numba_ce.bench.measure import OURS
from numba_ce.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *(str(a) for a in arguments)])


def test_every_operation_is_timed_beside_its_limit(tmp_path):
    file = tmp_path / "results.json"
    ops = ",".join(OPERATIONS)
    result = run(
        "--shapes", "33x7", "--ops", ops, "--peers", "NumPy", "--seconds", 0, "--output", file
    )
    assert result.exit_code == 0, result.output
    data = json.loads(file.read_text())
    assert [entry["op"] for entry in data["results"]] == list(OPERATIONS)
    for entry in data["results"]:
        assert not entry["failures"]
        assert entry["seconds"][OURS] > 0.0
        assert entry["seconds"][OPERATIONS[entry["op"]].limit] > 0.0
    assert {"processor", "threads"} <= data["machine"].keys()
    assert "33x7" in result.output


SMALL = ("--shapes", "9x5", "--peers", "none", "--seconds", 0)
PLOTTED = ("--shapes", "20000x1000", "--peers", "none", "--seconds", 0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_run(monkeypatch):
    """What is wrong is found before anything is measured."""

    def fail(*_):
        raise AssertionError("measured")

    monkeypatch.setattr("numba_ce.bench.command.run", fail)


def test_json_is_what_the_file_has_and_no_file_is_made_unasked(folder):
    result = run(*SMALL, "--json")
    assert result.exit_code == 0, result.output
    assert [entry["case"] for entry in json.loads(result.stdout)["results"]] == ["grad 9x5 float32"]
    assert not list(folder.iterdir())
    result = run(*SMALL, "--json", "--output", "results.json")
    assert (folder / "results.json").read_text() == result.stdout
    assert os.listdir(folder) == ["results.json"]


def test_results_that_are_not_json_are_refused_and_the_old_ones_stay(folder):
    path = folder / "results.json"
    path.write_text("old")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            results.save({"seconds": value}, path)
    assert path.read_text() == "old"
    assert os.listdir(folder) == ["results.json"]


def test_a_run_that_ends_early_shows_what_it_has(folder, monkeypatch):
    real, calls = measure.measure, []

    def once(case, peers, seconds):
        if calls:
            raise OSError("disk gone")
        calls.append(case)
        return real(case, peers, seconds)

    monkeypatch.setattr(measure, "measure", once)
    result = run("--shapes", "9x5,9x6", "--peers", "none", "--seconds", 0, "--output", "r.json")
    assert result.exit_code == 2
    assert result.stderr == "numba-ce bench: disk gone\n"
    assert "9x5" in result.stdout
    assert [e["shape"] for e in json.loads((folder / "r.json").read_text())["results"]] == [[9, 5]]


ENTRY = {
    "case": "grad 40000x1000 float32", "op": "grad", "shape": [40000, 1000], "axis": -1,
    "dtype": "float32", "variant": "", "counted_bytes": 320_000_000, "all_bytes": 320_320_000,
    "seconds": {"copy": 0.005, "numba_ce": 0.008, "torch.compile": 0.08, "NumPy": 0.1},
    "failures": {},
}  # fmt: skip
COMPARED = ENTRY | {
    "case": "grad 40000x1000 float32 label_smoothing", "variant": "label_smoothing",
    "seconds": {"copy": 0.005, "numba_ce": 0.008, "compared": 0.004},
    "failures": {"JAX": "ValueError: no"},
}  # fmt: skip


def saved(folder, *entries):
    machine = {"processor": "AMD EPYC", "threads": 2}
    data = {"format": results.FORMAT, "machine": machine, "results": list(entries)}
    results.save(data, folder / "saved.json")
    return data


def test_saved_results_are_shown_in_80_columns_without_empty_ones(folder, no_run):
    saved(folder, ENTRY)
    result = run("--from", "saved.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["case", "time", "GB/s", "limit", "share", "fastest", "peer", "gain"]
    cells = "grad 40000x1000 float32", "8.0 ms", "40.0", "64.0", "63%", "torch.compile", "10.0 x"
    assert lines[2].split() == " ".join(cells).split()
    assert [line.partition(":")[0] for line in lines[3:]] == ["limit", "share", "gain"]


def test_names_of_cases_stay_whole_however_narrow_the_terminal(folder, no_run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    saved(folder, ENTRY, COMPARED)
    result = run("--from", "saved.json")
    assert "grad 40000x1000 float32 label_smoothing  8.0 ms" in result.stdout
    assert "2.00" in result.stdout
    assert "label_smoothing: JAX failed: ValueError: no" in result.stdout


def test_saved_results_are_drawn_and_given_as_json(folder, no_run):
    pytest.importorskip("matplotlib")
    data = saved(folder, ENTRY, ENTRY | {"case": "x", "shape": [20000, 2000]})
    result = run("--from", "saved.json", "--plot", "p.svg", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == data
    text = (folder / "p.svg").read_text()
    assert "share of the memory limit" in text
    assert "median 10.0 x the fastest peer" in text


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("{}", (), "saved.json has format None: expected 1, as `bench` writes it"),
        ("[1]", (), "saved.json has format none: expected 1"),
        ("half of", (), "saved.json has format none: expected 1"),
        ("{}", ("--shapes", "9x5"), "--from shows saved results: expected only --plot and --json"),
        ("{}", ("--list",), "--from shows saved results"),
    ],
)
def test_saved_results_that_cannot_be_shown(folder, no_run, text, options, message):
    (folder / "saved.json").write_text(text)
    result = run("--from", "saved.json", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def special(folder, kind):
    path = folder / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(folder / "pipe")
        path.symlink_to(folder / "pipe")
    elif kind == "device":
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
        except PermissionError:
            pytest.skip("only root makes devices")
    return path


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe", "device"])
@pytest.mark.parametrize("option", ["--output", "--plot"])
def test_only_regular_files_are_replaced(folder, no_run, kind, option):
    path = special(folder, kind)
    before = path.lstat().st_mode, path.stat().st_mode
    result = run(*PLOTTED, option, path)
    assert result.exit_code == 2
    assert f"{option[2:]} = '{path}' is not a regular file" in result.stderr
    assert (path.lstat().st_mode, path.stat().st_mode) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "missing/r.json"), "output = 'missing/r.json': expected a file in a folder"),
        (("--plot", "missing/p.svg"), "plot = 'missing/p.svg': expected a file in a folder"),
        (("--plot", "p.pdf"), "plot = 'p.pdf': expected a name that ends in .png or .svg"),
        (("--plot", "svg"), "plot = 'svg': expected a name that ends in .png or .svg"),
        (("--plot", "p.svg", "--output", "./p.svg"), "are both 'p.svg': expected two files"),
        (("--seconds", "inf"), "seconds = inf: expected a finite number"),
    ],
)
def test_outputs_and_seconds_are_checked_before_the_run(folder, no_run, options, message):
    pytest.importorskip("matplotlib")
    result = run(*PLOTTED, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ("--shapes", "9x5"),
        ("--shapes", "20000x1000", "--ops", "loss"),
        ("--shapes", "20000x1000", "--dtypes", "float64"),
        ("--shapes", "20000x1000", "--variants", "softcap"),
        ("--shapes", "20000x1000", "--axis", 0),
        ("--shapes", "20x1000x1000"),
    ],
    ids=str,
)
def test_a_picture_needs_its_cases(folder, no_run, options):
    result = run(*options, "--plot", "p.svg")
    assert result.exit_code == 2
    assert "expected cases of op grad" in result.stderr
    assert not list(folder.iterdir())


def test_a_picture_needs_matplotlib(folder, no_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(*PLOTTED, "--plot", "p.svg")
    assert result.exit_code == 2
    assert "pip install 'numba-ce[bench]'" in result.stderr


def test_a_picture_is_drawn_into_the_file_of_its_link(folder):
    pytest.importorskip("matplotlib")
    (folder / "far.svg").write_text("old")
    (folder / "far.svg").chmod(0o640)
    (folder / "p.svg").symlink_to("far.svg")
    result = run(*PLOTTED, "--plot", "p.svg")
    assert result.exit_code == 0, result.output
    assert (folder / "p.svg").is_symlink()
    assert "<svg" in (folder / "far.svg").read_text()
    assert (folder / "far.svg").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(folder)) == ["far.svg", "p.svg"]


def test_presets_and_their_parts():
    whole = select("full")
    assert len(whole) == len(set(whole)) > 50
    assert all(set(cases) <= set(whole) for name, cases in PRESETS.items() if name != "quick")
    assert {case.op for case in select("full", ops="loss,grad")} == {"loss", "grad"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ops", "sort"), "ops = 'sort': expected some of"),
        (("--preset", "none"), "preset = 'none': expected some of"),
        (("--shapes", "0x3"), "shapes = '0x3': expected lengths"),
        (("--shapes", "3x3", "--preset", "quick"), "both given"),
        (("--peers", "abacus", "--shapes", "3x3"), "peers = 'abacus': expected some of"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_shapes_and_peers():
    assert parse_shape("8x21x512") == (8, 21, 512)
    assert parse_shape("1000") == (40_000, 1000)
    assert select_peers("none") == []
