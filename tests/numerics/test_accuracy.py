"""Per element, relative, against mpmath: no absolute tolerance that would hide a zero."""

from __future__ import annotations

import numpy as np
import pytest
from bits import assert_same_bits
from cases import (
    BFLOAT16,
    CLASS_COUNTS,
    DTYPE_IDS,
    DTYPES,
    REDUCTIONS,
    TARGET_KINDS,
    TILE,
    make_logits,
    make_targets,
)
from exact import (
    ULPS,
    check_grad,
    check_loss,
    check_values,
    exact_rows,
    mp,
    mpf,
    promised,
    promised_entries,
    softmax_row,
    ulp,
)
from wide import SHIFT, Wide, wide_exp, wide_rows, wide_ulps

import numba_ce as nc
from benchmarks.families import FAMILIES

FLOATS = (np.float32, np.float64)
both_floats = pytest.mark.parametrize("dtype", FLOATS)
every_family = pytest.mark.parametrize("family", FAMILIES)


# ---------------------------------------------------------------- the oracle itself


def test_wide_exp_against_mpmath(rng):
    x = np.concatenate([rng.uniform(-745, 0, 300), rng.uniform(-1, 1, 100), [0.0, -1e-300]])
    low = x * 2.0**-54 * rng.uniform(-1, 1, x.size)
    result = wide_exp(Wide(x, low), shift=400).to_mp()
    for value, high, rest in zip(result, x, low, strict=True):
        expected = mp.exp(mpf(high) + mpf(rest)) * mpf(2) ** 400
        assert abs(value / expected - 1) < 1e-28


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("scale", [1.0, 30.0, 200.0])
def test_wide_rows_against_mpmath(rng, scale, temperature):
    logits, targets = make_logits(rng, (4, 30), scale=scale), np.array([0, 7, 29, 3])
    logits[1, 7] = logits[1].max() + scale
    wide = wide_rows(logits, targets, temperature)
    for i, row in enumerate(exact_rows(logits, targets, temperature=temperature)):
        assert abs(wide.loss[i] / row.loss - 1) < 1e-25
        assert abs(wide.lse[i] - row.soft.lse) < 1e-25 * max(1, abs(row.soft.lse))
        assert abs(wide.grad_target[i] / row.grad[targets[i]] - 1) < 1e-25
        grad = [v * mpf(2) ** -SHIFT for v in wide.grad[i].to_mp()]
        for value, expected in zip(grad, row.grad, strict=True):
            assert abs(value - expected) <= 1e-25 * abs(expected) + mpf(2) ** -1150
    zero_error = wide_ulps(wide.grad.scaled(-SHIFT).high, wide.grad, np.float64, SHIFT)
    assert zero_error.max() <= 0.5
    off_by_one = np.nextafter(wide.grad.scaled(-SHIFT).high, 1)
    normal = np.abs(wide.grad.scaled(-SHIFT).high) > 1e-300
    error = wide_ulps(off_by_one, wide.grad, np.float64, SHIFT)[normal]
    assert (error >= 0.25).mean() > 0.9  # across a power of two the next float is half as far
    assert error.max() <= 1.5


# ---------------------------------------------------------------- index targets


def worst(actual, exact, dtype):
    """Largest error in ulps of each exact mpf value."""
    errors = [
        float(abs(mpf(float(a)) - e)) / float(ulp(e, dtype))
        for a, e in zip(actual, exact, strict=True)
    ]
    return max(errors)


def check_index_rows(logits, targets, temperature=1.0, axis=-1):
    """What section "accuracy" of the documentation promises for plain index targets."""
    dtype = logits.dtype
    laid_out = logits if axis == -1 else np.ascontiguousarray(logits.T)
    loss, grad = nc.cross_entropy_and_grad(
        laid_out, targets, axis=axis, temperature=temperature, reduction="none"
    )
    grad = grad if axis == -1 else grad.T
    exact = wide_rows(logits, targets, temperature)
    rows = np.arange(len(logits))
    assert worst(loss, exact.loss, dtype) <= promised(dtype)
    assert worst(grad[rows, targets], exact.grad_target, dtype) <= promised(dtype)
    errors = wide_ulps(grad, exact.grad, dtype, SHIFT)
    excess = errors - np.maximum(promised_entries(dtype), exact.depth)
    excess[rows, targets] = -1.0
    where = np.unravel_index(excess.argmax(), excess.shape)
    assert excess.max() <= 0, f"{errors[where]:.1f} ulps at depth {exact.depth[where]:.1f}"
    return exact


def check_lse(logits, exact):
    for lse in (nc.logsumexp(logits), nc.row_stats(logits).lse):
        for value, wanted, top in zip(lse, exact.lse, exact.row_max, strict=True):
            unit = float(ulp(max(abs(wanted), abs(mpf(float(top)))), lse.dtype))
            assert abs(mpf(float(value)) - wanted) <= 2 * unit


@every_family
@both_floats
def test_families(backend, rng, family, dtype):
    logits, targets = FAMILIES[family](rng, dtype)
    exact = check_index_rows(logits, targets)
    check_lse(logits, exact)


@every_family
@both_floats
@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_families_with_a_temperature(backend, rng, family, dtype, temperature):
    logits, targets = FAMILIES[family](rng, dtype)
    n_rows = max(1, min(len(logits), 20000 // logits.shape[1]))
    check_index_rows(logits[:n_rows], targets[:n_rows], temperature)


@pytest.mark.parametrize("seed", range(12))
def test_roundings_of_float64_at_a_temperature(cpu, seed):
    """Where the roundings of the factor would make 4.4 ulps of 3.6, were they not kept."""
    logits, targets = FAMILIES["N(0, 1), C = 1000"](np.random.default_rng(seed), np.float64)
    check_index_rows(logits[:30], targets[:30], 3.0)


@every_family
@both_floats
def test_families_with_the_class_axis_first(backend, rng, family, dtype):
    logits, targets = FAMILIES[family](rng, dtype)
    n_rows = max(1, min(len(logits), 20000 // logits.shape[1]))
    check_index_rows(logits[:n_rows], targets[:n_rows], axis=0)


def interesting_targets(n_classes):
    """First, last, and both sides of every border of vectors and tiles."""
    borders = [16, 32, 64, TILE, 2 * TILE, 3 * TILE]
    places = {0, 1, n_classes // 2, n_classes - 2, n_classes - 1}
    places |= {b + d for b in borders for d in (-1, 0)}
    return np.array(sorted(p for p in places if 0 <= p < n_classes))


@both_floats
@pytest.mark.parametrize("n_classes", [n for n in CLASS_COUNTS if n > 1])
def test_every_number_of_classes(backend, rng, dtype, n_classes):
    """All remainders of the vector width and the tile, with the target in each odd place."""
    targets = interesting_targets(n_classes)
    logits = make_logits(rng, (len(targets), n_classes), dtype)
    check_index_rows(logits, targets)
    if n_classes <= 40 or n_classes in (TILE, TILE + 1):
        check_index_rows(logits, targets, axis=0)


@both_floats
@pytest.mark.parametrize("offset", [-1e3, -1e6, 1e6])
@pytest.mark.parametrize("masked", ["first tile", "last tile"])
def test_a_masked_tile_of_a_row_far_from_zero(backend, rng, dtype, offset, masked):
    """A tile without a class has a scale of its own; its entries must stay zero."""
    logits = make_logits(rng, (2, 3 * TILE), dtype) + dtype(offset)
    dead = slice(0, TILE) if masked == "first tile" else slice(2 * TILE, None)
    logits[:, dead] = -np.inf
    alive = np.setdiff1d(np.arange(3 * TILE), np.arange(3 * TILE)[dead])
    targets = np.array([alive[5], alive[-1]])
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    assert (grad[:, dead] == 0).all()
    assert (nc.softmax(logits)[:, dead] == 0).all()
    short, short_grad = nc.cross_entropy_and_grad(
        logits[:, alive], np.searchsorted(alive, targets), reduction="none"
    )
    apart = 4 if backend != "cuda" else 2 * promised_entries(dtype)
    np.testing.assert_array_max_ulp(loss, short, apart)
    np.testing.assert_array_max_ulp(grad[:, alive], short_grad, apart)


@both_floats
def test_exp_over_its_whole_range(backend, rng, dtype):
    """Two classes: the gradient is exp(-x) / (1 + exp(-x)), down to the subnormal numbers."""
    limit = 103.5 if dtype == np.float32 else 744.0
    logits = np.zeros((1500, 2), dtype)
    logits[:, 1] = -np.concatenate([rng.uniform(0, limit, 1000), rng.uniform(0, 2, 500)])
    for target in (0, 1):
        exact = check_index_rows(logits, np.full(1500, target))
        if target == 0:
            loss = nc.cross_entropy(logits, np.zeros(1500, int), reduction="none")
            assert (loss > 0).all()
            assert min(exact.loss) < np.finfo(dtype).tiny
    # Three classes: exp relative to the maximum of the others, then scaled.
    logits = np.zeros((1500, 3), dtype)
    logits[:, 1:] = -rng.uniform(0, limit / 2, (1500, 2))
    check_index_rows(logits, np.full(1500, 0))
    check_index_rows(logits, np.full(1500, 2))


@both_floats
@pytest.mark.parametrize("n_classes", [2, 3, 40, 1000, 50257, 262144])
def test_equal_logits(backend, dtype, n_classes):
    """log(C) and 1/C: a serial float32 sum of 262144 terms is off by 1e-3."""
    logits = np.full((1, n_classes), 0.7, dtype)
    loss, grad = nc.cross_entropy_and_grad(logits, [n_classes // 3], reduction="none")
    assert worst(loss, [mp.log(n_classes)], dtype) <= 2
    others = np.delete(grad[0], n_classes // 3)
    assert (others == others[0]).all()
    assert worst(others[:1], [mpf(1) / n_classes], dtype) <= 1
    target = grad[0, n_classes // 3 :][:1]
    assert worst(target, [mpf(1) / n_classes - 1], dtype) <= 1


def test_a_gap_of_20_in_float32(backend):
    """The example of the documentation: 2.0612e-9, where others return 0."""
    logits = np.array([[20.0, 0.0]], np.float32)
    loss, grad = nc.cross_entropy_and_grad(logits, [0])
    expected = np.float32(np.log1p(np.exp(-20.0)))
    assert f"{loss:.4e}" == "2.0612e-09"
    np.testing.assert_array_max_ulp(loss, expected, 1)
    np.testing.assert_array_max_ulp(grad, np.array([[-expected, expected]]), 1)


@pytest.mark.parametrize("n_classes", [9, 300])
def test_classes_too_far_from_zero_and_from_the_target(backend, rng, n_classes):
    """The exponentials are relative to -650, and what the difference to t loses counts."""
    logits = rng.uniform(-655, -645, (40, n_classes))
    logits[:, 3] = rng.uniform(0, 40, 40)
    loss, grad = nc.cross_entropy_and_grad(logits, np.full(40, 3), reduction="none")
    rows = exact_rows(logits, np.full(40, 3))
    check_loss(loss, rows, np.float64)
    check_grad(grad, rows, np.float64)


@pytest.mark.parametrize("n_classes", [2, 10, 300])
@pytest.mark.parametrize("gap", [20.0, 40.0, 80.0])
def test_a_confident_row_of_any_length(backend, n_classes, gap):
    """1 - p, and p of all others, of 1e-33 with all digits: narrow kernels and wide ones."""
    logits = np.zeros((17, n_classes), np.float32)
    logits[:, 1] = gap
    loss, grad = nc.cross_entropy_and_grad(logits, np.ones(17, int), reduction="none")
    u = (n_classes - 1) * np.exp(-gap)
    others = np.full((17, n_classes - 1), np.exp(-gap) / (1 + u))
    np.testing.assert_allclose(loss, np.log1p(u), rtol=4e-7, atol=0)
    np.testing.assert_allclose(-grad[:, 1], u / (1 + u), rtol=4e-7, atol=0)
    np.testing.assert_allclose(np.delete(grad, 1, axis=1), others, rtol=4e-7, atol=0)


# ---------------------------------------------------------------- weights


@every_family
@both_floats
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights(backend, rng, family, dtype, reduction):
    """Class and sample weights cost no accuracy: loss and gradient at the target in 4 ulps."""
    logits, targets = FAMILIES[family](rng, dtype)
    n_rows = max(1, min(len(logits), 20000 // logits.shape[1]))
    logits, targets = logits[:n_rows], targets[:n_rows]
    w, s = rng.uniform(0.1, 2, logits.shape[1]), rng.uniform(0.1, 2, n_rows)
    loss, grad = nc.cross_entropy_and_grad(
        logits, targets, class_weight=w, sample_weight=s, reduction=reduction
    )
    exact = wide_rows(logits, targets)
    factors = [mpf(float(a)) * mpf(float(b)) for a, b in zip(s, w[targets], strict=True)]
    rows = np.arange(n_rows)
    total = mp.fsum(factors) if reduction == "mean" else mpf(1)
    losses = [f * v for f, v in zip(factors, exact.loss, strict=True)]
    if reduction == "none":
        assert worst(loss, losses, dtype) <= promised(dtype)
    else:
        size = mp.fsum(abs(v) for v in losses) / abs(total)
        slack = mp.fsum(abs(f) for f in factors) / abs(total)  # only in float64, if they cancel
        wanted = mp.fsum(losses) / total
        assert abs(mpf(float(loss)) - wanted) <= promised(dtype) * max(1, slack) * float(
            ulp(size, dtype)
        )
    at_target = [f / total * g for f, g in zip(factors, exact.grad_target, strict=True)]
    slack = 1 if reduction == "mean" else 0
    assert worst(grad[rows, targets], at_target, dtype) <= promised(dtype) + slack
    scale = Wide.of([f / total for f in factors])
    scaled = exact.grad * Wide(scale.high[:, None], scale.low[:, None])
    errors = wide_ulps(grad, scaled, dtype, SHIFT)
    errors[rows, targets] = 0.0
    assert (errors <= np.maximum(promised_entries(dtype), exact.depth) + slack).all()


# ---------------------------------------------------------------- 16 bits


@every_family
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_16_bit_gradients_are_rounded_once(backend, rng, family, dtype, reduction):
    if backend == "cuda":
        pytest.skip("16-bit rows in registers have a coarser exponential: docs/cuda.md")
    logits, targets = FAMILIES[family](rng, np.float32)
    with np.errstate(over="ignore"):
        logits = np.clip(logits, -6e4, 6e4).astype(dtype)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction=reduction)
    loss32, grad32 = nc.cross_entropy_and_grad(
        logits.astype(np.float32), targets, reduction=reduction
    )
    assert loss.dtype == np.float32
    assert_same_bits(loss, loss32)
    assert grad.dtype == dtype
    assert_same_bits(grad, grad32.astype(dtype))


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("axis", [-1, 0])
def test_16_bit_subnormal_and_tied_results(backend, rng, dtype, kind, axis):
    """Ties to even, and gradients below the smallest normal number of the format."""
    if backend == "cuda" and kind == "index":
        pytest.skip("16-bit rows in registers have a coarser exponential: docs/cuda.md")
    n_classes = 130
    logits = np.clip(make_logits(rng, (300, n_classes), np.float64, 6.0), -16, 16).astype(dtype)
    logits[:20] = 0.0
    targets = make_targets(rng, (300,), n_classes, kind)
    s = 2.0 ** rng.integers(-12, 4, 300)
    options = {"axis": axis, "reduction": "none", "sample_weight": s}
    if axis == 0:
        logits = np.ascontiguousarray(logits.T)
        targets = targets if kind == "index" else np.ascontiguousarray(targets.T)
    _, grad = nc.cross_entropy_and_grad(logits, targets, **options)
    _, grad32 = nc.cross_entropy_and_grad(logits.astype(np.float32), targets, **options)
    assert_same_bits(grad, grad32.astype(dtype))
    if dtype == np.float16:
        small = np.abs(grad32)
        assert ((small > 6e-8) & (small < 6e-5)).any()


# ---------------------------------------------------------------- terms of opposite sign


#: (name, logits): rows of 60 classes that the options are measured on.
def rows_for_options(rng, dtype):
    n_classes = 60
    normal = make_logits(rng, (2, n_classes), scale=1.0)
    offset = normal + 1e4
    trained, saturated = normal.copy(), normal.copy()
    trained[:, 7] = trained.max(axis=1) + 12.0
    saturated[:, 7] = saturated.max(axis=1) + (50.0 if dtype == np.float32 else 300.0)
    uniform = rng.uniform(-80, 80, (2, n_classes))
    plateau = np.zeros((2, n_classes))
    plateau[:, 3] = 15.0
    plateau[:, 4] = 14.5
    return np.concatenate([normal, offset, trained, saturated, uniform, plateau]).astype(dtype)


def targets_for_options(rng, kind, n_rows, n_classes):
    if kind == "index":
        targets = rng.integers(0, n_classes, n_rows)
        targets[::2] = 7  # the confident class
        return targets
    if kind == "dense":
        return make_targets(rng, (n_rows,), n_classes, "probabilities")
    if kind == "signed":
        return rng.uniform(-1, 1, (n_rows, n_classes))
    t = np.zeros((n_rows, n_classes))  # one-hot and two-hot
    t[:, 7] = 1.0
    t[::2, 11] = 0.5
    return t


OPTION_VALUES = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "all_smoothing": {"label_smoothing": 1.0},
    "z_loss": {"z_loss": 1e-3},
    "weights": {"class_weight": True, "sample_weight": True},
    "weights+smoothing+z_loss": {
        "class_weight": True,
        "sample_weight": True,
        "label_smoothing": 0.2,
        "z_loss": 1e-2,
    },
    "temperature+smoothing": {"temperature": 0.7, "label_smoothing": 0.1},
    "softcap": {"softcap": 15.0},
    "softcap+smoothing+z_loss": {"softcap": 30.0, "label_smoothing": 0.1, "z_loss": 1e-3},
    "softcap+temperature": {"softcap": 30.0, "temperature": 2.0},
}


@pytest.mark.parametrize("options", OPTION_VALUES)
@pytest.mark.parametrize("kind", ["index", "dense", "sparse", "signed"])
@both_floats
@pytest.mark.parametrize("axis", [-1, 0])
def test_options(backend, rng, options, kind, dtype, axis):
    """4 ulps of the sum of the magnitudes of the terms."""
    options = dict(OPTION_VALUES[options])
    logits = rows_for_options(rng, dtype)
    n_rows, n_classes = logits.shape
    targets = targets_for_options(rng, kind, n_rows, n_classes)
    if "class_weight" in options:
        options["class_weight"] = rng.uniform(-1, 2, n_classes)
        options["sample_weight"] = rng.uniform(0.1, 2, n_rows)
    rows = exact_rows(logits, targets, **options)
    if axis == 0:
        logits = np.ascontiguousarray(logits.T)
        targets = targets if kind == "index" else np.ascontiguousarray(targets.T)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, axis=axis, reduction="none", **options)
    check_loss(loss, rows, dtype)
    check_grad(grad, rows, dtype, axis=axis)


@both_floats
@pytest.mark.parametrize("n_classes", [2, 15, 16, 17, 40, 1023, 1025, 2100])
@pytest.mark.parametrize("kind", ["index", "dense"])
def test_options_over_many_classes(backend, rng, dtype, n_classes, kind):
    logits = make_logits(rng, (2, n_classes), dtype)
    targets = (
        targets_for_options(rng, kind, 2, n_classes)
        if n_classes > 20
        else make_targets(rng, (2,), n_classes, "index" if kind == "index" else "probabilities")
    )
    options = {"label_smoothing": 0.1, "class_weight": rng.uniform(0.5, 2, n_classes)}
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
    rows = exact_rows(logits, targets, **options)
    check_loss(loss, rows, dtype)
    check_grad(grad, rows, dtype)


# ---------------------------------------------------------------- the other functions, families


@every_family
@both_floats
def test_other_functions_on_families(backend, rng, family, dtype):
    """softmax, log_softmax, entropy and the Hessian, first rows and classes of each family."""
    logits, targets = FAMILIES[family](rng, dtype)
    logits = np.ascontiguousarray(logits[:3, :300])
    targets = np.minimum(targets[:3], logits.shape[1] - 1)
    stats = nc.row_stats(logits, targets)
    p, log_p = nc.softmax(logits), nc.log_softmax(logits)
    grad, hess = nc.cross_entropy_grad_and_hess(logits, targets)
    rows = exact_rows(logits, targets)
    check_loss(stats.loss, rows, dtype)
    for i, z in enumerate(logits):
        soft = softmax_row(z)
        depth = np.array(soft.depth())
        check_values(p[i], soft.p, soft.p, np.maximum(ULPS, depth), dtype, "softmax")
        exact = [-h for h in soft.surprise]
        check_values(log_p[i], exact, [abs(v) for v in exact], ULPS, dtype, "log_softmax")
        check_values([stats.entropy[i]], [soft.entropy], [soft.entropy], ULPS, dtype, "entropy")
        exact = [a * b for a, b in zip(soft.p, soft.one_minus_p, strict=True)]
        check_values(hess[i], exact, exact, np.maximum(ULPS, depth + 3), dtype, "hess")
        rows[i].depth = soft.depth()
    check_grad(grad, rows, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_random_16_bit_problems_against_mpmath(backend, rng, dtype):
    logits, targets = make_logits(rng, (6, 25), dtype, 5.0), rng.integers(0, 25, 6)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    rows = exact_rows(logits, targets)
    check_loss(loss, rows, dtype)
    check_grad(grad, rows, dtype)
