"""Loss, accuracy and entropy of stored logits, in blocks of rows that fit the caches."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numba_ce import cross_entropy, cross_entropy_and_grad, row_stats
from numba_ce._validate import Array, check_reduction

BLOCK_BYTES = 32 << 20
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


def load(path: Path, name: str) -> Array:
    """A memory-mapped .npy file; ValueError or OSError for anything else."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name} {path}: not a readable .npy file ({error})") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{name} {path}: an archive of arrays, expected one .npy array")
    return array


def evaluate(
    logits: Array,
    targets: Array,
    *,
    axis: int = -1,
    reduction: str = "mean",
    grad_out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Everything that the command `eval` prints.

    logits : (n_rows, n_classes), or classes first with axis 0; targets : class indices (n_rows,)
    grad_out : .npy file for the gradient; it appears under its name when it is complete
    """
    if check_reduction(reduction) == "none":
        raise ValueError("reduction = 'none': expected 'mean' or 'sum'")
    if logits.ndim != 2 or targets.ndim != 1:
        raise ValueError(
            f"logits have {logits.ndim} axes and targets {targets.ndim}: expected two and one"
        )
    rows = np.moveaxis(logits, axis, -1)
    n_rows, n_classes = rows.shape
    if targets.shape != (n_rows,):
        raise ValueError(f"targets have shape {targets.shape}: expected ({n_rows},)")
    ignore_index = options.get("ignore_index", -100)
    _check_targets(targets, n_classes, ignore_index)
    step = max(1, BLOCK_BYTES // max(1, n_classes * logits.dtype.itemsize))
    blocks = [slice(start, start + step) for start in range(0, n_rows, step)]
    total = weight = entropy = 0.0
    kept = hits = top = 0
    begin = time.perf_counter()
    for number, block in enumerate(blocks):
        z, y = rows[block], np.asarray(targets[block])
        loss = cross_entropy(z, y, reduction="sum", **options)
        stats = row_stats(z, y, ignore_index=ignore_index)
        here = np.ones(len(y), bool) if ignore_index is None else y != ignore_index
        assert stats.rank is not None
        total += float(loss)
        weight += _weight(y[here], options.get("class_weight"))
        kept += int(here.sum())
        hits += int((stats.rank[here] < 1).sum())
        top += int((stats.rank[here] < TOP).sum())
        entropy += float(stats.entropy[here].sum(dtype=np.float64))
        if progress is not None:
            progress(number, len(blocks))
    seconds = time.perf_counter() - begin
    if grad_out is not None:
        scale = weight if reduction == "mean" else 1.0
        _write_gradient(grad_out, logits, rows, targets, axis, blocks, scale, options)
    nan = float("nan")
    mean = total / weight if weight else nan
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(mean))
    return Evaluation(
        n_rows,
        n_classes,
        kept,
        mean if reduction == "mean" else total,
        perplexity,
        hits / kept if kept else nan,
        top / kept if kept else nan,
        entropy / kept if kept else nan,
        seconds,
        logits.nbytes / seconds / 1e9 if seconds else nan,
    )


def _check_targets(targets: Array, n_classes: int, ignore_index: int | None) -> None:
    """Name a bad target by its place in the file, not in a block."""
    if targets.dtype.kind not in "iu":
        return
    bad = (targets < 0) | (targets >= n_classes)
    if ignore_index is not None:
        bad &= targets != ignore_index
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"targets[{row}] = {int(targets[row])} is not a class index: "
            f"expected 0 <= target < {n_classes} or ignore_index = {ignore_index}"
        )


def _weight(targets: Array, class_weight: Any) -> float:
    return float(len(targets) if class_weight is None else np.asarray(class_weight)[targets].sum())


def _write_gradient(
    path: Path,
    logits: Array,
    rows: Array,
    targets: Array,
    axis: int,
    blocks: list[slice],
    scale: float,
    options: dict[str, Any],
) -> None:
    dtype = logits.dtype.newbyteorder("=")
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=path.name, suffix=".part", delete=False
    ) as part:
        unfinished = Path(part.name)
    try:
        out = np.lib.format.open_memmap(unfinished, "w+", dtype, logits.shape)
        target_rows = np.moveaxis(out, axis, -1)
        for block in blocks:
            z, y = rows[block], np.asarray(targets[block])
            # 16-bit gradients: scaled in float32, then rounded once
            work = np.empty(z.shape, np.float32 if dtype.itemsize == 2 else dtype)
            cross_entropy_and_grad(z, y, reduction="sum", out=work, **options)
            target_rows[block] = work / work.dtype.type(scale) if scale else 0
        out.flush()
        del out, target_rows
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
