"""NaN, infinities, masked classes and other rows of the table of edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from cases import BFLOAT16, DTYPE_IDS, DTYPES, ONE_OF_EACH_KERNEL, make_logits, make_targets
from edges import check_exact, loss_and_grad
from exact import assert_same

import numba_ce as nc

NAN, INF = np.nan, np.inf


# ---------------------------------------------------------------- NaN and infinities in a row

SPOILED = {"nan": [NAN], "inf": [INF], "nan_and_inf": [NAN, INF], "inf_and_-inf": [INF, -INF]}
SPOILED_OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.1},
    "softcap": {"softcap": 2.0},
    "temperature": {"temperature": 0.5},
    "zero_weight": {"class_weight": 0},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("axis", [-1, 0])
def test_nan_stays_in_its_row(backend, rng, dtype, kind, spoiled, axis):
    values = SPOILED[spoiled]
    n_classes, n_rows = 37, 12
    for position in (0, 16, n_classes - len(values)):
        logits = make_logits(rng, (n_rows, n_classes), dtype)
        targets = make_targets(rng, (n_rows,), n_classes, kind)
        loss, grad = loss_and_grad(logits, targets)
        bad = logits.copy()
        for row in (2, 7):
            bad[row, position : position + len(values)] = values
        if kind == "index":
            targets[2] = position  # the target itself is the odd one
        good = np.delete(np.arange(n_rows), [2, 7])
        turn = (lambda a: np.ascontiguousarray(a.T)) if axis == 0 else np.asarray
        bad_loss, bad_grad = loss_and_grad(
            turn(bad), turn(targets) if kind == "probabilities" else targets, axis=axis
        )
        bad_grad = bad_grad.T if axis == 0 else bad_grad
        assert np.isnan(bad_loss[[2, 7]]).all()
        assert np.isnan(bad_grad[[2, 7]].astype(float)).all()
        if axis == -1:
            assert_same(bad_loss[good], loss[good])
            assert_same(bad_grad[good], grad[good])
        else:
            assert np.isfinite(bad_loss[good]).all()
            assert np.isfinite(bad_grad[good].astype(float)).all()


@pytest.mark.parametrize("options", SPOILED_OPTIONS)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
@pytest.mark.parametrize("value", ["nan", "inf", "all_minus_inf"])
def test_nan_whatever_the_options(backend, rng, options, kind, value):
    options = dict(SPOILED_OPTIONS[options])
    logits = make_logits(rng, (4, 9), np.float32)
    if "class_weight" in options:  # the odd class has no weight: still NaN
        options["class_weight"] = np.array([1.0] * 4 + [0.0] * 5)
    if value == "all_minus_inf":
        logits[1] = -INF
    else:
        logits[1, 6] = float(value)
    targets = make_targets(rng, (4,), 4 if kind == "index" else 9, kind)
    loss, grad = check_exact(logits, targets, **options)
    assert np.isnan(loss).tolist() == [False, True, False, False]
    assert np.isnan(grad).all(axis=1).tolist() == [False, True, False, False]
    assert np.isnan(grad).sum() == 9


@pytest.mark.parametrize("n_classes", [2, *ONE_OF_EACH_KERNEL])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_row_of_minus_inf(backend, rng, dtype, kind, n_classes):
    logits = make_logits(rng, (3, n_classes), dtype)
    targets = make_targets(rng, (3,), n_classes, kind)
    expected = loss_and_grad(logits, targets)
    logits[1] = -INF
    loss, grad = loss_and_grad(logits, targets)
    assert np.isnan(loss[1])
    assert np.isnan(grad[1]).all()
    assert_same(loss[[0, 2]], expected[0][[0, 2]])
    assert_same(grad[[0, 2]], expected[1][[0, 2]])


@pytest.mark.parametrize("position", [0, 1, 1023, 1024, 2047, 2048, 3000, 4999])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_odd_value_in_a_long_row(backend, rng, dtype, value, position):
    logits = make_logits(rng, (2, 5000), dtype)
    logits[0, position] = value
    loss, grad = loss_and_grad(logits, [2500, 2500])
    assert np.isnan(loss).tolist() == [True, False]
    assert np.isnan(grad[0]).all()
    assert np.isfinite(grad[1]).all()


def test_nan_reaches_the_mean_but_not_the_other_gradients(backend, rng):
    logits = make_logits(rng, (5, 8), np.float32)
    logits[3, 2] = NAN
    loss, grad = nc.cross_entropy_and_grad(logits, rng.integers(0, 8, 5))
    assert np.isnan(loss)
    assert np.isnan(grad).any(axis=1).tolist() == [False, False, False, True, False]


def test_nan_probabilities_spoil_their_row(backend, rng):
    logits = make_logits(rng, (3, 8), np.float32)
    targets = make_targets(rng, (3,), 8, "probabilities")
    targets[1, 4] = NAN
    loss, grad = loss_and_grad(logits, targets)
    assert np.isnan(loss).tolist() == [False, True, False]
    assert np.isnan(grad[1]).all()
    assert np.isfinite(grad[[0, 2]]).all()


# ---------------------------------------------------------------- one class


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("value", [0.0, -3.5, 60000.0])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_one_class(backend, dtype, value, kind):
    logits = np.full((3, 1), value, dtype)
    targets = np.zeros(3, int) if kind == "index" else np.ones((3, 1))
    for options in ({}, {"label_smoothing": 0.3}, {"temperature": 3.0}, {"softcap": 1.0}):
        loss, grad = loss_and_grad(logits, targets, **options)
        assert (loss == 0).all()
        assert (grad == 0).all()


def test_one_class_with_z_loss(backend):
    logits = np.array([[3.0], [-2.0]])
    loss, grad = loss_and_grad(logits, [0, 0], z_loss=0.5)
    assert loss.tolist() == [4.5, 2.0]
    assert grad.tolist() == [[3.0], [-2.0]]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_class_that_is_not_finite(backend, value):
    loss, grad = loss_and_grad(np.array([[value], [1.0]]), [0, 0])
    assert np.isnan(loss).tolist() == [True, False]
    assert np.isnan(grad).tolist() == [[True], [False]]


# ---------------------------------------------------------------- masked classes


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_masked_classes(backend, rng, dtype, kind, n_classes):
    """As if the masked classes were not there, and their gradient is exactly 0."""
    logits = make_logits(rng, (8, n_classes), dtype)
    keep = rng.random(n_classes) < 0.6
    keep[1] = True
    logits[:, ~keep] = -INF
    targets = np.ones(8, int)
    if kind == "probabilities":
        targets = make_targets(rng, (8,), n_classes, kind)
        targets[:, ~keep] = 0.0
    loss, grad = check_exact(logits, targets)
    assert np.isfinite(loss).all()
    assert (grad[:, ~keep] == 0).all()


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"temperature": 0.5}, {"z_loss": 0.1}])
def test_masked_classes_with_options(backend, rng, options):
    logits = make_logits(rng, (4, 9), np.float32)
    logits[:, [0, 5]] = -INF
    _, grad = check_exact(logits, np.array([1, 2, 3, 4]), **options)
    assert (grad[:, [0, 5]] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("n_classes", [2, *ONE_OF_EACH_KERNEL])
def test_all_but_the_target_masked(backend, dtype, n_classes):
    logits = np.full((2, n_classes), -INF, dtype)
    logits[0, 0] = 5.0
    logits[1, n_classes - 1] = -5.0
    loss, grad = loss_and_grad(logits, [0, n_classes - 1])
    assert (loss == 0).all()
    assert (grad == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, *ONE_OF_EACH_KERNEL])
def test_a_low_target_alone(backend, dtype, n_classes):
    """exp(-z) overflows: the sum over no class must not meet it."""
    logits = np.full((1, n_classes), -INF, dtype)
    logits[0, n_classes // 2] = -1e4
    loss, grad = loss_and_grad(logits, [n_classes // 2])
    assert loss.tolist() == [0.0]
    assert (grad == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("n_classes", [2, *ONE_OF_EACH_KERNEL])
def test_all_but_one_other_class_masked(backend, dtype, n_classes):
    """Target masked: infinite loss, gradient -1 there and 1 at the only class left."""
    logits = np.full((1, n_classes), -INF, dtype)
    logits[0, n_classes // 2] = 2.0
    loss, grad = loss_and_grad(logits, [0])
    assert loss.tolist() == [INF]
    expected = np.zeros(n_classes)
    expected[0], expected[n_classes // 2] = -1.0, 1.0
    assert grad[0].astype(float).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize(
    "masked",
    [
        slice(0, 1024),
        slice(0, 2048),
        slice(0, 4999),
        slice(1024, 2048),
        slice(2048, 5000),
        slice(1, 5000),
        slice(0, 5000, 16),  # one lane
        slice(7, 5000, 32),
    ],
    ids=str,
)
def test_masked_tiles_and_lanes(backend, rng, dtype, axis, masked):
    """An online kernel whose first tile is masked must not produce NaN."""
    n_classes = 5000
    logits = make_logits(rng, (2, n_classes), dtype)
    logits[1, masked] = -INF
    free = np.flatnonzero(logits[1] > -INF)
    target = int(free[len(free) // 2])
    laid_out = logits if axis == -1 else np.ascontiguousarray(logits.T)
    loss, grad = nc.cross_entropy_and_grad(
        laid_out, np.array([0, target]), axis=axis, reduction="none"
    )
    grad = grad if axis == -1 else grad.T
    z = logits[1, free].astype(float)
    lse = z.max() + np.log(np.exp(z - z.max()).sum())
    wide = np.float64 if dtype == np.float64 else np.float32
    eps = np.finfo(wide).eps
    gap = lse - float(logits[1, target])
    assert abs(loss[1] - gap) <= 4 * eps * max(gap, 1e-16) + 20 * np.finfo(float).eps * abs(lse)
    assert (grad[1, logits[1] == -INF] == 0).all()
    p = np.exp(z - lse)
    p[free == target] -= 1.0
    unit = np.finfo(dtype).eps
    np.testing.assert_allclose(
        grad[1, free].astype(float), p, rtol=16 * unit, atol=float(np.finfo(dtype).tiny) * unit
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"temperature": 0.5}], ids=str)
@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_masked_target(backend, rng, dtype, options, n_classes):
    logits = make_logits(rng, (3, n_classes), dtype)
    logits[:, 1] = -INF
    weight = rng.uniform(0.5, 2.0, n_classes).astype(np.float32)
    weight[1] = -1.5
    loss, grad = check_exact(logits, np.array([0, 1, 0]), **options)
    assert loss[1] == INF
    assert np.isfinite(grad.astype(float)).all()
    assert grad[1, 1] == np.float32(-1.0 / options.get("temperature", 1.0))
    loss, grad = check_exact(logits, np.array([1, 0, 1]), class_weight=weight, **options)
    assert loss[0] == loss[2] == -INF
    assert (grad[[0, 2], 1] == np.float32(1.5 / options.get("temperature", 1.0))).all()


def test_masked_target_is_infinite_in_the_mean_too(backend, rng):
    logits = make_logits(rng, (4, 5), np.float32)
    logits[2, 3] = -INF
    loss, grad = nc.cross_entropy_and_grad(logits, [0, 1, 3, 2])
    assert loss == INF
    assert grad[2, 3] == -0.25
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_smoothing_over_masked_classes(backend, rng, dtype, kind):
    """q > 0 at a masked class: infinite loss, gradient -q there; a zero weight takes it back."""
    logits = make_logits(rng, (4, 6), dtype)
    logits[1:3, 2] = -INF
    targets = make_targets(rng, (4,), 2 if kind == "index" else 6, kind)
    loss, grad = check_exact(logits, targets, label_smoothing=0.25)
    assert np.isinf(loss).tolist() == [False, True, True, False]
    assert np.isfinite(grad.astype(float)).all()
    weight = np.ones(6)
    weight[2] = 0.0
    loss, grad = check_exact(logits, targets, label_smoothing=0.25, class_weight=weight)
    assert np.isfinite(loss).all()
    assert (grad[1:3, 2] == 0).all()
    weight[2] = -1.0
    loss, grad = check_exact(logits, targets, label_smoothing=0.25, class_weight=weight)
    assert (loss[1:3] == -INF).all()


@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_infinities_of_both_signs_give_nan(backend, rng, n_classes, kind):
    logits = make_logits(rng, (2, n_classes), np.float32)
    logits[0, [0, 2]] = -INF
    weight = np.ones(n_classes)
    weight[2] = -1.0
    targets = np.zeros(2, int)
    if kind == "probabilities":
        targets = np.full((2, n_classes), 1 / n_classes)
    loss, grad = check_exact(logits, targets, class_weight=weight, label_smoothing=0.5)
    assert np.isnan(loss).tolist() == [True, False]
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=DTYPE_IDS)
def test_probability_zero_at_a_masked_class(backend, rng, dtype, target_dtype):
    logits = make_logits(rng, (3, 6), dtype)
    targets = make_targets(rng, (3,), 6, "probabilities", target_dtype)
    logits[:, 4] = -INF
    logits[1, 0] = -INF
    targets[:, 4] = 0.0
    targets[1, 0] = -0.0
    loss, grad = check_exact(logits, targets)
    assert np.isfinite(loss).all()
    assert (grad[:, 4] == 0).all()
    assert grad[1, 0] == 0
    targets[2, 4] = 0.5
    loss, grad = check_exact(logits, targets)
    assert np.isinf(loss).tolist() == [False, False, True]
    assert grad[2, 4] == -0.5


def test_probabilities_of_both_signs_at_masked_classes(backend):
    logits = np.array([[-INF, -INF, 0.0, 1.0]] * 3)
    targets = np.array([[1.0, -1.0, 0.5, 0.5], [-1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])
    loss, grad = check_exact(logits, targets)
    assert np.isnan(loss[0])
    assert loss[1] == -INF
    assert grad[:, :2].tolist() == [[-1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]


def test_all_probabilities_zero(backend, rng):
    logits = make_logits(rng, (2, 5), np.float32)
    logits[1, 2] = -INF
    loss, grad = loss_and_grad(logits, np.zeros((2, 5)))
    assert (loss == 0).all()
    assert (grad == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_zero_class_weight_of_the_target(backend, rng, dtype, n_classes):
    """A row of weight 0 is not ignored, but has nothing to say, masked or not."""
    logits = make_logits(rng, (3, n_classes), dtype)
    logits[1, 2] = -INF
    weight = np.ones(n_classes)
    weight[2] = 0.0
    loss, grad = loss_and_grad(logits, [2, 2, 1], class_weight=weight)
    assert (loss[:2] == 0).all()
    assert (grad[:2] == 0).all()
    assert loss[2] > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_zero_class_weight_of_a_masked_class(backend, rng, dtype, n_classes):
    """Smoothing gives it no share: 0 times its infinite distance is 0."""
    logits, weight = make_logits(rng, (3, n_classes), dtype), np.ones(n_classes)
    logits[:, 2], weight[2] = -INF, 0.0
    loss, grad = loss_and_grad(logits, [1, 3, 4], class_weight=weight, label_smoothing=0.1)
    assert np.isfinite(loss).all()
    assert (grad[:, 2] == 0).all()
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_probabilities_of_an_ignored_row(backend, rng, n_classes):
    """Whatever they are: neither the row nor the mean has anything of them."""
    logits = make_logits(rng, (5, n_classes), np.float32)
    targets = np.full((5, n_classes), 1 / n_classes, np.float32)
    kept = np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    expected = nc.cross_entropy_and_grad(logits[::2], targets[::2])
    targets[1], targets[3] = NAN, INF
    loss, grad = nc.cross_entropy_and_grad(logits, targets, sample_weight=kept)
    assert loss == expected[0]
    assert (grad[::2] == expected[1]).all()
    assert (grad[1::2] == 0).all()


# ---------------------------------------------------------------- far apart, far out


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_largest_finite_logits(backend, dtype):
    """The difference overflows, the result must not be NaN."""
    big = np.array(3.0e38 if dtype == BFLOAT16 else np.finfo(dtype).max).astype(dtype)
    logits = np.array([[big, -big, 0], [-big, big, big], [big, big, big]], dtype)
    loss, grad = loss_and_grad(logits, [0, 1, 2])
    np.testing.assert_allclose(loss, [0, np.log(2), np.log(3)], rtol=3e-7)
    third = np.array(1 / 3).astype(dtype)
    assert grad[0].tolist() == [0, 0, 0]
    assert grad[1].astype(float).tolist() == [0, -0.5, 0.5]
    np.testing.assert_allclose(
        grad[2].astype(float), [third, third, -2 / 3], rtol=2.0 ** -(7 if dtype == BFLOAT16 else 10)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gap_beyond_the_largest_float(backend, dtype):
    big = np.finfo(dtype).max
    loss, grad = loss_and_grad(np.array([[big, -big, 0], [-big, big, 0]], dtype), [1, 1])
    assert loss.tolist() == [INF, 0]
    assert grad.tolist() == [[1, -1, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_of_a_hopeless_row_is_its_gap(backend, dtype):
    gap = 1e30
    logits = np.array([[0.0, gap], [gap, 0.0]], dtype)
    loss, grad = loss_and_grad(logits, [0, 0])
    assert loss.tolist() == [dtype(gap), 0]
    assert grad.tolist() == [[-1, 1], [0, 0]]


@pytest.mark.parametrize("targets", [3, np.int8(3), np.array(3), np.array(3, ">u2")])
def test_one_row(backend, rng, targets):
    logits = make_logits(rng, 5, np.float32)
    loss, grad = nc.cross_entropy_and_grad(logits, targets)
    rows, grad_rows = nc.cross_entropy_and_grad(logits[None], [3], reduction="none")
    assert loss.shape == ()
    assert loss == rows[0]
    assert_same(grad, grad_rows[0])
    none, _ = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    assert none == loss
    assert np.shape(none) == ()


@pytest.mark.parametrize("logit", [-100.0, -176.0, -331.75, -700.0, -1e4])
@pytest.mark.parametrize("n_classes", [2, *ONE_OF_EACH_KERNEL])
def test_one_class_alive_far_below_zero(backend, logit, n_classes):
    """What leads from masked exponentials to a gradient is beyond float32, times nothing."""
    logits = np.full((3, n_classes), -INF, np.float32)
    logits[:, 1] = logit
    t = np.full((3, n_classes), 1 / n_classes)
    loss, grad = nc.cross_entropy_and_grad(logits, [1, 1, 1], reduction="none")
    assert_same(loss, np.zeros(3, np.float32))
    assert_same(grad, np.zeros_like(logits))
    _, grad = nc.cross_entropy_and_grad(logits, t, reduction="none")
    np.testing.assert_allclose(np.delete(grad, 1, axis=1), -1 / n_classes, rtol=2e-7)
    for result in nc.cross_entropy_grad_and_hess(logits, [1, 1, 1]):
        assert_same(result, np.zeros_like(logits))
    assert_same(nc.softmax(logits), (np.arange(n_classes) == 1) + np.zeros_like(logits))


@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_an_ignored_row_after_one_that_is_nan(cpu, n_classes):
    """Rows are finished some at a time, and what is known of one is kept where the last one was."""
    logits = np.zeros((32, n_classes), np.float32)
    logits[:16, 1] = np.nan
    targets = np.repeat([0, -1], 16)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, ignore_index=-1, reduction="none")
    assert np.isnan(loss[:16]).all() and (loss[16:] == 0.0).all()
    assert (grad[16:] == 0.0).all()
