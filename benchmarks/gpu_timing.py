"""Speed of the kernels and of others on a GPU, for `gpu_report`.

Torch makes the arrays where it has CUDA, for its allocator costs no time worth mentioning; else
Numba does, whose arrays need nothing more than the package itself.
"""

from __future__ import annotations

import importlib
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import numba_ce as nc
from benchmarks.parts import report_line
from numba_ce.bench.cases import numpy_dtype

BYTES = 256 << 20  # of logits, at least
#: Calls between two events. One alone would count Python's part of it, some 30 us, as the GPU's
BATCH = 10
Contender = tuple[str, int, Callable[[], object]]
Contenders = Iterator[Contender]


def explained(error: BaseException) -> str:
    """A line that says what went wrong and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


class TorchArrays:
    """Arrays and events of torch."""

    name = "torch"

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.synchronize = torch.cuda.synchronize
        self.empty_like = torch.empty_like

    def logits(self, shape: tuple[int, int], kind: str) -> Any:
        return self.torch.randn(shape, device="cuda").to(getattr(self.torch, kind))

    def targets(self, n_classes: int, n_rows: int) -> Any:
        return self.torch.randint(0, n_classes, (n_rows,), device="cuda")

    def event(self) -> Any:
        return self.torch.cuda.Event(enable_timing=True)

    def baselines(self, x: Any, grad: Any) -> list[Contender]:
        read = lambda: x.sum(dtype=self.torch.float32)  # noqa: E731
        return [("copy", 2, lambda: grad.copy_(x)), ("read", 1, read)]


class Bfloat16:
    """Numba's array of uint16, as one of bfloat16."""

    dtype = "bfloat16"

    def __init__(self, words: Any) -> None:
        self.words = words

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.words.__cuda_array_interface__ | {"typestr": "<V2"}


class NumbaArrays:
    """Arrays and events of Numba."""

    name = "numba"

    def __init__(self) -> None:
        from numba import cuda

        self.cuda, self.synchronize = cuda, cuda.synchronize
        self.rng = np.random.default_rng(0)

    def logits(self, shape: tuple[int, int], kind: str) -> Any:
        some = self.rng.standard_normal(min(shape[0] * shape[1], 1 << 22)).astype(numpy_dtype(kind))
        if kind == "bfloat16":
            return Bfloat16(self.cuda.to_device(np.resize(some.view(np.uint16), shape)))
        return self.cuda.to_device(np.resize(some, shape))

    def targets(self, n_classes: int, n_rows: int) -> Any:
        return self.cuda.to_device(self.rng.integers(0, n_classes, n_rows))

    def empty_like(self, x: Any) -> Any:
        if isinstance(x, Bfloat16):
            return Bfloat16(self.cuda.device_array_like(x.words))
        return self.cuda.device_array_like(x)

    def event(self) -> Any:
        return _NumbaEvent(self.cuda)

    def baselines(self, x: Any, grad: Any) -> list[Contender]:
        to, source = (getattr(array, "words", array) for array in (grad, x))
        return [("copy", 2, lambda: to.copy_to_device(source))]


class _NumbaEvent:
    """With the methods of torch's."""

    def __init__(self, cuda: Any) -> None:
        self.event = cuda.event()
        self.record, self.synchronize = self.event.record, self.event.synchronize

    def elapsed_time(self, other: _NumbaEvent) -> float:
        return float(self.event.elapsed_time(other.event))


def usable_arrays() -> Any:
    """Of torch if it has CUDA, else of Numba."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return NumbaArrays()
    return TorchArrays(torch) if torch.cuda.is_available() else NumbaArrays()


def median_ms(arrays: Any, call: Callable[[], object], repetitions: int) -> float:
    """Time of a call on the device: median over batches between two events."""
    for _ in range(3):
        call()
    arrays.synchronize()
    times = []
    for _ in range(repetitions):
        start, end = arrays.event(), arrays.event()
        start.record()
        for _ in range(BATCH):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / BATCH)
    return statistics.median(times)


def gb_per_second(n_bytes: int, ms: float) -> float:
    """Decimal gigabytes, to four digits."""
    return float(f"{n_bytes / ms / 1e6:.4g}")


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


def speed(
    arrays: Any, kind: str, n_classes: int, repetitions: int, peers: bool, n_bytes: int = BYTES
) -> dict[str, Any]:
    """GB/s of ours or of the peers at one size, beside a device copy.

    n_bytes : of the logits, at least
    """
    size = numpy_dtype(kind).itemsize
    n_rows = -(-n_bytes // (n_classes * size))
    x, y = arrays.logits((n_rows, n_classes), kind), arrays.targets(n_classes, n_rows)
    grad = arrays.empty_like(x)
    n_bytes = n_rows * n_classes * size
    line: dict[str, Any] = {"kind": kind, "n_classes": n_classes, "n_rows": n_rows}
    line["arrays"] = arrays.name

    def measure(contenders: Callable[[], Contenders], who: str) -> None:
        name = who
        try:
            for name, times, call in contenders():
                ms = median_ms(arrays, call, repetitions)
                line[name] = gb_per_second(times * n_bytes, ms)
        except Exception as error:
            line.setdefault("failed", {})[name] = explained(error)

    measure(lambda: iter(arrays.baselines(x, grad)), "copy")
    if peers:
        for peer in PEERS:
            measure(lambda peer=peer: peer(arrays.torch, x, y), peer.__name__)
    else:
        measure(lambda: ours(x, y, grad), "numba_ce")
    if "loss+grad" in line and "copy" in line:
        line["of the copy"] = round(line["loss+grad"] / line["copy"], 3)
    print("  ".join(f"{k} {v}" for k, v in line.items()), flush=True)
    report_line(line)
    return line


def launch_cost(arrays: Any, calls: int = 200) -> dict[str, Any]:
    """Microseconds of Python for a call on small device arrays, the device not waited for."""
    x, y = arrays.logits((8, 1000), "float32"), arrays.targets(1000, 8)
    costs: dict[str, Any] = {"arrays": arrays.name}
    for name, _, call in ours(x, y, arrays.empty_like(x)):
        call()
        arrays.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        costs[name] = round((time.perf_counter() - start) / calls * 1e6, 1)
        arrays.synchronize()
    return costs
