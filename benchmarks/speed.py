"""asv: what functions.py leaves out: other backends and plain NumPy, small problems, the limits.

The parameter `by` names who computes: a backend, or "NumPy". Everything is called once in `setup`,
so that nothing is compiled while the clock runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

import numba_ce
from numba_ce.bench import limits
from numba_ce.bench.cases import Case, make
from numba_ce.bench.libraries import ours, plain_numpy
from numba_ce.bench.timing import Contender, take_turns

SHAPES = ["1048576x10", "16384x1000", "1024x32000"]
SMALL_SHAPES = ["1x10", "32x10", "128x100", "8x1000"]
OPERATIONS = ["loss", "grad", "grad_in_place"]
BEYOND_CACHES = 256 << 20  # bytes
SECONDS = 1.0


class Base:
    timeout = 300

    def setup(self, operation: str, by: str, shape: str) -> None:
        """Leaves out what cannot run."""
        n_rows, n_classes = map(int, shape.split("x"))
        case = Case(operation, (n_rows, n_classes))
        self.problem = make(case)
        if by != "NumPy":
            if numba_ce.available_backends()[by] is not None:
                raise NotImplementedError(f"no backend {by}")
            numba_ce.set_backend(by)
        call = plain_numpy(case, self.problem) if by == "NumPy" else ours(case, self.problem)
        if call is None:
            raise NotImplementedError(f"{by} does not do {operation}")
        self.call: Callable[[], Any] = call
        self.call()

    def teardown(self, operation: str, by: str, shape: str) -> None:
        numba_ce.set_backend("auto")


class Others(Base):
    """The CPU kernels are timed in functions.py."""

    pretty_name = "Other backends and NumPy"

    params = [OPERATIONS, ["cuda", "NumPy"], SHAPES]
    param_names = ["operation", "by", "shape"]

    def time_operation(self, operation: str, by: str, shape: str) -> None:
        self.call()


class Small(Base):
    """The cost of a call: argument checks, and no thread to wake."""

    pretty_name = "Small calls"

    params = [["grad"], ["cpu", "cuda", "NumPy"], SMALL_SHAPES]
    param_names = ["operation", "by", "shape"]

    def time_operation(self, operation: str, by: str, shape: str) -> None:
        self.call()


class OverLimit(Base):
    """Time over the time of the memory traffic that cannot be avoided: 1 is the limit.

    The limit is measured on arrays too large for the caches and scaled to the size of the logits:
    it is the same for every shape and does not depend on what a call left in the caches.
    """

    pretty_name = "Time over the memory limit"
    params = [OPERATIONS, ["cpu", "NumPy"], SHAPES]
    param_names = ["operation", "by", "shape"]
    unit = "times the limit"

    def track_over_limit(self, operation: str, by: str, shape: str) -> float:
        # ones: pages of zeros that nobody has written share one page, which stays in the caches
        source, target = (np.ones(BEYOND_CACHES // 4, np.float32) for _ in range(2))
        limit = {
            "loss": lambda: limits.read(source),
            "grad": lambda: limits.copy(source, target),
            "grad_in_place": lambda: limits.flip(target),
        }[operation]
        both = Contender(self.call), Contender(limit)
        for contender in both:
            contender.warm_up()
        take_turns(list(both), SECONDS)
        ours, least = (statistics.median(contender.times) for contender in both)
        return ours / least * BEYOND_CACHES / self.problem.logits.nbytes
