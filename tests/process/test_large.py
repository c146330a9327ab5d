"""Offsets beyond 2**31, and no hidden copy of the logits."""

from __future__ import annotations

import contextlib
import sys
import tracemalloc

import numba
import numpy as np
import pytest
from cases import BFLOAT16, LAYOUTS, make_logits, make_targets
from exact import assert_same

import numba_ce as nc

FAR = 2**31 + 5  # elements
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")


# ---------------------------------------------------------------- beyond 2**31 elements


def far_apart(n, axis=0, dtype=np.float16):
    """A (2, n) or (n, 2) array, stride `FAR` along `axis`; memory is committed page by page."""
    buffer = np.zeros(FAR + 2 * n, dtype)
    size = buffer.itemsize
    if axis == 0:
        return np.lib.stride_tricks.as_strided(buffer, (2, n), (FAR * size, size))
    return np.lib.stride_tricks.as_strided(buffer, (n, 2), (size, FAR * size))


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("n_classes", [10, 3000])
def test_rows_more_than_2_31_elements_apart(backend, rng, dtype, n_classes):
    plain = make_logits(rng, (2, n_classes), dtype)
    targets = np.array([3, n_classes - 1])
    expected = nc.cross_entropy_and_grad(plain, targets, reduction="none")
    logits, out = far_apart(n_classes, 0, dtype), far_apart(n_classes, 0, dtype)
    logits[...] = plain
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", out=out)
    assert grad is out
    assert_same(loss, expected[0])
    assert_same(grad, expected[1])
    assert_same(nc.logsumexp(logits), nc.logsumexp(plain))
    assert_same(nc.softmax(logits), nc.softmax(plain))
    nc.cross_entropy_and_grad(logits, targets, reduction="none", out=logits)
    assert_same(logits, expected[1])


def test_classes_more_than_2_31_elements_apart(backend, rng):
    """Classes along an axis whose stride exceeds 2**31."""
    plain = make_logits(rng, (2, 40), np.float16)
    targets = rng.integers(0, 2, 40)
    expected = nc.cross_entropy_and_grad(plain, targets, axis=0, reduction="none")
    logits, out = far_apart(40), far_apart(40)
    logits[...] = plain
    loss, grad = nc.cross_entropy_and_grad(logits, targets, axis=0, reduction="none", out=out)
    assert_same(loss, expected[0])
    assert_same(grad, expected[1])


def test_targets_and_weights_more_than_2_31_elements_apart(backend, rng):
    logits, targets = make_logits(rng, (2, 12), np.float32), np.array([3, 11])
    far_targets, far_weight = far_apart(1, dtype=np.int8)[:, 0], far_apart(1)[:, 0]
    far_targets[...], far_weight[...] = targets, [0.5, 2.0]
    loss = nc.cross_entropy(logits, far_targets, sample_weight=far_weight)
    expected = nc.cross_entropy(logits, targets, sample_weight=np.array([0.5, 2.0]))
    assert loss == expected
    probabilities = far_apart(12)
    probabilities[...] = make_targets(rng, (2,), 12, "probabilities")
    assert nc.cross_entropy(logits, probabilities) == nc.cross_entropy(
        logits, np.ascontiguousarray(probabilities)
    )


def _zeros():
    return np.zeros((1, FAR), np.float16)


def _broadcast():
    return np.broadcast_to(np.float16(0), (1, FAR))


@pytest.mark.parametrize("make", [_zeros, _broadcast])
def test_a_row_of_more_than_2_31_classes(cpu, make):
    """log(2**31 + 5), from 2**31 + 4 equal terms and the target."""
    loss = nc.cross_entropy(make(), [FAR - 1], reduction="none")
    assert loss[0] == np.float32(np.log(np.float64(FAR)))


# ---------------------------------------------------------------- no hidden copy

SMALL = 1_000_000  # bytes: some tiles per thread, far below the 8 to 32 MB of the logits


@contextlib.contextmanager
def python_memory(limit):
    """At most `limit` bytes allocated at any moment by Python and NumPy."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak} bytes"


@contextlib.contextmanager
def address_space(extra):
    """No more than `extra` bytes beyond what the process has mapped by now (kernels included)."""
    import resource

    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [-1, 0])
def test_no_copy_of_the_logits(cpu, rng, layout, dtype, axis):
    n_rows, n_classes = 1000, 4000
    shape = (n_rows, n_classes) if axis == -1 else (n_classes, n_rows)
    logits = LAYOUTS[layout](np.resize(make_logits(rng, 9973, dtype), shape))
    out = LAYOUTS[layout](np.zeros(shape, dtype))
    targets = np.arange(n_rows)

    def run():
        nc.cross_entropy(logits, targets, axis=axis)
        nc.logsumexp(logits, axis=axis)
        if out.flags.writeable:
            nc.cross_entropy_and_grad(logits, targets, axis=axis, out=out)
            nc.cross_entropy_and_grad(out, targets, axis=axis, out=out)
            nc.softmax(logits, axis=axis, out=out)

    run()  # compile
    # Where the classes are far apart each thread copies 32 rows and their gradients, and keeps two
    # lines of each class
    copies = numba.get_num_threads() * n_classes * (66 * logits.itemsize + 2 * 64)
    with python_memory(SMALL + copies):
        run()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_copy_of_the_targets(cpu, rng, layout):
    logits = np.broadcast_to(make_logits(rng, (1, 2), np.float32), (1_000_000, 2))
    index = LAYOUTS[layout](rng.integers(0, 2, 1_000_000))
    weight = LAYOUTS[layout](rng.uniform(0.5, 2, 1_000_000))
    probabilities = LAYOUTS[layout](rng.uniform(0, 1, (1_000_000, 2)))
    for targets in (index, probabilities):
        nc.cross_entropy(logits, targets, sample_weight=weight)
        with python_memory(SMALL):
            nc.cross_entropy(logits, targets, sample_weight=weight)


@linux_only
@pytest.mark.parametrize("shape", [(32768, 8192), (50_000_000, 3), (2048, 131072)], ids=str)
@pytest.mark.parametrize("axis", [-1, 0])
def test_kernels_make_no_copy_either(cpu, rng, shape, axis):
    """A gigabyte of logits behind zero strides: a copy of them would not fit."""
    n_rows, n_classes = shape
    row = make_logits(rng, (1, n_classes), np.float32)
    logits = np.broadcast_to(row, shape)
    targets = np.broadcast_to(np.int8(1), n_rows)
    expected = nc.cross_entropy(row, [1], reduction="sum")
    if axis == 0:
        logits = logits.T
    nc.cross_entropy(logits[:2000, :2000], targets[:2000], axis=axis)
    with address_space(150_000_000):
        loss = nc.cross_entropy(logits, targets, axis=axis)
    np.testing.assert_allclose(loss, expected, rtol=2e-7)
