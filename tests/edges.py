"""What the tests of edge cases share."""

from __future__ import annotations

import numpy as np
from exact import assert_same, check_grad, check_loss, exact_rows

import numba_ce as nc

NAN, INF = np.nan, np.inf


def loss_and_grad(logits, targets, **options):
    """Per-row losses and their gradient, the loss-only kernel checked along the way."""
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
    alone = nc.cross_entropy(logits, targets, reduction="none", **options)
    assert_same(alone, loss)
    assert alone.dtype == loss.dtype
    in_place = np.array(logits)
    loss2, grad2 = nc.cross_entropy_and_grad(
        in_place, targets, reduction="none", out=in_place, **options
    )
    assert grad2 is in_place
    assert_same(loss2, loss)
    assert_same(grad2, grad)
    return loss, grad


def check_exact(logits, targets, **options):
    """Loss and gradient against mpmath, special values included."""
    loss, grad = loss_and_grad(logits, targets, **options)
    rows = exact_rows(logits, targets, **options)
    check_loss(loss, rows, logits.dtype)
    check_grad(grad, rows, logits.dtype)
    return loss, grad
