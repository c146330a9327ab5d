"""The command `bench`: small cases, with no other library and nothing that depends on a speed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

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
        "--shapes", "33x7", "--ops", ops, "--peers", "NumPy", "--seconds", 0, "--json", file
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


def test_a_picture_needs_its_cases(tmp_path):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "results.json", tmp_path / "picture.svg"
    result = run(
        "--shapes", "9x5", "--peers", "none", "--seconds", 0, "--json", file, "--plot", picture
    )  # fmt: skip
    assert result.exit_code == 2
    assert "expected cases of op grad" in result.output
    assert not picture.exists()


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
