"""What can be timed: an operation on logits of a shape and dtype, plain or with one change."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from numba_ce._validate import Array

DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Operation:
    """Which arrays an operation reads and writes, and the sweep that does only this."""

    limit: str
    arrays: int  # as large as the logits, read or written once each
    what: str


OPERATIONS = {
    "grad": Operation("copy", 2, "loss and gradient, into an array that is there"),
    "grad_in_place": Operation("flip", 2, "loss and gradient, written over the logits"),
    "grad_probs": Operation("combine", 3, "loss and gradient, targets are probabilities"),
    "loss": Operation("read", 1, "loss only"),
    "row_stats": Operation("read", 1, "maximum, lse, argmax, entropy, rank, loss of each row"),
    "logsumexp": Operation("read", 1, "log-sum-exp of each row"),
    "softmax": Operation("copy", 2, "softmax"),
    "log_softmax": Operation("copy", 2, "log_softmax"),
}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    axis: int = -1
    variant: str = ""

    @property
    def n_classes(self) -> int:
        """Length of the class axis."""
        return self.shape[self.axis]

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape without the class axis."""
        axis = self.axis % len(self.shape)
        return self.shape[:axis] + self.shape[axis + 1 :]

    @property
    def counted_bytes(self) -> int:
        """Of logits, gradient and probabilities: what GB/s mean in the table."""
        size = np.dtype(numpy_dtype(self.dtype)).itemsize
        return int(OPERATIONS[self.op].arrays * math.prod(self.shape) * size)

    def __str__(self) -> str:
        """As the tables name it."""
        shape = "x".join(map(str, self.shape))
        axis = "" if self.axis == -1 else f" axis {self.axis}"
        return f"{self.op} {shape}{axis} {self.dtype} {self.variant}".rstrip()

    @property
    def against(self) -> Case | None:
        """The case of ours that this one is compared with."""
        if self.op == "row_stats":
            return replace(self, op="loss")
        if self.dtype in ("float16", "bfloat16"):
            return replace(self, dtype="float32")
        return replace(self, variant="") if self.variant else None


@dataclass
class CaseData:
    """The arrays of a case."""

    logits: Array
    targets: Array
    out: Array
    options: dict[str, Any] = field(default_factory=dict)


def numpy_dtype(name: str) -> Any:
    """bfloat16 needs ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16)


def _ignored(case: Case, problem: CaseData, rng: np.random.Generator) -> None:
    problem.targets[rng.random(case.rows) < 0.3] = -100


def _trained(case: Case, problem: CaseData, rng: np.random.Generator) -> None:
    """The target is ahead by 8 to 16."""
    at = np.expand_dims(problem.targets, case.axis)
    ahead = problem.logits.max(axis=case.axis, keepdims=True) + rng.uniform(8, 16, at.shape)
    np.put_along_axis(problem.logits, at, ahead.astype(problem.logits.dtype), case.axis)


def _int32(case: Case, problem: CaseData, rng: np.random.Generator) -> None:
    problem.targets = problem.targets.astype(np.int32)


def _weights(name: str) -> Callable[[Case, CaseData, np.random.Generator], None]:
    def add(case: Case, problem: CaseData, rng: np.random.Generator) -> None:
        shape = case.n_classes if name == "class_weight" else case.rows
        problem.options[name] = rng.uniform(0.5, 2.0, shape).astype(np.float32)

    return add


def _option(**options: Any) -> Callable[[Case, CaseData, np.random.Generator], None]:
    return lambda case, problem, rng: problem.options.update(options)


#: One thing that is changed, and what it does to the arrays and options
VARIANTS: dict[str, Callable[[Case, CaseData, np.random.Generator], None]] = {
    "class_weight": _weights("class_weight"),
    "sample_weight": _weights("sample_weight"),
    "label_smoothing": _option(label_smoothing=0.1),
    "z_loss": _option(z_loss=1e-4),
    "softcap": _option(softcap=30.0),
    "temperature": _option(temperature=0.7),
    "ignored": _ignored,
    "trained": _trained,
    "int32": _int32,
    "new_array": _option(),
    "one_thread": _option(),
}


def make(case: Case) -> CaseData:
    """N(0, 1) logits and int64 targets, or what the variant makes of them."""
    rng = np.random.default_rng(0)
    dtype = numpy_dtype(case.dtype)
    wide = np.float64 if case.dtype == "float64" else np.float32
    logits = rng.standard_normal(case.shape, dtype=wide).astype(dtype, copy=False)
    targets: Array = rng.integers(0, case.n_classes, case.rows)
    if case.op == "grad_probs":
        targets = rng.random(case.shape, dtype=wide)
        targets /= targets.sum(axis=case.axis, keepdims=True)
        targets = targets.astype(dtype, copy=False)
    # written: pages that nobody has written all share one page of zeros
    problem = CaseData(logits, targets, np.full_like(logits, 1))
    if case.variant:
        VARIANTS[case.variant](case, problem, rng)
    return problem


ELEMENTS = 40_000_000  # beyond the caches, also of hosts that share theirs


def shape_of(n_classes: int) -> tuple[int, int]:
    """A shape of about 40 million logits."""
    return max(1, ELEMENTS // n_classes), n_classes


def _cases(ops: str, classes: str, dtypes: str = "float32", variants: str = "") -> list[Case]:
    return [
        Case(op, shape_of(int(n)), dtype, variant=variant)
        for dtype in dtypes.split()
        for op in ops.split()
        for variant in variants.split() or ("",)
        for n in classes.split()
    ]


#: Each a part of "full"
PARTS = {
    "large": _cases("grad", "512 1000 4096 32000 50257 128256 262144"),
    "few": _cases("grad", "2 3 5 10 16 32 64 100 256"),
    "loss": _cases("loss", "2 10 100 1000 32000 128256"),
    "in_place": _cases("grad_in_place", "10 1000 32000 128256"),
    "float64": _cases("grad loss", "10 100 1000 32000 128256", "float64"),
    "16bit": _cases("grad", "10 1000 32000 128256", "bfloat16 float16"),
    "probabilities": _cases("grad_probs", "10 1000 32000"),
    "images": [
        Case("grad", (8, 21, 512, 512), axis=1),
        Case("grad", (4, 150, 256, 256), axis=1),
        Case("grad", (2, 1000, 128, 128), axis=1),
    ],
    "options": _cases(
        "grad",
        "10 1000 32000",
        variants="class_weight sample_weight label_smoothing z_loss softcap temperature",
    ),
    "data": _cases("grad", "10 1000 32000", variants="ignored trained int32"),
    "normalize": _cases("softmax log_softmax", "10 100 1000 32000 128256"),
    "logsumexp": _cases("logsumexp", "10 100 1000 32000 128256"),
    "row_stats": _cases("row_stats", "10 1000 32000"),
    "small": [Case("grad", shape) for shape in ((1, 10), (32, 10), (64, 1000))],
    "threads": _cases("grad loss", "10 1000 32000 128256", variants="one_thread"),
    "new_array": _cases("grad", "10 1000 32000", variants="new_array"),
}
PRESETS = {
    **PARTS,
    "quick": [*_cases("grad", "10 1000 32000"), *_cases("loss softmax logsumexp", "1000")],
    "full": [case for part in PARTS.values() for case in part],
}
