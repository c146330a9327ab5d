"""Arithmetic, logic, comparison, selection and moves.

The common case is one ufunc over one to three operands; `apply` builds the closure for it.
"""

from __future__ import annotations

import functools

import numpy as np

from . import floats
from .fault import Unsupported
from .parse import DTYPES, Immediate, Name, Register, Vector

U32, S32, U64 = np.dtype(np.uint32), np.dtype(np.int32), np.dtype(np.uint64)
F32, F64, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(bool)
ROUNDINGS = {"rn", "rz", "rm", "rp"}
HALVES = {"f16", "bf16", "f16x2", "bf16x2"}


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


# ------------------------------------------------------------------ half precision


def half_to_float(bits, kind, wide=F32):
    if kind == "f16":
        return bits.view(np.float16).astype(wide)
    value = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return value if wide == F32 else value.astype(wide)


def float_to_half(value, kind):
    """Nearest, ties to even, NaN canonical; from float32 or float64, with one rounding."""
    if kind == "bf16":
        name = "bfloat16" if value.dtype == F32 else "bfloat16_from_double"
        return floats.ufunc(name, value.dtype)(value)
    bits = value.astype(np.float16).view(np.uint16)
    nan = value != value
    return np.where(nan, np.uint16(0x7FFF), bits) if nan.any() else bits


def on_halves(function, kind, wide):
    """A function of float arrays -> one of packed or single half-precision bits."""
    if not kind.endswith("x2"):
        return lambda *bits: float_to_half(
            function(*(half_to_float(b, kind, wide) for b in bits)), kind
        )
    one = on_halves(function, kind[:-2], wide)

    def both(*words):
        low = one(*(w.astype(np.uint16) for w in words))
        high = one(*((w >> np.uint32(16)).astype(np.uint16) for w in words))
        return low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)

    return both


# ------------------------------------------------------------------ float arithmetic

_UFUNC = {"add": "add", "sub": "subtract", "mul": "multiply", "fma": "fma", "mad": "fma"}
_UFUNC |= {"neg": "negative", "abs": "absolute", "div": "true_divide"}
_APPROXIMATE = {"ex2", "lg2", "sin", "cos", "tanh", "rsqrt", "rcp", "sqrt"}


def _float(program, statement):
    """add, sub, mul, fma, neg, abs, min, max, div, rcp, sqrt and the approximate functions."""
    name, kind, flags = statement.op[0], type_of(statement), flags_of(statement)
    flushed = "ftz" in flags
    if kind in HALVES:
        function = _half_function(program, statement, name, kind, flags)
    elif "rcp" == name and kind == "f64" and "approx" in flags:
        function = _gross(lambda x: 1.0 / x)
    elif "rsqrt" == name and kind == "f64":
        function = _gross(lambda x: 1.0 / np.sqrt(x))
    else:
        function = _float_function(program, statement, name, DTYPES[kind], flags, flushed)
    if "sat" in flags:
        inner, one = function, DTYPES[kind].type(1)
        function = lambda *a: np.fmin(np.fmax(inner(*a), one - one), one)
    dtype = DTYPES[kind]
    target, *operands = statement.operands
    apply(program, function, target, dtype, *((o, dtype) for o in operands))


def _float_function(program, statement, name, dtype, flags, flushed):
    directed = flags & {"rz", "rm", "rp"}
    if name in ("min", "max"):
        if "xorsign" in flags:
            raise Unsupported(str(statement))
        whole = ("minimum" if name == "min" else "maximum") + ("_nan" if "NaN" in flags else "")
        function = floats.ufunc(whole, dtype, flushed)
        if len(statement.operands) == 4:
            return lambda a, b, c: function(function(a, b), c)
        return function
    if name == "div" and flags & {"approx", "full"}:
        function = floats.ufunc("divide", dtype, flushed, program.exact)
        if "full" in flags:
            return function

        def approximate(a, b):  # a divisor above 2**126 is documented to give zero
            large = np.abs(b) > np.float32(2.0**126)
            return np.where(large & (np.abs(b) < np.inf), a * np.float32(0), function(a, b))

        return approximate
    if name in _APPROXIMATE and "approx" in flags or name in ("ex2", "lg2", "sin", "cos", "tanh"):
        return floats.ufunc(name, dtype, flushed, program.exact)
    if name in ("rcp", "sqrt"):
        one = dtype.type(1)
        plain = {"rcp": lambda x: one / x, "sqrt": np.sqrt}[name]
        if directed:
            plain = _directed(name, dtype, directed.pop())
    elif directed:
        plain = _directed(name, dtype, directed.pop())
    else:
        return floats.ufunc(_UFUNC[name], dtype, flushed)
    if flushed:
        flush = floats.ufunc("flush", dtype)
        return lambda *a: flush(plain(*(flush(x) for x in a)))
    return plain


def _directed(name, dtype, rounding):
    """Rounding towards zero, down or up: the nearest value, moved by the sign of its error."""
    error = {
        "add": "sum_error", "sub": "sum_error", "mul": "product_error", "div": "quotient_error",
        "sqrt": "root_error", "rcp": "quotient_error",
    }  # fmt: skip
    one = dtype.type(1)
    if name in ("fma", "mad"):
        if dtype != F32:
            raise Unsupported("directed rounding of fma.f64")

        def nearest_and_error(a, b, c):
            product = a.astype(F64) * b  # exact
            total = product + c
            nearest = total.astype(F32)
            rest = floats.ufunc("sum_error", F64)(product, np.asarray(c).astype(F64))
            return nearest, (total - nearest) + rest

    else:
        plain = {
            "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
            "sqrt": np.sqrt, "rcp": lambda x: one / x,
        }[name]  # fmt: skip
        loss = floats.ufunc(error[name], dtype)

        def nearest_and_error(*a):
            if name == "sub":
                return plain(*a), loss(a[0], -a[1])
            return plain(*a), loss(one, *a) if name == "rcp" else loss(*a)

    def directed(*a):
        nearest, rest = nearest_and_error(*a)
        infinity = dtype.type(np.inf)
        down, up = np.nextafter(nearest, -infinity), np.nextafter(nearest, infinity)
        if rounding == "rz":
            zero = np.where(nearest > 0, rest < 0, rest > 0)
            return np.where(zero, np.where(nearest > 0, down, up), nearest)
        wanted = rest < 0 if rounding == "rm" else rest > 0
        return np.where(wanted, down if rounding == "rm" else up, nearest)

    return directed


def _gross(function):
    """rcp and rsqrt.approx.ftz.f64: from the upper half of the argument, lower half zero."""
    upper = np.uint64(0xFFFFFFFF00000000)

    def gross(x):
        short = (x.view(np.uint64) & upper).view(F64)
        short = np.where(np.abs(short) < floats.TINY64, short * 0.0, short)
        result = np.asarray(function(short), F64)
        bits = (result.view(np.uint64) & upper).view(F64)
        return np.where(np.abs(bits) < floats.TINY64, bits * 0.0, bits)

    return gross


def _half_function(program, statement, name, kind, flags):
    if name in ("neg", "abs"):  # on the bits: the sign of NaN counts too
        sign = np.uint32(0x80008000) if kind.endswith("x2") else np.uint16(0x8000)
        return (lambda x: x ^ sign) if name == "neg" else (lambda x: x & ~sign)
    wide = F64 if name in ("fma", "mad") else F32
    function = _float_function(program, statement, name, wide, flags - {"ftz"}, False)
    if "relu" in flags:
        inner = function
        function = lambda *a: np.maximum(inner(*a), wide.type(0))
    return on_halves(function, kind, wide)


# ------------------------------------------------------------------ integers

_U64_LOW = np.uint64(0xFFFFFFFF)


def multiply_high(a, b):
    """The upper half of the product of two integers."""
    dtype = a.dtype
    bits = dtype.type(8 * dtype.itemsize)
    if dtype.itemsize < 8:
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(dtype)
    x, y = a.astype(U64), b.astype(U64)
    half = np.uint64(32)
    x0, x1, y0, y1 = x & _U64_LOW, x >> half, y & _U64_LOW, y >> half
    middle = x1 * y0 + ((x0 * y0) >> half)
    other = x0 * y1 + (middle & _U64_LOW)
    high = x1 * y1 + (middle >> half) + (other >> half)
    if dtype.kind == "i":
        zero = np.uint64(0)
        high = high - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)
    return high.astype(dtype)


def divide_integers(a, b):
    """Towards zero; a division by zero gives all ones, as on the hardware."""
    if a.dtype.kind == "u":
        return np.where(b == 0, ~(a * b), a // np.where(b == 0, b + b.dtype.type(1), b))
    safe = np.where(b == 0, b + b.dtype.type(1), b)
    quotient = a // safe
    inexact = (quotient * safe != a) & ((a < 0) != (safe < 0))
    return np.where(b == 0, b - b.dtype.type(1), quotient + inexact.astype(a.dtype))


def remainder_integers(a, b):
    safe = np.where(b == 0, b + b.dtype.type(1), b)
    return np.where(b == 0, a, np.fmod(a, safe))


def _multiply(program, statement, add):
    """mul and mad, .lo, .hi and .wide."""
    flags, dtype = flags_of(statement), dtype_of(statement)
    target, *operands = statement.operands
    if "wide" in flags:
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
        if add:
            function = lambda a, b, c: a.astype(wide) * b.astype(wide) + c
        else:
            function = lambda a, b: a.astype(wide) * b.astype(wide)
        types, result = [dtype, dtype, wide], wide
    elif "hi" in flags:
        function = (lambda a, b, c: multiply_high(a, b) + c) if add else multiply_high
        types, result = [dtype] * 3, dtype
    else:
        dtype = unsigned(dtype)
        function = (lambda a, b, c: a * b + c) if add else np.multiply
        types, result = [dtype] * 3, dtype
    apply(program, function, target, result, *zip(operands, types, strict=False))


def _integer(program, statement):
    name, dtype = statement.op[0], dtype_of(statement)
    target, *operands = statement.operands
    if name in ("add", "sub"):
        if "sat" in statement.op:
            function = _saturating(name, dtype)
        else:
            dtype, function = unsigned(dtype), {"add": np.add, "sub": np.subtract}[name]
    else:
        function = {
            "div": divide_integers, "rem": remainder_integers, "min": np.minimum,
            "max": np.maximum, "neg": np.negative, "abs": np.abs,
        }[name]  # fmt: skip
    if "relu" in statement.op:
        inner = function
        function = lambda *a: np.maximum(inner(*a), dtype.type(0))
    apply(program, function, target, dtype, *((o, dtype) for o in operands))


def _saturating(name, dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    wide = {"add": np.add, "sub": np.subtract}[name]
    return lambda a, b: np.clip(wide(a.astype(np.int64), b), low, high).astype(dtype)


def _arithmetic(program, statement):
    kind = type_of(statement)
    name = statement.op[0]
    if kind[0] in "fb" and kind not in ("b8", "b16", "b32", "b64"):
        _float(program, statement)
    elif name in ("mul", "mad"):
        _multiply(program, statement, name == "mad")
    else:
        _integer(program, statement)


def _carry(program, statement):
    """add.cc, addc, sub.cc, subc, mad.lo.cc, madc: arithmetic wider than a register."""
    name, dtype = statement.op[0], unsigned(dtype_of(statement))
    target, *operands = statement.operands
    carry = program.named_slot("carry", BOOL)
    read = name in ("addc", "subc", "madc")
    if read:
        program.use(carry)
    fetch = [program.fetch(o, dtype) for o in operands]
    put = program.put(target, dtype)
    write = "cc" in statement.op
    if write:
        program.block.defs.add(carry)
    product = None
    if name in ("mad", "madc"):
        signed = dtype_of(statement)
        product = np.multiply if "lo" in statement.op else multiply_high
        fetch[:2] = [program.fetch(o, signed) for o in operands[:2]]

    def closure(R):
        a, b = (f(R) for f in fetch[-2:])
        if product is not None:
            a = product(fetch[0](R), fetch[1](R)).view(dtype)
            b = fetch[2](R)
        more = R[carry].astype(dtype) if read else dtype.type(0)
        if name in ("sub", "subc"):
            value = a - b - more
            out = (a < b) | ((a == b) & (more != 0))
        else:
            value = a + b + more
            out = (value < a) | ((value == a) & ((more != 0) & (b == ~dtype.type(0))))
        put(R, value)
        if write:
            R[carry] = out

    program.emit(closure)


def _add_or_carry(program, statement):
    if "cc" in statement.op:
        _carry(program, statement)
    else:
        _arithmetic(program, statement)


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


def _set(program, statement):
    """set.cmp.type.type: all ones, or 1.0, where the comparison holds."""
    function, dtype = _compared(statement)
    result = statement.op[-2]
    target, a, b = statement.operands
    true = np.float32(1) if result == "f32" else ~DTYPES[result].type(0)
    false = DTYPES[result].type(0)
    apply(
        program, lambda x, y: np.where(function(x, y), true, false),
        target, DTYPES[result], (a, dtype), (b, dtype),
    )  # fmt: skip


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


def _slct(program, statement):
    dtype, kind = DTYPES[statement.op[-2]], dtype_of(statement)
    target, a, b, condition = statement.operands
    apply(
        program, lambda a, b, c: select(c >= 0, a, b),
        target, dtype, (a, dtype), (b, dtype), (condition, kind),
    )  # fmt: skip


def _testp(program, statement):
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: x == x,
        "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= np.finfo(x.dtype).tiny),
        "subnormal": lambda x: (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny),
    }
    dtype = dtype_of(statement)
    target, a = statement.operands
    apply(program, tests[statement.op[1]], target, BOOL, (a, dtype))


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
    elif isinstance(source, Name) or isinstance(source, (Immediate, Register)):
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
    **dict.fromkeys(("mul", "div", "rem", "min", "max", "neg", "abs", "fma"), _arithmetic),
    **dict.fromkeys(("ex2", "lg2", "sin", "cos", "tanh", "rsqrt", "rcp", "sqrt"), _float),
    **dict.fromkeys(("addc", "subc", "madc"), _carry),
    **dict.fromkeys(("add", "sub", "mad"), _add_or_carry),
    "setp": _setp,
    "set": _set,
    "selp": _selp,
    "slct": _slct,
    "testp": _testp,
    "copysign": _copysign,
    "mov": _mov,
}
