"""Every example in the documentation runs and shows what it says."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import numba_ce

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = [name for name in numba_ce.__all__ if inspect.isfunction(getattr(numba_ce, name))]
RECIPES = ROOT / "docs" / "recipes.md"  # run by test_recipes.py, each by itself
PAGES = sorted({ROOT / "README.md", *ROOT.glob("docs/**/*.md")} - {RECIPES})
BLOCK = re.compile(r"^```(\w[\w-]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCTEST_FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def run_doctest(test, **options):
    report = []
    runner = doctest.DocTestRunner(optionflags=DOCTEST_FLAGS, verbose=False)
    runner.run(test, out=report.append, **options)
    assert not report, "".join(report)


def python_blocks_of(text):
    return [body for kind, body in BLOCK.findall(text) if kind == "python"]


def python_blocks(page):
    return python_blocks_of(page.read_text("utf-8"))


def functions_of(module):
    return [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_")
        if value.__module__ == module.__name__
    ]


@pytest.mark.parametrize("name", ["boosting", "dask", "mpi", "torch"])
def test_functions_of_integrations(name):
    try:
        module = importlib.import_module(f"numba_ce.integrations.{name}")
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI
        pytest.skip(str(error))
    functions = functions_of(module)
    assert functions
    for function in functions:
        tests = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs={})
        assert sum(len(test.examples) for test in tests) > 0, f"{function} has no example"
        for test in tests:
            run_doctest(test)
        for argument in inspect.signature(function).parameters:
            assert re.search(rf"\b{argument}\b", function.__doc__), f"{function}: {argument}"


def test_there_is_something_to_check():
    assert len(FUNCTIONS) >= 15
    assert sum(len(python_blocks(page)) for page in PAGES) >= 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_of_public_functions(name, backend):
    function = getattr(numba_ce, name)
    finder = doctest.DocTestFinder(recurse=False)
    tests = finder.find(function, name, globs={})
    assert sum(len(test.examples) for test in tests) > 0, f"{name} has no example"
    for test in tests:
        run_doctest(test)


def test_tab_shows_public_names_alone():
    """In a process that has imported the private modules too."""
    importlib.import_module("numba_ce.cpu")
    shown = {name for name in dir(numba_ce) if not name.startswith("__")}
    assert shown == {*numba_ce.__all__, "integrations"}
    assert all(hasattr(numba_ce, name) for name in dir(numba_ce))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_documented(name):
    function = getattr(numba_ce, name)
    text = inspect.getdoc(function) or ""
    for argument in inspect.signature(function).parameters:
        if not argument.startswith("_"):
            assert re.search(rf"\b{argument}\b", text), f"{name}: {argument} is not mentioned"


# Not asked for: line breaks around quotes, more than a summary, capitals of dtype names,
# a verb where a summary begins with a formula, descriptions of related functions
STYLE = {"GL01", "GL02", "GL03", "ES01", "SS05", "PR08", "RT04", "SA04"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpydoc(name):
    validate = pytest.importorskip("numpydoc.validate").validate
    errors = validate(f"numba_ce.{name}")["errors"]
    assert [error for error in errors if error[0] not in STYLE] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_blocks_of_pages(page, tmp_path, monkeypatch):
    """In order, in one namespace; blocks with >>> are doctests, the others just run."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(python_blocks(page), 1):
        if ">>>" in block:
            parser = doctest.DocTestParser()
            test = parser.get_doctest(block, names, f"block {number}", page.name, 0)
            run_doctest(test, clear_globs=False)
            names = test.globs
        else:
            exec(compile(ast.parse(block), f"{page.name}, block {number}", "exec"), names)
