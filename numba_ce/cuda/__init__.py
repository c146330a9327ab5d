"""HOW on CUDA: the backend "cuda".

============= =========================================================================
intrinsics    every device intrinsic, and nothing else has any
exp           exponentials in float32 and float64
plan          what a kernel is told: addresses, strides, options
targets       what a row is told to be: target, weights, whether it counts
finish        a row finished in float64, by the formulas of `numba_ce.row`
thread_layout the threads that share a row in the general kernel
stage         rows in shared memory: one read and one write of device memory
walk          how threads walk along a row: 128-bit access, dtypes
measure       first pass over a row: maximum, sum of exponentials, sums of an option
write         second pass: gradient, probabilities, Hessian
kernel        what a general kernel is compiled for, and what its threads read of a row
general       the general kernel: every operation and option
record        its operations on records
reduce        how the threads of a register-resident row agree on its maximum and sum
quads         a thread's part of a row, as a tuple of 16 bytes each
resident      the plain loss with the row in registers: one read, one write
totals        check of the targets, sums over the rows
choose        which kernel does it
ptx           from Python to PTX and machine code, without a device
compiled      compiled kernels in the process and on disk
driver        the calls of the CUDA driver
launch        from a plan to a launch
describe      from a problem to a plan
arrays        arrays on the device, and the libraries they come from
operations    what the backend does with arrays on the device
host          NumPy arrays through the device, in pieces
============= =========================================================================

The functions of this module are what the public functions call, with NumPy arrays or with
`DeviceArray`s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from numba_ce._validate import Problem
from numba_ce.cuda import operations
from numba_ce.cuda.arrays import DeviceArray, View
from numba_ce.cuda.driver import current_driver
from numba_ce.cuda.host import in_pieces, uploaded
from numba_ce.cuda.operations import Place
from numba_ce.describe import classes_of
from numba_ce.results import mean_scale
from numba_ce.weights import check_indices, total_weight

Array = np.ndarray[Any, np.dtype[Any]]


def _on_device(array: Any) -> bool:
    return isinstance(array, DeviceArray)


@contextmanager
def _at(logits: Any, *others: Any) -> Iterator[Place]:
    """Where the logits lie, their device being the current one meanwhile.

    others : the other arrays of the call, or None. What another stream does with them is waited
    for, and so is the call then: the CUDA Array Interface wants it of whoever works in a stream
    of their own.
    """
    gpu = current_driver()
    current, device = gpu.device(), gpu.device_of(logits.address)
    place, kind, streams = Place(device, logits.stream), type(logits.owner), set()
    for array in (logits, *others):
        if array is None:
            continue
        if gpu.count > 1 and array.address and gpu.device_of(array.address) != device:
            raise ValueError(
                f"{array.name} is on CUDA device {gpu.device_of(array.address)} and logits on "
                f"{device}: expected all arrays on one device"
            )
        # Arrays of another library are asked for the stream in which that one works
        stream = array.interface_stream if type(array.owner) is kind else array.stream
        if stream and stream != place.stream:
            streams.add(stream)
    if device != current:
        gpu.push(device)
    try:
        for stream in streams:
            gpu.synchronize(stream)
        yield place
        if streams:
            gpu.synchronize(place.stream)
    finally:
        if device != current:
            gpu.pop()


def _at_problem(problem: Problem, *outputs: Any) -> Any:
    arrays = problem.logits, problem.targets, problem.class_weight, problem.sample_weight
    return _at(*arrays, *outputs)


# ---------------------------------------------------------------- NumPy arrays


def _inputs(problem: Problem) -> dict[str, Array]:
    inputs = {"logits": problem.logits}
    if problem.targets is not None:
        inputs["targets"] = problem.targets
    if problem.sample_weight is not None:
        inputs["sample_weight"] = problem.sample_weight
    return inputs


def _through(
    problem: Problem, outputs: dict[str, Array], work: Any, more: dict[str, Array] | None = None
) -> None:
    """Run ``work(problem of a piece, views, place)`` over the pieces of a problem."""
    gpu = current_driver()
    device = gpu.device()
    class_weight = uploaded(problem.class_weight, 0)
    if class_weight is not None:
        gpu.synchronize(0)

    def piece(views: dict[str, Any], stream: int) -> None:
        part = Problem(
            views["logits"],
            views.get("targets"),
            problem.probabilities,
            class_weight,  # type: ignore[arg-type]
            views.get("sample_weight"),
            problem.options,
            "none",
        )
        work(part, views, Place(device, stream))

    try:
        rows = problem.logits.shape[:-1]
        in_pieces(rows, _inputs(problem) | (more or {}), outputs, piece, device)
    finally:
        if class_weight is not None:
            gpu.free(class_weight.address, 0)


# ---------------------------------------------------------------- the backend


def run_loss(problem: Problem, loss_rows: Any, grad: Any) -> tuple[float, float]:
    """Row losses and gradient of NumPy arrays; the sums of the losses and of the weights."""
    weight = total_weight(problem)
    rows = problem.logits.shape[:-1]
    row_loss = np.empty(rows)
    outputs = {"row_loss": row_loss}
    if loss_rows is not None:
        outputs["loss"] = loss_rows
    if grad is not None:
        outputs["grad"] = grad
    grad_scale = 1.0
    if problem.reduction == "mean":
        grad_scale = mean_scale(weight)

    def work(part: Problem, views: dict[str, Any], place: Place) -> None:
        results: dict[str, Any] = {
            name: views[name] for name in ("row_loss", "loss") if name in views
        }
        operations.loss_rows(part, results, views.get("grad"), grad_scale, place)

    _through(problem, outputs, work)
    with np.errstate(all="ignore"):  # infinite losses of both signs
        return float(row_loss.sum()), weight


def loss_on_device(problem: Problem, result: DeviceArray, grad: DeviceArray | None) -> None:
    """The loss of device arrays, reduced, into `result`; and the gradient."""
    if problem.logits.size == 0:  # no rows; such arrays have no address
        value = 0.0 if problem.reduction == "sum" else math.nan
        if result.size:
            with _at(result) as place:
                gpu, host = current_driver(), np.full((), value, result.dtype)
                gpu.copy_in(result.address, host, place.stream)
                gpu.synchronize(place.stream)
        return
    with _at_problem(problem, result, grad) as place:
        operations.loss(problem, result, grad, place)


def run_grad_hess(problem: Problem, grad: Any, hess: Any, kind: str) -> None:
    """Gradient and diagonal Hessian of the row losses."""
    if _on_device(problem.logits):
        with _at_problem(problem, grad, hess) as place:
            operations.grad_hess(problem, grad, hess, kind, place)
        return
    check_indices(problem, problem.logits.shape[-1])

    def work(part: Problem, views: dict[str, Any], place: Place) -> None:
        operations.grad_hess(part, views["grad"], views["hess"], kind, place)

    _through(_unchecked(problem), {"grad": grad, "hess": hess}, work)


def _unchecked(problem: Problem) -> Problem:
    """The same for targets that the host has looked at."""
    return replace(problem, options=problem.options._replace(check_targets=False))


def run_row_stats(problem: Problem, outputs: dict[str, Any]) -> None:
    """The fields of `RowStats`, each into its array."""
    if _on_device(problem.logits):
        with _at_problem(problem, *outputs.values()) as place:
            operations.row_stats(problem, outputs, place)
        return
    if problem.targets is not None:
        check_indices(problem, problem.logits.shape[-1])

    def work(part: Problem, views: dict[str, Any], place: Place) -> None:
        operations.row_stats(part, {name: views[name] for name in outputs}, place)

    _through(_unchecked(problem), outputs, work)


def run_normalize(logits: Any, what: str, out: Any) -> None:
    """softmax, log_softmax or logsumexp."""
    if _on_device(logits):
        with _at(logits, out) as place:
            operations.normalize(logits, what, out, place)
        return
    name = "lse" if what == "logsumexp" else "grad"
    device = current_driver().device()

    def work(views: dict[str, Any], stream: int) -> None:
        operations.normalize(views["logits"], what, views[name], Place(device, stream))

    in_pieces(logits.shape[:-1], {"logits": logits}, {name: out}, work, device)


def run_row_record(problem: Problem, class_offset: int, n_classes: int, record: Any) -> None:
    """The record of each row, or of the part of it in this shard."""
    if _on_device(problem.logits):
        # Records are merged by NumPy, so they are handed out on the host
        with _at_problem(problem) as place, operations.Scratch(place, record.nbytes) as address:
            view = View(address, record.shape, record.dtype, None)
            operations.row_record(problem, class_offset, n_classes, view, place)
            current_driver().copy_out(record, view.address, place.stream)
            current_driver().synchronize(place.stream)
        return
    check_indices(problem, n_classes)

    def work(part: Problem, views: dict[str, Any], place: Place) -> None:
        operations.row_record(part, class_offset, n_classes, views["record"], place)

    _through(_unchecked(problem), {"record": record}, work)


def run_grad_from_record(problem: Problem, record: Any, class_offset: int, grad: Any) -> None:
    """Gradient of the classes of this shard, from the merged records."""
    n_classes = classes_of(record)
    if _on_device(problem.logits):
        with (
            _at_problem(problem, grad) as place,
            operations.Scratch(place, record.nbytes) as address,
        ):
            view = View(address, record.shape, record.dtype, None)
            current_driver().copy_in(view.address, record, place.stream)
            operations.grad_from_record(problem, view, n_classes, class_offset, grad, place)
            current_driver().synchronize(place.stream)  # the record may go away
        return
    check_indices(problem, n_classes)

    def work(part: Problem, views: dict[str, Any], place: Place) -> None:
        operations.grad_from_record(
            part, views["record"], n_classes, class_offset, views["grad"], place
        )

    _through(_unchecked(problem), {"grad": grad}, work, {"record": record})
