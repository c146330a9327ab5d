"""The common case of an instruction: one function over one to four operands."""

from __future__ import annotations

import functools

import numpy as np

from .fault import Unsupported
from .parse import DTYPES

U32, S32, U64 = np.dtype(np.uint32), np.dtype(np.int32), np.dtype(np.uint64)
F32, F64, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(bool)


@functools.cache
def _template(kinds, result):
    """A maker of closures R[d] = f(...), for operands of these kinds.

    s: a slot of the right type, v: a slot that is viewed, c: a constant. Written as source and
    compiled once per combination, so that a closure does nothing but what it has to.
    """
    names = [f"x{i}" for i in range(len(kinds))]
    form = {"s": "R[{0}]", "v": "R[{0}].view(t_{0})", "c": "{0}"}
    values = ", ".join(form[k].format(n) for n, k in zip(names, kinds, strict=True))
    types = [f"t_{n}" for n in names]
    tail = ".view(t)" if result else ""
    source = (
        f"def maker(f, d, t, {', '.join(names + types)}):\n"
        f"    def closure(R):\n        R[d] = f({values}){tail}\n    return closure\n"
    )
    scope = {}
    exec(source, scope)
    return scope["maker"]


def apply(program, function, target, result, *operands):
    """Emits target = function(operands); result: dtype; operands: (operand, dtype) pairs."""
    kinds, values, views = "", [], []
    for operand, dtype in operands:
        slot, constant = program.source(operand, dtype)
        views.append(dtype)
        if slot is None:
            kinds += "c"
            values.append(constant)
            continue
        stored = program.dtypes[slot]
        if stored.itemsize != dtype.itemsize or (stored.kind == "b") != (dtype.kind == "b"):
            raise Unsupported(f"operand of {stored} where {dtype} is read: {program.statement}")
        kinds += "s" if stored == dtype else "v"
        values.append(slot)
    slot = program.target(target)
    stored = program.dtypes[slot]
    view = None
    if stored != result and target is not None:
        if stored.itemsize != result.itemsize:
            raise Unsupported(f"result of {result} in a {stored} register: {program.statement}")
        view = stored
    program.emit(_template(kinds, view is not None)(function, slot, view, *values, *views))


def type_of(statement):
    return statement.op[-1]


def dtype_of(statement):
    return DTYPES[statement.op[-1]]


def unsigned(dtype):
    return np.dtype(f"u{dtype.itemsize}")


def flags_of(statement):
    return set(statement.op[1:])
