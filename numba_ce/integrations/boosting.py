"""Softmax objectives and metrics for XGBoost and LightGBM, of plain callables: neither is imported.

The libraries differ in what they want: XGBoost float32 and twice the Hessian, LightGBM float64 in
Fortran order and the Hessian times C / (C - 1). Scores are read, and gradients written, in the
memory order and dtype in which the library holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import numba_ce
from numba_ce._quiet import quiet
from numba_ce._validate import as_array, check_choice, check_integer, shown

LIBRARIES = ("xgboost", "lightgbm")


def _check(library: Any, n_classes: Any) -> int:
    check_choice(library, "library", LIBRARIES)
    number = check_integer(n_classes, "n_classes")
    if number < 2:
        raise ValueError(f"n_classes = {shown(number)}: expected at least 2")
    return number


def _arguments(first: Any, second: Any, weight: Any, n_classes: int) -> tuple[Any, Any, Any]:
    """Scores, class indices and weights, from either way in which the libraries call.

    native : (scores, dataset)            scikit-learn : (labels, scores[, weight])
    """
    if hasattr(second, "get_label"):
        scores, labels, weight = first, second.get_label(), second.get_weight()
    else:
        labels, scores = first, second
    scores = as_array(scores, "scores")
    if scores.ndim != 2 or scores.shape[1] != n_classes:
        raise ValueError(
            f"the scores have shape {scores.shape}: expected (n_rows, {n_classes}); set num_class "
            f"= {n_classes} in the parameters"
        )
    labels = as_array(labels, "labels")
    if labels.shape != scores.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape}: expected {scores.shape[:1]}")
    if labels.dtype.kind not in "biuf":
        raise TypeError(f"labels have dtype {labels.dtype}: expected class indices")
    targets = labels.astype(np.int64)
    if not np.array_equal(targets, labels):
        row = int(np.flatnonzero(targets != labels)[0])
        raise ValueError(f"label[{row}] = {labels[row]}: expected a class index")
    if weight is not None:
        weight = as_array(weight, "sample_weight")
        if weight.size == 0:  # how XGBoost says that there is none
            weight = None
        elif weight.dtype.kind in "biu":
            weight = weight.astype(np.float64)
    return scores, targets, weight


@dataclass(frozen=True)
class _Objective:
    """What `softmax_objective` returns."""

    library: Any
    n_classes: int

    __name__ = "softmax"  # asked for by XGBoost, as that of a function

    def __repr__(self) -> str:
        return f"softmax_objective({self.library!r}, {self.n_classes})"

    @quiet
    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Any, Any]:
        scores, targets, weight = _arguments(first, second, sample_weight, self.n_classes)
        return numba_ce.cross_entropy_grad_and_hess(
            scores, targets, sample_weight=weight, hess=self.library
        )


@dataclass(frozen=True)
class _Metric:
    """What `softmax_metric` returns."""

    library: Any
    n_classes: int

    __name__ = "softmax_loss"  # XGBoost shows it

    def __repr__(self) -> str:
        return f"softmax_metric({self.library!r}, {self.n_classes})"

    @quiet
    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> Any:
        scores, targets, weight = _arguments(first, second, sample_weight, self.n_classes)
        value = float(numba_ce.cross_entropy(scores, targets, sample_weight=weight))
        if self.library == "lightgbm":
            return "multi_logloss", value, False
        native = hasattr(second, "get_label")  # scikit-learn's interface wants the number alone
        return ("mlogloss", value) if native else value


def softmax_objective(library: str, n_classes: int) -> _Objective:
    """The multi-class objective of a boosting library, by `cross_entropy_grad_and_hess`.

    ``grad = w (p - y)``, y one-hot, and ``hess = w max(2 p (1 - p), 1e-16)`` for XGBoost,
    ``w C / (C - 1) p (1 - p)`` for LightGBM: trees come out as with `multi:softprob` and
    `multiclass`.

    Parameters
    ----------
    library : {"xgboost", "lightgbm"}
    n_classes : int
        At least 2; the same number as the parameter `num_class`.

    Returns
    -------
    callable
        For `xgboost.train(obj=...)`, for the parameter `objective` of `lightgbm.train`, and for the
        argument `objective` of their scikit-learn estimators. It can be pickled, alone or in them.

    Raises
    ------
    ValueError, TypeError
        For another library or number; when it is called, for labels that are no class indices and
        scores of another shape.

    Notes
    -----
    Two things the built-in objectives do beside: start from the logarithms of the class frequencies
    (`base_score`, `boost_from_average`), and return probabilities from `predict`. With a custom
    objective, `predict` returns scores: see `numba_ce.softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce.integrations.boosting import softmax_objective
    >>> objective = softmax_objective("lightgbm", 2)
    >>> grad, hess = objective(np.array([0, 1]), np.zeros((2, 2), order="F"))
    >>> grad, hess
    (array([[-0.5,  0.5],
           [ 0.5, -0.5]]), array([[0.5, 0.5],
           [0.5, 0.5]]))
    """
    return _Objective(library, _check(library, n_classes))


def softmax_metric(library: str, n_classes: int) -> _Metric:
    """The mean cross-entropy of the scores, the metric that belongs to `softmax_objective`.

    ``sum of w (lse - z_y) / sum of w``: `mlogloss` and `multi_logloss`, but from scores, which is
    what a metric gets with a custom objective, and without their lower bound of the probabilities.

    Parameters
    ----------
    library : {"xgboost", "lightgbm"}
    n_classes : int
        At least 2.

    Returns
    -------
    callable
        For `custom_metric` of `xgboost.train`, `feval` of `lightgbm.train`, and `eval_metric` of
        their scikit-learn estimators. It can be pickled.

    Raises
    ------
    ValueError, TypeError
        As `softmax_objective`.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce.integrations.boosting import softmax_metric
    >>> metric = softmax_metric("lightgbm", 4)
    >>> name, value, higher_is_better = metric(np.array([0]), np.zeros((1, 4)))
    >>> name, round(float(value), 6), higher_is_better
    ('multi_logloss', 1.386294, False)
    """
    return _Metric(library, _check(library, n_classes))
