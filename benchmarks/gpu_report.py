"""Correctness and speed on a real GPU, in under 8 minutes: python -m benchmarks.gpu_report

First the results of the kernels against the float64 reference, then GB/s (CUDA events, medians)
beside a device copy in the same run, compute-sanitizer on small arrays, and whatever of torch,
torch.compile, QuACK, Liger and CuPy is installed. Every part runs in a process of its own with a
limit on its time: a hang, a crash or a failed peer costs no other part. What is known is saved
after every line, as benchmarks/results/DATE-gpu-NAME.json; what fails says why.

    --quick       fewer sizes and repetitions
    --small KIND  correctness of small arrays only, in this process: what compute-sanitizer runs
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import re
import shutil
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import numba_ce as nc
from benchmarks.parts import lines_of, report_line
from numba_ce.bench.cases import numpy_dtype
from numba_ce.bench.machine import versions

RESULTS = Path(__file__).resolve().parent / "results"
KINDS = ("float32", "bfloat16", "float16")
CLASSES = (1024, 4096, 16384, 32768, 50257, 65536, 128256, 262144)
QUICK_CLASSES = (1024, 32768, 50257, 262144)
BYTES = 256 << 20  # of logits, at least
LIMIT = 465.0  # seconds in all
# What the results may be off by, per element, in units of the last place: docs/cuda.md
LOSS_ULPS, ENTRY_ULPS = 8, 12
REFERENCE_ULPS = 16  # of float64, in which the reference computes too
SOFTCAP_ULPS = 3  # of the capped logits
# Rounding to 16 bits, relative, and half the smallest subnormal number
ROUNDING = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}
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


def explained(error: BaseException) -> str:
    """A line that says what went wrong and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


# ---------------------------------------------------------------- speed


def median_ms(torch: Any, call: Callable[[], object], repetitions: int) -> float:
    """Median time between two events around a call."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def gb_per_second(n_bytes: int, ms: float) -> float:
    """Decimal gigabytes."""
    return n_bytes / ms / 1e6


Contenders = Iterator[tuple[str, int, Callable[[], object]]]


def ours(x: Any, y: Any, grad: Any) -> Contenders:
    """(name, bytes that have to move for each byte of the logits, call)."""
    options = {"check_targets": False}
    yield "loss", 1, lambda: nc.cross_entropy(x, y, reduction="sum", **options)
    yield (
        "loss+grad",
        2,
        lambda: nc.cross_entropy_and_grad(x, y, reduction="sum", out=grad, **options),
    )
    yield "loss+grad mean, checked", 2, lambda: nc.cross_entropy_and_grad(x, y, out=grad)
    yield "in place", 2, lambda: nc.cross_entropy_and_grad(x, y, reduction="sum", out=x, **options)


def torch_peers(torch: Any, x: Any, y: Any) -> Contenders:
    """Forward and backward, eager and compiled."""
    functional = torch.nn.functional
    z = x.detach().clone().requires_grad_(True)

    def step(function: Any) -> None:
        z.grad = None
        function(z, y).backward()

    yield "torch", 2, lambda: step(functional.cross_entropy)
    torch.compiler.reset()  # the size is a constant of what is compiled
    compiled = torch.compile(functional.cross_entropy, dynamic=False)
    yield "torch.compile", 2, lambda: step(compiled)


def liger(torch: Any, x: Any, y: Any) -> Contenders:
    """Liger computes the gradient in its forward pass, into its input."""
    module = importlib.import_module("liger_kernel.transformers")
    loss = module.LigerCrossEntropyLoss(reduction="sum")
    z = x.detach().clone().requires_grad_(True)
    yield "Liger", 2, lambda: loss(z, y)


def quack(torch: Any, x: Any, y: Any) -> Contenders:
    """QuACK: loss alone, and loss and gradient in one kernel."""
    module = importlib.import_module("quack.cross_entropy")
    yield "QuACK loss", 1, lambda: module.cross_entropy_fwd(x, y)
    yield "QuACK", 2, lambda: module.cross_entropy_fwd(x, y, return_dx=True)


def cupy_peer(torch: Any, x: Any, y: Any) -> Contenders:
    """The usual few lines in CuPy."""
    cupy = importlib.import_module("cupy")
    z, rows = cupy.asarray(x), cupy.arange(len(y))
    targets = cupy.asarray(y)

    def step() -> None:
        e = cupy.exp(z - z.max(axis=1, keepdims=True))
        e /= e.sum(axis=1, keepdims=True)
        e[rows, targets] -= 1

    yield "CuPy", 2, step


PEERS: tuple[Callable[[Any, Any, Any], Contenders], ...] = (torch_peers, quack, liger, cupy_peer)


def speed(torch: Any, kind: str, n_classes: int, repetitions: int, peers: bool) -> dict[str, Any]:
    """GB/s of ours or of the peers at one size, beside a device copy."""
    dtype = getattr(torch, kind)
    size = torch.empty((), dtype=dtype).element_size()
    n_rows = -(-BYTES // (n_classes * size))
    x = torch.randn((n_rows, n_classes), device="cuda").to(dtype)
    y = torch.randint(0, n_classes, (n_rows,), device="cuda")
    grad = torch.empty_like(x)
    n_bytes = n_rows * n_classes * size
    line: dict[str, Any] = {"kind": kind, "n_classes": n_classes, "n_rows": n_rows}

    def measure(contenders: Callable[[], Contenders], who: str) -> None:
        name = who
        try:
            for name, times, call in contenders():
                ms = median_ms(torch, call, repetitions)
                line[name] = round(gb_per_second(times * n_bytes, ms), 1)
        except Exception as error:
            line.setdefault("failed", {})[name] = explained(error)

    copy = [("copy", 2, lambda: grad.copy_(x)), ("read", 1, lambda: x.sum(dtype=torch.float32))]
    measure(lambda: iter(copy), "copy")
    if peers:
        for peer in PEERS:
            measure(lambda peer=peer: peer(torch, x, y), peer.__name__)
    else:
        measure(lambda: ours(x, y, grad), "numba_ce")
    if "loss+grad" in line and "copy" in line:
        line["of the copy"] = round(line["loss+grad"] / line["copy"], 3)
    print("  ".join(f"{k} {v}" for k, v in line.items()), flush=True)
    report_line(line)
    return line


def launch_cost(torch: Any) -> dict[str, float]:
    """Microseconds of Python for a call on small device arrays, the device not waited for."""
    x = torch.randn((8, 1000), device="cuda")
    y, grad = torch.zeros(8, dtype=torch.int64, device="cuda"), torch.empty_like(x)
    costs = {}
    for name, _, call in ours(x, y, grad):
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(200):
            call()
        costs[name] = round((time.perf_counter() - start) / 200 * 1e6, 1)
        torch.cuda.synchronize()
    return costs


# ---------------------------------------------------------------- parts, each a process


def run_part(name: str, quick: bool) -> None:
    """What a process of its own does: "correctness KIND", "ours KIND", "peers KIND" or "launch"."""
    what, _, kind = name.partition(" ")
    if what == "correctness":
        correctness((kind,), SMALL_CLASSES + LARGE_CLASSES)
        return
    torch = importlib.import_module("torch")
    if what == "launch":
        report_line(launch_cost(torch))
        return
    for n_classes in QUICK_CLASSES if quick else CLASSES:
        try:
            speed(torch, kind, n_classes, 5 if quick else 20, what == "peers")
        except Exception as error:
            report_line({"kind": kind, "n_classes": n_classes, "failed": explained(error)})


def sanitizers(seconds: float) -> Iterator[dict[str, Any]]:
    """memcheck and racecheck of compute-sanitizer over small arrays."""
    program = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        line: dict[str, Any] = {"tool": tool}
        if program is None:
            line["failed"] = "compute-sanitizer is not on the PATH"
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
    with _saving:
        path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def all_parts(report: dict[str, Any], quick: bool, folder: Path = RESULTS) -> None:
    """Run every part and save after every line."""
    end = time.monotonic() + LIMIT

    def collect(key: str, lines: Iterator[dict[str, Any]], **more: Any) -> None:
        found = report.setdefault(key, [])
        for line in lines:
            found.append(more | line)
            save(report, folder)

    def part(key: str, name: str, seconds: float) -> None:
        left = min(seconds, end - time.monotonic())
        if left < 5:
            collect(key, iter([{"failed": "no time left"}]), part=name)
            return
        command = [sys.executable, "-m", "benchmarks.gpu_report", "--part", name]
        collect(key, lines_of(command + ["--quick"] * quick, left), part=name)

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
    collect("sanitizer", sanitizers(max(10.0, min(120.0, left / 2))))
    for kind in KINDS:
        part("peers", f"peers {kind}", (end - time.monotonic()) / (3 - KINDS.index(kind)))


def main(arguments: list[str] | None = None) -> int:
    """Run, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--small", metavar="KIND")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    reason = nc.available_backends()["cuda"]
    if reason is not None:
        print(f"no GPU report: {reason}")
        return 2
    if chosen.part:
        run_part(chosen.part, chosen.quick)
        return 0
    if chosen.small:
        lines = correctness((chosen.small,), SMALL_CLASSES)
        return 1 if any(line["result"] != "ok" for line in lines) else 0
    from numba_ce.cuda.driver import current_driver

    gpu = current_driver()
    device = gpu.device()
    report: dict[str, Any] = {
        "date": str(datetime.date.today()),
        "gpu": gpu.name(device),
        "capability": gpu.capability(device),
        "versions": versions(DISTRIBUTIONS),
    }
    print(json.dumps(report))
    all_parts(report, chosen.quick)
    wrong = [line for line in report["correctness"] if line.get("result") != "ok"]
    print(f"{len(report['correctness'])} cases, {len(wrong)} not ok")
    print("saved", save(report))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
