"""log(1 + u) of a float64 vector, for rows that are finished many at a time.

``1 + u = 2**k m`` with m between sqrt(1/2) and sqrt(2), and with s = f / (2 + f), f = m - 1:
``log(m) = 2 atanh(s) = f - (f**2 / 2 - s (f**2 / 2 + R(s**2)))`` (Muller, Elementary Functions,
3rd ed., section 11.2). R is the minimax polynomial on |s| <= 0.1716. Four terms leave a relative
error of 2**-37.6, 8000 times less than half a unit of float32; seven leave 2**-57.6.
"""

from llvmlite import ir
from numba import types

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.simd.exp import two_sum
from numba_ce.cpu.simd.lowered import lowered
from numba_ce.cpu.simd.vector import Vector, absolute, fma, select, splat

_R = (0.23582151505260393, 0.2853730853028031, 0.4000033519108837, 0.6666666564545537)
_R64 = (
    0.14618008967187285,
    0.1533158591338376,
    0.18182893551820517,
    0.22222211068256267,
    0.28571428626427425,
    0.39999999999898384,
    0.666666666666667,
)
LN2_HI, LN2_LO = (
    0.6931471803691238,
    1.9082149292705877e-10,
)  # HI ends in 21 zero bits: k HI is exact
F64X8 = Vector(types.float64)
_NEAR = 0.29  # less has k = 0, and so little more that the rounding of 1 + u does no harm
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
_ONE_BITS = 0x3FF0000000000000


def _bits(builder, value):
    return builder.bitcast(value, ir.VectorType(ir.IntType(64), 8))


def _constant(value):
    return ir.Constant(ir.VectorType(ir.IntType(64), 8), [value] * 8)


@lowered
def _exponent(x: F64X8):
    """k as float64, x = 2**k m with sqrt(1/2) <= m < sqrt(2)."""

    def build(builder, x):
        moved = builder.add(_bits(builder, x), _constant(_ONE_BITS - _SQRT_HALF_BITS))
        k = builder.sub(builder.lshr(moved, _constant(52)), _constant(1023))
        return builder.sitofp(k, x.type)

    return F64X8, build


@lowered
def _mantissa(x: F64X8):
    """m of the same."""

    def build(builder, x):
        moved = builder.add(_bits(builder, x), _constant(_ONE_BITS - _SQRT_HALF_BITS))
        low = builder.and_(moved, _constant(2**52 - 1))
        return builder.bitcast(builder.add(low, _constant(_SQRT_HALF_BITS)), x.type)

    return F64X8, build


@inner
def log1p(u, x):
    """log(1 + u) of a vector, good for float32; x = 1 + u, positive and finite, or NaN."""
    k = _exponent(x)
    f = select(absolute(u) > _NEAR, _mantissa(x) - 1.0, u)  # a NaN stays one
    s = f / (f + 2.0)
    z = s * s
    half = f * f * 0.5
    r = fma(fma(z, _R[0], _R[1]), z * z, fma(z, _R[2], _R[3])) * z
    return fma(k, LN2_HI + LN2_LO, fma(s, half + r, f - half))


@inner
def log1p64(u):
    """The same to 1 ULP of float64: with all of R, and with what the rounding of 1 + u lost."""
    one, zero = splat(1.0), splat(0.0)
    x, lost = two_sum(u, one)
    k = _exponent(x)
    near = k == 0.0
    f = select(near, u, _mantissa(x) - one)
    lost = select(near, zero, lost / x)
    s = f / (f + 2.0)
    z = s * s
    half = f * f * 0.5
    r = fma(fma(fma(z, _R64[0], _R64[1]), z, _R64[2]), z, _R64[3])
    r = fma(fma(fma(r, z, _R64[4]), z, _R64[5]), z, _R64[6])
    result = k * LN2_HI - ((half - fma(s, half + r * z, fma(k, LN2_LO, lost))) - f)
    return select(u < float("inf"), result, u)
