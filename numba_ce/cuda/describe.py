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
from numba_ce.cuda.thread_layout import FEW_CLASSES
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


def access_of(
    fields: dict[str, Any], kind: str, softcap: bool, grad_kind: str | None, reads: int
) -> Access:
    """How the general kernel reads such logits, which it needs `reads` times."""
    size, n_classes = KINDS[kind][0], fields["n_classes"]
    if fields["logits_step"] != size:
        # Neighbouring rows side by side and neighbouring classes not: lanes go along the rows
        beside = abs(fields["logits_3"]) < abs(fields["logits_step"]) and fields["length_3"] > 1
        return Access(kind, False, "beside" if beside else "row", softcap)
    if grad_kind != kind or _aligned_alike(fields, size):
        if n_classes <= FEW_CLASSES and _dense(fields, grad_kind == kind, n_classes * size):
            return Access(kind, False, "few", softcap)
        if reads > 1 and fits(kind, n_classes):
            return Access(kind, False, "staged", softcap)
    return Access(kind, kind != "float64", "row", softcap)


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
    options, grad_kind = problem.options, kinds.get("grad_kind")
    # Of class indices, the loss and the record follow from one pass
    once = operation in ("loss", "record") and grad_kind is None and not problem.probabilities
    kind, softcap = float_name(problem.logits.dtype), options.softcap is not None
    return Kernel(
        operation,
        access_of(fields, kind, softcap, grad_kind, 1 if once else 2),
        problem.probabilities,
        smoothing=options.label_smoothing != 0.0 and not problem.probabilities,
        **kinds,
    )


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
