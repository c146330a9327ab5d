"""What a run gives, as JSON."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
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


def default_path() -> Path:
    """One file for each run."""
    return Path("benchmarks", "results", f"{datetime.datetime.now():%Y-%m-%d-%H%M}-cpu.json")


def save(data: dict[str, Any], path: Path) -> None:
    """Whole or not at all, so that a run that is interrupted keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(unfinished, path)


def load(paths: Sequence[Path]) -> dict[str, Any]:
    """The results of some runs as one; of a case that is in several, the last."""
    if not paths:
        raise ValueError("paths is empty: expected at least one file of results")
    runs = [json.loads(path.read_text()) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if run.get("format") != FORMAT:
            raise ValueError(
                f"{path} has format {run.get('format')}: expected {FORMAT}, as `bench` writes it"
            )
    entries = {entry["case"]: entry for run in runs for entry in run["results"]}
    return {**runs[-1], "results": list(entries.values())}
