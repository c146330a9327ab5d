"""Two models trained in plain NumPy with either loss: handwritten digits, words of Shakespeare."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numba_ce import cross_entropy_and_grad
from numba_ce._validate import Array
from numba_ce.data import load_digits, load_words

LossAndGrad = Callable[[Array, Array], tuple[Any, Array]]

N_TRAIN = 1347  # digits; the other 450 are the test
CONTEXT, SIZE = 2, 16  # words before the one to guess, and the length of the vector of each
BATCH = 1024  # words to guess in one step: with 8815 words 9 million logits, 36 MB


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


class Adam:
    """An array and the steps of its descent (Kingma & Ba, 2015)."""

    def __init__(self, value: Array, rate: float) -> None:
        """Start at `value`, which the steps change."""
        self.value, self.rate, self.steps = value, rate, 0
        self.mean, self.square = np.zeros_like(value), np.zeros_like(value)

    def update(self, grad: Array) -> None:
        """One step against the gradient."""
        self.steps += 1
        self.mean += np.float32(0.1) * (grad - self.mean)
        self.square += np.float32(0.02) * (grad * grad - self.square)
        rate = np.float32(self.rate * np.sqrt(1 - 0.98**self.steps) / (1 - 0.9**self.steps))
        self.value -= rate * self.mean / (np.sqrt(self.square) + np.float32(1e-8))


class Classifier:
    """A linear layer and the loss; what its steps cost."""

    def __init__(self, loss_and_grad: LossAndGrad, features: int, classes: int) -> None:
        """Weights of 0."""
        self.loss_and_grad = loss_and_grad
        self.weight = Adam(np.zeros((classes, features), np.float32), 0.02)
        self.logits = np.empty((0, classes), np.float32)
        self.losses: list[float] = []
        self.seconds = self.seconds_in_loss = 0.0

    def step(self, features: Array, targets: Array) -> Array:
        """Update the weight; the gradient with respect to the features."""
        weight = self.weight.value
        if len(self.logits) != len(features):
            self.logits = np.empty((len(features), len(weight)), np.float32)
        np.matmul(features, weight.T, out=self.logits)
        begin = time.perf_counter()
        loss, grad = self.loss_and_grad(self.logits, targets)
        self.seconds_in_loss += time.perf_counter() - begin
        self.losses.append(float(loss))
        grad_features: Array = grad @ weight
        self.weight.update(grad.T @ features)
        return grad_features


class WordModel(Classifier):
    """The next word from a vector for each of the words before it."""

    def __init__(self, loss_and_grad: LossAndGrad, words: int) -> None:
        """Vectors drawn from a seed."""
        super().__init__(loss_and_grad, CONTEXT * SIZE + 1, words)
        vectors = np.random.default_rng(0).standard_normal((words, SIZE), dtype=np.float32)
        self.vectors = Adam(vectors * np.float32(0.1), 0.02)

    def step(self, features: Array, targets: Array) -> Array:
        """As above; here features are indices of words."""
        vectors = self.vectors.value[features].reshape(len(features), -1)
        grad = super().step(_with_one(vectors), targets)
        grad_vectors = np.zeros_like(self.vectors.value)
        np.add.at(grad_vectors, features.ravel(), grad[:, :-1].reshape(-1, SIZE))
        self.vectors.update(grad_vectors)
        return grad_vectors


def _with_one(features: Array) -> Array:
    """A feature that is always 1: its weights are the bias."""
    return np.column_stack((features, np.ones(len(features), np.float32)))


class Pair(NamedTuple):
    """The same model trained with either loss."""

    fused: Classifier
    plain: Classifier

    @property
    def largest_difference(self) -> float:
        """Of the losses of all steps."""
        return float(np.abs(np.subtract(self.fused.losses, self.plain.losses)).max())


def _train(
    pair: Pair, batches: Iterable[tuple[Array, Array]], progress: Callable[[float], None]
) -> Pair:
    """A step of one, a step of the other, so that the load of the machine is that of both."""
    for features, targets in batches:
        for model in pair:
            begin = time.perf_counter()
            model.step(features, targets)
            model.seconds += time.perf_counter() - begin
        progress(pair.fused.losses[-1])
    return pair


def train_digits(steps: int, progress: Callable[[float], None]) -> tuple[Pair, list[float]]:
    """A softmax classifier of 1347 digits, and the accuracy of each on the other 450."""
    images, digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits))
    images, digits = _with_one(images[order]), digits[order]
    fused_loss_and_grad(np.zeros((N_TRAIN, 10), np.float32), digits[:N_TRAIN])  # compiles
    pair = Pair(
        *(Classifier(f, images.shape[1], 10) for f in (fused_loss_and_grad, numpy_loss_and_grad))
    )
    _train(pair, steps * [(images[:N_TRAIN], digits[:N_TRAIN])], progress)
    scores = (images[N_TRAIN:] @ model.weight.value.T for model in pair)
    return pair, [float((s.argmax(axis=1) == digits[N_TRAIN:]).mean()) for s in scores]


def train_words(steps: int, progress: Callable[[float], None]) -> Pair:
    """A model of words on parts of the text drawn from a seed."""
    words, text = load_words()
    rng = np.random.default_rng(0)
    fused_loss_and_grad(np.zeros((BATCH, len(words)), np.float32), text[:BATCH])  # compiles
    pair = Pair(*(WordModel(f, len(words)) for f in (fused_loss_and_grad, numpy_loss_and_grad)))
    positions = (rng.integers(CONTEXT, len(text), BATCH) for _ in range(steps))
    before = np.arange(-CONTEXT, 0)
    return _train(pair, ((text[at[:, None] + before], text[at]) for at in positions), progress)


def bytes_of_loss(model: Classifier) -> int:
    """The logits of a step and the most that the loss holds beside them."""
    from numba_ce.bench.measure import temporary_bytes

    targets = np.zeros(len(model.logits), np.int64)
    return model.logits.nbytes + temporary_bytes(lambda: model.loss_and_grad(model.logits, targets))


def curve(losses: list[float], width: int = 60, height: int = 10) -> str:
    """The losses over the steps, in characters that every terminal has."""
    n_columns = min(width, len(losses))
    columns = [float(np.mean(part)) for part in np.array_split(losses, n_columns)]
    low, high = min(columns), max(columns)
    scale = (height - 1) / (high - low) if high > low else 0.0
    lines = [[" "] * n_columns for _ in range(height)]
    for x, loss in enumerate(columns):
        lines[round((high - loss) * scale)][x] = "*"
    labels = {0: f"{high:.2f}", height - 1: f"{low:.2f}"}
    drawn = [f"{labels.get(i, ''):>6} |{''.join(line)}" for i, line in enumerate(lines)]
    axis = f"{'loss':>6} +{'-' * n_columns}"
    return "\n".join([*drawn, axis, f"{'step':>6}  1{len(losses):>{max(n_columns - 1, 1)}}"])


def picture(pair: Pair, path: Path) -> None:
    """The loss of either over the steps and over the time they took."""
    from numba_ce.bench.report import COLOURS, pyplot, save_figure

    figure, panels = pyplot().subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for name, model, style in (("NumPy", pair.plain, "-"), ("numba_ce", pair.fused, "--")):
        steps = np.arange(1, len(model.losses) + 1)
        for axes, x in zip(panels, (steps, steps * model.seconds / len(steps)), strict=True):
            axes.plot(x, model.losses, style, color=COLOURS[name], lw=2, label=name)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(xlabel="steps", ylabel="loss", title="The same curve")
    panels[1].set(xlabel="seconds", title="in less time")
    panels[0].legend(frameon=False)
    save_figure(figure, path)
