"""NumPy arrays through the device: pieces, slots, any layout, errors half-way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import LAYOUTS, make_logits, make_targets
from exact import assert_same

pytest.importorskip("numba_cuda")

from emulated import emulated

import numba_ce as nc
from numba_ce.cuda import host
from numba_ce.cuda.driver import CudaError
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


NOTE = "numba_ce was interrupted: arrays given as `out` may be partly written"


def fails_at(gpu, monkeypatch, name, number, error):
    """Let a call of the driver fail: the `number`-th from now on, and that one only."""
    real, calls = getattr(gpu, name), itertools.count()

    def maybe(*arguments):
        if next(calls) == number:
            raise error
        return real(*arguments)

    monkeypatch.setattr(gpu, name, maybe)


def test_an_interrupted_call_says_so(rng, pieces, monkeypatch):
    """Some rows of `out` are written, the others are not, and a note says it."""
    logits, targets = make_logits(rng, (18, 10), np.float32), make_targets(rng, (18,), 10)
    out = np.full_like(logits, 7)
    with emulated() as gpu:
        fails_at(gpu, monkeypatch, "launch", 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt) as caught:
            nc.cross_entropy_and_grad(logits, targets, out=out)
    assert caught.value.__notes__ == [NOTE]
    assert (out[:3] != 7).all() and (out[-3:] == 7).all()


def test_an_error_before_the_first_piece_has_no_note(rng, pieces):
    logits, targets = make_logits(rng, (9, 10), np.float32), make_targets(rng, (9,), 10)
    out = np.full_like(logits, 7)
    with emulated(), pytest.raises(ValueError, match="temperature = 1e") as caught:
        nc.cross_entropy_and_grad(logits, targets, out=out, temperature=1e200)
    assert not hasattr(caught.value, "__notes__")
    assert (out == 7).all()


def test_nothing_is_written_after_an_error(rng, pieces, monkeypatch):
    """The device fails, and goes on failing for one slot: the error is the first one, that slot is
    not used again, and no later call writes into the arrays of this one."""
    logits, targets = make_logits(rng, (18, 10), np.float32), make_targets(rng, (18,), 10)
    out = np.full_like(logits, 7)
    with emulated() as gpu:
        real, broken = gpu.synchronize, set()

        def synchronize(stream):
            if stream in broken:
                raise CudaError("the slot is broken")
            real(stream)

        def launch(*arguments):
            if len(gpu.launches) == 4:
                broken.add(arguments[4])  # the stream: that of the first slot
                raise CudaError("the first error")
            gpu_launch(*arguments)

        gpu_launch = gpu.launch
        monkeypatch.setattr(gpu, "synchronize", synchronize)
        monkeypatch.setattr(gpu, "launch", launch)
        with pytest.raises(CudaError, match="the first error"):
            nc.cross_entropy_and_grad(logits, targets, out=out)
        monkeypatch.setattr(gpu, "launch", gpu_launch)
        before = out.copy()
        assert (out[9:] == 7).all()  # what was not yet handed over stays away
        assert len(host._idle[0]) == 1
        nc.softmax(logits)
        assert_same(out, before)


def test_memory_that_cannot_be_had_is_not_lost(rng, monkeypatch):
    logits = make_logits(rng, (9, 10), np.float32)
    with emulated() as gpu:
        for name in ("pinned", "allocate"):
            fails_at(gpu, monkeypatch, name, 0, CudaError("out of memory"))
            with pytest.raises(CudaError, match="out of memory"):
                nc.softmax(logits)
            assert not gpu.allocated and not gpu.page_locked
        small = nc.softmax(logits)
        fails_at(gpu, monkeypatch, "allocate", 0, CudaError("out of memory"))
        with pytest.raises(CudaError, match="out of memory"):
            nc.softmax(np.tile(logits, (40, 1)))
        assert_same(nc.softmax(logits), small)
        assert len(gpu.page_locked) == len(gpu.allocated)


@pytest.mark.parametrize("weights", ["rows", "classes", "Hessian"])
def test_infinite_weights_warn_of_nothing(weights):
    logits, targets = np.array([[0.0, 1.0], [2.0, 0.0], [-np.inf, 0.0]]), np.array([0, 1, 0])
    options = {
        "rows": {"sample_weight": np.array([np.inf, -np.inf, 1.0])},
        "classes": {"class_weight": [np.inf] * 2, "sample_weight": np.array([1.0, 0.0, -1.0])},
        "Hessian": {"sample_weight": np.array([np.inf, -np.inf, 0.0])},
    }[weights]

    def everything():
        if weights == "Hessian":
            return nc.cross_entropy_grad_and_hess(logits, targets, **options)
        return tuple(
            value
            for reduction in ("mean", "sum", "none")
            for value in nc.cross_entropy_and_grad(logits, targets, reduction=reduction, **options)
        )

    with emulated():
        results = everything()
    with nc.use_backend("numpy"):
        for actual, expected in zip(results, everything(), strict=True):
            finite = np.isfinite(expected)  # what 0 * inf and inf - inf give is promised nowhere
            np.testing.assert_allclose(actual[finite], expected[finite], rtol=1e-13)


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
