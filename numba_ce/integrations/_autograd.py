"""The functions of torch.autograd under `numba_ce.integrations.torch`.

`_Gradient` is the derivative of `_Loss`, in backward and in forward mode. Its own derivative, the
Hessian times a vector (docs/mathematics.md), is made of operations of torch, which differentiates
them further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import numba_ce
from numba_ce.integrations._tensors import Positional, array_of, has_memory, loss_dtype, tensor_of
from numba_ce.records import scaled


@dataclass(frozen=True, slots=True)
class Plan:
    """The arguments that are no tensors."""

    axis: int  # of the classes
    ignore_index: int
    reduction: str
    label_smoothing: float
    # What `_Loss` keeps for the gradient: "gradient" or "record"; "nothing" if none is expected
    keep: str
    n_batch: int = 0  # axes in front that vmap has added: each of their entries has its own loss

    def options(self) -> dict[str, Any]:
        """Those of the functions of numba_ce."""
        return {
            "axis": self.axis,
            "label_smoothing": self.label_smoothing,
            "ignore_index": self.ignore_index,
        }


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None, plan: Plan) -> Tensor:
    """The loss, float64 for float64 logits, otherwise float32."""
    loss: Tensor = _Loss.apply(logits, target, weight, plan)[0]  # type: ignore[no-untyped-call]
    return loss


# ---------------------------------------------------------------- between torch and NumPy


def _arrays(logits: Tensor, target: Tensor, weight: Tensor | None, plan: Plan) -> dict[str, Any]:
    """The arguments of the functions of numba_ce."""
    return {
        "logits": array_of(logits, "input"),
        "targets": array_of(target, "target"),
        "class_weight": array_of(weight, "weight"),
        **plan.options(),
    }


# ---------------------------------------------------------------- what a row weighs


def _row_weights(target: Tensor, weight: Tensor | None, plan: Plan) -> Tensor:
    """What rows of class indices add to the denominator of a mean: w_y, or 0 if ignored."""
    counts = target != plan.ignore_index
    if weight is None:
        return counts.double()
    return torch.where(counts, weight.double()[torch.where(counts, target, 0).long()], 0.0)


def _scale(target: Tensor, weight: Tensor | None, plan: Plan) -> Tensor:
    """The factor that makes a mean of a sum, 0 over nothing; one for each entry of vmap's axes."""
    if target.is_floating_point():
        batch, axis = target.shape[: plan.n_batch], plan.axis
        n_rows = math.prod(target.shape[plan.n_batch : axis] + target.shape[axis + 1 :])
        denominator = target.new_full(batch, n_rows, dtype=torch.float64)
    else:
        denominator = _total(_row_weights(target, weight, plan), plan)
    return torch.where(denominator == 0.0, 0.0, 1.0 / denominator)


def _total(rows: Tensor, plan: Plan) -> Tensor:
    """The sum over all axes but those of vmap, in float64."""
    return rows.reshape(*rows.shape[: plan.n_batch], -1).sum(-1, dtype=torch.float64)


def _over_logits(of_losses: Tensor, logits: Tensor, plan: Plan) -> Tensor:
    """A number for each loss, to be broadcast against the logits."""
    if plan.reduction == "none":
        return of_losses.unsqueeze(plan.axis)
    return of_losses.reshape(of_losses.shape + (1,) * (logits.ndim - plan.n_batch))


# ---------------------------------------------------------------- the loss


def _loss_and_gradient(
    logits: Tensor, target: Tensor, weight: Tensor | None, plan: Plan, reduction: Any
) -> tuple[Tensor, Tensor]:
    arguments = _arrays(logits, target, weight, plan)
    # Of 16 bits in float32, to be rounded once, when the upstream gradient has scaled it. Else no
    # `out`: no overlap to look for, which takes 5 us
    if logits.dtype.itemsize == 2:
        arguments["out"] = array_of(torch.empty_like(logits, dtype=torch.float32), "out")
    loss, grad = numba_ce.cross_entropy_and_grad(**arguments, reduction=reduction)
    return tensor_of(loss), tensor_of(grad)


def _loss_and_record(
    logits: Tensor, target: Tensor, weight: Tensor | None, plan: Plan
) -> tuple[Tensor, Tensor]:
    arguments = _arrays(logits, target, weight, plan)
    record = numba_ce.row_record(**arguments, class_offset=0, n_classes=logits.shape[plan.axis])
    return torch.from_numpy(numba_ce.loss_from_record(record)), torch.from_numpy(record)


def _loss_and_kept(
    logits: Tensor, target: Tensor, weight: Tensor | None, plan: Plan
) -> tuple[Tensor, Tensor]:
    """The loss, and what is kept for its gradient."""
    # The kernels reduce over all rows, also over those of different losses
    reduction: Any = "none" if plan.n_batch or plan.keep == "record" else plan.reduction
    if plan.keep == "record":
        loss, kept = _loss_and_record(logits, target, weight, plan)
    elif plan.keep == "gradient":
        loss, kept = _loss_and_gradient(logits, target, weight, plan, reduction)
    else:
        arguments = _arrays(logits, target, weight, plan)
        loss = tensor_of(numba_ce.cross_entropy(**arguments, reduction=reduction))
        kept = logits.new_empty(0)
    if reduction != plan.reduction:
        loss = _total(loss, plan)
        if plan.reduction == "mean":
            scale = _scale(target, weight, plan)
            loss = torch.where(scale == 0.0, torch.nan, loss * scale)
            if plan.keep == "gradient":
                over_logits = _over_logits(scale, logits, plan)
                kept = torch.where(over_logits == 0.0, 0.0, kept * over_logits).to(kept.dtype)
    return loss.to(loss_dtype(logits)), kept


class _Loss(torch.autograd.Function):
    """The loss and what is kept for its gradient, in the dtypes of numba_ce."""

    @staticmethod
    def forward(logits: Tensor, target: Tensor, weight: Tensor | None, plan: Plan) -> Any:
        return _loss_and_kept(logits, target, weight, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.plan = inputs
        # Not saved, so that it can be given away
        ctx.kept = output[1]
        ctx.mark_non_differentiable(ctx.kept)
        ctx.set_materialize_grads(False)
        # torch raises in the backward pass if one of them was changed in the meantime
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> Any:
        logits, target, weight = ctx.saved_tensors
        if upstream is None:
            return None, None, None, None
        # Only where nothing is derived from it. `pop` is one step, so that no two threads get the
        # same; who asks again (retain_graph) gets another
        once = ctx.plan.keep == "gradient" and not torch.is_grad_enabled()
        if once and has_memory(upstream):
            kept = vars(ctx).pop("kept", None)
            if kept is not None:
                return _multiplied(kept, upstream, logits, ctx.plan), None, None, None
        return _gradient(upstream, ctx, logits, target, weight), None, None, None

    @staticmethod
    def jvp(ctx: Any, direction: Tensor | None, *others: Any) -> Any:
        _check_tangents(*others[:2])
        assert direction is not None
        return _slope(direction, (*ctx.saved_tensors, ctx.kept), ctx.plan), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        logits, target, weight, plan = inputs
        _check_mapped(in_dims[2])
        logits, target = _batched(info, in_dims[:2], (logits, target))
        result = _Loss.apply(logits, target, weight, _inner(plan))  # type: ignore[no-untyped-call]
        return result, (0, None if plan.keep == "nothing" else 0)


_Loss.forward.__signature__ = Positional()  # type: ignore[attr-defined]


# ---------------------------------------------------------------- its gradient


def _multiplied(kept: Tensor, upstream: Tensor, logits: Tensor, plan: Plan) -> Tensor:
    """The gradient that was kept, times the upstream, in the same memory."""
    # No waiting for a device
    if upstream.ndim or not upstream.is_cpu or upstream.item() != 1.0:
        kept.mul_(_over_logits(upstream, logits, plan))
    return kept.to(logits.dtype)


def _gradient(
    upstream: Tensor, ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None
) -> Any:
    """The gradient as something that can be derived and mapped."""
    kept, plan = vars(ctx).get("kept"), ctx.plan
    if kept is None:
        kept, plan = logits.new_empty(0), replace(plan, keep="nothing")
    return _Gradient.apply(upstream, logits, target, weight, kept, plan)  # type: ignore[no-untyped-call]


def _upstream_times_gradient(
    upstream: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    kept: Tensor,
    plan: Plan,
) -> Tensor:
    if plan.keep != "record" or not has_memory(upstream):
        if plan.keep != "gradient":
            plan = replace(plan, keep="gradient")
            _, kept = _loss_and_kept(logits, target, weight, plan)
        return (kept * _over_logits(upstream, logits, plan)).to(logits.dtype)
    # A row whose loss counts u times is a row of weight u
    if plan.reduction == "mean":
        upstream = upstream.double() * _scale(target, weight, plan)
    by_row = array_of(_over_logits(upstream.double(), logits, plan), "upstream")
    record = array_of(kept, "record")
    by_row = np.broadcast_to(by_row.squeeze(plan.axis), record.shape[:-1])
    arguments = _arrays(logits, target, weight, plan)
    grad = numba_ce.grad_from_record(
        **arguments, record=scaled(record, by_row), class_offset=0, sample_weight=by_row
    )
    if logits.dtype == torch.bfloat16:
        return torch.from_numpy(grad.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(grad)


class _Gradient(torch.autograd.Function):
    """The gradient of `_Loss`, times that of what is computed from the loss."""

    @staticmethod
    def forward(upstream: Tensor, *inputs: Any) -> Tensor:
        return _upstream_times_gradient(upstream, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.plan = inputs
        ctx.set_materialize_grads(False)  # a tangent of zeros looks like one of the target
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, direction: Tensor | None) -> Any:
        upstream, *saved = ctx.saved_tensors
        of_upstream = of_logits = None
        if direction is None:
            return None, None, None, None, None, None
        if ctx.needs_input_grad[0]:
            of_upstream = _slope(direction, saved, ctx.plan)
        if ctx.needs_input_grad[1]:
            of_logits = _hessian_times(direction, upstream, saved, ctx.plan)
        return of_upstream, of_logits, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, of_upstream: Tensor | None, direction: Tensor | None, *others: Any) -> Any:
        _check_tangents(*others[:2])
        upstream, *saved = ctx.saved_tensors
        result = torch.zeros_like(saved[0])
        if of_upstream is not None:
            result = result + _Gradient.apply(of_upstream, *saved, ctx.plan)  # type: ignore[no-untyped-call]
        if direction is not None:
            result = result + _hessian_times(direction, upstream, saved, ctx.plan)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        upstream, logits, target, weight, kept, plan = inputs
        _check_mapped(in_dims[3])
        dims = in_dims[:3]
        upstream, logits, target = _batched(info, dims, (upstream, logits, target))
        if plan.keep != "nothing":
            (kept,) = _batched(info, (in_dims[4],), (kept,))
        result = _Gradient.apply(upstream, logits, target, weight, kept, _inner(plan))  # type: ignore[no-untyped-call]
        return result, 0


# ---------------------------------------------------------------- the second derivative


def _slope(direction: Tensor, saved: Any, plan: Plan) -> Tensor:
    """The slope of each loss along a direction of the logits."""
    logits = saved[0]
    shape = logits.shape[: plan.n_batch]
    if plan.reduction == "none":
        shape = logits.shape[: plan.axis] + logits.shape[plan.axis + 1 :]
    ones = logits.new_ones(shape, dtype=loss_dtype(logits))
    products = _Gradient.apply(ones, *saved, plan).double() * direction.double()  # type: ignore[no-untyped-call]
    by_loss = products.sum(plan.axis) if plan.reduction == "none" else _total(products, plan)
    return by_loss.to(ones.dtype)


def _sum_of_target(logits: Tensor, target: Tensor, weight: Tensor | None, plan: Plan) -> Tensor:
    """Q: the sum of the effective target of each row, with a class axis of length 1."""
    smoothing, axis = plan.label_smoothing, plan.axis
    w = logits.new_ones(logits.shape[axis], dtype=torch.float64)
    w = w if weight is None else weight.double()
    if not target.is_floating_point():
        total = (1.0 - smoothing) * _row_weights(target, weight, plan) + smoothing * w.mean()
        return torch.where(target == plan.ignore_index, 0.0, total).unsqueeze(axis)
    total = smoothing * w.mean()
    if smoothing != 1.0:  # else the probabilities mean nothing, not even NaN
        over_classes = w.reshape(-1, *(1,) * (logits.ndim - 1 - axis))
        total = total + (1.0 - smoothing) * (over_classes * target.double()).sum(axis, keepdim=True)
    return total


def _hessian_times(direction: Tensor, upstream: Tensor, saved: Any, plan: Plan) -> Tensor:
    """The derivative of the gradient along a direction of the logits, docs/mathematics.md (24)."""
    logits, target, weight, _ = saved
    axis, factor = plan.axis, upstream.double()
    total = _sum_of_target(logits, target, weight, plan)
    ignored = torch.zeros_like(total, dtype=torch.bool)
    if not target.is_floating_point():
        ignored = (target == plan.ignore_index).unsqueeze(axis)
    if plan.reduction == "mean":
        scale = _scale(target, weight, plan)
        factor = factor * scale
        ignored = ignored | (_over_logits(scale, logits, plan) == 0.0)
    z = torch.where(ignored, 0.0, logits.double())
    p, v = z.softmax(axis), direction.double()
    v = v - v.gather(axis, z.argmax(axis, keepdim=True))
    hessian = torch.where(ignored, 0.0, total) * p * (v - (p * v).sum(axis, keepdim=True))
    return (_over_logits(factor, logits, plan) * hessian).to(logits.dtype)


# ---------------------------------------------------------------- torch.func


def _inner(plan: Plan) -> Plan:
    """The plan for tensors with one more axis of vmap in front."""
    return replace(plan, axis=plan.axis + 1, n_batch=plan.n_batch + 1)


def _batched(info: Any, in_dims: Any, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors with the axis of vmap in front, also those that are the same for all."""
    return [
        tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    ]


def _check_mapped(dim: int | None) -> None:
    if dim is not None:
        raise NotImplementedError(
            f"weight is mapped over its axis {dim} by vmap: expected one weight for all, in_dims "
            "None"
        )


def _check_tangents(target: Any, weight: Any) -> None:
    for tangent, name in ((target, "target"), (weight, "weight")):
        if tangent is not None:
            raise NotImplementedError(f"{name} has a tangent: expected one of input alone")
