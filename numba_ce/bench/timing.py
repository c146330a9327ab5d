"""Contenders in turns: the next sample is that of whoever has used the least time."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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


def take_turns(contenders: list[Contender], seconds: float) -> None:
    """Whoever has used the least time is next, so that slow ones do not take it all."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        while True:
            waiting = [c for c in contenders if len(c.times) < CALLS]
            if not waiting and time.perf_counter() - begin > seconds:
                break
            min(waiting or contenders, key=lambda c: c.used).sample()
    finally:
        if enabled:
            gc.enable()
