"""The table of deliberate faults fits the code as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutate import FAULTS, ROOT

import numba_ce

PACKAGE = Path(numba_ce.__file__).parent  # the installed one, where that is what is tested


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_to_replace_is_there_once(fault):
    text = (PACKAGE / fault.file).read_text()
    assert text.count(fault.old) == 1
    assert fault.old != fault.new
    assert (ROOT / "tests" / fault.tests.split()[0]).exists()
