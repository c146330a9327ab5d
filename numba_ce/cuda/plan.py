"""What a kernel is told: numbers of 8 bytes each, the same ones in the same order for all kernels.

A kernel takes one named tuple, which the compiler hands over as that many scalar parameters; a
launch packs them in one go. Addresses and strides are int64 bytes: nothing here is limited to
2**31 elements.
"""

import struct
from collections import namedtuple

from numba.core import types

from numba_ce.cuda.intrinsics import inner
from numba_ce.describe import NUMBERS, OPERANDS

# Row axes that a kernel walks, neighbours merged where their strides allow
MAX_AXES = 4
_NAMES = tuple(tuple(f"{what}_{n}" for what in ("length", *OPERANDS)) for n in range(MAX_AXES))
_AXES = sum(_NAMES, ())
_FLOATS = (
    *NUMBERS.values(),
    "grad_scale",  # 1 / denominator of the mean, or 1
    "hess_factor",  # hess = s max(factor Q p (1 - p), floor)
    "hess_floor",
)
FIELDS = (
    # the problem
    "n_rows",
    "n_classes",
    *_AXES,  # of each row axis: its length and the strides of the operands; the last moves fastest
    # inputs: address, and bytes from class to class
    "logits",
    "logits_step",
    "targets",  # 0: none
    "targets_step",  # probabilities only
    "targets_bytes",  # 1, 2, 4, 8; 0: probabilities
    "targets_signed",
    "sample_weight",  # 0: none
    "sample_weight_kind",  # index into KINDS
    "class_weight",  # 0: none
    "class_weight_step",
    "class_weight_kind",
    # options
    "has_ignore_index",
    "ignore_index",
    "class_offset",  # the first class of this shard
    "all_classes",  # of the whole row; n_classes of it are here
    *_FLOATS,
    # outputs: address or 0; those without a stride are C-contiguous over the rows
    "grad",
    "grad_step",
    "hess",
    "hess_step",
    "loss",
    "loss_bytes",  # 4 or 8: of every per-row result
    "row_loss",  # float64 (n_rows,), for the sum
    "row_max",
    "lse",
    "entropy",
    "target_logit",
    "argmax",  # int64
    "rank",  # int64
    "record",  # float64 (n_rows, 9)
    # sums over the rows (see totals.py)
    "state",  # STATE, or 0: grad_scale is all there is
    "partial",  # float64 (n_partials,)
    "partial_bad",  # int64 (n_partials,)
    "n_partials",
    # After `targets_bytes` it would make the largest register-resident kernels spill: the compiler
    # loads the parameters in pairs
    "targets_kind",  # index into KINDS, of probabilities; or NOTHING
    # how the general kernel's threads share rows, see `thread_layout`
    "lanes",
    "across",
)
Plan = namedtuple("Plan", FIELDS)
PLAN_TYPE = types.NamedTuple(
    [types.float64 if name in _FLOATS else types.int64 for name in FIELDS], Plan
)
PACKER = struct.Struct("=" + "".join("d" if name in _FLOATS else "q" for name in FIELDS))
NOTHING = 4  # no kind of float: 0 without a look at the memory
DEFAULTS = dict.fromkeys(FIELDS, 0) | {"temperature": 1.0, "grad_scale": 1.0}
DEFAULTS["targets_kind"] = NOTHING
DEFAULTS |= {f"length_{axis}": 1 for axis in range(MAX_AXES)}

# What a check of the targets leaves on the device: the weights' sum (float64), and the first row
# with a bad target (int64), or NO_ROW
STATE_BYTES = 16
NO_ROW = 2**52  # exact in float64


@inner
def locate(plan, row):
    """Byte offsets of one row in the five OPERANDS."""
    if plan.length_2 <= 1:  # one axis
        return (
            row * plan.logits_3,
            row * plan.targets_3,
            row * plan.sample_weight_3,
            row * plan.grad_3,
            row * plan.hess_3,
        )
    rest = row // plan.length_3
    i = row - rest * plan.length_3
    outer = rest // plan.length_2
    j = rest - outer * plan.length_2
    first = outer // plan.length_1
    k = outer - first * plan.length_1
    logits = i * plan.logits_3 + j * plan.logits_2 + k * plan.logits_1 + first * plan.logits_0
    targets = i * plan.targets_3 + j * plan.targets_2 + k * plan.targets_1 + first * plan.targets_0
    weight = i * plan.sample_weight_3 + j * plan.sample_weight_2
    weight += k * plan.sample_weight_1 + first * plan.sample_weight_0
    grad = i * plan.grad_3 + j * plan.grad_2 + k * plan.grad_1 + first * plan.grad_0
    hess = i * plan.hess_3 + j * plan.hess_2 + k * plan.hess_1 + first * plan.hess_0
    return logits, targets, weight, grad, hess


def set_axes(fields, axes):
    """Write merged axes into the fields; the last one moves fastest."""
    if len(axes) > MAX_AXES:
        raise ValueError(
            f"the rows lie along {len(axes)} axes that cannot be merged: expected at most "
            f"{MAX_AXES} on the device (copy the array into C order)"
        )
    for names, entry in zip(reversed(_NAMES), reversed(axes)):
        fields.update(zip(names, entry))
