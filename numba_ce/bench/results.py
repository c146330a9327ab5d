"""What a run gives, as JSON."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from numba_ce.bench.machine import machine, versions

FORMAT = 1


def start(settings: dict[str, Any]) -> dict[str, Any]:
    """Results without an entry yet."""
    return {
        "format": FORMAT,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": settings,
        "machine": machine(),
        "versions": versions(),
        "results": [],
    }


def check_output(path: Path, name: str) -> None:
    """Refuse what is not, and cannot become, a regular file; follows symbolic links."""
    real = Path(os.path.realpath(path))
    if real.exists() and not real.is_file():
        raise ValueError(
            f"{name} = {str(path)!r} is not a regular file: expected one, or a new one"
        )
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{name} = {str(path)!r}: expected a file in a folder that can be written")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path`, which takes its place when it is complete."""
    real = Path(os.path.realpath(path))
    unfinished = real.with_name(f"{real.name}.{os.urandom(4).hex()}.part")
    try:
        yield unfinished
        if real.exists():
            shutil.copymode(real, unfinished)
        os.replace(unfinished, real)
    finally:
        unfinished.unlink(missing_ok=True)


def as_json(data: dict[str, Any]) -> str:
    """As `load` reads it."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def save(data: dict[str, Any], path: Path) -> None:
    """Whole or not at all, so that a run that is interrupted keeps what it has."""
    with replacing(path) as unfinished:
        unfinished.write_text(as_json(data))


def _read(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text())
    except ValueError:
        run = None
    found = run.get("format") if isinstance(run, dict) else "none"
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}: expected {FORMAT}, as `bench` writes it")
    return run  # type: ignore[no-any-return]


def load(paths: Sequence[Path]) -> dict[str, Any]:
    """The results of some runs as one; of a case that is in several, the last."""
    if not paths:
        raise ValueError("paths is empty: expected at least one file of results")
    runs = [_read(path) for path in paths]
    entries = {entry["case"]: entry for run in runs for entry in run["results"]}
    return {**runs[-1], "results": list(entries.values())}
