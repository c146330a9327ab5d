"""The contenders of a case in turns, one call each."""

from __future__ import annotations

import gc
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from numba_ce.bench import libraries
from numba_ce.bench.cases import OPERATIONS, Case, Problem, make

#: Threads of OpenMP that have nothing to do sleep at once, and do not take cores from the others
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

PAUSE = 0.003  # seconds between contenders, for threads that spin before they sleep
SHORTEST = 0.002  # seconds of a sample; faster calls are repeated in it
CALLS = 3  # at least


@dataclass
class Contender:
    """Something to call, and its times in seconds."""

    call: Callable[[], Any]
    before: Callable[[], Any] | None = None  # not timed
    calls: int = 1  # in one sample
    used: float = 0.0
    times: list[float] = field(default_factory=list)

    def warm_up(self) -> None:
        """Compile, touch the memory, choose the number of calls."""
        for _ in range(2):
            begin = time.perf_counter()
            self.call()
            taken = time.perf_counter() - begin
        while taken < SHORTEST:
            self.calls = max(self.calls * 2, int(self.calls * SHORTEST / max(taken, 1e-7)))
            begin = time.perf_counter()
            for _ in range(self.calls):
                self.call()
            taken = time.perf_counter() - begin

    def sample(self) -> None:
        """One time."""
        begin = time.perf_counter()
        if self.before is not None:
            self.before()
        time.sleep(PAUSE)
        calls = range(self.calls)
        start = time.perf_counter()
        for _ in calls:
            self.call()
        end = time.perf_counter()
        self.times.append((end - start) / self.calls)
        self.used += end - begin


def take_turns(contenders: dict[str, Contender], seconds: float) -> None:
    """Whoever has used the least time is next, so that slow ones do not take it all."""
    for contender in contenders.values():
        contender.warm_up()
    enabled = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        while True:
            waiting = [c for c in contenders.values() if len(c.times) < CALLS]
            if not waiting and time.perf_counter() - begin > seconds:
                break
            min(waiting or contenders.values(), key=lambda c: c.used).sample()
    finally:
        if enabled:
            gc.enable()


def limit_of(case: Case, problem: Problem) -> Callable[[], Any]:
    """The sweep over the arrays of this case."""
    from numba_ce.bench import limits

    logits, out = problem.logits, problem.out
    name = OPERATIONS[case.op].limit
    if name == "read":
        return lambda: limits.read(logits)
    if name == "flip":
        return lambda: limits.flip(out)
    if name == "combine":
        return lambda: limits.combine(logits, problem.targets, out)
    return lambda: limits.copy(logits, out)


def our_contender(case: Case, problem: Problem) -> Contender:
    """In place, the logits are those of the problem before every sample."""
    before = None
    if case.op == "grad_in_place":
        original = problem.logits.copy()
        before = lambda: np.copyto(problem.logits, original)  # noqa: E731
    return Contender(libraries.ours(case, problem), before)


def temporary_bytes(call: Callable[[], Any]) -> int:
    """What NumPy allocates in a call; results that are returned count."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = call()
        peak = tracemalloc.get_traced_memory()[1] - before
        del result
        return peak
    finally:
        tracemalloc.stop()


def bytes_of(case: Case, problem: Problem) -> int:
    """All that has to be read or written once, also targets, weights and results of rows."""
    total = case.counted_bytes
    if case.op in ("grad", "grad_in_place", "loss", "row_stats"):
        total += problem.targets.nbytes
    total += sum(v.nbytes for v in problem.options.values() if isinstance(v, np.ndarray))
    if case.op == "logsumexp":
        total += problem.targets.size * max(problem.logits.itemsize, 4)
    return total


def measure(case: Case, peers: list[str], seconds: float) -> dict[str, Any]:
    """Medians of a case, as one entry of the results."""
    problem = make(case)
    contenders = {
        OPERATIONS[case.op].limit: Contender(limit_of(case, problem)),
        "numba_ce": our_contender(case, problem),
    }
    if case.against is not None:
        contenders["compared"] = our_contender(case.against, make(case.against))
    if not case.variant:
        for name in peers:
            call = libraries.LIBRARIES[name][1](case, problem)
            if call is not None:
                contenders[name] = Contender(call)
    take_turns(contenders, seconds * len(contenders))
    return {
        "op": case.op,
        "shape": list(case.shape),
        "axis": case.axis,
        "dtype": case.dtype,
        "variant": case.variant,
        "counted_bytes": case.counted_bytes,
        "all_bytes": bytes_of(case, problem),
        "temporary_bytes": temporary_bytes(contenders["numba_ce"].call),
        "seconds": {name: statistics.median(c.times) for name, c in contenders.items()},
        "quartiles": {name: quartiles(c.times) for name, c in contenders.items()},
        "calls": {name: len(c.times) * c.calls for name, c in contenders.items()},
    }


def quartiles(times: list[float]) -> list[float]:
    """The first and the third."""
    found = statistics.quantiles(times, n=4, method="inclusive")
    return [found[0], found[2]]
