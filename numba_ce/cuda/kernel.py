"""What a general kernel is compiled for, where its threads stand, what they read of a row."""

from functools import cache
from typing import NamedTuple

import numpy as np

from numba_ce.cuda.intrinsics import KINDS, inner, load_f64, make_loader
from numba_ce.cuda.measure import make_peak_finder
from numba_ce.cuda.plan import locate
from numba_ce.cuda.targets import IGNORED, KEPT, Target, index_target, load_q, load_weight
from numba_ce.cuda.thread_layout import Team
from numba_ce.cuda.walk import Access, make_capper, staged_out


class Kernel(NamedTuple):
    """What one compiled general kernel is for."""

    operation: str
    access: Access
    dense: bool = False  # every class has a q: probabilities, or smoothed class indices
    grad_kind: str | None = None  # dtype of the gradient or of the probabilities written
    hess_kind: str | None = None


class Row(NamedTuple):
    """Where a thread stands, and where what goes with its row lies."""

    number: int
    active: bool  # False: beyond the last row; takes part in barriers only
    team: Team
    start: int  # the class with which the thread begins
    apart: int  # from class to class of a chunk
    source: int  # of the logits: an address, or the byte where a staged row begins
    step: int  # from class to class
    grad: int  # the same for the gradient
    grad_step: int
    hess: int
    targets: int
    weight: int


@cache
def make_placer(kernel):
    """The function that finds a row, whose first byte in the stage is `byte`."""
    staged, through = kernel.access.staged, staged_out(kernel.access, kernel.grad_kind)
    wide, size = kernel.access.wide, np.int64(KINDS[kernel.access.kind][0])

    @inner
    def place_row(plan, number, active, team, byte):
        logits, targets, weight, grad, hess = locate(plan, number)
        start, apart = team.place, team.sharing
        if wide:
            start, apart = team.place * 8 - (plan.logits + logits) % 16 // 2, np.int64(1)
        return Row(
            number,
            active,
            team,
            start,
            apart,
            byte if staged else plan.logits + logits,
            size if staged else plan.logits_step,
            byte if through else plan.grad + grad,
            size if through else plan.grad_step,
            plan.hess + hess,
            plan.targets + targets,
            plan.sample_weight + weight,
        )

    return place_row


@cache
def make_logit_reader(access):
    """The function that reads one logit, capped, as float64."""
    load, (cap, _) = make_loader(access.kind, access.staged), make_capper(access.kind)
    capped = access.softcap

    @inner
    def read_logit(plan, row, k):
        value = load(row.source + k * row.step)
        return np.float64(cap(value, plan.softcap) if capped else value)

    return read_logit


@cache
def make_target_reader(kernel):
    """The function that finds the class to leave out, and its q; for softmax there is none."""
    dense, find_peak = kernel.dense, make_peak_finder(kernel.access)
    softmax = kernel.operation == "softmax"

    @inner
    def read_target(plan, row, shared):
        if softmax:
            return Target(KEPT, np.int64(-1), 1.0, 1.0, 0.0)
        if not dense or plan.targets_bytes != 0:
            return index_target(plan, row.targets, row.weight)
        s = load_weight(plan, row.weight)
        peak = find_peak(plan, row, plan.n_classes if s != 0.0 and row.active else 0, shared)
        if s == 0.0:
            return Target(IGNORED, np.int64(-1), 0.0, 0.0, 0.0)
        return Target(KEPT, peak.k, s, load_q(plan, row.targets, peak.k), 1.0)

    return read_target


@inner
def grad_scale_of(plan):
    """1 / denominator of the mean, which a kernel before this one may have left on the device."""
    scale = plan.grad_scale
    if plan.state != 0:
        weight = load_f64(plan.state)
        scale = scale / weight if weight != 0.0 else 0.0
    return scale
