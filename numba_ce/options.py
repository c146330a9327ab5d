"""The options of the loss that are single values; the arrays among them travel in `Problem`."""

from __future__ import annotations

from typing import NamedTuple


class LossOptions(NamedTuple):
    """Checked values; see `numba_ce.cross_entropy` for what they mean."""

    label_smoothing: float = 0.0
    ignore_index: int | None = -100
    z_loss: float = 0.0
    softcap: float | None = None
    temperature: float = 1.0
    check_targets: bool = True
