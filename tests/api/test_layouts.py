"""Any shape, stride, byte order, alignment and dtype gives what a plain array gives."""

from __future__ import annotations

import numpy as np
import pytest
from bits import assert_same_bits
from cases import (
    BFLOAT16,
    DTYPE_IDS,
    DTYPES,
    LAYOUTS,
    TARGET_DTYPES,
    TARGET_KINDS,
    Series,
    make_logits,
    make_targets,
)
from exact import check_grad, check_loss, exact_rows, working
from hypothesis import given
from hypothesis import strategies as st

import numba_ce as nc

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
both_kinds = pytest.mark.parametrize("kind", TARGET_KINDS)


# ---------------------------------------------------------------- hypothesis


@st.composite
def memory(draw, values, broadcast=()):
    """The same values behind random strides, alignment, byte order and writeability.

    The axes in `broadcast` have one element and get a zero stride.
    """
    dtype = values.dtype
    if draw(st.booleans()):
        dtype = dtype.newbyteorder()
    order = draw(st.permutations(range(values.ndim)))
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in order]
    shape = tuple(values.shape[axis] * abs(step) for axis, step in zip(order, steps, strict=True))
    offset = draw(st.sampled_from([0, 0, 1, dtype.itemsize]))
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.zeros(size + offset, np.uint8)[offset:]
    view = buffer.view(dtype).reshape(shape)
    view = view[(..., *(slice(None, None, step) for step in steps))]
    view = view.transpose(np.argsort(order)) if order else view
    view[...] = values
    if draw(st.booleans()):
        view.flags.writeable = False
    if broadcast:
        full = list(view.shape)
        for axis, count in broadcast.items():
            full[axis] = count
        view = np.broadcast_to(view, full)
    return view


@st.composite
def logits_arrays(draw, special=True):
    """(view, axis): few elements, many layouts."""
    ndim = draw(st.integers(1, 4))
    axis = draw(st.integers(-ndim, ndim - 1))
    shape = [draw(st.integers(1, 3)) for _ in range(ndim)]
    shape[axis] = draw(st.integers(1, 9 if ndim > 2 else 70))
    broadcast = {}
    base = list(shape)
    for i in range(ndim):
        if draw(st.integers(0, 9)) == 0:
            broadcast[i], base[i] = shape[i], 1
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = make_logits(rng, base, dtype, scale=draw(st.sampled_from([0.0, 1.0, 30.0])))
    if special:
        spoil = st.tuples(
            st.integers(0, values.size - 1), st.sampled_from([-np.inf, -np.inf, np.inf, np.nan])
        )
        for position, value in draw(st.lists(spoil, max_size=4)):
            values.reshape(-1)[position] = value
    return draw(memory(values, broadcast)), axis


@st.composite
def problems(draw):
    logits, axis = draw(logits_arrays())
    axis = axis % logits.ndim
    rows = logits.shape[:axis] + logits.shape[axis + 1 :]
    n_classes = logits.shape[axis]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(TARGET_KINDS))
    if kind == "index":
        dtype = np.dtype(draw(st.sampled_from(TARGET_DTYPES)))
        targets = make_targets(rng, rows, n_classes, kind, dtype)
        if np.issubdtype(dtype, np.signedinteger) and targets.size:
            targets.reshape(-1)[: draw(st.integers(0, 2))] = -100
    else:
        dtype = draw(st.sampled_from(DTYPES))
        targets = make_targets(rng, rows, n_classes, kind, dtype)
        targets[rng.random(targets.shape) < 0.3] = 0.0
        targets = np.moveaxis(targets, -1, axis)
    options = {"axis": axis}
    if draw(st.booleans()):
        s = rng.choice([0.0, 0.5, 1.0, -2.0], rows).astype(draw(st.sampled_from(DTYPES)))
        options["sample_weight"] = draw(memory(s))
    if draw(st.booleans()):
        w = rng.choice([0.0, 1.0, 1.5, -0.5], n_classes)
        options["class_weight"] = draw(memory(w))
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.sampled_from([0.1, 1.0]))
    if draw(st.booleans()):
        options["z_loss"] = 0.5
    return logits, draw(memory(targets)), options


@given(problem=problems(), in_place=st.booleans())
def test_any_problem_against_mpmath(backend, problem, in_place):
    logits, targets, options = problem
    before = logits.copy()
    rows = exact_rows(logits, targets, **options)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
    check_loss(np.asarray(loss), rows, logits.dtype)
    check_grad(grad, rows, logits.dtype, axis=options["axis"])
    assert_same_bits(logits, before)
    alone = nc.cross_entropy(logits, targets, reduction="none", **options)
    assert_same_bits(alone, loss)
    zero_strides = any(
        n > 1 and stride == 0 for n, stride in zip(logits.shape, logits.strides, strict=True)
    )
    if in_place and logits.flags.writeable and not zero_strides:
        _, grad2 = nc.cross_entropy_and_grad(
            logits, targets, reduction="none", out=logits, **options
        )
        assert grad2 is logits
        assert_same_bits(logits, grad)


@given(array=logits_arrays())
def test_any_layout_in_the_other_functions(backend, array):
    """Bits of a plain array with the class axis in the same place."""
    logits, axis = array
    plain = np.ascontiguousarray(logits, dtype=logits.dtype.newbyteorder("="))
    n_classes = logits.shape[axis]
    rows = tuple(n for i, n in enumerate(logits.shape) if i != axis % logits.ndim)
    targets = np.arange(int(np.prod(rows))).reshape(rows) % n_classes
    for function in (
        lambda z: nc.softmax(z, axis=axis),
        lambda z: nc.log_softmax(z, axis=axis),
        lambda z: nc.logsumexp(z, axis=axis),
        lambda z: nc.row_stats(z, targets, axis=axis),
        lambda z: nc.cross_entropy_grad_and_hess(z, targets, axis=axis),
        lambda z: nc.row_record(z, targets, axis=axis, class_offset=0, n_classes=n_classes),
    ):
        actual, expected = function(logits), function(plain)
        if not isinstance(actual, tuple):
            actual, expected = (actual,), (expected,)
        for a, b in zip(actual, expected, strict=True):
            assert_same_bits(a, b)


# ---------------------------------------------------------------- the named layouts, one by one


@every_layout
@every_dtype
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layout_of_logits(backend, rng, layout, dtype, axis):
    shape = [3, 5, 4]
    shape[axis] = 37
    plain = make_logits(rng, shape, dtype)
    rows = tuple(np.delete(shape, axis))
    targets = rng.integers(0, 37, rows)
    loss, grad = nc.cross_entropy_and_grad(plain, targets, axis=axis, reduction="none")
    logits = LAYOUTS[layout](plain)
    loss2, grad2 = nc.cross_entropy_and_grad(logits, targets, axis=axis, reduction="none")
    assert_same_bits(loss2, loss)
    assert_same_bits(grad2, grad)
    assert grad2.dtype.isnative
    check_loss(loss[:1], exact_rows(plain, targets, axis=axis)[: loss[:1].size], dtype)


@every_layout
@every_dtype
def test_in_place_in_every_layout(backend, rng, layout, dtype):
    plain = make_logits(rng, (7, 37), dtype)
    targets = rng.integers(0, 37, 7)
    expected = nc.cross_entropy_and_grad(plain, targets)
    logits = LAYOUTS[layout](plain)
    if not logits.flags.writeable:
        with pytest.raises(ValueError, match="out"):
            nc.cross_entropy_and_grad(logits, targets, out=logits)
        return
    loss, grad = nc.cross_entropy_and_grad(logits, targets, out=logits)
    assert grad is logits
    assert loss == expected[0]
    assert_same_bits(np.asarray(logits), expected[1])


@every_layout
@pytest.mark.parametrize("dtype", TARGET_DTYPES)
def test_layout_and_dtype_of_index_targets(backend, rng, layout, dtype):
    logits = make_logits(rng, (6, 5, 3), np.float32)
    targets = rng.integers(0, 3, (6, 5))
    expected = nc.cross_entropy(logits, targets, reduction="none")
    other = LAYOUTS[layout](targets.astype(dtype))
    assert_same_bits(nc.cross_entropy(logits, other, reduction="none"), expected)


@every_layout
@every_dtype
@pytest.mark.parametrize("axis", [-1, 0])
def test_layout_of_probabilities(backend, rng, layout, dtype, axis):
    logits = make_logits(rng, (19, 17), np.float32)
    targets = np.moveaxis(
        make_targets(rng, (19 if axis else 17,), 17 if axis else 19, "probabilities", dtype),
        -1,
        axis,
    )
    options = {"axis": axis, "reduction": "none"}
    loss, grad = nc.cross_entropy_and_grad(logits, np.ascontiguousarray(targets), **options)
    loss2, grad2 = nc.cross_entropy_and_grad(logits, LAYOUTS[layout](targets), **options)
    assert_same_bits(loss2, loss)
    assert_same_bits(grad2, grad)


@every_layout
@every_dtype
def test_layout_of_weights(backend, rng, layout, dtype):
    logits, targets = make_logits(rng, (4, 6, 5), np.float32), rng.integers(0, 5, (4, 6))
    w, s = rng.uniform(0.5, 2, 5).astype(dtype), rng.uniform(0.5, 2, (4, 6)).astype(dtype)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, class_weight=w, sample_weight=s)
    move = LAYOUTS[layout]
    loss2, grad2 = nc.cross_entropy_and_grad(
        logits, targets, class_weight=move(w), sample_weight=move(s)
    )
    assert loss2 == loss
    assert_same_bits(grad2, grad)


@pytest.mark.parametrize(
    "layout",
    ["contiguous", "fortran", "strided", "padded", "misaligned", "record_field", "swapped"],
)
@every_dtype
@pytest.mark.parametrize("axis", [-1, 0])
def test_layout_of_out(backend, rng, layout, dtype, axis):
    logits = make_logits(rng, (21, 23), dtype)
    targets = rng.integers(0, 21, 21 if axis else 23)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, axis=axis)
    out = LAYOUTS[layout](np.full(logits.shape, 7, dtype))
    loss2, grad2 = nc.cross_entropy_and_grad(logits, targets, axis=axis, out=out)
    assert grad2 is out
    assert loss2 == loss
    assert_same_bits(out, grad)


#: The rows of an output, from a vector with room for more, and how far they are apart
ROW_ORDERS = {
    "together": (0, lambda rows: rows),
    "apart": (5, lambda rows: rows),
    "backwards": (0, lambda rows: rows[::-1]),
}
WRITERS = {
    "index": lambda z, y, t, **out: nc.cross_entropy_and_grad(z, y, reduction="sum", **out)[1],
    "dense": lambda z, y, t, **out: nc.cross_entropy_and_grad(z, t, reduction="sum", **out)[1],
    "softmax": lambda z, y, t, **out: nc.softmax(z, **out),
    "log_softmax": lambda z, y, t, **out: nc.log_softmax(z, **out),
}


@pytest.mark.parametrize("order", ROW_ORDERS)
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("n_classes", [301, 1503])
@every_dtype
def test_large_outputs_at_any_address(cpu, rng, dtype, n_classes, write, order):
    """Large enough to be written around the caches, which takes whole lines of 64 bytes.

    The parts of lines at both ends of a row are put together with those of its neighbours, if they
    follow each other in memory.
    """
    size = np.dtype(dtype).itemsize
    gap, arrange = ROW_ORDERS[order]
    n_rows = (4 << 20) // (n_classes * size) + 3
    logits, targets = make_logits(rng, (n_rows, n_classes), dtype), rng.integers(0, 301, n_rows)
    targets[::5] = -100
    dense = (rng.random((50, n_classes)) / n_classes).astype(dtype)[np.arange(n_rows) % 50]
    pieces = [slice(i, i + 40) for i in range(0, n_rows, 40)]  # small: through the caches
    expected = [WRITERS[write](logits[i], targets[i], dense[i]) for i in pieces]
    for offset in (0, 1, size, 36 * size):
        buffer = np.full((n_rows * (n_classes + gap) + 64) * size, 77, np.uint8)
        rows = buffer[offset : offset + n_rows * (n_classes + gap) * size].view(dtype)
        out = arrange(rows.reshape(n_rows, n_classes + gap)[:, :n_classes])
        WRITERS[write](logits, targets, dense, out=out)
        assert_same_bits(out, np.concatenate(expected))
        out[...] = np.full(1, 0x4D4D4D4D4D4D4D4D).view(dtype)[0]  # 77 in every byte
        assert (buffer == 77).all()


@pytest.mark.parametrize("axis", [-1, 0])
@every_dtype
def test_nothing_is_written_between_the_elements_of_out(backend, rng, axis, dtype):
    logits = make_logits(rng, (40, 40), dtype)
    targets = rng.integers(0, 40, 40)
    big = np.full((81, 83), 7, dtype)
    view = big[1:-1:2, 3::2]
    nc.cross_entropy_and_grad(logits, targets, axis=axis, out=view)
    assert (view != 7).all()
    view[...] = 7
    assert (big == 7).all()


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("axis", [-1, 0])
def test_float32_out_of_16_bit_logits(backend, rng, dtype, reduction, axis):
    """The gradient before it is rounded: that of the logits cast to float32."""
    logits = make_logits(rng, (30, 33), dtype)
    targets = rng.integers(0, 30, 33 if axis == 0 else 30)
    options = {"axis": axis, "reduction": reduction}
    loss, expected = nc.cross_entropy_and_grad(logits.astype(np.float32), targets, **options)
    out = np.full(logits.shape, np.nan, np.float32)
    loss2, grad = nc.cross_entropy_and_grad(logits, targets, out=out, **options)
    assert grad is out
    assert_same_bits(loss2, loss)
    assert_same_bits(out, expected)


# ---------------------------------------------------------------- what comes back


@every_dtype
@pytest.mark.parametrize(
    "make",
    [
        lambda a: a,
        np.asfortranarray,
        lambda a: a.transpose(1, 2, 0),
        lambda a: a[:, ::-1, ::2],
        lambda a: a.astype(a.dtype.newbyteorder()),
    ],
    ids=["c", "f", "transposed", "sliced", "swapped"],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fresh_gradient_is_dense_and_native(backend, rng, dtype, make, axis):
    logits = make(make_logits(rng, (3, 5, 7), dtype))
    rows = tuple(np.delete(logits.shape, axis))
    targets = rng.integers(0, logits.shape[axis], rows)
    like = np.empty_like(logits, dtype=dtype)
    _, grad = nc.cross_entropy_and_grad(logits, targets, axis=axis)
    assert type(grad) is np.ndarray
    assert grad.dtype == dtype
    assert grad.dtype.isnative
    assert grad.strides == like.strides
    for result in (nc.softmax(logits, axis=axis), nc.log_softmax(logits, axis=axis)):
        assert result.dtype == dtype
        assert result.dtype.isnative
        assert result.shape == logits.shape
    for result in nc.cross_entropy_grad_and_hess(logits, targets, axis=axis):
        assert result.dtype == dtype
        assert result.strides == like.strides


@every_dtype
@both_kinds
def test_dtypes_of_the_results(backend, rng, dtype, kind):
    logits = make_logits(rng, (3, 5), dtype)
    targets = make_targets(rng, (3,), 5, kind)
    for reduction in ("mean", "sum"):
        loss = nc.cross_entropy(logits, targets, reduction=reduction)
        assert isinstance(loss, np.generic)
        assert loss.dtype == working(dtype)
    loss = nc.cross_entropy(logits, targets, reduction="none")
    assert isinstance(loss, np.ndarray)
    assert loss.dtype == working(dtype)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4])
@both_kinds
def test_class_axis_anywhere(backend, rng, axis, kind):
    shape = (2, 3, 4, 5)
    logits = make_logits(rng, shape, np.float32)
    moved = np.ascontiguousarray(np.moveaxis(logits, axis, -1))
    targets = make_targets(rng, moved.shape[:-1], moved.shape[-1], kind)
    loss, grad = nc.cross_entropy_and_grad(moved, targets, reduction="none")
    if kind == "probabilities":
        targets = np.moveaxis(targets, -1, axis)
    loss2, grad2 = nc.cross_entropy_and_grad(logits, targets, axis=axis, reduction="none")
    assert loss2.shape == moved.shape[:-1]
    np.testing.assert_allclose(loss2, loss, rtol=5e-7)
    np.testing.assert_allclose(np.moveaxis(grad2, axis, -1), grad, rtol=2e-6)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("other", ["rows", "classes", "both"])
def test_broadcast_logits(backend, rng, axis, other):
    """Zero strides: one row for all, one value for all classes, one number for all."""
    shape = {"rows": (1, 40), "classes": (30, 1), "both": (1, 1)}[other]
    logits = np.broadcast_to(make_logits(rng, shape, np.float32), (30, 40))
    n_rows, n_classes = (30, 40) if axis == 1 else (40, 30)
    targets = rng.integers(0, n_classes, n_rows)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, axis=axis, reduction="none")
    loss2, grad2 = nc.cross_entropy_and_grad(np.array(logits), targets, axis=axis, reduction="none")
    assert_same_bits(loss, loss2)
    assert_same_bits(grad, grad2)
    assert 0 not in grad.strides


def test_broadcast_targets_and_weights(backend, rng):
    logits = make_logits(rng, (30, 40), np.float32)
    targets, weight = np.broadcast_to(np.int16(3), 30), np.broadcast_to(np.float32(0.5), 30)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, sample_weight=weight, reduction="sum")
    loss2, grad2 = nc.cross_entropy_and_grad(
        logits, np.full(30, 3), sample_weight=np.full(30, 0.5), reduction="sum"
    )
    assert loss == loss2
    assert_same_bits(grad, grad2)
    t = np.broadcast_to(np.full(40, 1 / 40), (30, 40))
    loss, grad = nc.cross_entropy_and_grad(logits, t)
    loss2, grad2 = nc.cross_entropy_and_grad(logits, np.array(t))
    assert loss == loss2
    assert_same_bits(grad, grad2)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 33])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_number_of_rows(backend, rng, n_classes, axis, dtype):
    """Vector lanes may run across rows: each remainder of them."""
    logits = make_logits(rng, (80, n_classes), dtype)
    targets = rng.integers(0, n_classes, 80)
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none")
    for n in range(1, 81):
        z = logits[:n] if axis == -1 else np.ascontiguousarray(logits[:n].T)
        loss2, grad2 = nc.cross_entropy_and_grad(z, targets[:n], axis=axis, reduction="none")
        grad2 = grad2 if axis == -1 else grad2.T
        if axis == -1:
            assert_same_bits(loss2, loss[:n])
            assert_same_bits(grad2, grad[:n])
        else:
            unit = float(np.finfo(dtype).eps)
            np.testing.assert_allclose(loss2, loss[:n], rtol=min(4 * unit, 5e-7))
            np.testing.assert_allclose(grad2, grad[:n], rtol=16 * unit, atol=0)


def test_what_asarray_takes(backend, rng):
    logits, targets = make_logits(rng, (4, 3)), rng.integers(0, 3, 4)
    expected = nc.cross_entropy(logits, targets)
    assert nc.cross_entropy(logits.tolist(), targets.tolist()) == expected
    assert nc.cross_entropy(Series(logits), Series(targets)) == expected
    assert nc.cross_entropy(tuple(map(tuple, logits)), tuple(targets)) == expected
    loss, grad = nc.cross_entropy_and_grad(logits.tolist(), targets.tolist())
    assert loss == expected
    assert grad.shape == (4, 3)
    weighted = nc.cross_entropy(
        logits, targets, class_weight=[1.0, 1.0, 1.0], sample_weight=[1.0, 1.0, 1.0, 1.0]
    )
    assert weighted == expected
