"""Statistics and Hessian of rows of few classes, which are done sixteen at a time.

Any number of classes and rows, so that whole sixteens and what is left of them come in every size,
and edge cases in every lane, against the reference; a row alone has the bits it has among others.
"""

from __future__ import annotations

import numpy as np
import pytest
from bits import assert_same_bits
from cases import BFLOAT16, make_logits, make_targets
from fuzz.calls import Call
from fuzz.judge import check_hess, check_stats

import numba_ce as nc

NAN, INF = np.nan, np.inf
N = 40  # classes and rows go from 1 to N
CLASSES = range(1, N + 1)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])

#: function (row, class a, class b): what may be special about a row; the classes may be the same
EDGES = (
    lambda z, a, b: z.__setitem__(a, NAN),
    lambda z, a, b: z.__setitem__([a, b], NAN),
    lambda z, a, b: z.__setitem__(a, INF),
    lambda z, a, b: z.__setitem__([a, b], INF),
    lambda z, a, b: (z.__setitem__(a, INF), z.__setitem__(b, NAN)),
    lambda z, a, b: z.fill(-INF),
    lambda z, a, b: (z.fill(-INF), z.__setitem__(a, 2.5)),
    lambda z, a, b: (z.fill(-INF), z.__setitem__(b, NAN)),
    lambda z, a, b: z.__setitem__(a, -INF),
    lambda z, a, b: z.fill(-1.5),
    lambda z, a, b: z.__setitem__(a, z.max() + 40),
    lambda z, a, b: z.__isub__(3000),
    lambda z, a, b: z.__setitem__([a, b], z.max()),
)


def forty_rows(rng, n_classes, dtype):
    """Plain rows and edge cases in turn; which comes first depends on the number of classes."""
    logits = make_logits(rng, (N, n_classes), dtype, 3.0)
    for i in range(0, N, 2):
        a, b = rng.integers(0, n_classes, 2)
        EDGES[(i // 2 + n_classes) % len(EDGES)](logits[i], a, b)
    return logits


def as_float64(arrays):
    """The same numbers for the reference."""
    return {k: a.astype(float) if a.dtype.kind == "f" else a for k, a in arrays.items()}


@both_dtypes
def test_stats(cpu, rng, dtype):
    for n_classes in CLASSES:
        logits, targets = forty_rows(rng, n_classes, dtype), rng.integers(0, n_classes, N)
        targets[rng.random(N) < 0.2] = -100
        arguments = {"logits": logits, "targets": targets}
        stats = nc.row_stats(**arguments)
        call = Call("row_stats", arguments, as_float64(arguments), dtype=np.dtype(dtype))
        check_stats(call, stats)
        for n in CLASSES:
            some = nc.row_stats(logits[-n:], targets[-n:])
            assert_same_bits(tuple(some), tuple(field[-n:] for field in stats))
        assert_same_bits(tuple(nc.row_stats(logits))[:4], tuple(stats)[:4])


@both_dtypes
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_hess(cpu, rng, dtype, kind):
    for n_classes in CLASSES:
        logits = forty_rows(rng, n_classes, dtype)
        targets = make_targets(rng, (N,), n_classes, kind, None if kind == "index" else dtype)
        if kind == "probabilities":
            targets *= rng.uniform(0.5, 2, (N, 1)).astype(dtype)
        weight = rng.choice([0.0, 1.0, 0.75, -2.0], N)
        arguments = {"logits": logits, "targets": targets, "sample_weight": weight}
        hess = ("diagonal", "xgboost", "lightgbm")[n_classes % 3]
        both = nc.cross_entropy_grad_and_hess(**arguments, hess=hess)
        plain = as_float64(arguments) | {"hess": hess}
        call = Call("cross_entropy_grad_and_hess", arguments, plain, dtype=np.dtype(dtype))
        check_hess(call, both)
        ignored = np.stack(both)[:, weight == 0]
        assert_same_bits(ignored, np.zeros_like(ignored))  # not -0.0
        for n in CLASSES:
            out = np.empty((n, n_classes), dtype, order="F"), np.empty((n_classes, 2 * n), dtype)
            out = out[0], out[1].T[::2]
            nc.cross_entropy_grad_and_hess(
                logits[-n:], targets[-n:], sample_weight=weight[-n:], hess=hess, out=out
            )
            assert_same_bits(out, tuple(a[-n:] for a in both))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_16_bits_are_computed_in_float32(cpu, rng, dtype):
    logits, targets = make_logits(rng, (N, 20), dtype), rng.integers(0, 20, N)
    wide = logits.astype(np.float32)
    assert_same_bits(tuple(nc.row_stats(logits, targets)), tuple(nc.row_stats(wide, targets)))
    out = np.empty_like(wide), np.empty_like(wide)
    nc.cross_entropy_grad_and_hess(logits, targets, out=out)
    both = nc.cross_entropy_grad_and_hess(wide, targets)
    assert_same_bits(out, both)
    rounded = nc.cross_entropy_grad_and_hess(logits, targets)
    for a, b in zip(rounded, both, strict=True):
        assert_same_bits(a, b.astype(dtype))


@pytest.mark.parametrize("dtype", [BFLOAT16, np.float32])
def test_what_lies_between_rows_of_few_classes_stays(cpu, rng, dtype):
    """LLVM once wrote four bytes for a single class of two."""
    for n_classes in range(1, 7):
        logits = make_logits(rng, (33, n_classes), dtype)
        memory = np.full((33, n_classes + 1), 7, dtype)
        nc.softmax(logits, out=memory[:, :-1])
        assert (memory[:, -1].astype(float) == 7).all(), n_classes
        np.testing.assert_array_equal(memory[:, :-1], nc.softmax(logits))
