"""What compiled code raises: it passes numbers, and here they become a message.

The names of the classes never change: code that Numba keeps on disk asks for them.
"""

from __future__ import annotations

from typing import Any

from numba_ce._validate import bad_target_text, check_scale
from numba_ce.integrations.numba import call
from numba_ce.options import TABLE


def _option(which: int, value: float) -> str:
    try:
        TABLE[call.NUMBERS[which]].check(value)  # type: ignore[misc]
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{call.NUMBERS[which]} = {value} is refused, but not by Python")


def _scale(which: int, value: float, double: int) -> str:
    try:
        check_scale(
            call.NUMBERS[which], value, "float64" if double else "float32", "in compiled code"
        )
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{call.NUMBERS[which]} = {value} is refused, but not by Python")


def _text(status: int, a: int, b: int, c: int, d: int, x: float, ndim: int, ignored: Any) -> str:
    if status == call.BAD_TARGET:
        value = b if d == 0 else b % 2**64
        return bad_target_text([a] if ndim == 2 else [], value, c, ignored)
    if status == call.OPTION:
        return _option(a, x)
    if status == call.SCALE:
        return _scale(a, x, b)
    if status == call.OUT_OVERLAPS:
        return (
            f"out overlaps {call.OVERLAPPED[a]}: expected separate memory"
            + ", or the same view for in place" * (a == 0)
        )
    texts: dict[Any, str] = {
        call.TARGETS_LENGTH: f"targets have shape ({a},): expected ({b},), one per row of logits",
        call.SAMPLE_WEIGHT_LENGTH: f"sample_weight has shape ({a},): expected ({b},)",
        call.CLASS_WEIGHT_LENGTH: f"class_weight has shape ({a},): expected ({b},)",
        call.OUT_SHAPE: f"out has shape {(a, b)[2 - ndim :]}: expected {(c, d)[2 - ndim :]}, "
        "as the logits",
        call.OUT_STRIDES: f"out has strides {(a, b)[2 - ndim :]}: its elements overlap each other",
        call.NO_CLASSES: f"logits of {a} rows have no classes: expected at least one",
    }
    return texts[status]


class InputError(ValueError):
    """Raises a ValueError."""

    def __new__(  # type: ignore[misc]
        cls,
        status: int,
        a: int,
        b: int,
        c: int,
        d: int,
        x: float,
        ndim: int,
        has_ignored: int,
        ignored: int,
    ) -> ValueError:
        return ValueError(_text(status, a, b, c, d, x, ndim, ignored if has_ignored else None))


class UnusableError(RuntimeError):
    """Raises what keeps compiled code from running, whatever it is given."""

    def __new__(cls, status: int) -> Exception:  # type: ignore[misc]
        if status == call.NO_MEMORY:
            return MemoryError("no memory for the workspace of a numba_ce kernel")
        if status == call.STALE:
            return RuntimeError(
                "this function was compiled with another version of numba_ce, and Numba kept it "
                "on disk: delete its files (*.nbi and *.nbc) from __pycache__ or NUMBA_CACHE_DIR"
            )
        from numba_ce.integrations.numba.entry import failures

        error = RuntimeError("a numba_ce kernel could not be compiled or loaded")
        error.__cause__ = failures[-1] if failures else None
        return error
