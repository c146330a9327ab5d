"""cvt and its forms, and the conversions between address spaces."""

from __future__ import annotations

import numpy as np

from . import floats
from .apply import F32, F64, U32, U64, apply, unsigned
from .fault import Unsupported
from .half import float_to_half, half_to_float
from .memory import LOCAL_WINDOW, RANK_SHIFT, SHARED_WINDOW
from .parse import DTYPES

_INTEGER_ROUNDING = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
HALF = ("f16", "bf16")


def _to_integer(value, dtype):
    """A rounded float to an integer: NaN gives 0 (64 bits: 1 << 63), the rest is clamped."""
    limits = np.iinfo(dtype)
    # The largest float that fits; float(limits.max) may round up out of range.
    top = value.dtype.type(limits.max)
    if int(top) > limits.max:
        top = np.nextafter(top, value.dtype.type(0))
    clamped = np.clip(value, value.dtype.type(limits.min), top)
    result = np.where(value != value, value.dtype.type(0), clamped).astype(dtype)
    result = np.where(value > top, dtype.type(limits.max), result)
    if dtype.itemsize == 8:
        result = np.where(value != value, np.uint64(1 << 63).view(dtype), result)
    return result


def _to_float32(value, rounding):
    """float64 or 64-bit integers to float32."""
    nearest = value.astype(F32)
    if rounding in (None, "rn"):
        return nearest
    return _move(nearest, _compare(value, nearest), rounding, F32)


def _compare(value, nearest):
    """The sign of value - nearest, exact for integers of 64 bits too."""
    if value.dtype.kind == "f":
        return np.sign(value - nearest.astype(F64))
    back = np.asarray(nearest.astype(np.longdouble))
    return np.sign(value.astype(np.longdouble) - back).astype(F64)


def _move(nearest, sign, rounding, dtype):
    """The neighbour of the nearest value that a directed rounding asks for."""
    infinity = dtype.type(np.inf)
    down, up = np.nextafter(nearest, -infinity), np.nextafter(nearest, infinity)
    if rounding == "rz":
        return np.where(
            (nearest > 0) & (sign < 0), down, np.where((nearest < 0) & (sign > 0), up, nearest)
        )
    if rounding == "rm":
        return np.where(sign < 0, down, nearest)
    return np.where(sign > 0, up, nearest)


def _to_half(value, kind, rounding):
    """float32 or float64 to the bits of a half precision number."""
    bits = float_to_half(value, kind)
    if rounding in (None, "rn"):
        return bits
    back = half_to_float(bits, kind, F64)
    sign = np.sign(value.astype(F64) - back)
    # One step in the bits is one step in magnitude.
    if rounding == "rz":
        away = np.abs(back) > np.abs(value)
        return np.where(away, bits - np.uint16(1), bits)
    wanted = sign < 0 if rounding == "rm" else sign > 0
    towards_zero = (back > 0) == (rounding == "rm")
    zero = bits & np.uint16(0x7FFF) == 0
    step = np.where(towards_zero & ~zero, np.uint16(0xFFFF), np.uint16(1))
    moved = bits + step
    smallest = np.uint16(0x8001 if rounding == "rm" else 0x0001)
    return np.where(wanted, np.where(zero, smallest, moved), bits)


def _read(kind, flushed):
    """A function from stored bits to a value that NumPy can compute with."""
    if kind in HALF:
        return lambda x: half_to_float(x, kind)
    if flushed and kind == "f32":
        return floats.ufunc("flush", F32)
    return lambda x: x


def conversion(to, source, flags):
    """The function of cvt.to.source with these modifiers."""
    read = _read(source, "ftz" in flags)
    rounding = next((f for f in flags if f in ("rn", "rz", "rm", "rp")), None)
    integral = next((_INTEGER_ROUNDING[f] for f in flags if f in _INTEGER_ROUNDING), None)
    saturate, relu = "sat" in flags, "relu" in flags
    from_float = source[0] == "f" or source in HALF
    to_float = to[0] == "f" or to in HALF
    dtype = DTYPES[to]

    def convert(x):
        value = read(x)
        if integral is not None:
            value = integral(value)
        if not to_float:
            if from_float:
                return _to_integer(value if integral else np.trunc(value), dtype)
            if saturate:
                value = _clip(value, dtype)
            return value.astype(dtype)
        if saturate:
            value = np.fmin(np.fmax(value, value.dtype.type(0)), value.dtype.type(1))
        if relu:
            value = np.maximum(value, value.dtype.type(0))
        if to in HALF:
            if not from_float:
                value = value.astype(F64)
            return _to_half(value, to, rounding)
        if to == "f32":
            value = _to_float32(value, rounding)
            return floats.ufunc("flush", F32)(value) if "ftz" in flags else value
        return _to_float64(value, rounding)

    return convert


def _to_float64(value, rounding):
    nearest = value.astype(F64)
    if rounding in (None, "rn") or value.dtype.itemsize < 8 or value.dtype.kind == "f":
        return nearest
    return _move(nearest, _compare(value, nearest), rounding, F64)


def _clip(value, dtype):
    """Integer saturation, also between signed and unsigned 64 bits."""
    limits, own = np.iinfo(dtype), np.iinfo(value.dtype)
    low, high = max(limits.min, own.min), min(limits.max, own.max)
    return np.clip(value, value.dtype.type(low), value.dtype.type(high))


def _cvt(program, statement):
    *flags, to, source = statement.op[1:]
    flags = set(flags)
    if "pack" in flags or to not in DTYPES or source not in DTYPES:
        raise Unsupported(f"conversion {statement}")
    target, *operands = statement.operands
    if to in ("f16x2", "bf16x2"):  # two float32 in, the first one to the upper half
        half = conversion(to[:-2], "f32", flags)

        def pack(high, low):
            return half(high).astype(U32) << U32.type(16) | half(low)

        apply(program, pack, target, U32, *((o, F32) for o in operands))
        return
    fetch = program.fetch(operands[0], DTYPES[source])
    put = program.put(target, DTYPES[to])
    convert = _simple(to, source, flags) or conversion(to, source, flags)

    def closure(R):
        put(R, convert(fetch(R)))

    program.emit(closure)


def _simple(to, source, flags):
    """The conversions that are one call of NumPy."""
    dtype = DTYPES[to]
    integers = to[0] in "su" and source[0] in "su"
    widen = (source, to) == ("f32", "f64") and not flags
    narrow = (source, to) == ("f64", "f32") and flags <= {"rn"}
    exact = source[0] in "su" and to in ("f32", "f64") and flags <= {"rn"}
    if (integers and not flags) or widen or narrow or exact:
        return lambda x: x.astype(dtype)
    return None


def _cvta(program, statement):
    """Between an address of one space and the generic address."""
    target, operand = statement.operands
    dtype = DTYPES[statement.op[-1]]
    window = np.uint64(0)
    for space in statement.op[1:]:
        if space.startswith("shared"):
            window = np.uint64(SHARED_WINDOW)
        elif space == "local":
            window = np.uint64(LOCAL_WINDOW)
        elif space == "param":
            raise Unsupported(str(statement))
    change = np.subtract if "to" in statement.op else np.add
    if dtype.itemsize != 8:
        raise Unsupported(str(statement))
    if window:
        apply(program, lambda x: change(x, window), target, U64, (operand, U64))
    else:
        apply(program, lambda x: x.copy(), target, U64, (operand, U64))


def _mapa(program, statement):
    """The address of the same shared variable in another block of the cluster."""
    target, operand, rank = statement.operands
    dtype = unsigned(DTYPES[statement.op[-1]])
    fetch, fetch_rank = program.fetch(operand, dtype), program.fetch(rank, U32)
    put = program.put(target, dtype)
    mask, shift = dtype.type((1 << RANK_SHIFT) - 1), dtype.type(RANK_SHIFT)
    generic = dtype == U64 and not any(f.startswith("shared") for f in statement.op)

    def closure(R):
        rank = (fetch_rank(R) + U32.type(1)).astype(dtype)
        value = fetch(R) & mask | rank << shift
        put(R, value + U64.type(SHARED_WINDOW) if generic else value)

    program.emit(closure)


HANDLERS = {
    "cvt": _cvt,
    "cvta": _cvta,
    "mapa": _mapa,
}
