"""A linear layer and its cross-entropy, without the logits of more than a few hundred rows.

Each chunk of rows goes through BLAS to the logits, through the fused kernel to their gradient in
the same memory, and through BLAS again to the gradients of `hidden` and `weight`. The loss needs
one matrix product and the gradients two more; nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numba_ce._validate import (
    Array,
    Problem,
    as_array,
    check_integer,
    check_options,
    check_reduction,
    make_problem,
    shown,
)
from numba_ce.api import cross_entropy, cross_entropy_and_grad, fresh_output, no_classes
from numba_ce.weights import is_ignored, mean_weights, stand_in, total_weight

# At least this many rows, so that a product is bound by arithmetic and not by reading `weight`: of
# the time of the bare products 1.08 with 512 rows, 1.17 with 256, twice with 32 (N = 2048, D = 512,
# C = 32000). More only while the logits of a chunk stay in the caches.
CHUNK_ROWS, CHUNK_ELEMENTS = 512, 1 << 18
# NumPy's product cannot add to its output, so it goes to a buffer of this many elements at a time
BUFFER_ELEMENTS = 1 << 20


class LinearGrad(NamedTuple):
    """What `linear_cross_entropy_and_grad` returns; `grad_bias` is None without a bias."""

    loss: Any
    grad_hidden: Array
    grad_weight: Array
    grad_bias: Array | None


class Layer(NamedTuple):
    """A checked problem; `problem.logits` has the shape of the logits and none of their memory."""

    hidden: Array  # (N, D)
    weight: Array  # (C, D)
    bias: Array | None  # (C,)
    problem: Problem
    chunk_rows: int


def _on_host(value: Any, name: str) -> Any:
    if hasattr(value, "__cuda_array_interface__"):
        raise TypeError(
            f"{name} ({type(value).__name__}) is on a CUDA device: expected it on the host, where "
            "the products of a linear layer are computed"
        )
    return value


def check_matrix(value: Any, name: str, shape: str) -> Array:
    """A matrix of a dtype that BLAS has."""
    array = as_array(_on_host(value, name), name)
    if array.dtype.name not in ("float32", "float64"):
        raise TypeError(f"{name} has dtype {array.dtype}: expected float32 or float64")
    if array.ndim != 2:
        raise ValueError(f"{name} has {array.ndim} axes: expected two, of shape {shape}")
    return array


def make_layer(
    hidden: Any,
    weight: Any,
    targets: Any,
    bias: Any,
    class_weight: Any,
    sample_weight: Any,
    options: tuple[Any, ...],
    reduction: Any,
    chunk_rows: Any,
) -> Layer:
    """The arguments of the public functions, checked."""
    hidden, weight = (
        check_matrix(hidden, "hidden", "(N, D)"),
        check_matrix(weight, "weight", "(C, D)"),
    )
    if hidden.shape[1] != weight.shape[1]:
        hint = "; pass weight.T for a weight of shape (D, C)"
        raise ValueError(
            f"weight has shape {weight.shape} for hidden of shape {hidden.shape}: expected "
            f"(C, {hidden.shape[1]})" + hint * (hidden.shape[1] == weight.shape[0])
        )
    if bias is not None:
        bias = as_array(_on_host(bias, "bias"), "bias")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {bias.shape}: expected {weight.shape[:1]}")
    for array, name in ((weight, "weight"), (bias, "bias")):
        if array is not None and array.dtype.name != hidden.dtype.name:
            raise TypeError(
                f"{name} has dtype {array.dtype}: expected {hidden.dtype.name}, as hidden"
            )
    n_rows, n_classes = len(hidden), len(weight)
    logits = stand_in((n_rows, n_classes), hidden.dtype.newbyteorder("="))
    if n_classes == 0 and n_rows:
        raise no_classes(logits, 1)
    if chunk_rows is None:
        chunk_rows = max(CHUNK_ROWS, CHUNK_ELEMENTS // max(n_classes, 1))
    else:
        chunk_rows = check_integer(chunk_rows, "chunk_rows", "an integer or None")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows = {shown(chunk_rows)}: expected at least 1, or None")
    problem = make_problem(
        logits,
        _on_host(targets, "targets"),
        1,
        class_weight,
        sample_weight,
        check_options(*options),
        check_reduction(reduction),
    )
    return Layer(hidden, weight, bias, problem, min(chunk_rows, max(n_rows, 1)))


@np.errstate(all="ignore")  # infinities and NaN are results here, not accidents
def run(layer: Layer, gradients: Callable[[slice, Array], None] | None) -> Any:
    """The loss; hands the gradient of each chunk's logits to `gradients`."""
    hidden, weight, bias, problem, step = layer
    n_rows, n_classes = problem.logits.shape
    dtype, options = problem.logits.dtype, problem.options
    denominator, rows_weight = total_weight(problem), problem.sample_weight
    if problem.reduction == "mean":
        rows_weight = mean_weights(rows_weight, (n_rows,), denominator)
    losses = np.empty(n_rows if problem.reduction == "none" else 0, dtype)
    buffer, total = np.empty((step, n_classes), dtype), 0.0
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        logits = buffer[: rows.stop - start]
        np.matmul(hidden[rows], weight.T, out=logits)
        if bias is not None:
            logits += bias
        assert problem.targets is not None
        arguments: dict[str, Any] = {
            "class_weight": problem.class_weight,
            "sample_weight": None if rows_weight is None else rows_weight[rows],
            "label_smoothing": options.label_smoothing,
            "ignore_index": options.ignore_index,
            "z_loss": options.z_loss,
            "softcap": options.softcap,
            "temperature": options.temperature,
            "check_targets": options.check_targets,
            "reduction": "none",
        }
        if gradients is None:
            loss = cross_entropy(logits, problem.targets[rows], **arguments)
        else:
            loss, _ = cross_entropy_and_grad(logits, problem.targets[rows], out=logits, **arguments)
            gradients(rows, logits)
        total += float(loss.sum(dtype=np.float64))
        if problem.reduction == "none":
            losses[rows] = loss
    if problem.reduction == "none":
        return losses
    return dtype.type(np.nan if problem.reduction == "mean" and denominator == 0.0 else total)


class Gradients:
    """Adds up the gradients of the layer, chunk after chunk."""

    def __init__(self, layer: Layer, of_hidden: bool) -> None:
        """Zeros; of `hidden` only where they are wanted."""
        self.layer = layer
        self.ignored = is_ignored(layer.problem)
        n_classes, n_features = layer.weight.shape
        self.hidden = fresh_output(layer.hidden) if of_hidden else None
        self.weight = fresh_output(layer.weight)
        self.bias = None if layer.bias is None else np.zeros(n_classes)
        self.step = max(1, BUFFER_ELEMENTS // max(n_features, 1))
        self.buffer = np.empty((min(self.step, n_classes), n_features), self.weight.dtype)
        self.weight[...] = 0

    def __call__(self, rows: slice, grad: Array) -> None:
        """Add what the gradient of the logits of some rows gives."""
        hidden, ignored = self.layer.hidden[rows], self.ignored[rows]
        if self.hidden is not None:
            np.matmul(grad, self.layer.weight, out=self.hidden[rows])
        if ignored.any():
            # Its gradient is 0, but 0 times a NaN in `hidden` would spoil the sum
            hidden = np.where(ignored[:, None], hidden.dtype.type(0), hidden)
        for first in range(0, len(self.weight), self.step):
            classes = slice(first, first + self.step)
            part = self.buffer[: len(self.weight[classes])]
            np.matmul(grad[:, classes].T, hidden, out=part)
            self.weight[classes] += part
        if self.bias is not None:
            self.bias += grad.sum(axis=0, dtype=np.float64)


def linear_cross_entropy(
    hidden: Any,
    weight: Any,
    targets: Any,
    *,
    bias: Any = None,
    class_weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    check_targets: bool = True,
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> Any:
    """Cross-entropy of the logits ``hidden @ weight.T + bias``, which are never held at once.

    Parameters
    ----------
    hidden : array_like of shape (N, D)
        float32 or float64, on the host.
    weight : array_like of shape (C, D)
        Of the dtype of `hidden`, as `nn.Linear.weight` and scikit-learn's `coef_`. Pass the
        transposed view of a (D, C) matrix; nothing is copied.
    targets : array_like
        Class indices (N,), or probabilities (N, C).
    bias : array_like of shape (C,), optional
        Of the dtype of `hidden`.
    class_weight, sample_weight, label_smoothing, ignore_index, z_loss, softcap, temperature, \
check_targets, reduction
        As for `cross_entropy`.
    chunk_rows : int, optional
        Rows whose logits are held at a time; 512, or more if there are few classes.

    Returns
    -------
    numpy scalar or ndarray
        Of the dtype of `hidden`; one loss per row for "none".

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`; also for shapes or dtypes that do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import linear_cross_entropy
    >>> hidden, weight = np.eye(2), np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> round(float(linear_cross_entropy(hidden, weight, [0, 1])), 6)
    0.239545
    """
    options = (label_smoothing, ignore_index, z_loss, softcap, temperature, check_targets)
    layer = make_layer(
        hidden, weight, targets, bias, class_weight, sample_weight, options, reduction, chunk_rows
    )
    return run(layer, None)


def linear_cross_entropy_and_grad(
    hidden: Any,
    weight: Any,
    targets: Any,
    *,
    bias: Any = None,
    class_weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    check_targets: bool = True,
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> LinearGrad:
    """`linear_cross_entropy` and its gradients with respect to hidden, weight and bias.

    With g the gradient of the loss with respect to the logits: ``g @ weight``, ``g.T @ hidden`` and
    ``g.sum(axis=0)``.

    Parameters
    ----------
    hidden, weight, targets, bias, class_weight, sample_weight, label_smoothing, ignore_index, \
z_loss, softcap, temperature, check_targets, reduction, chunk_rows
        As for `linear_cross_entropy`; the gradients of "none" are those of ``loss.sum()``.

    Returns
    -------
    LinearGrad
        ``loss, grad_hidden, grad_weight, grad_bias``, the gradients in shape, dtype and axis order
        of what they belong to.

    Raises
    ------
    ValueError, TypeError
        As `linear_cross_entropy`.

    Notes
    -----
    Beyond the results it needs the logits of `chunk_rows` rows and a buffer of at most 2**20
    numbers. Chunks of rows: Hsu et al., "Liger Kernel" (2024), section 3.2, here of a length that
    keeps the products bound by arithmetic.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import linear_cross_entropy_and_grad
    >>> hidden, weight = np.eye(2), np.zeros((2, 2))
    >>> linear_cross_entropy_and_grad(hidden, weight, [0, 1]).grad_weight
    array([[-0.25,  0.25],
           [ 0.25, -0.25]])
    """
    options = (label_smoothing, ignore_index, z_loss, softcap, temperature, check_targets)
    layer = make_layer(
        hidden, weight, targets, bias, class_weight, sample_weight, options, reduction, chunk_rows
    )
    gradients = Gradients(layer, of_hidden=True)
    loss = run(layer, gradients)
    assert gradients.hidden is not None
    grad_bias = None
    if gradients.bias is not None:
        grad_bias = gradients.bias.astype(gradients.weight.dtype)
    return LinearGrad(loss, gradients.hidden, gradients.weight, grad_bias)
