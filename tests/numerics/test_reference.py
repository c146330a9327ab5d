"""What only the reference promises: float64 throughout, one rounding at the end, no surprises."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from bits import assert_same_bits
from cases import (
    BFLOAT16,
    DTYPE_IDS,
    DTYPES,
    LAYOUTS,
    OPTIONS,
    TARGET_KINDS,
    make_logits,
    make_options,
    make_targets,
)
from exact import working
from formulas import FORMULAS

import numba_ce as nc
from numba_ce import reference, row

INF, NAN = np.inf, np.nan
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
both_kinds = pytest.mark.parametrize("kind", TARGET_KINDS)


@pytest.fixture(autouse=True)
def numpy_backend():
    with nc.use_backend("numpy"):
        yield


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32], ids=str)
@both_kinds
def test_narrow_logits_are_computed_in_float64_and_rounded_once(rng, dtype, kind):
    logits = make_logits(rng, (5, 33), dtype)
    targets = make_targets(rng, (5,), 33, kind)
    options = make_options(tuple(OPTIONS), rng, (5,), 33, kind)
    options["reduction"] = "none"
    loss, grad = nc.cross_entropy_and_grad(logits, targets, **options)
    wide_loss, wide_grad = nc.cross_entropy_and_grad(logits.astype(float), targets, **options)
    assert_same_bits(loss, wide_loss.astype(working(dtype)))
    assert_same_bits(grad, wide_grad.astype(np.float32).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32], ids=str)
def test_the_other_functions_too(rng, dtype):
    logits, targets = make_logits(rng, (5, 33), dtype), rng.integers(0, 33, 5)
    wide = logits.astype(float)
    narrow = (nc.softmax(logits), nc.log_softmax(logits))
    narrow += nc.cross_entropy_grad_and_hess(logits, targets)
    expected = (nc.softmax(wide), nc.log_softmax(wide))
    expected += nc.cross_entropy_grad_and_hess(wide, targets)
    for a, b in zip(narrow, expected, strict=True):
        assert_same_bits(a, b.astype(np.float32).astype(dtype))
    for a, b in zip(nc.row_stats(logits, targets), nc.row_stats(wide, targets), strict=True):
        assert_same_bits(a, b.astype(a.dtype))


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
@both_kinds
def test_a_gradient_in_float32_of_16_bit_logits(rng, dtype, kind):
    logits = make_logits(rng, (5, 33), dtype)
    targets = make_targets(rng, (5,), 33, kind)
    out = np.empty((5, 33), np.float32)
    nc.cross_entropy_and_grad(logits, targets, out=out)
    _, narrow = nc.cross_entropy_and_grad(logits, targets)
    assert_same_bits(out.astype(dtype), narrow)


SPECIAL = np.array(
    [
        [NAN, 1.0, 2.0, 3.0],
        [INF, -INF, NAN, 0.0],
        [INF, INF, 1.0, 1.0],
        [-INF, -INF, -INF, -INF],
        [-INF, -INF, -INF, 1.0],
        [1.0, -INF, -INF, -INF],
        [1.7e308, -1.7e308, 0.0, 1.7e308],
        [5e-324, -5e-324, 0.0, -0.0],
        [800.0, 0.0, -800.0, 1.0],
    ]
)


@every_dtype
@both_kinds
def test_no_warning_whatever_comes(rng, dtype, kind):
    with np.errstate(all="ignore"):
        logits = SPECIAL.astype(dtype)
    n_rows = len(logits)
    targets = make_targets(rng, (n_rows,), 4, kind)
    extreme = ({}, {"softcap": 1e-300}, {"temperature": 1e-300}, {"temperature": 1e300})
    extreme += ({"z_loss": 1e300}, {"label_smoothing": 1.0}, {"softcap": 1e300})
    extreme += ({"class_weight": np.array([0.0, -1e300, 1e300, 1.0])},)
    extreme += ({"sample_weight": np.linspace(-1, 1, n_rows) * 1e300},)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for options in extreme:
            for reduction in ("mean", "none"):
                nc.cross_entropy_and_grad(logits, targets, reduction=reduction, **options)
            a = nc.row_record(logits, targets, class_offset=0, n_classes=4, **options)
            nc.loss_from_record(a)
            nc.grad_from_record(logits, targets, a, class_offset=0, **options)
        for hess in ("diagonal", "xgboost", "lightgbm"):
            nc.cross_entropy_grad_and_hess(logits, targets, hess=hess)
        if kind == "index":
            nc.row_stats(logits, targets)
        nc.softmax(logits)
        nc.log_softmax(logits)
        nc.logsumexp(logits)


@pytest.mark.parametrize("layout", LAYOUTS)
@both_kinds
def test_bits_do_not_depend_on_memory(rng, layout, kind):
    plain, targets = make_logits(rng, (7, 40)), make_targets(rng, (7,), 40, kind)
    options = make_options(("label_smoothing", "z_loss"), rng, (7,), 40, kind)
    expected = nc.cross_entropy_and_grad(plain, targets, reduction="none", **options)
    move = LAYOUTS[layout]
    actual = nc.cross_entropy_and_grad(move(plain), move(targets), reduction="none", **options)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@both_kinds
def test_bits_do_not_depend_on_the_batch(rng, kind):
    logits, targets = make_logits(rng, (9, 300)), make_targets(rng, (9,), 300, kind)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    for i in range(9):
        one, g = nc.cross_entropy_and_grad(logits[i], targets[i], reduction="none")
        assert_same_bits(one, loss[i])
        assert_same_bits(g, grad[i])


@pytest.mark.parametrize("temperature", [1.0, 0.3, 40.0])
def test_finish_is_that_of_the_compiled_backends(rng, temperature):
    """Two codes of one set of formulas: arrays here, scalars of `row`."""
    m = rng.uniform(-50, 50, 300)
    t = m + rng.uniform(-90, 90, 300)
    s = rng.uniform(1, 1000, 300)
    t[:40], m[:20], s[:20] = m[:40], -INF, 0.0
    t[:10], s[40], t[41], t[42], s[43] = -INF, 0.0, -INF, INF, NAN
    with np.errstate(all="ignore"):
        ends = reference.finish(m, s, t, temperature)
    for i in range(300):
        d, lost = row.difference(float(t[i]), float(m[i]), temperature)
        sum_exp = float(s[i]) if t[i] < INF else math.nan
        if math.isnan(d) or math.isnan(sum_exp):
            assert np.isnan(ends.surprise[i])
            continue
        if sum_exp == 0.0 and d < 0.0:
            continue  # nothing but a target under a maximum: no row gives it
        sum_exp, small, _, others = row.at_origin(sum_exp, d, lost)
        expected = FORMULAS.finish(sum_exp, small, d, lost, others)[:4]
        actual = (ends.surprise[i], ends.above[i], ends.rest[i], ends.p_k[i])
        np.testing.assert_allclose(actual, expected, rtol=2e-15)


def test_difference_is_that_of_the_compiled_backends(rng):
    a, b = rng.uniform(-1e4, 1e4, (2, 500))
    b[:100] = a[:100] * (1 + 1e-12)
    for temperature in (1.0, 0.3, 7.0):
        quotient, lost = reference.difference(a, b, temperature)
        expected = [row.difference(x, y, temperature) for x, y in zip(a, b, strict=True)]
        assert_same_bits(quotient, np.array([q for q, _ in expected]))
        assert_same_bits(lost + 0.0, np.array([r for _, r in expected]) + 0.0)


@both_kinds
def test_a_bad_row_leaves_the_others_alone(rng, kind):
    logits, targets = make_logits(rng, (4, 12)), make_targets(rng, (4,), 12, kind)
    expected = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    for value in (NAN, INF, -INF):
        spoiled = logits.copy()
        spoiled[2] = value
        loss, grad = nc.cross_entropy_and_grad(spoiled, targets, reduction="none")
        assert np.isnan(loss[2])
        assert np.isnan(grad[2]).all()
        good = [0, 1, 3]
        assert_same_bits(loss[good], expected[0][good])
        assert_same_bits(grad[good], expected[1][good])
