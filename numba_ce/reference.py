"""The specification, in float64 and plain NumPy; selectable as the backend "numpy".

Every function goes the same way: the logits are measured (the record of `numba_ce.records`), the
record is finished, and loss and gradient follow from it. Numbers in brackets are those of the
formulas in docs/mathematics.md. Whole arrays are held in memory, several times: this is the backend
to read and to compare with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_ce._quiet import quiet
from numba_ce._validate import Array, Problem
from numba_ce.weights import check_indices

INF, NAN = np.inf, np.nan


# ---------------------------------------------------------------- a row


def _split(a: Any) -> tuple[Any, Any]:
    """A float64 as the sum of two of 26 bits each (Veltkamp)."""
    c = 134217729.0 * a
    high = c - (c - a)
    return high, a - high


def difference(a: Any, b: Any, temperature: Any) -> tuple[Array, Array]:
    """(a - b) / temperature as a quotient and what its roundings lost (11).

    Knuth's TwoSum and Dekker's product (Handbook of Floating-Point Arithmetic, 4.3 and 4.4).
    """
    total = a - b
    minus_b = total - a
    lost = (a - (total - minus_b)) - (b + minus_b)
    quotient = total / temperature
    product = quotient * temperature
    (q_high, q_low), (t_high, t_low) = _split(quotient), _split(temperature)
    product_lost = ((q_high * t_high - product) + q_high * t_low + q_low * t_high) + q_low * t_low
    lost = ((total - product) - product_lost + lost) / temperature
    return quotient, np.where(np.isfinite(lost), lost, 0.0)  # not finite: out of range for it


def total(values: Any) -> Any:
    """Sum over the last axis, right to the last bit or two: by halves, the roundings kept apart."""
    lost = np.zeros(values.shape[:-1])
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        a, b, odd = values[..., :half], values[..., half : 2 * half], values[..., 2 * half :]
        added = a + b
        b_added = added - a
        lost = lost + ((a - (added - b_added)) + (b - b_added)).sum(axis=-1)
        values = np.concatenate([added, odd], axis=-1)
    return values[..., 0] + np.where(np.isfinite(lost), lost, 0.0)


class Row(NamedTuple):
    """Finished rows; k is the class left out."""

    surprise: Array  # lse - z_k / T = -log p_k
    above: Array  # lse - m / T
    p_k: Array
    rest: Array  # 1 - p_k
    top: Array  # p_j = exp((z_j - top) / T) / big for the other classes
    big: Array
    lse: Array


def finish(m: Any, s: Any, t: Any, temperature: Any) -> Row:
    """Rows from m, S and t; not a number where there is no finite logit, or +inf or NaN."""
    d, lost = difference(t, m, temperature)
    s = np.where(t < INF, s, NAN)  # S knows only of the other classes
    up = d >= 0.0
    small = np.exp(-np.abs(d))
    small = small + small * np.where(up, -lost, lost)
    u, z = s * small, s + small
    log1p_u, log_z = np.log1p(u), np.log(z)
    return Row(  #          d >= 0 (9, 12)        d < 0 (10, 12)
        surprise=np.where(up, log1p_u, log_z - d - lost),
        above=np.where(up, d + log1p_u, log_z),
        p_k=np.where(up, 1.0 / (1.0 + u), small / z),
        rest=np.where(up, u / (1.0 + u), s / z),
        top=np.where(up, t, m),
        big=np.where(up, 1.0 + u, z),
        lse=np.where(up, t / temperature + log1p_u, m / temperature + log_z),
    )


def times(weight: Any, value: Any) -> Any:
    """weight * value, where no weight means no contribution, not even of an infinity."""
    return np.where(weight == 0.0, 0.0, weight * value)


def row_loss(q_k: Any, row: Row, q_rest: Any, a_rest: Any, z_weight: Any) -> Any:
    """q_k (lse - z_k) + sum over j != k of q_j (lse - z_j) + z_weight lse**2 (15)."""
    loss = times(q_k, row.surprise) + (a_rest + times(q_rest, row.above))
    loss = loss + times(z_weight, row.lse * row.lse)
    return np.where(np.isnan(row.above), NAN, loss)


def exponentials(z: Any, top: Any, temperature: float) -> Array:
    """exp((z_j - top) / T); 0 for a masked class, also where all are masked."""
    x, lost = difference(z, top[..., None], temperature)
    e = np.exp(x)
    return np.where(z == -INF, 0.0, e + e * lost)


# ---------------------------------------------------------------- a problem in float64


class Part(NamedTuple):
    """The rows of a problem, or the classes of them that this shard holds."""

    z: Array  # (*rows, C) logits after softcap
    slope: Array | float  # (*rows, C) derivative of z by the logits
    q: Array  # (*rows, C) effective targets times the sample weights
    left_out: Array  # (*rows, C) bool: where k is; nowhere if it is in another shard
    z_weight: Array  # (*rows,)
    weight: Array  # (*rows,) what the row adds to the denominator of the mean
    kept: Array  # (*rows,) bool: not ignored
    bad: Array  # (*rows,) bool: no such class
    temperature: float
    n_classes: int  # of the whole row


def _largest(z: Array) -> Array:
    """Where the first largest logit is (the first NaN if there is one); nowhere if all are -inf."""
    k = np.argmax(z, axis=-1)[..., None]
    return np.asarray((np.arange(z.shape[-1]) == k) & (z.max(axis=-1) != -INF)[..., None])


def _index_targets(problem: Problem, n_classes: int) -> tuple[Array, Array, Array]:
    """Class indices (0 where there is none), and which rows are ignored or bad."""
    y = np.asarray(problem.targets)
    ignored = np.asarray(y == problem.options.ignore_index) & (
        problem.options.ignore_index is not None
    )
    bad = check_indices(problem, n_classes)
    if bad is None:
        bad = np.zeros(y.shape, bool)
    return np.where(ignored | bad, 0, y).astype(np.int64), ignored, bad


def _part(problem: Problem, offset: int = 0, n_classes: int | None = None) -> Part:
    """Everything that a row is told to be."""
    options, here = problem.options, problem.logits.shape[-1]
    n_classes = here if n_classes is None else n_classes
    z = np.array(problem.logits, np.float64, order="C")
    rows = z.shape[:-1]
    slope: Array | float = 1.0
    if options.softcap is not None:  # (18); infinities stay what they are
        a = np.exp(-2.0 * np.abs(z) / options.softcap)
        slope = np.where(np.isinf(z), 1.0, 4.0 * a / (1.0 + a) ** 2)
        z = np.where(np.isinf(z), z, options.softcap * np.tanh(z / options.softcap))
    w = np.ones(here) if problem.class_weight is None else problem.class_weight
    s = np.ones(rows)
    if problem.sample_weight is not None:
        s = np.asarray(problem.sample_weight, np.float64)
    if problem.probabilities:
        t = np.array(problem.targets, np.float64, order="C")
        left_out, bad, ignored = _largest(z), np.zeros(rows, bool), np.zeros(rows, bool)
        # Once for each row: by the shard of its first class
        v, weight = np.full(rows, 1.0 if offset == 0 else 0.0), s
    else:
        y, ignored, bad = _index_targets(problem, n_classes)
        left_out = np.arange(offset, offset + here) == y[..., None]
        t = left_out.astype(np.float64)
        v = np.where(left_out, w, 0.0).sum(axis=-1)  # w_y
        weight = s * v
    e = options.label_smoothing
    q = w * (times(1.0 - e, t) + e / n_classes)  # (13), (14)
    kept = ~ignored & (bad | (s != 0.0))
    return Part(
        z,
        slope,
        s[..., None] * q,
        left_out,
        times(s, v * options.z_loss),
        np.where(kept & ~bad, weight, 0.0),
        kept,
        bad,
        options.temperature,
        n_classes,
    )


def _measure(part: Part) -> Array:
    """The record of each row (7), (15)."""
    z, q, out = part.z, part.q, part.left_out
    others = np.where(out, -INF, z)
    m, t = others.max(axis=-1), np.where(out, z, -INF).max(axis=-1)
    sum_exp = total(exponentials(others, m, part.temperature))
    gap = np.where(z == -INF, INF, (m[..., None] - z) / part.temperature)
    a_rest = total(times(np.where(out, 0.0, q), gap))
    q_k, q_rest = np.where(out, q, 0.0).sum(axis=-1), total(np.where(out, 0.0, q))
    columns = (m, np.where(t < INF, sum_exp, NAN), t, q_k, q_rest, a_rest, part.z_weight)
    # An ignored row is certain of its class and has no weight, so that its loss is 0
    nothing = (-INF, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    spoiled = (-INF, NAN, -INF, NAN, NAN, NAN, NAN)
    record = np.empty((*m.shape, len(columns) + 2))
    for i, column in enumerate(columns):
        kept = np.where(part.kept, column, nothing[i])
        record[..., i] = np.where(part.bad, spoiled[i], kept)
    record[..., 7], record[..., 8] = part.temperature, part.n_classes
    return record


def _finished(record: Array) -> Row:
    m, s, t, *_, temperature, _ = np.moveaxis(record, -1, 0)
    return finish(m, s, t, temperature)


def _probabilities(part: Part, record: Array, row: Row) -> tuple[Array, Array, Array]:
    """p, 1 - p, and where the class is that the record leaves out."""
    t = record[..., 2]
    k = part.left_out & (part.z == t[..., None])  # another shard may have had a larger one
    p = exponentials(np.where(k, -INF, part.z), row.top, part.temperature) / row.big[..., None]
    rest = np.where(k, row.rest[..., None], 1.0 - p)
    return np.where(k, row.p_k[..., None], p), rest, k


def _gradient(part: Part, record: Array, row: Row) -> Array:
    """With respect to the logits passed: (4), and (6) for the class left out."""
    _, _, _, q_k, q_rest, _, z_weight, _, _ = np.moveaxis(record, -1, 0)
    p, rest, k = _probabilities(part, record, row)
    extra = times(z_weight, 2.0 * row.lse)  # (6)
    q_sum = q_k + q_rest
    # Of two largest logits in two shards the record may mean the other one, with another q
    others = np.where(q_k[..., None] == part.q, q_rest[..., None], q_sum[..., None] - part.q)
    at_k = (others + extra[..., None]) * p - part.q * rest
    grad = np.where(k, at_k, (q_sum + extra)[..., None] * p - part.q)
    grad = grad * part.slope / part.temperature  # (18), (19)
    kept, bad = part.kept[..., None], part.bad[..., None]
    return np.where(bad, NAN, np.where(kept, grad, 0.0))


def _store(out: Array, values: Array) -> None:
    """Round to the dtype of `out`: to 16 bits by way of float32, as everywhere."""
    out[...] = values.astype(np.float32) if out.dtype.itemsize == 2 else values


# ---------------------------------------------------------------- the backend


@quiet
def run_loss(problem: Problem, loss_rows: Array | None, grad: Array | None) -> tuple[float, float]:
    """Row losses and gradient; returns the sums of the weighted losses and of the weights."""
    part = _part(problem)
    record = _measure(part)
    row = _finished(record)
    q_k, q_rest, a_rest, z_weight = np.moveaxis(record[..., 3:7], -1, 0)
    loss = np.where(part.kept, row_loss(q_k, row, q_rest, a_rest, z_weight), 0.0)
    weight = float(total(part.weight.ravel()))
    if loss_rows is not None:
        _store(loss_rows, loss)
    if grad is not None:
        values = _gradient(part, record, row)
        if problem.reduction == "mean":
            values = values / weight if weight != 0.0 else np.zeros_like(values)
        _store(grad, values)
    return float(total(loss.ravel())), weight


@quiet
def run_grad_hess(problem: Problem, grad: Array, hess: Array, kind: str) -> None:
    """Gradient and diagonal Hessian s Q p (1 - p) of the row losses (21)."""
    part = _part(problem)
    part = part._replace(left_out=_largest(part.z))  # so that no other class has p > 1/2
    record = _measure(part)
    row = _finished(record)
    p, rest, _ = _probabilities(part, record, row)
    s = np.asarray(1.0 if problem.sample_weight is None else problem.sample_weight, np.float64)
    q_sum = 1.0 if not problem.probabilities else total(np.asarray(problem.targets, np.float64))
    n = part.z.shape[-1]
    values = np.asarray(q_sum)[..., None] * p * rest
    if kind == "xgboost":
        values = np.maximum(2.0 * values, 1e-16)
    elif kind == "lightgbm":
        values = values * (n / (n - 1) if n > 1 else 0.0)
    values = values * s[..., None]
    values = np.where(part.kept[..., None], values, 0.0)
    _store(grad, _gradient(part, record, row))
    _store(hess, values)


def _softmax(logits: Array) -> tuple[Array, Array, Array, Row, Array]:
    """z, k, its logit, the finished row, and the surprise lse - z_j >= 0 of each class (22)."""
    z = np.array(logits, np.float64, order="C")
    k = np.argmax(z, axis=-1)
    out = np.arange(z.shape[-1]) == k[..., None]
    peak = z.max(axis=-1)
    others = np.where(out, -INF, z)
    m = others.max(axis=-1)
    row = finish(m, total(exponentials(others, m, 1.0)), peak, 1.0)
    p = exponentials(others, row.top, 1.0) / row.big[..., None]
    p = np.where(out, row.p_k[..., None], p)
    lse = np.where(np.isfinite(peak), row.lse, peak)  # inf, -inf and NaN as scipy.special
    return z, k, p, row._replace(lse=lse), (peak[..., None] - z) + row.surprise[..., None]


@quiet
def run_row_stats(problem: Problem, outputs: dict[str, Array]) -> None:
    """The fields of `RowStats`, each into its array."""
    z, k, p, row, surprise = _softmax(problem.logits)
    results = {"row_max": z.max(axis=-1), "lse": row.lse, "argmax": k}
    results["entropy"] = total(times(p, surprise))  # (22)
    if problem.targets is not None:
        y, ignored, _ = _index_targets(problem, z.shape[-1])
        t = np.take_along_axis(z, y[..., None], axis=-1)
        lost = ignored | np.isnan(row.surprise)
        loss = np.take_along_axis(surprise, y[..., None], axis=-1)[..., 0]
        results["target_logit"] = np.where(ignored, NAN, t[..., 0])
        results["loss"] = np.where(ignored, 0.0, loss)
        results["rank"] = np.where(lost, z.shape[-1], (z > t).sum(axis=-1))
    for name, out in outputs.items():
        _store(out, results[name])


@quiet
def run_normalize(logits: Array, what: str, out: Array) -> None:
    """softmax, log_softmax or logsumexp."""
    _, _, p, row, surprise = _softmax(logits)
    _store(out, {"softmax": p, "log_softmax": -surprise, "logsumexp": row.lse}[what])


@quiet
def run_row_record(problem: Problem, class_offset: int, n_classes: int, record: Array) -> None:
    """The record of each row, or of the part of it in this shard."""
    record[...] = _measure(_part(problem, class_offset, n_classes))


@quiet
def run_grad_from_record(problem: Problem, record: Array, class_offset: int, grad: Array) -> None:
    """Gradient of the classes of this shard, from the merged records."""
    part = _part(problem, class_offset, int(np.nanmax(record[..., 8])))
    _store(grad, _gradient(part, record, _finished(record)))
