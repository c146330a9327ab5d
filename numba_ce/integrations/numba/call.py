"""A call from compiled code, as `enter` gets it: numbers of eight bytes, one after another.

Code that is kept on disk by another version of this package may pass other numbers, so the first
one is a stamp, which `enter` compares with its own. Its place, the name `SYMBOL`, and what `STALE`
means never change.
"""

from typing import NamedTuple

import numpy as np

#: The name by which compiled code finds `enter`.
SYMBOL = "numba_ce_enter"
#: What is computed.
OPERATIONS = ("cross_entropy", "cross_entropy_and_grad", "softmax", "log_softmax", "logsumexp")
#: The options that are checked with their values, in the order in which Python checks them.
NUMBERS = ("label_smoothing", "z_loss", "softcap", "temperature")


class Slots(NamedTuple):
    """Offsets in bytes; float64 where it says so, otherwise int64."""

    stamp: int
    operation: int  # of OPERATIONS
    double: int  # float64, not float32
    n_rows: int
    n_classes: int
    # addresses, and bytes from row to row and from class to class
    logits: int
    logits_row: int
    logits_step: int
    grad: int
    grad_row: int
    grad_step: int
    is_given: int  # the gradient is an array of the caller's
    grad_rows: int  # its shape
    grad_classes: int
    targets: int
    targets_row: int
    n_targets: int
    targets_bytes: int
    targets_signed: int
    # their addresses are 0 where there are none
    sample_weight: int
    sample_weight_row: int
    n_sample_weight: int
    sample_weight_double: int
    class_weight: int
    class_weight_step: int
    n_class_weight: int
    class_weight_double: int
    # options
    has_ignore_index: int
    ignore_index: int
    label_smoothing: int  # float64
    z_loss: int  # float64
    softcap: int  # float64; 0.0 unless has_softcap
    has_softcap: int
    temperature: int  # float64
    check_targets: int
    averaged: int
    # results
    rows: int  # address of the row losses, or of the log-sum-exps; 0: only their sum is wanted
    result: int  # float64: the mean or the sum
    # what an error is about, see `errors`
    a: int
    b: int
    c: int
    d: int
    x: int  # float64


AT = Slots(*range(0, 8 * len(Slots._fields), 8))

# What `enter` returns
DONE = np.int64(0)
STALE = np.int64(-1)  # compiled with another version of this package
NO_KERNEL = np.int64(-2)
NO_MEMORY = np.int64(-3)
BAD_TARGET = np.int64(1)  # row a with target b of c classes; d: whether they are unsigned
TARGETS_LENGTH = np.int64(2)  # a instead of b
SAMPLE_WEIGHT_LENGTH = np.int64(3)
CLASS_WEIGHT_LENGTH = np.int64(4)
OUT_SHAPE = np.int64(5)  # (a, b) instead of (c, d)
OUT_STRIDES = np.int64(6)  # a and b
OUT_OVERLAPS = np.int64(7)  # a: which of OVERLAPPED
OPTION = np.int64(8)  # a: which of NUMBERS, x: its value
SCALE = np.int64(9)  # a: which of NUMBERS, b: double, x: its value
NO_CLASSES = np.int64(10)  # a rows
OVERLAPPED = ("logits", "targets", "sample_weight", "class_weight")
