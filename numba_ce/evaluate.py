"""Loss, accuracy and entropy of stored logits, in one pass of `numba_ce.stream`."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from numba_ce import RowStats, row_stats
from numba_ce._quiet import quiet
from numba_ce._validate import Array
from numba_ce.blocks import Block, Source, float_dtype
from numba_ce.options import Keywords, check_options, check_reduction
from numba_ce.results import mean_of
from numba_ce.streaming import Options, Progress, run

TOP = 5


@dataclass
class Evaluation:
    """The results of `evaluate`; `loss` is the mean or the sum, `log_perplexity` the mean."""

    n_rows: int
    n_classes: int
    n_kept: int
    loss: float
    log_perplexity: float
    perplexity: float
    accuracy: float
    top5_accuracy: float
    mean_entropy: float
    seconds: float  # of the whole pass: in the first process that needs them it compiles kernels
    gb_per_second: float  # bytes of the logits over these seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has neither NaN nor infinities: None in their place."""
        return {k: v if math.isfinite(v) else None for k, v in asdict(self).items()}


def _places(logits: Array, targets: Array, stats: RowStats[Array], axis: int) -> Array:
    """How many classes come before the target, the best first and of equal ones the lower first.

    Right where it is below TOP; a row without an order keeps its rank, the number of classes.
    """
    place, y, n_classes = stats.rank.ravel(), targets.ravel(), logits.shape[axis]
    # Few rows: the first maximum comes first, and what is not below TOP need not be known
    unsure = np.flatnonzero((place < min(TOP, n_classes)) & (stats.argmax.ravel() != y))
    # Of short rows, `take` and `flatnonzero` need a fraction of the time of a mask and `nonzero`
    rows = np.moveaxis(logits, axis, -1).reshape(-1, n_classes).take(unsure, axis=0)
    y = y.take(unsure).astype(np.intp)
    row, column = np.divmod(np.flatnonzero(rows == rows[np.arange(len(y)), y][:, None]), n_classes)
    np.add.at(place, unsure[row[column < y[row]]], 1)
    return place.reshape(targets.shape)


class _Counts:
    """What is counted over the blocks beside the loss."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.kept = self.hits = self.top = 0
        self.entropy = 0.0

    def visit(self, block: Block) -> None:
        axis, ignore_index = self.options.axis, self.options.loss.ignore_index
        here = np.ones(block.targets.shape, bool)
        if ignore_index is not None:
            here = block.targets != ignore_index
        stats = row_stats(block.logits, block.targets, axis=axis, ignore_index=ignore_index)
        # Of the logits as stored: a cap may round two of them to one
        place, entropy = _places(block.logits, block.targets, stats, axis)[here], stats.entropy
        if self.options.loss.softcap is not None or self.options.loss.temperature != 1.0:
            entropy = row_stats(self._distribution(block.logits), axis=axis).entropy
        self.kept += len(place)
        self.hits += int((place < 1).sum())
        self.top += int((place < min(TOP, block.logits.shape[axis])).sum())
        self.entropy += float(entropy[here].sum(dtype=np.float64))

    def _distribution(self, logits: Array) -> Array:
        """The logits after softcap and temperature, in their working precision."""
        dtype = np.promote_types(logits.dtype.newbyteorder("="), np.float32)
        z, cap = logits.astype(dtype), self.options.loss.softcap
        with np.errstate(all="ignore"):
            if cap is not None:  # an infinite logit stays what it is
                z = np.where(np.isinf(z), z, dtype.type(cap) * np.tanh(z / dtype.type(cap)))
            return np.asarray(z / dtype.type(self.options.loss.temperature))


@quiet
def evaluate(
    logits: Any,
    targets: Any,
    *,
    axis: int = -1,
    reduction: str = "mean",
    grad_out: Path | None = None,
    progress: Progress | None = None,
    dtype: Any = None,
    **options: Unpack[Keywords],
) -> Evaluation:
    """Everything that the command `eval` prints.

    logits : path or array of at least two axes, the classes along `axis`
    targets : path or array, class indices of the shape of the other axes
    dtype, options : as for `stream`
    grad_out : .npy file for the gradient; it appears under its name when it is complete
    """
    if check_reduction(reduction) == "none":
        raise ValueError("reduction = 'none': expected 'mean' or 'sum'")
    class_weight, sample_weight, loss = check_options(options, "evaluate")
    arguments = Options(axis, class_weight, loss, reduction)
    counts = _Counts(arguments)
    dtype = None if dtype is None else float_dtype(dtype)
    with closing(Source(logits, "logits", dtype)) as z, closing(Source(targets, "targets")) as y:
        if y.shape == z.shape and y.dtype.kind not in "iu":
            raise TypeError(
                f"targets have dtype {y.dtype} and the shape {y.shape} of the logits: expected "
                "class indices, integers of that shape without the class axis"
            )
        result = run(z, y, sample_weight, arguments, grad_out, progress, counts.visit, dtype)
    kept, mean = counts.kept, float(result.loss)
    if reduction == "sum":
        mean = mean_of(mean, result.weight)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(mean))
    return Evaluation(
        result.n_rows,
        result.n_classes,
        kept,
        float(result.loss),
        mean,
        perplexity,
        mean_of(counts.hits, kept),
        mean_of(counts.top, kept),
        mean_of(counts.entropy, kept),
        result.seconds,
        result.n_bytes / result.seconds / 1e9,
    )
