"""Elementwise floating-point functions that NumPy lacks, as ufuncs compiled by Numba.

Fused multiply-add (hardware instruction, hence exactly one rounding), flush to zero, minimum and
maximum with the rules of PTX, directed roundings, the conversions to half precision, and the
approximate functions. Each is compiled the first time a program asks for it (about 0.1 s).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import njit, types, vectorize
from numba.extending import intrinsic

TINY32 = np.float32(2.0**-126)  # the smallest normal numbers
TINY64 = 2.0**-1022


@intrinsic
def _fma(typing, a, b, c):
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


def _bitcast(to):
    def bits(typing, value):
        def code(context, builder, signature, args):
            return builder.bitcast(args[0], context.get_value_type(to))

        return to(value), code

    return intrinsic(bits)


_bits32, _float32 = _bitcast(types.uint32), _bitcast(types.float32)


@njit
def _flush(x):
    return math.copysign(types.float32(0), x) if abs(x) < TINY32 else x


@njit
def _mixed(x):
    """A number from 0 to 255 that depends on the bits of x."""
    return types.int32(types.uint32(_bits32(x) * types.uint32(2654435761)) >> types.uint32(24))


@njit
def _share(x):
    """A number from -1 to 1 that depends on the bits of x."""
    return (_mixed(x) - 128) / 128.0


@njit
def _nudge(result, x, ulps):
    """The result moved by at most `ulps` steps, by an amount that depends only on x.

    Exact results (zero, infinite, NaN, subnormal) stay: the specifications list them as cases.
    """
    size = abs(result)
    if not (size > TINY32 * types.float32(2) and size < types.float32(1e38)):
        return result
    step = _mixed(x) % (2 * ulps + 1) - ulps
    return _float32(types.uint32(_bits32(result) + types.uint32(step)))


# ------------------------------------------------------------------- one function per name


def fma(a, b, c):
    return _fma(a, b, c)


def minimum(a, b):
    if a != a:
        return b
    if b != b:
        return a
    if a == b:  # -0 is smaller than +0
        return a if math.copysign(1.0, a) < 0 else b
    return a if a < b else b


def maximum(a, b):
    if a != a:
        return b
    if b != b:
        return a
    if a == b:
        return b if math.copysign(1.0, a) < 0 else a
    return a if a > b else b


def minimum_nan(a, b):
    if a != a or b != b:
        return a + b
    if a == b:
        return a if math.copysign(1.0, a) < 0 else b
    return a if a < b else b


def maximum_nan(a, b):
    if a != a or b != b:
        return a + b
    if a == b:
        return b if math.copysign(1.0, a) < 0 else a
    return a if a > b else b


def sum_error(a, b):
    """What a + b loses by rounding to nearest; only its sign is used (directed roundings)."""
    total = a + b
    part = total - a
    return (a - (total - part)) + (b - part)


def product_error(a, b):
    return _fma(a, b, -(a * b))


def quotient_error(a, b):
    """The sign of a / b - rounded(a / b), for b > 0 or b < 0."""
    rest = _fma(-(a / b), b, a)
    return rest if b > 0 else -rest


def root_error(a):
    root = math.sqrt(a)
    return _fma(-root, root, a)


def flush(x):
    return _flush(x)


def bfloat16(x):
    """The bits of the nearest bfloat16, ties to even; NaN is the canonical one."""
    if x != x:
        return types.uint16(0x7FFF)
    bits = _bits32(x)
    rounded = bits + types.uint32(0x7FFF) + ((bits >> types.uint32(16)) & types.uint32(1))
    return types.uint16(rounded >> types.uint32(16))


def bfloat16_from_double(x):
    """The same from float64: rounded to odd in float32 first, so that it rounds only once."""
    if x != x:
        return types.uint16(0x7FFF)
    near = types.float32(x)
    bits = _bits32(near)
    if near != x and not (bits & types.uint32(1)):
        away = (abs(types.float64(near)) < abs(x)) or bits == types.uint32(0)
        bits = bits + types.uint32(1) if away else bits - types.uint32(1)
        if near == types.float32(0) and x < 0:
            bits |= types.uint32(0x80000000)
    rounded = bits + types.uint32(0x7FFF) + ((bits >> types.uint32(16)) & types.uint32(1))
    return types.uint16(rounded >> types.uint32(16))


def ex2(x):
    """ex2.approx.f32, within 2 ulp; exact for integers (NVIDIA's own exp and tanh rely on it)."""
    if x == np.floor(x):
        return types.float32(np.exp2(types.float64(x)))
    return _nudge(types.float32(np.exp2(types.float64(x))), x, 2)


def lg2(x):
    """lg2.approx.f32: within 2 ulp, and within 2**-22.6 absolute between 0.5 and 2."""
    if x == 0:
        return types.float32(-np.inf)
    exact = np.log2(types.float64(x))
    if x > types.float32(0.5) and x < types.float32(2) and x != types.float32(1):
        return types.float32(exact + _share(x) * 2.0**-22.7)
    return _nudge(types.float32(exact), x, 2)


def rcp(x):
    """rcp.approx.f32, within 1 ulp."""
    return _nudge(types.float32(1.0 / types.float64(x)), x, 1)


def rsqrt(x):
    """rsqrt.approx.f32, relative error at most 2**-22.9: 1 ulp."""
    return _nudge(types.float32(1.0 / math.sqrt(types.float64(x))), x, 1)


def sqrt(x):
    """sqrt.approx.f32, relative error at most 2**-23."""
    return _nudge(types.float32(math.sqrt(types.float64(x))), x, 1)


def divide(a, b):
    """div.approx.f32 and div.full.f32, within 2 ulp."""
    return _nudge(types.float32(types.float64(a) / types.float64(b)), a, 2)


def tanh(x):
    """tanh.approx.f32, relative error at most 2**-11; half of it is used here."""
    return types.float32(math.tanh(types.float64(x)) * (1.0 + _share(x) * 2.0**-12))


def sin(x):
    """sin.approx.f32, absolute error at most 2**-20.5 between -pi and pi."""
    return types.float32(math.sin(types.float64(x)) + _share(x) * 2.0**-21)


def cos(x):
    return types.float32(math.cos(types.float64(x)) + _share(x) * 2.0**-21)


# With approx="exact": the correctly rounded value.
_EXACT = {
    "ex2": lambda x: types.float32(np.exp2(types.float64(x))),
    "lg2": lambda x: types.float32(np.log2(types.float64(x)) if x != 0 else -np.inf),
    "rcp": lambda x: types.float32(1.0 / types.float64(x)),
    "rsqrt": lambda x: types.float32(1.0 / math.sqrt(types.float64(x))),
    "sqrt": lambda x: types.float32(math.sqrt(types.float64(x))),
    "divide": lambda a, b: types.float32(types.float64(a) / types.float64(b)),
    "tanh": lambda x: types.float32(math.tanh(types.float64(x))),
    "sin": lambda x: types.float32(math.sin(types.float64(x))),
    "cos": lambda x: types.float32(math.cos(types.float64(x))),
}
APPROXIMATE = frozenset(_EXACT)

# Plain operations, for their flushed forms.
_PLAIN = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "true_divide": lambda a, b: a / b,
    "negative": lambda a: -a,
    "absolute": lambda a: abs(a),
}
_OWN = {
    f.__name__: f
    for f in (fma, minimum, maximum, minimum_nan, maximum_nan, sum_error, product_error)
    + (quotient_error, root_error, flush, bfloat16, bfloat16_from_double)
    + (ex2, lg2, rcp, rsqrt, sqrt, divide, tanh, sin, cos)
}
_RESULTS = {"bfloat16": types.uint16, "bfloat16_from_double": types.uint16}


@functools.cache
def ufunc(name, dtype="f4", flushed=False, exact=False):
    """The NumPy ufunc of that name for float32 or float64.

    flushed: subnormal arguments and results become zero (.ftz). exact: the correctly rounded
    value in place of an approximation within the documented error.
    """
    kind = {"f4": types.float32, "f8": types.float64}[np.dtype(dtype).str[1:]]
    if exact and name in _EXACT:
        function = _EXACT[name]
    elif name in _OWN:
        function = _OWN[name]
    elif flushed:
        function = _PLAIN[name]
    else:
        return getattr(np, name)
    count = function.__code__.co_argcount
    scalar = njit(error_model="numpy")(function)
    if not flushed:
        whole = function
    elif count == 1:
        whole = lambda a: _flush(scalar(_flush(a)))
    elif count == 2:
        whole = lambda a, b: _flush(scalar(_flush(a), _flush(b)))
    else:
        whole = lambda a, b, c: _flush(scalar(_flush(a), _flush(b), _flush(c)))
    result = _RESULTS.get(name, kind)
    # Numba's own division checks for zero as Python does; here 1 / 0 is infinite.
    inner = njit(error_model="numpy")(whole)
    return vectorize([result(*[kind] * count)], nopython=True)(_call(inner, count)).ufunc


def _call(inner, count):
    if count == 1:
        return lambda a: inner(a)
    if count == 2:
        return lambda a, b: inner(a, b)
    return lambda a, b, c: inner(a, b, c)
