"""What a general kernel is compiled for, where its threads stand, what they read of a row."""

from functools import cache
from typing import NamedTuple

import numpy as np

from numba_ce.cuda.intrinsics import inner, load_f64
from numba_ce.cuda.measure import Variant, make_peak_finder
from numba_ce.cuda.targets import (
    IGNORED,
    KEPT,
    Target,
    class_weight,
    index_target,
    load_probability,
    load_weight,
    smoothed,
)
from numba_ce.cuda.walk import Access, make_capper, make_logit_loader, staged_out


class Kernel(NamedTuple):
    """What one compiled general kernel is for."""

    operation: str
    access: Access
    probabilities: bool = False  # targets are probabilities; otherwise class indices or nothing
    grad_kind: str | None = None  # dtype of the gradient or of the probabilities written
    hess_kind: str | None = None
    smoothing: bool = False  # of class indices; probabilities are read as smoothed ones anyway

    def variant(self, **changes):
        """What has to be measured for it."""
        dense = self.smoothing or self.probabilities
        return Variant(self.access, dense, self.probabilities, **changes)


class Row(NamedTuple):
    """Where a thread stands."""

    number: int
    active: bool  # False: beyond the last row; takes part in barriers only
    lane: int  # of the row among those that the block does at once
    place: int  # of the thread among those of the row
    sharing: int  # threads of the row
    byte: int  # where a staged row begins, in the run of the block


@cache
def make_placer(access, out_kind):
    """The function that finds the logits of a row and where its output goes."""
    staged, through = access.staged, staged_out(access, out_kind)

    @inner
    def find(plan, row, logits_at, grad_at):
        source, target = plan.logits + logits_at, plan.grad + grad_at
        if staged:
            source = row.byte
        if through:
            target = row.byte
        return source, target

    return find


@cache
def make_logit_reader(access):
    """The function that reads one logit, capped, as float64."""
    load, (cap, _) = make_logit_loader(access), make_capper(access.kind)
    capped = access.softcap

    @inner
    def read_logit(plan, source, index):
        value = load(source, plan.logits_step, index)
        return np.float64(cap(value, plan.softcap) if capped else value)

    return read_logit


@cache
def make_target_reader(kernel):
    """The function that finds the class to leave out, and its q."""
    access, probabilities = kernel.access, kernel.probabilities
    find_peak = make_peak_finder(access)

    @inner
    def read_target(plan, source, targets_at, weight_at, row, shared):
        if not probabilities:
            return index_target(plan, targets_at, weight_at)
        s = load_weight(plan, weight_at)
        kept = s != 0.0 and row.active
        peak = find_peak(plan, source, row, plan.n_classes if kept else 0, shared)
        if s == 0.0:
            return Target(IGNORED, np.int64(-1), 0.0, 0.0, 0.0)
        k = peak.k
        t = load_probability(plan, plan.targets + targets_at, k)
        q = smoothed(t, plan.smoothing, plan.all_classes, class_weight(plan, k))
        return Target(KEPT, k, s, q, 1.0)

    return read_target


@inner
def grad_scale_of(plan):
    """1 / denominator of the mean, which a kernel before this one may have left on the device."""
    scale = plan.grad_scale
    if plan.state != 0:
        weight = load_f64(plan.state)
        scale = scale / weight if weight != 0.0 else 0.0
    return scale
