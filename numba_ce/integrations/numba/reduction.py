"""`numba_ce.cpu.simd.exp.reduction` for compiled code: the same numbers, without fractions."""

from fractions import Fraction

import numpy as np
from numba import types

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.simd.element import get, put
from numba_ce.cpu.simd.exp import _HI_BITS, LN2, LOG2E, power_of_two, two_sum

# ln 2 in three parts, to 159 bits
_HIGH = float(LN2)
_MIDDLE = float(LN2 - Fraction(_HIGH))
_LOW = float(LN2 - Fraction(_HIGH) - Fraction(_MIDDLE))
_HI_32, _HI_64 = (2.0 ** _HI_BITS[dtype] for dtype in (types.float32, types.float64))


@inner
def _halves(a):
    c = 134217729.0 * a
    high = c - (c - a)
    return high, a - high


@inner
def two_product(a, b):
    """The product and its rounding error, after Dekker."""
    product = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


@inner
def _rest(product, hi, middle, tail):
    high, low = two_sum(product - hi, middle)
    return high + (low + tail)


@inner
def put_reduction(address, temperature, double):
    """Write the four numbers of the reduction at a temperature that is a normal number."""
    put(address, temperature)
    bits = get(address, np.int64(0))
    exponent = (bits >> 52) - 1022
    put(address, (bits & ((1 << 52) - 1)) | (1022 << 52))
    mantissa = get(address, 0.0)
    # ln(2) times the mantissa is product + middle + tail
    product, error = two_product(mantissa, _HIGH)
    second, second_error = two_product(mantissa, _MIDDLE)
    middle, tail = two_sum(error, second)
    tail += second_error + mantissa * _LOW
    # The first part has so many bits, of the exact product
    scale = _HI_64 if double else _HI_32
    if product + middle < 0.5:
        scale *= 2.0
    hi = np.float64(np.int64((product + middle) * scale)) / scale
    lo = _rest(product, hi, middle, tail)
    if lo < 0.0:
        hi -= 1.0 / scale
        lo = _rest(product, hi, middle, tail)
    power = power_of_two(exponent)
    log2e, hi, lo, inverse = LOG2E / temperature, hi * power, lo * power, 1.0 / temperature
    if not double:
        log2e, hi = np.float64(np.float32(log2e)), np.float64(np.float32(hi))
        lo, inverse = np.float64(np.float32(lo)), np.float64(np.float32(inverse))
    put(address, log2e)
    put(address + 8, hi)
    put(address + 16, lo)
    put(address + 24, inverse)
