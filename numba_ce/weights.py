"""What a row weighs in a mean, found from the targets alone.

Whoever cuts a problem into parts needs the denominator of the whole mean before the first part is
done: the rows of each part are then weighted by s_i / denominator, and the parts add up.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_ce._quiet import quiet
from numba_ce._validate import Array, Problem, bad_target_error
from numba_ce.results import mean_scale


def is_ignored(problem: Problem) -> Array:
    """Which rows have no part in the loss, whatever their logits are."""
    rows = problem.logits.shape[:-1]
    ignored, index = np.zeros(rows, bool), problem.options.ignore_index
    if not problem.probabilities and index is not None:
        ignored |= problem.targets == index
    if problem.sample_weight is not None:
        ignored |= problem.sample_weight == 0
    return ignored


def check_indices(problem: Problem, n_classes: int, origin: tuple[int, ...] = ()) -> Array | None:
    """Which class indices are bad, None if none is; raises for the first if they are checked.

    origin : as for `bad_target_error`
    """
    if problem.probabilities:
        return None
    targets = problem.targets
    assert targets is not None
    bad = (targets < 0) | (targets >= n_classes)
    if not bad.any():
        return None
    if problem.options.ignore_index is not None:
        bad &= targets != problem.options.ignore_index
    if problem.options.check_targets and bad.any():
        raise bad_target_error(problem, int(np.flatnonzero(bad)[0]), n_classes, origin)
    return bad


@quiet
def row_weights(
    targets: Array,
    class_weight: Array | None,
    sample_weight: Array | None,
    *,
    n_classes: int,
    ignore_index: int | None,
    class_offset: int = 0,
) -> Array:
    """What each row of class indices adds to the denominator of the mean: s_i w_{y_i}.

    0 for a row that is ignored, has weight 0, or whose class is not one of the `n_classes` from
    `class_offset` on, those of `class_weight`.
    """
    counts = (targets >= class_offset) & (targets < class_offset + n_classes)
    if ignore_index is not None:
        counts &= targets != ignore_index
    if sample_weight is not None:
        counts &= sample_weight != 0
    weights = np.where(counts, 1.0 if sample_weight is None else sample_weight, 0.0)
    if class_weight is not None and n_classes:
        here = np.where(counts, targets, class_offset).astype(np.int64) - class_offset
        weights = np.where(counts, weights * class_weight[here], 0.0)
    return weights.astype(np.float64, copy=False)


@quiet
def total_weight(problem: Problem, origin: tuple[int, ...] = ()) -> float:
    """The denominator of the mean: the sum of s_i w_{y_i}, or of s_i for probabilities.

    Rows that are ignored or have a bad target do not count. Raises for a bad target.
    """
    s, (*rows, n_classes) = problem.sample_weight, problem.logits.shape
    if problem.probabilities:
        return float(math.prod(rows) if s is None else s.sum(dtype=np.float64))
    check_indices(problem, n_classes, origin)
    assert problem.targets is not None
    weights = row_weights(
        problem.targets,
        problem.class_weight,
        s,
        n_classes=n_classes,
        ignore_index=problem.options.ignore_index,
    )
    return float(weights.sum())


@quiet
def mean_weights(sample_weight: Array | None, rows: tuple[int, ...], denominator: float) -> Array:
    """The sample weights whose sum of losses is the mean; zero where there is nothing to average.

    One number takes the place of all of them if the rows have none.
    """
    scale = np.float64(mean_scale(denominator))
    if sample_weight is None:
        return np.broadcast_to(scale, rows)
    return np.asarray(sample_weight, np.float64) * scale


def stand_in(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of a shape and dtype without its memory, to check arguments against."""
    return np.broadcast_to(np.zeros((), dtype), shape)
