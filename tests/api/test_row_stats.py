"""Maximum, log-sum-exp, argmax, entropy, loss and rank of each row."""

from __future__ import annotations

import numpy as np
import pytest
from cases import DTYPE_IDS, DTYPES, ONE_OF_EACH_KERNEL, make_logits
from exact import assert_same, check_loss, check_values, exact_rows, softmax_row, working

import numba_ce as nc

NAN, INF = np.nan, np.inf
FIELDS = ("row_max", "lse", "argmax", "entropy", "target_logit", "loss", "rank")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)


@every_dtype
@pytest.mark.parametrize("shape", [(5,), (4, 1), (4, 3), (2, 3, 40), (2, 1100)], ids=str)
@pytest.mark.parametrize("axis", [-1, 0])
def test_fields(backend, rng, dtype, shape, axis):
    logits = make_logits(rng, shape, dtype)
    rows = np.moveaxis(logits, axis, -1).astype(float)
    n_classes = rows.shape[-1]
    targets = rng.integers(0, n_classes, rows.shape[:-1])
    stats = nc.row_stats(logits, targets, axis=axis)
    assert isinstance(stats, nc.RowStats)
    assert stats._fields == FIELDS
    for name in ("argmax", "rank"):
        assert getattr(stats, name).dtype == np.int64
    for name in ("row_max", "lse", "entropy", "target_logit", "loss"):
        assert getattr(stats, name).dtype == working(dtype)
    assert all(field.shape == rows.shape[:-1] for field in stats)
    assert_same(stats.row_max, rows.max(axis=-1))
    assert_same(stats.argmax, rows.argmax(axis=-1))
    picked = np.take_along_axis(rows, targets[..., None], axis=-1)
    assert_same(stats.target_logit, picked[..., 0])
    assert_same(stats.rank, (rows > picked).sum(axis=-1))
    check_loss(np.asarray(stats.loss), exact_rows(logits, targets, axis=axis), dtype)
    soft = [softmax_row(z) for z in rows.reshape(-1, n_classes)]
    sizes = [max(s.lse_size, s.lse - s.row_max) for s in soft]
    check_values(stats.lse, [s.lse for s in soft], sizes, 4, dtype, "lse")
    entropy = [s.entropy for s in soft]
    check_values(stats.entropy, entropy, entropy, 4, dtype, "entropy")

    alone = nc.row_stats(logits, axis=axis)
    assert alone.target_logit is alone.loss is alone.rank is None
    for name in ("row_max", "lse", "argmax", "entropy"):
        assert_same(getattr(alone, name), getattr(stats, name))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gap", [0.0, 3.0, 20.0, 60.0])
@pytest.mark.parametrize("n_classes", [2, *ONE_OF_EACH_KERNEL])
def test_entropy_of_confident_rows(backend, rng, dtype, gap, n_classes):
    """Down to 1e-24 with all its digits, not 0."""
    logits = make_logits(rng, (3, n_classes), dtype)
    logits[:, 1] = logits.max(axis=1) + dtype(gap)
    stats = nc.row_stats(logits)
    expected = [softmax_row(z).entropy for z in logits]
    check_values(stats.entropy, expected, expected, 4, dtype, "entropy")
    assert (stats.entropy > 0).all()


@every_dtype
@pytest.mark.parametrize("n_classes", [2, *ONE_OF_EACH_KERNEL])
def test_ties(backend, rng, dtype, n_classes):
    """The first maximum; rank counts what is strictly above."""
    logits = rng.integers(0, 2, (6, n_classes)).astype(dtype)
    logits[0] = 1
    logits[1] = -0.0
    logits[1, 1] = 0.0
    targets = rng.integers(0, n_classes, 6)
    stats = nc.row_stats(logits, targets)
    rows = logits.astype(float)
    assert_same(stats.argmax, rows.argmax(axis=1))
    picked = rows[np.arange(6), targets]
    assert_same(stats.rank, (rows > picked[:, None]).sum(axis=1))
    assert stats.argmax[0] == stats.rank[0] == stats.argmax[1] == stats.rank[1] == 0


@every_dtype
@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
@pytest.mark.parametrize("axis", [-1, 0])
def test_special_rows(backend, rng, dtype, n_classes, axis):
    logits = make_logits(rng, (7, n_classes), dtype)
    logits[0, [1, 2]] = NAN
    logits[1, 2] = INF
    logits[2] = -INF
    logits[3, 0] = -INF
    logits[4] = -INF
    logits[4, 1] = 2.5
    logits[6, 1], logits[6, 2] = INF, NAN
    targets = np.array([0, 2, 1, 0, 1, 2, 0])
    stats = nc.row_stats(
        logits if axis == -1 else np.ascontiguousarray(logits.T), targets, axis=axis
    )
    top = logits[3].astype(float).argmax()
    assert_same(
        stats.row_max[[0, 1, 2, 3, 4, 6]],
        np.array([NAN, INF, -INF, float(logits[3, top]), 2.5, NAN]),
    )
    assert_same(stats.lse[[0, 1, 2, 4, 6]], [NAN, INF, -INF, 2.5, NAN])
    assert np.isfinite(stats.lse[[3, 5]]).all()
    assert_same(stats.argmax[[0, 1, 2, 3, 4, 6]], [1, 2, 0, top, 1, 2])
    nan_rows = [True, True, True, False, False, False, True]
    assert np.isnan(stats.entropy).tolist() == nan_rows
    assert np.isnan(stats.loss).tolist() == nan_rows
    assert stats.loss[3] == INF
    assert stats.loss[4] == stats.entropy[4] == 0
    assert_same(stats.target_logit[[1, 2, 3, 4]], [INF, -INF, -INF, 2.5])
    assert stats.target_logit[[0, 5, 6]].tolist() == logits[[0, 5, 6], [0, 2, 0]].tolist()
    assert (stats.rank[[0, 1, 2, 6]] == n_classes).all()
    assert stats.rank[3] == n_classes - 1
    assert stats.rank[4] == 0


@every_dtype
def test_ignored_rows(backend, rng, dtype):
    logits = make_logits(rng, (4, 12), dtype)
    logits[2] = NAN
    full = nc.row_stats(logits, [1, 2, 3, 4])
    stats = nc.row_stats(logits, [1, -100, -100, 4])
    ignored = [1, 2]
    assert (stats.loss[ignored] == 0).all()
    assert (stats.rank[ignored] == 12).all()
    assert np.isnan(stats.target_logit[ignored]).all()
    for name in ("row_max", "lse", "argmax", "entropy"):
        assert_same(getattr(stats, name), getattr(full, name))
    for name in ("loss", "rank", "target_logit"):
        assert_same(getattr(stats, name)[[0, 3]], getattr(full, name)[[0, 3]])
    other = nc.row_stats(logits, [1, 7, 7, 4], ignore_index=7)
    assert_same(other.loss, stats.loss)


def test_rank_is_top_k_accuracy(backend, rng):
    logits, targets = make_logits(rng, (200, 10), np.float32), rng.integers(0, 10, 200)
    rank = nc.row_stats(logits, targets).rank
    order = np.argsort(-logits, axis=1)
    for k in (1, 3, 10):
        expected = (order[:, :k] == targets[:, None]).any(axis=1)
        assert_same(rank < k, expected)


def test_entropy_bounds(backend):
    stats = nc.row_stats(np.zeros((2, 64)))
    np.testing.assert_allclose(stats.entropy, np.log(64), rtol=4e-16)
    stats = nc.row_stats(np.array([[0.0, -INF, -INF], [1.0, 1.0, -INF]]))
    np.testing.assert_allclose(stats.entropy, [0, np.log(2)], rtol=4e-16)


def test_one_row(backend, rng):
    z = make_logits(rng, 9)
    stats = nc.row_stats(z, 4)
    assert all(np.shape(field) == () for field in stats)
    assert stats.argmax == z.argmax()
    assert stats.target_logit == z[4]
    assert nc.row_stats([1.0, 2.0]).argmax == 1
