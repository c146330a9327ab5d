"""The drop-in under autocast, torch.func and derivatives of second order."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
import torch.nn.functional as F  # noqa: E402, N812
from torch.autograd import functional, gradcheck, gradgradcheck  # noqa: E402
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap  # noqa: E402

from numba_ce.integrations import torch as integration  # noqa: E402

# torch compiles its own rules of the forward mode so
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
cross_entropy = integration.cross_entropy
REDUCTIONS = ["mean", "sum", "none"]
OPTIONS = [
    {},
    {"ignore_index": 1},
    {"label_smoothing": 0.2},
    {"weight": True},
    {"weight": True, "label_smoothing": 0.1, "ignore_index": 2},
    {"label_smoothing": 1.0},
]


@pytest.fixture(params=["small", "recomputed"])
def path(request, monkeypatch):
    if request.param == "recomputed":
        monkeypatch.setattr(integration, "SMALL", 0)


def make(rng, options, kind="index", shape=(4, 5), dtype=torch.float64):
    """Logits, target and options; class indices hold one that every option counts, and 1 and 2."""
    axis, options = min(1, len(shape) - 1), dict(options)
    logits = torch.tensor(rng.standard_normal(shape) * 2, dtype=dtype)
    rows = shape[:axis] + shape[axis + 1 :]
    target = torch.tensor(rng.integers(0, 5, rows))
    target.view(-1)[:3] = torch.tensor([3, 1, 2])[: target.numel()]
    if kind == "probabilities":
        target = torch.tensor(rng.random(shape), dtype=dtype)  # that do not sum to 1
        options.pop("ignore_index", None)
    if options.get("weight"):
        options["weight"] = torch.tensor(rng.uniform(0.5, 2, 5), dtype=dtype)
    return logits, target, options


def check(got, expected, rtol=1e-10):
    torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-14)


# ---------------------------------------------------------------- the second derivative


@pytest.mark.parametrize("shape", [(5,), (2, 5, 3)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_gradgradcheck(rng, path, shape, reduction, options, kind):
    logits, target, options = make(rng, options, kind, shape)
    function = partial(cross_entropy, target=target, reduction=reduction, **options)
    z = logits.requires_grad_()
    assert gradcheck(function, z, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, z, check_fwd_over_rev=True, fast_mode=True)


def test_a_penalty_on_the_gradient(path):
    """The upstream needs no gradient: what was dropped without a word."""
    a, w = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5), torch.eye(5).double()
    y, results = torch.tensor([0, 1, 2, 3]), []
    for function in (cross_entropy, F.cross_entropy):
        x, weight = a.clone().requires_grad_(), w.clone().requires_grad_()
        loss = function(x @ weight, y)
        (g,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + g.pow(2).sum()).backward()
        results.append((weight.grad, x.grad))
    check(*results)


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_hessian_of_torch_autograd(rng, path, vectorize, options):
    z, y, options = make(rng, options)
    ours, theirs = (
        functional.hessian(lambda z, f=f: f(z, y, **options), z, vectorize=vectorize)
        for f in (cross_entropy, F.cross_entropy)
    )
    assert theirs.abs().max() > 0.01 or options.get("label_smoothing") == 1.0
    check(ours, theirs)


def second(function, z, y, v, **options):
    z = z.clone().requires_grad_()
    loss = function(z, y, reduction="sum", **options)
    (g,) = torch.autograd.grad(loss, z, create_graph=True)
    return torch.autograd.grad(g, z, v)[0]


def test_masked_ignored_and_spoilt_rows(rng, path):
    z, y, _ = make(rng, {}, shape=(5, 5))
    v = torch.tensor(rng.standard_normal((5, 5)))
    y[:] = torch.tensor([0, -100, 2, 3, 1])
    plain = z.clone()
    z[0, 3] = -torch.inf  # a masked class
    z[1] = torch.nan  # an ignored row
    z[2, 0] = torch.nan
    z[3, 3] = -torch.inf  # the target: the loss is infinite, the gradient is not
    got = second(cross_entropy, z, y, v)
    assert got[0, 3] == 0 and not got[1].any() and got[2].isnan().all()
    assert got[3, 3] == 0
    kept = [0, 1, 2, 4]
    for row, classes in ((0, kept), (3, [0, 1, 2, 4]), (4, list(range(5)))):
        p = plain[row, classes].softmax(0)
        expected = p * (v[row, classes] - p @ v[row, classes])
        check(got[row, classes], expected)
    none = torch.full_like(y, -100)
    z.requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(z, none), z, create_graph=True)
    assert not torch.autograd.grad(g, z, v)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_confident_row_keeps_its_digits(path, dtype):
    """p_k (v_k - p.v) as it stands is 0 or noise where p_k is 1 to the last digit."""
    gap = 45.0
    z, y = torch.tensor([[gap, 0.0, 0.0]], dtype=dtype), torch.tensor([0])
    v = torch.tensor([[1.0, 3.0, 2.0]], dtype=dtype)
    small = np.exp(-gap)  # 1 + 2 small is 1
    got = second(cross_entropy, z, y, v).numpy()
    np.testing.assert_allclose(got, [[-3 * small, 2 * small, small]], rtol=1e-6)


def test_third_derivative(rng, path):
    z, y, options = make(rng, {"weight": True, "label_smoothing": 0.1})
    v = torch.tensor(rng.standard_normal((3, *z.shape)))
    results = []
    for function in (cross_entropy, F.cross_entropy):
        x = z.clone().requires_grad_()
        slope = function(x, y, **options)
        for i in range(3):
            (g,) = torch.autograd.grad(slope, x, create_graph=True)
            slope = (g * v[i]).sum()
        results.append(slope.detach())
    check(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_second_derivative_of_other_dtypes(rng, path, dtype):
    z, y, _ = make(rng, {}, dtype=dtype)
    v = torch.tensor(rng.standard_normal(z.shape), dtype=dtype)
    got, expected = second(cross_entropy, z, y, v), second(F.cross_entropy, z.double(), y, v)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny
    )


# ---------------------------------------------------------------- 16 bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast(rng, path, dtype, reduction):
    z, y, _ = make(rng, {}, dtype=dtype)
    results = []
    for function in (cross_entropy, F.cross_entropy):
        x = z.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = function(x, y, reduction=reduction)
        loss.sum().backward()
        results.append((loss.detach(), x.grad))
    (loss, grad_), (expected, expected_grad) = results
    assert loss.dtype == expected.dtype and grad_.dtype == dtype
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad_, expected_grad, rtol=torch.finfo(dtype).eps * 4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_of_a_large_sum(dtype):
    z, y = torch.zeros(20000, 100, dtype=dtype), torch.zeros(20000, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(z.requires_grad_(), y, reduction="sum")
    np.testing.assert_allclose(loss.item(), 20000 * np.log(100), rtol=1e-6)


def test_a_scaled_loss_saves_small_gradients(path):
    """What a gradient scaler is for: 16 bits are rounded to after the upstream has scaled them."""
    z = torch.tensor([[18.0, 0.0, 0.0]], dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        (cross_entropy(z, torch.tensor([0])) * 65536).backward()
    expected = 65536 * np.exp(-18.0) / (1 + 2 * np.exp(-18.0)) * np.array([[-2.0, 1.0, 1.0]])
    np.testing.assert_allclose(z.grad.numpy(), expected, rtol=2**-10)


# ---------------------------------------------------------------- torch.func


TRANSFORMS = {
    "grad": lambda f, z: grad(lambda z: f(z).sum())(z),
    "vmap": lambda f, z: vmap(f)(torch.stack([z, 2 * z])),
    "vmap of another axis": lambda f, z: vmap(f, in_dims=-1)(torch.stack([z, 2 * z], -1)),
    "vmap of grad": lambda f, z: vmap(grad(lambda z: f(z).sum()))(torch.stack([z, 2 * z])),
    "grad of vmap": lambda f, z: grad(lambda x: vmap(f)(x).cos().sum())(torch.stack([z, 2 * z])),
    "vmap of vmap": lambda f, z: vmap(vmap(f), in_dims=1)(torch.stack([z, 2 * z, 3 * z])[:, None]),
    "jacrev": lambda f, z: jacrev(f)(z),
    "jacfwd": lambda f, z: jacfwd(f)(z),
    "jvp": lambda f, z: jvp(f, (z,), (z.cos(),)),
    "hessian": lambda f, z: hessian(f)(z),
    "jacrev twice": lambda f, z: jacrev(jacrev(f))(z),
    "jacobian": lambda f, z: functional.jacobian(f, z, vectorize=True),
    "forward jacobian": lambda f, z: functional.jacobian(
        f, z, vectorize=True, strategy="forward-mode"
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_transforms(rng, path, name, reduction, kind):
    options = {"weight": True, "label_smoothing": 0.1, "ignore_index": 2}
    z, y, options = make(rng, options, kind, shape=(3, 5, 2))
    ours, theirs = (
        TRANSFORMS[name](lambda z, f=f: f(z, y, reduction=reduction, **options), z)
        for f in (cross_entropy, F.cross_entropy)
    )
    check(ours, theirs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_of_a_model_with_a_gradient_of_its_own(rng, path, reduction):
    """Plain autograd around vmap, and targets that differ from call to call."""
    z, _, _ = make(rng, {}, shape=(3, 4, 5))
    y, results = torch.tensor(rng.integers(0, 5, (3, 4))), []
    y[1, 2], y[2] = -100, -100
    for function in (cross_entropy, F.cross_entropy):
        x = z.clone().requires_grad_()
        loss = vmap(partial(function, reduction=reduction))(x, y)
        loss.detach().nan_to_num_()
        loss[:2].cos().sum().backward()
        results.append((loss.detach(), x.grad[:2]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-14, equal_nan=True)


def test_gradients_of_single_samples(rng, path):
    z, y, _ = make(rng, {})
    got = vmap(grad(lambda z, y: cross_entropy(z[None], y[None])))(z, y)
    x = z.clone().requires_grad_()
    F.cross_entropy(x, y, reduction="sum").backward()
    check(got, x.grad)


def test_what_torch_func_cannot_do(rng, path):
    z, y, options = make(rng, {"weight": True})
    weight = options["weight"]
    with pytest.raises(NotImplementedError, match="weight is mapped over its axis 0 by vmap"):
        vmap(lambda w: cross_entropy(z, y, w))(torch.stack([weight, weight]))
    with pytest.raises(NotImplementedError, match="weight has a tangent"):
        jvp(lambda w: cross_entropy(z, y, w), (weight,), (weight,))
    with pytest.raises(NotImplementedError, match="target requires a gradient"):
        grad(lambda t: cross_entropy(z, t))(z.softmax(1))
