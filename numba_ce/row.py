"""What a row computes: the formulas that finish it, each stated once.

A row (or any part of it) is summed up without one of its classes, k (the target, or the largest
logit), by

    m = max over j != k of z_j,    S = sum over j != k of exp((z_j - m) / T),    t = z_k

and finished here, once. With d = (t - m) / T:

    d >= 0:  u = S exp(-d)     Z/e^t = 1 + u     1 - p_k = u / (1 + u)
    d <  0:  Z = S + exp(d)    Z/e^m = Z         1 - p_k = S / Z

so that neither the loss of a confident row (log1p(u), not lse - t) nor its gradient (1 - p_k from
the sum of the others, not from p_k) loses a digit. The derivation is in docs/mathematics.md.

`make_formulas` takes the few functions in which backends differ. The CPU makes formulas of vectors,
eight rows in the lanes, once for float32 and once for float64; CUDA makes those of numbers. There
are no branches: `select` takes a lane or a number from one of two values. A term whose weights are
None, as those of the other classes where only one has any, is not compiled.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Formulas(NamedTuple):
    """Compiled functions, see `make_formulas`."""

    times0: Callable[..., Any]
    finish: Callable[..., Any]
    row_loss: Callable[..., Any]
    probability_weight: Callable[..., Any]
    target_gradient: Callable[..., Any]
    row_entropy: Callable[..., Any]


def make_formulas(
    function: Callable[..., Any],
    select: Callable[..., Any],
    log1p: Callable[..., Any],
    invert: Callable[..., Any],
    share: Callable[..., Any],
) -> Formulas:
    """The formulas for one kind of number.

    function : the decorator that compiles them; select(condition, a, b)
    log1p(u, x) : log(1 + u), with x = 1 + u rounded
    invert(x), share(a, inverse) : together a / x; what `invert` makes is the `inverse` of `finish`
    """

    @function
    def times0(weight, x):
        """weight * x, where no weight makes nothing of an infinity, but not of NaN."""
        return select(weight == 0.0, select(x == x, 0.0, x), weight * x)

    @function
    def finish(sum_exp, small, d, d_lost, others):
        """The row, from sums relative to its origin: m where `others` are larger, else t.

        sum_exp : S or u; small : exp(d) where `others`, else 1; d, d_lost : (t - m) / T in the two
        parts of `difference`

        Returns
        -------
        surprise : lse - t / T = -log p_k, the loss of a plain row
        above : lse - m / T
        rest : 1 - p_k
        p_k
        over : lse - origin / T
        inverse : p_j = exp((z_j - origin) / T) / bottom for the other classes; 1 / bottom
        """
        bottom = sum_exp + small
        inverse = invert(bottom)
        over = log1p(select(others, (sum_exp - 1.0) + small, sum_exp), bottom)
        surprise = select(others, (over - d) - d_lost, over)
        above = select(others, over, over + d)
        return surprise, above, share(sum_exp, inverse), share(small, inverse), over, inverse

    @function
    def row_loss(q_k, surprise, q_rest, a_rest, above, z_weight, lse):
        """sum over c of q_c (lse - z_c / T) + z_weight lse**2; a zero weight contributes 0.

        a_rest = sum over c != k of q_c (m - z_c) / T,   q_rest = sum over c != k of q_c
        """
        loss = times0(q_k, surprise)
        if q_rest is not None:
            loss = loss + (a_rest + times0(q_rest, above))
        if z_weight is not None:
            loss = loss + times0(z_weight, lse * lse)
        return loss

    @function
    def probability_weight(q_k, q_rest, z_weight, lse):
        """What multiplies p_j in the gradient of the other classes: Q + 2 z_weight lse."""
        weight = q_k
        if q_rest is not None:
            weight = weight + q_rest
        if z_weight is not None:
            weight = weight + times0(z_weight, lse * 2.0)
        return weight

    @function
    def target_gradient(q_k, rest, q_rest, p_k, z_weight, lse):
        """Q p_k - q_k = Q_rest p_k - q_k (1 - p_k), plus the z-loss's 2 z_weight lse p_k."""
        gradient = 0.0 - q_k * rest
        if q_rest is not None:
            gradient = gradient + times0(q_rest, p_k)
        if z_weight is not None:
            gradient = gradient + times0(z_weight, lse * 2.0) * p_k
        return gradient

    @function
    def row_entropy(p_k, surprise, rest, d, e_rest):
        """-sum of p log p; k is the largest logit, e_rest = sum over j != k of p_j (m - z_j).

        Every term is positive: p_j (lse - z_j) = p_j ((m - z_j) + d + surprise).
        """
        return p_k * surprise + (times0(rest, d + surprise) + e_rest)

    return Formulas(times0, finish, row_loss, probability_weight, target_gradient, row_entropy)


# Scalars, for what is not done with whole vectors


def difference(a, b, temperature):
    """(a - b) / temperature in two parts: the quotient, and what its roundings lost.

    Knuth's TwoSum for the difference; Veltkamp's splitting and Dekker's product for the remainder
    of the division (Handbook of Floating-Point Arithmetic, 2nd ed., sections 4.3 and 4.4).
    """
    total = a - b
    if not abs(total) < 1e300 or not abs(a) < 1e300:
        return total / temperature, 0.0
    minus_b = total - a
    lost = (a - (total - minus_b)) - (b + minus_b)
    if temperature == 1.0:
        return total, lost
    quotient = total / temperature
    if not 1e-140 < abs(quotient) < 1e140 or not 1e-140 < temperature < 1e140:
        return quotient, lost / temperature
    c = 134217729.0 * quotient
    q_hi = c - (c - quotient)
    q_lo = quotient - q_hi
    c = 134217729.0 * temperature
    t_hi = c - (c - temperature)
    t_lo = temperature - t_hi
    product = quotient * temperature
    product_lost = ((q_hi * t_hi - product) + q_hi * t_lo + q_lo * t_hi) + q_lo * t_lo
    return quotient, ((total - product) - product_lost + lost) / temperature


def at_origin(sum_exp, d, d_lost):
    """S, exp(t) and exp(m), each relative to the larger of m and t, and whether m is the larger.

    The first two and the last are the `sum_exp`, `small` and `others` of `finish`.
    """
    others = not d >= 0.0  # also where d is NaN
    away, lost = (d, d_lost) if others else (-d, -d_lost)
    below = math.exp(away)
    below += below * lost  # not below * (1 + lost), where 1 + lost is rounded
    if others:
        return sum_exp, below, 1.0, others
    # S may be worth 262144 where exp(-d) is subnormal or 0: two halves keep the digits
    root = math.exp(-0.5 * d)
    root -= root * (0.5 * d_lost)
    return sum_exp * root * root, 1.0, below, others


def smoothed(target, smoothing, n_classes, class_weight):
    """q_c = w_c ((1 - e) t_c + e / C)"""
    return class_weight * ((1.0 - smoothing) * target + smoothing / n_classes)
