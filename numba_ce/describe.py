"""What a call is, in the numbers that every compiled backend needs of it.

Each function fills in fields, by the names that they have in the plans of all backends. What only
one backend needs it adds itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numba_ce._validate import FLOATS, check_scale, encoded_ignore_index, float_name
from numba_ce.options import LossOptions

#: Shape, strides and dtype of an array, the classes last; None: there is no such array.
Form = tuple[tuple[int, ...], tuple[int, ...], Any] | None
#: The arrays that have one entry, or one row of entries, per row of the logits.
OPERANDS = ("logits", "targets", "sample_weight", "grad", "hess")
#: The options that are one number, and the fields of every plan that hold them; 0.0 for None.
NUMBERS = {
    name: "smoothing" if name == "label_smoothing" else name
    for name in LossOptions._fields
    if name not in ("ignore_index", "check_targets")
}


def form_of(array: Any) -> Form:
    """What a description may depend on, to be remembered by."""
    return None if array is None else (array.shape, array.strides, array.dtype)


def kind_number(dtype: Any) -> int:
    """Which of FLOATS a dtype is, in any byte order."""
    return FLOATS.index(float_name(dtype) or "")


def describe_layout(fields: dict[str, Any], forms: Sequence[Form]) -> list[list[int]]:
    """How many rows and classes, where the classes of each operand lie, and what targets are.

    forms : of the OPERANDS

    Returns
    -------
    axes : row axes as few as possible, the last one fastest; for each its length, and for each
        operand the bytes from entry to entry
    """
    logits = forms[0]
    assert logits is not None
    shape = logits[0]
    n_axes = len(shape) - 1
    fields["n_rows"], fields["n_classes"] = math.prod(shape[:-1]), shape[-1]
    strides = []
    for name, form in zip(OPERANDS, forms, strict=True):
        if form is None:
            strides.append((0,) * n_axes)
            continue
        _, own, dtype = form
        strides.append(own[:n_axes])
        if name == "sample_weight":
            fields["sample_weight_kind"] = kind_number(dtype)
        elif len(own) > n_axes:  # of targets: probabilities
            fields[name + "_step"] = own[-1]
        else:
            fields["targets_bytes"] = dtype.itemsize
            fields["targets_signed"] = dtype.kind == "i"
    return _merged(shape[:-1], strides)


def _merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    axes: list[list[int]] = []
    for axis, length in enumerate(shape):
        if length == 1:
            continue
        entry = [length, *[s[axis] for s in strides]]
        if axes and all(
            outer == inner * length for outer, inner in zip(axes[-1][1:], entry[1:], strict=True)
        ):
            entry[0] *= axes.pop()[0]
        axes.append(entry)
    return axes


def describe_options(fields: dict[str, Any], options: LossOptions, kind: str, where: str) -> None:
    """ignore_index and NUMBERS; after `describe_layout`.

    kind : of the logits; where : see `check_scale`
    """
    ignored = encoded_ignore_index(options.ignore_index, bool(fields["targets_signed"]))
    if ignored is not None:
        fields["has_ignore_index"], fields["ignore_index"] = True, ignored
    if options.temperature != 1.0:
        check_scale("temperature", options.temperature, kind, where)
    if options.softcap is not None:
        check_scale("softcap", options.softcap, kind, where)
    for name, field in NUMBERS.items():
        fields[field] = getattr(options, name) or 0.0


def describe_hess(fields: dict[str, Any], n_classes: int, kind: str) -> None:
    """The Hessian is s max(factor Q p (1 - p), floor)."""
    lightgbm = n_classes / (n_classes - 1) if n_classes > 1 else 0.0
    fields["hess_factor"] = {"diagonal": 1.0, "xgboost": 2.0, "lightgbm": lightgbm}[kind]
    fields["hess_floor"] = 1e-16 if kind == "xgboost" else 0.0


def describe_shard(fields: dict[str, Any], class_offset: int, all_classes: int) -> None:
    """Which classes of the whole row the logits are."""
    fields["class_offset"], fields["all_classes"] = class_offset, all_classes


def classes_of(record: Any) -> int:
    """How many classes the rows have that records are of."""
    return int(record[..., 8].max())
