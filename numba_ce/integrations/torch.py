"""A drop-in for `torch.nn.functional.cross_entropy` that keeps a few numbers per row.

torch keeps the log-softmax, as large as the logits, until the backward pass. Here nine float64
numbers per row are kept (`numba_ce.row_record`), and the gradient is computed from the logits once
more. A tensor on the CPU is used where it lies, with any strides.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import numba_ce
from numba_ce.records import scaled
from numba_ce.weights import row_weights

# Up to this many logits the gradient is made at once and kept: one call less of some 40 us each
SMALL = 1 << 18


def _array(tensor: Tensor | None) -> Any:
    """The memory of a tensor as an array; a device tensor speaks for itself."""
    if tensor is None:
        return None
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.is_cpu:
        return tensor
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _tensor(array: Any) -> Tensor:
    """The memory of a fresh array as a tensor."""
    if isinstance(array, Tensor):
        return array
    if array.dtype.kind == "V":  # bfloat16; its name would take 1 us to find
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _loss_tensor(loss: Any, like: Tensor) -> Tensor:
    """A loss as torch returns it: in the dtype of the logits."""
    if isinstance(loss, (float, np.floating)):
        return torch.scalar_tensor(float(loss), dtype=like.dtype)
    return _tensor(loss).to(like.dtype)


def _loss_and_grad(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any], reduction: str
) -> tuple[Any, Tensor]:
    # A fresh array, not `out`: no overlap to look for, which takes 5 us
    loss, grad = numba_ce.cross_entropy_and_grad(
        _array(logits), _array(target), class_weight=_array(weight), reduction=reduction, **options
    )
    return loss, _tensor(grad)


def _kept_gradient(ctx: Any, grad_output: Tensor) -> Any:
    """The gradient of a `_Kept`, times that of the loss."""
    # Given away, and not copied: whoever asks again (retain_graph) gets another. `pop` is one
    # step, so that no two threads get the same.
    grad = vars(ctx).pop("grad", None)
    options, reduction = ctx.arguments
    if grad is None:
        logits, target, weight = ctx.saved_tensors
        _, grad = _loss_and_grad(logits, target, weight, options, reduction)
    if reduction == "none":
        grad.mul_(grad_output.unsqueeze(options["axis"]))
    elif not grad_output.is_cpu or grad_output.item() != 1.0:  # no waiting for a device
        grad.mul_(grad_output)
    return grad, None, None, None, None


class _Kept(torch.autograd.Function):
    """Loss and gradient in one pass; the gradient is kept for the first backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: dict[str, Any],
        reduction: str,
    ) -> Tensor:
        loss, ctx.grad = _loss_and_grad(logits, target, weight, options, reduction)
        ctx.save_for_backward(logits, target, weight)
        ctx.arguments = options, reduction
        return _loss_tensor(loss, logits)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        if grad_output.requires_grad:  # for a second derivative: the wrapper costs 4 of 65 us
            return once_differentiable(_kept_gradient)(ctx, grad_output)
        return _kept_gradient(ctx, grad_output)


class _Recomputed(torch.autograd.Function):
    """Loss from the record of each row; the gradient from the record and the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: dict[str, Any],
        reduction: str,
    ) -> Tensor:
        n_classes = logits.shape[options["axis"]]
        targets, class_weight = _array(target), _array(weight)
        record = numba_ce.row_record(
            _array(logits),
            targets,
            class_offset=0,
            n_classes=n_classes,
            class_weight=class_weight,
            **options,
        )
        loss = numba_ce.loss_from_record(record)
        ctx.save_for_backward(logits, target, weight)
        ctx.options, ctx.record, ctx.scale = options, record, 1.0
        if reduction == "none":
            return _loss_tensor(loss, logits)
        total = float(loss.sum())
        if reduction == "mean":
            denominator = float(loss.size)
            if targets.dtype.kind in "iu":  # that of bfloat16 is "V"
                weights = row_weights(
                    targets,
                    class_weight,
                    None,
                    n_classes=n_classes,
                    ignore_index=options["ignore_index"],
                )
                denominator = float(weights.sum())
            ctx.scale = 1.0 / denominator if denominator else 0.0
            total = total / denominator if denominator else float("nan")
        return _loss_tensor(total, logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        # Kept by torch, which raises if one of them was changed in the meantime
        logits, target, weight = ctx.saved_tensors
        # A row whose loss counts u times is a row of weight u
        upstream = grad_output.double().numpy() * ctx.scale
        grad = numba_ce.grad_from_record(
            _array(logits),
            _array(target),
            scaled(ctx.record, upstream),
            class_offset=0,
            class_weight=_array(weight),
            sample_weight=np.broadcast_to(upstream, ctx.record.shape[:-1]),
            **ctx.options,
        )
        return _tensor(grad), None, None, None, None


def _cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    if target.is_floating_point() and ignore_index < 0:
        ignore_index = -100  # means nothing to torch either
    options: dict[str, Any] = {
        "axis": 0 if logits.ndim == 1 else 1,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
    }
    if not (torch.is_grad_enabled() and logits.requires_grad):
        loss = numba_ce.cross_entropy(
            _array(logits),
            _array(target),
            class_weight=_array(weight),
            reduction=reduction,
            **options,
        )
        return _loss_tensor(loss, logits)
    # Records are merged and finished on the host: on a device any gradient is kept
    kept = logits.numel() <= SMALL or not logits.is_cpu
    function = _Kept if kept else _Recomputed
    result: Tensor = function.apply(logits, target, weight, options, reduction)  # type: ignore[no-untyped-call]
    return result


@functools.cache
def _uncompiled() -> Any:
    return torch.compiler.disable(_cross_entropy)  # type: ignore[no-untyped-call]


def _outside_the_compiler(*arguments: Any) -> Tensor:
    """`_cross_entropy`, into which torch.compile does not look: it breaks its graph here."""
    # Not at import: torch.compiler.disable imports the compiler, which takes longer (1.2 s) than
    # torch itself. Who is compiling has imported it.
    function = _uncompiled() if "torch._dynamo" in sys.modules else _cross_entropy
    result: Tensor = function(*arguments)
    return result


_outside_the_compiler._torchdynamo_disable = True  # type: ignore[attr-defined] # as disable does


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy`, by the kernels of numba_ce.

    ``-log softmax(input)[target]`` along axis 1 (axis 0 of a tensor with one axis), in the accuracy
    of `numba_ce.cross_entropy`.

    Parameters
    ----------
    input : Tensor of shape (C,), (N, C) or (N, C, d1, ...)
        Logits: float16, bfloat16, float32 or float64.
    target : Tensor
        Class indices, of any integer dtype; or probabilities of the shape of `input`, which get no
        gradient.
    weight : Tensor of shape (C,), optional
        Class weights.
    size_average, reduce : bool, optional
        Deprecated in torch, with the meaning they have there.
    ignore_index, reduction, label_smoothing
        As in torch.

    Returns
    -------
    Tensor
        Of the dtype of `input`.

    Raises
    ------
    Exception
        Of the type and message of torch's own function, for what neither supports.
    NotImplementedError
        For `target` or `weight` that require a gradient.

    Notes
    -----
    Up to 2**18 logits, and for any number of them on a CUDA device, the gradient is computed in the
    forward pass and kept. Beyond, the forward pass keeps nine float64 numbers per row, and the
    backward pass reads the logits again. There is
    no second derivative. In an ignored row, infinite logits or NaN give loss and gradient 0; where
    every row is ignored, the mean is NaN as in torch and the gradient 0.

    Examples
    --------
    >>> import torch
    >>> from numba_ce.integrations.torch import cross_entropy
    >>> logits = torch.zeros(2, 4, requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([0, 1]))
    >>> loss.backward()
    >>> logits.grad[0]
    tensor([-0.3750,  0.1250,  0.1250,  0.1250])
    """
    if size_average is not None or reduce is not None:
        reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
    for tensor, name in ((target, "target"), (weight, "weight")):
        if isinstance(tensor, Tensor) and tensor.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(
                f"{name} requires a gradient: only input gets one, expected {name}.detach()"
            )
    try:
        return _outside_the_compiler(
            input, target, weight, ignore_index, reduction, label_smoothing
        )
    except (TypeError, ValueError, IndexError, RuntimeError, AttributeError):
        # Callers may expect torch's error; if torch has none, ours says what is not supported
        torch.nn.functional.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        raise


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` with the function `cross_entropy` of this module.

    Examples
    --------
    >>> import torch
    >>> from numba_ce.integrations.torch import CrossEntropyLoss
    >>> criterion = CrossEntropyLoss(label_smoothing=0.1)
    >>> criterion(torch.zeros(2, 4), torch.tensor([0, 1]))
    tensor(1.3863)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
