"""A row finished in float64, by the formulas of `_row`, and its results written."""

import math
from typing import NamedTuple

import numpy as np

from numba_ce import _row
from numba_ce.cuda.intrinsics import inner, store

finish = inner(_row.finish)
sum_at_origin = inner(_row.sum_at_origin)
difference = inner(_row.difference)
row_loss = inner(_row.row_loss)
target_gradient = inner(_row.target_gradient)
probability_weight = inner(_row.probability_weight)
row_entropy = inner(_row.row_entropy)


class Finished(NamedTuple):
    """A row when both parts are known; see `_row.finish`."""

    surprise: float
    above: float
    rest: float
    p_k: float
    top: float  # p_j = exp((z_j - m) / T) * top / bottom for the other classes
    bottom: float
    lse: float
    sum_exp: float  # relative to the larger of m and t


@inner
def put_result(address, row, bytes_, value):
    """Write a per-row result of 4 or 8 bytes, if it was asked for."""
    if address != 0:
        if bytes_ == 4:
            store(address + row * 4, np.float32(value))
        else:
            store(address + row * 8, np.float64(value))


@inner
def finish_row(row_max, sum_exp, target_logit, temperature):
    """The row from its record, all in float64."""
    if not target_logit < math.inf:  # +inf or NaN; S knows of those in the other classes
        sum_exp = math.nan
    d, d_lost = difference(target_logit, row_max, temperature)
    sum_exp = sum_at_origin(sum_exp, d, d_lost)
    surprise, above, rest, p_k, bottom = finish(sum_exp, d, d_lost)
    origin, over, top = row_max, above, 1.0
    if d >= 0.0:
        origin, over, top = target_logit, surprise, math.exp(-d)
        top -= top * d_lost
    lse = origin / temperature + over
    return Finished(surprise, above, rest, p_k, top, bottom, lse, sum_exp)
