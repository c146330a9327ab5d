"""What a call on device arrays costs in Python, without a GPU: python -m benchmarks.cuda_launch

Everything but the driver is as it is: checks, plan, choice of the kernel, packing. The driver's
calls do nothing, so what they cost on a machine with a GPU comes on top.
"""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

import numba_ce as nc


class NoDriver:
    """The interface of `numba_ce.cuda.driver.Driver`; nothing happens."""

    functions: dict[Any, Any] = {}
    count = 1

    def device(self) -> int:
        return 0

    def device_of(self, address: int) -> int:
        return 0

    def capability(self, device: int) -> tuple[int, int]:
        return 9, 0

    def load(self, code: Any) -> Any:
        return code

    def launch(self, *arguments: Any) -> None:
        pass

    def allocate(self, nbytes: int, stream: int) -> int:
        return 1 << 40

    def free(self, address: int, stream: int) -> None:
        pass

    def copy_out(self, array: np.ndarray[Any, Any], source: int, stream: int) -> None:
        array[...] = 2**52  # no bad target

    def synchronize(self, stream: int) -> None:
        pass


class OnDevice:
    """Looks like an array on the device."""

    def __init__(self, address: int, like: np.ndarray[Any, Any]) -> None:
        self._address, self._shape, self._typestr = address, like.shape, like.dtype.str

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Made anew each time, as libraries do."""
        return {
            "shape": self._shape,
            "strides": None,
            "typestr": self._typestr,
            "data": (self._address, False),
            "version": 3,
            "stream": None,
        }


@contextmanager
def without_driver() -> Any:
    """The backend "cuda" on `NoDriver`, results without memory."""
    driver, arrays = (import_module(f"numba_ce.cuda.{name}") for name in ("driver", "arrays"))
    before = driver._driver, arrays.empty
    driver._driver = NoDriver()
    arrays.empty = lambda like, shape, dtype: arrays.device_array(
        OnDevice(1 << 41, np.empty(shape, dtype)), "result"
    )
    try:
        yield driver._driver
    finally:
        driver._driver, arrays.empty = before


def microseconds(call: Any, n: int = 300, repetitions: int = 9) -> float:
    """Median over the repetitions of the mean of n calls."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        for _ in range(n):
            call()
        times.append((time.perf_counter() - start) / n * 1e6)
    return statistics.median(times)


def calls() -> dict[str, Any]:
    """The calls that are timed."""
    z, y = np.zeros((8, 1000), np.float32), np.zeros(8, np.int64)
    x, t, g = OnDevice(1 << 30, z), OnDevice(1 << 31, y), OnDevice(1 << 32, z)
    fast = {"check_targets": False}
    return {
        "loss, none": lambda: nc.cross_entropy(x, t, reduction="none", **fast),
        "loss, mean": lambda: nc.cross_entropy(x, t, **fast),
        "loss, mean, checked": lambda: nc.cross_entropy(x, t),
        "loss+grad, none": lambda: nc.cross_entropy_and_grad(x, t, reduction="none", out=g, **fast),
        "loss+grad, sum": lambda: nc.cross_entropy_and_grad(x, t, reduction="sum", out=g, **fast),
        "loss+grad, mean": lambda: nc.cross_entropy_and_grad(x, t, out=g, **fast),
        "loss+grad, mean, checked": lambda: nc.cross_entropy_and_grad(x, t, out=g),
        "softmax": lambda: nc.softmax(x, out=g),
    }


def main() -> None:
    """Print the table."""
    with without_driver():
        for name, call in calls().items():
            call()  # compiles
            print(f"{name:28}{microseconds(call):7.1f} us")


if __name__ == "__main__":
    main()
