"""From a problem to the fields of a plan, and to the kernel that does it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from numba_ce._validate import float_name as checked_name
from numba_ce.cuda.choose import FEW_BYTES, resident_for
from numba_ce.cuda.intrinsics import KINDS
from numba_ce.cuda.kernel import Kernel
from numba_ce.cuda.plan import DEFAULTS, MAX_AXES, set_axes
from numba_ce.cuda.stage import fits
from numba_ce.cuda.thread_layout import WARPS, lanes_for, rows_at_once
from numba_ce.cuda.walk import Access
from numba_ce.describe import NUMBERS, OPERANDS, Form, describe_layout, form_of, kind_number
from numba_ce.options import TABLE


def float_name(dtype: Any) -> str:
    """The name of a dtype that has been checked (NumPy takes 3 us to find it)."""
    return checked_name(dtype) or ""


@lru_cache(maxsize=256)
def _layout(*forms: Form) -> dict[str, Any]:
    """The fields that shapes, strides and dtypes decide.

    forms : of the OPERANDS; remembered, because a call would spend 2 us here
    """
    fields = DEFAULTS.copy()
    set_axes(fields, describe_layout(fields, forms))
    fields["all_classes"] = fields["n_classes"]
    targets = forms[1]
    if targets is not None and not fields["targets_bytes"]:  # probabilities
        fields["targets_kind"] = kind_number(targets[2])
    return fields


def described(
    logits: Any, targets: Any = None, sample_weight: Any = None, grad: Any = None, hess: Any = None
) -> dict[str, Any]:
    """The fields for the logits (classes last) and what goes with their rows."""
    operands = logits, targets, sample_weight, grad, hess
    fields = _layout(*map(form_of, operands)).copy()
    for name, array in zip(OPERANDS, operands, strict=True):
        if array is not None:
            fields[name] = array.address
    return fields


def describe_class_weight(fields: dict[str, Any], class_weight: Any) -> None:
    """The class weights, if there are any."""
    if class_weight is not None:
        fields["class_weight"] = class_weight.address
        fields["class_weight_step"] = class_weight.strides[0]
        fields["class_weight_kind"] = kind_number(class_weight.dtype)


# Axes that are not in use have strides of 0
_PAIRS = tuple((f"grad_{axis}", f"logits_{axis}") for axis in range(MAX_AXES))


def _aligned_alike(fields: dict[str, Any], size: int) -> bool:
    """Whether the rows of the gradient start as far from full 16 bytes as those of the logits."""
    apart = fields["grad"] - fields["logits"]
    for grad, logits in _PAIRS:
        apart |= fields[grad] - fields[logits]
    return bool(fields["grad_step"] == size and apart % 16 == 0)


def arrange(
    fields: dict[str, Any],
    kind: str,
    softcap: bool = False,
    grad_kind: str | None = None,
    once: bool = False,
) -> Access:
    """How the general kernel reads such logits, maybe once; the fields get who shares a row."""
    size, n_classes = KINDS[kind][0], fields["n_classes"]
    contiguous = fields["logits_step"] == size
    # Neighbouring rows side by side and neighbouring classes not: lanes go along the rows
    beside = abs(fields["logits_3"]) < abs(fields["logits_step"]) and fields["length_3"] > 1
    if beside and not contiguous:
        lanes, across = 0, True
    else:  # a warp to a row at most, where every warp's row fits the stage
        lanes, across = lanes_for(n_classes), not fits(kind, n_classes, WARPS)
    fields["lanes"], fields["across"] = lanes, across
    at_once = rows_at_once(lanes, across)
    staged = contiguous and fits(kind, n_classes, at_once) and not (once and across)
    if at_once > 1:
        staged = staged and _dense(fields, grad_kind == kind, n_classes * size)
    if grad_kind == kind:
        staged = staged and _aligned_alike(fields, size)
    return Access(kind, staged, softcap, contiguous and not staged and size == 2)


def _dense(fields: dict[str, Any], with_grad: bool, row_bytes: int) -> bool:
    """Whether the rows lie one after the other, without a gap."""
    if fields["n_rows"] == 1:
        return True
    return (
        fields["length_2"] == 1
        and fields["logits_3"] == row_bytes
        and (not with_grad or fields["grad_3"] == row_bytes)
    )


def general_for(operation: str, fields: dict[str, Any], problem: Any, **kinds: Any) -> Kernel:
    """The general kernel for an operation on a problem; `kinds` of the outputs."""
    options, kind = problem.options, float_name(problem.logits.dtype)
    dense = problem.probabilities or options.label_smoothing != 0.0
    grad_kind = kinds.get("grad_kind")
    # Of class indices, the loss and the record follow from one pass
    once = operation in ("loss", "record") and grad_kind is None and not problem.probabilities
    access = arrange(fields, kind, options.softcap is not None, grad_kind, once)
    return Kernel(operation, access, dense, **kinds)


def loss_kernel(fields: dict[str, Any], problem: Any, grad: Any, capability: Any) -> Any:
    """The kernel for a loss: `Resident` if there is one for it, or the general one."""
    options, logits = problem.options, problem.logits
    kind = float_name(logits.dtype)
    size = KINDS[kind][0]
    grad_kind = None if grad is None else float_name(grad.dtype)
    plain = not problem.probabilities and all(
        getattr(options, name) == TABLE[name].default for name in NUMBERS
    )
    one_axis = fields["length_2"] == 1
    suits = plain and one_axis and fields["logits_step"] == size
    if suits and grad is not None:
        suits = grad_kind == kind and _aligned_alike(fields, size)
    if suits:
        row_bytes = fields["n_classes"] * size
        if row_bytes > FEW_BYTES or not _dense(fields, grad is not None, row_bytes):
            kernel = resident_for(kind, grad is not None, fields["n_classes"], capability)
            if kernel is not None:
                return kernel
    return general_for("loss", fields, problem, grad_kind=grad_kind)
