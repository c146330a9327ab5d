"""Every input error: its type, and a message with the argument, its value and what fits."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cases import ONE_OF_EACH_KERNEL, Series

import numba_ce as nc

Z = np.zeros((4, 3), np.float32)
Y = np.zeros(4, np.int64)
P = np.full((4, 3), 1 / 3)
read_only = np.zeros((4, 3), np.float32)
read_only.flags.writeable = False


class OnDevice:
    __cuda_array_interface__: dict[str, object] = {}


# name -> arguments, keyword arguments, exception, pattern
CASES = {
    "integer logits": ((Z.astype(int), Y), {}, TypeError, "logits have dtype int64: expected"),
    "object logits": ((Z.astype(object), Y), {}, TypeError, "logits have dtype object"),
    "longdouble": ((Z.astype(np.longdouble), Y), {}, TypeError, "logits have dtype"),
    "complex": ((Z.astype(complex), Y), {}, TypeError, "logits have dtype complex128"),
    "masked": ((np.ma.masked_less(Z, 1), Y), {}, TypeError, "logits is a MaskedArray"),
    "masked targets": ((Z, np.ma.masked_less(Y, 1)), {}, TypeError, "targets is a MaskedArray"),
    "device": ((OnDevice(), Y), {}, TypeError, "logits (OnDevice) is on a CUDA device"),
    "device targets": ((Z, OnDevice()), {}, TypeError, "targets (OnDevice) is on a CUDA device"),
    "device class_weight": (
        (Z, Y),
        {"class_weight": OnDevice()},
        TypeError,
        "class_weight (OnDevice) is on a CUDA device",
    ),
    "device sample_weight": (
        (Z, Y),
        {"sample_weight": OnDevice()},
        TypeError,
        "sample_weight (OnDevice) is on a CUDA device",
    ),
    "ragged": (([[1.0], [1.0, 2.0]], [0, 0]), {}, ValueError, "logits cannot be made an array"),
    "0-d logits": ((np.float32(1), 0), {}, ValueError, "logits are 0-dimensional"),
    "None": ((None, Y), {}, TypeError, "logits have dtype object"),
    "no classes": ((Z[:, :0], Y), {}, ValueError, "no classes along axis 1"),
    "float axis": ((Z, Y), {"axis": 1.0}, TypeError, "axis = 1.0: expected an integer"),
    "axis": ((Z, Y), {"axis": 2}, np.exceptions.AxisError, "axis 2 is out of bounds"),
    "float indices": ((Z, Y.astype(float)), {}, TypeError, "targets have dtype float64: class"),
    "indices with NaN": (
        (Z, np.where(Y == 0, np.nan, Y)),
        {},
        TypeError,
        "class indices must be integers; cast them, with rows to ignore (NaN, say) as ignore_index",
    ),
    "bool targets": ((Z, Y.astype(bool)), {}, TypeError, "targets have dtype bool: expected"),
    "one-hot": ((Z, np.eye(4, 3, dtype=int)), {}, ValueError, "one-hot? cast to float"),
    "too few": ((Z, Y[:3]), {}, ValueError, "targets have shape (3,): for logits of shape (4, 3)"),
    "wrong shape": ((Z, P.T.copy()), {}, ValueError, "targets have shape (3, 4)"),
    "class_weight length": ((Z, Y), {"class_weight": np.ones(4)}, ValueError, "expected (3,)"),
    "class_weight bool": ((Z, Y), {"class_weight": Y == 0}, TypeError, "float or integer"),
    "class_weight text": ((Z, Y), {"class_weight": "ab"}, TypeError, "class_weight has dtype <U2"),
    "sample_weight": ((Z, Y), {"sample_weight": np.ones(3)}, ValueError, "sample_weight has shape"),
    "smoothing": (
        (Z, Y),
        {"label_smoothing": 1.5},
        ValueError,
        "label_smoothing = 1.5: expected 0",
    ),
    "smoothing NaN": ((Z, Y), {"label_smoothing": np.nan}, ValueError, "label_smoothing = nan"),
    "smoothing text": ((Z, Y), {"label_smoothing": "a"}, TypeError, "label_smoothing = 'a' is not"),
    "smoothing bool": ((Z, Y), {"label_smoothing": True}, TypeError, "label_smoothing = True"),
    "z_loss": ((Z, Y), {"z_loss": -1.0}, ValueError, "z_loss = -1.0: expected"),
    "z_loss inf": ((Z, Y), {"z_loss": np.inf}, ValueError, "z_loss = inf"),
    "softcap": (
        (Z, Y),
        {"softcap": 0.0},
        ValueError,
        "softcap = 0.0: expected a finite softcap > 0",
    ),
    "temperature": ((Z, Y), {"temperature": 0}, ValueError, "temperature = 0.0: expected"),
    "temperature None": ((Z, Y), {"temperature": None}, TypeError, "temperature = None is not"),
    "ignore_index": ((Z, Y), {"ignore_index": 1.5}, TypeError, "ignore_index = 1.5: expected"),
    "ignore_index with probabilities": (
        (Z, P),
        {"ignore_index": 1},
        ValueError,
        "ignore_index = 1",
    ),
    "check_targets": ((Z, Y), {"check_targets": 1}, TypeError, "check_targets = 1: expected True"),
    "z_loss beyond floats": ((Z, Y), {"z_loss": 10**5000}, ValueError, "z_loss is an integer"),
    "reduction array": (
        (Z, Y),
        {"reduction": np.array(["sum", "none"])},
        ValueError,
        "reduction = array(",
    ),
    "reduction None": ((Z, Y), {"reduction": None}, ValueError, "reduction = None: expected"),
    "reduction": ((Z, Y), {"reduction": "avg"}, ValueError, "reduction = 'avg': expected 'mean'"),
    "bad target": ((Z, Y + 3), {}, ValueError, "targets[0] = 3 is not a class index"),
}
OUT_CASES = {
    "list": ([[0.0] * 3] * 4, TypeError, "out is a list: expected a NumPy array"),
    "masked": (np.ma.zeros((4, 3), np.float32), TypeError, "out is a MaskedArray"),
    "dtype": (np.zeros((4, 3)), ValueError, "out has dtype float64: expected float32"),
    "shape": (np.zeros((3, 4), np.float32), ValueError, "out has shape (3, 4): expected (4, 3)"),
    "read-only": (read_only, ValueError, "out is read-only"),
}


def skip_what_cuda_can_read(name, backend):
    if backend == "cuda" and name.startswith("device"):
        pytest.skip("what is on a device is read there")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("function", [nc.cross_entropy, nc.cross_entropy_and_grad])
def test_bad_arguments(backend, function, name):
    skip_what_cuda_can_read(name, backend)
    arguments, options, error, message = CASES[name]
    with pytest.raises(error, match=re.escape(message)):
        function(*arguments, **options)


@pytest.mark.parametrize("name", OUT_CASES)
def test_bad_out(backend, name):
    out, error, message = OUT_CASES[name]
    with pytest.raises(error, match=re.escape(message)):
        nc.cross_entropy_and_grad(Z, Y, out=out)


def test_overlapping_out(backend):
    strided = np.lib.stride_tricks.as_strided(np.zeros(20, np.float32), (4, 3), (4, 4))
    buffer = np.zeros((5, 3), np.float32)
    with pytest.raises(ValueError, match="overlap each other"):
        nc.cross_entropy_and_grad(Z, Y, out=strided)
    with pytest.raises(ValueError, match="out overlaps logits"):
        nc.cross_entropy_and_grad(buffer[:4], Y, out=buffer[1:])
    with pytest.raises(ValueError, match="out overlaps logits"):
        nc.cross_entropy_and_grad(buffer[:4], Y, out=buffer[3::-1])
    probabilities = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="out overlaps targets"):
        nc.cross_entropy_and_grad(Z, probabilities, out=probabilities)
    half = np.zeros((4, 6), np.float16)
    with pytest.raises(ValueError, match="out overlaps logits"):
        nc.cross_entropy_and_grad(half[:, :3], Y, out=half.view(np.float32))


@pytest.mark.parametrize("name", ["targets", "class_weight", "sample_weight"])
@pytest.mark.parametrize("lend", [np.asarray, Series])
def test_out_overlaps_what_is_not_an_array(backend, lend, name):
    """Refused before anything is written, also if the argument only lends its memory."""
    shape = {"targets": (4, 3), "class_weight": (3,), "sample_weight": (4,)}[name]
    memory = np.full(12, 0.25)
    arguments = {"targets": Y, name: lend(memory[: np.prod(shape)].reshape(shape))}
    if lend is Series and name != "targets":
        arguments[name].dtype = memory.dtype  # as a Series has
    with pytest.raises(ValueError, match=f"out overlaps {name}"):
        nc.cross_entropy_and_grad(Z.astype(float), out=memory.reshape(4, 3), **arguments)
    assert (memory == 0.25).all()


# Arguments every function with these parameters shares; logits and targets come by name
ROW_FUNCTIONS = {
    "cross_entropy": (nc.cross_entropy, {}),
    "cross_entropy_and_grad": (nc.cross_entropy_and_grad, {}),
    "cross_entropy_grad_and_hess": (nc.cross_entropy_grad_and_hess, {}),
    "row_stats": (nc.row_stats, {}),
    "row_record": (nc.row_record, {"class_offset": 0, "n_classes": 3}),
    "grad_from_record": (
        nc.grad_from_record,
        {"class_offset": 0, "record": np.tile([0.0, 1, 0, 1, 0, 0, 0, 1, 3], (4, 1))},
    ),
}
SHARED = (
    "integer logits",
    "object logits",
    "longdouble",
    "complex",
    "masked",
    "masked targets",
    "device",
    "device targets",
    "0-d logits",
    "float axis",
    "axis",
    "float indices",
    "bool targets",
    "one-hot",
    "too few",
    "wrong shape",
    "bad target",
)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("function", ROW_FUNCTIONS)
def test_every_function_checks_alike(backend, function, name):
    skip_what_cuda_can_read(name, backend)
    call, needed = ROW_FUNCTIONS[function]
    (logits, targets), options, error, message = CASES[name]
    with pytest.raises(error, match=re.escape(message)):
        call(logits, targets, **needed, **options)


@pytest.mark.parametrize("function", ["row_record", "grad_from_record"])
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case[1] and "reduc" not in n])
def test_the_record_functions_check_the_options(backend, function, name):
    skip_what_cuda_can_read(name, backend)
    call, needed = ROW_FUNCTIONS[function]
    arguments, options, error, message = CASES[name]
    with pytest.raises(error, match=re.escape(message)):
        call(*arguments, **needed, **options)


@pytest.mark.parametrize("value", [2**70, -(2**70), 2**63, None])
@pytest.mark.parametrize("dtype", [np.int8, np.uint64])
def test_an_ignore_index_beyond_int64_matches_nothing(backend, dtype, value):
    targets = np.array([0, 1, 2, 1], dtype)
    assert nc.cross_entropy(Z, targets, ignore_index=value) == nc.cross_entropy(Z, targets)


def test_in_place_is_the_identical_view(backend):
    logits = Z.copy()
    _, grad = nc.cross_entropy_and_grad(logits, Y, out=logits[:])
    assert np.shares_memory(grad, logits)


def test_float32_gradient_of_16_bit_logits(backend):
    _, grad = nc.cross_entropy_and_grad(Z.astype(np.float16), Y, out=np.zeros((4, 3), np.float32))
    assert grad.dtype == np.float32


def test_other_functions(backend):
    with pytest.raises(ValueError, match="hess = 'full': expected 'diagonal'"):
        nc.cross_entropy_grad_and_hess(Z, Y, hess="full")
    with pytest.raises(ValueError, match=r"hess = array\("):
        nc.cross_entropy_grad_and_hess(Z, Y, hess=np.array(["diagonal", "xgboost"]))
    with pytest.raises(TypeError, match="out is a ndarray: expected a pair"):
        nc.cross_entropy_grad_and_hess(Z, Y, out=Z.copy())
    same = Z.copy()
    with pytest.raises(ValueError, match=r"out\[1\] overlaps out\[0\]"):
        nc.cross_entropy_grad_and_hess(Z, Y, out=(same, same))
    with pytest.raises(TypeError, match="targets are probabilities"):
        nc.row_stats(Z, P)
    for function in (nc.logsumexp, nc.softmax, nc.log_softmax):
        with pytest.raises(TypeError, match="logits have dtype complex"):
            function(Z * 1j)
        with pytest.raises(np.exceptions.AxisError):
            function(Z, axis=-3)
    for function in (nc.softmax, nc.log_softmax):
        with pytest.raises(ValueError, match="out is read-only"):
            function(Z, out=read_only)


def test_records(backend):
    with pytest.raises(ValueError, match="class_offset = 1: a shard of 3 of 3 classes"):
        nc.row_record(Z, Y, class_offset=1, n_classes=3)
    with pytest.raises(TypeError, match=r"n_classes = 3\.5: expected an integer"):
        nc.row_record(Z, Y, class_offset=0, n_classes=3.5)
    with pytest.raises(ValueError, match=r"a has shape \(2, 9\) and b \(3, 9\)"):
        nc.merge_records(np.zeros((2, 9)), np.zeros((3, 9)))
    with pytest.raises(TypeError, match="a has dtype int64"):
        nc.merge_records(np.zeros((2, 9), int), np.zeros((2, 9)))
    with pytest.raises(ValueError, match=r"b has shape \(2, 8\)"):
        nc.merge_records(np.zeros((2, 9)), np.zeros((2, 8)))
    with pytest.raises(ValueError, match=r"record has shape \(9,\): expected \(4, 9\)"):
        nc.grad_from_record(Z, Y, np.zeros(9), class_offset=0)


def test_lists_and_scalars_are_arrays(backend):
    loss, grad = nc.cross_entropy_and_grad([[1.0, 2.0], [3.0, 4.0]], [0, 1])
    assert loss.dtype == grad.dtype == np.float64
    assert nc.cross_entropy([1.0, 2.0], 1) == nc.cross_entropy(np.array([1.0, 2.0]), np.int8(1))
    assert nc.cross_entropy(np.zeros((0, 3)), [], reduction="sum") == 0


@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("n_classes", ONE_OF_EACH_KERNEL)
def test_scales_that_the_kernels_can_hold(name, n_classes):
    """An error where float32 constants would overflow, and the reference's result up to there."""
    logits, targets = np.linspace(-2, 2, n_classes, dtype=np.float32)[None], [1]
    for value in (1e-39, 1e39):
        message = re.escape(f"{name} = {value}: expected 8e-37 <= {name} <= 1e+36")
        with pytest.raises(ValueError, match=message):
            nc.cross_entropy(logits, targets, **{name: value})
    for value in (1e-36, 1e36):
        loss, grad = nc.cross_entropy_and_grad(logits, targets, **{name: value})
        with nc.use_backend("numpy"):
            expected, expected_grad = nc.cross_entropy_and_grad(logits, targets, **{name: value})
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (3, 4, 0), (0, 2, 3)])
def test_empty_out(backend, shape):
    """Nothing overlaps in an array without elements, whatever its strides."""
    logits = np.zeros(shape)
    out = np.lib.stride_tricks.as_strided(np.zeros(shape), shape, (0,) * len(shape))
    assert nc.softmax(logits, out=out) is out
    if shape[-1]:
        targets = np.zeros(shape[:-1], int)
        assert nc.cross_entropy_and_grad(logits, targets, out=out)[1] is out


@pytest.mark.parametrize("value", [True, np.bool_(False), 1.0, [1], np.array([1, 2]), "1", None])
def test_integers(backend, value):
    """Whatever is not one integer is a TypeError that names the argument."""
    for name, call in {
        "axis": lambda: nc.cross_entropy(Z, Y, axis=value),
        "class_offset": lambda: nc.row_record(Z, Y, class_offset=value, n_classes=3),
        "n_classes": lambda: nc.row_record(Z, Y, class_offset=0, n_classes=value),
        "chunk_rows": lambda: nc.linear_cross_entropy(P, P, [0, 1, 2, 3], chunk_rows=value),
    }.items():
        if name == "chunk_rows" and value is None:
            continue
        with pytest.raises(TypeError, match=rf"{name} = .*: expected an integer"):
            call()
    if value is not None:
        with pytest.raises(TypeError, match=r"ignore_index = .*: expected an integer or None"):
            nc.cross_entropy(Z, Y, ignore_index=value)
    rows = np.zeros((0, 3))
    record = nc.row_record(rows, [], class_offset=0, n_classes=3)
    with pytest.raises(TypeError, match="class_offset = "):
        nc.grad_from_record(rows, [], record, class_offset=value)


@pytest.mark.parametrize("axis", [2, -3, 2**31, -(2**31), 2**63, 10**30, -(10**30)])
def test_any_axis_out_of_range(backend, axis):
    for call in (nc.logsumexp, nc.softmax, lambda z, axis: nc.cross_entropy(z, Y, axis=axis)):
        with pytest.raises(np.exceptions.AxisError, match=f"axis {axis} is out of bounds"):
            call(Z, axis=axis)


def test_weights_that_are_no_floats(backend):
    for weight in ([10**400] * 3, [None] * 3, ["1", "2", "3"], [1j] * 3, [True] * 3):
        with pytest.raises(TypeError, match="class_weight has dtype"):
            nc.cross_entropy(Z, Y, class_weight=weight)
    with pytest.raises(ValueError, match="class_weight cannot be made an array"):
        nc.cross_entropy(Z, Y, class_weight=[[1.0], [1.0, 2.0]])
    weighted = nc.cross_entropy(Z, Y, class_weight=[1, 2, 3])
    assert weighted == nc.cross_entropy(Z, Y, class_weight=np.array([1.0, 2.0, 3.0]))


def test_class_weights_beyond_float32_are_infinite_without_a_warning(backend):
    assert np.isinf(nc.cross_entropy(Z, Y, class_weight=[1e300] * 3, reduction="sum"))
    nc.cross_entropy_and_grad(Z, Y, class_weight=[1e300] * 3, label_smoothing=0.5)


def test_messages_are_short(backend):
    with pytest.raises(TypeError, match=r"temperature = .{100,210}\.\.\. is not a number"):
        nc.cross_entropy(Z, Y, temperature=[0.5] * 10**5)
    with pytest.raises(TypeError, match=r"keepdims = .*: expected True or False"):
        nc.logsumexp(Z, keepdims=np.zeros(2))
    with pytest.raises(ValueError, match="n_classes = <int>: expected at least 3"):
        nc.row_record(Z, Y, class_offset=0, n_classes=-(10**5000))


@pytest.mark.parametrize("n_classes", [0, -1, 2**31, 2**62, 10**30])
def test_numbers_of_classes_of_an_objective(n_classes):
    with pytest.raises(ValueError, match=f"n_classes = {n_classes}: expected at least 1"):
        nc.multinomial_objective(P, Y, n_classes)
    with pytest.raises(TypeError, match="l2 = 'a' is not a number"):
        nc.multinomial_objective(P, Y, 3, l2="a")
