"""HOW on the CPU: the backend "cpu".

============== ==============================================================================
vector         vectors of a fixed number of lanes, as a Numba type
memory         vectors read and written, around the caches, ahead of time
element        single elements of any dtype and byte order
exp, log       exp, tanh and log1p of a vector
tile           where a tile of a row lies: in the caller's array or copied; sums in float64
loops          loops over one tile: exponentials, sums, maximum, soft cap
output         from a tile to the output, in any dtype, around the caches
q              the effective targets of a row
measure        first pass over a row: maximum, sum of exponentials, sums of an option
write          second pass: gradient, probabilities, Hessian
targets        what a row is told to be: target, weights, whether it counts
finish         a row finished in float64, by the formulas of `numba_ce._row`
operations     what is done with a row, one function for each operation
shard          the same for a part of a row: records
strips         neighbouring rows of one class, copied and written back
copies         rows copied into a worker's memory, computed with there, and written back
eight          rows of some hundred classes, finished eight at a time: the operations
narrow         rows of few classes, sixteen at a time: loss and softmax
narrow_stats   the same: statistics
narrow_hess    the same: Hessian
sixteen        their rows in and out, and their targets
sixteen_loops  loops over their classes: maxima, scales, exponentials
sixteen_finish how they are finished, in float32 and in float64
turn           from rows of neighbouring classes to one vector for each class, and back
plan           what a kernel is told: addresses, strides, options
jit            how the inner functions are compiled
cache          kernels from disk
launch         compile, share the rows out, add up
threads        who works on the blocks: the parallel loop, a pool; slices and Ctrl-C
============== ==============================================================================

The functions of this module are what the public functions call: each describes its problem in a
`PLAN` and launches a kernel.
"""

import math
from functools import lru_cache
from struct import pack

import numpy as np

from numba_ce._validate import bad_target_error, check_scale, encoded_ignore_index
from numba_ce.cpu.element import KINDS
from numba_ce.cpu.exp import reduction
from numba_ce.cpu.launch import run
from numba_ce.cpu.narrow import FEW_CLASSES, NARROW_CLASSES
from numba_ce.cpu.operations import OPERATIONS, Kernel
from numba_ce.cpu.plan import DEFAULTS, OPERANDS, address_of, collapse
from numba_ce.cpu.tile import TILE, real_type
from numba_ce.cpu.turn import BLOCK_CLASSES, ROWS
from numba_ce.weights import stand_in

# Outputs larger than this do not fit the caches anyway: write around them
STREAMING_BYTES = 4 << 20
KIND_NAMES = tuple(KINDS)


@lru_cache
def _name(dtype):
    return dtype.name


def _kind(array):
    return _name(array.dtype)


def _form(array):
    return None if array is None else (array.shape, array.strides, array.dtype)


def _packed_strides(shape, itemsize):
    """The strides of a C-contiguous array."""
    return tuple(math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape)))


@lru_cache(maxsize=256)
def _layout(*forms):
    """The fields of a `PLAN` that shapes, strides and dtypes decide, and its axes.

    forms : of the operands, see `_form`; remembered, because a small call would spend 3 us here
    """
    fields = DEFAULTS.copy()
    fields["temperature"] = fields["grad_scale"] = 1.0
    shape = forms[0][0]
    n_axes = len(shape) - 1
    fields["n_rows"] = math.prod(shape[:-1])
    fields["n_classes"] = fields["all_classes"] = shape[-1]
    strides = []
    for name, form in zip(OPERANDS, forms, strict=True):
        if form is None:
            strides.append((0,) * n_axes)
            continue
        _, own, dtype = form
        strides.append(own[:n_axes])
        fields[name + "_swapped"] = not dtype.isnative
        if name in ("logits", "grad", "hess"):
            fields[name + "_step"] = own[-1]
        elif name == "sample_weight":
            fields["sample_weight_kind"] = KIND_NAMES.index(_name(dtype))
        elif len(own) > n_axes:
            fields["targets_step"] = own[-1]
        else:
            fields["targets_bytes"] = dtype.itemsize
            fields["targets_signed"] = dtype.kind == "i"
        if name == "grad":
            fields["streaming"] = math.prod(shape) * dtype.itemsize >= STREAMING_BYTES
            fields["grad_packed"] = own == _packed_strides(shape, dtype.itemsize)
    axes = collapse(shape[:-1], strides)
    fields["axes"], fields["n_axes"] = axes.buffer_info()[0], len(axes) // (1 + len(strides))
    for name, form, stride in zip(OPERANDS, forms, axes[-len(OPERANDS) :], strict=True):
        step = fields.get(name + "_step", 0)
        if step != 0 and stride == form[2].itemsize != step:
            fields[name + "_far"] = True
    return fields, axes


class _Plan:
    """A `PLAN` in the making, and the arrays whose addresses it holds."""

    def __init__(self, logits, targets=None, sample_weight=None, grad=None, hess=None):
        operands = (logits, targets, sample_weight, grad, hess)
        fields, axes = _layout(*map(_form, operands))
        self.fields = fields = fields.copy()
        self.kind = _kind(logits)
        self.alive = [axes, *operands]
        for name, array in zip(OPERANDS, operands, strict=True):
            if array is not None:
                fields[name] = address_of(array)
        if fields["grad"] == fields["logits"]:
            fields["streaming"] = False

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

    def describe_targets(self, problem):
        """ignore_index and class weights."""
        fields = self.fields
        ignored = encoded_ignore_index(problem.options.ignore_index, fields["targets_signed"])
        if ignored is not None:
            fields["has_ignore_index"], fields["ignore_index"] = True, ignored
        if problem.class_weight is not None:
            self.point("class_weight", problem.class_weight)
            padded = np.zeros(len(problem.class_weight) + 16, real_type(self.kind))
            with np.errstate(over="ignore"):
                padded[: len(problem.class_weight)] = problem.class_weight
            self.point("class_weight_real", padded)

    def describe_options(self, options):
        """Smoothing, z-loss, soft cap and temperature."""
        fields = self.fields
        fields["smoothing"], fields["z_loss"] = options.label_smoothing, options.z_loss
        real = KINDS[self.kind][1]
        if options.temperature != 1.0:
            check_scale("temperature", options.temperature, self.kind, "on the CPU")
            fields["temperature"] = options.temperature
            fields["tempered"] = pack("4d", *reduction(real, options.temperature))
        if options.softcap is not None:
            check_scale("softcap", options.softcap, self.kind, "on the CPU")
            fields["softcap"] = options.softcap
            fields["capping"] = pack("4d", *reduction(real, options.softcap / 2))

    def run(self, kernel):
        """The sum of what the kernel returns for the rows."""
        return run(kernel, self.fields)[0]

    def run_checked(self, kernel, problem):
        """The same after a look at the targets, and the sum of the weights."""
        fields, checked = self.fields, problem.options.check_targets
        if problem.probabilities and problem.sample_weight is None:
            weight = float(fields["n_rows"])
            if fields["averaged"]:
                fields["grad_scale"] = 1.0 / weight
            return self.run(kernel), weight
        fields["checked"] = checked
        total, bad, weight = run(kernel, fields, after_scan=True)
        if bad >= 0 and checked:
            raise bad_target_error(problem, bad, int(fields["all_classes"]))
        return total, weight


def _plan(problem, grad=None, hess=None):
    targets = problem.targets
    if problem.probabilities and problem.options.label_smoothing == 1.0:
        # They have no share: zeros are read, for the kernels would form 0 * inf, of a probability
        # beyond float32 too, and have no test of it for every class
        targets = stand_in(targets.shape, targets.dtype.newbyteorder("="))
    plan = _Plan(problem.logits, targets, problem.sample_weight, grad, hess)
    plan.describe_targets(problem)
    plan.describe_options(problem.options)
    return plan


@lru_cache(maxsize=256)
def _fitting(kernel, n_classes):
    """The kernel for so many classes: `narrow`, `eight`, or as it is, one row at a time."""
    operation, real = kernel.operation, real_type(kernel.kind)
    same = kernel.targets_kind is None or real_type(kernel.targets_kind) is real
    if same and n_classes <= NARROW_CLASSES:
        block = min(size for size in BLOCK_CLASSES if size >= min(n_classes, ROWS))
        many = n_classes > FEW_CLASSES
        return kernel._replace(operation="narrow_" + operation, block=block, many=many)
    if n_classes <= TILE and real is np.float32 and "eight_" + operation in OPERATIONS:
        return kernel._replace(operation="eight_" + operation)
    return kernel


def _options(options):
    """The options that make another kernel."""
    return options.label_smoothing != 0.0, options.temperature != 1.0, options.softcap is not None


def _targets_kind(problem):
    return _kind(problem.targets) if problem.probabilities else None


def run_loss(problem, loss_rows, grad):
    """Row losses and gradient; returns the sums of the weighted losses and of the weights."""
    plan = _plan(problem, grad=grad)
    if loss_rows is not None:
        plan.point_results({"loss": loss_rows})
    grad_kind = None
    if grad is not None:
        grad_kind, plan.fields["averaged"] = _kind(grad), problem.reduction == "mean"
    logits = problem.logits
    kinds = _kind(logits), _targets_kind(problem), grad_kind, None
    kernel = Kernel("loss", *kinds, *_options(problem.options))
    return plan.run_checked(_fitting(kernel, logits.shape[-1]), problem)


def run_grad_hess(problem, grad, hess, kind):
    """Gradient and diagonal Hessian of the row losses."""
    plan = _plan(problem, grad=grad, hess=hess)
    n_classes = problem.logits.shape[-1]
    lightgbm = n_classes / (n_classes - 1) if n_classes > 1 else 0.0
    plan.fields["hess_factor"] = {"diagonal": 1.0, "xgboost": 2.0, "lightgbm": lightgbm}[kind]
    plan.fields["hess_floor"] = 1e-16 if kind == "xgboost" else 0.0
    kernel = Kernel("hess", _kind(problem.logits), _targets_kind(problem), _kind(grad), _kind(hess))
    plan.run_checked(_fitting(kernel, n_classes), problem)


def run_row_stats(problem, outputs):
    """The fields of `RowStats`, each into its array."""
    plan = _plan(problem)
    plan.point_results(outputs)
    kernel = _fitting(Kernel("stats", _kind(problem.logits)), problem.logits.shape[-1])
    if problem.targets is None:
        plan.run(kernel)
    else:
        plan.run_checked(kernel, problem)


def run_normalize(logits, what, out):
    """softmax, log_softmax or logsumexp."""
    if what == "logsumexp":
        plan, out_kind = _Plan(logits), None
        plan.point_results({"lse": out})
    else:
        plan, out_kind = _Plan(logits, grad=out), _kind(out)
    plan.run(_fitting(Kernel(what, _kind(logits), None, out_kind), logits.shape[-1]))


def run_row_record(problem, class_offset, n_classes, record):
    """The record of each row, or of the part of it in this shard."""
    plan = _plan(problem)
    plan.fields["class_offset"], plan.fields["all_classes"] = class_offset, n_classes
    plan.point("record", record)
    kind, targets_kind = _kind(problem.logits), _targets_kind(problem)
    kernel = Kernel("record", kind, targets_kind, None, None, *_options(problem.options))
    plan.run_checked(kernel, problem)


def run_grad_from_record(problem, record, class_offset, grad):
    """Gradient of the classes of this shard, from the merged records."""
    plan = _plan(problem, grad=grad)
    plan.fields["class_offset"] = class_offset
    plan.fields["all_classes"] = int(record[..., 8].max())
    plan.point("record", record)
    kind, targets_kind = _kind(problem.logits), _targets_kind(problem)
    kernel = Kernel(
        "from_record", kind, targets_kind, _kind(grad), None, *_options(problem.options)
    )
    plan.run_checked(kernel, problem)
