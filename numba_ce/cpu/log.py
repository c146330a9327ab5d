"""log(1 + u) of a float64 vector, for the rows that are finished many at a time.

``1 + u = 2**k m`` with m between sqrt(1/2) and sqrt(2), and with s = f / (2 + f), f = m - 1:
``log(m) = 2 atanh(s) = f - (f**2 / 2 - s (f**2 / 2 + R(s**2)))`` (Muller, Elementary Functions,
3rd ed., section 11.2). R is the minimax polynomial on |s| <= 0.1716, relative error 2**-57.6; what
the rounding of 1 + u lost is added as lost / (1 + u). The whole is within 1 ULP.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_ce.cpu.jit import inner
from numba_ce.cpu.vector import Vector, fma, select, splat

_R = (
    0.14616585424888623,
    0.15331710618210773,
    0.18182889455674947,
    0.22222211130259878,
    0.2857142862600327,
    0.39999999999899444,
    0.666666666666667,
)
LN2_HI, LN2_LO = (
    0.6931471803691238,
    1.9082149292705877e-10,
)  # HI ends in 21 zero bits: k HI is exact
F64X8 = Vector(types.float64)
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
_ONE_BITS = 0x3FF0000000000000


def _bits(builder, value):
    return builder.bitcast(value, ir.VectorType(ir.IntType(64), 8))


def _constant(value):
    return ir.Constant(ir.VectorType(ir.IntType(64), 8), [value] * 8)


@intrinsic
def _exponent(typingctx, x):
    """k as float64, x = 2**k m with sqrt(1/2) <= m < sqrt(2)."""

    def codegen(context, builder, sig, args):
        moved = builder.add(_bits(builder, args[0]), _constant(_ONE_BITS - _SQRT_HALF_BITS))
        k = builder.sub(builder.lshr(moved, _constant(52)), _constant(1023))
        return builder.sitofp(k, args[0].type)

    return F64X8(F64X8), codegen


@intrinsic
def _mantissa(typingctx, x):
    """m of the same."""

    def codegen(context, builder, sig, args):
        moved = builder.add(_bits(builder, args[0]), _constant(_ONE_BITS - _SQRT_HALF_BITS))
        low = builder.and_(moved, _constant(2**52 - 1))
        return builder.bitcast(builder.add(low, _constant(_SQRT_HALF_BITS)), args[0].type)

    return F64X8(F64X8), codegen


@inner
def log1p(u):
    """log(1 + u) of a vector, u >= 0; infinities and NaN stay what they are."""
    one = splat(1.0)
    x = u + one
    k = _exponent(x)
    whole = k == 0.0
    f = select(whole, u, _mantissa(x) - one)
    lost = select(whole, 0.0, select(u < 1.0, u - (x - one), one - (x - u)) / x)
    s = f / (f + 2.0)
    z = s * s
    half = f * f * 0.5
    r = fma(fma(fma(z, _R[0], _R[1]), z, _R[2]), z, _R[3])
    r = fma(fma(fma(r, z, _R[4]), z, _R[5]), z, _R[6]) * z
    result = k * LN2_HI - ((half - (s * (half + r) + (k * LN2_LO + lost))) - f)
    return select(u < float("inf"), result, u)
