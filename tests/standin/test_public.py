"""The public functions through NVIDIA's bindings: a sample of every family of kernels.

The same kernels in the same interpreter: results have the bits that `tests/emulated.py` gives,
whose accuracy other tests measure.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from bits import assert_same_bits
from emulated import FakeArray, emulated
from numba import cuda

import numba_ce as nc

BF16 = np.dtype(ml_dtypes.bfloat16)


def data(shape, dtype="f4", axis=-1, seed=0):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    rows = list(shape)
    n_classes = rows.pop(axis)
    return logits, rng.integers(0, n_classes, rows)


def probabilities(targets, n_classes):
    return np.eye(n_classes, dtype=np.float32)[targets] * np.float32(0.75) + np.float32(0.01)


def on(function):
    """Called with host arrays and with what puts them where they are to be."""
    return lambda place, *arrays, **options: function(*map(place, arrays), **options)


def record(place, logits, targets, **options):
    """Loss and gradient of rows in two shards of classes."""
    n_classes = logits.shape[-1]
    half = n_classes // 2
    parts = [(place(np.ascontiguousarray(logits[:, :half])), 0)]
    parts.append((place(np.ascontiguousarray(logits[:, half:])), half))
    targets = place(targets)
    records = [
        nc.row_record(part, targets, class_offset=offset, n_classes=n_classes, **options)
        for part, offset in parts
    ]
    whole = nc.merge_records(*records)
    grads = [
        nc.grad_from_record(part, targets, whole, class_offset=offset, **options)
        for part, offset in parts
    ]
    return nc.loss_from_record(whole), *grads


EVERYTHING = {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 9.0, "temperature": 0.7}
grad = on(nc.cross_entropy_and_grad)
# (what, function, shape, dtype, options): every schedule of the two kernels, every operation
CASES = [
    ("resident, 8 threads a row", grad, (5, 10), "f4", {}),
    ("resident, a warp", grad, (3, 900), "f4", {}),
    ("resident, a block", grad, (2, 5000), "f4", {}),
    ("resident, a cluster", grad, (2, 9000), "f4", {}),
    ("resident, float16", grad, (3, 60), "f2", {"reduction": "sum"}),
    ("resident, bfloat16", grad, (3, 60), BF16, {"reduction": "sum"}),
    ("loss alone", on(nc.cross_entropy), (5, 200), "f4", {}),
    ("staged, rows of a block", grad, (9, 10), "f4", EVERYTHING),
    ("staged, float64", grad, (3, 700), "f8", {}),
    ("staged, a row of a block", grad, (2, 3000), "f4", {"z_loss": 1e-2}),
    ("from where it lies", grad, (2, 11000), "f4", {"label_smoothing": 0.1}),
    ("class axis first", grad, (6, 9), "f4", {"axis": 0}),
    ("many rows", grad, (2000, 3), "f4", {}),
    ("row axes", grad, (3, 4, 20), "f4", {"axis": 1}),
    ("Hessian", on(nc.cross_entropy_grad_and_hess), (5, 30), "f4", {}),
    ("statistics", on(nc.row_stats), (5, 30), "f4", {}),
    ("records", record, (4, 64), "f4", {"label_smoothing": 0.1}),
]


def as_host(result):
    if isinstance(result, tuple):
        return [array for part in result for array in as_host(part)]
    copy = getattr(result, "copy_to_host", None) or getattr(result, "get", None)
    return [copy() if copy else result]


def assert_as_emulated(function, arrays, options, where):
    """The stand-in gives the bits of the emulated driver, for arrays of NumPy or Numba."""

    def computed(place):
        placed = {k: place(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        return as_host(function(place, *arrays, **placed))

    with emulated() as driver:
        on_device = where == "Numba"
        expected = computed((lambda a: FakeArray(driver.gpu, a)) if on_device else np.asarray)
    with nc.use_backend("cuda"):
        found = computed(cuda.to_device if on_device else np.asarray)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a, b)
    assert all(np.isfinite(np.asarray(a, np.float64)).all() for a in found)


WHERE = pytest.mark.parametrize("where", ["NumPy", "Numba"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
@WHERE
def test_families(state, case, where):
    _, function, shape, dtype, options = case
    if where == "Numba" and dtype is BF16:
        pytest.skip("Numba has no arrays of bfloat16")
    before = state.launches
    arrays = data(shape, dtype, options.get("axis", -1))
    assert_as_emulated(function, arrays, options, where)
    assert state.launches > before


@pytest.mark.parametrize("what", ["softmax", "log_softmax", "logsumexp"])
@WHERE
def test_normalize(state, what, where):
    assert_as_emulated(on(getattr(nc, what)), data((4, 33))[:1], {}, where)


@WHERE
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_probabilities_and_reductions(state, where, reduction):
    logits, targets = data((6, 21))
    rng = np.random.default_rng(1)
    weights = {"sample_weight": rng.random(6).astype("f4"), "reduction": reduction}
    class_weight = {"class_weight": rng.random(21).astype("f4")}
    assert_as_emulated(grad, (logits, targets), weights | class_weight, where)
    assert_as_emulated(grad, (logits, probabilities(targets, 21)), weights, where)


def test_linear_layer(state):
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((6, 4)), rng.standard_normal((9, 4)), rng.integers(0, 9, 6)
    without_bias = on(lambda *a: nc.linear_cross_entropy_and_grad(*a)[:3])
    assert_as_emulated(without_bias, arrays, {}, "NumPy")


def test_out_and_in_place(state):
    logits, targets = data((5, 40))
    x, y = cuda.to_device(logits), cuda.to_device(targets)
    expected = nc.cross_entropy_and_grad(x, y)[1].copy_to_host()
    for out in (cuda.device_array_like(x), x):
        assert nc.cross_entropy_and_grad(x, y, out=out)[1] is out
        assert_same_bits(out.copy_to_host(), expected)


def test_a_bad_target_is_an_error_and_nothing_is_written(state):
    logits, targets = data((5, 40))
    targets[3] = 40
    x, y, out = (cuda.to_device(a) for a in (logits, targets, logits))
    with pytest.raises(ValueError, match="40"):
        nc.cross_entropy_and_grad(x, y, out=out)
    assert_same_bits(out.copy_to_host(), logits)
    loss = nc.cross_entropy(x, y, reduction="none", check_targets=False).copy_to_host()
    assert np.isnan(loss).tolist() == [False, False, False, True, False]


def test_many_pieces_and_nothing_leaks(state, monkeypatch):
    from numba_ce.cuda import host

    monkeypatch.setattr(host, "PIECE_BYTES", 2000)
    counts = [state.live()]
    for _ in range(2):
        assert_as_emulated(grad, data((60, 50)), {}, "NumPy")
        counts.append(state.live())
    assert counts[1] == counts[2]
    for kind in ("streams", "pinned", "allocated"):
        assert counts[1][kind] - counts[0][kind] == 2


def test_another_device_than_the_current_one(state):
    logits, targets = data((5, 40))
    expected = nc.cross_entropy_and_grad(cuda.to_device(logits), cuda.to_device(targets))
    with cuda.gpus[1]:
        x, y = cuda.to_device(logits), cuda.to_device(targets)
    found = nc.cross_entropy_and_grad(x, y)
    _, _, device = state.allocation(found[1].device_ctypes_pointer.value)
    assert device == 1
    with cuda.gpus[1]:
        for a, b in zip(as_host(found), as_host(expected), strict=True):
            assert_same_bits(a, b)
    assert cuda.current_context().device.id == 0
    with pytest.raises(ValueError, match="on CUDA device 0 and logits on 1"):
        nc.cross_entropy_and_grad(x, cuda.to_device(targets))


def test_a_stream_of_the_caller(state):
    arrays = data((5, 40))
    stream = cuda.stream()
    expected = nc.cross_entropy_and_grad(*map(cuda.to_device, arrays))
    found = nc.cross_entropy_and_grad(*(cuda.to_device(a, stream=stream) for a in arrays))
    for a, b in zip(as_host(found), as_host(expected), strict=True):
        assert_same_bits(a, b)
