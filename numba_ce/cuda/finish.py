"""A row finished in float64, by the formulas of `_row`, and its results written."""

import math
from typing import NamedTuple

import numpy as np

from numba_ce import _row
from numba_ce.cuda.intrinsics import inner, store

finish = inner(_row.finish)
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
    top: float
    bottom: float
    lse: float


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
    surprise, above, rest, p_k, top, bottom = finish(sum_exp, d, d_lost)
    lse = target_logit / temperature + surprise if d >= 0.0 else row_max / temperature + above
    return Finished(surprise, above, rest, p_k, top, bottom, lse)
