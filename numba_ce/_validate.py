"""Every TypeError and ValueError of the public functions; what comes out is normalised.

Arrays are never copied here, whatever their strides and byte order: the backends read them as they
are. Only `class_weight`, of one number per class, becomes a contiguous float64 array.
"""

from __future__ import annotations

import operator
import sys
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.ma import MaskedArray

from numba_ce._foreign import numpy_array, readable
from numba_ce._fork import importing

if TYPE_CHECKING:
    from numba_ce.options import LossOptions

Array = np.ndarray[Any, np.dtype[Any]]
FLOATS = ("float16", "bfloat16", "float32", "float64")
# The note on an exception that ends a call half-way
PARTLY_WRITTEN = "numba_ce was interrupted: arrays given as `out` may be partly written"


@dataclass(slots=True)
class Problem:
    """The arrays and options of a call, checked, the classes last.

    What a backend gets has at least one row and one class.
    """

    logits: Array  # (*rows, n_classes), a view
    targets: Array | None  # integers (*rows,), or probabilities (*rows, n_classes)
    probabilities: bool
    class_weight: Array | None  # float64 (n_classes,)
    sample_weight: Array | None  # floats (*rows,)
    options: LossOptions
    reduction: str


@lru_cache
def float_name(dtype: np.dtype[Any]) -> str | None:
    """The name of a float dtype that the package computes with, or None."""
    return dtype.name if dtype.name in FLOATS else None


def on_device(array: Any) -> bool:
    """Whether an array that went through `as_array` lies on a CUDA device."""
    return not isinstance(array, np.ndarray)


def cuda_arrays() -> Any:
    """The module `numba_ce.cuda.arrays`; it is loaded where there is an array on a device.

    An import statement would take 0.5 us each time, and a call comes here five times.
    """
    return sys.modules["numba_ce.cuda.arrays"]


def _device_array(value: Any, name: str, interface: dict[str, Any]) -> Any:
    loaded = sys.modules.get("numba_ce.cuda.driver")
    if loaded is None or loaded._driver is None:
        with importing:
            from numba_ce._cuda_presence import why_no_cuda

            reason = why_no_cuda()
        if reason is not None:
            raise TypeError(
                f"{name} ({type(value).__name__}) is on a CUDA device, and the backend 'cuda' "
                f"cannot be used: {reason}; or copy it to the host"
            )
    return cuda_arrays().device_array(value, name, interface)


def _check_side(array: Any, name: str, logits: Any) -> None:
    if array is not None and on_device(array) != on_device(logits):
        where = ("the host", "a CUDA device")
        raise TypeError(
            f"logits are on {where[on_device(logits)]} and {name} on {where[on_device(array)]}: "
            "expected all arrays on one side"
        )


def as_array(value: Any, name: str) -> Array:
    """`value` as a plain array that shares its memory."""
    if type(value) is np.ndarray:
        return value
    value = readable(value, name)
    # Asked for once: torch and CuPy make it anew each time
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        return _device_array(value, name, interface)  # type: ignore[no-any-return]
    return numpy_array(value, name)


def _shape(shape: tuple[int, ...]) -> str:
    return str(tuple(int(n) for n in shape))


def shown(value: Any) -> str:
    """`value` as an error message shows it: no longer than a line or two."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 200 else text[:200] + "..."


def check_integer(value: Any, name: str, fits: str = "an integer") -> int:
    """An integer of Python or NumPy as one of Python."""
    if type(value) is int:
        return value
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:  # an array has __index__, but it works for one integer only
        pass
    raise TypeError(f"{name} = {shown(value)}: expected {fits}")


def check_floats(logits: Array) -> None:
    """Logits are of a dtype that the package computes with."""
    if float_name(logits.dtype) is None:
        raise TypeError(
            f"logits have dtype {logits.dtype}: expected float16, bfloat16, float32 or float64"
        )


def check_axis(axis: Any, ndim: int, fits: str = "an integer") -> int:
    """An axis, counted from the front."""
    number = check_integer(axis, "axis", fits)
    if not -ndim <= number < ndim:
        raise np.exceptions.AxisError(number, ndim)
    return number if number >= 0 else number + ndim


def check_logits(logits: Any, axis: Any) -> tuple[Array, int]:
    """The logits and their class axis, counted from the front."""
    array = as_array(logits, "logits")
    check_floats(array)
    if array.ndim == 0:
        raise ValueError("logits are 0-dimensional: expected at least one axis, of the classes")
    return array, check_axis(axis, array.ndim)


def classes_last(array: Array, axis: int) -> Array:
    """A view with the class axis at the end."""
    if axis == array.ndim - 1:
        return array
    return array.classes_last(axis) if on_device(array) else np.moveaxis(array, axis, -1)  # type: ignore[attr-defined]


def check_targets_array(targets: Any, logits: Array, axis: int) -> tuple[Array, bool]:
    """The targets with classes last, and whether they are probabilities."""
    array = as_array(targets, "targets")
    _check_side(array, "targets", logits)
    rows = logits.shape[:axis] + logits.shape[axis + 1 :]
    if array.size == 0 and not hasattr(targets, "dtype") and array.shape == rows:
        array = array.astype(np.int64)  # an empty list has no integers to tell its dtype
    fits = "class indices of an integer dtype, or probabilities of a float dtype"
    if array.dtype.kind in "iu":
        if array.shape == rows:
            return array, False
        if array.shape == logits.shape:
            raise ValueError(
                f"targets are integers of the shape {_shape(array.shape)} of the logits: one-hot? "
                "cast to float to pass probabilities"
            )
    elif float_name(array.dtype) is not None:
        if array.shape == logits.shape:
            return classes_last(array, axis), True
        if array.shape == rows:
            raise TypeError(
                f"targets have dtype {array.dtype}: class indices must be integers; cast them, "
                "with rows to ignore (NaN, say) as ignore_index"
            )
    else:
        raise TypeError(f"targets have dtype {array.dtype}: expected {fits}")
    raise ValueError(
        f"targets have shape {_shape(array.shape)}: for logits of shape {_shape(logits.shape)} and "
        f"axis = {axis} expected class indices of shape {_shape(rows)} or probabilities of shape "
        f"{_shape(logits.shape)}"
    )


def check_weight(weight: Any, name: str, shape: tuple[int, ...]) -> Array:
    """A float array of one weight per class or per row; of integers as float64."""
    array = as_array(weight, name)
    if array.dtype.kind in "iu" and not on_device(array):
        array = array.astype(np.float64)
    if float_name(array.dtype) is None:
        fits = "a float dtype" if on_device(array) else "a float or integer dtype"
        raise TypeError(f"{name} has dtype {array.dtype}: expected {fits}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {_shape(array.shape)}: expected {_shape(shape)}")
    return array


def check_number(value: Any, name: str, fits: str) -> float:
    """A real number of Python or NumPy as a float."""
    if type(value) is float:
        return value
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"{name} = {shown(value)} is not a number: expected {fits}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is an integer beyond the floats: expected {fits}") from None


def check_flag(value: Any, name: str) -> bool:
    """True or False, of Python or NumPy."""
    if type(value) is bool:
        return value
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} = {shown(value)}: expected True or False")
    return bool(value)


def check_scale(name: str, value: float, kind: str, where: str) -> None:
    """Temperatures and soft caps beyond these take the constants of the kernels out of their type.

    where : "on the CPU" or "on CUDA"
    """
    limit = 2.0 ** (1000 if kind == "float64" else 120)
    if not 1.0 / limit <= value <= limit:
        raise ValueError(
            f"{name} = {value}: expected {1.0 / limit:.1g} <= {name} <= {limit:.1g} for {kind} "
            f"logits {where}"
        )


def encoded_ignore_index(index: int | None, signed: bool) -> int | None:
    """As the kernels compare it, in the 64 bits of a target; None if no target equals it."""
    lowest = -(2**63) if signed else 0
    if index is None or not lowest <= index < lowest + 2**64:
        return None
    return index if index < 2**63 else index - 2**64


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """One of the choices; anything else, of any type, is a ValueError."""
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} = {shown(value)}: expected {', '.join(others)} or {last}")
    return value


def make_problem(
    logits: Array,
    targets: Any,
    axis: int,
    class_weight: Any,
    sample_weight: Any,
    options: LossOptions,
    reduction: str,
) -> Problem:
    """A `Problem` from checked logits and options; checks the rest."""
    array, probabilities = check_targets_array(targets, logits, axis)
    if probabilities and options.ignore_index not in (None, -100):
        raise ValueError(
            f"ignore_index = {options.ignore_index}: means nothing with probabilities, expected "
            "-100 or None (sample_weight = 0 ignores a row)"
        )
    moved = classes_last(logits, axis)
    if class_weight is not None:
        class_weight = check_weight(class_weight, "class_weight", moved.shape[-1:])
        _check_side(class_weight, "class_weight", logits)
        if not on_device(class_weight):
            class_weight = np.ascontiguousarray(class_weight, np.float64)
    if sample_weight is not None:
        sample_weight = check_weight(sample_weight, "sample_weight", moved.shape[:-1])
        _check_side(sample_weight, "sample_weight", logits)
    return Problem(moved, array, probabilities, class_weight, sample_weight, options, reduction)


def bad_target_error(
    problem: Problem, row: int, n_classes: int, origin: tuple[int, ...] = ()
) -> ValueError:
    """The error for the bad target of a row, counted in C order.

    origin : where the first of these targets stands among all of them, if they are a part
    """
    targets: Any = problem.targets
    assert targets is not None
    index = np.unravel_index(row, targets.shape)
    place = [int(i) + first for i, first in zip(index, origin or (0,) * len(index), strict=True)]
    value, ignored = int(targets[index]), problem.options.ignore_index
    return ValueError(bad_target_text(place, value, n_classes, ignored))


def bad_target_text(place: list[int], value: int, n_classes: int, ignored: int | None) -> str:
    """What is wrong with the target at a place."""
    where = f"[{', '.join(map(str, place))}]" if place else ""
    return f"targets{where} = {value} is not a class index: expected 0 <= target < {n_classes}" + (
        "" if ignored is None else f" or ignore_index = {ignored}"
    )


def _overlaps_itself(array: Array) -> bool:
    """Whether two elements may share memory (exact for every view made by slicing)."""
    if 0 in array.shape:
        return False
    end = array.itemsize
    for stride, length in sorted(
        (abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)
    ):
        if length > 1:
            if stride < end:
                return True
            end += stride * (length - 1)
    return False


def _same_view(a: Array, b: Array) -> bool:
    return (
        a.ctypes.data == b.ctypes.data
        and a.shape == b.shape
        and a.strides == b.strides
        and a.dtype == b.dtype
    )


def _share_memory(a: Array, b: Array) -> bool:
    a, b = np.asarray(a), np.asarray(b)  # of subclasses that override NumPy's functions, too
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _check_device_out(out: Any, logits: Any, others: tuple[Any, ...], name: str) -> Any:
    """The same on the device; overlaps are judged by the addresses that the arrays span."""
    array: Any = as_array(out, name)
    _check_side(array, name, logits)
    arrays = cuda_arrays()
    _check_fits(array, logits, name)
    if array.readonly:
        raise ValueError(f"{name} is read-only: expected a writeable array")
    if not array.dense and _overlaps_itself(array):
        raise ValueError(f"{name} has strides {array.strides}: its elements overlap each other")
    if arrays.overlap(array, logits) and (array.address, array.strides, array.dtype) != (
        logits.address,
        logits.strides,
        logits.dtype,
    ):
        raise ValueError(
            f"{name} overlaps logits: expected separate memory, or the same view for in place"
        )
    for other, other_name in others:
        # A record lies on the host
        if other is not None and on_device(other) and arrays.overlap(array, other):
            raise ValueError(f"{name} overlaps {other_name}: expected separate memory")
    return array


def _check_fits(out: Any, logits: Any, name: str) -> None:
    allowed = [float_name(logits.dtype)]
    if logits.dtype.itemsize == 2:
        allowed.append("float32")
    if float_name(out.dtype) not in allowed:
        raise ValueError(f"{name} has dtype {out.dtype}: expected {' or '.join(map(str, allowed))}")
    if out.shape != logits.shape:
        raise ValueError(
            f"{name} has shape {_shape(out.shape)}: expected {_shape(logits.shape)}, as the logits"
        )


def check_out(out: Any, logits: Array, others: tuple[Any, ...] = (), name: str = "out") -> Array:
    """An output of the shape of the logits: writeable, and overlapping nothing but them exactly."""
    plain = type(out) is np.ndarray
    if on_device(logits) or (
        not plain and hasattr(readable(out, name), "__cuda_array_interface__")
    ):
        return _check_device_out(out, logits, others, name)  # type: ignore[no-any-return]
    if not plain and (not isinstance(out, np.ndarray) or isinstance(out, MaskedArray)):
        raise TypeError(f"{name} is a {type(out).__name__}: expected a NumPy array")
    out = np.asarray(out)  # a subclass may have functions of its own in the place of NumPy's
    _check_fits(out, logits, name)
    if not out.flags.writeable:
        raise ValueError(f"{name} is read-only: expected a writeable array")
    if _overlaps_itself(out):
        raise ValueError(f"{name} has strides {out.strides}: its elements overlap each other")
    if out is not logits and _share_memory(out, logits) and not _same_view(out, logits):
        raise ValueError(
            f"{name} overlaps logits: expected separate memory, or the same view for in place"
        )
    for other, other_name in others:
        if isinstance(other, np.ndarray) and _share_memory(out, other):
            raise ValueError(f"{name} overlaps {other_name}: expected separate memory")
    return out  # type: ignore[no-any-return]
