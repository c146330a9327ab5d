"""What a call is, in numbers: one description for every compiled backend."""

from __future__ import annotations

import numpy as np
import pytest

from numba_ce.describe import (
    OPERANDS,
    classes_of,
    describe_hess,
    describe_layout,
    describe_options,
    describe_shard,
    form_of,
)
from numba_ce.options import LossOptions

LOGITS = np.zeros((3, 4, 5), np.float32)


def described(logits, targets=None, sample_weight=None, grad=None, hess=None):
    fields = {"targets_bytes": 0, "targets_signed": False}
    operands = logits, targets, sample_weight, grad, hess
    return fields, describe_layout(fields, [form_of(array) for array in operands])


def test_dense_rows_are_one_axis():
    fields, axes = described(LOGITS, np.zeros((3, 4), np.int16), grad=LOGITS)
    assert axes == [[12, 20, 2, 0, 20, 0]]
    assert len(axes[0]) == 1 + len(OPERANDS)
    assert (fields["n_rows"], fields["n_classes"]) == (12, 5)
    assert (fields["logits_step"], fields["grad_step"]) == (4, 4)
    assert "hess_step" not in fields


def test_axes_are_merged_only_where_every_operand_allows():
    weight = np.zeros((3, 8), np.float64)[:, ::2]
    _, axes = described(LOGITS, sample_weight=weight)
    assert axes == [[12, 20, 0, 16, 0, 0]]
    _, axes = described(LOGITS, sample_weight=np.zeros((3, 7))[:, :4])
    assert axes == [[3, 80, 0, 56, 0, 0], [4, 20, 0, 8, 0, 0]]


def test_axes_of_one_entry_are_none():
    assert described(LOGITS[:1, :1])[1] == []
    assert described(LOGITS[0, 0])[1] == []
    assert described(LOGITS[:1])[1] == [[4, 20, 0, 0, 0, 0]]


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_class_indices(dtype):
    fields, _ = described(LOGITS, np.zeros((3, 4), dtype))
    assert fields["targets_bytes"] == int(dtype[1])
    assert fields["targets_signed"] == (dtype[0] == "i")
    assert "targets_step" not in fields


def test_a_class_index_of_one_row():
    fields, _ = described(LOGITS[0, 0], np.array(3, np.int32))
    assert (fields["targets_bytes"], fields["n_rows"]) == (4, 1)


def test_probabilities_have_a_step_and_no_width():
    spread = np.zeros((3, 4, 10))[..., ::2]
    fields, _ = described(LOGITS, spread)
    assert (fields["targets_step"], fields["targets_bytes"]) == (16, 0)
    fields, _ = described(LOGITS, np.broadcast_to(np.float32(0), LOGITS.shape))
    assert (fields["targets_step"], fields["targets_bytes"]) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "number"), [("<f2", 0), (">f2", 0), ("<f4", 2), (">f4", 2), ("<f8", 3), (">f8", 3)]
)
def test_kind_of_the_weights_in_any_byte_order(kind, number):
    assert described(LOGITS, None, np.zeros((3, 4), kind))[0]["sample_weight_kind"] == number


@pytest.mark.parametrize(
    ("index", "signed", "expected"),
    [(-100, True, -100), (-100, False, None), (None, True, None), (2**64 - 1, False, -1)],
)
def test_ignore_index_as_kernels_compare_it(index, signed, expected):
    fields = {"targets_signed": signed}
    describe_options(fields, LossOptions(ignore_index=index), "float32", "on the CPU")
    assert fields.get("ignore_index") == expected
    assert fields.get("has_ignore_index", False) == (expected is not None)


@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("where", ["on the CPU", "on CUDA"])
def test_scales_beyond_the_kind(name, where):
    options = LossOptions(**{name: 1e200})
    with pytest.raises(ValueError, match=f"^{name} = 1e.200: expected .* float32 logits {where}$"):
        describe_options({"targets_signed": True}, options, "float32", where)
    fields = {"targets_signed": True}
    describe_options(fields, options, "float64", where)
    assert fields[name] == 1e200


@pytest.mark.parametrize(
    ("kind", "n_classes", "factor", "floor"),
    [("diagonal", 4, 1.0, 0.0), ("xgboost", 4, 2.0, 1e-16), ("lightgbm", 4, 4 / 3, 0.0),
     ("lightgbm", 1, 0.0, 0.0)],
)  # fmt: skip
def test_hess(kind, n_classes, factor, floor):
    fields = {}
    describe_hess(fields, n_classes, kind)
    assert fields == {"hess_factor": factor, "hess_floor": floor}


def test_shard():
    fields = {}
    describe_shard(fields, 3, 10)
    assert fields == {"class_offset": 3, "all_classes": 10}
    assert classes_of(np.full((2, 9), 10.0)) == 10
