"""Rows that are copied into a worker's memory and back: classes far apart, and whole lines."""

from __future__ import annotations

import numpy as np
import pytest
from bits import assert_same_bits
from cases import BFLOAT16, DTYPE_IDS, DTYPES, make_logits, make_targets

import numba_ce as nc
from numba_ce import cpu

pytestmark = pytest.mark.usefixtures("cpu")

#: (images, classes, pixels): pieces of images shorter than a line, not a multiple of one, longer
#: than a block; few and many classes, more than a tile, fewer rows than are copied together.
IMAGES = [
    (2, 3, 3001),
    (3, 21, 1003),
    (2, 40, 1100),
    (37, 33, 7),
    (5, 150, 131),
    (1, 257, 401),
    (23, 300, 5),
    (2, 1030, 67),
    (1, 5003, 35),
]
images = pytest.mark.parametrize("shape", IMAGES, ids=str)
OFFSETS = (0, 1, 3, 13)


@pytest.fixture(params=["streamed", "cached"], autouse=True)
def stores(request, monkeypatch):
    """Around the caches, as large outputs are written, and through them."""
    if request.param == "streamed":
        monkeypatch.setattr(cpu, "STREAMING_BYTES", 0)
    cpu._job.cache_clear()
    yield
    cpu._job.cache_clear()


def framed(shape, dtype, offset):
    """An array within a larger one, `offset` elements from its beginning, and what is around it."""
    size = int(np.prod(shape))
    whole = np.full(size + 64, 7, dtype)
    return whole[offset : offset + size].reshape(shape), (whole[:offset], whole[offset + size :])


def check_frame(frame):
    assert all((part == 7).all() for part in frame)


def rows_of(image):
    """The image with its classes in the last axis, side by side."""
    return np.ascontiguousarray(np.moveaxis(image, 1, -1))


@images
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_gradient_and_softmax(rng, shape, dtype):
    image = make_logits(rng, shape, dtype)
    targets = make_targets(rng, (shape[0], shape[2]), shape[1], "index")
    loss, grad = nc.cross_entropy_and_grad(rows_of(image), targets, reduction="none")
    probabilities = nc.softmax(rows_of(image))
    for offset in OFFSETS:
        out, frame = framed(shape, dtype, offset)
        found = nc.cross_entropy_and_grad(image, targets, axis=1, reduction="none", out=out)
        assert_same_bits((found[0], rows_of(out)), (loss, grad))
        nc.softmax(image, axis=1, out=out)
        assert_same_bits(rows_of(out), probabilities)
        check_frame(frame)


@images
def test_options(rng, shape):
    image = make_logits(rng, shape, np.float32)
    for kind in ("index", "probabilities"):
        dtype = np.int64 if kind == "index" else np.float32
        targets = make_targets(rng, (shape[0], shape[2]), shape[1], kind, dtype)
        there = np.ascontiguousarray(np.moveaxis(targets, -1, 1)) if targets.ndim == 3 else targets
        for options in ({}, {"label_smoothing": 0.1, "softcap": 5.0}):
            expected = nc.cross_entropy_and_grad(rows_of(image), targets, **options)
            loss, grad = nc.cross_entropy_and_grad(image, there, axis=1, **options)
            assert_same_bits((loss, rows_of(grad)), expected)


@images
def test_other_functions(rng, shape):
    image, n_classes = make_logits(rng, shape, np.float32), shape[1]
    targets = make_targets(rng, (shape[0], shape[2]), n_classes, "index")
    rows = rows_of(image)
    assert_same_bits(rows_of(nc.log_softmax(image, axis=1)), nc.log_softmax(rows))
    assert_same_bits(nc.logsumexp(image, axis=1), nc.logsumexp(rows))
    found, expected = nc.row_stats(image, targets, axis=1), nc.row_stats(rows, targets)
    for name in expected._fields:
        assert_same_bits(getattr(found, name), getattr(expected, name))
    found = nc.cross_entropy_grad_and_hess(image, targets, axis=1)
    expected = nc.cross_entropy_grad_and_hess(rows, targets)
    assert_same_bits(tuple(map(rows_of, found)), tuple(expected))


@images
def test_records(rng, shape):
    image, n_classes = make_logits(rng, shape, np.float32), shape[1]
    targets = make_targets(rng, (shape[0], shape[2]), n_classes, "index")
    found = nc.row_record(image, targets, class_offset=0, n_classes=n_classes, axis=1)
    expected = nc.row_record(rows_of(image), targets, class_offset=0, n_classes=n_classes)
    assert_same_bits(found.data, expected.data)


@pytest.mark.parametrize("n_classes", [33, 47, 64, 100, 193, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_whole_lines(rng, n_classes, dtype):
    """Outputs of which all rows lie side by side, against the same rows one call each."""
    logits = make_logits(rng, (5 * (65536 // n_classes) // 2 + 3, n_classes), dtype)
    targets = make_targets(rng, logits.shape[:1], n_classes, "index")
    apart = np.zeros((len(logits), n_classes + 1), dtype)[:, :n_classes]
    loss, _ = nc.cross_entropy_and_grad(logits, targets, reduction="none", out=apart)
    for offset in OFFSETS:
        out, frame = framed(logits.shape, dtype, offset)
        found = nc.cross_entropy_and_grad(logits, targets, reduction="none", out=out)
        assert_same_bits(found, (loss, np.ascontiguousarray(apart)))
        check_frame(frame)


def test_layouts_of_both(rng):
    """Logits in one layout, the gradient in the other; rows that are not counted."""
    shape = (3, 70, 401)
    image = make_logits(rng, shape, BFLOAT16)
    targets = make_targets(rng, (3, 401), 70, "index")
    targets[:, ::3] = -1
    options = {"ignore_index": -1, "reduction": "none"}
    loss, grad = nc.cross_entropy_and_grad(rows_of(image), targets, **options)
    out = np.zeros((3, 401, 70), BFLOAT16)
    found = nc.cross_entropy_and_grad(
        image, targets, axis=1, out=np.moveaxis(out, -1, 1), **options
    )
    assert_same_bits((found[0], out), (loss, grad))
    there = np.zeros(shape, BFLOAT16)
    nc.cross_entropy_and_grad(rows_of(image), targets, out=np.moveaxis(there, 1, -1), **options)
    assert_same_bits(rows_of(there), grad)


@pytest.mark.parametrize(("n_classes", "copied"), [(2, False), (5, False), (6, True), (24, True)])
def test_few_classes_are_not_copied(n_classes, copied):
    """Copies take longer than what they save."""
    form = (640, n_classes), (4, 2560), np.dtype(np.float32)
    fields, _ = cpu._layout((form, None, None, form, None))
    assert bool(fields["logits_far"]) is copied
    assert bool(fields["grad_far"]) is copied
