"""The same bits for any number of threads, any batch split, in place or not, in any layout."""

from __future__ import annotations

import itertools

import numba
import numpy as np
import pytest
from bits import assert_same_bits
from cases import (
    BFLOAT16,
    DTYPE_IDS,
    DTYPES,
    FEW_OPTION_SETS,
    LAYOUTS,
    REDUCTIONS,
    TARGET_KINDS,
    make_logits,
    make_options,
    make_targets,
    option_id,
)

import numba_ce as nc
from numba_ce.cpu.choose import blocks_drawn, rows_per_block

pytestmark = pytest.mark.usefixtures("cpu")

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
both_kinds = pytest.mark.parametrize("kind", TARGET_KINDS)
both_axes = pytest.mark.parametrize("axis", [-1, 0])
#: (n_rows, n_classes): few and many classes, more than one block of rows.
SHAPES = [(5003, 3), (2001, 10), (999, 100), (301, 1500), (31, 9000), (1, 70000), (3, 40000)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def restore_threads():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def along(axis, array):
    """The array with its last axis moved to `axis`, dense in the new order."""
    return np.ascontiguousarray(np.moveaxis(array, -1, axis))


def make(rng, shape, dtype, kind, axis=-1):
    logits = along(axis, make_logits(rng, shape, dtype))
    targets = make_targets(rng, shape[:1], shape[1], kind)
    return logits, along(axis, targets) if kind == "probabilities" else targets


# ---------------------------------------------------------------- threads


@shapes
@every_dtype
@both_kinds
@both_axes
def test_threads(rng, shape, dtype, kind, axis):
    logits, targets = make(rng, shape, dtype, kind, axis)
    for reduction in REDUCTIONS:
        results = []
        for threads in (1, 2, 1):
            numba.set_num_threads(threads)
            options = {"axis": axis, "reduction": reduction}
            loss, grad = nc.cross_entropy_and_grad(logits, targets, **options)
            results.append((loss, grad, nc.cross_entropy(logits, targets, **options)))
            assert_same_bits(loss, results[-1][2])
        assert_same_bits(results[0], results[1])
        assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("names", FEW_OPTION_SETS, ids=option_id)
@both_kinds
def test_threads_with_options(rng, names, kind):
    logits, targets = make(rng, (3000, 33), np.float64, kind)
    options = make_options(names, rng, (3000,), 33, kind)
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append(nc.cross_entropy_and_grad(logits, targets, **options))
    assert_same_bits(*results)


@shapes
@both_axes
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_threads_in_the_other_functions(rng, shape, dtype, axis):
    logits, targets = make(rng, shape, dtype, "index", axis)
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        record = nc.row_record(logits, targets, axis=axis, class_offset=0, n_classes=shape[1])
        results.append(
            (
                *nc.row_stats(logits, targets, axis=axis),
                *nc.cross_entropy_grad_and_hess(logits, targets, axis=axis),
                nc.softmax(logits, axis=axis),
                nc.log_softmax(logits, axis=axis),
                nc.logsumexp(logits, axis=axis),
                record,
                nc.grad_from_record(logits, targets, record, axis=axis, class_offset=0),
            )
        )
    assert_same_bits(*results)


@pytest.mark.parametrize("n_rows", [1000003])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_long_sums(rng, n_rows, reduction):
    """Fixed blocks of rows folded in order, whoever computes them; and right to the last bits."""
    logits, targets = make(rng, (n_rows, 3), np.float32, "index")
    weight = rng.uniform(0.5, 2.0, n_rows)
    options = {"sample_weight": weight, "reduction": reduction}
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append(nc.cross_entropy_and_grad(logits, targets, **options))
    assert_same_bits(*results)
    assert blocks_drawn(n_rows // rows_per_block(3), 2) > 1
    rows = nc.cross_entropy(
        logits.astype(np.float64), targets, sample_weight=weight, reduction="none"
    )
    expected = rows.sum() / (weight.sum() if reduction == "mean" else 1)
    assert abs(results[0][0] - expected) <= np.spacing(np.float32(expected))


# ---------------------------------------------------------------- batch splits


@shapes
@every_dtype
@both_kinds
@both_axes
def test_batch_splits(rng, shape, dtype, kind, axis):
    """A row's bits do not depend on the rows around it."""
    n_rows, n_classes = shape
    logits = make_logits(rng, shape, dtype)
    targets = make_targets(rng, (n_rows,), n_classes, kind)

    def run(rows):
        t = along(axis, targets[rows]) if kind == "probabilities" else targets[rows]
        loss, grad = nc.cross_entropy_and_grad(
            along(axis, logits[rows]), t, axis=axis, reduction="none"
        )
        return loss, np.moveaxis(grad, axis, -1)

    whole = run(slice(None))
    cuts = sorted({0, 1, 2, 7, 16, 33, n_rows // 3, n_rows - 1, n_rows})
    cuts = [c for c in cuts if 0 <= c <= n_rows]
    for start, stop in itertools.pairwise(cuts):
        if start < stop:
            assert_same_bits(run(slice(start, stop)), tuple(part[start:stop] for part in whole))
    order = rng.permutation(n_rows)[:500]
    assert_same_bits(run(order), tuple(part[order] for part in whole))
    for row in {0, n_rows // 2, n_rows - 1}:
        assert_same_bits(run([row]), tuple(part[[row]] for part in whole))


@both_kinds
def test_batch_splits_with_softcap_and_temperature(rng, kind):
    logits, targets = make(rng, (300, 70), np.float64, kind)
    options = {"softcap": 3.0, "temperature": 0.7, "z_loss": 0.1, "label_smoothing": 0.1}
    whole = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
    for part in (slice(0, 1), slice(1, 6), slice(6, 299)):
        alone = nc.cross_entropy_and_grad(logits[part], targets[part], reduction="none", **options)
        assert_same_bits(alone, (whole[0][part], whole[1][part]))


@shapes
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_batch_splits_in_the_other_functions(rng, shape, dtype):
    logits, targets = make(rng, shape, dtype, "index")

    def run(rows):
        z, y = logits[rows], targets[rows]
        record = nc.row_record(z, y, class_offset=0, n_classes=shape[1])
        return (
            *nc.row_stats(z, y),
            *nc.cross_entropy_grad_and_hess(z, y),
            nc.softmax(z),
            nc.log_softmax(z),
            nc.logsumexp(z),
            record,
        )

    whole = run(slice(None))
    for part in (slice(0, 1), slice(shape[0] // 2, shape[0]), slice(shape[0] - 1, shape[0])):
        assert_same_bits(run(part), tuple(a[part] for a in whole))


# ---------------------------------------------------------------- in place, alignment, layouts


@shapes
@every_dtype
@both_axes
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_in_place(rng, shape, dtype, axis, reduction):
    logits, targets = make(rng, shape, dtype, "index", axis)
    options = {"axis": axis, "reduction": reduction}
    expected = nc.cross_entropy_and_grad(logits, targets, **options)
    assert_same_bits(nc.cross_entropy_and_grad(logits, targets, out=logits, **options), expected)


@shapes
@every_dtype
@both_axes
def test_alignment(rng, shape, dtype, axis):
    """Wherever the array starts within a cache line, also between two elements."""
    logits, targets = make(rng, shape, dtype, "index", axis)
    options = {"axis": axis, "reduction": "none"}
    expected = nc.cross_entropy_and_grad(logits, targets, **options)
    size = logits.dtype.itemsize
    for offset in (0, size, 3 * size, 13 * size, 1, 31):
        z, g = (
            np.zeros(logits.nbytes + 192, np.uint8)[o : o + logits.nbytes]
            .view(dtype)
            .reshape(logits.shape)
            for o in (offset, 127 - offset)
        )
        z[...] = logits
        loss, grad = nc.cross_entropy_and_grad(z, targets, out=g, **options)
        assert_same_bits((loss, grad), expected)


@shapes
@every_dtype
@both_axes
@pytest.mark.parametrize("memory", ["fortran", "padded", "reversed", "strided", "swapped"])
def test_memory_layout(rng, shape, dtype, axis, memory):
    logits, targets = make(rng, shape, dtype, "index", axis)
    options = {"axis": axis, "reduction": "none"}
    expected = nc.cross_entropy_and_grad(logits, targets, **options)
    z = LAYOUTS[memory](logits)
    assert_same_bits(nc.cross_entropy_and_grad(z, targets, **options), expected)
    out = LAYOUTS[memory](np.zeros_like(logits))
    loss, grad = nc.cross_entropy_and_grad(z, targets, out=out, **options)
    assert_same_bits((loss, grad), expected)


@shapes
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_position_of_the_target(rng, shape, dtype):
    """The target's own element counts as -inf in its tile: the sum does not depend on where it is.

    Rows that are the same but for the place of the target have the same loss to the bit
    when only one other class counts.
    """
    n_classes = shape[1]
    logits = np.full(
        (n_classes, n_classes) if n_classes <= 100 else (50, n_classes), -np.inf, dtype
    )
    rows = np.arange(len(logits))
    targets = (rows * (n_classes // len(rows))).astype(int)
    logits[rows, targets] = 1.25
    logits[rows, (targets + 1) % n_classes] = 0.5
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    assert len(set(loss.tolist())) == 1
    assert len(set(grad[rows, targets].tolist())) == 1


def test_again_and_again(rng):
    logits, targets = make(rng, (700, 333), np.float32, "index")
    expected = nc.cross_entropy_and_grad(logits, targets)
    for _ in range(20):
        assert_same_bits(nc.cross_entropy_and_grad(logits, targets), expected)
