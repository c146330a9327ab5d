"""The backend "cpu". Its rooms, each of which imports only from those above it:

============ ==================================================================================
compile      how functions that only kernels call are compiled, and kernels kept on disk
simd         vectors as a Numba type: memory, elements of any dtype, transposition, exp, log
plan         what a kernel is told (`PLAN`), what it is compiled for (`Kernel`, `Operation`)
rows         the parts of a row: tile, targets, measure, finish, write
choose       every threshold
schedules    HOW rows are walked: `along` (lanes along the classes), `across` (lanes across rows
             of few classes), `gather` (first copied together, where the classes are far apart)
operations   WHAT is done with them: loss, softmax, statistics, Hessian, record
run          from a described call to threads: blocks of rows, the parallel loop, slices
============ ==================================================================================

The functions of this module are what the public functions call: each describes its problem in a
`PLAN` and launches a kernel. What shapes, strides, dtypes and options decide is a `Job`, which is
remembered, so that a small call adds only its addresses.
"""

import math
from functools import lru_cache
from struct import pack

import numpy as np

from numba_ce._validate import bad_target_error, check_out
from numba_ce.cpu.choose import IN_PLACE_CLASSES, STREAMING_BYTES, choose_schedule
from numba_ce.cpu.plan import CALL_DEFAULTS, FIXED_DEFAULTS, Kernel, address_of, pack_axes
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.run.launch import prepare, run_job
from numba_ce.cpu.simd.element import KINDS
from numba_ce.cpu.simd.exp import reduction
from numba_ce.describe import (
    OPERANDS,
    classes_of,
    describe_hess,
    describe_layout,
    describe_options,
    describe_shard,
)
from numba_ce.options import LossOptions
from numba_ce.results import reduced, result_dtype
from numba_ce.weights import stand_in

NO_OPTIONS = LossOptions()


@lru_cache
def _name(dtype):
    return dtype.name


def _packed_strides(shape, itemsize):
    """The strides of a C-contiguous array."""
    return tuple(math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape)))


@lru_cache(maxsize=256)
def _job(operation, options, averaged, in_place, *forms):
    """The `Job` of an operation; remembered, because a small call would spend 8 us here.

    forms : shape, strides and dtype of each of the operands, None for one that is not there
    """
    fields, axes = _layout(forms)
    fields["averaged"], fields["checked"] = averaged, options.check_targets
    if in_place:
        fields["streaming"] = False
    targets, sample_weight = forms[1:3]
    scans = sample_weight is not None or fields["targets_bytes"] > 0
    n_classes, kind = fields["n_classes"], _name(forms[0][2])
    _describe_options(fields, options, kind)
    kernel = Kernel(
        operation,
        "along",
        kind,
        None if targets is None or fields["targets_bytes"] > 0 else _name(targets[2]),
        *(None if form is None else _name(form[2]) for form in forms[3:]),
        options.label_smoothing != 0.0,
        options.temperature != 1.0,
        options.softcap is not None,
    )
    return prepare(choose_schedule(kernel, n_classes), fields, axes, scans=scans)


def _layout(forms):
    """The fields of a `PLAN` that shapes, strides and dtypes decide, and its axes."""
    fields = FIXED_DEFAULTS.copy()
    axes = describe_layout(fields, forms) or [[1] + [0] * len(OPERANDS)]
    shape = forms[0][0]
    for name, form, stride in zip(OPERANDS, forms, axes[-1][1:], strict=True):
        if form is None:
            continue
        _, own, dtype = form
        fields[name + "_swapped"] = not dtype.isnative
        if name == "grad":
            fields["streaming"] = math.prod(shape) * dtype.itemsize >= STREAMING_BYTES
            fields["grad_packed"] = own == _packed_strides(shape, dtype.itemsize)
        step = fields.get(name + "_step", 0)
        if shape[-1] > IN_PLACE_CLASSES and step != 0 and stride == dtype.itemsize != step:
            fields[name + "_far"] = True
    memory = pack_axes(axes)
    fields["axes"], fields["n_axes"] = memory.buffer_info()[0], len(axes)
    return fields, memory


def _describe_options(fields, options, kind):
    """The options, and the constants by which the exponentials reduce their arguments."""
    describe_options(fields, options, kind, "on the CPU")
    real = KINDS[kind][1]
    if options.temperature != 1.0:
        fields["tempered"] = pack("4d", *reduction(real, options.temperature))
    if options.softcap is not None:
        fields["capping"] = pack("4d", *reduction(real, options.softcap / 2))


class _Call:
    """A `Job`, what this call adds to its plan, and the arrays whose addresses that holds."""

    def __init__(self, operation, operands, options=NO_OPTIONS, averaged=False):
        self.alive = [operands]
        self.fields = fields = CALL_DEFAULTS.copy()
        forms = []
        for name, array in zip(OPERANDS, operands, strict=True):
            if array is None:
                forms.append(None)
            else:
                fields[name] = address_of(array)
                forms.append((array.shape, array.strides, array.dtype))  # a `Form`, 0.2 us sooner
        in_place = fields["grad"] == fields["logits"]
        self.job = job = _job(operation, options, averaged, in_place, *forms)
        fields["all_classes"], fields["grad_scale"] = job.n_classes, 1.0

    def point(self, name, array):
        """Put the address of an array into a field."""
        self.alive.append(array)
        self.fields[name] = address_of(array)

    def point_results(self, results):
        """Put the addresses of per-row results, all of one float dtype, into fields."""
        for name, array in results.items():
            self.point(name, array)
            if array.dtype.kind == "f":
                self.fields["loss_bytes"] = array.itemsize

    def point_class_weight(self, weight, kind):
        """The class weights, as they are and in the type of the tiles."""
        padded = np.zeros(len(weight) + 16, real_type(kind))
        padded[: len(weight)] = weight
        self.point("class_weight", weight)
        self.point("class_weight_real", padded)

    def run(self):
        """The sum of what the kernel returns for the rows."""
        return run_job(self.job, self.fields)[0]

    def run_checked(self, problem):
        """The same after a look at the targets, and the sum of the weights."""
        fields = self.fields
        if problem.probabilities and problem.sample_weight is None:
            weight = float(self.job.n_rows)
            if self.job.averaged:
                fields["grad_scale"] = 1.0 / weight
            return self.run(), weight
        total, bad, weight = run_job(self.job, fields)
        if bad >= 0 and self.job.checked:
            raise bad_target_error(problem, bad, fields["all_classes"])
        return total, weight


def _call(operation, problem, grad=None, hess=None):
    targets, options = problem.targets, problem.options
    if problem.probabilities and options.label_smoothing == 1.0:
        # They have no share: zeros are read, for the kernels would form 0 * inf, of a probability
        # beyond float32 too, and have no test of it for every class
        targets = stand_in(targets.shape, targets.dtype.newbyteorder("="))
    averaged = grad is not None and problem.reduction == "mean"
    operands = problem.logits, targets, problem.sample_weight, grad, hess
    call = _Call(operation, operands, options, averaged)
    if problem.class_weight is not None:
        call.point_class_weight(problem.class_weight, _name(problem.logits.dtype))
    return call


def run_loss(problem, loss_rows, grad):
    """Row losses and gradient; returns the sums of the weighted losses and of the weights."""
    call = _call("loss", problem, grad)
    if loss_rows is not None:
        call.point_results({"loss": loss_rows})
    return call.run_checked(problem)


@lru_cache(maxsize=256)
def _plain_job(logits, targets, grad, axis, averaged, in_place):
    """The `Job` of a loss without options, for class indices; None for all that is not plain.

    logits, targets, grad : shape, strides and dtype of each
    """
    shape, _, dtype = logits
    fits = _name(dtype) in KINDS and -len(shape) <= axis < len(shape) and 0 not in shape
    if not fits or targets[0] != shape[:axis] + shape[axis:][1:] or targets[2].kind not in "iu":
        return None
    if grad is not None and (grad[0] != shape or _name(grad[2]) != _name(dtype)):
        return None

    def classes_last(form):
        if form is None:
            return None
        *pair, dtype = form
        return (*((*n[:axis], *n[axis:][1:], n[axis]) for n in pair), dtype)

    forms = classes_last(logits), targets, None, classes_last(grad), None
    return _job("loss", NO_OPTIONS, averaged, in_place, *forms)


def run_plain(logits, targets, axis, reduction, grad, given):
    """The loss of arrays of NumPy without options: forms are checked once, for 3 us less.

    reduction : "mean" or "sum"; grad : what is to be filled, or None; given : by the caller
    None where the call is not plain after all or a target is bad; then nothing has been written.
    """
    fields = CALL_DEFAULTS.copy()
    fields["logits"], fields["targets"] = address_of(logits), address_of(targets)
    forms = [(a.shape, a.strides, a.dtype) for a in (logits, targets)]
    if grad is None:
        job = _plain_job(*forms, None, axis, False, False)
    else:
        fields["grad"] = address_of(grad)
        in_place = fields["grad"] == fields["logits"]
        form = grad.shape, grad.strides, grad.dtype
        job = _plain_job(*forms, form, axis, reduction == "mean", in_place)
    if job is None:
        return None
    if given:
        check_out(grad, logits, ((targets, "targets"),))
    fields["all_classes"], fields["grad_scale"] = job.n_classes, 1.0
    total, bad, weight = run_job(job, fields)
    return None if bad >= 0 else reduced(total, weight, reduction, result_dtype(logits))


def run_grad_hess(problem, grad, hess, kind):
    """Gradient and diagonal Hessian of the row losses."""
    call = _call("hess", problem, grad, hess)
    describe_hess(call.fields, problem.logits.shape[-1], kind)
    call.run_checked(problem)


def run_row_stats(problem, outputs):
    """The fields of `RowStats`, each into its array."""
    call = _call("stats", problem)
    call.point_results(outputs)
    if problem.targets is None:
        call.run()
    else:
        call.run_checked(problem)


def run_normalize(logits, what, out):
    """softmax, log_softmax or logsumexp."""
    if what == "logsumexp":
        call = _Call(what, (logits, None, None, None, None))
        call.point_results({"lse": out})
    else:
        call = _Call(what, (logits, None, None, out, None))
    call.run()


def run_row_record(problem, class_offset, n_classes, record):
    """The record of each row, or of the part of it in this shard."""
    call = _call("record", problem)
    describe_shard(call.fields, class_offset, n_classes)
    call.point("record", record)
    call.run_checked(problem)


def run_grad_from_record(problem, record, class_offset, grad):
    """Gradient of the classes of this shard, from the merged records."""
    call = _call("from_record", problem, grad)
    describe_shard(call.fields, class_offset, classes_of(record))
    call.point("record", record)
    call.run_checked(problem)
