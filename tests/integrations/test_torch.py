"""The drop-in against torch's own function and autograd's finite differences."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
import torch.nn.functional as F  # noqa: E402, N812

from numba_ce.integrations import _autograd  # noqa: E402
from numba_ce.integrations import torch as integration  # noqa: E402

cross_entropy = integration.cross_entropy
SHAPES = [(7,), (5, 7), (3, 7, 4), (2, 7, 3, 2)]
OPTIONS = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"ignore_index": 1},
    {"label_smoothing": 0.2},
    {"weight": True, "label_smoothing": 0.1, "ignore_index": 2},
    {"weight": True, "reduction": "none"},
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(params=["small", "recomputed"])
def path(request, monkeypatch):
    if request.param == "recomputed":
        monkeypatch.setattr(integration, "SMALL", 0)


def make(rng, shape, kind="index", dtype=torch.float64):
    axis = 0 if len(shape) == 1 else 1
    logits = torch.tensor(rng.standard_normal(shape) * 3, dtype=dtype)
    if kind == "index":
        target = torch.tensor(rng.integers(0, 7, shape[:axis] + shape[axis + 1 :]))
        target.view(-1)[0] = 3  # at least one that no test ignores
    else:
        target = torch.softmax(torch.tensor(rng.standard_normal(shape)), axis).to(dtype)
    return logits, target


def options_for(options, rng, dtype=torch.float64):
    options = dict(options)
    if "weight" in options:
        options["weight"] = torch.tensor(rng.uniform(0.5, 2, 7), dtype=dtype)
    return options


def both(logits, target, options, upstream=None):
    """(loss, gradient) of ours and of torch."""
    results = []
    for function in (cross_entropy, F.cross_entropy):
        z = logits.detach().clone().requires_grad_()
        loss = function(z, target, **options)
        loss.backward(torch.ones_like(loss) if upstream is None else upstream)
        results.append((loss.detach(), z.grad))
    return results


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_agrees_with_torch(rng, path, shape, options, kind):
    logits, target = make(rng, shape, kind)
    options = options_for(options, rng)
    if kind == "probabilities":
        options.pop("ignore_index", None)
    shape_of_loss = F.cross_entropy(logits, target, **options).shape
    upstream = torch.tensor(rng.standard_normal(tuple(shape_of_loss)))
    (loss, grad), (expected, expected_grad) = both(logits, target, options, upstream)
    assert loss.shape == expected.shape and loss.dtype == expected.dtype
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(logits, target, **options), loss)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"weight": True}, {"reduction": "none"}], ids=str)
def test_dtypes(rng, path, dtype, options):
    logits, target = make(rng, (5, 7), dtype=dtype)
    options = options_for(options, rng, dtype)
    (loss, grad), (expected, expected_grad) = both(logits, target, options)
    assert loss.dtype == expected.dtype == grad.dtype == dtype
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=rtol / 4)
    torch.testing.assert_close(grad, expected_grad, rtol=8 * rtol, atol=rtol / 100)


def test_probabilities_of_16_bits(rng, path):
    logits, target = make(rng, (5, 7), "probabilities", torch.bfloat16)
    (loss, grad), (expected, expected_grad) = both(logits, target, {})
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_gradcheck(rng, path, options, kind):
    logits, target = make(rng, (3, 7, 2), kind)
    options = options_for(options, rng)
    if kind == "probabilities":
        options.pop("ignore_index", None)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, target, **options), logits)


def test_strides_are_used_in_place(rng, path):
    logits, target = make(rng, (6, 7))
    expected = both(logits, target, {})[1]
    for view in (logits.T.contiguous().T, torch.stack([logits, logits], -1)[..., 0]):
        assert _autograd.array_of(view, "input").ctypes.data == view.data_ptr()
        z = view.detach().requires_grad_()
        loss = cross_entropy(z, target)
        (grad,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close((loss.detach(), grad), expected)


def test_two_backward_passes_and_confident_rows(path):
    z = torch.tensor([[30.0, 0.0, 0.0]], requires_grad=True)
    loss = cross_entropy(z, torch.tensor([0]))
    loss.backward(retain_graph=True)
    first = z.grad.clone()
    loss.backward()
    torch.testing.assert_close(z.grad, 2 * first, rtol=0, atol=0)
    expected = np.log1p(2 * np.exp(-30.0))
    np.testing.assert_allclose([loss.item(), -first[0, 0].item()], expected, rtol=1e-6)


def test_each_backward_pass_gets_a_gradient_of_its_own(path):
    """The kept one is given away without a copy, and made once more if it is asked for again."""
    z = torch.tensor([[3.0, 0.0], [1.0, 2.0]], requires_grad=True)
    loss = cross_entropy(z, torch.tensor([0, 0]))
    (first,) = torch.autograd.grad(3 * loss, z, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, z)
    assert first.data_ptr() != second.data_ptr()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(
        second, torch.autograd.grad(3 * F.cross_entropy(z, torch.tensor([0, 0])), z)[0]
    )
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_ignored_rows(path):
    z = torch.zeros(2, 3)
    z[0] = torch.nan
    z.requires_grad_()
    loss = cross_entropy(z, torch.tensor([-100, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(3))
    assert not z.grad[0].any() and z.grad[1].any()
    z.grad = None
    loss = cross_entropy(z, torch.tensor([-100, -100]))
    loss.backward()
    assert loss.isnan() and not z.grad.any()


def test_only_the_record_is_kept(rng, monkeypatch):
    """Nothing as large as the logits hangs on the graph but the logits."""
    monkeypatch.setattr(integration, "SMALL", 0)
    logits, target = make(rng, (5, 7))
    loss = cross_entropy(logits.requires_grad_(), target)
    *kept, weight = loss.grad_fn.saved_tensors
    assert [t.data_ptr() for t in kept] == [logits.data_ptr(), target.data_ptr()]
    assert weight is None
    assert loss.grad_fn.kept.shape == (5, 9)


@pytest.mark.parametrize("n_rows", [5, 600])
@pytest.mark.parametrize("changed", ["input", "target", "weight"])
def test_what_was_changed_before_the_backward_pass_is_found(n_rows, changed):
    z = torch.randn(n_rows, 1000, requires_grad=True)
    tensors = {
        "input": z * 1.0,
        "target": torch.arange(n_rows),
        "weight": torch.linspace(0.5, 2.0, 1000),
    }
    loss = cross_entropy(**tensors)
    tensors[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_signature_and_module(rng):
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
        for function in (cross_entropy, F.cross_entropy)
    )
    assert ours == theirs
    logits, target = make(rng, (5, 7))
    options = options_for({"weight": True, "label_smoothing": 0.1}, rng)
    module = integration.CrossEntropyLoss(**options)
    torch.testing.assert_close(module(logits, target), F.cross_entropy(logits, target, **options))
    with pytest.warns(UserWarning, match="size_average"):
        old = cross_entropy(logits, target, size_average=False)
    torch.testing.assert_close(old, F.cross_entropy(logits, target, reduction="sum"))


BAD = {
    "rows": lambda z, y: (z, y[:-1], {}),
    "class": lambda z, y: (z, torch.full_like(y, 7), {}),
    "negative": lambda z, y: (z, torch.full_like(y, -3), {}),
    "integers": lambda z, y: (z.long(), y, {}),
    "weight": lambda z, y: (z, y, {"weight": torch.ones(3)}),
    "reduction": lambda z, y: (z, y, {"reduction": "avg"}),
    "smoothing": lambda z, y: (z, y, {"label_smoothing": 2.0}),
    "not a tensor": lambda z, y: (z, [1], {}),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_those_of_torch(rng, path, name):
    logits, target = make(rng, (5, 7))
    logits, target, options = BAD[name](logits, target)
    with pytest.raises(Exception) as theirs:
        F.cross_entropy(logits, target, **options)
    with pytest.raises(theirs.type) as ours:
        cross_entropy(logits, target, **options)
    assert str(ours.value) == str(theirs.value)


def test_what_only_torch_supports(rng):
    logits, target = make(rng, (5, 7), "probabilities")
    with pytest.raises(NotImplementedError, match="target requires a gradient"):
        cross_entropy(logits, target.requires_grad_())


def test_compiled(rng):
    """A graph break and no warning; in a process of its own, for the compiler is slow to import."""
    code = """
import warnings
import torch
from numba_ce.integrations.torch import cross_entropy
warnings.filterwarnings("error", "Dynamo")
@torch.compile(backend="eager")
def f(x, y):
    return cross_entropy(x * 2, y) * 3
x, y = torch.arange(12.0).reshape(3, 4).requires_grad_(), torch.tensor([0, 1, 2])
f(x, y).backward()
got, x.grad = x.grad, None
(torch.nn.functional.cross_entropy(x * 2, y) * 3).backward()
torch.testing.assert_close(got, x.grad)
f(x, y).backward()
print(cross_entropy.__module__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "numba_ce.integrations.torch", result.stderr
