"""The exact answers, to many digits, that the package is measured against.

``exact_rows``   mpmath, every option and every edge case, slow (some 50 us per class);
``wide_rows``    plain index targets over many classes, in vectorised pairs of float64
                 (106 bits; ``test_accuracy.py`` checks it against mpmath).

Nothing here is taken from the package: it follows from the definition

    q_c = (1 - e) w_y [c = y] + (e / C) w_c                  (index targets)
    q_c = w_c ((1 - e) t_c + e / C)                          (probabilities)
    loss = s (sum_c q_c (lse - x_c) + v z_loss lse^2)        x = softcap tanh(z / softcap) / T
    grad = s (p_j (Q - q_j) - q_j (1 - p_j) + 2 v z_loss lse p_j) dx_j/dz_j

Beside each value stands its *size*, the sum of the magnitudes of its terms: where all terms have
one sign (a plain index target) size = |value| and an error in units of ``ulp(size)`` is relative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import ml_dtypes
import mpmath
import numpy as np

import numba_ce

mp = mpmath.mp.clone() if hasattr(mpmath.mp, "clone") else mpmath.mp
mp.prec = 180
mpf = mp.mpf
ZERO, ONE, INF, NAN = mpf(0), mpf(1), mpf("inf"), mpf("nan")


# ---------------------------------------------------------------- units in the last place


def _format(dtype):
    """Bits of the significand, and the exponent of the smallest subnormal number."""
    info = ml_dtypes.finfo(np.dtype(dtype).newbyteorder("="))
    return info.nmant + 1, info.minexp - info.nmant


def ulp(size, dtype):
    """Spacing of the floats of `dtype` at `size` (mpf, float or array), as a float64.

    In the subnormal range that is the smallest subnormal number, never less.
    """
    digits, lowest = _format(dtype)
    if isinstance(size, mp.mpf):
        if not mp.isfinite(size):
            return math.inf
        exponent = mp.frexp(size)[1] if size else -10000
    else:
        exponent = np.where(size == 0, -10000, np.frexp(np.abs(np.asarray(size, float)))[1])
    return np.ldexp(1.0, np.maximum(exponent - digits, lowest))


# ---------------------------------------------------------------- one row in mpmath, all options


@dataclass
class ExactRow:
    """Every result for one row of logits; lists run over the classes."""

    loss: mpf
    loss_size: mpf
    grad: list
    grad_size: list
    #: |x_j - m|, m the maximum of the classes that are summed: exp of it is off by as many ulps.
    depth: list
    #: what the row adds to the denominator of the mean.
    weight: mpf
    #: the softmax behind it; None for ignored and NaN rows
    soft: Softmax | None = field(default=None, repr=False)
    #: softcap only: |d loss / d log x| summed, and per class what the relative errors of the
    #: capped logits and of the slope do to the gradient (in ulps)
    loss_blur: mpf = ZERO
    grad_blur: list | None = None


class Softmax:
    """log-sum-exp, p and 1 - p of exact scores `x`; all but the first maximum are summed."""

    def __init__(self, x):
        self.x = x
        self.top = max(range(len(x)), key=lambda c: (x[c], -c))
        self.exps = [mp.exp(v - x[self.top]) if v > -INF else ZERO for v in x]
        self.rest = mp.fsum(e for c, e in enumerate(self.exps) if c != self.top)
        self.tail = mp.log1p(self.rest)
        self.total = ONE + self.rest
        self.row_max = x[self.top]
        self.lse = self.row_max + self.tail
        self.lse_size = max(abs(self.lse), abs(self.row_max))

    @cached_property
    def p(self):
        return [e / self.total for e in self.exps]

    @cached_property
    def one_minus_p(self):
        rest = self.rest
        return [
            (rest if c == self.top else ONE + rest - e) / self.total
            for c, e in enumerate(self.exps)
        ]

    @cached_property
    def surprise(self):
        """-log p_c, a sum of two terms that are both >= 0."""
        return [(self.row_max - v) + self.tail for v in self.x]

    @cached_property
    def entropy(self):
        return mp.fsum(p * h for p, h in zip(self.p, self.surprise, strict=True) if p)

    def depth(self, left_out=None):
        """|x_j - m|, m the maximum without `left_out` (None: without the first maximum)."""
        left_out = self.top if left_out is None else left_out
        m = max((v for c, v in enumerate(self.x) if c != left_out), default=ZERO)
        return [float(m - v) if c != left_out and v > -INF else 0.0 for c, v in enumerate(self.x)]


def softmax_row(logits):
    """`Softmax` of one row of finite or -inf floats, not all of them -inf."""
    return Softmax([mpf(float(v)) for v in logits])


def exact_row(
    logits,
    target=None,
    probabilities=None,
    *,
    class_weight=None,
    sample_weight=1.0,
    label_smoothing=0.0,
    ignore_index=-100,
    z_loss=0.0,
    softcap=None,
    temperature=1.0,
):
    """All results for one row: `target` a class index, or `probabilities` a row of them."""
    n = len(logits)
    z = [mpf(float(v)) for v in logits]
    s = mpf(float(sample_weight))
    w = [ONE] * n if class_weight is None else [mpf(float(v)) for v in class_weight]
    e = mpf(label_smoothing)
    share = e / n
    ignored = s == 0 or (probabilities is None and target == ignore_index)
    if ignored:
        return ExactRow(ZERO, ZERO, [ZERO] * n, [ZERO] * n, [0.0] * n, ZERO)
    if probabilities is None:
        v, weight = w[target], s * w[target]
        q = [share * w[c] + ((1 - e) * w[c] if c == target else 0) for c in range(n)]
        q_terms = [abs(u) for u in q]
    else:
        v, weight = ONE, s
        t = [mpf(float(value)) for value in probabilities]
        q = [w[c] * ((1 - e) * t[c] + share) for c in range(n)]
        q_terms = [abs(w[c]) * ((1 - e) * abs(t[c]) + share) for c in range(n)]
    if any(mp.isnan(x) or x == INF for x in z) or all(x == -INF for x in z):
        return ExactRow(NAN, NAN, [NAN] * n, [NAN] * n, [0.0] * n, weight)

    # Scores and their derivative; a masked class (-inf) stays masked, with derivative 1.
    slope = [ONE] * n
    x = list(z)
    if softcap is not None:
        cap = mpf(softcap)
        a = [mp.exp(-2 * abs(u) / cap) if u > -INF else ONE for u in z]
        slope = [4 * b / (1 + b) ** 2 for b in a]
        x = [cap * mp.tanh(u / cap) if u > -INF else u for u in z]
    t_inv = ONE / mpf(float(temperature))
    soft = Softmax([u * t_inv for u in x])
    slope = [d * t_inv for d in slope]

    terms = [qc * h for qc, h in zip(q, soft.surprise, strict=True) if qc]
    zl = v * mpf(z_loss)
    lse_size = abs(soft.row_max) + soft.tail
    loss = s * (mp.fsum(terms) + zl * soft.lse**2)
    if any(h == INF for h in terms) and any(h == -INF for h in terms):
        loss = NAN
    loss_size = abs(s) * (mp.fsum(abs(h) for h in terms) + abs(zl) * lse_size**2)

    q_sum, q_size = mp.fsum(q), mp.fsum(q_terms)
    # The class left out has the terms p (Q - q) and q (1 - p), the others Q p and q
    left_out = target if probabilities is None else max(range(n), key=x.__getitem__)
    grad, size = [], []
    for j, (p, r, qj, d) in enumerate(zip(soft.p, soft.one_minus_p, q, slope, strict=True)):
        amount = q_terms[j]
        grad.append(s * d * (p * (q_sum - qj) - qj * r + 2 * zl * soft.lse * p))
        terms = p * q_size + amount
        if j == left_out:
            terms = p * (q_size - amount) + amount * r
        size.append(abs(s) * d * (terms + 2 * abs(zl) * lse_size * p))
    row = ExactRow(loss, loss_size, grad, size, soft.depth(target), weight, soft)
    if softcap is not None:
        finite = [c for c in range(n) if z[c] > -INF]
        capped = [abs(soft.x[c]) if z[c] > -INF else ZERO for c in range(n)]
        row.loss_blur = mp.fsum(size[c] / slope[c] * t_inv * capped[c] for c in finite)
        top = max(capped)
        row.grad_blur = [float(capped[c] + top + 2 * abs(z[c]) / cap) for c in finite]
        row.grad_blur = [row.grad_blur.pop(0) if z[c] > -INF else 0.0 for c in range(n)]
    return row


def exact_rows(logits, targets, *, axis=-1, class_weight=None, sample_weight=None, **options):
    """`exact_row` for each row of an array, in C order; index or probability targets."""
    rows = np.moveaxis(np.asarray(logits), axis, -1)
    n_classes = rows.shape[-1]
    targets = np.asarray(targets)
    is_index = np.issubdtype(targets.dtype, np.integer)
    if is_index:
        per_row = [{"target": int(y)} for y in targets.reshape(-1)]
    else:
        moved = np.moveaxis(targets, axis, -1).reshape(-1, n_classes)
        per_row = [{"probabilities": t.astype(float)} for t in moved]
    if sample_weight is None:
        sample_weight = np.ones(len(per_row))
    weights = np.asarray(sample_weight).reshape(-1).astype(float)
    flat = rows.reshape(-1, n_classes).astype(float)
    return [
        exact_row(z, class_weight=class_weight, sample_weight=s, **target, **options)
        for z, s, target in zip(flat, weights, per_row, strict=True)
    ]


# ---------------------------------------------------------------- comparisons

#: Promised accuracy of loss and gradient.
ULPS = 4
#: The reference in float64: NumPy's exp, log and log1p may be off by 4 ulps each.
ULPS_OF_REFERENCE = 16
#: The exponential of a GPU (ex2.approx) is off by 2 ulps. An entry of the gradient is a product of
#: up to three of them where warps share a row: its own, its warp's maximum, the target's.
ULPS_OF_CUDA = 8
ULPS_OF_CUDA_ENTRIES = 12
#: Relative errors that the capped logits may carry, in ulps (softcap only).
SOFTCAP_ULPS = 3
#: The derivative of the soft cap, beside 2 |z| / cap for the exponential in it: at most 4.3 ulps
#: near 0 and 5.6 beyond cap / 2 (float32 and float64, 16 million numbers each).
SLOPE_ULPS = 5


def working(dtype):
    """Sums, losses and gradients of 16-bit logits are computed in float32."""
    dtype = np.dtype(dtype).newbyteorder("=")
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def promised(dtype):
    """Ulps of loss and gradient, for the backend in use."""
    if numba_ce.get_backend() == "cuda":
        return ULPS_OF_CUDA
    reference = numba_ce.get_backend() == "numpy" and np.dtype(dtype).itemsize == 8
    return ULPS_OF_REFERENCE if reference else ULPS


def promised_entries(dtype):
    """Ulps of the other entries of a gradient of plain float32 or float64 rows."""
    if numba_ce.get_backend() == "cuda" and np.dtype(dtype).itemsize == 4:
        return ULPS_OF_CUDA_ENTRIES
    return promised(dtype)


def _check(actual, exact, allowed, what):
    actual = float(actual)
    if math.isfinite(actual) and mp.isfinite(exact):
        error = float(abs(mpf(actual) - exact))
        assert error <= allowed, (
            f"{what}: {actual!r}, exact {float(exact)!r}, off by {error:.3g}, allowed {allowed:.3g}"
        )
    else:
        same = actual == exact or (math.isnan(actual) and mp.isnan(exact))
        assert same, f"{what}: {actual!r}, exact {exact}"


def check_loss(loss_rows, rows, dtype):
    """Unreduced losses (any shape, C order) against a list of `ExactRow`."""
    dtype = working(dtype)
    assert loss_rows.dtype == dtype
    assert loss_rows.size == len(rows)
    for i, (actual, row) in enumerate(zip(loss_rows.ravel(), rows, strict=True)):
        allowed = promised(dtype) * float(ulp(row.loss_size, dtype))
        allowed += SOFTCAP_ULPS * float(row.loss_blur) * float(ulp(ONE, dtype))
        _check(actual, row.loss, allowed, f"loss of row {i}")


def check_total(value, rows, dtype, reduction):
    """A "sum" or "mean" against a list of `ExactRow`."""
    dtype = working(dtype)
    assert value.dtype == dtype
    assert value.shape == ()
    total, size = mp.fsum(r.loss for r in rows), mp.fsum(r.loss_size for r in rows)
    blur = mp.fsum(r.loss_blur for r in rows)
    if reduction == "mean":
        weight = mp.fsum(r.weight for r in rows)
        spread = mp.fsum(abs(r.weight) for r in rows)
        if weight == 0:
            assert math.isnan(value)
            return
        total, size, blur = total / weight, size / abs(weight), blur / abs(weight)
        size *= spread / abs(weight)
    allowed = (promised(dtype) + 1) * float(ulp(size, dtype))
    allowed += SOFTCAP_ULPS * float(blur) * float(ulp(ONE, dtype))
    _check(value, total, allowed, reduction)


def check_grad(grad, rows, dtype, reduction="none", axis=-1):
    """A gradient array against a list of `ExactRow`; `dtype` is that of the logits."""
    weight = ONE
    if reduction == "mean":
        weight = mp.fsum(r.weight for r in rows)
    flat = np.moveaxis(grad, axis, -1)
    flat = flat.reshape(-1, flat.shape[-1])
    assert len(flat) == len(rows)
    wide = working(dtype)
    for i, (actual, row) in enumerate(zip(flat, rows, strict=True)):
        for j, value in enumerate(actual):
            if weight == 0:
                assert value == 0, f"grad[{i}, {j}] = {value!r}, but the denominator is 0"
                continue
            exact, size = row.grad[j] / weight, abs(row.grad_size[j] / weight)
            ulps = max(promised(wide), row.depth[j]) + (0 if weight == 1 else 1)
            if row.grad_blur:
                ulps += SLOPE_ULPS + SOFTCAP_ULPS * row.grad_blur[j]
            allowed = ulps * float(ulp(size, wide)) if size else 0.0
            if grad.dtype.itemsize == 2 and size and mp.isfinite(exact):  # rounded once more
                allowed += 0.5 * float(ulp(abs(exact) + mpf(allowed), grad.dtype))
            _check(value, exact, allowed, f"grad[{i}, {j}]")


def check_values(actual, exact, size, ulps, dtype, what):
    """Arrays or lists of plain results: |actual - exact| <= ulps * ulp(size), per element."""
    wide = working(dtype)
    actual = np.asarray(actual).ravel()
    ulps = np.broadcast_to(
        np.maximum(ulps, 0 if promised(dtype) == ULPS else promised(dtype)), actual.shape
    ).tolist()
    for i, (a, e, s, u) in enumerate(zip(actual, exact, size, ulps, strict=True)):
        allowed = u * float(ulp(s, wide)) if s else 0.0
        if actual.dtype.itemsize == 2 and s and mp.isfinite(e):
            allowed += 0.5 * float(ulp(abs(e) + mpf(allowed), actual.dtype))
        _check(a, e, allowed, f"{what}[{i}]")


def assert_same(actual, expected):
    """Equal values, NaN equal to NaN (NumPy's own function does not know bfloat16's NaN)."""
    if isinstance(actual, tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
        return
    actual, expected = (np.asarray(a) for a in (actual, expected))
    if actual.dtype.name == "bfloat16":
        assert expected.dtype == actual.dtype
        actual, expected = actual.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_array_equal(actual, expected)
