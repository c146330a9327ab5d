"""The families of rows on which accuracy is promised and measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Family = Callable[[np.random.Generator, Any], tuple[np.ndarray, np.ndarray]]


def _normal(n_rows: int, n_classes: int) -> Family:
    def make(rng: np.random.Generator, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        logits = rng.standard_normal((n_rows, n_classes)).astype(dtype)
        return logits, rng.integers(0, n_classes, n_rows)

    return make


def _offset(rng: np.random.Generator, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    logits = (rng.standard_normal((64, 1000)) + 1e4).astype(dtype)
    return logits, rng.integers(0, 1000, 64)


def _gap(
    rng: np.random.Generator, dtype: Any, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """The target is ahead of all others by low..high."""
    logits = rng.standard_normal((64, 1000))
    targets = rng.integers(0, 1000, 64)
    rows = np.arange(64)
    logits[rows, targets] = -np.inf
    logits[rows, targets] = logits.max(axis=1) + rng.uniform(low, high, 64)
    return logits.astype(dtype), targets


def _trained(rng: np.random.Generator, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    return _gap(rng, dtype, 8.0, 16.0)


def _saturated(rng: np.random.Generator, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    low, high = (17.0, 85.0) if np.dtype(dtype).itemsize < 8 else (37.0, 700.0)
    return _gap(rng, dtype, low, high)


def _uniform(rng: np.random.Generator, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    logits = rng.uniform(-80.0, 80.0, (64, 1000)).astype(dtype)
    return logits, rng.integers(0, 1000, 64)


def _plateau(rng: np.random.Generator, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """A thousand nearly equal classes far under a second peak; the target on either."""
    logits = rng.uniform(-1e-3, 1e-3, (64, 1000)) - 12.0
    targets = rng.integers(1, 1000, 64)
    logits[:, 0] = 5.0
    logits[np.arange(32), targets[:32]] = 7.0
    return logits.astype(dtype), targets


#: name -> function (rng, dtype) -> logits (n_rows, n_classes), targets (n_rows,)
FAMILIES: dict[str, Family] = {
    "N(0, 1), C = 10": _normal(2000, 10),
    "N(0, 1), C = 1000": _normal(64, 1000),
    "N(0, 1), C = 50257": _normal(4, 50257),
    "common offset 1e4": _offset,
    "trained, gap 8..16": _trained,
    "saturated": _saturated,
    "U(-80, 80)": _uniform,
    "plateau under a peak": _plateau,
}
