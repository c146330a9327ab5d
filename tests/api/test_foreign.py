"""Tensors of torch, given to the functions for NumPy arrays: taken, or a TypeError that helps."""

from __future__ import annotations

import numpy as np
import pytest
from public_calls import ARGUMENTS, CALLS, LOSS, P, Y, Z

import numba_ce as nc

torch = pytest.importorskip("torch", reason="needs torch")


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
