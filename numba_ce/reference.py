"""The specification, and the backend "numpy": in float64, in memory, rounded at the end.

In every row one class, k, is left out: the target, or the largest logit where there is no single
target. Then, with m the maximum and S the sum of ``exp((z - m) / T)`` of the *others*, and
``d = (z_k - m) / T``:

    d >= 0:  u = S exp(-d)     lse = z_k / T + log1p(u)     1 - p_k = u / (1 + u)
    d <  0:  Z = S + exp(d)    lse = m / T + log(Z)         1 - p_k = S / Z

The derivation is in docs/mathematics.md. Functions named ``run_...`` are what every backend offers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_ce._validate import Array, Problem, bad_target_error


class Row(NamedTuple):
    """Rows when both parts are known."""

    surprise: Array  # lse - z_k / T = -log p_k
    above: Array  # lse - m / T
    rest: Array  # 1 - p_k
    p_k: Array
    factor: Array  # p_j = exp((z_j - m) / T) * factor
    lse: Array


class Split(NamedTuple):
    """Rows without their class k."""

    k: Array
    t: Array  # z_k
    m: Array
    exps: Array  # exp((z_j - m) / T), 0 for k
    sum_exp: Array


def difference(a: Array, b: Array, temperature: Any) -> tuple[Array, Array]:
    """(a - b) / temperature, and what its roundings lost (Knuth's TwoSum, Dekker's product)."""
    total = a - b
    minus_b = total - a
    lost = (a - (total - minus_b)) - (b + minus_b)
    quotient = total / temperature
    c, e = 134217729.0 * quotient, 134217729.0 * temperature
    q_hi, t_hi = c - (c - quotient), e - (e - temperature)
    q_lo, t_lo = quotient - q_hi, temperature - t_hi
    product = quotient * temperature
    error = ((q_hi * t_hi - product) + q_hi * t_lo + q_lo * t_hi) + q_lo * t_lo
    rest = ((total - product) - error + lost) / temperature
    return quotient, np.where(np.isfinite(rest), rest, 0.0)


def finish(m: Array, sum_exp: Array, t: Array, temperature: Any) -> Row:
    """Rows from their records (m, S, t)."""
    sum_exp = np.where(t < np.inf, sum_exp, np.nan)
    d, lost = difference(t, m, temperature)
    ahead = d >= 0.0
    small = np.exp(-np.abs(d)) * np.where(ahead, 1.0 - lost, 1.0 + lost)
    u = sum_exp * small
    z = np.where(ahead, 1.0 + u, sum_exp + small)
    surprise = np.where(ahead, np.log1p(u), np.log(z) - d - lost)
    above = np.where(ahead, d + surprise, np.log(z))
    return Row(
        surprise,
        above,
        np.where(ahead, u, sum_exp) / z,
        np.where(ahead, 1.0, small) / z,
        np.where(ahead, small, 1.0) / z,
        np.where(ahead, t / temperature + surprise, m / temperature + above),
    )


def row_loss(q_k: Array, row: Row, q_rest: Array, a_rest: Array, z_weight: Array) -> Array:
    """sum over c of q_c (lse - z_c / T) + z_weight lse**2; a weight of zero contributes 0."""
    loss = np.where(q_k == 0.0, 0.0, q_k * row.surprise)
    loss = loss + np.where(q_rest == 0.0, a_rest, a_rest + q_rest * row.above)
    loss = loss + np.where(z_weight == 0.0, 0.0, z_weight * row.lse**2)
    return np.where(np.isnan(row.above), np.nan, loss)


def split(z: Array, k: Array, temperature: float) -> Split:
    """Leave class k (-1: none) out of each row."""
    is_k = np.arange(z.shape[-1]) == k[..., None]
    others = np.where(is_k, -np.inf, z)
    m = others.max(axis=-1)
    exps = exp_of(others, m, temperature)
    t = np.where(is_k, z, 0.0).sum(axis=-1, where=is_k)
    sum_exp = exps.sum(axis=-1, dtype=np.longdouble).astype(np.float64)
    return Split(k, np.where(k < 0, -np.inf, t), m, exps, sum_exp)


def exp_of(z: Array, m: Array, temperature: float) -> Array:
    """exp((z - m) / T), corrected for what the rounding of the argument lost.

    In long double, because NumPy's exp of float64 may be off by 4 ULP where it is vectorised.
    """
    d, lost = difference(z, finite(m)[..., None], temperature)
    return np.asarray(np.exp(d.astype(np.longdouble)) * (1.0 + lost), np.float64)


def finite(m: Array) -> Array:
    """m, or 0 where nothing is alive: exp(-inf - 0) = 0 where exp(-inf + inf) would be NaN."""
    return np.where(m == -np.inf, 0.0, m)


def soft_capped(z: Array, softcap: float | None) -> Array:
    """softcap * tanh(z / softcap); infinities stay."""
    if softcap is None:
        return z
    return np.where(np.isinf(z), z, softcap * np.tanh(z / softcap))


def cap_slope(z: Array, softcap: float | None) -> Any:
    """Its derivative 4 a / (1 + a)**2, a = exp(-2 |z| / softcap)."""
    if softcap is None:
        return 1.0
    a = np.exp(-2.0 * np.abs(z) / softcap)
    return np.where(np.isinf(z), 1.0, 4.0 * a / (1.0 + a) ** 2)


class Rows(NamedTuple):
    """A problem in float64, with the effective target q."""

    raw: Array  # logits as passed; 0 in rows that do not count
    z: Array  # after the soft cap
    k: Array  # class left out, -1: none here
    q: Array  # (*rows, n_classes)
    s: Array  # sample weights; 0: ignored, NaN: bad target
    v: Array  # weight of the z-loss, in the shard that adds it
    weight: Array  # share in the denominator of a mean


def read(problem: Problem, class_offset: int = 0, n_classes: int | None = None) -> Rows:
    """Logits, targets and weights of a problem, or of a shard of one; raises for bad targets."""
    options, shape = problem.options, problem.logits.shape
    n_classes = shape[-1] if n_classes is None else n_classes
    assert problem.targets is not None
    s = np.ones(shape[:-1])
    if problem.sample_weight is not None:
        s = problem.sample_weight.astype(np.float64)
    w = np.ones(shape[-1]) if problem.class_weight is None else problem.class_weight
    e = options.label_smoothing
    raw = problem.logits.astype(np.float64)
    if problem.probabilities:
        raw = np.where((s == 0.0)[..., None], 0.0, raw)
        t = np.where((s == 0.0)[..., None], 0.0, problem.targets.astype(np.float64))
        z = soft_capped(raw, options.softcap)
        k = np.argmax(np.where(np.isnan(z), -np.inf, z), axis=-1)
        k = np.where(z.max(axis=-1) == -np.inf, -1, k)
        q, weight = w * ((1.0 - e) * t + e / n_classes), s
        v = np.full(shape[:-1], float(class_offset == 0))
    else:
        y = problem.targets
        bad = (y < 0) | (y >= n_classes)
        ignored = np.zeros(shape[:-1], bool)
        if options.ignore_index is not None:
            ignored = np.asarray(y == options.ignore_index)
        bad &= ~ignored
        if options.check_targets and bad.any():
            raise bad_target_error(problem, int(np.flatnonzero(bad)[0]), n_classes)
        y = np.where(bad | ignored, -1, y).astype(np.int64)
        s = np.where(bad, np.nan, np.where(ignored, 0.0, s))
        k = np.where((y >= class_offset) & (y < class_offset + shape[-1]), y - class_offset, -1)
        v = np.where(k < 0, 0.0, w[k])
        one_hot = np.arange(shape[-1]) == k[..., None]
        q = (1.0 - e) * np.where(one_hot, w, 0.0) + e / n_classes * w
        weight = np.where(np.isnan(s), 0.0, s) * v
        raw = np.where((s == 0.0)[..., None] | bad[..., None], 0.0, raw)
        z = soft_capped(raw, options.softcap)
    return Rows(raw, z, k, q, s, v, weight)


def target_sums(rows: Rows, parts: Split, temperature: float) -> tuple[Array, Array, Array]:
    """q_k, and over the others sum of q_c and of q_c (m - z_c) / T (0 where q_c is 0)."""
    is_k = np.arange(rows.z.shape[-1]) == parts.k[..., None]
    q_k = np.where(is_k, rows.q, 0.0).sum(axis=-1)
    q = np.where(is_k, 0.0, rows.q)
    below = (finite(parts.m)[..., None] - rows.z) / temperature
    return q_k, q.sum(axis=-1), np.where(q == 0.0, 0.0, q * below).sum(axis=-1)


def gradient(
    rows: Rows, p: Array, row: Row, sums: tuple[Any, Any], problem: Problem, k_sums: tuple[Any, Any]
) -> Array:
    """s (Q p - q + 2 v z_loss lse p) / T dz; p holds p_j, and 0 for class k.

    sums : q_k and q_rest of the whole row; k_sums : p_k and 1 - p_k of the class left out here
    """
    options = problem.options
    (q_total_k, q_rest), (p_k, rest) = sums, k_sums
    extra = np.where(rows.v == 0.0, 0.0, 2.0 * options.z_loss * rows.v * row.lse)
    if options.z_loss == 0.0:
        extra = np.zeros_like(rows.s)
    is_k = np.arange(rows.z.shape[-1]) == rows.k[..., None]
    q_k = np.where(is_k, rows.q, 0.0).sum(axis=-1)
    others = (q_total_k - q_k) + q_rest  # of all classes but k
    g_k = -q_k * rest + np.where(others == 0.0, 0.0, others * p_k) + extra * p_k
    g = (q_total_k + q_rest + extra)[..., None] * p - rows.q
    g = np.where(is_k, g_k[..., None], g) * cap_slope(rows.raw, options.softcap)
    g = rows.s[..., None] * g / options.temperature
    return np.where((rows.s == 0.0)[..., None], 0.0, g)


def store(target: Array, values: Array) -> None:
    """Round once; to 16 bits by way of float32."""
    with np.errstate(all="ignore"):
        if target.dtype.itemsize == 2:
            values = values.astype(np.float32)
        target[...] = values.astype(target.dtype)


def run_loss(problem: Problem, loss_rows: Array | None, grad: Array | None) -> tuple[float, float]:
    """Row losses and gradient; returns the sums of the weighted losses and of the weights."""
    rows, options = read(problem), problem.options
    with np.errstate(all="ignore"):
        parts = split(rows.z, rows.k, options.temperature)
        row = finish(parts.m, parts.sum_exp, parts.t, options.temperature)
        q_k, q_rest, a_rest = target_sums(rows, parts, options.temperature)
        loss = rows.s * row_loss(q_k, row, q_rest, a_rest, rows.v * options.z_loss)
        loss = np.where(rows.s == 0.0, 0.0, loss)
        weight = float(rows.weight.sum())
        if grad is not None:
            p = parts.exps * row.factor[..., None]
            g = gradient(rows, p, row, (q_k, q_rest), problem, (row.p_k, row.rest))
            if problem.reduction == "mean":
                g = g / weight if weight != 0.0 else np.zeros_like(g)
            store(grad, g)
    if loss_rows is not None:
        store(loss_rows, loss)
    return float(loss.sum()), weight


def run_grad_hess(problem: Problem, grad: Array, hess: Array, kind: str) -> None:
    """Gradient and diagonal Hessian of the row losses."""
    rows = read(problem)
    n_classes = rows.z.shape[-1]
    factor = {"diagonal": 1.0, "xgboost": 2.0, "lightgbm": n_classes / max(n_classes - 1, 1)}[kind]
    with np.errstate(all="ignore"):
        peak = np.argmax(rows.z, axis=-1)  # 1 - p is taken from the sum of the others there
        parts = split(rows.z, peak, 1.0)
        row = finish(parts.m, parts.sum_exp, parts.t, 1.0)
        is_peak = np.arange(n_classes) == peak[..., None]
        p = np.where(is_peak, row.p_k[..., None], parts.exps * row.factor[..., None])
        rest = np.where(is_peak, row.rest[..., None], 1.0 - p)
        total = rows.q.sum(axis=-1)[..., None]
        # Q p - q = p (Q - q) - q (1 - p)
        g = rows.s[..., None] * (p * (total - rows.q) - rows.q * rest)
        h = factor * total * p * rest
        if kind == "xgboost":
            h = np.maximum(h, 1e-16)
        h = rows.s[..., None] * h
        kept = (rows.s != 0.0)[..., None]
        store(grad, np.where(kept, g, 0.0))
        store(hess, np.where(kept, h, 0.0))


def run_row_stats(problem: Problem, outputs: dict[str, Array]) -> None:
    """The fields of `RowStats`, each into its array."""
    z = problem.logits.astype(np.float64)
    with np.errstate(all="ignore"):
        k = np.argmax(z, axis=-1)
        parts = split(z, k, 1.0)
        row = finish(parts.m, parts.sum_exp, parts.t, 1.0)
        peak = np.where(np.isnan(z).any(axis=-1), np.nan, parts.t)
        broken = np.isnan(row.surprise)
        d = parts.t - parts.m
        # sum of p (lse - z), the largest class apart; 0 times a masked class's infinity is 0
        below = np.where(parts.exps == 0.0, 0.0, parts.exps * (parts.m[..., None] - z)).sum(axis=-1)
        entropy = row.p_k * row.surprise + row.factor * (below + parts.sum_exp * (d + row.surprise))
        entropy = np.where(parts.sum_exp == 0.0, 0.0, entropy)
        store(outputs["row_max"], peak)
        store(outputs["lse"], np.where(broken, peak, row.lse))
        store(outputs["entropy"], np.where(broken, np.nan, entropy))
        outputs["argmax"][...] = k
        if problem.targets is None:
            return
        rows = read(problem)
        y, kept = np.maximum(rows.k, 0), rows.s != 0.0
        t = np.take_along_axis(z, y[..., None], -1)[..., 0]
        loss = np.where(y == k, row.surprise, (peak - t) + row.surprise)
        loss = np.where(broken, np.nan, loss)
        rank = np.where(kept & ~broken, (z > t[..., None]).sum(axis=-1), z.shape[-1])
        store(outputs["target_logit"], np.where(kept, t, np.nan))
        store(outputs["loss"], np.where(kept, loss, 0.0))
        outputs["rank"][...] = rank


def run_normalize(logits: Array, what: str, out: Array) -> None:
    """softmax, log_softmax or logsumexp."""
    z = logits.astype(np.float64)
    with np.errstate(all="ignore"):
        k = np.argmax(z, axis=-1)
        parts = split(z, k, 1.0)
        row = finish(parts.m, parts.sum_exp, parts.t, 1.0)
        peak = np.where(np.isnan(z).any(axis=-1), np.nan, parts.t)
        is_k = np.arange(z.shape[-1]) == k[..., None]
        if what == "logsumexp":
            store(out, np.where(np.isinf(peak), peak, row.lse))
        elif what == "softmax":
            store(out, np.where(is_k, row.p_k[..., None], parts.exps * row.factor[..., None]))
        else:
            result = (z - peak[..., None]) - row.surprise[..., None]
            store(out, np.where(is_k, -row.surprise[..., None], result))


def run_row_record(problem: Problem, class_offset: int, n_classes: int, record: Array) -> None:
    """The record of each row, or of the part of it in this shard; columns as `records.FIELDS`."""
    rows, options = read(problem, class_offset, n_classes), problem.options
    with np.errstate(all="ignore"):
        parts = split(rows.z, rows.k, options.temperature)
        q_k, q_rest, a_rest = target_sums(rows, parts, options.temperature)
        sum_exp = np.where(parts.t < np.inf, parts.sum_exp, np.nan)
        sums = (q_k, q_rest, a_rest, rows.v * options.z_loss)
        columns = [parts.m, sum_exp, parts.t, *(rows.s * x for x in sums)]
        # An ignored row: certain of its class, and without weight
        nothing = (-np.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        bad = (-np.inf, np.nan, -np.inf, np.nan, np.nan, np.nan, np.nan)
        for column, values in enumerate(columns):
            values = np.where(rows.s == 0.0, nothing[column], values)
            record[..., column] = np.where(np.isnan(rows.s), bad[column], values)
    record[..., 7], record[..., 8] = options.temperature, n_classes


def run_grad_from_record(problem: Problem, record: Array, class_offset: int, grad: Array) -> None:
    """Gradient of the classes of this shard, from the merged records."""
    options = problem.options
    rows = read(problem, class_offset, int(np.nanmax(record[..., 8])))
    m, sum_exp, t, q_k, q_rest, _, z_weight = np.moveaxis(record[..., :7], -1, 0)
    with np.errstate(all="ignore"):
        row = finish(m, sum_exp, t, options.temperature)
        exps = exp_of(rows.z, m, options.temperature)
        is_k = np.arange(rows.z.shape[-1]) == rows.k[..., None]
        p = np.where(is_k, 0.0, exps * row.factor[..., None])
        # With probabilities the largest class here need not be the one that the record left out
        z_k = np.where(is_k, rows.z, -np.inf).max(axis=-1)
        mine = (z_k == t) & (problem.probabilities is False)
        own = np.exp((z_k - finite(m)) / options.temperature) * row.factor
        q_own = rows.s * np.where(is_k, rows.q, 0.0).sum(axis=-1)
        mine |= (z_k == t) & (q_own == q_k)
        p_k = np.where(mine, row.p_k, np.where(z_k == t, row.p_k, own))
        rest = np.where(z_k == t, row.rest, 1.0 - p_k)
        # Everything in the record carries s already: divide it out for `gradient`
        s = np.where(rows.s == 0.0, 1.0, rows.s)
        rows = rows._replace(v=z_weight / s / (options.z_loss or 1.0))
        g = gradient(rows, p, row, (q_k / s, q_rest / s), problem, (p_k, rest))
        store(grad, g)
