"""The site: python -m sphinx -W --keep-going docs build/site."""

import sys
from pathlib import Path

from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numba_ce

project, author, copyright = "numba_ce", "the numba_ce developers", "the numba_ce developers"
version = release = numba_ce.__version__
extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
exclude_patterns = ["_build"]
default_role = "code"  # names between single backquotes in docstrings
myst_heading_anchors = 3
myst_fence_as_directive = ["math"]
numpydoc_show_class_members = False
autodoc_typehints = "none"
html_theme = "pydata_sphinx_theme"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_show_sourcelink = False
html_math_renderer = "mathml"
linkcheck_anchors = False


def _mathml(translator, node):
    """Formulas as the browser draws them: no script, nothing from another host."""
    display = "inline" if node.tagname == "math" else "block"
    translator.body.append(convert(node.astext(), display=display))
    from docutils.nodes import SkipNode

    raise SkipNode


def setup(app):
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
