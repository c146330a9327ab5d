"""A row finished in float64, by the formulas of `_row`, and its results written."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce import _row
from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.rows.measure import difference, unscaled
from numba_ce.cpu.simd.element import load_element, put

finish = inner(_row.finish)
sum_at_origin = inner(_row.sum_at_origin)
row_loss = inner(_row.row_loss)
target_gradient = inner(_row.target_gradient)
probability_weight = inner(_row.probability_weight)
row_entropy = inner(_row.row_entropy)


class Finished(NamedTuple):
    """A row when all parts are known; see `_row.finish`."""

    surprise: float
    above: float
    rest: float
    p_k: float
    bottom: float
    lse: float
    origin: float  # p_j = exp((z_j - origin) / T) / bottom
    sum_exp: float  # relative to the origin


@inner
def put_result(address, row, bytes_, value):
    """Write a per-row result of 4 or 8 bytes, if it was asked for."""
    if address != 0:
        if bytes_ == 4:
            put(address + row * 4, np.float32(value))
        else:
            put(address + row * 8, np.float64(value))


@inner
def finish_sum(sum_exp, row_max, t, d, d_lost, temperature):
    """The row from the sum of the others, relative to the larger of row_max and t."""
    if not t < math.inf:  # +inf or NaN; the sum knows of those in the other classes
        sum_exp = math.nan
    surprise, above, rest, p_k, bottom = finish(sum_exp, d, d_lost)
    origin, over = (t, surprise) if d >= 0.0 else (row_max, above)
    return Finished(
        surprise, above, rest, p_k, bottom, origin / temperature + over, origin, sum_exp
    )


@inner
def finish_record(row_max, sum_exp, t, temperature):
    """The row from its record, all in float64."""
    d, d_lost = difference(t, row_max, temperature)
    sum_exp = sum_at_origin(sum_exp, d, d_lost)
    return finish_sum(sum_exp, row_max, t, d, d_lost, temperature)


@inner
def finish_row(row, t, temperature):
    """The row from what `measure` returned and the logit of the class left out.

    The sum goes from its scale to the origin at once, so that few roundings meet in it.
    """
    d, d_lost = difference(t, row.row_max, temperature)
    origin = t if d >= 0.0 else row.row_max
    sum_exp = unscaled(row.total, row.scale, origin, temperature)
    return finish_sum(sum_exp, row.row_max, t, d, d_lost, temperature)


@lru_cache
def nan_finder(kind):
    """The function that finds the first NaN of a row."""

    @inner
    def first_nan(plan, source):
        """Its index, or -1."""
        for j in range(plan.n_classes):
            value = load_element(kind, source + j * plan.logits_step, plan.logits_swapped)
            if value != value:
                return j
        return -1

    return first_nan
