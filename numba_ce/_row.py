"""What a row computes: the scalar formulas, in float64, that finish a row.

Plain functions of numbers, decorated by nobody: every compiled backend compiles these same ones.
A row (or any part of it) is summed up without one of its classes, k (the target, or the largest
logit), by

    m = max over j != k of z_j,    S = sum over j != k of exp((z_j - m) / T),    t = z_k

and finished here, once. With d = (t - m) / T:

    d >= 0:  u = S exp(-d)     Z/e^t = 1 + u     1 - p_k = u / (1 + u)
    d <  0:  Z = S + exp(d)    Z/e^m = Z         1 - p_k = S / Z

so that neither the loss of a confident row (log1p(u), not lse - t) nor its gradient (1 - p_k from
the sum of the others, not from p_k) loses a digit. The derivation is in docs/mathematics.md.
"""

import math


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


def sum_at_origin(sum_exp, d, d_lost):
    """S, which is relative to m, relative to the larger of m and t: S or u."""
    if not d >= 0.0:
        return sum_exp
    # S may be worth 262144 where exp(-d) is subnormal or 0: two halves keep the digits
    root = math.exp(-0.5 * d)
    root -= root * (0.5 * d_lost)
    return sum_exp * root * root


def finish(sum_exp, d, d_lost):
    """The row from the sum of the others and d = (t - m) / T in the two parts of `difference`.

    sum_exp : sum over j != k of exp((z_j - origin) / T), origin the larger of m and t (u or S)

    Returns
    -------
    surprise : lse - t / T = -log p_k, the loss of a plain row
    above : lse - m / T
    rest : 1 - p_k
    p_k
    bottom : p_j = exp((z_j - origin) / T) / bottom for the other classes
    """
    if d >= 0.0:
        surprise, bottom = math.log1p(sum_exp), 1.0 + sum_exp
        return surprise, d + surprise, sum_exp / bottom, 1.0 / bottom, bottom
    small = math.exp(d)
    small += small * d_lost  # not small * (1 + d_lost), where 1 + d_lost is rounded
    bottom = sum_exp + small
    above = math.log(bottom)
    return above - d - d_lost, above, sum_exp / bottom, small / bottom, bottom


def row_loss(q_k, surprise, q_rest, a_rest, above, z_weight, lse):
    """sum over c of q_c (lse - z_c / T) + z_weight lse**2; a zero weight contributes 0.

    a_rest = sum over c != k of q_c (m - z_c) / T,   q_rest = sum over c != k of q_c
    """
    if math.isnan(above):  # also where every weight is zero
        return above
    loss = 0.0
    if q_k != 0.0:
        loss += q_k * surprise
    if q_rest != 0.0 or a_rest != 0.0:
        loss += a_rest + q_rest * above
    if z_weight != 0.0:
        loss += z_weight * lse * lse
    return loss


def target_gradient(q_k, rest, q_rest, p_k, z_weight, lse):
    """Q p_k - q_k = Q_rest p_k - q_k (1 - p_k), plus the z-loss's 2 z_weight lse p_k."""
    gradient = -q_k * rest
    if q_rest != 0.0:
        gradient += q_rest * p_k
    if z_weight != 0.0:
        gradient += 2.0 * z_weight * lse * p_k
    return gradient


def probability_weight(q_k, q_rest, z_weight, lse):
    """What multiplies p_j in the gradient of the other classes: Q + 2 z_weight lse."""
    weight = q_k + q_rest
    if z_weight != 0.0:
        weight += 2.0 * z_weight * lse
    return weight


def row_entropy(sum_exp, e_rest, d, surprise, p_k, bottom):
    """-sum of p log p; k is the largest logit, e_rest = sum over j != k of exp(z_j - t) (m - z_j).

    Every term is positive: p_j (lse - z_j) = p_j ((m - z_j) + d + surprise).
    """
    if sum_exp == 0.0:
        return 0.0
    return p_k * surprise + (e_rest + sum_exp * (d + surprise)) / bottom


def smoothed(target, smoothing, n_classes, class_weight):
    """q_c = w_c ((1 - e) t_c + e / C)"""
    return class_weight * ((1.0 - smoothing) * target + smoothing / n_classes)
