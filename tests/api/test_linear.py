"""The linear layer in chunks against the whole logits, and logistic regression."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from cases import FEW_OPTION_SETS, TARGET_KINDS, make_options, make_targets, option_id
from exact import assert_same
from scipy.optimize import check_grad, minimize

import numba_ce as nc
from numba_ce.data import load_digits

N, D, C = 11, 5, 7


def make(rng, dtype=np.float64, kind="index"):
    hidden = rng.standard_normal((N, D)).astype(dtype)
    weight = rng.standard_normal((C, D)).astype(dtype)
    bias = rng.standard_normal(C).astype(dtype)
    return hidden, weight, bias, make_targets(rng, (N,), C, kind)


def whole(hidden, weight, bias, targets, **options):
    """By way of all logits, in float64."""
    hidden, weight = np.float64(hidden), np.float64(weight)
    logits = hidden @ weight.T + (0 if bias is None else np.float64(bias))
    loss, grad = nc.cross_entropy_and_grad(logits, targets, **options)
    return loss, grad @ weight, grad.T @ hidden, grad.sum(axis=0)


def check(got, expected, rtol):
    for name, a, b in zip(got._fields, got, expected, strict=True):
        if a is not None:  # of sums of either sign: relative to the largest
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("names", FEW_OPTION_SETS, ids=option_id)
@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_chunks_give_what_the_whole_logits_give(backend, rng, names, kind, reduction):
    hidden, weight, bias, targets = make(rng, kind=kind)
    if kind == "index":
        targets[3] = 1  # the ignore_index of the table
    options = make_options(names, rng, (N,), C, kind) | {"reduction": reduction}
    expected = whole(hidden, weight, bias, targets, **options)
    for chunk_rows in (1, 4, N, None):
        call = options | {"bias": bias, "chunk_rows": chunk_rows}
        check(nc.linear_cross_entropy_and_grad(hidden, weight, targets, **call), expected, 1e-13)
        loss = nc.linear_cross_entropy(hidden, weight, targets, **call)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-13)


def test_losses_beyond_the_float32_range(backend):
    """Of both signs their sum may be a number, as for the logits at once."""
    hidden, weight = np.float32([[1e19], [2e19], [2e19]]), np.float32([[1], [0]])
    options = {"z_loss": 1.0, "reduction": "sum", "sample_weight": [4.0, -1.0, 1e-3]}
    expected = nc.cross_entropy(hidden @ weight.T, [0, 0, 0], **options)
    assert 0 < expected < 1e38
    for chunk_rows in (1, 2, None):
        call = {"chunk_rows": chunk_rows, **options}
        loss = nc.linear_cross_entropy(hidden, weight, [0, 0, 0], **call)
        assert abs(loss / expected - 1) < 1e-6
        grads = nc.linear_cross_entropy_and_grad(hidden, weight, [0, 0, 0], **call)
        assert abs(grads.loss / expected - 1) < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_layout_and_no_bias(cpu, rng, dtype):
    hidden, weight, _, targets = make(rng, dtype)
    expected = whole(hidden, weight, None, targets)
    eps = 20 * np.finfo(dtype).eps
    for h in (
        hidden,
        np.asfortranarray(hidden),
        hidden[::-1][::-1],
        hidden.astype(hidden.dtype.newbyteorder()),
    ):
        for w in (weight, np.ascontiguousarray(weight.T).T):
            got = nc.linear_cross_entropy_and_grad(h, w, targets, chunk_rows=3)
            check(got, expected, eps)
            assert got.grad_bias is None
            assert got.loss.dtype == got.grad_hidden.dtype == got.grad_weight.dtype == dtype
            assert got.grad_weight.strides == w.strides


def test_ignored_rows_may_hold_anything(backend, rng):
    hidden, weight, bias, targets = make(rng)
    targets[[2, 5]] = -100
    expected = whole(hidden, weight, bias, targets)
    hidden[2], hidden[5] = np.nan, np.inf
    got = nc.linear_cross_entropy_and_grad(hidden, weight, targets, bias=bias, chunk_rows=4)
    check(got, expected, 1e-13)


def test_nothing_to_average(backend, rng):
    hidden, weight, bias, targets = make(rng)
    targets[:] = -100
    got = nc.linear_cross_entropy_and_grad(hidden, weight, targets, bias=bias)
    assert np.isnan(got.loss)
    assert not any(g.any() for g in got[1:])
    got = nc.linear_cross_entropy_and_grad(
        hidden, weight, targets - 1, bias=bias, check_targets=False
    )
    assert np.isnan(got.loss)
    assert not any(g.any() for g in got[1:])
    empty = nc.linear_cross_entropy_and_grad(hidden[:0], weight, targets[:0])
    assert np.isnan(empty.loss) and empty.grad_hidden.shape == (0, D)
    assert not empty.grad_weight.any()
    assert nc.linear_cross_entropy(hidden[:0], weight, targets[:0], reduction="sum") == 0


def test_bad_target_is_named_by_its_row(backend, rng):
    hidden, weight, _, targets = make(rng)
    targets[9] = C
    with pytest.raises(ValueError, match=r"targets\[9\] = 7 is not a class index"):
        nc.linear_cross_entropy(hidden, weight, targets, chunk_rows=2)
    loss = nc.linear_cross_entropy(
        hidden, weight, targets, chunk_rows=2, check_targets=False, reduction="none"
    )
    assert np.flatnonzero(np.isnan(loss)).tolist() == [9]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": np.zeros((D, C))}, ValueError, r"pass weight\.T"),
        ({"weight": np.zeros((C, D + 1))}, ValueError, r"expected \(C, 5\)"),
        ({"weight": np.zeros((C, D), np.float32)}, TypeError, "weight has dtype float32"),
        ({"hidden": np.zeros((N, D), np.float16)}, TypeError, "expected float32 or float64"),
        ({"hidden": np.zeros(D)}, ValueError, "hidden has 1 axes"),
        ({"weight": np.zeros((0, D)), "bias": None}, ValueError, r"weight .* no classes"),
        ({"bias": np.zeros(C - 1)}, ValueError, "bias has shape"),
        ({"bias": np.zeros(C, np.float32)}, TypeError, "bias has dtype"),
        ({"targets": np.zeros(N - 1, int)}, ValueError, "targets have shape"),
        ({"sample_weight": np.ones(N - 1)}, ValueError, "sample_weight has shape"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows = 0"),
        ({"chunk_rows": 1.5}, TypeError, "chunk_rows = 1.5"),
        ({"reduction": "avg"}, ValueError, "reduction"),
    ],
)  # fmt: skip
def test_errors(cpu, rng, change, error, message):
    hidden, weight, bias, targets = make(rng)
    arguments = {"hidden": hidden, "weight": weight, "targets": targets, "bias": bias} | change
    with pytest.raises(error, match=message):
        nc.linear_cross_entropy_and_grad(**arguments)


@pytest.mark.parametrize("name", ["hidden", "weight", "bias", "targets"])
def test_device_arrays_of_other_libraries_are_refused(cpu, rng, name):
    """At once and by name, with a GPU or without: the products are CuPy's."""

    class DeviceArray:
        __cuda_array_interface__ = {"shape": (2,), "typestr": "<f8", "data": (0, False)}

    arguments = dict(zip(("hidden", "weight", "bias", "targets"), make(rng), strict=True))
    message = rf"{name} \(DeviceArray\) is on a CUDA device: expected an array of CuPy"
    with pytest.raises(TypeError, match=message):
        nc.linear_cross_entropy(**arguments | {name: DeviceArray()})
    with pytest.raises(TypeError, match=r"X \(DeviceArray\) is on a CUDA device"):
        nc.multinomial_objective(DeviceArray(), arguments["targets"], C)


def test_memory(cpu, rng):
    """The logits of a chunk and one buffer, beyond the results."""
    n, d, c, chunk = 600, 32, 20000, 50
    hidden, weight = np.zeros((n, d), np.float32), np.zeros((c, d), np.float32)
    targets = np.zeros(n, np.int64)
    nc.linear_cross_entropy_and_grad(hidden[:chunk], weight, targets[:chunk])
    tracemalloc.start()
    got = nc.linear_cross_entropy_and_grad(hidden, weight, targets, chunk_rows=chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    results = got.grad_hidden.nbytes + got.grad_weight.nbytes
    assert peak - results < chunk * c * 4 + weight.nbytes + 500_000


# ---------------------------------------------------------------- logistic regression


def test_objective_has_the_gradient_it_returns(backend, rng):
    X, y = rng.standard_normal((9, 3)), rng.integers(0, 4, 9)
    f = nc.multinomial_objective(X, y, 4, l2=0.3, sample_weight=rng.uniform(0.5, 2, 9))
    x = rng.standard_normal(f.x0.size)
    assert check_grad(lambda v: f(v)[0], lambda v: f(v)[1], x) < 1e-6
    coef, intercept = f.unpack(x)
    assert coef.shape == (4, 3) and intercept.shape == (4,)
    assert (np.column_stack([coef, intercept]).ravel() == x).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_objective_gives_the_coefficients_of_scikit_learn(cpu, rng, weighted):
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y = (array[:600] for array in load_digits())
    X = X.astype(np.float64)
    s = rng.uniform(0.5, 2, len(y)) if weighted else None
    total = len(y) if s is None else s.sum()
    f = nc.multinomial_objective(X, y, 10, l2=1 / (0.1 * total), sample_weight=s)
    options = {"maxiter": 5000, "gtol": 1e-10, "ftol": 0.0, "maxls": 50}
    solution = minimize(f, f.x0, jac=True, method="L-BFGS-B", options=options)
    coef, intercept = f.unpack(solution.x)
    model = linear_model.LogisticRegression(
        C=0.1, tol=1e-10, max_iter=5000, solver="newton-cholesky"
    ).fit(X, y, sample_weight=s)
    assert np.abs(coef - model.coef_).max() < 1e-6
    assert np.abs(intercept - model.intercept_).max() < 1e-6


def test_objective_errors(cpu):
    X, y = np.zeros((3, 2)), np.array([0, 1, 2])
    with pytest.raises(ValueError, match=r"^y\[2\] = 2 is not a class index"):
        nc.multinomial_objective(X, y, 2)
    with pytest.raises(TypeError, match=r"^y has dtype float64"):
        nc.multinomial_objective(X, y * 1.0, 3)
    with pytest.raises(ValueError, match=r"^y has shape \(2,\): expected \(3,\)"):
        nc.multinomial_objective(X, y[:2], 3)
    with pytest.raises(ValueError, match="l2 = -1"):
        nc.multinomial_objective(X, y, 3, l2=-1)
    with pytest.raises(ValueError, match="n_classes = 0"):
        nc.multinomial_objective(X, y, 0)


# ---------------------------------------------------------------- statistics of the rows


def whole_numbers(rng, dtype):
    """Products of these are exact, so the logits have the same bits however they are made."""
    hidden, weight, bias = (
        rng.integers(-3, 4, shape).astype(dtype) for shape in ((N, D), (C, D), C)
    )
    targets = rng.integers(0, C, N)
    targets[2] = -100
    return hidden, weight, bias, targets


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunk_rows", [1, 4, N, N + 1, None])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_row_stats_of_a_layer(backend, rng, dtype, chunk_rows, temperature):
    hidden, weight, bias, targets = whole_numbers(rng, dtype)
    for given, b in ((targets, bias), (None, bias), (targets, None)):
        logits = hidden @ weight.T + (0 if b is None else b)
        expected = nc.row_stats(logits / dtype(temperature), given)
        options = {"bias": b, "temperature": temperature, "chunk_rows": chunk_rows}
        stats = nc.linear_row_stats(hidden, weight, given, **options)
        assert (stats.loss is None) == (given is None)
        for got, value in zip(stats, expected, strict=True):
            assert_same(got, value)


def test_row_stats_of_no_rows(backend):
    stats = nc.linear_row_stats(np.zeros((0, D)), np.zeros((C, D)), np.zeros(0, int))
    assert [(a.shape, a.dtype.kind) for a in stats] == [((0,), kind) for kind in "ffifffi"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"targets": [0] * 10 + [C]}, ValueError, r"targets\[10\] = 7 is not a class index"),
        ({"targets": np.zeros((N, C))}, TypeError, "targets are probabilities: linear_row_stats"),
        ({"targets": None, "hidden": [[1.0], [1.0, 2.0]]}, ValueError, "hidden cannot be made"),
        ({"targets": None, "hidden": None}, TypeError, "hidden has dtype object"),
        ({"temperature": 0.0}, ValueError, "temperature = 0.0: expected"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index = 1.5: expected"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows = 0: expected"),
    ],
)
def test_row_stats_refuse(rng, arguments, error, message):
    hidden, weight, bias, targets = whole_numbers(rng, np.float64)
    given = {"hidden": hidden, "weight": weight, "targets": targets, "bias": bias} | arguments
    with pytest.raises(error, match=message):
        nc.linear_row_stats(**given, chunk_rows=3) if "chunk_rows" not in arguments else (
            nc.linear_row_stats(**given)
        )


def test_row_stats_hold_no_logits(cpu):
    hidden, weight = np.ones((4096, 8), np.float32), np.ones((3000, 8), np.float32)
    nc.linear_row_stats(hidden[:600], weight, np.zeros(600, int))  # compiles
    tracemalloc.start()
    nc.linear_row_stats(hidden, weight, np.zeros(4096, int))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * 512 * 3000 * 4 < 4096 * 3000 * 4 / 6
