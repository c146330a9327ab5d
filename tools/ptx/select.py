"""Comparison, selection and moves."""

from __future__ import annotations

import numpy as np

from . import floats
from .apply import BOOL, F32, apply, dtype_of, type_of, unsigned
from .fault import Unsupported
from .half import HALVES, half_to_float
from .parse import DTYPES, Immediate, Name, Register, Vector

# ------------------------------------------------------------------ comparison and selection

_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
    "hs": np.greater_equal,
}  # fmt: skip


def comparison(name, kind, flushed=False):
    """The function of a comparison operator for a PTX type."""
    if kind in HALVES:
        inner = comparison(name, "f32")
        return lambda a, b: inner(half_to_float(a, kind), half_to_float(b, kind))
    floating = kind in ("f32", "f64")
    if name in ("num", "nan"):
        isnan = lambda a, b: (a != a) | (b != b)
        return isnan if name == "nan" else lambda a, b: ~isnan(a, b)
    if floating and len(name) == 3:  # equ, neu, ltu ...: true also if one is NaN
        inner = _COMPARE[name[:2]]
        if name == "neu":
            function = np.not_equal
        else:
            function = lambda a, b: inner(a, b) | (a != a) | (b != b)
    elif floating and name == "ne":
        function = lambda a, b: (a != b) & (a == a) & (b == b)
    else:
        function = _COMPARE[name]
    if flushed:
        inner_, flush = function, floats.ufunc("flush", F32)
        return lambda a, b: inner_(flush(a), flush(b))
    return function


def _compared(statement):
    """(function of two values, dtype in which they are read)"""
    kind = type_of(statement)
    function = comparison(statement.op[1], kind, "ftz" in statement.op)
    return function, DTYPES[kind]


_COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _setp(program, statement):
    function, dtype = _compared(statement)
    target, a, b, *third = statement.operands
    combine = next((_COMBINE[f] for f in statement.op[2:-1] if f in _COMBINE), None)
    if combine is None and not isinstance(target, tuple):
        apply(program, function, target, BOOL, (a, dtype), (b, dtype))
        return
    first, second = target if isinstance(target, tuple) else (target, None)
    fetch = [program.fetch(o, dtype) for o in (a, b)]
    extra = _predicate(program, third[0]) if third else None
    put = program.put(first, BOOL)
    put_second = program.put(second, BOOL) if second is not None else None

    def closure(R):
        value = function(fetch[0](R), fetch[1](R))
        third_value = extra(R) if extra else None
        put(R, combine(value, third_value) if extra else value)
        if put_second:
            value = np.logical_not(value)
            put_second(R, combine(value, third_value) if extra else value)

    program.emit(closure)


def _predicate(program, operand):
    if isinstance(operand, tuple) and operand[0] == "not":
        inner = program.fetch(operand[1], BOOL)
        return lambda R: np.logical_not(inner(R))
    return program.fetch(operand, BOOL)


def select(condition, a, b):
    if condition.ndim:
        return np.where(condition, a, b)
    return (a if condition else b).copy()


def _selp(program, statement):
    dtype = dtype_of(statement)
    target, a, b, condition = statement.operands
    apply(
        program, lambda a, b, c: select(c, a, b),
        target, dtype, (a, dtype), (b, dtype), (condition, BOOL),
    )  # fmt: skip


def _copysign(program, statement):
    dtype = dtype_of(statement)
    target, sign, magnitude = statement.operands
    apply(program, lambda s, m: np.copysign(m, s), target, dtype, (sign, dtype), (magnitude, dtype))


# ------------------------------------------------------------------ moves


def _mov(program, statement):
    target, source = statement.operands
    dtype = dtype_of(statement)
    if isinstance(source, Vector):
        _pack(program, target, source.items, dtype)
    elif isinstance(target, Vector):
        _unpack(program, target.items, source, dtype)
    elif isinstance(source, (Name, Immediate, Register)):
        if isinstance(source, Immediate) and dtype.kind == "f" and isinstance(source.value, int):
            raise Unsupported(f"integer as float: {statement}")
        apply(program, lambda x: x.copy(), target, dtype, (source, dtype))
    else:
        raise Unsupported(str(statement))


def _pack(program, target, items, dtype):
    part = np.dtype(f"u{dtype.itemsize // len(items)}")
    fetch = [program.fetch(item, part) for item in items]
    put, bits = program.put(target, unsigned(dtype)), 8 * part.itemsize
    wide = unsigned(dtype)

    def closure(R):
        value = fetch[0](R).astype(wide)
        for place, get in enumerate(fetch[1:], 1):
            value = value | get(R).astype(wide) << wide.type(place * bits)
        put(R, value)

    program.emit(closure)


def _unpack(program, items, source, dtype):
    part = np.dtype(f"u{dtype.itemsize // len(items)}")
    wide, bits = unsigned(dtype), 8 * part.itemsize
    fetch = program.fetch(source, wide)
    puts = [(i, program.put(item, part)) for i, item in enumerate(items) if item is not None]

    def closure(R):
        value = fetch(R)
        for place, put in puts:
            put(R, (value >> wide.type(place * bits)).astype(part))

    program.emit(closure)


HANDLERS = {
    "setp": _setp,
    "selp": _selp,
    "copysign": _copysign,
    "mov": _mov,
}
