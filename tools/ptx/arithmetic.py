"""Arithmetic on floats of all widths and on integers."""

from __future__ import annotations

import numpy as np

from . import floats
from .apply import BOOL, F32, F64, U64, apply, dtype_of, flags_of, type_of, unsigned
from .fault import Unsupported
from .half import HALVES, on_halves
from .parse import DTYPES

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
    elif name == "rcp" and kind == "f64" and "approx" in flags:
        function = _gross(lambda x: 1.0 / x)
    elif name == "rsqrt" and kind == "f64":
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
    if (name in _APPROXIMATE and "approx" in flags) or name in ("ex2", "lg2", "sin", "cos", "tanh"):
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


HANDLERS = {
    **dict.fromkeys(("mul", "div", "rem", "min", "max", "neg", "abs", "fma"), _arithmetic),
    **dict.fromkeys(("ex2", "lg2", "sin", "cos", "tanh", "rsqrt", "rcp", "sqrt"), _float),
    **dict.fromkeys(("addc", "subc", "madc"), _carry),
    **dict.fromkeys(("add", "sub", "mad"), _add_or_carry),
}
