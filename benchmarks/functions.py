"""asv: every public function, every option, every dtype; sizes at which a whole run is bearable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import numba_ce
from numba_ce.bench.cases import OPERATIONS, PARTS, VARIANTS, Case, make
from numba_ce.bench.libraries import ours

from .families import FAMILIES

CLASSES = [10, 1000, 32000]
ELEMENTS = 4_000_000
DTYPES = ["float16", "bfloat16", "float32", "float64"]
OPTIONS = ["class_weight", "sample_weight", "label_smoothing", "z_loss", "softcap", "temperature"]
DATA = ["ignored", "trained", "int32"]
assert {*OPTIONS, *DATA} <= VARIANTS.keys()


class _Timed:
    call: Callable[[], Any]

    def prepare(self, op: str, classes: int, dtype: str = "float32", variant: str = "") -> None:
        case = Case(op, (ELEMENTS // classes, classes), dtype, variant=variant)
        self.call = ours(case, make(case))
        self.call()


class Operations(_Timed):
    pretty_name = "Operations by classes and dtype"
    params = [list(OPERATIONS), CLASSES, DTYPES]
    param_names = ["operation", "classes", "dtype"]

    def setup(self, operation: str, classes: int, dtype: str) -> None:
        self.prepare(operation, classes, dtype)

    def time_operation(self, operation: str, classes: int, dtype: str) -> None:
        self.call()


class Options(_Timed):
    pretty_name = "Loss and gradient with one option"
    params = [OPTIONS + DATA, CLASSES]
    param_names = ["option", "classes"]

    def setup(self, option: str, classes: int) -> None:
        self.prepare("grad", classes, variant=option)

    def time_loss_and_grad(self, option: str, classes: int) -> None:
        self.call()


class Images(_Timed):
    """Class axis 1."""

    pretty_name = "Loss and gradient of images"

    params = ["x".join(map(str, case.shape)) for case in PARTS["images"]]
    param_names = ["shape"]

    def setup(self, shape: str) -> None:
        case = Case("grad", tuple(map(int, shape.split("x"))), axis=1)
        self.call = ours(case, make(case))
        self.call()

    def time_loss_and_grad(self, shape: str) -> None:
        self.call()


class Accuracy:
    pretty_name = "Largest error of loss and target gradient"
    params = list(FAMILIES)
    param_names = ["rows"]
    unit = "ULP"

    def track_max_ulp(self, rows: str) -> float:
        """Largest error of loss and gradient at the target, of float32 rows."""
        logits, targets = FAMILIES[rows](np.random.default_rng(0), np.float32)
        found = numba_ce.cross_entropy_and_grad(logits, targets, reduction="none")
        with numba_ce.use_backend("numpy"):
            exact = numba_ce.cross_entropy_and_grad(
                logits.astype(np.float64), targets, reduction="none"
            )
        at = np.arange(len(targets)), targets
        worst = 0.0
        for a, e in ((found[0], exact[0]), (found[1][at], exact[1][at])):
            ulp = np.spacing(np.abs(e).astype(np.float32))
            worst = max(worst, float(np.max(np.abs(a.astype(np.float64) - e) / ulp)))
        return worst


class Others:
    """What has no line in the table of `numba-ce bench`."""

    params = [10, 1000]
    param_names = ["classes"]

    def setup(self, classes: int) -> None:
        rng = np.random.default_rng(0)
        rows = 400_000 // classes
        self.logits = rng.standard_normal((rows, classes), dtype=np.float32)
        self.targets = rng.integers(0, classes, rows)
        self.hidden = rng.standard_normal((rows, 64), dtype=np.float32)
        self.weight = rng.standard_normal((classes, 64), dtype=np.float32)
        self.record = numba_ce.row_record(
            self.logits, self.targets, class_offset=0, n_classes=classes
        )
        self.objective = numba_ce.multinomial_objective(
            self.hidden.astype(np.float64), self.targets, classes
        )
        self.parameters = np.zeros((classes, 65)).ravel()
        for name in dir(self):
            if name.startswith("time_"):
                getattr(self, name)(classes)

    def time_grad_and_hess(self, classes: int) -> None:
        numba_ce.cross_entropy_grad_and_hess(self.logits, self.targets)

    def time_row_record(self, classes: int) -> None:
        numba_ce.row_record(self.logits, self.targets, class_offset=0, n_classes=classes)

    def time_merge_records(self, classes: int) -> None:
        numba_ce.merge_records(self.record, self.record)

    def time_loss_from_record(self, classes: int) -> None:
        numba_ce.loss_from_record(self.record)

    def time_grad_from_record(self, classes: int) -> None:
        numba_ce.grad_from_record(self.logits, self.targets, self.record, class_offset=0)

    def time_linear_loss(self, classes: int) -> None:
        numba_ce.linear_cross_entropy(self.hidden, self.weight, self.targets)

    def time_linear_loss_and_grad(self, classes: int) -> None:
        numba_ce.linear_cross_entropy_and_grad(self.hidden, self.weight, self.targets)

    def time_multinomial_objective(self, classes: int) -> None:
        self.objective(self.parameters)

    def time_stream(self, classes: int) -> None:
        numba_ce.stream(self.logits, self.targets)


for name, function in vars(Others).items():
    if name.startswith("time_"):
        function.pretty_name = name.removeprefix("time_").replace("_", " ").capitalize()
