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


OF_JAX = """
for dtype in (jnp.float16, jnp.bfloat16):
    z = logits.astype(dtype)
    value, grad = jax.value_and_grad(lambda z: cross_entropy(z, targets).sum())(z)
    exact = jax.grad(lambda z: -jax.nn.log_softmax(z)[jnp.arange(32), targets].sum())(
        z.astype(jnp.float32)
    )
    assert value.dtype == jnp.float32 and grad.dtype == dtype
    half_ulp = jnp.finfo(dtype).eps / 2
    np.testing.assert_allclose(grad.astype(jnp.float32), exact, rtol=1.1 * half_ulp)
several = jnp.stack([logits, 2 * logits, -logits])
other = jnp.stack([targets, targets[::-1], targets])
for axes in ((0, None), (None, 0), (0, 0)):
    z, y = (logits, several)[axes[0] == 0], (targets, other)[axes[1] == 0]
    losses = jax.vmap(cross_entropy, in_axes=axes)(z, y)
    grads = jax.vmap(jax.grad(lambda z, y: cross_entropy(z, y).sum()), in_axes=axes)(z, y)
    for i in range(3):
        one = [a[i] if axis == 0 else a for a, axis in zip((z, y), axes)]
        expected = numba_ce.cross_entropy_and_grad(*map(np.asarray, one), reduction="none")
        np.testing.assert_array_equal(losses[i], expected[0])
        np.testing.assert_array_equal(grads[i], expected[1])
print("all of it")
"""


def test_recipe_of_jax_with_16_bits_and_vmap(tmp_path):
    pytest.importorskip("jax")
    (tmp_path / "recipe.py").write_text("\n".join([*python_blocks_of(SECTIONS["jax"]), OF_JAX]))
    result = subprocess.run(
        [sys.executable, "recipe.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.stdout == "all of it\n", result.stderr


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
