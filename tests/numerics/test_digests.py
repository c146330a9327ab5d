"""A change of numerics is noticed."""

from __future__ import annotations

import digests
import pytest


def test_digests(cpu):
    """Changed on purpose? `python tests/digests.py` renews the file."""
    kept = digests.kept().get(digests.features())
    if kept is None:
        pytest.skip(f"no digests for {digests.features()}: python tests/digests.py adds them")
    now = digests.digests()
    assert {name: now[name] for name in now if now[name] != kept.get(name)} == {}
    assert kept.keys() == now.keys()
