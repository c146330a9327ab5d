"""The formulas of `numba_ce.row` for Python's own numbers, to be called by tests."""

import math

from numba_ce import row

FORMULAS = row.make_formulas(
    lambda function: function,
    lambda condition, a, b: a if condition else b,
    lambda u, x: math.log1p(u),
    lambda x: x,
    lambda a, bottom: a / bottom,
)
