"""softmax, log_softmax and logsumexp."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.special
from bits import assert_same_bits
from cases import BFLOAT16, DTYPE_IDS, DTYPES, LAYOUTS, ONE_OF_EACH_KERNEL, make_logits
from exact import assert_same, check_values, softmax_row, working

import numba_ce as nc

NAN, INF = np.nan, np.inf
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
FUNCTIONS = {"softmax": nc.softmax, "log_softmax": nc.log_softmax}
both_functions = pytest.mark.parametrize("name", FUNCTIONS)


@every_dtype
@pytest.mark.parametrize("n_classes", [1, 2, *ONE_OF_EACH_KERNEL])
@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_accuracy(backend, rng, dtype, n_classes, scale, offset):
    logits = (make_logits(rng, (2, n_classes), np.float64, scale) + offset).astype(dtype)
    p, log_p, lse = nc.softmax(logits), nc.log_softmax(logits), nc.logsumexp(logits)
    assert p.dtype == log_p.dtype == dtype
    assert lse.dtype == working(dtype)
    for i, z in enumerate(logits):
        soft = softmax_row(z)
        check_values(p[i], soft.p, soft.p, np.maximum(4, soft.depth()), dtype, "softmax")
        expected = [-h for h in soft.surprise]
        check_values(log_p[i], expected, [abs(v) for v in expected], 4, dtype, "log_softmax")
        check_values(lse[i], [soft.lse], [soft.lse_size], 2, dtype, "logsumexp")


def test_confident_rows_keep_their_digits(backend):
    """log p of a class far ahead is -exp(-gap), where the usual formula gives 0."""
    logits = np.array([[20.0, 0.0], [0.0, 50.0]], np.float32)
    expected = [-np.exp(-20.0), -np.exp(-50.0)]
    np.testing.assert_allclose(nc.log_softmax(logits)[[0, 1], [0, 1]], expected, rtol=4e-7, atol=0)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
@both_functions
def test_16_bit_results_are_rounded_once(backend, rng, dtype, name):
    logits = make_logits(rng, (20, 50), dtype, 4.0)
    expected = FUNCTIONS[name](logits.astype(np.float32)).astype(dtype)
    assert_same_bits(FUNCTIONS[name](logits), expected)


SPECIAL_ROWS = [
    [NAN, 1.0, 2.0],
    [1.0, 2.0, NAN],
    [NAN, INF, -INF],
    [INF, 1.0, 2.0],
    [1.0, INF, INF],
    [INF, -INF, 0.0],
    [-INF, -INF, -INF],
    [-INF, 1.0, -INF],
    [1.0, -INF, 2.0],
    [0.0, -0.0, 0.0],
    [1e30, 1.0, -1e30],
]


@pytest.mark.parametrize("padding", [0, 30, 2000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [-1, 0])
def test_special_values_as_in_scipy(backend, dtype, padding, axis):
    rows = np.array(SPECIAL_ROWS, dtype)
    rows = np.hstack([np.full((len(rows), padding), -INF, dtype), rows])
    z = rows if axis == -1 else np.ascontiguousarray(rows.T)
    with np.errstate(all="ignore"):
        lse = scipy.special.logsumexp(rows, axis=-1)
        p = scipy.special.softmax(rows, axis=-1)
        log_p = scipy.special.log_softmax(rows, axis=-1)
    odd = ~np.isfinite(lse) | np.isnan(p).any(axis=-1)
    assert odd.sum() == 7
    log_p[odd] = NAN  # scipy: -inf beside a +inf; here the row is NaN as in softmax
    rtol = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(nc.logsumexp(z, axis=axis), lse, rtol=rtol)
    turn = (lambda a: a.T) if axis == 0 else np.asarray
    np.testing.assert_allclose(turn(nc.softmax(z, axis=axis)), p, rtol=rtol)
    np.testing.assert_allclose(turn(nc.log_softmax(z, axis=axis)), log_p, rtol=rtol)


def test_masked_classes_are_exact(backend):
    z = np.array([[0.0, -INF, 0.0]])
    assert nc.softmax(z).tolist() == [[0.5, 0.0, 0.5]]
    assert nc.log_softmax(z)[0, 1] == -INF


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@every_dtype
def test_axis_and_keepdims(backend, rng, axis, dtype):
    logits = make_logits(rng, (3, 4, 5), dtype)
    plain = logits.astype(np.float64)
    rtol = {2: 4e-3, 4: 1e-6, 8: 1e-12}[dtype.itemsize] * (8 if dtype == BFLOAT16 else 1)
    lse = nc.logsumexp(logits, axis=axis)
    expected = scipy.special.logsumexp(plain, axis=axis)
    assert lse.shape == expected.shape
    # lse may be near 0: relative to the maximum then
    np.testing.assert_allclose(lse, expected, rtol=min(rtol, 2e-6), atol=min(rtol, 2e-6))
    kept = nc.logsumexp(logits, axis=axis, keepdims=True)
    assert kept.shape == np.expand_dims(expected, axis).shape
    assert_same(np.squeeze(kept, axis), lse)
    assert_same(nc.logsumexp(logits, axis), lse)  # positional, as in scipy
    for name, function in FUNCTIONS.items():
        expected = getattr(scipy.special, name)(plain, axis=axis)
        actual = function(logits, axis)
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual.astype(float), expected, rtol=rtol)


@both_functions
@every_dtype
@pytest.mark.parametrize("axis", [-1, 0])
def test_out_and_in_place(backend, rng, name, dtype, axis):
    function = FUNCTIONS[name]
    logits = make_logits(rng, (20, 33), dtype)
    before = logits.copy()
    expected = function(logits, axis=axis)
    assert not np.shares_memory(expected, logits)
    assert_same(logits, before)
    big = np.full((41, 70), 7, dtype)
    out = big[1::2, 3:69:2]
    assert function(logits, axis=axis, out=out) is out
    assert_same(out, expected)
    out[...] = 7
    assert (big == 7).all()
    assert function(logits, axis=axis, out=logits) is logits
    assert_same(logits, expected)


@both_functions
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1])
def test_layouts(backend, rng, name, layout, axis):
    function = FUNCTIONS[name]
    plain = make_logits(rng, (9, 40), np.float32)
    logits = LAYOUTS[layout](plain)
    assert_same(function(logits, axis=axis), function(plain, axis=axis))
    assert_same(nc.logsumexp(logits, axis=axis), nc.logsumexp(plain, axis=axis))


def test_one_row(backend, rng):
    z = make_logits(rng, 7)
    lse = nc.logsumexp(z)
    assert np.shape(lse) == ()
    assert lse.dtype == np.float64
    assert nc.logsumexp(z, keepdims=True).shape == (1,)
    np.testing.assert_allclose(lse, scipy.special.logsumexp(z), rtol=1e-15)
    np.testing.assert_allclose(nc.softmax(z).sum(), 1, rtol=1e-15)
    assert nc.softmax(z).shape == nc.log_softmax(z).shape == (7,)
    assert nc.logsumexp([0.0, 0.0]) == np.log(2)


@pytest.mark.parametrize("n_classes", [1, 15, 16, 17, 1023, 1024, 1025, 3000, 262144])
def test_many_equal_terms(backend, n_classes):
    """A serial float32 sum of 262144 terms would be off by 1e-3."""
    z = np.full((1, n_classes), 0.3, np.float32)
    lse = nc.logsumexp(z)
    assert abs(lse[0] - np.float32(np.float64(z[0, 0]) + np.log(n_classes))) <= np.spacing(lse[0])
    p = nc.softmax(z)
    assert abs(p[0, 0] - np.float32(1 / n_classes)) <= np.spacing(p[0, 0])
    assert (p == p[0, 0]).all()


def test_softmax_agrees_with_the_gradient(backend, rng):
    """The gradient of the loss is softmax - onehot."""
    z, y = make_logits(rng, (6, 11)), rng.integers(0, 11, 6)
    _, grad = nc.cross_entropy_and_grad(z, y, reduction="none")
    softmax, at_target = nc.softmax(z), np.eye(11)[y] == 1
    np.testing.assert_allclose(grad[~at_target], softmax[~at_target], rtol=1e-13)
    np.testing.assert_allclose(-grad[at_target], 1 - softmax[at_target], rtol=1e-13)


# ---------------------------------------------------------------- as SciPy takes its arguments

SHAPES = ((7,), (2, 3), (3, 4, 5), (2, 1, 3), (1, 1), (0, 3), (3, 0, 2))
KINDS = {
    "float64": lambda rng, shape: rng.standard_normal(shape),
    "float32": lambda rng, shape: rng.standard_normal(shape).astype(np.float32),
    "int": lambda rng, shape: rng.integers(-5, 5, shape),
    "uint8": lambda rng, shape: rng.integers(0, 5, shape).astype(np.uint8),
    "bool": lambda rng, shape: rng.random(shape) < 0.5,
}
ORDERS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "turned": lambda a: a.T,
    "reversed": lambda a: a[..., ::-1],
}


def some_axes(ndim):
    """None, each axis, each tuple of them, and all of them the other way round."""
    tuples = (itertools.combinations(range(-ndim, 0), n) for n in range(ndim + 1))
    return [None, *range(ndim), *itertools.chain.from_iterable(tuples), (*range(ndim),)[::-1]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_axes_and_dtypes_of_scipy(cpu, rng, shape, kind, order):
    logits = ORDERS[order](KINDS[kind](rng, shape))
    floats = logits.astype(np.float64) if kind in ("int", "uint8", "bool") else logits
    rtol = 1e-6 if kind == "float32" else 1e-13
    for axis in some_axes(logits.ndim):
        for keepdims in (False, True):
            got = nc.logsumexp(logits, axis=axis, keepdims=keepdims)
            assert got.dtype == floats.dtype
            if logits.size == 0:  # where SciPy fails with more than one axis
                rows = floats.sum(axis=axis, keepdims=keepdims)
                assert_same(got, np.full_like(rows, -INF))
                continue
            expected = scipy.special.logsumexp(floats, axis=axis, keepdims=keepdims)
            assert np.shape(got) == np.shape(expected)
            np.testing.assert_allclose(got, expected, rtol=rtol, atol=4 * rtol)
        for name, function in FUNCTIONS.items():
            got = function(logits, axis=axis)
            assert got.dtype == floats.dtype and got.shape == logits.shape
            if logits.size:
                expected = getattr(scipy.special, name)(floats, axis=axis)
                np.testing.assert_allclose(got, expected, rtol=2 * rtol, atol=4 * rtol)
            out = np.full(shape[::-1] if order == "turned" else shape, 9, floats.dtype)
            assert function(logits, axis=axis, out=out) is out
            assert_same(out, got)
            here = floats.copy("K")
            assert_same(function(here, axis=axis, out=here), got)


def test_a_number_by_itself(backend):
    assert nc.logsumexp(3.0, axis=None) == 3.0 == nc.logsumexp(3, axis=())
    assert (nc.softmax(3.0, axis=None), nc.log_softmax(np.float32(3), axis=None)) == (1.0, 0.0)
    for function in (nc.logsumexp, nc.softmax):
        with pytest.raises(ValueError, match=r"logits are 0-dimensional: .*, or axis=None"):
            function(3.0)


@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [
        ((0, 0), ValueError, r"axis = \(0, 0\): expected each axis once"),
        ((0, -2), ValueError, r"axis = \(0, -2\): expected each axis once"),
        ((0, 2), np.exceptions.AxisError, "axis 2 is out of bounds"),
        ((0, 1.0), TypeError, "axis = 1.0: expected an integer"),
        ([0, 1], TypeError, r"axis = \[0, 1\]: expected an integer, a tuple of integers or None"),
        (True, TypeError, "axis = True: expected an integer, a tuple of integers or None"),
    ],
)
def test_axes_that_are_none(backend, axis, error, message):
    for function in (nc.logsumexp, nc.softmax, nc.log_softmax):
        with pytest.raises(error, match=message):
            function(np.zeros((2, 3)), axis=axis)


def test_an_output_of_integers_is_float64(backend):
    logits, out = np.arange(6).reshape(2, 3), np.zeros((2, 3))
    assert_same(nc.softmax(logits, out=out), nc.softmax(logits.astype(float)))
    with pytest.raises(ValueError, match="out has dtype float32: expected float64"):
        nc.softmax(logits, out=np.zeros((2, 3), np.float32))
