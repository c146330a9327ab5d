"""Whether a result is right: the reference in float64, within the accuracy that is promised.

The bounds are those of `exact.py`, for whole arrays at once: units in the last place of the sum of
the magnitudes of the terms.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from exact import SLOPE_ULPS, SOFTCAP_ULPS, ULPS, ULPS_OF_REFERENCE, ulp, working

import numba_ce as nc

INF, NAN = np.inf, np.nan
TINY = 5e-324


class WrongError(AssertionError):
    """A result that should not have come out."""


class Sizes(NamedTuple):
    """What errors are measured against: see `exact.ExactRow`."""

    loss: Any  # (*rows,)
    grain: Any  # (*rows, C) what multiplies p, which the reference may have as a subnormal number
    grad: Any  # (*rows, C)
    depth: Any  # (*rows, C)
    loss_blur: Any
    grad_blur: Any
    lse: Any
    weight: Any  # sum of the magnitudes of the weights in the mean, over the sum


def _softmax(x):
    top = x.max(axis=-1, keepdims=True)
    at_top = np.arange(x.shape[-1]) == x.argmax(axis=-1)[..., None]
    exps = np.where(x == -INF, 0.0, np.exp(x - top))
    rest = np.where(at_top, 0.0, exps).sum(axis=-1, keepdims=True)
    one_minus = np.where(at_top, rest, 1.0 + rest - exps) / (1.0 + rest)
    return exps / (1.0 + rest), one_minus, (top - x) + np.log1p(rest), top, np.log1p(rest)


@np.errstate(all="ignore")
def sizes(plain, boosting=False):
    """The `Sizes` of a problem in plain float64 arrays."""
    z, n = plain["logits"], plain["logits"].shape[-1]
    w = plain.get("class_weight", np.ones(n))
    s = np.abs(plain.get("sample_weight", np.ones(z.shape[:-1])))[..., None]
    e, cap = plain.get("label_smoothing", 0.0), plain.get("softcap")
    temperature, z_loss = plain.get("temperature", 1.0), plain.get("z_loss", 0.0)
    targets, classes = plain["targets"], np.arange(n)
    if targets.dtype.kind == "f":
        q = np.abs(w) * ((1 - e) * np.abs(targets) + e / n)
        v = np.ones(z.shape[:-1])
        left_out = classes == z.argmax(axis=-1)[..., None]
    else:
        left_out = classes == targets[..., None]
        q = np.abs(w) * ((1 - e) * left_out + e / n)
        v = np.where(left_out, np.abs(w), 0.0).sum(axis=-1)
        if boosting:
            left_out = classes == z.argmax(axis=-1)[..., None]
    slope, x = np.ones_like(z), z
    if cap is not None:
        a = np.exp(-2.0 * np.abs(z) / cap)
        slope = np.where(np.isinf(z), 1.0, 4.0 * a / (1.0 + a) ** 2)
        x = np.where(np.isinf(z), z, cap * np.tanh(z / cap))
    x, slope = x / temperature, slope / temperature
    p, one_minus, surprise, top, tail = _softmax(x)
    lse = (np.abs(top) + tail)[..., 0]
    z_weight = np.abs(v * z_loss)
    terms = np.where(q == 0.0, 0.0, q * surprise).sum(axis=-1)
    loss = s[..., 0] * (terms + np.where(z_weight == 0.0, 0.0, z_weight * lse**2))
    total = q.sum(axis=-1, keepdims=True)
    grad = np.where(left_out, p * (total - q) + q * one_minus, p * total + q)
    grad = s * (grad + np.where(z_weight == 0.0, 0.0, 2 * z_weight * lse)[..., None] * p)
    terms_of_grad = grad
    grad = np.where(
        (x > -INF) & (total > 0.0) & (s > 0.0), np.maximum(grad * slope, TINY), grad * slope
    )
    m = np.where(left_out, -INF, x).max(axis=-1, keepdims=True)
    depth = np.where(left_out | np.isinf(x), 0.0, np.abs(m - x))
    loss_blur, grad_blur = np.zeros_like(loss), np.zeros_like(grad)
    if cap is not None:
        size = np.where(np.isinf(x), 0.0, np.abs(x))
        loss_blur = (terms_of_grad * size).sum(axis=-1) / temperature
        grad_blur = size + size.max(axis=-1, keepdims=True) + 2 * np.abs(z) / cap
        grad_blur = np.where(np.isinf(x), 0.0, grad_blur)
    if e > 0.0 and targets.dtype.kind != "f" and not boosting:
        # One of the others leads: its surprise comes from exponentials that are rounded
        t = np.where(left_out, x, -INF).max(axis=-1, keepdims=True)
        q_rest = np.where(left_out, 0.0, q).sum(axis=-1, keepdims=True)
        loss_blur = loss_blur + s[..., 0] * np.where(m > t, q_rest, 0.0)[..., 0]
    grain = np.where(z_weight == 0.0, 0.0, 2 * z_weight * lse)[..., None] + total
    grain = np.where(np.isfinite(x), s * slope * grain, 0.0)
    return Sizes(loss, grain, grad, depth, loss_blur, grad_blur, lse, (s[..., 0], v))


@np.errstate(all="ignore")
def compare(actual, expected, allowed, what):
    """|actual - expected| <= allowed, per element; anything that is not finite must be the same."""
    a, e = np.asarray(actual).astype(np.float64), np.asarray(expected, np.float64)
    if a.shape != e.shape:
        raise WrongError(f"{what} has shape {a.shape}, expected {e.shape}")
    dtype = np.asarray(actual).dtype.newbyteorder("=")
    limit = INF if dtype.kind == "i" else float(ml_dtypes.finfo(dtype).max)
    right = (np.abs(a - e) <= allowed) | (a == e) | (np.isnan(a) & np.isnan(e))
    right |= (np.abs(e) + allowed >= limit) & (np.abs(a) >= limit / 2) & (np.sign(a) == np.sign(e))
    if not right.all():
        at = tuple(int(i) for i in np.argwhere(~right)[0])
        bound = np.broadcast_to(allowed, a.shape)[at]
        raise WrongError(
            f"{what}{list(at)} = {a[at]!r}, expected {e[at]!r}, off by {abs(a[at] - e[at]):.3g}, "
            f"allowed {bound:.3g}; {np.count_nonzero(~right)} of {right.size} wrong"
        )


def ulps_of(dtype, depth=0.0):
    """Promised to a kernel, and to the reference where that is not far more accurate."""
    kernel = np.maximum(ULPS, depth)
    if working(dtype).itemsize == 8:
        return kernel + np.maximum(ULPS_OF_REFERENCE, depth)
    return kernel


def bound(size, ulps, dtype, out, expected):
    """An error of so many ulps of the working dtype, and the rounding to that of the output."""
    wide = working(dtype)
    allowed = np.where(size == 0.0, 0.0, ulps * ulp(np.where(np.isfinite(size), size, 0.0), wide))
    if np.dtype(out).itemsize == 2:
        rounded = np.where(np.isfinite(expected), np.abs(expected) + allowed, 0.0)
        allowed = allowed + np.where(size == 0.0, 0.0, 0.5 * ulp(rounded, out))
    return allowed


def result_of(call, backend="numpy"):
    """What the reference makes of the plain arrays."""
    with nc.use_backend(backend):
        return getattr(nc, call.function)(**call.plain)


# ---------------------------------------------------------------- the functions


def check(call, result):
    """Raises `WrongError` for a wrong result of a call that was accepted."""
    name = call.function
    if name.startswith("linear") or name == "multinomial_objective":
        between_backends(call, result)
    elif name == "row_record":
        check_record(call, result)
    elif name in ("merge_records", "loss_from_record"):
        check_merged(call, result)
    elif name == "row_stats":
        check_stats(call, result)
    elif name in ("softmax", "log_softmax", "logsumexp"):
        check_normalized(call, result)
    elif name == "cross_entropy_grad_and_hess":
        check_hess(call, result)
    else:
        check_loss_and_grad(call, result)


def _loss(loss, expected, size, blur, dtype, what, more=0):
    if np.asarray(loss).dtype != working(dtype):
        raise WrongError(f"{what} has dtype {loss.dtype}")
    allowed = bound(size, ulps_of(dtype) + more, dtype, working(dtype), expected)
    compare(loss, expected, allowed + SOFTCAP_ULPS * blur * ulp(1.0, working(dtype)), what)


def _grad(call, grad, expected, size, depth, what="grad", grain=0.0, blur=0.0):
    """A gradient in the axis order of the call; blur : more ulps, of a soft cap."""
    shape = np.moveaxis(expected, -1, call.axis).shape
    if grad.shape != shape:
        raise WrongError(f"{what} has shape {grad.shape}, expected {shape}")
    moved = np.moveaxis(np.asarray(grad), call.axis, -1)
    ulps = ulps_of(call.dtype, depth) + 1 + blur
    allowed = bound(size, ulps, call.dtype, grad.dtype, expected)
    compare(moved, expected, allowed + ulps * TINY * grain, what)


def _is_output(call, name, result):
    given = call.arguments.get(name)
    if given is not None and result is not given:
        raise WrongError(f"{name} was not returned")
    if given is None and (result.dtype != call.dtype or not result.dtype.isnative):
        raise WrongError(f"a fresh output has dtype {result.dtype.str}")


@np.errstate(all="ignore")
def check_loss_and_grad(call, result):
    """cross_entropy, cross_entropy_and_grad, grad_from_record and stream."""
    plain, dtype, name = dict(call.plain), call.dtype, call.function
    reduction = plain.setdefault("reduction", "mean")
    if name == "grad_from_record":
        reduction = plain["reduction"] = "sum"
    loss = grad = None
    if name == "cross_entropy":
        loss = result
    elif name == "stream":
        loss, grad = result.loss, call.arguments.get("grad_out")
    elif name == "cross_entropy_and_grad":
        loss, grad = result
        _is_output(call, "out", grad)
    else:
        grad = result
        _is_output(call, "out", grad)
    if plain["logits"].size == 0 and plain["logits"].shape[-1] == 0:  # no rows either
        plain["logits"] = np.zeros((*plain["logits"].shape[:-1], 0))
    with nc.use_backend("numpy"):
        expected, expected_grad = nc.cross_entropy_and_grad(**plain)
    size = sizes(plain) if plain["logits"].size else None
    if size is None:
        if loss is not None:
            compare(loss, expected, 0.0, "loss")
        return
    kept, bad = _kept(plain)
    scale = 1.0
    if reduction == "mean":
        s, v = size.weight
        magnitude = float(np.where(kept, s * np.where(bad, 0.0, v), 0.0).sum())
        denominator = _denominator(plain, kept & ~bad)
        scale = INF if denominator == 0.0 else 1.0 / abs(denominator)
    rows_loss, blur = np.where(kept, size.loss, 0.0), np.where(kept, size.loss_blur, 0.0)
    if loss is not None and reduction == "none":
        _loss(loss, expected, rows_loss, blur, dtype, "loss")
    elif loss is not None:
        factor = 1.0 if reduction == "sum" else scale * max(1.0, magnitude * scale)
        total, blurred = (np.nansum(a) * factor for a in (rows_loss, blur))
        _loss(loss, expected, total, blurred, dtype, reduction, more=1)
    if grad is not None:
        first, last = call.part if name == "grad_from_record" else (0, plain["logits"].shape[-1])
        there = (..., slice(first, last))
        amount = np.where(kept[..., None], size.grad, 0.0)[there]
        least = np.where(amount > 0.0, TINY, 0.0)  # a size that is not 0 stays one
        amount = np.zeros_like(amount) if scale == INF else np.maximum(amount * scale, least)
        blur = 0.0
        if "softcap" in plain:
            blur = SLOPE_ULPS + SOFTCAP_ULPS * size.grad_blur[there]
            if working(dtype).itemsize == 8:  # the reference's as well
                blur = 2 * blur
        grain = 0.0 if scale == INF else np.where(kept[..., None], size.grain, 0.0)[there] * scale
        _grad(call, grad, expected_grad[there], amount, size.depth[there], grain=grain, blur=blur)


def _kept(plain):
    """Which rows count, and which have a bad target."""
    z, targets = plain["logits"], plain["targets"]
    kept, bad = np.ones(z.shape[:-1], bool), np.zeros(z.shape[:-1], bool)
    if targets.dtype.kind != "f":
        ignored = plain.get("ignore_index", -100)
        is_ignored = np.zeros(kept.shape, bool)
        if ignored is not None:
            is_ignored = np.asarray(targets == ignored)
        bad = ~is_ignored & ((targets < 0) | (targets >= z.shape[-1]))
        kept &= ~is_ignored
    if "sample_weight" in plain:
        kept &= (plain["sample_weight"] != 0.0) | bad
    return kept, bad


def _denominator(plain, counts):
    s = plain.get("sample_weight", np.ones(counts.shape))
    if plain["targets"].dtype.kind == "f":
        return float(s[counts].sum())
    w = plain.get("class_weight", np.ones(plain["logits"].shape[-1]))
    y = np.where(counts, plain["targets"], 0).astype(np.int64)
    return float((s * w[y])[counts].sum())


@np.errstate(all="ignore")
def check_hess(call, result):
    plain, dtype = call.plain, call.dtype
    grad, hess = result
    given = call.arguments.get("out")
    if given is not None and (grad is not given[0] or hess is not given[1]):
        raise WrongError("out was not returned")
    with nc.use_backend("numpy"):
        expected, expected_hess = nc.cross_entropy_grad_and_hess(**plain)
    if expected.size == 0:
        return
    size, (kept, _) = sizes(plain, boosting=True), _kept({**plain, "ignore_index": None})
    _grad(call, grad, expected, np.where(kept[..., None], size.grad, 0.0), size.depth)
    moved = np.moveaxis(np.asarray(hess), call.axis, -1)
    if plain["targets"].dtype.kind == "f":  # their sum, of either sign, is a factor
        spread = np.abs(plain["targets"]).sum(axis=-1, keepdims=True)
    else:
        spread = 1.0
    amount = np.maximum(np.abs(expected_hess), 0.0) * np.ones_like(spread)
    ulps = ulps_of(dtype, size.depth) + 3
    compare(moved, expected_hess, bound(amount, ulps, dtype, hess.dtype, expected_hess), "hess")


@np.errstate(all="ignore")
def check_stats(call, result):
    expected, dtype = result_of(call), call.dtype
    z = call.plain["logits"]
    for name, actual, value in zip(result._fields, result, expected, strict=True):
        if (actual is None) != (value is None):
            raise WrongError(f"{name} is {actual!r}")
        if value is None:
            continue
        if np.asarray(actual).dtype != (
            value.dtype if name in ("argmax", "rank") else working(dtype)
        ):
            raise WrongError(f"{name} has dtype {np.asarray(actual).dtype}")
        allowed = np.zeros(np.shape(value))
        if z.size and name in ("lse", "entropy", "loss"):
            _, _, _, top, tail = _softmax(z)
            size = {"lse": np.maximum(np.abs(top), tail)[..., 0]}.get(name, np.abs(value))
            allowed = bound(size, ulps_of(dtype), dtype, working(dtype), value)
        compare(actual, value, allowed, name)


@np.errstate(all="ignore")
def check_normalized(call, result):
    plain = {"logits": call.plain["logits"]}
    with nc.use_backend("numpy"):
        expected = getattr(nc, call.function)(**plain)
    z, dtype = plain["logits"], call.dtype
    if call.function == "logsumexp":
        if np.asarray(result).dtype != working(dtype):
            raise WrongError(f"lse has dtype {np.asarray(result).dtype}")
        if call.arguments.get("keepdims"):
            result = np.squeeze(result, call.axis)
        allowed = 0.0
        if z.size:
            _, _, _, top, tail = _softmax(z)
            size = np.maximum(np.abs(top), tail)[..., 0]
            allowed = bound(size, ulps_of(dtype), dtype, working(dtype), expected)
        compare(result, expected, allowed, "lse")
        return
    _is_output(call, "out", result)
    if z.size == 0:
        return
    depth = 0.0
    if call.function == "softmax":
        depth = np.where(np.isinf(z), 0.0, np.abs(z.max(axis=-1, keepdims=True) - z))
        size = _softmax(z)[0]
    else:
        size = np.abs(expected)
    _grad(call, result, expected, size, depth, call.function)


@np.errstate(all="ignore")
def check_record(call, record):
    """Merged with the reference's records of the other classes, the loss must come out."""
    plain, (first, last) = call.plain, call.part
    n_classes = plain["logits"].shape[-1]
    for a, b in ((0, first), (last, n_classes)):
        if a == b:
            continue
        shard = dict(plain)
        for key in ("logits", "targets", "class_weight"):
            if key in plain and (key != "targets" or plain[key].dtype.kind == "f"):
                shard[key] = plain[key][..., a:b]
        with nc.use_backend("numpy"):
            other = nc.row_record(**shard, class_offset=a, n_classes=n_classes)
        record = nc.merge_records(record, other)
    expected = loss_rows(plain)
    if expected.size == 0:
        return
    size, (kept, _) = sizes(plain), _kept(plain)
    loss = nc.loss_from_record(record)
    dtype = call.dtype
    allowed = bound(np.where(kept, size.loss, 0.0), ulps_of(dtype), dtype, np.float64, expected)
    blur = np.where(kept, size.loss_blur, 0.0) * ulp(1.0, working(dtype))
    compare(loss, expected, allowed + SOFTCAP_ULPS * blur, "loss of the record")


@np.errstate(all="ignore")
def check_merged(call, result):
    """The loss of two halves; their order does not matter."""
    loss = result
    if call.function == "merge_records":
        a, b = call.arguments["a"], call.arguments["b"]
        compare(result, nc.merge_records(b, a), 0.0, "merged the other way round")
        loss = nc.loss_from_record(result)
    expected = loss_rows(call.plain)
    allowed = bound(sizes(call.plain).loss, ulps_of(np.float64), np.float64, np.float64, expected)
    compare(loss, expected, allowed, "loss")


def loss_rows(plain):
    """The reference's losses of the rows."""
    with nc.use_backend("numpy"):
        return np.asarray(nc.cross_entropy(**plain, reduction="none"))


def between_backends(call, result):
    """The linear layer: the same products of matrices, so nearly the same numbers."""
    with nc.use_backend("numpy"), warnings.catch_warnings():
        expected = call()
        if call.function == "multinomial_objective":
            expected = expected(expected.x0 + 0.1)
    if call.function == "multinomial_objective":
        result = result(result.x0 + 0.1)
    pairs = (
        zip(result, expected, strict=True) if isinstance(result, tuple) else [(result, expected)]
    )
    for i, (a, b) in enumerate(pairs):
        if (a is None) != (b is None):
            raise WrongError(f"result {i} is {a!r}, expected {b!r}")
        if a is None:
            continue
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype != b.dtype:
            raise WrongError(f"result {i} has dtype {a.dtype}, expected {b.dtype}")
        # Sums of products, whose terms may cancel
        inputs = call.plain.values()
        unit = max(float(np.finfo(v.dtype).eps) for v in inputs)
        scale = max(1.0, *(float(np.abs(v).max(initial=0.0)) for v in (*inputs, b)))
        compare(a, b, 64 * unit * scale, f"result {i}")
