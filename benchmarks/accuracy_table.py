"""Largest errors on every family of rows, numba_ce beside its peers: writes docs/accuracy.md.

    python benchmarks/accuracy_table.py [--out docs/accuracy.md]

Errors are in ULP (units in the last place) of the exact value, which is computed in 106 bits
(tests/wide.py, itself checked against mpmath). Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

Array = np.ndarray[Any, Any]
Result = tuple[Array, Array, Array | None]  # losses, gradient of their sum, lse
Method = Callable[[Array, Array], Result]


def numba_ce_method(logits: Array, targets: Array) -> Result:
    import numba_ce

    loss, grad = numba_ce.cross_entropy_and_grad(logits, targets, reduction="none")
    return loss, grad, numba_ce.logsumexp(logits)


def scipy_method(logits: Array, targets: Array) -> Result:
    from scipy import special

    rows = np.arange(len(logits))
    loss = -special.log_softmax(logits, axis=1)[rows, targets]
    grad = special.softmax(logits, axis=1)
    grad[rows, targets] -= 1
    return loss, grad, special.logsumexp(logits, axis=1)


def torch_method(logits: Array, targets: Array) -> Result:
    import torch

    z = torch.from_numpy(logits.copy()).requires_grad_()
    loss = torch.nn.functional.cross_entropy(z, torch.from_numpy(targets), reduction="none")
    loss.sum().backward()
    assert z.grad is not None
    return loss.detach().numpy(), z.grad.numpy(), torch.logsumexp(z, 1).detach().numpy()


def jax_method(logits: Array, targets: Array) -> Result:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def losses(z: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(z), targets[:, None], axis=1)[:, 0]

    z = jnp.asarray(logits)
    grad = jax.grad(lambda z: losses(z).sum())(z)
    return np.array(losses(z)), np.array(grad), np.array(jax.nn.logsumexp(z, axis=1))


def sklearn_method(logits: Array, targets: Array) -> Result:
    from sklearn._loss import HalfMultinomialLoss

    loss = HalfMultinomialLoss(n_classes=logits.shape[1])
    rows, grad = loss.loss_gradient(targets.astype(logits.dtype), logits)
    return rows, grad, None


METHODS: dict[str, tuple[str, Method]] = {
    "numba_ce": ("numba_ce", numba_ce_method),
    "torch": ("torch", torch_method),
    "SciPy": ("scipy", scipy_method),
    "JAX": ("jax", jax_method),
    "scikit-learn": ("sklearn", sklearn_method),
}


def installed() -> dict[str, Method]:
    from importlib.util import find_spec

    return {name: method for name, (module, method) in METHODS.items() if find_spec(module)}


def worst(actual: Array, exact: Any, sizes: Any, dtype: Any) -> float:
    """Largest |actual - exact| in ULP of `sizes`, all mpf."""
    from exact import mpf, ulp

    return max(
        float(abs(mpf(float(a)) - e)) / float(ulp(s, dtype)) if np.isfinite(a) else np.inf
        for a, e, s in zip(actual, exact, sizes, strict=True)
    )


def errors(method: Method, logits: Array, targets: Array, exact: Any) -> list[float]:
    """Of loss, gradient at the target, lse, and the excess of the other entries over |z - m|."""
    from wide import SHIFT, wide_ulps

    dtype, rows = logits.dtype, np.arange(len(logits))
    loss, grad, lse = method(logits, targets)
    found = [
        worst(loss, exact.loss, exact.loss, dtype),
        worst(grad[rows, targets], exact.grad_target, exact.grad_target, dtype),
    ]
    sizes = [max(abs(a), abs(b)) for a, b in zip(exact.lse, exact.row_max, strict=True)]
    found.append(np.nan if lse is None else worst(lse, exact.lse, sizes, dtype))
    ulps = wide_ulps(grad, exact.grad, dtype, SHIFT)
    over = ulps / np.maximum(1.0, exact.depth / 4.0)  # 4 is what is promised for float32
    over[rows, targets] = 0.0
    return [*found, float(over.max())]


def shown(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


HEAD = """# Accuracy

Largest error over the rows of each family, in ULP (units in the last place of the exact result),
on the machine that made this page with `python benchmarks/accuracy_table.py`. `tests/wide.py`
gives the exact results in 106 bits and is itself checked against mpmath. 2e7 (float32) and 9e15
(float64) mean that every digit is wrong: a 0 where the exact value is not.

Promised, and tested on every run: loss and gradient at the target within 4 ULP, lse within 2 ULP
of the larger of |lse| and |row maximum| on these families; the other entries of the gradient within
max(4, |z - m|) ULP, m the largest of the other logits. The row "others" is scaled so that 4 is this
bound. 16-bit gradients are the float32 result, rounded once. A soft cap adds errors of its own: the
capped logit is within 3 eps of itself, its derivative, a factor of the gradient, within
5 + 2 |z| / cap ULP. Where terms of opposite sign meet (smoothing, z-loss, probabilities), the same
holds relative to the sum of the magnitudes of the terms. Under smoothing, where another class than
the target leads, the loss may be off by 3 eps of the sum of the others' q_c more, which shows where
the class of the target has a weight near 0. The backend "numpy" is promised 16 ULP in float64, for
NumPy's exp may be off by 4.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "accuracy.md")
    arguments = parser.parse_args()
    # not when it is imported: asv does so, and has to find the installed package, not this folder's
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from wide import wide_rows

    from benchmarks.families import FAMILIES

    methods, lines = installed(), [HEAD]
    for dtype in (np.float32, np.float64):
        lines.append(f"## {np.dtype(dtype).name}\n\n")
        lines.append("| family | | " + " | ".join(methods) + " |\n")
        lines.append("|---|---|" + "---:|" * len(methods) + "\n")
        for family, make in FAMILIES.items():
            logits, targets = make(np.random.default_rng(1), dtype)
            exact = wide_rows(logits, targets)
            table = [errors(method, logits, targets, exact) for method in methods.values()]
            for i, what in enumerate(("loss", "target", "lse", "others")):
                cells = " | ".join(shown(column[i]) for column in table)
                lines.append(f"| {family if i == 0 else ''} | {what} | {cells} |\n")
            print(family, [[shown(v) for v in column] for column in table], flush=True)
        lines.append("\n")
    arguments.out.write_text("".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
