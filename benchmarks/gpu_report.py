"""Correctness and speed on a real GPU, in 8 minutes at most: python -m benchmarks.gpu_report

First the results of the kernels against the float64 reference, then GB/s (CUDA events, medians)
beside a device copy in the same run, compute-sanitizer on small arrays, and whatever of torch,
torch.compile, QuACK, Liger and CuPy is installed. Every part runs in a process of its own with a
limit on its time: a hang, a crash or a failed peer costs no other part. What is known is saved
after every line, as benchmarks/results/DATE-gpu-NAME.json; what fails says why.

    --minutes N      at most so long; each part gets its share
    --sizes quick    fewer sizes and repetitions
    --sizes tiny     small arrays: whether the report itself works, no figure of it is a speed
    --folder FOLDER  where the report is saved
    --small KIND     correctness of small arrays only, in this process: what compute-sanitizer runs
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import numba_ce as nc
from benchmarks.gpu_timing import BYTES, explained, launch_cost, speed, usable_arrays
from benchmarks.parts import lines_of, report_line
from numba_ce.bench.cases import numpy_dtype
from numba_ce.bench.machine import versions

RESULTS = Path(__file__).resolve().parent / "results"
KINDS = ("float32", "bfloat16", "float16")
CLASSES = (1024, 4096, 16384, 32768, 50257, 65536, 128256, 262144)
QUICK_CLASSES = (1024, 32768, 50257, 262144)
MINUTES = 8.0  # in all
SPARE = 15.0  # seconds that are left for the start and the end
# What the results may be off by, per element, in units of the last place: docs/cuda.md
LOSS_ULPS, ENTRY_ULPS = 8, 12
REFERENCE_ULPS = 16  # of float64, in which the reference computes too
SOFTCAP_ULPS = 3  # of the capped logits
# Rounding to 16 bits, relative, and half the smallest subnormal number
ROUNDING = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}
TINY_CLASSES, TINY_BYTES = (10,), 1024
SMALL_CLASSES = (1, 2, 7, 130, 500, 1000, 2049, 4100)
LARGE_CLASSES = (8193, 16390, 32800, 65600, 131100, 262144, 300000)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing, z-loss": {"label_smoothing": 0.1, "z_loss": 1e-2},
    "softcap, temperature": {"softcap": 20.0, "temperature": 0.7},
}


# ---------------------------------------------------------------- correctness


@np.errstate(all="ignore")
def allowed_errors(
    kind: str,
    logits: Any,
    targets: Any,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Any, Any]:
    """What each loss and each entry of the gradient may be off by, the results' rounding aside.

    So many units of the last place of the terms that it is the sum of (of its own if it is one).
    """
    unit = 2.0**-52 if kind == "float64" else 2.0**-23
    more = REFERENCE_ULPS if kind == "float64" else 0
    capped = logits if softcap is None else softcap * np.tanh(logits / softcap)
    x, slope = capped / temperature, 1.0 / temperature
    if softcap is not None:
        slope = slope / np.cosh(logits / softcap) ** 2
    p, lse = nc.softmax(x), nc.logsumexp(x)[:, None]
    is_target = targets[:, None] == np.arange(x.shape[1])
    q = is_target * (1.0 - label_smoothing) + label_smoothing / x.shape[1]
    terms = np.where(is_target, p * (1.0 - q) + q * (1.0 - p), p + q)
    terms += 2.0 * z_loss * np.abs(lse) * p
    ulps, loss_ulps = np.where(is_target, LOSS_ULPS, ENTRY_ULPS) + more, LOSS_ULPS + more
    if kind != "float32":  # what rounding takes from z - m, and so from its exponential
        ulps = ulps + np.where(np.isinf(x), 0.0, x.max(1, keepdims=True) - x)
    loss = loss_ulps * np.nansum(np.where(q > 0.0, q * (lse - x), 0.0), axis=1)
    loss += loss_ulps * z_loss * lse[:, 0] ** 2
    if softcap is not None:
        # What the rounded capped logits do to loss and gradient: see tests/exact.py
        size = np.where(np.isinf(x), 0.0, np.abs(x))
        ulps = ulps + SOFTCAP_ULPS * (
            size + size.max(1, keepdims=True) + 2 * np.abs(capped / softcap)
        )
        loss += SOFTCAP_ULPS * (terms * size).sum(axis=1)
    return unit * loss, unit * ulps * slope * terms


def largest_errors(kind: str, n_classes: int, options: dict[str, Any]) -> tuple[float, float]:
    """Errors of loss and gradient, the largest of all elements, in units of what it may be."""
    rng = np.random.default_rng(n_classes)
    logits = (3 * rng.standard_normal((4, n_classes))).astype(numpy_dtype(kind))
    targets = rng.integers(0, n_classes, 4)
    targets[1] = -100
    logits[1] = np.nan
    if n_classes > 3:
        logits[2, targets[2] - 1] = -np.inf
    wide = logits.astype(np.float64)
    with nc.use_backend("numpy"):
        loss_0, grad_0 = nc.cross_entropy_and_grad(wide, targets, reduction="none", **options)
        of_loss, of_grad = allowed_errors(kind, wide, targets, **options)
    with nc.use_backend("cuda"):
        loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
    relative, floor = ROUNDING.get(kind, (0.0, 0.0))
    of_grad = of_grad + 1.01 * (relative * np.abs(grad_0) + floor)
    return worst(loss, loss_0, of_loss), worst(grad, grad_0, of_grad)


@np.errstate(all="ignore")
def worst(actual: Any, expected: Any, allowed: Any) -> float:
    """The largest error, per element, in units of what is allowed."""
    actual = np.asarray(actual, np.float64)
    error = np.abs(actual - expected) / (np.nan_to_num(allowed) + 2.0**-149)
    return float(np.where(actual == expected, 0.0, error).max())


def correctness(kinds: tuple[str, ...], classes: tuple[int, ...]) -> list[dict[str, Any]]:
    """One line for each kind, size and set of options; errors above 1 are too large."""
    results = []
    for kind in kinds:
        for n_classes in classes:
            for name, options in OPTIONS.items():
                line: dict[str, Any] = {"kind": kind, "n_classes": n_classes, "options": name}
                try:
                    line["loss"], line["grad"] = largest_errors(kind, n_classes, options)
                    good = line["loss"] <= 1 and line["grad"] <= 1
                    line["result"] = "ok" if good else "WRONG"
                    figures = f"loss {line['loss']:.2f}  grad {line['grad']:.2f}"
                except Exception as error:
                    line["result"] = "FAILED"
                    line["reason"] = figures = explained(error)
                print(f"{kind:9} {n_classes:7} {name:22} {line['result']:7} {figures}", flush=True)
                report_line(line)
                results.append(line)
    return results


# ---------------------------------------------------------------- parts, each a process


@dataclass
class Sizes:
    """What is computed and timed."""

    correctness: tuple[int, ...] = SMALL_CLASSES + LARGE_CLASSES
    speed: tuple[int, ...] = CLASSES
    n_bytes: int = BYTES
    repetitions: int = 20
    calls: int = 200  # for the cost of a launch


SIZES = {
    "full": Sizes(),
    "quick": Sizes(speed=QUICK_CLASSES, repetitions=5),
    "tiny": Sizes(TINY_CLASSES, TINY_CLASSES, TINY_BYTES, 1, 2),
}


def run_part(name: str, sizes: Sizes) -> None:
    """What a process of its own does: "correctness KIND", "ours KIND", "peers KIND" or "launch"."""
    what, _, kind = name.partition(" ")
    if what == "correctness":
        correctness((kind,), sizes.correctness)
        return
    arrays = usable_arrays()
    if what == "launch":
        report_line(launch_cost(arrays, sizes.calls))
        return
    if what == "peers" and arrays.name != "torch":
        report_line({"kind": kind, "failed": "there is no torch with CUDA"})
        return
    for n_classes in sizes.speed:
        try:
            speed(arrays, kind, n_classes, sizes.repetitions, what == "peers", sizes.n_bytes)
        except Exception as error:
            report_line({"kind": kind, "n_classes": n_classes, "failed": explained(error)})


def sanitizers(seconds: float) -> Iterator[dict[str, Any]]:
    """memcheck and racecheck of compute-sanitizer over small arrays."""
    program = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        line: dict[str, Any] = {"tool": tool}
        if program is None:
            line["failed"] = "compute-sanitizer is not on the PATH"
        elif seconds < 10:
            line["failed"] = "no time left"
        else:
            command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable]
            command += ["-m", "benchmarks.gpu_report", "--small", "float32"]
            cases = list(lines_of(command, seconds / 2))
            line["cases"] = sum("result" in case for case in cases)
            line["failed"] = [case for case in cases if case.get("result") != "ok"]
        yield line


# ---------------------------------------------------------------- the report


DISTRIBUTIONS = (
    "numba", "numba-cuda", "numpy", "torch", "liger-kernel", "quack-kernels", "cupy", "jax",
)  # fmt: skip
_saving = threading.Lock()


def save(report: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write the report under its date and the name of the GPU."""
    name = re.sub(r"[^a-z0-9]+", "-", str(report["gpu"]).lower()).strip("-")
    path = folder / f"{report['date']}-gpu-{name}.json"
    with _saving:  # complete or as it was, whenever this process is stopped
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(report, indent=1) + "\n")
        unfinished.replace(path)
    return path


def all_parts(
    report: dict[str, Any], sizes: str, folder: Path = RESULTS, minutes: float = MINUTES
) -> None:
    """Run every part and save after every line."""
    end, scale = time.monotonic() + 60 * minutes - SPARE, minutes / MINUTES

    def collect(key: str, lines: Iterator[dict[str, Any]], **more: Any) -> None:
        found = report.setdefault(key, [])
        for line in lines:
            found.append(more | line)
            save(report, folder)

    def part(key: str, name: str, seconds: float) -> None:
        left = min(seconds * scale, end - time.monotonic())
        if left < 5:
            collect(key, iter([{"failed": "no time left"}]), part=name)
            return
        command = [sys.executable, "-m", "benchmarks.gpu_report", "--part", name]
        collect(key, lines_of([*command, "--sizes", sizes], left), part=name)

    # What counts most comes first. Correctness is mostly compiling, so the dtypes go side by side
    part("speed", "ours bfloat16", 60)
    kinds = (*KINDS, "float64")
    threads = [
        threading.Thread(target=part, args=("correctness", f"correctness {kind}", 120))
        for kind in kinds
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for kind in ("float32", "float16"):
        part("speed", f"ours {kind}", 60)
    part("launch_us", "launch", 40)
    left = end - time.monotonic()
    collect("sanitizer", sanitizers(min(120.0 * scale, left / 2)))
    for kind in KINDS:
        left = end - time.monotonic()
        part("peers", f"peers {kind}", left / scale / (3 - KINDS.index(kind)))


def main(arguments: list[str] | None = None) -> int:
    """Run, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    parser.add_argument("--sizes", choices=SIZES, default="full")
    parser.add_argument("--small", metavar="KIND")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if not 1 <= chosen.minutes <= 60:
        parser.error(f"--minutes {chosen.minutes:g}: expected 1 to 60")
    reason = nc.available_backends()["cuda"]
    if reason is not None:
        print(f"no GPU report: {reason}")
        return 2
    if chosen.part:
        run_part(chosen.part, SIZES[chosen.sizes])
        return 0
    if chosen.small:
        lines = correctness((chosen.small,), SMALL_CLASSES)
        return 1 if any(line["result"] != "ok" for line in lines) else 0
    from numba_ce.cuda.driver import current_driver
    from numba_ce.cuda.ptx import toolkit_version

    gpu = current_driver()
    device = gpu.device()
    report: dict[str, Any] = {
        "date": str(datetime.date.today()),
        "gpu": gpu.name(device),
        "capability": gpu.capability(device),
        "driver": gpu.version,
        "toolkit": toolkit_version(),
        "sizes": chosen.sizes,
        "versions": versions(DISTRIBUTIONS),
    }
    print(json.dumps(report))
    chosen.folder.mkdir(parents=True, exist_ok=True)
    all_parts(report, chosen.sizes, chosen.folder, chosen.minutes)
    wrong = [line for line in report["correctness"] if line.get("result") != "ok"]
    print(f"{len(report['correctness'])} cases, {len(wrong)} not ok")
    print("saved", save(report, chosen.folder))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
