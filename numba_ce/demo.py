"""A softmax classifier of handwritten digits, trained in plain NumPy with either loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from numba_ce import cross_entropy_and_grad
from numba_ce._validate import Array
from numba_ce.data import load_digits

LossAndGrad = Callable[[Array, Array], tuple[Any, Array]]


def numpy_loss_and_grad(logits: Array, targets: Array) -> tuple[Any, Array]:
    """The mean loss and its gradient as one writes them in NumPy."""
    rows = np.arange(len(logits))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exps = np.exp(shifted)
    sums = exps.sum(axis=1, keepdims=True)
    loss = (np.log(sums[:, 0]) - shifted[rows, targets]).mean()
    grad = exps / sums
    grad[rows, targets] -= 1.0
    grad /= np.float32(len(logits))
    return loss, grad


def fused_loss_and_grad(logits: Array, targets: Array) -> tuple[Any, Array]:
    """The same from one read of the logits, the gradient written over them."""
    return cross_entropy_and_grad(logits, targets, out=logits)


@dataclass
class Training:
    """What a run of the training loop gave."""

    weight: Array
    bias: Array
    loss: float
    seconds: float
    seconds_in_loss: float


def train(
    images: Array,
    digits: Array,
    loss_and_grad: LossAndGrad,
    steps: int,
    progress: Callable[[int, float], None] | None = None,
) -> Training:
    """Gradient descent with momentum on ``softmax(images @ weight + bias)``."""
    n_pixels, n_classes = images.shape[1], int(digits.max()) + 1
    weight = np.zeros((n_pixels, n_classes), np.float32)
    bias = np.zeros(n_classes, np.float32)
    speed_weight, speed_bias = np.zeros_like(weight), np.zeros_like(bias)
    rate, momentum, in_loss, loss = np.float32(0.5), np.float32(0.9), 0.0, 0.0
    begin = time.perf_counter()
    for step in range(steps):
        logits = images @ weight + bias
        before = time.perf_counter()
        loss, grad = loss_and_grad(logits, digits)
        in_loss += time.perf_counter() - before
        speed_weight = momentum * speed_weight - rate * (images.T @ grad)
        speed_bias = momentum * speed_bias - rate * grad.sum(axis=0)
        weight += speed_weight
        bias += speed_bias
        if progress is not None:
            progress(step, float(loss))
    return Training(weight, bias, float(loss), time.perf_counter() - begin, in_loss)


@dataclass
class Comparison:
    """Both loops on the same data."""

    fused: Training
    plain: Training
    accuracy: float
    n_train: int
    n_test: int
    largest_difference: float


def compare(steps: int, progress: Callable[[int, float], None] | None = None) -> Comparison:
    """Train with the fused kernel and with plain NumPy on 1347 digits, test on the other 450."""
    images, digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits))
    images, digits = images[order], digits[order]
    n_train = 1347
    data = images[:n_train], digits[:n_train]
    train(*data, fused_loss_and_grad, 1)  # compiles
    fused = train(*data, fused_loss_and_grad, steps, progress)
    plain = train(*data, numpy_loss_and_grad, steps, progress)
    scores = images[n_train:] @ fused.weight + fused.bias
    accuracy = float((scores.argmax(axis=1) == digits[n_train:]).mean())
    difference = float(np.abs(fused.weight - plain.weight).max())
    return Comparison(fused, plain, accuracy, n_train, len(digits) - n_train, difference)
