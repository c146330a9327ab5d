"""The public functions for Numba's compiler: what each becomes, for the types that it is given."""

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload, register_jitable

import numba_ce
from numba_ce.integrations.numba.accept import (
    FLOATS,
    check_array,
    check_logits,
    check_out,
    known,
    loss_kind,
)
from numba_ce.integrations.numba.errors import InputError, UnusableError
from numba_ce.integrations.numba.glue import absent, loss_call, normalize_call

TARGET = {"target": "cpu"}


@register_jitable
def _raise(results, ndim):
    status, _, a, b, c, d, x, has_ignored, ignored = results
    if status < 0:
        raise UnusableError(status)
    raise InputError(status, a, b, c, d, x, ndim, has_ignored, ignored)


# ---------------------------------------------------------------- parts of the implementations


def _as_weights(weight):
    raise NotImplementedError


@overload(_as_weights, inline="never")
def _as_weights_of(weight):
    """Integers as float64."""
    if not absent(weight) and isinstance(weight.dtype, types.Integer):
        return lambda weight: weight.astype(np.float64)
    return lambda weight: weight


def _output(out, logits):
    raise NotImplementedError


@overload(_output)
def _output_of(out, logits):
    if absent(out):
        return lambda out, logits: np.empty_like(logits)
    return lambda out, logits: out


def _rows(logits):
    raise NotImplementedError


@overload(_rows)
def _rows_of(logits):
    """An array with one number for each row."""
    real = np.dtype(str(logits.dtype)).type
    if logits.ndim == 1:
        return lambda logits: np.empty(1, real)
    return lambda logits: np.empty(logits.shape[0], real)


# ---------------------------------------------------------------- the losses


@overload(numba_ce.cross_entropy, prefer_literal=True, **TARGET)
def _cross_entropy(
    logits,
    targets,
    axis=-1,
    reduction="mean",
    class_weight=None,
    sample_weight=None,
    label_smoothing=0.0,
    ignore_index=-100,
    z_loss=0.0,
    softcap=None,
    temperature=1.0,
    check_targets=True,
):
    options = (
        class_weight,
        sample_weight,
        label_smoothing,
        ignore_index,
        z_loss,
        softcap,
        temperature,
        check_targets,
    )
    averaged, per_row = loss_kind(logits, targets, axis, reduction, options)
    call, ndim = loss_call(False, averaged, False), logits.ndim
    real = np.dtype(str(logits.dtype)).type

    def by_row(
        logits,
        targets,
        axis=-1,
        reduction="mean",
        class_weight=None,
        sample_weight=None,
        label_smoothing=0.0,
        ignore_index=-100,
        z_loss=0.0,
        softcap=None,
        temperature=1.0,
        check_targets=True,
    ):
        losses = _rows(logits)
        results = call(
            logits,
            targets,
            _as_weights(class_weight),
            _as_weights(sample_weight),
            label_smoothing,
            ignore_index,
            z_loss,
            softcap,
            temperature,
            check_targets,
            None,
            losses,
        )
        if results[0] != 0:
            _raise(results, ndim)
        return losses

    def reduced(
        logits,
        targets,
        axis=-1,
        reduction="mean",
        class_weight=None,
        sample_weight=None,
        label_smoothing=0.0,
        ignore_index=-100,
        z_loss=0.0,
        softcap=None,
        temperature=1.0,
        check_targets=True,
    ):
        results = call(
            logits,
            targets,
            _as_weights(class_weight),
            _as_weights(sample_weight),
            label_smoothing,
            ignore_index,
            z_loss,
            softcap,
            temperature,
            check_targets,
            None,
            None,
        )
        if results[0] != 0:
            _raise(results, ndim)
        return real(results[1])

    return by_row if per_row else reduced


@overload(numba_ce.cross_entropy_and_grad, prefer_literal=True, **TARGET)
def _cross_entropy_and_grad(
    logits,
    targets,
    axis=-1,
    reduction="mean",
    out=None,
    class_weight=None,
    sample_weight=None,
    label_smoothing=0.0,
    ignore_index=-100,
    z_loss=0.0,
    softcap=None,
    temperature=1.0,
    check_targets=True,
):
    options = (
        class_weight,
        sample_weight,
        label_smoothing,
        ignore_index,
        z_loss,
        softcap,
        temperature,
        check_targets,
    )
    averaged, per_row = loss_kind(logits, targets, axis, reduction, options)
    call, ndim = loss_call(True, averaged, check_out(out, logits)), logits.ndim
    real = np.dtype(str(logits.dtype)).type

    def by_row(
        logits,
        targets,
        axis=-1,
        reduction="mean",
        out=None,
        class_weight=None,
        sample_weight=None,
        label_smoothing=0.0,
        ignore_index=-100,
        z_loss=0.0,
        softcap=None,
        temperature=1.0,
        check_targets=True,
    ):
        losses, grad = _rows(logits), _output(out, logits)
        results = call(
            logits,
            targets,
            _as_weights(class_weight),
            _as_weights(sample_weight),
            label_smoothing,
            ignore_index,
            z_loss,
            softcap,
            temperature,
            check_targets,
            grad,
            losses,
        )
        if results[0] != 0:
            _raise(results, ndim)
        return losses, grad

    def reduced(
        logits,
        targets,
        axis=-1,
        reduction="mean",
        out=None,
        class_weight=None,
        sample_weight=None,
        label_smoothing=0.0,
        ignore_index=-100,
        z_loss=0.0,
        softcap=None,
        temperature=1.0,
        check_targets=True,
    ):
        grad = _output(out, logits)
        results = call(
            logits,
            targets,
            _as_weights(class_weight),
            _as_weights(sample_weight),
            label_smoothing,
            ignore_index,
            z_loss,
            softcap,
            temperature,
            check_targets,
            grad,
            None,
        )
        if results[0] != 0:
            _raise(results, ndim)
        return real(results[1]), grad

    return by_row if per_row else reduced


@overload(numba_ce.row_loss_and_grad, **TARGET)
def _row_loss_and_grad(logits_row, target, out_row):
    check_array(logits_row, "logits_row", FLOATS, "float32 or float64")
    if not isinstance(types.unliteral(target), types.Integer):
        raise TypingError(f"target is {target}: expected an integer, the class index of the row")
    if not check_out(out_row, logits_row, "out_row"):
        raise TypingError("out_row is None: expected an array like logits_row")
    call, real = loss_call(True, False, True), np.dtype(str(logits_row.dtype)).type

    def row_loss_and_grad(logits_row, target, out_row):
        results = call(
            logits_row, target, None, None, 0.0, -100, 0.0, None, 1.0, True, out_row, None
        )
        if results[0] != 0:
            _raise(results, 1)
        return real(results[1])

    return row_loss_and_grad


# ---------------------------------------------------------------- softmax and its kin


@overload(numba_ce.logsumexp, prefer_literal=True, **TARGET)
def _logsumexp(logits, axis=-1, keepdims=False):
    check_logits(logits, axis)
    if known(keepdims) is not False:
        raise TypingError(f"keepdims = {known(keepdims)}: in compiled code expected False")
    call, ndim = normalize_call("logsumexp", False), logits.ndim

    def of_row(logits, axis=-1, keepdims=False):
        lse = _rows(logits)
        results = call(logits, lse)
        if results[0] != 0:
            _raise(results, ndim)
        return lse[0]

    def of_rows(logits, axis=-1, keepdims=False):
        lse = _rows(logits)
        results = call(logits, lse)
        if results[0] != 0:
            _raise(results, ndim)
        return lse

    return of_row if ndim == 1 else of_rows


def _overload_normalized(what):
    @overload(getattr(numba_ce, what), prefer_literal=True, **TARGET)
    def _normalized(logits, axis=-1, out=None):
        check_logits(logits, axis)
        call, ndim = normalize_call(what, check_out(out, logits)), logits.ndim

        def normalized(logits, axis=-1, out=None):
            result = _output(out, logits)
            results = call(logits, result)
            if results[0] != 0:
                _raise(results, ndim)
            return result

        return normalized


for what in ("softmax", "log_softmax"):
    _overload_normalized(what)
