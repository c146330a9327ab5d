"""Each loss option, and each pair of them: finite differences, mpmath, and the two backends."""

from __future__ import annotations

import numpy as np
import pytest
from cases import (
    DTYPE_IDS,
    DTYPES,
    FEW_OPTION_SETS,
    ONE_OF_EACH_KERNEL,
    OPTION_SETS,
    OPTIONS,
    REDUCTIONS,
    TARGET_KINDS,
    make_logits,
    make_options,
    make_targets,
    option_id,
)
from exact import assert_same, check_grad, check_loss, check_total, exact_rows

import numba_ce as nc

INF, NAN = np.inf, np.nan
SHAPE = (3, 4)
every_pair = pytest.mark.parametrize("names", OPTION_SETS, ids=option_id)
few_sets = pytest.mark.parametrize("names", FEW_OPTION_SETS, ids=option_id)
both_kinds = pytest.mark.parametrize("kind", TARGET_KINDS)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def make_problem(names, kind, rng, shape=SHAPE, dtype=np.float64):
    logits = make_logits(rng, shape, dtype)
    targets = make_targets(rng, shape[:-1], shape[-1], kind)
    if kind == "index":
        targets[targets == 1] = 0
        targets[0] = 1  # what OPTIONS says is ignored, in one row
    return logits, targets, make_options(names, rng, shape[:-1], shape[-1], kind)


def finite_differences(function, z, step=2.0**-9):
    """Gradient of `function` by central differences of the fourth order."""
    grad = np.empty_like(z)
    for index in np.ndindex(z.shape):
        values = []
        for k in (-2, -1, 1, 2):
            moved = z.copy()
            moved[index] += k * step
            values.append(float(function(moved)))
        a, b, c, d = values
        grad[index] = ((a - d) / 12 + (c - b) * 2 / 3) / step
    return grad


@every_pair
@both_kinds
@every_reduction
@pytest.mark.parametrize("axis", [-1, 0])
def test_gradient_is_the_derivative_of_the_loss(backend, rng, names, kind, reduction, axis):
    logits, targets, options = make_problem(names, kind, rng)
    options["reduction"] = reduction
    if axis == 0:
        logits = np.ascontiguousarray(logits.T)
        targets = targets if kind == "index" else np.ascontiguousarray(targets.T)
        options["axis"] = 0
    loss, grad = nc.cross_entropy_and_grad(logits, targets, **options)
    assert_same(nc.cross_entropy(logits, targets, **options), loss)
    expected = finite_differences(lambda z: np.sum(nc.cross_entropy(z, targets, **options)), logits)
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@every_pair
@both_kinds
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_pair_against_mpmath(backend, rng, names, kind, dtype):
    logits, targets, options = make_problem(names, kind, rng, (4, 21), dtype)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
    options.pop("check_targets", None)
    rows = exact_rows(logits, targets, **options)
    check_loss(loss, rows, dtype)
    check_grad(grad, rows, dtype)


@few_sets
@both_kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_against_mpmath(backend, rng, names, kind, dtype, reduction):
    logits, targets, options = make_problem(names, kind, rng, (5, 6), dtype)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction=reduction, **options)
    assert nc.cross_entropy(logits, targets, reduction=reduction, **options) == loss
    in_place = logits.copy()
    loss2, grad2 = nc.cross_entropy_and_grad(
        in_place, targets, reduction=reduction, out=in_place, **options
    )
    assert grad2 is in_place
    assert loss2 == loss
    assert_same(grad2, grad)
    options.pop("check_targets", None)
    rows = exact_rows(logits, targets, **options)
    check_total(loss, rows, dtype, reduction)
    check_grad(grad, rows, dtype, reduction)


@every_pair
@both_kinds
@every_reduction
def test_backends_agree(rng, names, kind, reduction):
    """The fused kernels against the readable reference, float64: a few ulps of the largest."""
    logits, targets, options = make_problem(names, kind, rng, (11, 70))
    results = {}
    for backend in ("numpy", "cpu"):
        with nc.use_backend(backend):
            results[backend] = nc.cross_entropy_and_grad(
                logits, targets, reduction=reduction, **options
            )
    (loss, grad), (loss2, grad2) = results["numpy"], results["cpu"]
    np.testing.assert_allclose(loss2, loss, rtol=2e-15)
    size = np.abs(grad).max(axis=1, keepdims=True)
    assert (np.abs(grad2 - grad) <= 1e-15 * size + 8e-15 * np.abs(grad)).all()


# ---------------------------------------------------------------- what each option means


def log_p(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_the_mean_divides_by_the_weights_of_the_rows_kept(backend, rng):
    logits = make_logits(rng, (6, 5))
    targets = np.array([0, 4, -100, 2, 2, 1])
    w, s = rng.uniform(-0.5, 2, 5), np.array([1.0, 0.5, 3.0, 0.0, 2.0, -0.25])
    kept = [0, 1, 4, 5]
    weights = s[kept] * w[targets[kept]]
    each = -log_p(logits)[kept, targets[kept]]
    expected = (weights * each).sum() / weights.sum()
    loss = nc.cross_entropy(logits, targets, class_weight=w, sample_weight=s)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    # Smoothed or not, the denominator is the same, as in torch.
    total = nc.cross_entropy(
        logits, targets, class_weight=w, sample_weight=s, label_smoothing=0.3, reduction="sum"
    )
    loss = nc.cross_entropy(logits, targets, class_weight=w, sample_weight=s, label_smoothing=0.3)
    np.testing.assert_allclose(loss, total / weights.sum(), rtol=1e-14)


def test_the_mean_of_probabilities_divides_by_the_sample_weights(backend, rng):
    logits, targets = make_logits(rng, (4, 5)), rng.uniform(0, 2, (4, 5))
    w, s = rng.uniform(-0.5, 2, 5), np.array([1.0, 0.5, 0.0, 2.0])
    each = -(targets * w * log_p(logits)).sum(axis=1)
    loss = nc.cross_entropy(logits, targets, class_weight=w, sample_weight=s)
    np.testing.assert_allclose(loss, (s * each).sum() / s.sum(), rtol=1e-14)


@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reductions_of_the_same_rows(backend, rng, dtype, n_classes):
    logits, targets = make_logits(rng, (50, n_classes), dtype), rng.integers(0, n_classes, 50)
    rows, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    total, grad_sum = nc.cross_entropy_and_grad(logits, targets, reduction="sum")
    mean, grad_mean = nc.cross_entropy_and_grad(logits, targets, reduction="mean")
    assert_same(grad, grad_sum)
    half_ulps = np.finfo(dtype).eps / 2  # the losses of the rows are rounded before they are added
    exact = rows.sum(dtype=np.float64)
    np.testing.assert_allclose(total, exact, rtol=4 * half_ulps)
    np.testing.assert_allclose(mean, exact / 50, rtol=6 * half_ulps)
    np.testing.assert_allclose(grad_mean, grad / 50, rtol=8 * half_ulps)


def test_one_hot_probabilities_are_indices(backend, rng):
    logits, targets = make_logits(rng, (6, 9)), rng.integers(0, 9, 6)
    w = rng.uniform(-1, 2, 9)
    for options in ({}, {"label_smoothing": 0.2}, {"class_weight": w}, {"temperature": 2.0}):
        loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
        loss2, grad2 = nc.cross_entropy_and_grad(
            logits, np.eye(9)[targets], reduction="none", **options
        )
        np.testing.assert_allclose(loss2, loss, rtol=1e-14)
        np.testing.assert_allclose(grad2, grad, rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_probabilities_of_any_float_dtype(backend, rng, dtype):
    logits = make_logits(rng, (4, 12), np.float32)
    targets = make_targets(rng, (4,), 12, "probabilities", dtype)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    rows = exact_rows(logits, targets)
    check_loss(loss, rows, np.float32)
    check_grad(grad, rows, np.float32)
    expected, expected_grad = nc.cross_entropy_and_grad(
        logits, targets.astype(np.float64), reduction="none"
    )
    assert_same(loss, expected)
    assert_same(grad, expected_grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_weights_of_any_float_dtype(backend, rng, dtype):
    logits, targets = make_logits(rng, (4, 12), np.float32), rng.integers(0, 12, 4)
    w, s = rng.uniform(0.5, 2, 12).astype(dtype), rng.uniform(0.5, 2, 4).astype(dtype)
    loss, grad = nc.cross_entropy_and_grad(
        logits, targets, class_weight=w, sample_weight=s, reduction="none"
    )
    rows = exact_rows(logits, targets, class_weight=w, sample_weight=s)
    check_loss(loss, rows, np.float32)
    check_grad(grad, rows, np.float32)


def test_probabilities_need_not_sum_to_one(backend, rng):
    logits = make_logits(rng, (4, 12))
    targets = rng.uniform(-1, 3, (4, 12))
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    rows = exact_rows(logits, targets)
    check_loss(loss, rows, np.float64)
    check_grad(grad, rows, np.float64)
    np.testing.assert_allclose(grad.sum(axis=1), 0, atol=1e-14)


def test_signed_and_zero_class_weights(backend, rng):
    logits, targets = make_logits(rng, (40, 12)), rng.integers(0, 12, 40)
    w = rng.uniform(-1, 1, 12)
    w[[0, 5]] = 0.0
    for smoothing in (0.0, 0.3, 1.0):
        options = {"class_weight": w, "label_smoothing": smoothing}
        loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
        rows = exact_rows(logits, targets, **options)
        check_loss(loss, rows, np.float64)
        check_grad(grad, rows, np.float64)


@both_kinds
def test_label_smoothing_of_one_forgets_the_target(backend, rng, kind):
    logits = make_logits(rng, (5, 8))
    targets = make_targets(rng, (5,), 8, kind)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, label_smoothing=1.0, reduction="none")
    np.testing.assert_allclose(loss, -log_p(logits).mean(axis=1), rtol=1e-14)
    np.testing.assert_allclose(grad, np.exp(log_p(logits)) - 1 / 8, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_label_smoothing_of_one_looks_at_no_probability(backend, rng, dtype, n_classes):
    """0 * inf is not formed, be it the probability that is infinite or the logit."""
    logits = make_logits(rng, (4, n_classes), dtype)
    logits[3, 4] = -INF
    targets = make_targets(rng, (4,), n_classes, "probabilities")
    options = {"label_smoothing": 1.0, "temperature": 2.0}
    plain = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
    record = nc.row_record(logits, targets, class_offset=0, n_classes=n_classes, **options)
    assert np.isinf(plain[0]).tolist() == [False, False, False, True]
    assert np.isfinite(plain[1]).all()
    assert plain[1][3, 4] == dtype(-0.5 / n_classes)
    targets[0], targets[1, 3], targets[2, :3] = 1e300, INF, NAN
    odd = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
    assert_same(odd, plain)
    assert_same(nc.cross_entropy(logits, targets, reduction="none", **options), plain[0])
    odd = nc.row_record(logits, targets, class_offset=0, n_classes=n_classes, **options)
    assert_same(odd, record)
    for rows in (record, odd):
        grad = nc.grad_from_record(logits, targets, rows, class_offset=0, **options)
        np.testing.assert_allclose(grad, plain[1], rtol=1e-5, atol=1e-7)


def test_z_loss_follows_the_class_weight_for_indices_only(backend, rng):
    logits, targets = make_logits(rng, (3, 4)), np.array([0, 3, 2])
    w = np.array([0.5, 1.0, 0.0, -2.0])
    square = np.log(np.exp(logits).sum(axis=1)) ** 2
    with_z, without = (
        nc.cross_entropy(logits, targets, class_weight=w, z_loss=z, reduction="none")
        for z in (0.25, 0.0)
    )
    np.testing.assert_allclose(with_z - without, w[targets] * 0.25 * square, rtol=1e-13)
    t = np.eye(4)[targets]
    with_z, without = (
        nc.cross_entropy(logits, t, class_weight=w, z_loss=z, reduction="none") for z in (0.25, 0.0)
    )
    np.testing.assert_allclose(with_z - without, 0.25 * square, rtol=1e-13)


@both_kinds
def test_temperature_and_softcap_are_applied_in_that_order(backend, rng, kind):
    logits = make_logits(rng, (5, 8), scale=6.0)
    targets = make_targets(rng, (5,), 8, kind)
    z = 4.0 * np.tanh(logits / 4.0) / 0.3
    expected, inner = nc.cross_entropy_and_grad(z, targets, reduction="none")
    loss, grad = nc.cross_entropy_and_grad(
        logits, targets, softcap=4.0, temperature=0.3, reduction="none"
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    slope = (1 - np.tanh(logits / 4.0) ** 2) / 0.3
    np.testing.assert_allclose(grad, inner * slope, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("softcap", [1e-3, 5.0, 50.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softcap_derivative_far_out(backend, rng, softcap, dtype):
    """4 a / (1 + a)^2 keeps its relative accuracy where 1 - tanh^2 would be 0."""
    logits = make_logits(rng, (3, 10), dtype, scale=8 * softcap)
    targets = np.array([0, 4, 9])
    _, grad = nc.cross_entropy_and_grad(logits, targets, softcap=softcap, reduction="none")
    rows = exact_rows(logits, targets, softcap=softcap)
    check_grad(grad, rows, dtype)
    tiny = np.finfo(dtype).smallest_normal
    for actual, row in zip(grad, rows, strict=True):
        assert all(a != 0 or abs(g) < tiny for a, g in zip(actual, row.grad, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softcap_derivative_near_zero(backend, rng, dtype):
    """Here the rounding of the derivative is all that a soft cap adds."""
    logits = make_logits(rng, (8, 300), dtype, scale=0.1)
    targets = rng.integers(0, 300, 8)
    options = {"softcap": 3.0, "temperature": 30.0}
    _, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
    check_grad(grad, exact_rows(logits, targets, **options), dtype)


@few_sets
@both_kinds
def test_out_and_in_place(backend, rng, names, kind):
    logits, targets, options = make_problem(names, kind, rng, (9, 40), np.float32)
    before = logits.copy()
    loss, grad = nc.cross_entropy_and_grad(logits, targets, **options)
    assert not np.shares_memory(grad, logits)
    assert_same(logits, before)
    out = np.full_like(logits, np.nan)
    loss2, grad2 = nc.cross_entropy_and_grad(logits, targets, out=out, **options)
    assert grad2 is out
    assert loss2 == loss
    assert_same(out, grad)
    assert_same(logits, before)
    loss3, grad3 = nc.cross_entropy_and_grad(logits, targets, out=logits, **options)
    assert grad3 is logits
    assert loss3 == loss
    assert_same(logits, grad)


def test_inputs_are_left_alone(backend, rng):
    """Nothing but `out` is written, for every option at once."""
    logits, targets, options = make_problem(tuple(OPTIONS), "index", rng, (9, 40))
    arrays = [logits, targets, options["class_weight"], options["sample_weight"]]
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    nc.cross_entropy_and_grad(logits, targets, **options)
    nc.cross_entropy(logits, targets, **options)
    for a, b in zip(arrays, copies, strict=True):
        assert a.tobytes() == b.tobytes()


@both_kinds
def test_sample_weight_scales_a_row(backend, rng, kind):
    logits = make_logits(rng, (5, 8))
    targets = make_targets(rng, (5,), 8, kind)
    s = np.array([1.0, 2.0, 0.5, -4.0, 0.25])
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    loss2, grad2 = nc.cross_entropy_and_grad(logits, targets, sample_weight=s, reduction="none")
    assert_same(loss2, s * loss)  # powers of two: exact
    assert_same(grad2, s[:, None] * grad)
