"""After an exception `out` holds what it held, or a note on the exception says that it does not."""

from __future__ import annotations

import numpy as np
import pytest
from bits import assert_same_bits
from cases import make_logits, make_targets

import numba_ce as nc
from numba_ce.cpu.run import threads

SHAPES = [(3000, 10), (200, 700)]
UNTOUCHED = 7.0


def make_calls(rng, shape, dtype):
    """{name: (number of outputs, function of outputs and targets)} for all that take outputs."""
    z, t = make_logits(rng, shape, dtype), make_targets(rng, shape[:1], shape[1], "probabilities")
    y = rng.integers(0, shape[1], shape[0])
    with nc.use_backend("numpy"):
        record = nc.row_record(z, y, class_offset=0, n_classes=shape[1])
    s = rng.uniform(0.5, 2.0, shape[0])

    def loss(out, targets=y, **options):
        return nc.cross_entropy_and_grad(z, targets, out=out[0], **options)

    return {
        "mean": (1, loss),
        "none": (1, lambda out, targets=y: loss(out, targets, reduction="none")),
        "options": (1, lambda out, targets=y: loss(out, targets, sample_weight=s, softcap=3.0)),
        "probabilities": (1, lambda out, targets=y: loss(out, t)),
        "hess": (2, lambda out, targets=y: nc.cross_entropy_grad_and_hess(z, targets, out=out)),
        "softmax": (1, lambda out, targets=y: nc.softmax(z, out=out[0])),
        "log_softmax": (1, lambda out, targets=y: nc.log_softmax(z, axis=0, out=out[0])),
        "record": (
            1,
            lambda out, targets=y: nc.grad_from_record(
                z, targets, record, class_offset=0, out=out[0]
            ),
        ),
    }, y


def outputs(count, shape, dtype):
    return [np.full(shape, UNTOUCHED, dtype) for _ in range(count)]


def is_untouched(out):
    return all((array == UNTOUCHED).all() for array in out)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("serial", [True, False])
def test_bad_target_in_the_last_row(backend, rng, shape, serial):
    calls, y = make_calls(rng, shape, np.float32)
    y[-1] = shape[1]
    for name in ("mean", "none", "options", "hess", "record"):
        count, call = calls[name]
        out = outputs(count, shape, np.float32)
        message = rf"targets\[{shape[0] - 1}\] = {shape[1]} "
        context = nc.serial() if serial else nc.use_backend(backend)
        with context, pytest.raises(ValueError, match=message):
            call(out, y)
        assert is_untouched(out), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_runs_out(cpu, rng, shape, dtype, monkeypatch):
    """At the first allocation, the second, and so on, until the call goes through."""
    calls, _ = make_calls(rng, shape, dtype)
    for name, (count, call) in calls.items():
        wanted = outputs(count, shape, dtype)
        call(wanted)
        for granted in range(100):
            out, left = outputs(count, shape, dtype), [granted]

            def failing(function, left=left):
                def allocate(*args, **kwargs):
                    if left[0] == 0:
                        raise MemoryError("no memory is left")
                    left[0] -= 1
                    return function(*args, **kwargs)

                return allocate

            with monkeypatch.context() as patch:
                for function in ("empty", "zeros", "array", "empty_like", "full"):
                    patch.setattr(np, function, failing(getattr(np, function)))
                try:
                    call(out)
                except MemoryError as error:
                    said = any("partly written" in n for n in getattr(error, "__notes__", ()))
                else:
                    break
            assert said or is_untouched(out), f"{name}: written after {granted} allocations"
        assert granted > 0, f"{name} allocates nothing: the test tests nothing"
        assert_same_bits(tuple(out), tuple(wanted))


def test_an_interrupted_call_says_so(cpu, rng, monkeypatch):
    """Between two slices; the rows of the slices that were done are written."""
    calls, _ = make_calls(rng, (3000, 10), np.float32)
    monkeypatch.setattr(threads, "FIRST_SLICE_CLASSES", 1024 * 42)
    run_slice, slices = threads._run_slice, []

    def interrupted(*arguments):
        if len(slices) == 1:
            raise KeyboardInterrupt
        slices.append(1)
        run_slice(*arguments)

    monkeypatch.setattr(threads, "_run_slice", interrupted)
    for name in ("softmax", "mean"):
        count, call = calls[name]
        out = outputs(count, (3000, 10), np.float32)
        slices.clear()
        with pytest.raises(KeyboardInterrupt) as caught:
            call(out)
        assert caught.value.__notes__ == [
            "numba_ce was interrupted: arrays given as `out` may be partly written"
        ]
        if name == "softmax":
            assert (out[0][:1024] != UNTOUCHED).all() and (out[0][1024:] == UNTOUCHED).all()


class BreaksOff:
    """An array in chunks of ten rows, of which only some can be read."""

    def __init__(self, array, readable):
        self.array, self.readable = array, readable
        self.shape, self.dtype, self.chunks = array.shape, array.dtype, (10, array.shape[1])

    def __getitem__(self, index):
        if index[0].stop > self.readable:
            raise OSError("disk gone")
        return self.array[index]


def test_a_stream_that_breaks_off_says_so(backend, rng):
    z, y = make_logits(rng, (100, 5), np.float32), rng.integers(0, 5, 100)
    grad = np.full_like(z, UNTOUCHED)
    with pytest.raises(OSError, match="disk gone") as caught:
        nc.stream(BreaksOff(z, 50), y, grad_out=grad)
    assert ["grad_out may be partly written" in note for note in caught.value.__notes__] == [True]
    y[-1] = 5
    grad = np.full_like(z, UNTOUCHED)
    with pytest.raises(ValueError, match=r"targets\[99\] = 5 "):
        nc.stream(BreaksOff(z, 100), y, grad_out=grad)
    assert is_untouched([grad])
