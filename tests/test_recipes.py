"""Every section of the recipes is a program that runs; the table in the README leads to them."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys

import pytest
from test_documentation import ROOT, python_blocks_of

import numba_ce

PAGE = ROOT / "docs" / "recipes.md"


def anchor(title):
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


SECTIONS = {
    anchor(title): body
    for title, body in re.findall(
        r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
}


def imported(tree):
    """The modules that a program imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("name", SECTIONS)
def test_recipe(name, tmp_path):
    """In a process of its own: JAX and MPI would stay in this one."""
    program = "\n".join(python_blocks_of(SECTIONS[name]))
    assert program, f"{name} has no program"
    for module in set(imported(ast.parse(program))):
        top = module.split(".")[0]
        if importlib.util.find_spec(top) is None:
            pytest.skip(f"needs {top}")
    (tmp_path / "recipe.py").write_text(program, "utf-8")
    result = subprocess.run(
        [sys.executable, "recipe.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    if "cannot load MPI library" in result.stderr:
        pytest.skip("needs an MPI")
    assert result.returncode == 0, result.stderr


def test_every_row_of_the_table_leads_to_a_recipe():
    readme = (ROOT / "README.md").read_text("utf-8")
    table = re.search(r"^\| your data is.*?(?=\n\n)", readme, re.MULTILINE | re.DOTALL).group()
    rows = table.splitlines()[2:]
    assert len(rows) >= 12
    linked = []
    for row in rows:
        found = re.findall(r"\(docs/recipes\.md#([\w-]+)\)", row)
        assert found, row
        linked += found
        for function in re.findall(r"`(?:numba_ce\.)?([a-z_]+)`", row.split("|")[2]):
            where = [numba_ce, *map(_integration, ("dask", "mpi", "torch", "boosting"))]
            names = {n for m in where for n in (dir(m) if m else ())}
            assert function in names or None in where, f"{row}: no function {function}"
    assert set(linked) <= set(SECTIONS)


def _integration(name):
    try:
        return importlib.import_module(f"numba_ce.integrations.{name}")
    except (ImportError, RuntimeError):
        return None
