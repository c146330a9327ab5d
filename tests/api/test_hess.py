"""cross_entropy_grad_and_hess: the gradient with the diagonal of the Hessian, for boosting."""

from __future__ import annotations

import numpy as np
import pytest
from bits import assert_same_bits
from cases import (
    BFLOAT16,
    DTYPE_IDS,
    DTYPES,
    LAYOUTS,
    ONE_OF_EACH_KERNEL,
    TARGET_KINDS,
    make_logits,
    make_targets,
)
from exact import ONE, assert_same, check_grad, check_values, exact_rows, mp, mpf, softmax_row

import numba_ce as nc

KINDS = ("diagonal", "xgboost", "lightgbm")
INF, NAN = np.inf, np.nan
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
every_kind = pytest.mark.parametrize("hess", KINDS)
both_targets = pytest.mark.parametrize("kind", TARGET_KINDS)


def exact_hess(z, hess, total=ONE, s=1.0):
    soft = softmax_row(z)
    n, s = len(z), mpf(float(s))
    both = [p * r for p, r in zip(soft.p, soft.one_minus_p, strict=True)]
    if hess == "diagonal":
        return [s * total * b for b in both], soft
    if hess == "xgboost":
        return [s * max(2 * total * b, mpf(1e-16)) for b in both], soft
    return [s * total * b * n / (n - 1) if n > 1 else mpf(0) for b in both], soft


@every_dtype
@every_kind
@pytest.mark.parametrize("n_classes", [1, 2, *ONE_OF_EACH_KERNEL])
@pytest.mark.parametrize("scale", [1.0, 15.0])
def test_against_mpmath(backend, rng, dtype, hess, n_classes, scale):
    logits = make_logits(rng, (2, n_classes), dtype, scale)
    targets = rng.integers(0, n_classes, 2)
    grad, h = nc.cross_entropy_grad_and_hess(logits, targets, hess=hess)
    assert grad.dtype == h.dtype == dtype
    assert grad.shape == h.shape == logits.shape
    rows = exact_rows(logits, targets)
    for i, z in enumerate(logits):
        expected, soft = exact_hess(z, hess)
        # Here the first maximum is left out of the sum, whatever the target.
        rows[i].depth = soft.depth()
        ulps = np.maximum(5, np.array(soft.depth()) + 2)
        check_values(h[i], expected, expected, ulps, dtype, "hess")
    check_grad(grad, rows, dtype)


@every_kind
@both_targets
@pytest.mark.parametrize("axis", [-1, 0])
def test_weights_and_axis(backend, rng, hess, kind, axis):
    logits = make_logits(rng, (5, 8))
    s = np.array([1.0, 0.5, 0.0, 3.0, -2.0])
    targets = make_targets(rng, (5,), 8, kind)
    if kind == "probabilities":
        targets *= rng.uniform(0.5, 2, (5, 1))  # they need not sum to one
    rows = exact_rows(logits, targets, sample_weight=s)
    if axis == 0:
        turned = targets.T if kind == "probabilities" else targets
        grad, h = nc.cross_entropy_grad_and_hess(
            np.ascontiguousarray(logits.T), turned, axis=0, sample_weight=s, hess=hess
        )
        grad, h = grad.T, h.T
    else:
        grad, h = nc.cross_entropy_grad_and_hess(logits, targets, sample_weight=s, hess=hess)
    for i, z in enumerate(logits):
        total = mp.fsum(map(mpf, targets[i].tolist())) if kind == "probabilities" else ONE
        expected, soft = exact_hess(z, hess, total, s[i])
        ulps = np.maximum(4, np.array(soft.depth()) + 3)
        check_values(h[i], expected, [abs(v) for v in expected], ulps, np.float64, "hess")
        rows[i].depth = soft.depth()
    check_grad(grad, rows, np.float64)
    assert (h[2] == 0).all()
    assert (grad[2] == 0).all()


@both_targets
def test_hess_is_the_derivative_of_the_gradient(backend, rng, kind):
    logits = make_logits(rng, (4, 6))
    targets = make_targets(rng, (4,), 6, kind)
    _, h = nc.cross_entropy_grad_and_hess(logits, targets)
    step = 2.0**-9
    for j in range(6):
        shift = np.zeros(6)
        shift[j] = step
        grads = [
            nc.cross_entropy_grad_and_hess(logits + k * shift, targets)[0][:, j]
            for k in (-2, -1, 1, 2)
        ]
        a, b, c, d = grads
        expected = ((a - d) / 12 + (c - b) * 2 / 3) / step
        np.testing.assert_allclose(h[:, j], expected, rtol=1e-8, atol=1e-12)


def test_factors(backend, rng):
    logits = make_logits(rng, (5, 4))
    _, diagonal = nc.cross_entropy_grad_and_hess(logits, np.zeros(5, int))
    _, xgboost = nc.cross_entropy_grad_and_hess(logits, np.zeros(5, int), hess="xgboost")
    _, lightgbm = nc.cross_entropy_grad_and_hess(logits, np.zeros(5, int), hess="lightgbm")
    assert_same(xgboost, 2 * diagonal)
    np.testing.assert_allclose(lightgbm, diagonal * 4 / 3, rtol=4e-16)


def test_xgboost_floor_is_weighted(backend):
    logits = np.array([[100.0, 0.0, -INF], [100.0, 0.0, -INF]])
    _, h = nc.cross_entropy_grad_and_hess(
        logits, [0, 0], hess="xgboost", sample_weight=np.array([1.0, 8.0])
    )
    assert_same(h, [[1e-16] * 3, [8e-16] * 3])


def test_gradient_is_that_of_the_loss(backend, rng):
    logits, targets = make_logits(rng, (9, 30)), rng.integers(0, 30, 9)
    s = rng.uniform(0.5, 2, 9)
    grad, _ = nc.cross_entropy_grad_and_hess(logits, targets, sample_weight=s)
    _, expected = nc.cross_entropy_and_grad(logits, targets, sample_weight=s, reduction="sum")
    np.testing.assert_allclose(grad, expected, rtol=4e-15)


@every_kind
@every_dtype
@pytest.mark.parametrize("axis", [-1, 0])
def test_out_is_a_pair(backend, rng, hess, dtype, axis):
    logits = make_logits(rng, (12, 12), dtype)
    targets = rng.integers(0, 12, 12)
    grad, h = nc.cross_entropy_grad_and_hess(logits, targets, hess=hess, axis=axis)
    # LightGBM wants Fortran order.
    out = (np.full((12, 12), 7, dtype, order="F"), np.full((12, 25), 7, dtype)[:, ::2][:, :12])
    grad2, h2 = nc.cross_entropy_grad_and_hess(logits, targets, hess=hess, axis=axis, out=out)
    assert grad2 is out[0]
    assert h2 is out[1]
    assert_same(grad2, grad)
    assert_same(h2, h)
    grad3, _ = nc.cross_entropy_grad_and_hess(
        logits, targets, hess=hess, axis=axis, out=(logits, out[1])
    )
    assert grad3 is logits
    assert_same(logits, grad)
    assert_same(out[1], h)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_16_bit_results_are_rounded_once(backend, rng, dtype):
    logits, targets = make_logits(rng, (20, 50), dtype), rng.integers(0, 50, 20)
    both = nc.cross_entropy_grad_and_hess(logits, targets)
    wide = nc.cross_entropy_grad_and_hess(logits.astype(np.float32), targets)
    for a, b in zip(both, wide, strict=True):
        assert_same_bits(a, b.astype(dtype))


@every_kind
@every_dtype
@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_special_rows(backend, rng, hess, dtype, n_classes):
    logits = make_logits(rng, (5, n_classes), dtype)
    clean = nc.cross_entropy_grad_and_hess(logits, [0, 1, 2, 3, 4], hess=hess)
    logits[0, 3] = NAN
    logits[1, 2] = INF
    logits[2] = -INF
    logits[3, 1] = -INF
    grad, h = nc.cross_entropy_grad_and_hess(logits, [0, 1, 2, 3, 4], hess=hess)
    for a in (grad.astype(float), h.astype(float)):
        assert np.isnan(a[:3]).all()
        assert np.isfinite(a[3:]).all()
    assert grad[3, 1] == 0
    assert h[3, 1] == (np.array(1e-16).astype(dtype) if hess == "xgboost" else 0)
    assert_same(grad[4], clean[0][4])
    assert_same(h[4], clean[1][4])
    logits[4] = NAN
    grad, h = nc.cross_entropy_grad_and_hess(
        logits, [0, 1, 2, 3, 4], hess=hess, sample_weight=np.array([0.0, 0, 0, 0, 0])
    )
    assert (grad == 0).all()
    assert (h == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@both_targets
def test_layouts(backend, rng, layout, kind):
    plain = make_logits(rng, (9, 14), np.float32)
    targets = make_targets(rng, (9,), 14, kind)
    expected = nc.cross_entropy_grad_and_hess(plain, targets)
    actual = nc.cross_entropy_grad_and_hess(LAYOUTS[layout](plain), LAYOUTS[layout](targets))
    for a, b in zip(actual, expected, strict=True):
        assert_same(a, b)
