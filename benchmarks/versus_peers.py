"""Loss and gradient of numba_ce, NumPy and whatever peer is installed, in one run.

    python benchmarks/versus_peers.py [--quick] [--out benchmarks/results/NAME.json]

Every round times the streaming copy and each contender once, in turn; the figures are medians over
the rounds, as GB/s of 8 bytes per element (logits read, gradient written). Two threads each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

N_THREADS = 2
for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, str(N_THREADS))
os.environ.setdefault(
    "XLA_FLAGS", f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={N_THREADS}"
)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

import numba_ce  # noqa: E402
from benchmarks.limits import streaming_copy  # noqa: E402
from numba_ce.demo import numpy_loss_and_grad  # noqa: E402

SHAPES = ((1048576, 10), (65536, 1000), (4096, 32000), (1024, 128256))
Contender = Callable[[], object]


def ours(logits: np.ndarray, targets: np.ndarray, grad: np.ndarray) -> Contender:
    return lambda: numba_ce.cross_entropy_and_grad(logits, targets, out=grad)


def torch_contenders(logits: np.ndarray, targets: np.ndarray) -> dict[str, Contender]:
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(N_THREADS)
    z = torch.from_numpy(logits.copy()).requires_grad_()
    y = torch.from_numpy(targets.astype(np.int64))

    def step(loss_of: Any) -> Contender:
        def run() -> None:
            z.grad = None
            loss_of(z, y).backward()

        return run

    loss_of = torch.nn.functional.cross_entropy
    return {"torch": step(loss_of), "torch.compile": step(torch.compile(loss_of))}


def jax_contender(logits: np.ndarray, targets: np.ndarray) -> dict[str, Contender]:
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return {}

    def loss(z: Any, y: Any) -> Any:
        picked = jnp.take_along_axis(jax.nn.log_softmax(z), jnp.maximum(y, 0)[:, None], axis=1)
        kept = y != -100
        return -jnp.where(kept, picked[:, 0], 0.0).sum() / kept.sum()

    function = jax.jit(jax.value_and_grad(loss))
    z, y = jnp.asarray(logits), jnp.asarray(targets)
    return {"JAX": lambda: jax.block_until_ready(function(z, y))}


def sklearn_contender(logits: np.ndarray, targets: np.ndarray) -> dict[str, Contender]:
    try:
        from sklearn._loss import HalfMultinomialLoss
    except ImportError:
        return {}
    if (targets < 0).any() or logits.nbytes > 300e6:
        return {}  # it has no ignored rows, and at many classes takes minutes
    loss = HalfMultinomialLoss(n_classes=logits.shape[1])
    y, z = targets.astype(np.float32), logits.astype(np.float32)
    grad, rows = np.empty_like(z), np.empty(len(z), np.float32)
    return {
        "scikit-learn": lambda: loss.loss_gradient(
            y_true=y, raw_prediction=z, loss_out=rows, gradient_out=grad, n_threads=N_THREADS
        )
    }


def make_case(shape: tuple[int, int], case: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(shape, dtype=np.float32)
    targets = rng.integers(0, shape[1], shape[0])
    if case == "trained":  # the target is ahead by 8 to 16
        rows = np.arange(shape[0])
        logits[rows, targets] = logits.max(axis=1) + rng.uniform(8, 16, shape[0])
    elif case == "30% ignored":
        targets[rng.random(shape[0]) < 0.3] = -100
    elif case == "int32 targets":
        targets = targets.astype(np.int32)
    return logits, targets


def measure(shape: tuple[int, int], case: str, seconds: float) -> dict[str, float]:
    """GB/s of each contender."""
    logits, targets = make_case(shape, case)
    grad = np.zeros_like(logits)
    contenders: dict[str, Contender] = {
        "copy": lambda: streaming_copy(logits, grad),
        "numba_ce": ours(logits, targets, grad),
    }
    if case == "normal":
        contenders["NumPy"] = lambda: numpy_loss_and_grad(logits, targets)
        contenders |= sklearn_contender(logits, targets)
    contenders |= torch_contenders(logits, targets) | jax_contender(logits, targets)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["copy"]) < 5:
        for name, contender in contenders.items():
            begin = time.perf_counter()
            contender()
            times[name].append(time.perf_counter() - begin)
    return {
        name: 2 * logits.nbytes / statistics.median(taken) / 1e9 for name, taken in times.items()
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "numba_ce": numba_ce.__version__}
    for name in ("numpy", "numba", "torch", "jax", "sklearn"):
        if name in sys.modules:
            found[name] = sys.modules[name].__version__
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the normal case only, 5 rounds")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    cases = ("normal", "trained", "30% ignored", "int32 targets")
    results = []
    for case in cases[: 1 if arguments.quick else None]:
        for shape in SHAPES:
            speeds = measure(shape, case, 0.0 if arguments.quick else 15.0)
            results.append({"shape": shape, "case": case, "gb_per_second": speeds})
            row = "  ".join(f"{name} {speed:.1f}" for name, speed in speeds.items())
            print(f"{case:14} {shape[0]}x{shape[1]}: {row}", flush=True)
    if arguments.out:
        text = {"versions": versions(), "threads": N_THREADS, "results": results}
        arguments.out.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
