"""Softmax cross-entropy as one writes it in NumPy, and logits to measure it on."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def make_problem(n_rows: int, n_classes: int, seed: int = 0) -> tuple[Array, Array]:
    """N(0, 1) logits in float32 and int64 targets."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n_rows, n_classes), dtype=np.float32)
    return logits, rng.integers(0, n_classes, n_rows)


def loss(logits: Array, targets: Array) -> Any:
    """The mean loss."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    sums = np.exp(shifted).sum(axis=1)
    return (np.log(sums) - shifted[np.arange(len(logits)), targets]).mean()


def loss_and_grad(logits: Array, targets: Array, out: Array | None = None) -> tuple[Any, Array]:
    """The mean loss and its gradient; `out` may be `logits`."""
    rows = np.arange(len(logits))
    grad = np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    at_target = grad[rows, targets]
    np.exp(grad, out=grad)
    sums = grad.sum(axis=1, keepdims=True)
    mean = (np.log(sums[:, 0]) - at_target).mean()
    grad /= sums
    grad[rows, targets] -= 1.0
    grad /= np.float32(len(logits))
    return mean, grad
