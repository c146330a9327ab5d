"""What says the same in two places."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import numba_ce

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", ["CITATION.cff", "conda/meta.yaml"])
def test_version(name):
    (found,) = re.findall(r"^ *version: (.*)$", (ROOT / name).read_text(), re.MULTILINE)
    assert found == numba_ce.__version__


def test_conda_recipe_has_the_dependencies_of_the_package():
    text = (ROOT / "conda" / "meta.yaml").read_text()
    run = text.split("  run:\n")[1].split("\n\n")[0]
    found = {line.partition("#")[0].strip(" -").replace(" ", "") for line in run.splitlines()}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cli"]]
    expected = {dependency.partition(";")[0] for dependency in wanted}
    assert found == expected | {"python" + PROJECT["requires-python"]}
