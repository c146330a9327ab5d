"""The tasks of `numba_ce.integrations.dask`: NumPy blocks in, NumPy blocks out.

z, y, s, w are blocks of logits, targets, sample weights and class weights; offset is an array with
the first class of the block.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import numba_ce
from numba_ce._quiet import quiet
from numba_ce._validate import make_problem
from numba_ce.options import LossOptions
from numba_ce.reference import finish
from numba_ce.results import mean_of
from numba_ce.weights import check_indices, mean_weights, stand_in


def _serial(function: Any) -> Any:
    """A task that must not start threads of its own."""

    @functools.wraps(function)
    def task(*arguments: Any, **options: Any) -> Any:
        with numba_ce.serial():
            return function(*arguments, **options)

    return task


def checked(y: Any, n_classes: int, ignore_index: int | None, *, block_info: Any) -> Any:
    """The targets of a block; a bad one is named by its place among all."""
    options = LossOptions(ignore_index=ignore_index)
    logits = stand_in((*y.shape, n_classes), np.dtype(np.float64))
    problem = make_problem(logits, y, y.ndim, None, None, options, "none")
    check_indices(problem, n_classes, tuple(a for a, _ in block_info[0]["array-location"]))
    return y


@_serial
def loss(z: Any, y: Any, s: Any, w: Any, **options: Any) -> Any:
    return numba_ce.cross_entropy(
        z, y, sample_weight=s, class_weight=w, reduction="none", **options
    )


@_serial
def loss_and_grad(z: Any, y: Any, s: Any, w: Any, **options: Any) -> Any:
    return numba_ce.cross_entropy_and_grad(
        z, y, sample_weight=s, class_weight=w, reduction="none", **options
    )


@_serial
def record(z: Any, y: Any, s: Any, w: Any, offset: Any, **options: Any) -> Any:
    record = numba_ce.row_record(
        z, y, sample_weight=s, class_weight=w, class_offset=int(offset[0]), **options
    )
    return record[..., None, :]


@_serial
def grad(z: Any, y: Any, s: Any, w: Any, offset: Any, record: Any, **options: Any) -> Any:
    return numba_ce.grad_from_record(
        z, y, record, sample_weight=s, class_weight=w, class_offset=int(offset[0]), **options
    )


@_serial
def lse(z: Any, *, axis: int) -> Any:
    return numba_ce.logsumexp(z, axis)


@_serial
def stats(z: Any, y: Any, *, axis: int, ignore_index: int | None) -> Any:
    return numba_ce.row_stats(z, y, axis=axis, ignore_index=ignore_index)


def field(block: Any, *, field: int) -> Any:
    """One of the results of a task that has several."""
    return block[field]


def kept(block: Any, **_: Any) -> Any:
    return block


def merged(records: Any, axis: Any, keepdims: bool, **_: Any) -> Any:
    """Records of blocks of classes, along the last axis but one, as one."""
    parts = np.moveaxis(records, -2, 0)
    merged = functools.reduce(numba_ce.merge_records, parts)
    return merged[..., None, :] if keepdims else merged


def divided(like: Any, s: Any, denominator: Any) -> Any:
    return mean_weights(s, like.shape, float(denominator))


@quiet
def total(values: Any, axis: Any, keepdims: bool) -> Any:
    return np.sum(values, axis=axis, keepdims=keepdims, dtype=np.float64)


@quiet
def mean(total: Any, denominator: Any) -> Any:
    return np.asarray(mean_of(total, denominator))


@quiet
def rounded(values: Any, dtype: str) -> Any:
    return values.astype(dtype, copy=False)


def nan_without(denominator: Any, total: Any) -> Any:
    return np.asarray(mean_of(total, float(denominator != 0.0)))


def zero_without(denominator: Any, grad: Any) -> Any:
    return grad if denominator else np.zeros_like(grad)


@quiet
def lse_of_record(record: Any) -> Any:
    m, s, t = (record[..., i] for i in range(3))
    return np.where(np.isinf(t), t, finish(m, s, t, 1.0).lse)


# Statistics of a block of classes: maximum, lse minus maximum, entropy, first maximum
@_serial
@quiet
def part(z: Any, offset: Any, *, axis: int) -> Any:
    z = np.moveaxis(z, axis, -1)
    part = np.empty((*z.shape[:-1], 1, 4))
    # In pieces: a copy in float64, less its maximum, keeps the digits of a confident row
    rows, out = z.reshape(-1, z.shape[-1]), part.reshape(-1, 4)
    step = max(1, (1 << 18) // z.shape[-1])
    for start in range(0, len(rows), step):
        piece = rows[start : start + step].astype(np.float64)
        top = piece.max(axis=-1)
        shift = np.where(np.isfinite(top), top, 0.0)
        stats = numba_ce.row_stats(piece - shift[:, None])
        columns = (top, stats.lse, stats.entropy, stats.argmax + float(offset[0]))
        out[start : start + step] = np.stack(columns, axis=-1)
    return part


@quiet
def merged_parts(parts: Any, axis: Any, keepdims: bool, **_: Any) -> Any:
    """With P the share of a block, H = sum of P (H_block - log P)."""
    top, lse, entropy, first = np.moveaxis(parts, -1, 0)
    peak = top.max(axis=-1)
    shift = np.where(np.isfinite(peak), peak, 0.0)[..., None]
    shifted = np.where(np.isfinite(top), (top - shift) + lse, top)
    k = np.argmax(shifted, axis=-1)[..., None]
    largest = np.take_along_axis(shifted, k, axis=-1)
    others = np.exp(np.where(np.arange(top.shape[-1]) == k, -np.inf, shifted) - largest)
    excess = np.log1p(others.sum(axis=-1, keepdims=True))
    share = np.exp(shifted - largest - excess)
    surprise = (largest - shifted) + excess
    terms = np.where(share == 0.0, 0.0, share * (entropy + surprise))
    total = np.where(np.isfinite(peak), (largest + excess)[..., 0], peak)
    spread = np.where(np.isfinite(peak), terms.sum(axis=-1), np.nan)
    where = (top == peak[..., None]) | np.isnan(top)
    index = np.take_along_axis(first, np.argmax(where, axis=-1)[..., None], axis=-1)[..., 0]
    merged = np.stack([peak, total, spread, index], axis=-1)
    return merged[..., None, :] if keepdims else merged


@quiet
def stat(part: Any, *, stat: str) -> Any:
    top, lse, entropy, first = np.moveaxis(part, -1, 0)
    if stat == "lse":
        return np.where(np.isfinite(top), top + lse, top)
    return {"row_max": top, "entropy": entropy, "argmax": first}[stat]


def target_logit(record: Any, y: Any, *, ignore_index: int | None) -> Any:
    return np.where(is_ignored(y, ignore_index), np.nan, record[..., 2])


def is_ignored(y: Any, ignore_index: int | None) -> Any:
    return np.zeros(y.shape, bool) if ignore_index is None else y == ignore_index


def above(z: Any, target_logit: Any, *, axis: int) -> Any:
    z = np.moveaxis(z, axis, -1)
    return np.count_nonzero(z > target_logit[..., None], axis=-1)[..., None]


def rank(above: Any, loss: Any, y: Any, *, n_classes: int, ignore_index: int | None) -> Any:
    lost = np.isnan(loss) | is_ignored(y, ignore_index)
    return np.where(lost, n_classes, above)
