"""What a row is told to be: its target, its weights, and whether it counts at all."""

import math
from typing import NamedTuple

import numpy as np

from numba_ce import row
from numba_ce.cuda.intrinsics import inner, make_integer_loader, make_loader
from numba_ce.cuda.plan import NOTHING

smoothed = inner(row.smoothed)
load_f16, load_bf16 = make_loader("float16"), make_loader("bfloat16")
load_f32, load_f64 = make_loader("float32"), make_loader("float64")
load_i8, load_i16, load_i32, load_i64 = (make_integer_loader(n, True) for n in (1, 2, 4, 8))
load_u8, load_u16, load_u32 = (make_integer_loader(n, False) for n in (1, 2, 4))

KEPT, IGNORED, BAD = 0, 1, 2


class Target(NamedTuple):
    """What a row is told to be."""

    status: int  # KEPT, IGNORED or BAD
    k: int  # the class left out, in this shard; -1: not here
    weight: float  # s_i
    q: float  # q_k without s_i
    z_weight: float  # v_i


@inner
def load_integer(address, size, signed):
    """The integer of `size` bytes, as int64."""
    if size == 8:
        return load_i64(address)
    if size == 4:
        return load_i32(address) if signed != 0 else load_u32(address)
    if size == 2:
        return load_i16(address) if signed != 0 else load_u16(address)
    return load_i8(address) if signed != 0 else load_u8(address)


@inner
def load_float(address, kind):
    """The float of the kind with this number, as float64."""
    if kind == 3:
        return load_f64(address)
    if kind == 2:
        return np.float64(load_f32(address))
    if kind == 1:
        return np.float64(load_bf16(address))
    return np.float64(load_f16(address))


@inner
def load_weight(plan, address):
    """s_i as float64; 1 without sample weights."""
    if plan.sample_weight == 0:
        return 1.0
    return load_float(address, plan.sample_weight_kind)


@inner
def class_weight(plan, index):
    """w_c as float64; 1 without class weights."""
    if plan.class_weight == 0:
        return 1.0
    return load_float(plan.class_weight + index * plan.class_weight_step, plan.class_weight_kind)


@inner
def load_q(plan, targets, j):
    """q_j without the sample weight, of class indices the smoothed part; targets : of the row"""
    t = 0.0
    if plan.targets_kind != NOTHING:
        t = load_float(targets + j * plan.targets_step, plan.targets_kind)
    return smoothed(t, plan.smoothing, plan.all_classes, class_weight(plan, j))


@inner
def index_target(plan, address, weight_address):
    """The `Target` of a row with a class index; q without the smoothed part of the others."""
    y = load_integer(address, plan.targets_bytes, plan.targets_signed)
    if plan.has_ignore_index != 0 and y == plan.ignore_index:
        return Target(IGNORED, np.int64(-1), 0.0, 0.0, 0.0)
    if y < 0 or y >= plan.all_classes:
        return Target(BAD, np.int64(-1), math.nan, math.nan, math.nan)
    s = load_weight(plan, weight_address)
    k = y - plan.class_offset
    here = 0 <= k < plan.n_classes
    w = class_weight(plan, k) if here else 0.0
    q = smoothed(1.0, plan.smoothing, plan.all_classes, w)
    return Target(KEPT if s != 0.0 else IGNORED, k if here else np.int64(-1), s, q, w)
