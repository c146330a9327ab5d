"""Loss and gradient as a Numba user writes them: a peer, and what a first call is measured by."""

import math

import numpy as np
from numba import njit, prange


@njit(parallel=True, fastmath=True)
def plain_kernel(logits, targets, grad):  # type: ignore[no-untyped-def]
    """The mean loss; `grad` becomes its gradient."""
    n_rows, n_classes = logits.shape
    losses = np.empty(n_rows)
    for i in prange(n_rows):
        row_max, total = logits[i].max(), logits.dtype.type(0)
        for c in range(n_classes):
            grad[i, c] = math.exp(logits[i, c] - row_max)
            total += grad[i, c]
        for c in range(n_classes):
            grad[i, c] /= total * n_rows
        losses[i] = math.log(total) + row_max - logits[i, targets[i]]
        grad[i, targets[i]] -= 1.0 / n_rows
    return losses.mean()
