"""What compiled code passes is checked before anything is written, as `_validate` does it."""

import math

import numpy as np

from numba_ce.cpu.compile.jit import inner, smaller
from numba_ce.cpu.simd.element import get, put
from numba_ce.integrations.numba.call import (
    AT,
    CLASS_WEIGHT_LENGTH,
    DONE,
    NO_CLASSES,
    OPTION,
    OUT_OVERLAPS,
    OUT_SHAPE,
    OUT_STRIDES,
    SAMPLE_WEIGHT_LENGTH,
    SCALE,
    TARGETS_LENGTH,
)

I0 = np.int64(0)
LARGEST_64, LARGEST_32 = 2.0**1000, 2.0**120  # see `_validate.check_scale`


@inner
def fail(slots, status, a, b, c, d):
    """Note what an error is about; returns its status."""
    put(slots + AT.a, np.int64(a))
    put(slots + AT.b, np.int64(b))
    put(slots + AT.c, np.int64(c))
    put(slots + AT.d, np.int64(d))
    return status


@inner
def _fail_option(slots, status, which, value, double):
    put(slots + AT.x, value)
    return fail(slots, status, which, double, 0, 0)


@inner
def check_numbers(slots):
    """The options that are numbers."""
    smoothing, z_loss = get(slots + AT.label_smoothing, 0.0), get(slots + AT.z_loss, 0.0)
    softcap, temperature = get(slots + AT.softcap, 0.0), get(slots + AT.temperature, 0.0)
    if not 0.0 <= smoothing <= 1.0:
        return _fail_option(slots, OPTION, 0, smoothing, 0)
    if not 0.0 <= z_loss < math.inf:
        return _fail_option(slots, OPTION, 1, z_loss, 0)
    if get(slots + AT.has_softcap, I0) != 0 and not 0.0 < softcap < math.inf:
        return _fail_option(slots, OPTION, 2, softcap, 0)
    if not 0.0 < temperature < math.inf:
        return _fail_option(slots, OPTION, 3, temperature, 0)
    return DONE


@inner
def check_lengths(slots, n_rows, n_classes):
    """One target and one weight per row, one weight per class."""
    n_targets, n_weights = get(slots + AT.n_targets, I0), get(slots + AT.n_sample_weight, I0)
    n_class_weights = get(slots + AT.n_class_weight, I0)
    if n_targets != n_rows:
        return fail(slots, TARGETS_LENGTH, n_targets, n_rows, 0, 0)
    if get(slots + AT.class_weight, I0) != 0 and n_class_weights != n_classes:
        return fail(slots, CLASS_WEIGHT_LENGTH, n_class_weights, n_classes, 0, 0)
    if get(slots + AT.sample_weight, I0) != 0 and n_weights != n_rows:
        return fail(slots, SAMPLE_WEIGHT_LENGTH, n_weights, n_rows, 0, 0)
    return DONE


@inner
def check_scales(slots):
    """Temperatures and soft caps that would take constants out of their type."""
    double = get(slots + AT.double, I0)
    largest = LARGEST_64 if double != 0 else LARGEST_32
    temperature, softcap = get(slots + AT.temperature, 0.0), get(slots + AT.softcap, 0.0)
    if not 1.0 / largest <= temperature <= largest:
        return _fail_option(slots, SCALE, 3, temperature, double)
    if get(slots + AT.has_softcap, I0) != 0 and not 1.0 / largest <= softcap <= largest:
        return _fail_option(slots, SCALE, 2, softcap, double)
    return DONE


@inner
def _overlaps(address, n_rows, row, n_classes, step, width, low, high, extent, period):
    """Whether an array shares memory with the output, which lies from `low` to `high`.

    extent, period : of the output, the bytes that a row spans and those to the next row
    Columns of one array do not, as long as their rows do not run into each other.
    """
    if n_rows == 0 or n_classes == 0:
        return False
    start = address + smaller(0, (n_rows - 1) * row) + smaller(0, (n_classes - 1) * step)
    own = abs(step) * (n_classes - 1) + width
    end = start + abs(row) * (n_rows - 1) + own
    if end <= low or high <= start:
        return False
    if period == 0 or abs(row) != period:
        return True
    apart = (start - low) % period
    return apart < extent or apart + own > period


@inner
def check_out(slots, n_rows, n_classes):
    """A caller's output has the shape of the logits, and overlaps nothing but them exactly."""
    shape = get(slots + AT.grad_rows, I0), get(slots + AT.grad_classes, I0)
    if shape[0] != n_rows or shape[1] != n_classes:
        return fail(slots, OUT_SHAPE, shape[0], shape[1], n_rows, n_classes)
    if n_rows == 0 or n_classes == 0:
        return DONE
    width = 8 if get(slots + AT.double, I0) != 0 else 4
    grad, row, step = (
        get(slots + AT.grad, I0),
        get(slots + AT.grad_row, I0),
        get(slots + AT.grad_step, I0),
    )
    rows_end, classes_end = abs(row) * (n_rows - 1), abs(step) * (n_classes - 1)
    if n_classes > 1 and abs(step) < width:
        return fail(slots, OUT_STRIDES, row, step, 0, 0)
    rows_clear = abs(row) >= classes_end + width
    classes_clear = abs(row) >= width and abs(step) >= rows_end + width
    if n_rows > 1 and not rows_clear and not classes_clear:
        return fail(slots, OUT_STRIDES, row, step, 0, 0)
    low = grad + smaller(0, (n_rows - 1) * row) + smaller(0, (n_classes - 1) * step)
    extent, period = classes_end + width, abs(row) if rows_clear else 0
    high = low + rows_end + extent
    at, other, other_step = (
        get(slots + AT.logits, I0),
        get(slots + AT.logits_row, I0),
        get(slots + AT.logits_step, I0),
    )
    same = grad == at and (n_rows == 1 or row == other) and (n_classes == 1 or step == other_step)
    if not same and _overlaps(
        at, n_rows, other, n_classes, other_step, width, low, high, extent, period
    ):
        return fail(slots, OUT_OVERLAPS, 0, 0, 0, 0)
    at, other = get(slots + AT.targets, I0), get(slots + AT.targets_row, I0)
    size = get(slots + AT.targets_bytes, I0)
    if at != 0 and _overlaps(at, n_rows, other, 1, 0, size, low, high, extent, period):
        return fail(slots, OUT_OVERLAPS, 1, 0, 0, 0)
    at, other = get(slots + AT.sample_weight, I0), get(slots + AT.sample_weight_row, I0)
    size = 8 if get(slots + AT.sample_weight_double, I0) != 0 else 4
    if at != 0 and _overlaps(at, n_rows, other, 1, 0, size, low, high, extent, period):
        return fail(slots, OUT_OVERLAPS, 2, 0, 0, 0)
    at, other = get(slots + AT.class_weight, I0), get(slots + AT.class_weight_step, I0)
    size = 8 if get(slots + AT.class_weight_double, I0) != 0 else 4
    if at != 0 and _overlaps(at, n_classes, other, 1, 0, size, low, high, extent, period):
        return fail(slots, OUT_OVERLAPS, 3, 0, 0, 0)
    return DONE


@inner
def check(slots, is_loss):
    """DONE, or what is wrong."""
    n_rows, n_classes = get(slots + AT.n_rows, I0), get(slots + AT.n_classes, I0)
    status = DONE
    if is_loss:
        status = check_numbers(slots)
        if status == DONE:
            status = check_lengths(slots, n_rows, n_classes)
    if status == DONE and get(slots + AT.is_given, I0) != 0:
        status = check_out(slots, n_rows, n_classes)
    if status == DONE and is_loss and n_rows > 0:
        if n_classes == 0:
            status = fail(slots, NO_CLASSES, n_rows, 0, 0, 0)
        else:
            status = check_scales(slots)
    return status
