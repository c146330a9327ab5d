"""asv: the loss, loss and gradient, in place, and small problems, each beside plain NumPy.

The parameter `by` names who computes: a backend, or "plain numpy". Everything is called once in
`setup`, so that nothing is compiled while the clock runs. `setup` does not run between the `number`
iterations of a sample: in place, where a call changes its input, `number` is 1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import numba_ce
from numba_ce.bench import limits

from . import baseline

BY = ["cpu", "cuda", "plain numpy"]
SHAPES = ["1048576x10", "16384x1000", "1024x32000"]
BEYOND_CACHES = 256 << 20  # bytes
SMALL_SHAPES = ["1x10", "32x10", "128x100", "8x1000"]


def size(shape: str) -> tuple[int, int]:
    """Rows and classes of "64x1000"."""
    n_rows, n_classes = shape.split("x")
    return int(n_rows), int(n_classes)


def need(by: str) -> None:
    """Leave a benchmark out where its backend is absent."""
    if by != "plain numpy" and numba_ce.available_backends()[by] is not None:
        raise NotImplementedError(f"no backend {by}")


class Base:
    params: list[list[str]] = [BY, SHAPES]
    param_names = ["by", "shape"]
    timeout = 300

    def setup(self, by: str, shape: str) -> None:
        need(by)
        if by != "plain numpy":
            numba_ce.set_backend(by)
        self.logits, self.targets = baseline.make_problem(*size(shape))
        self.out = np.zeros_like(self.logits)
        self.call(by)

    def teardown(self, by: str, shape: str) -> None:
        numba_ce.set_backend("auto")

    def call(self, by: str) -> Any:
        raise NotImplementedError


class Loss(Base):
    def call(self, by: str) -> Any:
        one = baseline.loss if by == "plain numpy" else numba_ce.cross_entropy
        return one(self.logits, self.targets)

    def time_loss(self, by: str, shape: str) -> None:
        self.call(by)


class LossAndGrad(Base):
    def call(self, by: str) -> Any:
        plain = by == "plain numpy"
        one = baseline.loss_and_grad if plain else numba_ce.cross_entropy_and_grad
        return one(self.logits, self.targets, out=self.out)

    def time_loss_and_grad(self, by: str, shape: str) -> None:
        self.call(by)


class InPlace(Base):
    number = 1

    def call(self, by: str) -> Any:
        plain = by == "plain numpy"
        one = baseline.loss_and_grad if plain else numba_ce.cross_entropy_and_grad
        return one(self.logits, self.targets, out=self.logits)

    def setup(self, by: str, shape: str) -> None:
        super().setup(by, shape)
        self.logits[...] = baseline.make_problem(*size(shape))[0]

    def time_in_place(self, by: str, shape: str) -> None:
        self.call(by)


class Small(LossAndGrad):
    """The cost of a call: argument checks, and no thread to wake."""

    params = [BY, SMALL_SHAPES]

    def time_loss_and_grad(self, by: str, shape: str) -> None:
        self.call(by)


def over(call: Callable[[], Any], limit: Callable[[], Any], rounds: int = 9) -> float:
    """Median time of `call` over that of `limit`, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for one, record in zip((call, limit), times, strict=True):
            begin = time.perf_counter()
            one()
            record.append(time.perf_counter() - begin)
    return statistics.median(times[0]) / statistics.median(times[1])


class OverLimit(Base):
    """Time over the time of the memory traffic that cannot be avoided: 1 is the limit.

    The limit is measured on arrays too large for the caches and scaled to the size of the logits:
    it is the same for every shape and does not depend on what a call left in the caches.
    """

    unit = "times the limit"

    def setup(self, by: str, shape: str) -> None:
        need(by)
        if by == "cuda":
            raise NotImplementedError("the limits are those of host memory")
        super().setup(by, shape)
        # ones: pages of zeros that nobody has written share one page, which stays in the caches
        self.source, self.target = (np.ones(BEYOND_CACHES // 4, np.float32) for _ in range(2))
        limits.copy(self.source, self.target)
        limits.flip(self.target)
        limits.read(self.source)

    def call(self, by: str) -> Any:
        return LossAndGrad.call(self, by)  # type: ignore[arg-type]

    def over(self, call: Callable[[], Any], limit: Callable[[], Any]) -> float:
        return over(call, limit) * BEYOND_CACHES / self.logits.nbytes

    def track_loss_and_grad_over_copy(self, by: str, shape: str) -> float:
        return self.over(lambda: self.call(by), lambda: limits.copy(self.source, self.target))

    def track_in_place_over_read_and_write(self, by: str, shape: str) -> float:
        return self.over(
            lambda: InPlace.call(self, by),  # type: ignore[arg-type]
            lambda: limits.flip(self.target),
        )

    def track_loss_over_read(self, by: str, shape: str) -> float:
        return self.over(
            lambda: Loss.call(self, by),  # type: ignore[arg-type]
            lambda: limits.read(self.source),
        )
