"""A row finished in float64, by the formulas of `numba_ce.row`, and its results written."""

import math
from typing import NamedTuple

import numpy as np

from numba_ce import row
from numba_ce.cuda.intrinsics import inner, store


@inner
def select(condition, a, b):
    """One of two numbers."""
    return a if condition else b


_formulas = row.make_formulas(
    inner,
    select,
    inner(lambda u, x: math.log1p(u)),
    inner(lambda x: x),
    inner(lambda a, bottom: a / bottom),
)
finish = _formulas.finish
row_loss = _formulas.row_loss
target_gradient = _formulas.target_gradient
probability_weight = _formulas.probability_weight
row_entropy = _formulas.row_entropy
at_origin = inner(row.at_origin)
difference = inner(row.difference)


class Finished(NamedTuple):
    """A row when both parts are known; see `row.make_formulas`."""

    surprise: float
    above: float
    rest: float
    p_k: float
    top: float  # p_j = exp((z_j - m) / T) * top / bottom for the other classes
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
    sum_exp, small, top, others = at_origin(sum_exp, d, d_lost)
    if others:  # two calls, so that each is compiled with its constants
        surprise, above, rest, p_k, over, bottom = finish(sum_exp, small, d, d_lost, True)
        lse = row_max / temperature + over
    else:
        surprise, above, rest, p_k, over, bottom = finish(sum_exp, 1.0, d, d_lost, False)
        lse = target_logit / temperature + over
    return Finished(surprise, above, rest, p_k, top, bottom, lse)
