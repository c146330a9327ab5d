"""HOW on CUDA: the backend "cuda".

============= =========================================================================
intrinsics    every device intrinsic, and nothing else has any
exp           exponentials in float32 and float64
plan          what a kernel is told: addresses, strides, options
targets       what a row is told to be: target, weights, whether it counts
finish        a row finished in float64, by the formulas of `numba_ce.row`
thread_layout the threads that share a row in the general kernel
stage         rows in shared memory: one read and one write of device memory
walk          how threads walk along a row: chunks of classes, dtypes
measure       first pass over a row: maximum, sum of exponentials, sums of an option
write         second pass: gradient, probabilities, Hessian
kernel        what a general kernel is compiled for, and where its rows and targets are
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from numba_ce._validate import Problem
from numba_ce.cuda import operations
from numba_ce.cuda.arrays import DeviceArray
from numba_ce.cuda.driver import CudaError, current_driver
from numba_ce.cuda.host import Work, in_pieces, lent
from numba_ce.cuda.operations import Place
from numba_ce.describe import classes_of
from numba_ce.options import LossOptions
from numba_ce.results import mean_scale
from numba_ce.weights import check_indices, total_weight

Array = np.ndarray[Any, np.dtype[Any]]


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
    except BaseException:
        if device != current:
            with suppress(CudaError):  # the first error is the one to tell
                gpu.pop()
        raise
    if device != current:
        gpu.pop()


def _at_problem(problem: Problem, *outputs: Any) -> Any:
    arrays = problem.logits, problem.targets, problem.class_weight, problem.sample_weight
    return _at(*arrays, *outputs)


# ---------------------------------------------------------------- where the arrays are


def _run(
    problem: Problem,
    outputs: dict[str, Any],
    work: Work,
    more: dict[str, Array] | None = None,
    n_classes: int | None = None,
) -> None:
    """Call ``work(problem, arrays, place)``: once on the device, or for each piece of NumPy arrays.

    more : inputs beside those of the problem; n_classes : of the targets, if not of the logits.
    Beside device arrays these and the outputs may be dense NumPy arrays, of records.
    """
    if not isinstance(problem.logits, DeviceArray):
        if problem.targets is not None:
            check_indices(problem, n_classes or problem.logits.shape[-1])
        options = problem.options._replace(check_targets=False)
        in_pieces(replace(problem, options=options), outputs, work, more)
        return
    arrays = outputs | (more or {})
    on_host = {name: a for name, a in arrays.items() if not isinstance(a, DeviceArray)}
    others = (array for name, array in arrays.items() if name not in on_host)
    with _at_problem(problem, *others) as place, ExitStack() as stack:
        gpu = current_driver()
        for name, array in on_host.items():
            arrays[name] = lent(stack, array, place)
        for name in more or ():
            gpu.copy_in(arrays[name].address, on_host[name], place.stream)
        work(problem, arrays, place)
        for name in on_host.keys() & outputs.keys():
            gpu.copy_out(on_host[name], arrays[name].address, place.stream)
        if on_host:
            gpu.synchronize(place.stream)


# ---------------------------------------------------------------- the backend


def run_loss(problem: Problem, loss_rows: Any, grad: Any) -> tuple[float, float]:
    """Row losses and gradient of NumPy arrays; the sums of the losses and of the weights."""
    weight = total_weight(problem)
    row_loss = np.empty(problem.logits.shape[:-1])
    outputs = {"row_loss": row_loss, "loss": loss_rows, "grad": grad}
    outputs = {name: array for name, array in outputs.items() if array is not None}
    grad_scale = 1.0
    if problem.reduction == "mean":
        grad_scale = mean_scale(weight)
    in_pieces(problem, outputs, partial(operations.loss_rows, grad_scale=grad_scale))
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
    _run(problem, {"grad": grad, "hess": hess}, partial(operations.grad_hess, kind=kind))


def run_row_stats(problem: Problem, outputs: dict[str, Any]) -> None:
    """The fields of `RowStats`, each into its array."""
    _run(problem, outputs, operations.row_stats)


def run_normalize(logits: Any, what: str, out: Any) -> None:
    """softmax, log_softmax or logsumexp."""
    problem = Problem(logits, None, False, None, None, LossOptions(), "none")
    name = "lse" if what == "logsumexp" else "grad"
    _run(problem, {name: out}, partial(operations.normalize, what=what))


def run_row_record(problem: Problem, class_offset: int, n_classes: int, record: Any) -> None:
    """The record of each row, or of the part of it in this shard; on the host, to be merged."""
    work = partial(operations.row_record, class_offset=class_offset, n_classes=n_classes)
    _run(problem, {"record": record}, work, n_classes=n_classes)


def run_grad_from_record(problem: Problem, record: Any, class_offset: int, grad: Any) -> None:
    """Gradient of the classes of this shard, from the merged records."""
    n_classes = classes_of(record)
    work = partial(operations.grad_from_record, class_offset=class_offset, n_classes=n_classes)
    _run(problem, {"grad": grad}, work, {"record": record}, n_classes)
