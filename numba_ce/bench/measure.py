"""One case: the sweep over its memory, ours, and the libraries, timed in turns."""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from numba_ce.bench.cases import OPERATIONS, Case, CaseData, make
from numba_ce.bench.libraries import LIBRARIES, ours
from numba_ce.bench.timing import Contender, take_turns

OURS, COMPARED = "numba_ce", "compared"


def limit_of(case: Case, problem: CaseData) -> Callable[[], Any]:
    """The sweep over the arrays of this case."""
    from numba_ce.bench import limits

    logits, out = problem.logits, problem.out
    return {
        "read": lambda: limits.read(logits),
        "flip": lambda: limits.flip(out),
        "combine": lambda: limits.combine(logits, problem.targets, out),
        "copy": lambda: limits.copy(logits, out),
    }[OPERATIONS[case.op].limit]


def our_contender(case: Case) -> tuple[Contender, CaseData]:
    """In place, the logits are those of the problem before every sample."""
    problem = make(case)
    if case.op != "grad_in_place":
        return Contender(ours(case, problem)), problem
    original = problem.logits.copy()
    return Contender(ours(case, problem), lambda: np.copyto(problem.logits, original)), problem


def temporary_bytes(call: Callable[[], Any]) -> int:
    """The most that NumPy holds during a call, results that are returned included."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def bytes_of(case: Case, problem: CaseData) -> int:
    """All that has to be read or written once, also targets, weights and results of rows."""
    total = case.counted_bytes
    if case.op in ("grad", "grad_in_place", "loss", "row_stats"):
        total += problem.targets.nbytes
    total += sum(v.nbytes for v in problem.options.values() if isinstance(v, np.ndarray))
    if case.op == "logsumexp":
        total += problem.targets.size * max(problem.logits.itemsize, 4)
    return total


def measure(case: Case, peers: list[str], seconds: float) -> dict[str, Any]:
    """Medians of a case, some `seconds` for each contender, as one entry of the results.

    A library that raises is left out, and the entry says why.
    """
    contender, problem = our_contender(case)
    contenders = {
        OPERATIONS[case.op].limit: Contender(limit_of(case, problem)),
        OURS: contender,
    }
    if case.against is not None:
        contenders[COMPARED] = our_contender(case.against)[0]
    for contender in contenders.values():
        contender.warm_up()
    failures = {}
    for name in () if case.variant else peers:
        try:
            call = LIBRARIES[name][1](case, problem)
            if call is not None:
                contender = Contender(call)
                contender.warm_up()
                contenders[name] = contender
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    take_turns(list(contenders.values()), seconds * len(contenders))
    return {
        "case": str(case),
        "op": case.op,
        "shape": list(case.shape),
        "axis": case.axis,
        "dtype": case.dtype,
        "variant": case.variant,
        "counted_bytes": case.counted_bytes,
        "all_bytes": bytes_of(case, problem),
        "temporary_bytes": temporary_bytes(contenders[OURS].call),
        "seconds": {name: statistics.median(c.times) for name, c in contenders.items()},
        "quartiles": {name: quartiles(c.times) for name, c in contenders.items()},
        "calls": {name: len(c.times) * c.calls for name, c in contenders.items()},
        "failures": failures,
    }


def quartiles(times: list[float]) -> list[float]:
    """The first and the third."""
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return [first, third]


def touch_memory(n_bytes: int) -> None:
    """Write to memory once: a page that a virtual machine never used is slow the first time.

    Without it the libraries that allocate their results were up to 4 times slower in the first
    cases of a run than in the others.
    """
    np.ones(n_bytes, np.uint8)
