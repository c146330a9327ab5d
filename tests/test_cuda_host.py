"""NumPy arrays through the device: pieces, slots, any layout, errors half-way."""

from __future__ import annotations

import numpy as np
import pytest
from cases import LAYOUTS, make_logits, make_targets
from exact import assert_same

pytest.importorskip("numba_cuda")

from emulated import emulated

import numba_ce as nc
from numba_ce.cuda import host
from numba_ce.cuda.host import row_blocks


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4), (2, 3, 5), (1, 1, 9)])
@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 12, 15, 100])
def test_row_blocks(shape, most):
    """Every row once, in C order, in blocks that are not too large."""
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    blocks = [np.atleast_1d(numbers[index]).ravel() for index in row_blocks(shape, most)]
    assert_same(np.concatenate(blocks), numbers.ravel())
    assert max(map(len, blocks)) <= most


@pytest.fixture
def pieces(monkeypatch):
    """Pieces of three rows of ten float32, and so the bound on device memory."""
    monkeypatch.setattr(host, "PIECE_BYTES", 200)


def both(logits, targets, **options):
    with emulated() as gpu:
        result = nc.cross_entropy_and_grad(logits, targets, **options)
    with nc.use_backend("numpy"):
        expected = nc.cross_entropy_and_grad(logits, targets, **options)
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-6)
    return gpu


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_pieces(rng, pieces, reduction):
    logits, targets = make_logits(rng, (20, 10), np.float32), make_targets(rng, (20,), 10)
    weights = {"sample_weight": rng.uniform(0.5, 2.0, 20), "class_weight": rng.uniform(0.5, 2, 10)}
    gpu = both(logits, targets, reduction=reduction, **weights)
    assert len(gpu.launches) >= 7
    slots = sum(gpu.allocated.values())
    assert slots <= 2 * 5 * 256  # at most 256 bytes for each of five arrays in both slots


def test_two_streams_take_turns(rng, pieces):
    """A piece is started before the one before it is waited for."""
    logits, targets = make_logits(rng, (12, 10), np.float32), make_targets(rng, (12,), 10)
    gpu = both(logits, targets, reduction="sum")
    launched = [stream for what, stream in gpu.log if what == "launch"]
    assert len(set(launched)) == 2 and launched[0::2] != launched[1::2]
    for i, stream in enumerate(launched[:-2]):
        place = [n for n, entry in enumerate(gpu.log) if entry[0] == "launch"]
        between = gpu.log[place[i] : place[i + 1]]
        assert ("wait", stream) not in between


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(rng, pieces, layout):
    logits = LAYOUTS[layout](make_logits(rng, (4, 3, 10), np.float32))
    targets = make_targets(rng, (4, 3), 10, dtype=">u2")
    both(logits, targets, reduction="sum")


@pytest.mark.parametrize("axis", [0, 1])
def test_axes(rng, pieces, axis):
    logits = make_logits(rng, (6, 5, 4), np.float32)
    targets = make_targets(rng, tuple(np.delete(logits.shape, axis)), logits.shape[axis])
    both(logits, targets, reduction="sum", axis=axis)


def test_in_place_and_out(rng, pieces):
    logits, targets = make_logits(rng, (9, 10), np.float32), make_targets(rng, (9,), 10)
    with emulated():
        loss, grad = nc.cross_entropy_and_grad(logits, targets)
        copy = logits.copy()
        loss_2, same = nc.cross_entropy_and_grad(copy, targets, out=copy)
    assert same is copy
    assert_same((loss, grad), (loss_2, copy))


def test_a_bad_target_is_named_before_anything_is_written(rng, pieces):
    logits, targets = make_logits(rng, (9, 10), np.float32), make_targets(rng, (9,), 10)
    targets[8] = 10
    out = np.full_like(logits, 7)
    with emulated() as gpu, pytest.raises(ValueError, match=r"targets\[8\] = 10 is not a class"):
        nc.cross_entropy_and_grad(logits, targets, out=out)
    assert not gpu.launches
    assert (out == 7).all()


def test_slots_are_free_after_an_error(rng, pieces, monkeypatch):
    logits, targets = make_logits(rng, (9, 10), np.float32), make_targets(rng, (9,), 10)
    with emulated() as gpu:
        real = gpu.launch

        def fail(*arguments):
            if len(gpu.launches) == 2:
                raise KeyboardInterrupt
            real(*arguments)

        monkeypatch.setattr(gpu, "launch", fail)
        with pytest.raises(KeyboardInterrupt):
            nc.cross_entropy(logits, targets)
        assert len(host._idle[0]) == 2
        monkeypatch.setattr(gpu, "launch", real)
        again = nc.cross_entropy(logits, targets)
    with nc.use_backend("numpy"):
        np.testing.assert_allclose(again, nc.cross_entropy(logits, targets), rtol=1e-6)


def test_other_functions(rng, pieces):
    """Statistics, softmax, Hessian and records against the reference."""
    logits, targets = make_logits(rng, (9, 10), np.float32), make_targets(rng, (9,), 10)

    def everything():
        record = nc.row_record(logits[:, :4], targets, class_offset=0, n_classes=10)
        other = nc.row_record(logits[:, 4:], targets, class_offset=4, n_classes=10)
        merged = nc.merge_records(record, other)
        return (
            *nc.row_stats(logits, targets),
            *nc.row_stats(logits)[:4],
            nc.softmax(logits),
            nc.log_softmax(logits),
            nc.logsumexp(logits),
            *nc.cross_entropy_grad_and_hess(logits, targets, hess="xgboost"),
            nc.loss_from_record(merged),
            nc.grad_from_record(logits[:, 4:], targets, merged, class_offset=4),
        )

    with emulated():
        results = everything()
    with nc.use_backend("numpy"):
        expected = everything()
    for actual, value in zip(results, expected, strict=True):
        assert actual.dtype == value.dtype
        np.testing.assert_allclose(actual, value, rtol=2e-6, atol=1e-30)
