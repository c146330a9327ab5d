"""The command `bench`: which cases, in which order, with which progress."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from numba_ce import get_backend
from numba_ce.bench.cases import DTYPES, ELEMENTS, OPERATIONS, PRESETS, VARIANTS, Case, shape_of
from numba_ce.bench.libraries import LIBRARIES, installed

PLAIN = "plain"


def chosen(name: str, text: str | None, allowed: Any) -> list[str] | None:
    """The names in a list with commas, or None for all; an error names what is allowed."""
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    for one in names:
        if one not in allowed:
            raise ValueError(f"{name} = {one!r}: expected some of {', '.join(allowed)}")
    if not names:
        raise ValueError(f"{name} = {text!r}: expected some of {', '.join(allowed)}")
    return names


def parse_shape(text: str) -> tuple[int, ...]:
    """ "4096x1000", or "1000" for so many classes and about 40 million logits."""
    try:
        shape = tuple(map(int, text.strip().split("x")))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(
            f"shapes = {text!r}: expected lengths such as 4096x1000, or 1000 for so many classes "
            f"and {ELEMENTS} logits"
        )
    return shape if len(shape) > 1 else shape_of(shape[0])


def select(
    preset: str | None,
    shapes: str | None = None,
    axis: int = -1,
    ops: str | None = None,
    dtypes: str | None = None,
    variants: str | None = None,
) -> list[Case]:
    """The cases of a preset that match; with `shapes`, all combinations with these shapes."""
    names = chosen("preset", preset, PRESETS)
    op = chosen("ops", ops, OPERATIONS)
    dtype = chosen("dtypes", dtypes, DTYPES)
    variant = chosen("variants", variants, (PLAIN, *VARIANTS))
    if shapes is not None:
        if names is not None:
            raise ValueError("shapes and preset are both given: expected one of them")
        grid = product(
            op or ["grad"],
            map(parse_shape, shapes.split(",")),
            dtype or ["float32"],
            [axis],
            ["" if name == PLAIN else name for name in variant or [PLAIN]],
        )
        cases = [Case(*values) for values in grid]
        for case in cases:
            if not -len(case.shape) <= axis < len(case.shape):
                raise ValueError(f"axis = {axis}: expected an axis of shape {case.shape}")
    else:
        cases = [
            case
            for name in names or ["quick"]
            for case in PRESETS[name]
            if op is None or case.op in op
            if dtype is None or case.dtype in dtype
            if variant is None or (case.variant or PLAIN) in variant
        ]
    if not cases:
        raise ValueError(f"preset = {preset!r} has no case with these ops, dtypes and variants")
    return list(dict.fromkeys(cases))


def select_peers(text: str | None) -> list[str]:
    """All that are installed, or those named, or none for "none"."""
    found = installed()
    if text is None or text == "none":
        return found if text is None else []
    names = chosen("peers", text, LIBRARIES) or []
    for name in names:
        if name not in found:
            raise ImportError(
                f"peers = {name!r} is not installed: pip install 'numba-ce[peers]', or install "
                f"{name.partition('.')[0]} alone"
            )
    return names


def check(cases: list[Case], seconds: float, output: Path | None, plot: Path | None) -> None:
    """Find out before a run what would end it, or lose its results at the end."""
    from numba_ce.bench.report import check_picture
    from numba_ce.bench.results import check_output

    get_backend()  # raises for a bad variable
    if not math.isfinite(seconds):
        raise ValueError(f"seconds = {seconds}: expected a finite number")
    for name, path in {"output": output, "plot": plot}.items():
        if path is not None:
            check_output(path, name)
    if plot is not None:
        check_picture(cases, plot)
        if output is not None and os.path.realpath(output) == os.path.realpath(plot):
            raise ValueError(f"output and plot are both {str(plot)!r}: expected two files")


def run(
    data: dict[str, Any],
    cases: list[Case],
    output: Path | None,
    progress: Callable[[int, str], None],
) -> None:
    """Measure the cases into `data`, which is saved after each if there is an output."""
    from numba_ce.bench import results
    from numba_ce.bench.measure import measure, touch_memory

    peers, seconds = data["settings"]["peers"], data["settings"]["seconds"]
    touch_memory(6 * max(case.counted_bytes for case in cases))
    for done, case in enumerate(cases):
        progress(done, str(case))
        data["results"].append(measure(case, peers, seconds))
        if output is not None:
            results.save(data, output)
    progress(len(cases), "")
