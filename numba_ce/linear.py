"""A linear layer and its cross-entropy, without the logits of more than a few hundred rows.

Each chunk of rows goes through BLAS to the logits, through the fused kernel to their gradient in
the same memory, and through BLAS again to the gradients of `hidden` and `weight`. The loss needs
one matrix product and the gradients two more; nothing is computed twice. All of it is done by NumPy
on the host, and by CuPy with CuPy's arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Unpack, overload

import numpy as np

from numba_ce._foreign import readable
from numba_ce._quiet import quiet
from numba_ce._validate import (
    FLOATS,
    Array,
    Problem,
    as_array,
    check_integer,
    check_logits,
    make_problem,
    shown,
)
from numba_ce.options import (
    AnyArray,
    DeviceArray,
    HostArray,
    Keywords,
    LossOptions,
    Reduction,
    check_options,
    check_reduction,
    documented,
)
from numba_ce.results import clear_mean_over_nothing, compute_loss, mean_of, result_dtype
from numba_ce.weights import is_ignored, mean_weights, stand_in, total_weight

# At least this many rows, so that a product is bound by arithmetic and not by reading `weight`: of
# the time of the bare products 1.08 with 512 rows, 1.17 with 256, twice with 32 (N = 2048, D = 512,
# C = 32000). More only while the logits of a chunk stay in the caches.
CHUNK_ROWS, CHUNK_ELEMENTS = 512, 1 << 18
# NumPy's product cannot add to its output, so it goes to a buffer of this many elements at a time
BUFFER_ELEMENTS = 1 << 20
# On a device of so many, to give it enough to do; no device has measured it
DEVICE_BUFFER_ELEMENTS = 1 << 25


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
    targets: Array  # (N,) or (N, C)
    problem: Problem  # on the host; probabilities on a device are but a shape in it
    chunk_rows: int
    xp: Any  # NumPy or CuPy, to which the four arrays belong


def _array_module(arrays: dict[str, Any]) -> Any:
    """NumPy, or CuPy if all arrays are its own."""
    device = [
        name for name, a in arrays.items() if hasattr(readable(a, name), "__cuda_array_interface__")
    ]
    if not device:
        return np
    for name in device:
        bases = type(arrays[name]).__mro__
        if all(base.__module__.partition(".")[0] != "cupy" for base in bases):
            raise TypeError(
                f"{name} ({type(arrays[name]).__name__}) is on a CUDA device: expected an array of "
                "CuPy there (cupy.asarray and cupy.from_dlpack share the memory), or on the host"
            )
    for name, array in arrays.items():
        if array is not None and name not in device:
            raise TypeError(
                f"{device[0]} is on a CUDA device and {name} on the host: expected all arrays on "
                "one side"
            )
    return sys.modules["cupy"]


def check_matrix(value: Any, name: str, shape: str, xp: Any = np) -> Array:
    """A matrix of a dtype that BLAS has."""
    array = as_array(value, name) if xp is np else value
    *allowed, last = ("float32", "float64") if xp is np else FLOATS
    if array.dtype.name not in (*allowed, last):
        expected = f"{', '.join(allowed)} or {last}"
        raise TypeError(f"{name} has dtype {array.dtype}: expected {expected}")
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
    options: LossOptions,
    reduction: Any,
    chunk_rows: Any,
) -> Layer:
    """The arguments of the public functions, checked."""
    arrays = {"hidden": hidden, "weight": weight, "targets": targets, "bias": bias}
    weights = {"class_weight": class_weight, "sample_weight": sample_weight}
    xp = _array_module(arrays | weights)
    hidden = check_matrix(hidden, "hidden", "(N, D)", xp)
    weight = check_matrix(weight, "weight", "(C, D)", xp)
    if hidden.shape[1] != weight.shape[1]:
        hint = "; pass weight.T for a weight of shape (D, C)"
        raise ValueError(
            f"weight has shape {weight.shape} for hidden of shape {hidden.shape}: expected "
            f"(C, {hidden.shape[1]})" + hint * (hidden.shape[1] == weight.shape[0])
        )
    if bias is not None:
        bias = as_array(bias, "bias") if xp is np else bias
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
        raise ValueError(f"weight has shape {weight.shape}, no classes: expected at least one")
    if chunk_rows is None:
        chunk_rows = max(CHUNK_ROWS, CHUNK_ELEMENTS // max(n_classes, 1))
    else:
        chunk_rows = check_integer(chunk_rows, "chunk_rows", "an integer or None")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows = {shown(chunk_rows)}: expected at least 1, or None")
    checked = targets
    if xp is not np:
        # The weights of a mean are found on the host, from few numbers. Probabilities have no part
        # in them
        class_weight, sample_weight = (w if w is None else w.get() for w in weights.values())
        indices = targets.dtype.kind in "iu"
        checked = targets.get() if indices else stand_in(targets.shape, targets.dtype)
    problem = make_problem(
        logits,
        checked,
        1,
        class_weight,
        sample_weight,
        options,
        check_reduction(reduction),
    )
    if xp is np:
        targets = problem.targets
    return Layer(hidden, weight, bias, targets, problem, min(chunk_rows, max(n_rows, 1)), xp)


def run(layer: Layer, gradients: Callable[[slice, Array], None] | None) -> Any:
    """The loss; hands the gradient of each chunk's logits to `gradients`."""
    hidden, weight, bias, targets, problem, step, xp = layer
    n_rows, n_classes = problem.logits.shape
    denominator, rows_weight = total_weight(problem), problem.sample_weight
    if problem.reduction == "mean":
        rows_weight = mean_weights(rows_weight, (n_rows,), denominator)
    class_weight, rows_weight = (
        w if w is None else xp.asarray(w) for w in (problem.class_weight, rows_weight)
    )
    dtype, per_row = result_dtype(problem.logits), problem.reduction == "none"
    # Sums of chunks in float64: of losses beyond the float32 range the sum may be a number
    losses = xp.empty(n_rows, dtype) if per_row else xp.empty(-(-n_rows // step), np.float64)
    buffer = xp.empty((step, n_classes), problem.logits.dtype)
    options = problem.options._replace(check_targets=False)  # `total_weight` has looked at them
    for chunk, start in enumerate(range(0, n_rows, step)):
        rows = slice(start, min(start + step, n_rows))
        logits = buffer[: rows.stop - start]
        xp.matmul(hidden[rows], weight.T, out=logits)
        if bias is not None:
            logits += bias
        array, _ = check_logits(logits, 1)
        s = None if rows_weight is None else rows_weight[rows]
        reduction = "none" if per_row else "sum"
        part = make_problem(array, targets[rows], 1, class_weight, s, options, reduction)
        grad = None if gradients is None else array
        losses[rows if per_row else chunk] = compute_loss(part, array, 1, grad, losses.dtype)
        if gradients is not None:
            clear_mean_over_nothing(logits, denominator, problem.reduction)
            gradients(rows, logits)
    if per_row:
        return losses
    total = losses.sum()
    if problem.reduction == "mean" and denominator == 0.0:  # else the rows are divided already
        total = mean_of(total, 0.0)
    return total.astype(dtype)


class Gradients:
    """Adds up the gradients of the layer, chunk after chunk."""

    def __init__(self, layer: Layer, of_hidden: bool) -> None:
        """Zeros; of `hidden` only where they are wanted."""
        self.layer, self.ignored = layer, is_ignored(layer.problem)
        n_classes, n_features = layer.weight.shape
        xp, dtype = layer.xp, layer.problem.logits.dtype
        self.hidden = xp.empty_like(layer.hidden, dtype) if of_hidden else None
        # The sum of 16-bit parts in float32
        self.weight = xp.zeros_like(layer.weight, result_dtype(layer.problem.logits))
        self.bias = None if layer.bias is None else xp.zeros(n_classes)
        elements = BUFFER_ELEMENTS if xp is np else DEVICE_BUFFER_ELEMENTS
        self.step = max(1, elements // max(n_features, 1))
        self.buffer = xp.empty((min(self.step, n_classes), n_features), dtype)

    def __call__(self, rows: slice, grad: Array) -> None:
        """Add what the gradient of the logits of some rows gives."""
        hidden, ignored, xp = self.layer.hidden[rows], self.ignored[rows], self.layer.xp
        if self.hidden is not None:
            xp.matmul(grad, self.layer.weight, out=self.hidden[rows])
        if ignored.any():
            # Its gradient is 0, but 0 times a NaN in `hidden` would spoil the sum
            hidden = hidden.copy()
            hidden[xp.asarray(ignored)] = 0
        for first in range(0, len(self.weight), self.step):
            classes = slice(first, first + self.step)
            part = self.buffer[: len(self.weight[classes])]
            xp.matmul(grad[:, classes].T, hidden, out=part)
            self.weight[classes] += part
        if self.bias is not None:
            self.bias += grad.sum(axis=0, dtype=np.float64)


# fmt: off
@overload
def linear_cross_entropy(
    hidden: DeviceArray, weight: Any, targets: Any, *, bias: Any = ..., reduction: Reduction = ...,
    chunk_rows: int | None = ..., **options: Unpack[Keywords],
) -> Any: ...
@overload
def linear_cross_entropy(
    hidden: HostArray, weight: HostArray, targets: HostArray, *, bias: HostArray | None = ...,
    reduction: Literal["mean", "sum"] = ..., chunk_rows: int | None = ...,
    **options: Unpack[Keywords],
) -> np.floating[Any]: ...
@overload
def linear_cross_entropy(
    hidden: HostArray, weight: HostArray, targets: HostArray, *, bias: HostArray | None = ...,
    reduction: Literal["none"], chunk_rows: int | None = ..., **options: Unpack[Keywords],
) -> Array: ...
# fmt: on
@documented
@quiet
def linear_cross_entropy(
    hidden: AnyArray,
    weight: AnyArray,
    targets: AnyArray,
    *,
    bias: AnyArray | None = None,
    reduction: Reduction = "mean",
    chunk_rows: int | None = None,
    **options: Unpack[Keywords],
) -> Any:
    """Cross-entropy of the logits ``hidden @ weight.T + bias``, which are never held at once.

    Parameters
    ----------
    hidden : array_like of shape (N, D)
        float32 or float64; or a CuPy array, also float16 or bfloat16. All arrays lie on one side.
    weight : array_like of shape (C, D)
        Of the dtype of `hidden`, as `nn.Linear.weight` and scikit-learn's `coef_`. Pass the
        transposed view of a (D, C) matrix; nothing is copied.
    targets : array_like
        Class indices (N,), or probabilities (N, C).
    bias : array_like of shape (C,), optional
        Of the dtype of `hidden`.
    reduction
    chunk_rows : int, optional
        Rows whose logits are held at a time; 512, or more if there are few classes.
    **options

    Returns
    -------
    numpy scalar or ndarray
        float64 for float64 `hidden`, otherwise float32; one loss per row for "none". Arrays of CuPy
        give arrays of CuPy.

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
    checked = check_options(options, "linear_cross_entropy")
    layer = make_layer(hidden, weight, targets, bias, *checked, reduction, chunk_rows)
    return run(layer, None)


@documented
@quiet
def linear_cross_entropy_and_grad(
    hidden: AnyArray,
    weight: AnyArray,
    targets: AnyArray,
    *,
    bias: AnyArray | None = None,
    reduction: Reduction = "mean",
    chunk_rows: int | None = None,
    **options: Unpack[Keywords],
) -> LinearGrad:
    """`linear_cross_entropy` and its gradients with respect to hidden, weight and bias.

    With g the gradient of the loss with respect to the logits: ``g @ weight``, ``g.T @ hidden`` and
    ``g.sum(axis=0)``.

    Parameters
    ----------
    hidden
    weight
    targets
    bias
    reduction
    chunk_rows
    **options

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
    numbers, on a device 2**25 and as many float32 numbers as `weight` has if that is of 16 bits.
    There the logits and their gradient are rounded to 16 bits as well: in float16 the small entries
    of a mean over many rows vanish, unless `sample_weight` scales the loss.

    Chunks of rows: Hsu et al., "Liger Kernel" (2024), section 3.2, here of a length that keeps the
    products bound by arithmetic.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import linear_cross_entropy_and_grad
    >>> hidden, weight = np.eye(2), np.zeros((2, 2))
    >>> linear_cross_entropy_and_grad(hidden, weight, [0, 1]).grad_weight
    array([[-0.25,  0.25],
           [ 0.25, -0.25]])
    """
    checked = check_options(options, "linear_cross_entropy_and_grad")
    layer = make_layer(hidden, weight, targets, bias, *checked, reduction, chunk_rows)
    gradients = Gradients(layer, of_hidden=True)
    loss = run(layer, gradients)
    assert gradients.hidden is not None
    dtype = layer.problem.logits.dtype
    grad_bias = None if gradients.bias is None else gradients.bias.astype(dtype)
    grad_weight = gradients.weight.astype(dtype, copy=False)
    return LinearGrad(loss, gradients.hidden, grad_weight, grad_bias)
