"""Tensors of torch, given to the functions for NumPy arrays: taken, or a TypeError that helps."""

from __future__ import annotations

import numpy as np
import pytest

import numba_ce as nc
from numba_ce.integrations import boosting

torch = pytest.importorskip("torch", reason="needs torch")

Z = np.linspace(-1.0, 2.0, 12, dtype=np.float32).reshape(3, 4)
Y, W, S = np.array([0, 3, 1]), np.linspace(0.5, 2.0, 4), np.array([1.0, 0.5, 2.0])
H, B = np.linspace(-1.0, 1.0, 6, dtype=np.float32).reshape(3, 2), np.ones(4, np.float32)
P = np.full((3, 4), 0.25, np.float32)
RECORD = nc.row_record(Z, Y, class_offset=0, n_classes=4)
V = H.repeat(2, axis=0)[:4]
SHARD = {"class_offset": 0}
LOSS = {"logits": Z, "targets": Y, "class_weight": W, "sample_weight": S}
LINEAR = {"hidden": H, "weight": V, "targets": Y, "bias": B, "class_weight": W, "sample_weight": S}


def objective(x, **arguments):
    return nc.multinomial_objective(n_classes=4, **arguments)(x)


def boosted(function):
    def call(labels, scores, sample_weight):
        return function("lightgbm", 4)(labels, scores, sample_weight)

    return call


# Each public function that takes arrays, with all of them
CALLS = {
    "cross_entropy": (nc.cross_entropy, LOSS),
    "cross_entropy_and_grad": (nc.cross_entropy_and_grad, LOSS),
    "probabilities": (nc.cross_entropy_and_grad, LOSS | {"targets": P}),
    "cross_entropy_grad_and_hess": (
        nc.cross_entropy_grad_and_hess,
        {"logits": Z, "targets": Y, "sample_weight": S},
    ),
    "row_stats": (nc.row_stats, {"logits": Z, "targets": Y}),
    "logsumexp": (nc.logsumexp, {"logits": Z}),
    "softmax": (nc.softmax, {"logits": Z}),
    "log_softmax": (nc.log_softmax, {"logits": Z}),
    "row_record": (lambda **a: nc.row_record(n_classes=4, **SHARD, **a), LOSS),
    "merge_records": (nc.merge_records, {"a": RECORD, "b": RECORD}),
    "loss_from_record": (nc.loss_from_record, {"record": RECORD}),
    "grad_from_record": (
        lambda **a: nc.grad_from_record(**SHARD, **a),
        LOSS | {"record": RECORD},
    ),
    "linear_cross_entropy": (nc.linear_cross_entropy, LINEAR),
    "linear_cross_entropy_and_grad": (nc.linear_cross_entropy_and_grad, LINEAR),
    "multinomial_objective": (
        objective,
        {"X": H, "y": Y, "sample_weight": S, "x": np.zeros(12)},
    ),
    "stream": (
        lambda **a: nc.stream(grad_out=np.empty(Z.shape, np.float32), **a),
        LOSS,
    ),
    "stream of blocks": (
        lambda logits, targets, sample_weight, **a: nc.stream(
            iter([logits]), [targets], sample_weight=[sample_weight], **a
        ),
        LOSS,
    ),
    "softmax_objective": (
        boosted(boosting.softmax_objective),
        {"labels": Y, "scores": Z, "sample_weight": S},
    ),
    "softmax_metric": (
        boosted(boosting.softmax_metric),
        {"labels": Y, "scores": Z, "sample_weight": S},
    ),
}
ARGUMENTS = [(name, argument) for name, (_, all_of) in CALLS.items() for argument in all_of]


def flat(result):
    """The numbers of a result as a list of arrays."""
    if isinstance(result, tuple):
        return [array for part in result if part is not None for array in flat(part)]
    return [] if isinstance(result, str) else [np.asarray(result, np.float64)]


def without_time(name, result):
    return result[:-1] if name.startswith("stream") else result


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_dense_tensor_is_taken(name, argument):
    function, arguments = CALLS[name]
    expected = without_time(name, function(**arguments))
    tensors = arguments | {argument: torch.from_numpy(arguments[argument])}
    for got, want in zip(
        flat(without_time(name, function(**tensors))), flat(expected), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def requires_grad(t):
    return (t if t.is_floating_point() else t.double()).requires_grad_()


REFUSED = {
    "gradient": (requires_grad, r"detach\(\)"),
    "parameter": (lambda t: torch.nn.Parameter(t.double()), r"detach\(\)"),
    "coo": (lambda t: t.to_sparse(), r"to_dense\(\)"),
    "csr": (lambda t: t.reshape(1, -1).to_sparse_csr(), r"to_dense\(\)"),
    "nested": (
        lambda t: torch.nested.nested_tensor([t.double().ravel()]),
        "to_padded_tensor",
    ),
    "meta": (lambda t: t.to("meta"), "on the device meta"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn that NumPy cannot read"),
    "negated": (lambda t: torch._neg_view(t.double()), r"resolve_neg\(\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
def test_what_is_refused_says_what_to_do(name, argument, kind):
    make, hint = REFUSED[kind]
    function, arguments = CALLS[name]
    tensor = make(torch.from_numpy(arguments[argument]))
    with pytest.raises(TypeError, match=rf"{argument} is a .*{hint}"):
        function(**arguments | {argument: tensor})


@pytest.mark.parametrize("kind", ["gradient", "coo", "csr", "meta"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_no_tensor_is_an_output(kind):
    tensor = REFUSED[kind][0](torch.from_numpy(Z.copy()))
    for function in (nc.softmax, lambda z, out: nc.cross_entropy_and_grad(z, Y, out=out)):
        with pytest.raises(TypeError, match="out is a "):
            function(Z, out=tensor)


@pytest.mark.parametrize("argument", LOSS)
def test_bfloat16_is_taken_where_it_lies(argument):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    given = P if argument == "targets" else LOSS[argument]
    array = given.astype(ml_dtypes.bfloat16)
    tensor = torch.from_numpy(given.T.copy().T).bfloat16()  # with strides, unless it is a vector
    expected = nc.cross_entropy_and_grad(**LOSS | {argument: array})
    got = nc.cross_entropy_and_grad(**LOSS | {argument: tensor})
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_bfloat16_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"pip install ml_dtypes.*logits\.float\(\)"):
        nc.logsumexp(torch.zeros(3, dtype=torch.bfloat16))


def test_a_list_of_tensors_that_require_a_gradient():
    with pytest.raises(TypeError, match=r"logits \(list\) cannot be made an array.*detach\(\)"):
        nc.logsumexp([torch.zeros((), requires_grad=True)])
