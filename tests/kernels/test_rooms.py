"""Rooms of the CPU backend import one way, and its files stay short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import numba_ce.cpu

CPU = Path(numba_ce.cpu.__file__).parent
#: Each room imports only from itself and from those before it.
ROOMS = ("compile", "simd", "plan", "rows", "choose", "schedules", "operations", "run")
FILES = sorted(CPU.rglob("*.py"))


def room_of(module):
    """The index in ROOMS of a module of numba_ce.cpu; None for another one."""
    parts = module.split(".")
    if parts[:2] != ["numba_ce", "cpu"]:
        return None
    return ROOMS.index(parts[2]) if len(parts) > 2 else len(ROOMS)


def modules_imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "numba_ce.cpu":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_is_in_a_room():
    found = {path.relative_to(CPU).parts[0].removesuffix(".py") for path in FILES}
    assert found == {*ROOMS, "__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CPU)))
def test_imports_go_one_way(path):
    own = ".".join(("numba_ce", "cpu", *path.relative_to(CPU).with_suffix("").parts))
    here = room_of(own.removesuffix(".__init__"))
    rooms = map(room_of, modules_imported(ast.parse(path.read_text())))
    later = [ROOMS[room] for room in rooms if room is not None and room > here]
    assert not later, f"{own} imports from {later}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CPU)))
def test_private_parts_of_numba_are_in_one_room(path):
    private = ("numba.core", "numba._", "numba.np")
    found = [name for name in modules_imported(ast.parse(path.read_text())) if name]
    assert "compile" in path.parts or not [name for name in found if name.startswith(private)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CPU)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 400
