"""The site builds without a warning and needs no other host."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from test_documentation import FUNCTIONS, ROOT

for module in ("latex2mathml", "myst_parser", "numpydoc", "pydata_sphinx_theme", "sphinx"):
    pytest.importorskip(module)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(folder)]
    command[5:5] = ["-d", str(folder / "doctrees")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_function_is_in_the_reference(site):
    text = (site / "api.html").read_text("utf-8")
    for name in FUNCTIONS:
        assert f'id="numba_ce.{name}"' in text


def test_formulas_are_mathml(site):
    text = (site / "mathematics.html").read_text("utf-8")
    assert text.count("<math ") >= 20
    assert "begin{" not in re.sub(r"<annotation.*?</annotation>", "", text)


def test_nothing_is_loaded_from_another_host(site):
    loaded = r'<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)="(?:https?:)?//'
    for page in site.rglob("*.html"):
        assert not re.search(loaded, page.read_text("utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", sheet.read_text("utf-8")), sheet
