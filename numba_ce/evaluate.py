"""Loss, accuracy and entropy of stored logits, in one pass of `numba_ce.stream`."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numba_ce import row_stats
from numba_ce._quiet import quiet
from numba_ce._validate import Array, check_options, check_reduction
from numba_ce.blocks import AHEAD, Block, Source
from numba_ce.streaming import Options, Progress, run

TOP = 5


@dataclass
class Evaluation:
    """The results of `evaluate`; `loss` is the mean or the sum."""

    n_rows: int
    n_classes: int
    n_kept: int
    loss: float
    perplexity: float
    accuracy: float
    top5_accuracy: float
    mean_entropy: float
    seconds: float
    gb_per_second: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: None in its place."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


class _Clock:
    """Throughput after the first block, which waits for compilers, and those read meanwhile."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.begin = self.end = time.perf_counter()
        self.blocks = self.before = self.rows = 0

    def __call__(self, done: int, rows: int | None) -> None:
        self.end, self.rows, self.blocks = time.perf_counter(), done, self.blocks + 1
        if self.blocks == 1 + AHEAD and done != rows:
            self.begin, self.before = self.end, done
        if self.progress is not None:
            self.progress(done, rows)

    def gb_per_second(self, n_bytes: int) -> float:
        """Of a file of so many bytes; all of it if it has no more than those first blocks."""
        if self.rows == self.before:
            return float("nan")
        share = (self.rows - self.before) / self.rows
        return share * n_bytes / (self.end - self.begin) / 1e9


class _Counts:
    """What is counted over the blocks beside the loss."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.kept = self.hits = self.top = 0
        self.entropy = 0.0

    def visit(self, block: Block) -> None:
        axis, ignore_index = self.options.axis, self.options.loss.ignore_index
        here = np.ones(len(block.targets), bool)
        if ignore_index is not None:
            here = block.targets != ignore_index
        stats = row_stats(block.logits, block.targets, axis=axis, ignore_index=ignore_index)
        entropy, rank = stats.entropy, stats.rank
        assert rank is not None
        if self.options.loss.softcap is not None or self.options.loss.temperature != 1.0:
            # The ranks are those of the logits as stored: a cap may round two of them to one
            entropy = row_stats(self._distribution(block.logits), axis=axis).entropy
        self.kept += int(here.sum())
        self.hits += int((rank[here] < 1).sum())
        self.top += int((rank[here] < TOP).sum())
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
    class_weight: Any = None,
    reduction: str = "mean",
    grad_out: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Everything that the command `eval` prints.

    logits : path or array, (n_rows, n_classes), or classes first with axis 0
    targets : path or array, class indices (n_rows,)
    grad_out : .npy file for the gradient; it appears under its name when it is complete
    """
    if check_reduction(reduction) == "none":
        raise ValueError("reduction = 'none': expected 'mean' or 'sum'")
    arguments = Options(axis, class_weight, check_options(**options), reduction)
    counts, clock = _Counts(arguments), _Clock(progress)
    with closing(Source(logits, "logits")) as z, closing(Source(targets, "targets")) as y:
        if len(z.shape) != 2 or len(y.shape) != 1:
            raise ValueError(
                f"logits have {len(z.shape)} axes and targets {len(y.shape)}: expected two and one"
            )
        result = run(z, y, None, arguments, grad_out, clock, counts.visit)
    nan, kept = float("nan"), counts.kept
    mean = float(result.loss)
    if reduction == "sum":
        mean = mean / result.weight if result.weight else nan
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(mean))
    return Evaluation(
        result.n_rows,
        result.n_classes,
        kept,
        float(result.loss),
        perplexity,
        counts.hits / kept if kept else nan,
        counts.top / kept if kept else nan,
        counts.entropy / kept if kept else nan,
        result.seconds,
        clock.gb_per_second(result.n_bytes),
    )
