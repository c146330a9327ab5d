"""The plain loss over many classes in vectorised pairs of float64 (106 bits)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from exact import ONE, _format, mp, mpf

# ---------------------------------------------------------------- pairs of float64, vectorised


def _two_sum(a, b):
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a, b):
    def split(v):
        t = 134217729.0 * v
        high = t - (t - v)
        return high, v - high

    (ah, al), (bh, bl) = split(a), split(b)
    p = a * b
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


class Wide:
    """An array of unevaluated sums high + low, |low| <= ulp(high) / 2: about 106 bits."""

    def __init__(self, high, low=0.0):
        self.high, self.low = _two_sum(np.asarray(high, float), np.asarray(low, float))

    @classmethod
    def of(cls, values):
        """From a list of mpf numbers."""
        high = [float(v) for v in values]
        return cls(high, [float(v - mpf(h)) for v, h in zip(values, high, strict=True)])

    def __getitem__(self, key):
        return Wide(self.high[key], self.low[key])

    def __add__(self, other):
        high, a = _two_sum(self.high, other.high)
        low, b = _two_sum(self.low, other.low)
        high, low = _two_sum(high, a + low)
        return Wide(high, low + b)

    def __mul__(self, other):
        high, low = _two_product(self.high, other.high)
        return Wide(high, low + (self.high * other.low + self.low * other.high))

    def __truediv__(self, other):
        quotient = self.high / other.high
        rest = self + Wide(-quotient) * other
        return Wide(quotient, rest.high / other.high)

    def scaled(self, exponent):
        return Wide(np.ldexp(self.high, exponent), np.ldexp(self.low, exponent))

    def sum(self):
        """Over the last axis, by halves."""
        high, low = self.high, self.low
        while high.shape[-1] > 1:
            half = (high.shape[-1] + 1) // 2
            padding = [(0, 0)] * (high.ndim - 1) + [(0, 2 * half - high.shape[-1])]
            high, low = np.pad(high, padding), np.pad(low, padding)
            folded = Wide(high[..., :half], low[..., :half]) + Wide(
                high[..., half:], low[..., half:]
            )
            high, low = folded.high, folded.low
        return Wide(high[..., 0], low[..., 0])

    def to_mp(self):
        pairs = zip(self.high.ravel(), self.low.ravel(), strict=True)
        return [mpf(float(h)) + mpf(float(v)) for h, v in pairs]


_LN2 = Wide.of([mp.ln2])
_INVERSE_FACTORIALS = [Wide.of([ONE / mp.factorial(k)]) for k in range(10, 0, -1)]


def wide_exp(x, shift=0):
    """exp(x) * 2**shift for a `Wide` x <= 700 (the shift keeps tiny results normal)."""
    k = np.rint(x.high / _LN2.high)
    halvings = 9
    r = (x + Wide(-k) * _LN2).scaled(-halvings)
    power = Wide(np.zeros_like(r.high))
    for coefficient in _INVERSE_FACTORIALS:  # exp(r) - 1 by Horner's rule
        power = (power + coefficient) * r
    for _ in range(halvings):  # exp(2r) - 1 from exp(r) - 1
        power = power.scaled(1) + power * power
    return (power + Wide(np.ones_like(k))).scaled(k.astype(int) + shift)


_HALF_SHIFT = 400
#: The gradient of `wide_rows` is multiplied by 2**SHIFT, so that subnormal entries keep all bits.
SHIFT = 2 * _HALF_SHIFT


@dataclass
class WideRows:
    """Exact results of many rows with index targets."""

    loss: list  # mpf, one per row
    lse: list  # mpf
    row_max: np.ndarray  # of all classes, divided by the temperature
    grad_target: list  # mpf
    grad: Wide  # all classes, times 2**SHIFT
    depth: np.ndarray  # (max over the other classes - z_j) / temperature


def wide_rows(logits, targets, temperature=1.0):
    """Exact loss, lse and gradient of finite float32 or float64 `logits` (N, C), C >= 2."""
    z = np.asarray(logits, dtype=float)
    y = np.asarray(targets)
    rows = np.arange(len(z))
    others = z.copy()
    others[rows, y] = -np.inf
    m = others.max(axis=1)
    scale = Wide(float(temperature))
    x = Wide(*_two_sum(z, -m[:, None])) / scale
    d = x[rows, y].to_mp()
    x.high[rows, y], x.low[rows, y] = 0.0, 0.0
    exps = wide_exp(x, _HALF_SHIFT)
    exps.high[rows, y], exps.low[rows, y] = 0.0, 0.0
    sums = [v * mpf(2) ** -_HALF_SHIFT for v in exps.sum().to_mp()]

    loss, lse, grad_target, factor = [], [], [], []
    for gap, total, top in zip(d, sums, m, strict=True):
        u = total * mp.exp(-gap)
        loss.append(mp.log1p(u))
        lse.append(mpf(float(top)) / mpf(float(temperature)) + gap + loss[-1])
        share = -u / (1 + u) / mpf(float(temperature))
        grad_target.append(share)
        factor.append(-share / total * mpf(2) ** _HALF_SHIFT)
    scaled = Wide.of(list(factor))
    grad = exps * Wide(scaled.high[:, None], scaled.low[:, None])
    at_target = Wide.of([v * mpf(2) ** SHIFT for v in grad_target])
    grad.high[rows, y], grad.low[rows, y] = at_target.high, at_target.low
    row_max = np.maximum(m, z[rows, y]) / temperature
    return WideRows(loss, lse, row_max, grad_target, grad, (m[:, None] - z) / temperature)


def wide_ulps(actual, exact, dtype, shift=0):
    """|actual - exact| in ulps of `exact`, where `exact` is a `Wide` times 2**shift."""
    digits, lowest = _format(dtype)
    exponent = np.where(exact.high == 0, -10000, np.frexp(exact.high)[1])
    unit = np.ldexp(1.0, np.maximum(exponent - digits, lowest + shift))
    difference = Wide(np.ldexp(np.asarray(actual, float), shift)) + Wide(-exact.high, -exact.low)
    return np.abs(difference.high) / unit
