"""exp and tanh of whole vectors, in float32 and float64.

``exp(x) = 2**n * exp(r)`` with ``n = rint(x / ln 2)`` and ``r = x - n ln 2`` in two parts (Cody and
Waite 1980, chapter 6); n is read off the low bits of ``x / ln 2 + MAGIC``, a sum whose last bit is
worth 1. exp(r) is ``1 + r + r**2 P(r)`` with P the minimax polynomial on |r| <= ln(2) / 2: the
relative error of the polynomial is 2**-28.2 (float32) and 2**-56.7 (float64), and the whole stays
within 1 ULP. No fast-math flags anywhere: `reassoc` would fold MAGIC away.

What the kernels store is ``exp((x - reference) / T) * 2**(BIAS - power)``, so that a class whose
probability is a subnormal number still has all its digits until the last multiplication, and so
that, with reference 0, x - max is never rounded.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import types

from numba_ce.cpu.compile.jit import inner, inner_overload, smaller
from numba_ce.cpu.compile.numba_core import assembly
from numba_ce.cpu.simd.lowered import lowered
from numba_ce.cpu.simd.vector import (
    F64,
    I64,
    absolute,
    fma,
    maximum,
    select,
    splat_like,
    times_power_of_two,
    with_sign_of,
)

BIAS = 64  # 2**BIAS times larger than the value it stands for: no underflow on the way
LOG2E = 1.4426950408889634
LN2 = Fraction(  # to 40 digits
    6931471805599453094172321214581765680755, 10**40
)

_P32 = (
    np.float32(0.0013813145081323667),
    np.float32(0.0083694188357615581),
    np.float32(0.041668456776680227),
    np.float32(0.16666514791398664),
    np.float32(0.49999993050770837),
)
_P64 = (
    2.511120397630788978e-8,
    2.7634156569503637878e-7,
    2.7557239244458533488e-6,
    2.4801483304779086704e-5,
    1.9841269889351838311e-4,
    1.3888888951411171206e-3,
    8.3333333333212946601e-3,
    0.041666666666510122597,
    0.16666666666666675344,
    0.50000000000000112834,
)
MAGIC = {types.float32: np.float32(1.5 * 2**23), types.float64: np.float64(1.5 * 2**52)}
EXPONENT_BIAS = {types.float32: 127, types.float64: 1023}
# n * HI is exact for every n that can occur: 9 + 15 and 11 + 42 bits
_HI_BITS = {types.float32: 15, types.float64: 42}


class Reduction(NamedTuple):
    """Of the range reduction at temperature T: log2(e) / T, ln(2) T in two parts, 1 / T."""

    log2e: float
    ln2_hi: float
    ln2_lo: float
    inverse: float


def reduction(dtype, temperature=1.0):
    """The constants for float32 or float64 (a Numba type), in the precision of that type."""
    real = np.float32 if dtype == types.float32 else np.float64
    exact = LN2 * Fraction(temperature)
    step = Fraction(2) ** (math.frexp(float(exact))[1] - _HI_BITS[dtype])
    hi = exact // step * step
    return Reduction(
        real(LOG2E / temperature), real(float(hi)), real(float(exact - hi)), real(1 / temperature)
    )


PLAIN = {dtype: reduction(dtype) for dtype in (types.float32, types.float64)}


def polynomial(r):
    """P(r) of exp(r) = 1 + r + r**2 P(r), for vectors."""
    raise NotImplementedError


@inner_overload(polynomial)
def _polynomial(r):
    if r.dtype == types.float32:
        c4, c3, c2, c1, c0 = _P32
        return lambda r: fma(fma(fma(fma(r, c4, c3), r, c2), r, c1), r, c0)
    d9, d8, d7, d6, d5, d4, d3, d2, d1, d0 = _P64

    def polynomial64(r):
        r2 = r * r  # Estrin: a chain of 5 instead of 9
        r4 = r2 * r2
        low = fma(fma(r, d3, d2), r2, fma(r, d1, d0))
        middle = fma(fma(r, d7, d6), r2, fma(r, d5, d4))
        return fma(fma(fma(r, d9, d8), r4, middle), r4, low)

    return polynomial64


def _with_exponent(value, shifted, exponent):
    """value * 2**n of `exp_scaled`; the exponent is an integer, or a vector of whole numbers."""
    raise NotImplementedError


@inner_overload(_with_exponent)
def _with_any_exponent(value, shifted, exponent):
    if isinstance(exponent, types.Integer):
        return lambda value, shifted, exponent: times_power_of_two(value, shifted, exponent)
    bias = EXPONENT_BIAS[value.dtype]
    return lambda value, shifted, exponent: times_power_of_two(value, shifted + exponent, bias)


def exp_scaled(x, reference, exponent, lowest, constants):
    """exp((x - reference) / T) * 2**(exponent - bias of the format); exactly 0 below `lowest`.

    Everything but x may be a scalar or a vector; a vector of exponents is without that bias.
    `lowest` (a bound on x - reference) is where the result leaves the normal numbers. -inf gives
    0, NaN and +inf give NaN. `constants` is a `Reduction` for T, or None for T = 1.
    """
    raise NotImplementedError


@inner_overload(exp_scaled)
def _exp_scaled(x, reference, exponent, lowest, constants):
    magic = MAGIC[x.dtype]
    zero = np.float32(0) if x.dtype == types.float32 else np.float64(0)
    one = zero + 1
    log2e, ln2_hi, ln2_lo, _ = PLAIN[x.dtype]
    minus_hi, minus_lo = -ln2_hi, -ln2_lo

    def plain(x, reference, exponent, lowest, constants):
        d = x - reference
        shifted = fma(d, log2e, magic)
        n = shifted - magic
        r = fma(n, minus_lo, fma(n, minus_hi, d))
        y = fma(r * r, polynomial(r), r) + one
        return select(d < lowest, zero, _with_exponent(y, shifted, exponent))

    def tempered(x, reference, exponent, lowest, constants):
        d = x - reference
        shifted = fma(d, constants[0], magic)
        n = shifted - magic
        # n * ln2 * T is taken from the exact difference; what is left, at most 0.35 T, is scaled
        r = fma(n, -constants[2], fma(n, -constants[1], d)) * constants[3]
        y = fma(r * r, polynomial(r), r) + one
        return select(d < lowest, zero, _with_exponent(y, shifted, exponent))

    return plain if isinstance(constants, types.NoneType) else tempered


def soft_cap_and_slope(x, cap, constants):
    """cap * tanh(x / cap) of a vector and its derivative, from one exponential and one division.

    With a = exp(-2 |x| / cap): tanh = (1 - a) / (1 + a), the derivative is 4 a / (1 + a)**2.
    Infinities stay what they are; the derivative there is 0. `constants` is the `Reduction` for
    T = cap / 2, so the argument of the exp is not rounded.
    """
    raise NotImplementedError


@inner_overload(soft_cap_and_slope)
def _soft_cap_and_slope(x, cap, constants):
    real = np.float32 if x.dtype == types.float32 else np.float64
    magic, bias = MAGIC[x.dtype], EXPONENT_BIAS[x.dtype] + BIAS
    zero, one, two, infinity = real(0), real(1), real(2), real(np.inf)
    tiny, four_tiny = real(2.0**-BIAS), real(4 * 2.0**-BIAS)
    lowest = real(1 - bias)

    def capped(x, cap, constants):
        size = absolute(x)
        saturated = splat_like(lowest / constants[0], x)  # the slope is 0 from here on
        y = maximum(saturated, zero - size)
        shifted = fma(y, constants[0], magic)
        n = shifted - magic
        r = fma(n, -constants[2], fma(n, -constants[1], y)) * constants[3]
        p = fma(r * r, polynomial(r), r)
        # 2**(n + BIAS): never subnormal
        lifted = times_power_of_two(splat_like(one, x), shifted, bias)
        scale = lifted * tiny
        expm1 = fma(scale, p, scale - one)  # without the cancellation for small y
        inverse = one / (expm1 + two)
        tanh = (zero - expm1) * inverse
        slope = fma(lifted, p, lifted) * (inverse * inverse) * four_tiny
        return select(size == infinity, x, with_sign_of(tanh, x) * cap), slope

    return capped


@inner
def slope_of_gradient(x, slope):
    """The derivative of the soft cap by which a gradient is multiplied: 1 for a masked class."""
    return select(absolute(x) == math.inf, 1.0, slope)


@inner
def two_sum(a, b):
    """a + b rounded, and what the rounding lost (Knuth); scalars or vectors."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


@cache
def fuses():
    """Whether a product is added in one instruction; else LLVM calls a slow function for it."""
    text = """declare double @llvm.fma.f64(double, double, double)
    define double @f(double %x) {
      %y = call double @llvm.fma.f64(double %x, double %x, double %x)
      ret double %y
    }"""
    return not re.search(r"\b_?fma\b", assembly(text))


def product_lost(a, b, product):
    """What the rounding of a * b to `product` lost, for float64 vectors: exact, or 0 out of range.

    Without fused multiply-add by Veltkamp's splitting and Dekker's product, which overflow early.
    """
    raise NotImplementedError


@inner_overload(product_lost)
def _product_lost(a, b, product):
    def dekker(a, b, product):
        many_a, many_b = a * 134217729.0, b * 134217729.0
        a_hi, b_hi = many_a - (many_a - a), many_b - (many_b - b)
        a_lo, b_lo = a - a_hi, b - b_hi
        lost = ((a_hi * b_hi - product) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo
        return select(lost == lost, lost, 0.0)

    return (lambda a, b, product: fma(a, b, 0.0 - product)) if fuses() else dekker


def times_pair(x, value, low):
    """x * (value + low) for a vector of float64: as good as rounded once."""
    raise NotImplementedError


@inner_overload(times_pair)
def _times_pair(x, value, low):
    def split(x, value, low):
        product = x * value
        return product + (product_lost(x, value, product) + x * low)

    return (lambda x, value, low: fma(x, value, x * low)) if fuses() else split


# Powers of two of scalars. ldexp and frexp of the C library cost 5 ns a call, these one or two.


@lowered
def _float64_of(bits: types.int64):
    """The float64 whose bits are an int64."""
    return types.float64, lambda builder, bits: builder.bitcast(bits, F64)


@lowered
def _bits_of(value: types.float64):
    """The bits of a float64 as an int64."""
    return types.int64, lambda builder, value: builder.bitcast(value, I64)


@inner
def power_of_two(n):
    """2**n as float64, -1022 <= n <= 1023."""
    return _float64_of((np.int64(n) + 1023) << 52)


@inner
def times_two_to(value, n):
    """value * 2**n for any n; exact unless the result is subnormal."""
    n = smaller(n, 2046) if n > -2044 else -2044
    half = n >> 1
    return value * power_of_two(half) * power_of_two(n - half)


@inner
def mantissa_and_exponent(value):
    """(f, n) with value = f * 2**n and 1 <= |f| < 2; value is finite. 0 gives (0, 0)."""
    if value == 0.0:
        return 0.0, np.int64(0)
    shift = np.int64(0)
    if abs(value) < 2.2250738585072014e-308:
        value, shift = value * 18446744073709551616.0, np.int64(64)
    bits = _bits_of(value)
    exponent = ((bits >> 52) & 0x7FF) - 1023
    return _float64_of(bits - (exponent << 52)), exponent - shift
