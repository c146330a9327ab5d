"""Targets outside [0, C), ignored rows and what a mean over nothing gives."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cases import DTYPE_IDS, DTYPES, ONE_OF_EACH_KERNEL, make_logits, make_targets
from edges import loss_and_grad
from exact import assert_same, check_loss, exact_rows

import numba_ce as nc

NAN, INF = np.nan, np.inf


# ---------------------------------------------------------------- bad targets


def _grad_and_hess(logits, targets, grad, ignore):
    nc.cross_entropy_grad_and_hess(logits, targets, out=(grad, np.empty_like(grad)))


def _record(logits, targets, grad, ignore):
    nc.row_record(logits, targets, class_offset=0, n_classes=logits.shape[-1], ignore_index=ignore)


def _grad_from_record(logits, targets, grad, ignore):
    safe = np.zeros_like(targets)
    n = logits.shape[-1]
    record = nc.row_record(logits, safe, class_offset=0, n_classes=n)
    nc.grad_from_record(logits, targets, record, class_offset=0, out=grad, ignore_index=ignore)


CALLS = {
    "loss": lambda z, y, g, i: nc.cross_entropy(z, y, ignore_index=i),
    "loss_none": lambda z, y, g, i: nc.cross_entropy(z, y, ignore_index=i, reduction="none"),
    "grad": lambda z, y, g, i: nc.cross_entropy_and_grad(z, y, ignore_index=i, out=g),
    "grad_sum": lambda z, y, g, i: nc.cross_entropy_and_grad(
        z, y, ignore_index=i, out=g, reduction="sum"
    ),
    "hess": _grad_and_hess,
    "row_stats": lambda z, y, g, i: nc.row_stats(z, y, ignore_index=i),
    "record": _record,
    "grad_from_record": _grad_from_record,
}
BAD_TARGETS = [
    ("int8", -1),
    ("int8", -128),
    ("int8", 10),
    ("uint8", 255),
    ("int16", -32768),
    ("uint16", 65535),
    ("int32", 10),
    ("int32", -(2**31)),
    ("uint32", 2**32 - 1),
    ("int64", -1),
    ("int64", 2**32),  # 0 in the low half
    ("int64", 2**63 - 1),
    ("int64", -(2**63)),
    ("uint64", 2**64 - 1),
    ("uint64", 2**64 - 100),  # -100 if it were signed
    ("uint8", 156),  # -100 if it were signed
    (">i4", 10),
    (">u8", 2**63),
    (">i2", -1),
]


@pytest.mark.parametrize(("dtype", "bad"), BAD_TARGETS)
@pytest.mark.parametrize("call", CALLS)
def test_bad_target_is_named_and_nothing_is_written(backend, rng, call, dtype, bad):
    logits = make_logits(rng, (3, 4, 10), np.float32)
    targets = rng.integers(0, 10, (3, 4)).astype(dtype)
    targets[1, 2] = bad
    targets[2, 3] = bad
    grad = np.full(logits.shape, 7.0, np.float32)
    message = f"targets[1, 2] = {bad} is not a class index: expected 0 <= target < 10" + (
        " or ignore_index = -100" if call != "hess" else ""
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        CALLS[call](logits, targets, grad, -100)
    assert (grad == 7.0).all()


@pytest.mark.parametrize("call", CALLS)
def test_minus_100_is_bad_without_an_ignore_index(backend, rng, call):
    logits = make_logits(rng, (5, 10), np.float32)
    targets = np.array([1, 2, 9, -100, -100])
    grad = np.full(logits.shape, 7.0, np.float32)
    with pytest.raises(ValueError, match=r"^targets\[3\] = -100 is not .* < 10$"):
        CALLS[call](logits, targets, grad, None)
    assert (grad == 7.0).all()


def test_bad_target_in_place_keeps_the_logits(backend, rng):
    logits = make_logits(rng, (300, 10), np.float32)
    before = logits.copy()
    targets = rng.integers(0, 10, 300)
    targets[-1] = 10
    with pytest.raises(ValueError, match=r"targets\[299\] = 10 "):
        nc.cross_entropy_and_grad(logits, targets, out=logits)
    assert logits.tobytes() == before.tobytes()


def test_bad_target_in_the_last_of_many_blocks(backend, rng):
    n_rows = 20011
    logits = make_logits(rng, (n_rows, 3), np.float32)
    targets = rng.integers(0, 3, n_rows)
    targets[[n_rows - 1, n_rows - 2]] = [-7, 3]
    grad = np.full(logits.shape, 7.0, np.float32)
    with pytest.raises(ValueError, match=rf"targets\[{n_rows - 2}\] = 3 "):
        nc.cross_entropy_and_grad(logits, targets, out=grad)
    assert (grad == 7.0).all()


def test_bad_target_position_is_that_of_the_targets_array(backend, rng):
    logits = make_logits(rng, (10, 3, 4), np.float32)
    targets = rng.integers(0, 10, (4, 3)).T
    targets[2, 1] = -3
    with pytest.raises(ValueError, match=r"targets\[2, 1\] = -3 "):
        nc.cross_entropy(logits, targets, axis=0)
    with pytest.raises(ValueError, match=r"^targets = 10 is not a class index"):
        nc.cross_entropy(logits[:, 0, 0], 10)
    with pytest.raises(ValueError, match=r"^targets = -1 is not a class index"):
        nc.cross_entropy(logits[:, 0, 0], np.array(-1))


@pytest.mark.parametrize("axis", [0, 1])
def test_bad_target_in_a_row_of_weight_zero_or_nan_is_bad_too(backend, axis):
    logits = np.full((3, 3), np.nan)
    with pytest.raises(ValueError, match=r"targets\[1\] = 3 "):
        nc.cross_entropy(logits, [0, 3, 1], axis=axis, sample_weight=np.zeros(3))


def test_the_ignore_index_is_never_a_bad_target(backend, rng):
    logits = make_logits(rng, (4, 5))
    for ignore_index in (-1, 5, 10**6, -(2**63), 2**63 - 1):
        targets = np.array([0, ignore_index, 4, ignore_index])
        loss, grad = loss_and_grad(logits, targets, ignore_index=ignore_index)
        assert (loss[[1, 3]] == 0).all()
        assert (loss[[0, 2]] > 0).all()
        assert (grad[[1, 3]] == 0).all()
    loss, grad = loss_and_grad(logits, np.array([0, 3, 4, 3]), ignore_index=3)
    assert (loss == 0).tolist() == [False, True, False, True]


def test_ignore_index_is_compared_as_an_integer(backend, rng):
    logits = make_logits(rng, (2, 300), np.float32)
    loss, _ = loss_and_grad(logits, np.array([156, 255], np.uint8))  # -100 and -1 as int8
    assert (loss > 0).all()
    check_loss(loss, exact_rows(logits, [156, 255]), np.float32)
    with pytest.raises(ValueError, match=r"targets\[0\] = -100 "):
        nc.cross_entropy(logits, np.array([-100, 0], np.int8), ignore_index=156)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_unchecked_bad_targets_give_nan_in_their_row_only(backend, rng, dtype, reduction):
    logits = make_logits(rng, (6, 10), dtype)
    targets = np.array([3, -1, 9, 10, -(2**63), 2**40])
    bad = np.array([False, True, False, True, True, True])
    loss, grad = nc.cross_entropy_and_grad(
        logits, targets, reduction=reduction, check_targets=False
    )
    assert (np.isnan(grad.astype(float)).all(axis=1) == bad).all()
    assert (np.isnan(grad.astype(float)).any(axis=1) == bad).all()
    expected, expected_grad = nc.cross_entropy_and_grad(
        logits[~bad], targets[~bad], reduction=reduction
    )
    assert_same(grad[~bad], expected_grad)  # the mean counts good rows alone
    if reduction == "none":
        assert (np.isnan(loss) == bad).all()
        assert_same(loss[~bad], expected)
    else:
        assert np.isnan(loss)


def test_unchecked_good_targets_change_nothing(backend, rng):
    logits = make_logits(rng, (6, 10), np.float32)
    targets = rng.integers(0, 10, 6)
    loss, grad = loss_and_grad(logits, targets)
    loss2, grad2 = loss_and_grad(logits, targets, check_targets=False)
    assert_same(loss, loss2)
    assert_same(grad, grad2)


# ---------------------------------------------------------------- nothing to do


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0, 5), (0, 3, 0)])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_rows(backend, shape, kind, dtype):
    logits = np.empty(shape, dtype)
    loss_dtype = np.float64 if dtype == np.float64 else np.float32
    targets = np.empty(shape[:-1], np.int32) if kind == "index" else np.empty(shape)
    for call in (
        lambda **o: (nc.cross_entropy(logits, targets, **o), np.empty(shape, dtype)),
        lambda **o: nc.cross_entropy_and_grad(logits, targets, **o),
    ):
        mean, grad = call()
        assert np.isnan(mean)
        assert mean.dtype == loss_dtype
        assert grad.shape == shape
        assert grad.dtype == dtype
        total, _ = call(reduction="sum")
        assert total == 0
        assert total.dtype == loss_dtype
        rows, _ = call(reduction="none")
        assert rows.shape == shape[:-1]
        assert rows.dtype == loss_dtype


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0, 5)])
def test_no_rows_in_the_other_functions(backend, shape):
    logits = np.empty(shape, np.float32)
    targets = np.empty(shape[:-1], np.int64)
    grad, hess = nc.cross_entropy_grad_and_hess(logits, targets)
    assert grad.shape == hess.shape == shape
    stats = nc.row_stats(logits, targets)
    assert all(field.shape == shape[:-1] for field in stats)
    assert nc.softmax(logits).shape == nc.log_softmax(logits).shape == shape
    assert nc.logsumexp(logits).shape == shape[:-1]
    record = nc.row_record(logits, targets, class_offset=0, n_classes=5)
    assert record.shape[:-1] == shape[:-1]
    assert nc.loss_from_record(record).shape == shape[:-1]
    grad = nc.grad_from_record(logits, targets, record, class_offset=0)
    assert grad.shape == shape


def test_no_rows_with_the_class_axis_first(backend):
    loss, grad = nc.cross_entropy_and_grad(
        np.empty((5, 0)), np.empty(0, int), axis=0, reduction="none"
    )
    assert loss.shape == (0,)
    assert grad.shape == (5, 0)


def test_no_classes(backend):
    logits, targets = np.empty((3, 0), np.float32), np.zeros(3, int)
    with pytest.raises(ValueError, match="logits"):
        nc.cross_entropy(logits, targets)
    with pytest.raises(ValueError, match="logits"):
        nc.cross_entropy_and_grad(logits, targets)
    with pytest.raises(ValueError, match="logits"):
        nc.cross_entropy_and_grad(logits, logits)  # probabilities
    with pytest.raises(ValueError, match="logits"):
        nc.cross_entropy_grad_and_hess(logits, targets)
    with pytest.raises(ValueError, match="logits"):
        nc.row_stats(logits)
    lse = nc.logsumexp(logits)
    assert lse.tolist() == [-INF] * 3
    assert lse.dtype == np.float32
    assert nc.softmax(logits).shape == (3, 0)
    assert nc.log_softmax(logits).shape == (3, 0)


# ---------------------------------------------------------------- a mean over nothing


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(
    "options",
    [
        {"targets": [-100] * 4},
        {"targets": [0, 1, 2, 0], "sample_weight": np.zeros(4)},
        {"targets": [0, 1, 0, 1], "class_weight": np.array([1.0, -1.0, 5.0])},
        {"targets": [0, 1, 0, 1], "sample_weight": np.array([2.0, 1.0, -1.0, -2.0])},
        {"targets": [2, 2, -100, 2], "class_weight": np.array([1.0, 1.0, 0.0])},
        {"targets": np.full((4, 3), 0.25), "sample_weight": np.array([1.0, -1.0, 0.0, 0.0])},
    ],
    ids=["ignored", "weight_0", "classes_cancel", "samples_cancel", "class_weight_0", "probs"],
)
def test_mean_with_a_zero_denominator(backend, rng, dtype, options):
    logits = make_logits(rng, (4, 3), dtype)
    loss, grad = nc.cross_entropy_and_grad(logits, **options)
    assert np.isnan(loss)
    assert (grad == 0).all()
    assert np.isnan(nc.cross_entropy(logits, **options))
    in_place = logits.copy()
    nc.cross_entropy_and_grad(in_place, out=in_place, **options)
    assert (in_place == 0).all()


def test_zero_denominator_gradient_is_zero_even_in_a_nan_row(backend):
    logits = np.array([[NAN, 1.0], [INF, 2.0]])
    loss, grad = nc.cross_entropy_and_grad(logits, [-100, -100])
    assert np.isnan(loss)
    assert (grad == 0).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_everything_ignored_sums_to_zero(backend, rng, axis):
    logits = make_logits(rng, (4, 4), np.float32)
    targets = np.full(4, -100)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="sum", axis=axis)
    assert loss == 0
    assert (grad == 0).all()
    loss, grad = loss_and_grad(logits, targets, axis=axis)
    assert (loss == 0).all()
    assert (grad == 0).all()


# ---------------------------------------------------------------- ignored rows


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("kind", ["index", "weight", "probabilities"])
@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_ignored_rows_may_hold_anything(backend, rng, dtype, kind, n_classes):
    logits = make_logits(rng, (6, n_classes), dtype)
    clean = logits.copy()
    logits[1] = NAN
    logits[2, 3] = INF
    logits[4] = -INF
    kept = [0, 3, 5]
    options = {}
    if kind == "index":
        targets = np.array([1, -100, -100, 2, -100, 3])
    else:
        target_kind = "index" if kind == "weight" else "probabilities"
        targets = make_targets(rng, (6,), n_classes, target_kind)
        options["sample_weight"] = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    loss, grad = loss_and_grad(logits, targets, **options)
    assert (loss[[1, 2, 4]] == 0).all()
    assert (grad[[1, 2, 4]] == 0).all()
    expected, expected_grad = loss_and_grad(clean[kept], targets[kept])
    assert_same(loss[kept], expected)
    assert_same(grad[kept], expected_grad)
    mean, grad = nc.cross_entropy_and_grad(logits, targets, **options)
    expected, expected_grad = nc.cross_entropy_and_grad(clean[kept], targets[kept])
    np.testing.assert_array_max_ulp(mean, expected, 1)  # the rows are not added in the same lanes
    assert (grad[[1, 2, 4]] == 0).all()
    assert_same(grad[kept], expected_grad)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_a_soft_cap_of_ignored_rows_that_hold_anything(backend, rng, dtype, kind, n_classes):
    """A gradient is multiplied by the derivative of the cap, and 0 * NaN is not 0."""
    logits = make_logits(rng, (4, n_classes), dtype)
    logits[0, 2], logits[1, 1], logits[2, 3] = NAN, INF, -INF
    targets = make_targets(rng, (4,), n_classes, kind)
    ignored = {"sample_weight": np.array([0.0, 0.0, 0.0, 1.0])}
    for options in ({}, {"label_smoothing": 0.1, "temperature": 30.0}):
        loss, grad = loss_and_grad(logits, targets, softcap=3.0, **options, **ignored)
        assert (loss[:3] == 0).all()
        assert (grad[:3] == 0).all()
        assert loss[3] > 0


def test_ignored_target_is_read_as_probabilities_neither(backend):
    logits = np.array([[0.0, 1.0], [1.0, 2.0]])
    targets = np.array([[NAN, NAN], [0.5, 0.5]])
    loss, grad = loss_and_grad(logits, targets, sample_weight=np.array([0.0, 1.0]))
    assert loss[0] == 0
    assert (grad[0] == 0).all()
    assert np.isfinite(loss[1])


# ---------------------------------------------------------------- targets read sixteen at a time


@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "i4", "i8", ">u8"])
def test_ignored_rows_among_many(rng, n_classes, dtype):
    """Rows enough for vectors of targets, and a rest."""
    n_rows, ignored = 50, 1
    logits = rng.standard_normal((n_rows, n_classes)).astype(np.float32)
    targets = rng.integers(0, min(n_classes, 100), n_rows).astype(dtype)
    targets[[0, 15, 16, 31, 49]] = ignored
    options = {"ignore_index": ignored, "reduction": "none"}
    loss, grad = nc.cross_entropy_and_grad(logits, targets, **options)
    skipped = targets == ignored
    assert (loss[skipped] == 0).all()
    assert (grad[skipped] == 0).all()
    kept_loss, kept_grad = nc.cross_entropy_and_grad(
        logits[~skipped], targets[~skipped], reduction="none"
    )
    np.testing.assert_array_equal(loss[~skipped], kept_loss)
    np.testing.assert_array_equal(grad[~skipped], kept_grad)
    mean = nc.cross_entropy(logits, targets, ignore_index=ignored)
    np.testing.assert_allclose(mean, kept_loss.mean(dtype=float), rtol=1e-6)


@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
@pytest.mark.parametrize("row", [0, 7, 15, 16, 31, 40, 49])
@pytest.mark.parametrize(
    ("dtype", "bad"), [("i1", -1), ("i8", -5), ("i8", 2**62), ("u8", 2**64 - 1), (">i4", 2000)]
)
def test_a_bad_target_among_many(rng, n_classes, row, dtype, bad):
    logits = rng.standard_normal((50, n_classes)).astype(np.float32)
    targets = rng.integers(0, 3, 50).astype(dtype)
    targets[row] = bad
    targets[49] = bad
    grad = np.full_like(logits, 7)
    with pytest.raises(ValueError, match=rf"targets\[{row}\] = {bad} is not a class index"):
        nc.cross_entropy_and_grad(logits, targets, out=grad)
    assert (grad == 7).all()
    loss, grad = nc.cross_entropy_and_grad(logits, targets, check_targets=False, reduction="none")
    spoilt = np.isin(np.arange(50), [row, 49])
    np.testing.assert_array_equal(np.isnan(loss), spoilt)
    np.testing.assert_array_equal(np.isnan(grad).all(axis=1), spoilt)
    assert not np.isnan(grad[~spoilt]).any()


@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_bad_targets_make_a_zero_denominator(backend, rng, dtype, n_classes):
    """The mean is NaN and the gradient 0, as for any other zero denominator."""
    logits = make_logits(rng, (2, n_classes), dtype)
    loss, grad = nc.cross_entropy_and_grad(logits, [n_classes, -1], check_targets=False)
    assert np.isnan(loss)
    assert_same(grad, np.zeros_like(logits))
