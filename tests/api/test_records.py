"""Records of parts of a row: merged over shards they give what the whole row gives."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from cases import (
    BFLOAT16,
    DTYPE_IDS,
    DTYPES,
    FEW_OPTION_SETS,
    LAYOUTS,
    TARGET_KINDS,
    make_logits,
    make_options,
    make_targets,
    option_id,
)
from exact import assert_same, check_grad, check_loss, exact_rows, working
from hypothesis import given
from hypothesis import strategies as st

import numba_ce as nc

NAN, INF = np.nan, np.inf
both_kinds = pytest.mark.parametrize("kind", TARGET_KINDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
few_sets = pytest.mark.parametrize("names", FEW_OPTION_SETS, ids=option_id)


def shards_of(logits, targets, cuts, options):
    """(logits, targets, keyword arguments) of each shard of the classes, cut at `cuts`."""
    n_classes = logits.shape[-1]
    shards = []
    for start, stop in zip((0, *cuts), (*cuts, n_classes), strict=True):
        here = slice(start, stop)
        local = dict(options, class_offset=start)
        if "class_weight" in options:
            local["class_weight"] = options["class_weight"][here]
        t = targets[..., here] if targets.ndim == logits.ndim else targets
        shards.append((logits[..., here], t, local))
    return shards


def sharded(logits, targets, cuts, options, merge=functools.reduce):
    """Loss and gradient by way of the records of the shards."""
    n_classes = logits.shape[-1]
    shards = shards_of(logits, targets, cuts, options)
    records = [nc.row_record(z, t, n_classes=n_classes, **o) for z, t, o in shards]
    record = merge(nc.merge_records, records)
    grads = [nc.grad_from_record(z, t, record, **o) for z, t, o in shards]
    return nc.loss_from_record(record), np.concatenate(grads, axis=-1), record


def pairwise(function, items):
    """A tree of merges, as the ranks of a reduction would do them."""
    while len(items) > 1:
        items = [
            function(*items[i : i + 2]) if i + 1 < len(items) else items[i]
            for i in range(0, len(items), 2)
        ]
    return items[0]


def check(logits, targets, cuts, options, merge=functools.reduce):
    dtype = logits.dtype
    loss, grad, record = sharded(logits, targets, cuts, options, merge)
    assert record.dtype == np.float64
    assert record.shape[:-1] == logits.shape[:-1]
    assert loss.dtype == np.float64
    assert grad.dtype == dtype
    rows = exact_rows(logits, targets, **options)
    check_loss(loss.astype(working(dtype)), rows, dtype)
    check_grad(grad, rows, dtype)
    return loss, grad


CUTS = [(), (1,), (36,), (5, 6, 20), (16, 32), (0, 0, 9, 9, 37, 37), tuple(range(1, 37))]


@every_dtype
@both_kinds
@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("merge", [functools.reduce, pairwise])
def test_shards_give_the_whole_row(backend, rng, dtype, kind, cuts, merge):
    logits = make_logits(rng, (3, 37), dtype, 3.0)
    targets = make_targets(rng, (3,), 37, kind)
    check(logits, targets, cuts, {}, merge)


@few_sets
@both_kinds
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_options(backend, rng, names, kind, dtype):
    logits = make_logits(rng, (4, 23), dtype)
    targets = make_targets(rng, (4,), 23, kind)
    if kind == "index":
        targets[0] = 1
    options = make_options(names, rng, (4,), 23, kind)
    options.pop("check_targets", None)
    for cuts in ((), (7, 15), (2,)):
        check(logits, targets, cuts, options)


@few_sets
@both_kinds
def test_one_shard_is_the_plain_call(backend, rng, names, kind):
    logits = make_logits(rng, (4, 23))
    targets = make_targets(rng, (4,), 23, kind)
    options = make_options(names, rng, (4,), 23, kind)
    expected, expected_grad = nc.cross_entropy_and_grad(
        logits, targets, reduction="none", **options
    )
    loss, grad, _ = sharded(logits, targets, (), options)
    np.testing.assert_allclose(loss, expected, rtol=1e-15)
    np.testing.assert_allclose(grad, expected_grad, rtol=2e-14, atol=1e-17)


@st.composite
def sharded_rows(draw):
    n_classes = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    logits = make_logits(rng, (2, n_classes), dtype, draw(st.sampled_from([0.0, 1.0, 40.0])))
    logits[rng.random(logits.shape) < draw(st.sampled_from([0.0, 0.3, 0.8]))] = -INF
    kind = draw(st.sampled_from(TARGET_KINDS))
    targets = make_targets(rng, (2,), n_classes, kind)
    if kind == "probabilities":
        targets[rng.random(targets.shape) < 0.5] = 0.0
    else:
        targets[: draw(st.integers(0, 1))] = -100
    odd = draw(st.sampled_from([None, None, None, NAN, INF]))
    if odd is not None:
        logits[1, draw(st.integers(0, n_classes - 1))] = odd
    cuts = sorted(draw(st.lists(st.integers(0, n_classes), max_size=4)))
    options = {}
    if draw(st.booleans()):
        options["label_smoothing"] = 0.5
    if draw(st.booleans()):
        options["class_weight"] = rng.choice([0.0, 1.0, -0.5, 2.0], n_classes)
    if draw(st.booleans()):
        options["sample_weight"] = rng.choice([0.0, 1.0, -0.5, 2.0], 2)
    if draw(st.booleans()):
        options["temperature"] = 0.5
    if draw(st.booleans()):
        options["z_loss"] = 0.5
    return logits, targets, cuts, options


@given(case=sharded_rows(), tree=st.booleans())
def test_any_shards(backend, case, tree):
    """Masked, empty, NaN and infinite shards, repeated maxima, any number of parts."""
    check(*case, merge=pairwise if tree else functools.reduce)


@every_dtype
@pytest.mark.parametrize("masked", [slice(0, 8), slice(8, 16), slice(0, 16), slice(8, 24)], ids=str)
@both_kinds
def test_masked_shards(backend, rng, dtype, masked, kind):
    """A fully masked part is the identity, two of them as well."""
    logits = make_logits(rng, (3, 24), dtype)
    logits[:, masked] = -INF
    targets = make_targets(rng, (3,), 24, kind)
    if kind == "index":
        free = np.flatnonzero(logits[0] > -INF)
        targets = free[[0, 3, -1]]
    else:
        targets[:, masked] = 0.0
    for merge in (functools.reduce, pairwise):
        loss, grad = check(logits, targets, (8, 16), {}, merge)
        assert np.isfinite(loss).all()
        assert (grad[:, masked] == 0).all()


def test_everything_masked(backend):
    logits = np.full((2, 6), -INF)
    loss, grad, _ = sharded(logits, np.array([1, -100]), (2, 4), {})
    assert np.isnan(loss[0])
    assert np.isnan(grad[0]).all()
    assert loss[1] == 0
    assert (grad[1] == 0).all()


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("position", [0, 4, 5])
@both_kinds
def test_nan_in_one_shard_reaches_the_row(backend, rng, value, position, kind):
    logits = make_logits(rng, (3, 6), np.float32)
    logits[1, position] = value
    targets = make_targets(rng, (3,), 6, kind)
    for merge in (functools.reduce, pairwise):
        loss, grad, _ = sharded(logits, targets, (2, 4), {}, merge)
        assert np.isnan(loss).tolist() == [False, True, False]
        assert np.isnan(grad).all(axis=1).tolist() == [False, True, False]
        assert np.isnan(grad).any(axis=1).tolist() == [False, True, False]


@both_kinds
def test_ignored_rows(backend, rng, kind):
    logits = make_logits(rng, (4, 9), np.float32)
    logits[[1, 2]] = NAN
    targets = make_targets(rng, (4,), 9, kind)
    options = {"sample_weight": np.array([1.0, 0.0, 0.0, 2.0])}
    if kind == "index":
        targets[1] = -100
    loss, grad = check(logits, targets, (3, 5), options)
    assert (loss[[1, 2]] == 0).all()
    assert (grad[[1, 2]] == 0).all()


@both_kinds
def test_merge_has_an_identity_and_commutes(backend, rng, kind):
    logits = make_logits(rng, (5, 9))
    targets = make_targets(rng, (5,), 9, kind)
    (a, ta, oa), (b, tb, ob) = shards_of(logits, targets, (4,), {})
    a = nc.row_record(a, ta, n_classes=9, **oa)
    b = nc.row_record(b, tb, n_classes=9, **ob)
    empty_targets = targets if kind == "index" else targets[:, :0]
    identity = nc.row_record(logits[:, :0], empty_targets, class_offset=4, n_classes=9)
    for record in (a, b):
        assert_same(nc.merge_records(record, identity), record)
        assert_same(nc.merge_records(identity, record), record)
    assert_same(nc.merge_records(a, b), nc.merge_records(b, a))
    assert_same(nc.merge_records(identity, identity), identity)


def test_merge_leaves_its_arguments_alone(backend, rng):
    logits, targets = make_logits(rng, (5, 9)), rng.integers(0, 9, 5)
    records = [
        nc.row_record(z, t, n_classes=9, **o) for z, t, o in shards_of(logits, targets, (4,), {})
    ]
    copies = [r.copy() for r in records]
    merged = nc.merge_records(*records)
    nc.loss_from_record(merged)
    for r, c in zip(records, copies, strict=True):
        assert_same(r, c)
        assert not np.shares_memory(r, merged)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gap", [20.0, 60.0])
def test_confident_rows_keep_their_digits(backend, rng, dtype, gap):
    """A gap over 17 is 0 in float32 for everyone who merges a plain log-sum-exp."""
    logits = make_logits(rng, (3, 40), dtype)
    logits[:, 25] = logits.max(axis=1) + dtype(gap)
    targets = np.full(3, 25)
    for cuts in ((10, 20, 30), (25,), (26,)):
        loss, _ = check(logits, targets, cuts, {})
        assert (loss > 0).all()
    probabilities = np.zeros((3, 40))
    probabilities[:, 25] = 1.0
    for cuts in ((10, 20, 30), (25,), (26,)):
        loss, _ = check(logits, probabilities, cuts, {})
        assert (loss > 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_common_offset(backend, rng, dtype):
    logits = (make_logits(rng, (3, 40)) + 1e4).astype(dtype)
    check(logits, rng.integers(0, 40, 3), (13, 26), {})
    check(logits, make_targets(rng, (3,), 40, "probabilities"), (13, 26), {})


@both_kinds
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_class_axis(backend, rng, kind, axis):
    moved = make_logits(rng, (4, 5, 6), np.float32)
    targets = make_targets(rng, (4, 5), 6, kind)
    logits = np.moveaxis(moved, -1, axis)
    if kind == "probabilities":
        targets = np.moveaxis(targets, -1, axis)
    record = nc.row_record(logits, targets, axis=axis, class_offset=0, n_classes=6)
    assert record.shape[:-1] == (4, 5)
    loss = nc.loss_from_record(record)
    expected, expected_grad = nc.cross_entropy_and_grad(
        logits, targets, axis=axis, reduction="none"
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    grad = nc.grad_from_record(logits, targets, record, axis=axis, class_offset=0)
    np.testing.assert_allclose(grad, expected_grad, rtol=5e-6, atol=1e-8)


def test_one_row(backend, rng):
    z = make_logits(rng, 8)
    a = nc.row_record(z[:3], 5, class_offset=0, n_classes=8)
    b = nc.row_record(z[3:], 5, class_offset=3, n_classes=8)
    record = nc.merge_records(a, b)
    assert record.ndim == 1
    np.testing.assert_allclose(nc.loss_from_record(record), nc.cross_entropy(z, 5), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float64], ids=str)
@both_kinds
def test_gradient_out_and_in_place(backend, rng, dtype, kind):
    logits = make_logits(rng, (6, 30), dtype)
    targets = make_targets(rng, (6,), 30, kind)
    record = nc.row_record(logits, targets, class_offset=0, n_classes=30)
    expected = nc.grad_from_record(logits, targets, record, class_offset=0)
    out = np.full((6, 60), 7, dtype)[:, ::2]
    grad = nc.grad_from_record(logits, targets, record, class_offset=0, out=out)
    assert grad is out
    assert_same(grad, expected)
    grad = nc.grad_from_record(logits, targets, record, class_offset=0, out=logits)
    assert grad is logits
    assert_same(grad, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@both_kinds
def test_layouts(backend, rng, layout, kind):
    plain = make_logits(rng, (6, 30), np.float32)
    targets = make_targets(rng, (6,), 30, kind)
    expected = nc.row_record(plain, targets, class_offset=0, n_classes=30)
    move = LAYOUTS[layout]
    record = nc.row_record(move(plain), move(targets), class_offset=0, n_classes=30)
    assert_same(record, expected)
    grad = nc.grad_from_record(move(plain), move(targets), move(record), class_offset=0)
    assert_same(grad, nc.grad_from_record(plain, targets, expected, class_offset=0))


def test_a_bad_target_is_bad_for_the_whole_row_only(backend, rng):
    """Targets are global class ids: 25 is fine in a shard that holds 0..9 of 30 classes."""
    logits = make_logits(rng, (2, 10), np.float32)
    nc.row_record(logits, [25, 3], class_offset=0, n_classes=30)
    with pytest.raises(ValueError, match=r"targets\[1\] = 30 .* target < 30"):
        nc.row_record(logits, [25, 30], class_offset=0, n_classes=30)


@pytest.mark.parametrize("n_classes", [-4, 0, 9, 2**53 + 1])
def test_a_number_of_classes_that_cannot_be(cpu, rng, n_classes):
    logits = make_logits(rng, (2, 10), np.float32)
    message = f"n_classes = {n_classes}: expected at least 10 and at most 2"
    with pytest.raises(ValueError, match=message):
        nc.row_record(logits, [0, 3], class_offset=0, n_classes=n_classes)
    with pytest.raises(ValueError, match="n_classes = -1: expected at least 1 "):
        nc.row_record(logits[:, :0], [0, 3], class_offset=0, n_classes=-1)


def test_unchecked_bad_target(backend, rng):
    logits = make_logits(rng, (3, 10))
    loss, grad, _ = sharded(logits, np.array([3, 10, -1]), (5,), {"check_targets": False})
    assert np.isnan(loss).tolist() == [False, True, True]
    assert np.isnan(grad[1:]).all()
    assert np.isfinite(grad[0]).all()


def test_rows_merge_by_stacking(backend, rng):
    """Records broadcast like arrays: a stack of shards, merged along its first axis."""
    logits, targets = make_logits(rng, (4, 12)), rng.integers(0, 12, 4)
    parts = [
        nc.row_record(z, t, n_classes=12, **o)
        for z, t, o in shards_of(logits, targets, (3, 6, 9), {})
    ]
    stack = np.stack(parts)
    half = nc.merge_records(stack[:2], stack[2:])
    whole = nc.merge_records(half[0], half[1])
    np.testing.assert_allclose(
        nc.loss_from_record(whole), nc.cross_entropy(logits, targets, reduction="none"), rtol=1e-14
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [NAN, INF])
def test_masked_shard_of_a_nan_row(backend, dtype, value):
    """The gradient is NaN in all shards, also in one of nothing but -inf."""
    logits = np.array([[-INF, -INF, 1.0, value]], dtype)
    for targets in (np.full((1, 4), 0.25), np.array([3])):
        record = nc.row_record(logits, targets, class_offset=0, n_classes=4)
        part = targets[:, :2] if targets.ndim == 2 else targets
        grad = nc.grad_from_record(logits[:, :2], part, record, class_offset=0)
        assert np.isnan(grad).all()


def test_a_gradient_that_would_overwrite_the_class_weights(backend, rng):
    """They are copied to float64, so that the overlap must be looked for in what was passed."""
    memory = np.ones((2, 4), np.float32)
    logits, weight = np.zeros((1, 4), np.float32), memory[0]
    record = nc.row_record(logits, [0], class_offset=0, n_classes=4, class_weight=weight)
    with pytest.raises(ValueError, match="out overlaps class_weight"):
        nc.grad_from_record(
            logits, [0], record, class_offset=0, class_weight=weight, out=memory[:1]
        )
    assert (memory == 1).all()


def test_the_temperature_of_a_record_is_that_of_its_gradient(backend, rng):
    logits = make_logits(rng, (3, 4))
    record = nc.row_record(logits, [0, 1, 2], class_offset=0, n_classes=4, temperature=2.0)
    with pytest.raises(ValueError, match=r"temperature = 1\.0: expected 2\.0"):
        nc.grad_from_record(logits, [0, 1, 2], record, class_offset=0)
