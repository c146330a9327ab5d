"""What a backend does, on arrays that lie in device memory: each function describes and launches.

The arrays are `View`s with the classes last, the results have been allocated. Nothing here waits
for the device but the check of the targets, which has to raise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_ce._validate import Problem, bad_target_error
from numba_ce.cuda.describe import (
    describe_class_weight,
    described,
    float_name,
    general_for,
    loss_kernel,
)
from numba_ce.cuda.driver import CudaError, current_driver
from numba_ce.cuda.launch import launch
from numba_ce.cuda.plan import NO_ROW, NOTHING, STATE_BYTES
from numba_ce.cuda.totals import n_partials
from numba_ce.describe import describe_hess, describe_options, describe_shard

Arrays = dict[str, Any]  # outputs, and records, by the names of their fields in the plan


class Place(NamedTuple):
    """Where to work."""

    device: int
    stream: int


class Scratch:
    """Device memory for the time of a call, given back in the order of the stream."""

    def __init__(self, place: Place, nbytes: int) -> None:
        self._stream, self._nbytes = place.stream, nbytes

    def __enter__(self) -> int:
        """Its address."""
        self._address = int(current_driver().allocate(self._nbytes, self._stream))
        return self._address

    def __exit__(self, error: object, *_: object) -> None:
        try:
            current_driver().free(self._address, self._stream)
        except CudaError:  # after another error that is the one to tell
            if error is None:
                raise


def _fields(problem: Problem, **outputs: Any) -> dict[str, Any]:
    fields = described(problem.logits, problem.targets, problem.sample_weight, **outputs)
    describe_class_weight(fields, problem.class_weight)
    describe_options(fields, problem.options, float_name(problem.logits.dtype), "on CUDA")
    if problem.options.label_smoothing == 1.0:  # probabilities have no share, whatever they are
        fields["targets_kind"] = NOTHING
    return fields


def _sums_bytes(n_rows: int) -> int:
    """Memory of the sums over the rows: STATE, and two numbers for each part."""
    return STATE_BYTES + 16 * int(n_partials(n_rows))


def _add_up(fields: dict[str, Any], place: Place, sums: int) -> None:
    """The losses of the rows, reduced, into the loss."""
    count = n_partials(fields["n_rows"])
    fields["n_partials"], fields["partial"] = fields["n_rows"], fields["row_loss"]
    if count > 1:
        parts = {"loss": sums + STATE_BYTES, "loss_bytes": 8, "state": 0}
        launch("fold", fields | parts, *place, blocks=count)
        fields["n_partials"], fields["partial"] = count, parts["loss"]
    launch("fold", fields, *place, blocks=1)


def _scan(fields: dict[str, Any], problem: Problem, place: Place, sums: int) -> None:
    """Check the targets and add up the weights, which stay on the device: STATE, at `sums`."""
    count = fields["n_partials"] = n_partials(fields["n_rows"])
    fields["state"] = fields["partial"] = sums
    if count > 1:
        fields["partial"] += STATE_BYTES
    fields["partial_bad"] = fields["partial"] + 8 * count
    launch("scan", fields, *place, blocks=count)
    if count > 1:
        launch("fold", fields, *place, blocks=1)
    fields["state"] = fields["partial_bad"] = 0  # for the kernels that follow
    if _to_check(problem):
        state = np.empty(STATE_BYTES // 8, np.int64)
        gpu = current_driver()
        gpu.copy_out(state, sums, place.stream)
        gpu.synchronize(place.stream)
        if state[1] != NO_ROW:
            raise bad_target_error(problem, int(state[1]), int(fields["all_classes"]))


def _to_check(problem: Problem) -> bool:
    """Whether there are class indices to be checked."""
    has_indices = problem.targets is not None and not problem.probabilities
    return has_indices and problem.options.check_targets


def _check(fields: dict[str, Any], problem: Problem, place: Place) -> None:
    """Raise for a bad target, if there are targets to check."""
    if _to_check(problem):
        with Scratch(place, _sums_bytes(fields["n_rows"])) as sums:
            _scan(fields, problem, place, sums)


def _point_results(fields: dict[str, Any], results: dict[str, Any]) -> None:
    for name, view in results.items():
        fields[name] = view.address
        if view.dtype.kind == "f":
            fields["loss_bytes"] = view.itemsize


def _launch_loss(fields: dict[str, Any], problem: Problem, grad: Any, place: Place) -> None:
    kernel = loss_kernel(fields, problem, grad, current_driver().capability(place.device))
    launch(kernel, fields, *place)


def loss_rows(problem: Problem, arrays: Arrays, place: Place, grad_scale: float) -> None:
    """Row losses and gradient of rows whose targets have been checked; nothing is added up."""
    grad = arrays.get("grad")
    fields = _fields(problem, grad=grad)
    _point_results(fields, {name: arrays[name] for name in ("row_loss", "loss") if name in arrays})
    fields["grad_scale"] = grad_scale
    _launch_loss(fields, problem, grad, place)


def loss(problem: Problem, result: Any, grad: Any, place: Place) -> None:
    """The loss, reduced as the problem says, into `result`; and the gradient."""
    fields = _fields(problem, grad=grad)
    if problem.reduction == "none":
        _check(fields, problem, place)
        _point_results(fields, {"loss": result})
        _launch_loss(fields, problem, grad, place)
        return
    mean, n_rows = problem.reduction == "mean", fields["n_rows"]
    nbytes = _sums_bytes(n_rows)
    with Scratch(place, nbytes + 8 * n_rows) as sums:  # one piece: two calls of the driver
        if mean or _to_check(problem):
            _scan(fields, problem, place, sums)
        fields["state"] = sums if mean else 0
        fields["row_loss"] = sums + nbytes
        _launch_loss(fields, problem, grad, place)
        _point_results(fields, {"loss": result})
        _add_up(fields, place, sums)


def grad_hess(problem: Problem, arrays: Arrays, place: Place, kind: str) -> None:
    """Gradient and diagonal Hessian of the row losses."""
    fields = _fields(problem, **arrays)
    describe_hess(fields, problem.logits.shape[-1], kind)
    kinds = {f"{name}_kind": float_name(array.dtype) for name, array in arrays.items()}
    _check(fields, problem, place)
    launch(general_for("hess", fields, problem, **kinds), fields, *place)


def row_stats(problem: Problem, arrays: Arrays, place: Place) -> None:
    """The fields of `RowStats`, each into its array."""
    fields = _fields(problem)
    _check(fields, problem, place)
    _point_results(fields, arrays)
    launch(general_for("stats", fields, problem), fields, *place)


def normalize(problem: Problem, arrays: Arrays, place: Place, what: str) -> None:
    """softmax, log_softmax or logsumexp."""
    if what == "logsumexp":
        fields, kinds = _fields(problem), {}
        _point_results(fields, arrays)
    else:
        fields = _fields(problem, **arrays)
        kinds = {"grad_kind": float_name(arrays["grad"].dtype)}
    launch(general_for(what, fields, problem, **kinds), fields, *place)


def row_record(
    problem: Problem, arrays: Arrays, place: Place, class_offset: int, n_classes: int
) -> None:
    """The record of each row, or of the part of it in this shard."""
    fields = _fields(problem)
    describe_shard(fields, class_offset, n_classes)
    fields["record"] = arrays["record"].address
    _check(fields, problem, place)
    launch(general_for("record", fields, problem), fields, *place)


def grad_from_record(
    problem: Problem, arrays: Arrays, place: Place, class_offset: int, n_classes: int
) -> None:
    """Gradient of the classes of this shard, from the merged records."""
    grad = arrays["grad"]
    fields = _fields(problem, grad=grad)
    describe_shard(fields, class_offset, n_classes)
    fields["record"] = arrays["record"].address
    kernel = general_for("from_record", fields, problem, grad_kind=float_name(grad.dtype))
    _check(fields, problem, place)
    launch(kernel, fields, *place)
