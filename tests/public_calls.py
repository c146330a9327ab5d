"""Every public function that takes arrays, with all of them: tests put others in their places."""

from __future__ import annotations

import numpy as np

import numba_ce as nc
from numba_ce.integrations import boosting

Z = np.linspace(-1.0, 2.0, 12, dtype=np.float32).reshape(3, 4)
Y, W, S = np.array([0, 3, 1]), np.linspace(0.5, 2.0, 4), np.array([1.0, 0.5, 2.0])
H, B = np.linspace(-1.0, 1.0, 6, dtype=np.float32).reshape(3, 2), np.ones(4, np.float32)
P = np.full((3, 4), 0.25, np.float32)
RECORD = nc.row_record(Z, Y, class_offset=0, n_classes=4)
V = H.repeat(2, axis=0)[:4]
SHARD = {"class_offset": 0}
LOSS = {"logits": Z, "targets": Y, "class_weight": W, "sample_weight": S}
LINEAR = {"hidden": H, "weight": V, "targets": Y, "bias": B, "class_weight": W, "sample_weight": S}


def objective(x, **arguments):
    return nc.multinomial_objective(n_classes=4, **arguments)(x)


def boosted(function):
    def call(labels, scores, sample_weight):
        return function("lightgbm", 4)(labels, scores, sample_weight)

    return call


CALLS = {
    "cross_entropy": (nc.cross_entropy, LOSS),
    "cross_entropy_and_grad": (nc.cross_entropy_and_grad, LOSS),
    "probabilities": (nc.cross_entropy_and_grad, LOSS | {"targets": P}),
    "cross_entropy_grad_and_hess": (
        nc.cross_entropy_grad_and_hess,
        {"logits": Z, "targets": Y, "sample_weight": S},
    ),
    "row_stats": (nc.row_stats, {"logits": Z, "targets": Y}),
    "logsumexp": (nc.logsumexp, {"logits": Z}),
    "softmax": (nc.softmax, {"logits": Z}),
    "log_softmax": (nc.log_softmax, {"logits": Z}),
    "row_record": (lambda **a: nc.row_record(n_classes=4, **SHARD, **a), LOSS),
    "merge_records": (nc.merge_records, {"a": RECORD, "b": RECORD}),
    "loss_from_record": (nc.loss_from_record, {"record": RECORD}),
    "grad_from_record": (
        lambda **a: nc.grad_from_record(**SHARD, **a),
        LOSS | {"record": RECORD},
    ),
    "linear_cross_entropy": (nc.linear_cross_entropy, LINEAR),
    "linear_cross_entropy_and_grad": (nc.linear_cross_entropy_and_grad, LINEAR),
    "linear_row_stats": (
        nc.linear_row_stats,
        {name: LINEAR[name] for name in ("hidden", "weight", "targets", "bias")},
    ),
    "multinomial_objective": (
        objective,
        {"X": H, "y": Y, "sample_weight": S, "x": np.zeros(12)},
    ),
    "stream": (
        lambda **a: nc.stream(grad_out=np.empty(Z.shape, np.float32), **a),
        LOSS,
    ),
    "stream of blocks": (
        lambda logits, targets, sample_weight, **a: nc.stream(
            iter([logits]), [targets], sample_weight=[sample_weight], **a
        ),
        LOSS,
    ),
    "softmax_objective": (
        boosted(boosting.softmax_objective),
        {"labels": Y, "scores": Z, "sample_weight": S},
    ),
    "softmax_metric": (
        boosted(boosting.softmax_metric),
        {"labels": Y, "scores": Z, "sample_weight": S},
    ),
}
ARGUMENTS = [(name, argument) for name, (_, all_of) in CALLS.items() for argument in all_of]
