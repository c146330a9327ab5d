"""The same operation by each library, as its users would write it at best.

Each function takes a case and its arrays and returns what to call, or None where the library has no
such operation. Arrays are shared with the library where it can, and compiled where it compiles.
Results are allocated by the library, where it does so for its users.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

import numba_ce
from numba_ce.bench.cases import Case, CaseData

Call = Callable[[], Any]
GRADS = ("grad", "grad_probs")
NORMALIZE = ("softmax", "log_softmax", "logsumexp")
NUMPY_DTYPES = ("float32", "float64")


def ours(case: Case, problem: CaseData) -> Call:
    """One thread where the case says so."""
    logits, targets, options = problem.logits, problem.targets, problem.options
    axis, out = case.axis, problem.out

    def call() -> Any:
        if case.op.startswith("grad"):
            place: Any = logits if case.op == "grad_in_place" else out
            if case.variant == "new_array":
                place = None
            return numba_ce.cross_entropy_and_grad(logits, targets, axis=axis, out=place, **options)
        if case.op == "loss":
            return numba_ce.cross_entropy(logits, targets, axis=axis, **options)
        if case.op == "row_stats":
            return numba_ce.row_stats(logits, targets, axis=axis)
        if case.op == "logsumexp":
            return numba_ce.logsumexp(logits, axis)
        return getattr(numba_ce, case.op)(logits, axis, out=out)

    def on_one_thread() -> Any:
        n_threads = numba.get_num_threads()
        numba.set_num_threads(1)
        try:
            return call()
        finally:
            numba.set_num_threads(n_threads)

    return on_one_thread if case.variant == "one_thread" else call


def plain_numpy(case: Case, problem: CaseData) -> Call | None:
    """The formula as one writes it in NumPy."""
    if case.dtype not in NUMPY_DTYPES:
        return None
    logits, targets, axis = problem.logits, problem.targets, case.axis
    count = logits.dtype.type(targets.size)

    def shifted() -> Any:
        return logits - logits.max(axis=axis, keepdims=True)

    def picked(array: Any) -> Any:
        return np.take_along_axis(array, np.expand_dims(targets, axis), axis)

    def loss() -> Any:
        z = shifted()
        return (np.log(np.exp(z).sum(axis=axis, keepdims=True)) - picked(z)).mean()

    def grad() -> Any:
        z = shifted()
        p = np.exp(z)
        sums = p.sum(axis=axis, keepdims=True)
        loss = (np.log(sums) - picked(z)).mean()
        p /= sums
        np.put_along_axis(p, np.expand_dims(targets, axis), picked(p) - 1, axis)
        p /= count
        return loss, p

    def grad_probs() -> Any:
        z = shifted()
        p = np.exp(z)
        sums = p.sum(axis=axis, keepdims=True)
        n_rows = logits.dtype.type(logits.size // case.n_classes)
        loss = (targets * (np.log(sums) - z)).sum() / n_rows
        p /= sums
        p -= targets
        p /= n_rows
        return loss, p

    def softmax() -> Any:
        p = np.exp(shifted())
        p /= p.sum(axis=axis, keepdims=True)
        return p

    def log_softmax() -> Any:
        z = shifted()
        z -= np.log(np.exp(z).sum(axis=axis, keepdims=True))
        return z

    def logsumexp() -> Any:
        top = logits.max(axis=axis, keepdims=True)
        return np.log(np.exp(logits - top).sum(axis=axis)) + top.squeeze(axis)

    calls = {f.__name__: f for f in (loss, grad, grad_probs, softmax, log_softmax, logsumexp)}
    return calls.get(case.op)


def _as_tensor(array: Any) -> Any:
    """Share the memory; torch and NumPy have no common bfloat16."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _torch(case: Case, problem: CaseData, compiled: bool) -> Call | None:
    """Forward, and for a gradient backward by autograd."""
    import torch

    torch.set_num_threads(numba.get_num_threads())
    torch._dynamo.reset()  # it compiles a function for 8 shapes only, then runs it eagerly
    z, y = _as_tensor(problem.logits), _as_tensor(problem.targets)
    if case.op in ("loss", *GRADS):
        function: Any = torch.nn.functional.cross_entropy
    elif case.op in NORMALIZE:
        one = getattr(torch, case.op)
        # eagerly into an array that is there, as ours; compiled code makes one
        out = None if compiled else _as_tensor(problem.out)
        if case.op == "logsumexp" and out is not None:
            out = torch.empty(case.rows, dtype=z.dtype)

        def into_out(z: Any, y: Any) -> Any:
            return one(z, case.axis) if out is None else one(z, case.axis, out=out)

        function = into_out
    else:
        return None
    if compiled:
        function = torch.compile(function, dynamic=False)
    if case.op not in GRADS:

        def forward() -> Any:
            with torch.no_grad():
                return function(z, y)

        return forward
    z.requires_grad_()

    def step() -> Any:
        z.grad = None
        loss: Any = function(z, y)
        loss.backward()
        return loss, z.grad

    return step


def torch_eager(case: Case, problem: CaseData) -> Call | None:
    """Kernel by kernel."""
    return _torch(case, problem, compiled=False)


def torch_compiled(case: Case, problem: CaseData) -> Call | None:
    """Compiled for this shape."""
    return _torch(case, problem, compiled=True)


def jax_jit(case: Case, problem: CaseData) -> Call | None:
    """The fastest of five formulas tried: lse - z rather than log_softmax or one-hot."""
    import jax
    import jax.numpy as jnp

    axis = case.axis

    def loss(z: Any, y: Any) -> Any:
        picked = jnp.take_along_axis(z, jnp.expand_dims(y, axis), axis).squeeze(axis)
        return (jax.nn.logsumexp(z, axis=axis) - picked).mean()

    def loss_of_probabilities(z: Any, t: Any) -> Any:
        return -(t * jax.nn.log_softmax(z, axis=axis)).sum(axis).mean()

    if case.op in ("loss", *GRADS):
        function = loss_of_probabilities if case.op == "grad_probs" else loss
        function = jax.jit(jax.value_and_grad(function) if case.op in GRADS else function)
    elif case.op in NORMALIZE:
        one = getattr(jax.nn, case.op)
        function = jax.jit(lambda z, y: one(z, axis=axis))
    else:
        return None
    with jax.enable_x64(case.dtype == "float64"):
        z, y = jnp.asarray(problem.logits), jnp.asarray(problem.targets)

    def call() -> Any:
        with jax.enable_x64(case.dtype == "float64"):
            ready: Any = jax.block_until_ready
            return ready(function(z, y))

    return call


def sklearn_loss(case: Case, problem: CaseData) -> Call | None:
    """The loss of its linear models and of its gradient boosting; a private module."""
    if case.dtype not in NUMPY_DTYPES or len(case.shape) != 2 or case.axis != -1:
        return None
    if case.op not in ("loss", "grad"):
        return None
    from sklearn._loss import HalfMultinomialLoss

    loss = HalfMultinomialLoss(n_classes=case.n_classes)
    y, rows = problem.targets.astype(case.dtype), np.empty(case.rows, case.dtype)
    arguments = {
        "y_true": y,
        "raw_prediction": problem.logits,
        "loss_out": rows,
        "n_threads": numba.get_num_threads(),
    }
    if case.op == "loss":
        return lambda: loss.loss(**arguments)
    return lambda: loss.loss_gradient(gradient_out=problem.out, **arguments)


def plain_numba(case: Case, problem: CaseData) -> Call | None:
    """What a Numba user would write."""
    if case.op != "grad" or case.dtype not in NUMPY_DTYPES or len(case.shape) != 2:
        return None
    if case.axis != -1:
        return None
    from numba_ce.bench.plain_kernel import plain_kernel

    return lambda: (plain_kernel(problem.logits, problem.targets, problem.out), problem.out)


def scipy_special(case: Case, problem: CaseData) -> Call | None:
    """softmax, log_softmax and logsumexp of scipy.special."""
    from scipy import special

    if case.op not in NORMALIZE or case.dtype not in NUMPY_DTYPES:
        return None
    function = getattr(special, case.op)
    return lambda: function(problem.logits, axis=case.axis)


#: Name, the module that has to be installed, the function above
LIBRARIES: dict[str, tuple[str, Callable[[Case, CaseData], Call | None]]] = {
    "NumPy": ("numpy", plain_numpy),
    "Numba": ("numba", plain_numba),
    "torch": ("torch", torch_eager),
    "torch.compile": ("torch", torch_compiled),
    "JAX": ("jax", jax_jit),
    "scikit-learn": ("sklearn", sklearn_loss),
    "SciPy": ("scipy", scipy_special),
}


def installed() -> list[str]:
    """The names of the libraries that can be imported."""
    return [name for name, (module, _) in LIBRARIES.items() if importlib.util.find_spec(module)]
