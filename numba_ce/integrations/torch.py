"""A drop-in for `torch.nn.functional.cross_entropy` that keeps a few numbers per row.

torch keeps the log-softmax, as large as the logits, until the backward pass. Here nine float64
numbers per row are kept (`numba_ce.row_record`), and the gradient is computed from the logits once
more. A tensor on the CPU is used where it lies, with any strides.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from numba_ce.integrations import _autograd

# Up to this many logits the gradient is made at once and kept: one call less of some 40 us each
SMALL = 1 << 18


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
    keep = "nothing"
    if torch.is_grad_enabled() and logits.requires_grad:
        # Records are merged and finished on the host: on a device any gradient is kept
        keep = "gradient" if logits.numel() <= SMALL or not logits.is_cpu else "record"
    axis = 0 if logits.ndim == 1 else 1
    plan = _autograd.Plan(axis, ignore_index, reduction, label_smoothing, keep)
    loss = _autograd.cross_entropy(logits, target, weight, plan)
    # As torch: float32 for logits of 16 bits under autocast, otherwise their own dtype
    return loss if torch.is_autocast_enabled(logits.device.type) else loss.to(logits.dtype)


_uncompiled: Any = None


def _outside_the_compiler(*arguments: Any) -> Tensor:
    """`_cross_entropy`, into which torch.compile does not look: it breaks its graph here."""
    # Not at import: torch.compiler.disable imports the compiler, which takes longer (1.2 s) than
    # torch itself. Who is compiling has imported it. No functools.cache, of which it warns
    global _uncompiled
    if "torch._dynamo" not in sys.modules:
        return _cross_entropy(*arguments)
    if _uncompiled is None:
        _uncompiled = torch.compiler.disable(_cross_entropy)  # type: ignore[no-untyped-call]
    result: Tensor = _uncompiled(*arguments)
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
        Of the dtype of `input`; under `torch.autocast` float32 for 16 bits.

    Raises
    ------
    Exception
        Of the type and message of torch's own function, for what neither supports.
    NotImplementedError
        For `target` or `weight` that require a gradient or have a tangent, and for a `weight` that
        vmap maps.

    Notes
    -----
    Up to 2**18 logits, and for any number of them on a CUDA device, the gradient is computed in the
    forward pass and kept. Beyond, the forward pass keeps nine float64 numbers per row, and the
    backward pass reads the logits again. Second derivatives (docs/mathematics.md), forward mode and
    the transforms of `torch.func` work for `input`; vmap does not map `weight`.
    In an ignored row, infinite logits or NaN give loss and gradient 0; where
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
