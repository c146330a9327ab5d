"""The effective targets q of a row: one class, or a tile of them."""

from functools import lru_cache

import numpy as np

from numba_ce import row
from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.rows.tile import make_find_tile, real_name, real_type
from numba_ce.cpu.simd.element import KINDS, get, load_element, put
from numba_ce.cpu.simd.memory import load, store
from numba_ce.cpu.simd.vector import (
    LANES,
    VECTOR_BYTES,
    fma,
    splat,
)

smoothed = inner(row.smoothed)


@inner
def class_weight(plan, index):
    """w_c as float64; 1 without class weights."""
    if plan.class_weight == 0:
        return 1.0
    return get(plan.class_weight + index * 8, 0.0)


@lru_cache
def probability_reader(targets_kind):
    """The function that computes q of one class of a row with probabilities."""

    @inner
    def probability(plan, targets, index):
        at = targets + index * plan.targets_step
        t = np.float64(load_element(targets_kind, at, plan.targets_swapped))
        return smoothed(t, plan.smoothing, plan.all_classes, class_weight(plan, index))

    return probability


def stored_kind(kind, targets_kind):
    """The dtype in which the loops over logits of dtype `kind` read probabilities."""
    same = real_type(kind) is real_type(targets_kind)
    return targets_kind if same else real_name(kind)


@lru_cache
def weight_filler(kind, targets_kind):
    """The function that computes a tile of q_c = w_c ((1 - e) t_c + e / C)."""
    real = real_type(kind)
    lanes, width = LANES[KINDS[kind][1]], np.dtype(real).itemsize
    one, zero = real(1), real(0)
    if targets_kind is not None:
        find_tile = make_find_tile(targets_kind, real_name(kind))

    @inner
    def fill_weights(plan, targets, start, count, factor, work):
        """work.weights = factor * q, 0 in the padding.

        targets : address of the row's probabilities; for index targets the part of q that all
        classes have in common, the target's share is added by the caller.
        """
        share = real(factor * (1.0 - plan.smoothing))
        common = real(factor * (plan.smoothing / plan.all_classes))
        n_vectors = (count + lanes - 1) // lanes
        if targets_kind is not None:
            step, swapped = plan.targets_step, plan.targets_swapped
            tile = find_tile(targets + start * step, step, swapped, count, zero, work.weights)
            end = tile.end if tile.end >= 0 else n_vectors * VECTOR_BYTES
        for i in range(0, n_vectors * VECTOR_BYTES, VECTOR_BYTES):
            q = splat(common)
            if targets_kind is not None:
                at = tile.at + i if i < end else tile.end_at + (i - end)
                q = fma(load(at, one), share, common)
            if plan.class_weight != 0:
                q = q * load(plan.class_weight_real + start * width + i, one)
            store(work.weights + i, q)
        for j in range(count, (n_vectors + 3) // 4 * 4 * lanes):
            put(work.weights + j * width, zero)

    return fill_weights
