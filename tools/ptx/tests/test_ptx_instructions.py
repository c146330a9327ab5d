"""The PTX interpreter, instruction by instruction, against NumPy, Python integers or mpmath."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from ml_dtypes import bfloat16
from programs import elementwise

from tools.ptx import Device, Unsupported

DTYPES = {
    "f16": np.float16, "bf16": bfloat16, "f32": np.float32, "f64": np.float64, "pred": np.uint32,
    **{f"{k}{n}": np.dtype(f"{'i' if k == 's' else 'u'}{n // 8}") for k in "usb"
       for n in (8, 16, 32, 64)},
}  # fmt: skip
NAN, INF = np.nan, np.inf
REALS = [0.0, -0.0, 1.0, -1.5, 2.5, 3.5, 1e-3, -7e4, 1e30, -1e-30, INF, -INF, NAN, 65519.9, 0.1]


def values(kind, rng, count=200):
    """Interesting numbers of a type, then random ones."""
    if kind == "pred":
        return rng.integers(0, 2, count).astype(np.uint32)
    dtype = np.dtype(DTYPES[kind])
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        edges = [0, 1, 2, 31, 32, 33, int(limits.max), int(limits.min), int(limits.max) - 1, 5]
        small = rng.integers(0, 70, count // 2)
        large = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype)
        return np.concatenate([np.array(edges, dtype), small.astype(dtype), large])[:count]
    with np.errstate(over="ignore"):
        edges = np.array(REALS).astype(dtype)
        scales = 10.0 ** rng.integers(-3, 4, count)
        return np.concatenate([edges, (rng.normal(size=count) * scales).astype(dtype)])[:count]


def run(code, inputs, output, arrays, **options):
    device = Device(**options)
    count = len(arrays[0])
    result = device.empty(count * np.dtype(DTYPES[output]).itemsize)
    args = [device.put(np.array(a)) for a in arrays]
    device.launch(elementwise(code, inputs, output), 1, count, [*args, result])
    return device.get(result, np.empty(count, DTYPES[output]))


def same(a, b):
    """Equal bits, but for NaN, which only has to be one."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    bits = np.dtype(f"u{a.dtype.itemsize}")
    equal = a.view(bits) == b.view(bits)
    with np.errstate(invalid="ignore"):
        equal |= (a != a) & (b != b)
    assert equal.all(), (a[~equal][:5], b[~equal][:5], np.flatnonzero(~equal)[:5])


def integers(function):
    """A function of Python integers, applied one by one."""
    return lambda *arrays: [function(*(int(v) for v in row)) for row in zip(*arrays, strict=True)]


def wrap(numbers, kind):
    bits = int(kind[1:])
    unsigned = np.array([n & ((1 << bits) - 1) for n in numbers], np.dtype(f"u{bits // 8}"))
    return unsigned.view(DTYPES[kind])


def truncated(a, b):
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def field(a, start, length, bits, signed):
    start, length = start & 255, length & 255
    raw = a & ((1 << bits) - 1)
    top = min(start + length - 1, bits - 1)
    sign = signed and length and raw >> top & 1
    out = 0
    for i in range(bits):
        bit = raw >> (start + i) & 1 if i < length and start + i < bits else sign
        out |= bit << i
    return out


def insert(a, b, start, length):
    start, length = start & 255, length & 255
    for i in range(32):
        if i < length and start + i < 32:
            b = b & ~(1 << start + i) | (a >> i & 1) << start + i
    return b


def permute(a, b, selector):
    source = (b << 32 | a).to_bytes(8, "little")
    out = []
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = source[nibble & 7]
        out.append((255 if byte & 128 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def shift(function, bits):
    return lambda a, n: function(a, min(n, bits))


INTEGERS = [
    ("add.s32 %d, %a, %b;", ["s32", "s32"], "s32", lambda a, b: a + b),
    ("sub.u64 %d, %a, %b;", ["u64", "u64"], "u64", lambda a, b: a - b),
    ("mul.lo.s64 %d, %a, %b;", ["s64", "s64"], "s64", lambda a, b: a * b),
    ("mul.hi.s64 %d, %a, %b;", ["s64", "s64"], "s64", lambda a, b: a * b >> 64),
    ("mul.hi.u64 %d, %a, %b;", ["u64", "u64"], "u64", lambda a, b: a * b >> 64),
    ("mul.hi.s32 %d, %a, %b;", ["s32", "s32"], "s32", lambda a, b: a * b >> 32),
    ("mul.wide.s32 %d, %a, %b;", ["s32", "s32"], "s64", lambda a, b: a * b),
    ("mul.wide.u16 %d, %a, %b;", ["u16", "u16"], "u32", lambda a, b: a * b),
    ("mad.lo.u32 %d, %a, %b, %c;", ["u32"] * 3, "u32", lambda a, b, c: a * b + c),
    ("mad.wide.u32 %d, %a, %b, %c;", ["u32", "u32", "u64"], "u64", lambda a, b, c: a * b + c),
    ("mad.hi.u32 %d, %a, %b, %c;", ["u32"] * 3, "u32", lambda a, b, c: (a * b >> 32) + c),
    ("add.sat.s32 %d, %a, %b;", ["s32"] * 2, "s32",
     lambda a, b: min(max(a + b, -(2**31)), 2**31 - 1)),
    ("div.s32 %d, %a, %b;", ["s32", "s32"], "s32", lambda a, b: truncated(a, b) if b else -1),
    ("div.s64 %d, %a, %b;", ["s64", "s64"], "s64", lambda a, b: truncated(a, b) if b else -1),
    ("rem.s64 %d, %a, %b;", ["s64", "s64"], "s64",
     lambda a, b: a - b * truncated(a, b) if b else a),
    ("div.u64 %d, %a, %b;", ["u64", "u64"], "u64", lambda a, b: a // b if b else -1),
    ("rem.u32 %d, %a, %b;", ["u32", "u32"], "u32", lambda a, b: a % b if b else a),
    ("min.s64 %d, %a, %b;", ["s64", "s64"], "s64", min),
    ("max.u16 %d, %a, %b;", ["u16", "u16"], "u16", max),
    ("neg.s32 %d, %a;", ["s32"], "s32", lambda a: -a),
    ("abs.s64 %d, %a;", ["s64"], "s64", abs),
    ("and.b64 %d, %a, %b;", ["b64", "b64"], "b64", lambda a, b: a & b),
    ("or.b16 %d, %a, %b;", ["b16", "b16"], "b16", lambda a, b: a | b),
    ("xor.b32 %d, %a, %b;", ["b32", "b32"], "b32", lambda a, b: a ^ b),
    ("not.b32 %d, %a;", ["b32"], "b32", lambda a: ~a),
    ("shl.b32 %d, %a, %b;", ["b32", "u32"], "b32", shift(lambda a, n: a << n, 32)),
    ("shl.b64 %d, %a, %b;", ["b64", "u32"], "b64", shift(lambda a, n: a << n, 64)),
    ("shr.u32 %d, %a, %b;", ["u32", "u32"], "u32", shift(lambda a, n: a >> n, 32)),
    ("shr.s64 %d, %a, %b;", ["s64", "u32"], "s64", shift(lambda a, n: a >> n, 64)),
    ("shr.s32 %d, %a, 31;", ["s32"], "s32", lambda a: a >> 31),
    ("shf.l.wrap.b32 %d, %a, %b, %c;", ["b32", "b32", "u32"], "b32",
     lambda a, b, n: ((b << 32 | a) << (n & 31)) >> 32),
    ("shf.r.clamp.b32 %d, %a, %b, %c;", ["b32", "b32", "u32"], "b32",
     lambda a, b, n: (b << 32 | a) >> min(n, 32)),
    ("shf.l.clamp.b32 %d, %a, %b, %c;", ["b32", "b32", "u32"], "b32",
     lambda a, b, n: ((b << 32 | a) << min(n, 32)) >> 32),
    ("prmt.b32 %d, %a, %b, %c;", ["b32"] * 3, "b32", permute),
    ("lop3.b32 %d, %a, %b, %c, 0xE8;", ["b32"] * 3, "b32",
     lambda a, b, c: (a & b) | (a & c) | (b & c)),
    ("bfe.u32 %d, %a, %b, %c;", ["u32"] * 3, "u32", lambda a, s, n: field(a, s, n, 32, False)),
    ("bfe.s32 %d, %a, %b, %c;", ["s32", "u32", "u32"], "s32",
     lambda a, s, n: field(a, s, n, 32, True)),
    ("bfi.b32 %d, %a, %b, %c, %d0;", ["b32", "b32", "u32"], "b32", None),
    ("bfind.u32 %d, %a;", ["u32"], "u32", lambda a: a.bit_length() - 1),
    ("bfind.s32 %d, %a;", ["s32"], "u32",
     lambda a: (a if a >= 0 else ~a).bit_length() - 1),
    ("popc.b64 %d, %a;", ["b64"], "u32", lambda a: a.bit_count()),
    ("clz.b32 %d, %a;", ["b32"], "u32", lambda a: 32 - a.bit_length()),
    ("clz.b64 %d, %a;", ["b64"], "u32", lambda a: 64 - a.bit_length()),
    ("brev.b32 %d, %a;", ["b32"], "b32", lambda a: int(f"{a:032b}"[::-1], 2)),
    ("setp.lt.s32 %d, %a, %b;", ["s32", "s32"], "pred", lambda a, b: a < b),
    ("setp.hi.u64 %d, %a, %b;", ["u64", "u64"], "pred", lambda a, b: a > b),
    ("setp.eq.and.u32 %d, %a, %b, %qc;", ["u32", "u32", "pred"], "pred",
     lambda a, b, c: a == b and bool(c)),
    ("setp.ne.or.u32 %d, %a, %b, !%qc;", ["u32", "u32", "pred"], "pred",
     lambda a, b, c: a != b or not c),
    ("selp.b32 %d, %a, %b, %qc;", ["b32", "b32", "pred"], "b32", lambda a, b, c: a if c else b),
    ("xor.pred %d, %qa, %qb;", ["pred", "pred"], "pred", lambda a, b: a ^ b),
    ("{ .reg .b32 %x; .reg .b32 %y; mov.b64 {%x, %y}, %a; mov.b64 %d, {%y, %x}; }",
     ["b64"], "b64", lambda a: a >> 32 | a << 32),
    ("{ .reg .b16 %x; mov.b32 {_, %x}, %a; cvt.u32.u16 %d, %x; }", ["b32"], "u32",
     lambda a: a >> 16),
    ("add.cc.u32 %r1, %a, %b; addc.u32 %d, %c, 0;", ["u32"] * 3, "u32",
     lambda a, b, c: c + (a + b >> 32)),
    ("sub.cc.u32 %r1, %a, %b; subc.u32 %d, %c, 0;", ["u32"] * 3, "u32",
     lambda a, b, c: c - (a < b)),
    ("cvt.u32.u64 %d, %a;", ["u64"], "u32", lambda a: a),
    ("cvt.s64.s32 %d, %a;", ["s32"], "s64", lambda a: a),
    ("cvt.u16.u32 %d, %a;", ["u32"], "u16", lambda a: a),
    ("cvt.s32.s8 %d, %a;", ["s8"], "s32", lambda a: a),
    ("cvt.sat.u8.s32 %r1, %a; mov.b32 %d, %r1;", ["s32"], "u32",
     lambda a: min(max(a, 0), 255)),
]  # fmt: skip


@pytest.mark.parametrize("case", INTEGERS, ids=[c[0] for c in INTEGERS])
def test_integer_instruction(case, rng):
    code, inputs, output, function = case
    arrays = [rng.permutation(values(kind, rng)) for kind in inputs]
    if function is None:  # four operands: the fourth is the first of the lane, for want of letters
        code = code.replace("%d0", "9")
        function = lambda a, b, c: insert(a, b, c, 9)
    expected = wrap(integers(function)(*arrays), "u32" if output == "pred" else output)
    same(run(code, inputs, output, arrays), expected)


FLOATS = [
    ("add.f32 %d, %a, %b;", ["f32"] * 2, "f32", np.add),
    ("sub.rn.f64 %d, %a, %b;", ["f64"] * 2, "f64", np.subtract),
    ("mul.f32 %d, %a, %b;", ["f32"] * 2, "f32", np.multiply),
    ("div.rn.f32 %d, %a, %b;", ["f32"] * 2, "f32", np.divide),
    ("div.rn.f64 %d, %a, %b;", ["f64"] * 2, "f64", np.divide),
    ("rcp.rn.f32 %d, %a;", ["f32"], "f32", np.reciprocal),
    ("sqrt.rn.f64 %d, %a;", ["f64"], "f64", np.sqrt),
    ("neg.f32 %d, %a;", ["f32"], "f32", np.negative),
    ("abs.f64 %d, %a;", ["f64"], "f64", np.abs),
    ("copysign.f32 %d, %a, %b;", ["f32"] * 2, "f32", lambda a, b: np.copysign(b, a)),
    ("setp.lt.f32 %d, %a, %b;", ["f32"] * 2, "pred", lambda a, b: (a < b).astype(np.uint32)),
    ("setp.ne.f32 %d, %a, %b;", ["f32"] * 2, "pred",
     lambda a, b: ((a < b) | (a > b)).astype(np.uint32)),
    ("setp.neu.f64 %d, %a, %b;", ["f64"] * 2, "pred", lambda a, b: (a != b).astype(np.uint32)),
    ("setp.gtu.f32 %d, %a, %b;", ["f32"] * 2, "pred",
     lambda a, b: (~(a <= b)).astype(np.uint32)),
    ("setp.nan.f32 %d, %a, %b;", ["f32"] * 2, "pred",
     lambda a, b: (np.isnan(a) | np.isnan(b)).astype(np.uint32)),
    ("add.f16 %d, %a, %b;", ["f16"] * 2, "f16", np.add),
    ("mul.bf16 %d, %a, %b;", ["bf16"] * 2, "bf16", np.multiply),
    ("neg.f16 %d, %a;", ["f16"], "f16", np.negative),
    ("cvt.f32.f16 %d, %a;", ["f16"], "f32", lambda a: a.astype(np.float32)),
    ("cvt.f32.bf16 %d, %a;", ["bf16"], "f32", lambda a: a.astype(np.float32)),
    ("cvt.rn.f16.f32 %d, %a;", ["f32"], "f16", lambda a: a.astype(np.float16)),
    ("cvt.rn.bf16.f32 %d, %a;", ["f32"], "bf16", lambda a: a.astype(bfloat16)),
    ("cvt.f64.f32 %d, %a;", ["f32"], "f64", lambda a: a.astype(np.float64)),
    ("cvt.rn.f32.f64 %d, %a;", ["f64"], "f32", lambda a: a.astype(np.float32)),
    ("cvt.rn.f32.s64 %d, %a;", ["s64"], "f32", lambda a: a.astype(np.float32)),
    ("cvt.rn.f16.s32 %d, %a;", ["s32"], "f16", lambda a: a.astype(np.float16)),
    ("cvt.rni.f32.f32 %d, %a;", ["f32"], "f32", np.rint),
    ("cvt.rmi.f64.f64 %d, %a;", ["f64"], "f64", np.floor),
    ("cvt.sat.f32.f32 %d, %a;", ["f32"], "f32",
     lambda a: np.where(np.isnan(a), np.float32(0), np.clip(a, np.float32(0), np.float32(1)))),
    ("mov.b32 %d, %a;", ["f32"], "b32", lambda a: a.view(np.uint32)),
    ("selp.f32 %d, %a, 0f3F800000, %qb;", ["f32", "pred"], "f32",
     lambda a, b: np.where(b, a, np.float32(1))),
]  # fmt: skip


@pytest.mark.parametrize("case", FLOATS, ids=[c[0] for c in FLOATS])
def test_float_instruction(case, rng):
    code, inputs, output, function = case
    arrays = [rng.permutation(values(kind, rng)) for kind in inputs]
    with np.errstate(all="ignore"):
        expected = function(*arrays).astype(DTYPES[output])
    result = run(code, inputs, output, arrays)
    if code.startswith("cvt.sat"):  # -0 is 0 afterwards, whichever sign it has
        result, expected = result + 0, expected + 0
    same(result, expected)


def nearest(value, digits):
    with mpmath.workprec(digits):
        return float(mpmath.mpf(value.numerator) / value.denominator)


@pytest.mark.parametrize(("kind", "digits"), [("f32", 24), ("f64", 53)])
def test_fma_rounds_once(kind, digits, rng):
    a, b, c = (rng.normal(size=500).astype(DTYPES[kind]) for _ in range(3))
    c[:250] = (-a.astype(float) * b)[:250].astype(c.dtype)  # cancels: the low half decides
    result = run(f"fma.rn.{kind} %d, %a, %b, %c;", [kind] * 3, kind, [a, b, c])
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    same(result, np.array([nearest(e, digits) if e else 0.0 for e in exact], a.dtype))
    assert (result[:250] != 0).any()


@pytest.mark.parametrize("name", ["add", "mul", "div", "sub"])
@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed_rounding(name, kind, mode, rng):
    """The result lies on the asked side of the exact value, and its neighbour beyond it."""
    a, b = (rng.normal(size=300).astype(DTYPES[kind]) for _ in range(2))
    result = run(f"{name}.{mode}.{kind} %d, %a, %b;", [kind] * 2, kind, [a, b])
    function = {
        "add": Fraction.__add__, "sub": Fraction.__sub__, "mul": Fraction.__mul__,
        "div": Fraction.__truediv__,
    }[name]  # fmt: skip
    inexact = 0
    for x, y, r in zip(a, b, result, strict=True):
        exact, got = function(Fraction(float(x)), Fraction(float(y))), Fraction(float(r))
        down = mode == "rm" or (mode == "rz" and exact > 0)
        assert got <= exact if down else got >= exact
        beyond = Fraction(float(np.nextafter(r, r.dtype.type(np.inf if down else -np.inf))))
        assert beyond > exact if down else beyond < exact
        inexact += got != exact
    assert inexact > 50


@pytest.mark.parametrize("target", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed_rounding_to_half(target, mode, rng):
    a = (rng.normal(size=300) * 10.0 ** rng.integers(-6, 4, 300)).astype(np.float32)
    a[:4] = [1e-9, -1e-9, 1.0, -1.0]
    result = run(f"cvt.{mode}.{target}.f32 %d, %a;", ["f32"], target, [a]).astype(np.float64)
    towards_zero = np.abs(result) <= np.abs(a)
    expected = {"rz": towards_zero, "rm": result <= a, "rp": result >= a}[mode]
    assert expected.all()
    assert (np.abs(result - a) <= np.maximum(np.abs(a) * 2.0 ** -(7 if target == "bf16" else 10),
                                             2.0**-24)).all()  # fmt: skip


def test_packed_halves(rng):
    a, b, c = (rng.normal(size=100).astype(np.float32) for _ in range(3))
    packed = run("cvt.rn.bf16x2.f32 %d, %a, %b;", ["f32", "f32"], "b32", [a, b])
    pairs = packed.view(bfloat16).reshape(-1, 2)
    same(pairs[:, 1].copy(), a.astype(bfloat16))
    same(pairs[:, 0].copy(), b.astype(bfloat16))
    x, y = (np.stack([u, v], 1).astype(np.float16) for u, v in [(a, b), (b, c)])
    words = [np.ascontiguousarray(v).view(np.uint32).ravel() for v in (x, y)]
    largest = run("max.f16x2 %d, %a, %b;", ["b32", "b32"], "b32", words)
    same(largest.view(np.float16).reshape(-1, 2), np.maximum(x, y))
    code = "fma.rn.f16x2 %d, %a, %b, %a;"
    result = run(code, ["b32", "b32"], "b32", words).view(np.float16).reshape(-1, 2)
    wide = x.astype(np.float64)
    same(result, (wide * y + wide).astype(np.float16))


def test_minimum_and_maximum_of_nan_and_zeros():
    a = np.array([NAN, 1, NAN, -0.0, 0.0, 2], np.float32)
    b = np.array([1, NAN, NAN, 0.0, -0.0, 1], np.float32)
    kinds = ["f32", "f32"]
    small = run("min.f32 %d, %a, %b;", kinds, "f32", [a, b])
    same(small, np.array([1, 1, NAN, -0.0, -0.0, 1], np.float32))
    large = run("max.f32 %d, %a, %b;", kinds, "f32", [a, b])
    same(large, np.array([1, 1, NAN, 0.0, 0.0, 2], np.float32))
    strict = run("max.NaN.f32 %d, %a, %b;", kinds, "f32", [a, b])
    same(strict, np.array([NAN, NAN, NAN, 0.0, 0.0, 2], np.float32))


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_float_to_integer_saturates(kind):
    a = np.array([NAN, INF, -INF, 1e30, -1e30, 2.5, -2.5, 3.7, 4294967040.0], np.float32)
    result = run(f"cvt.rzi.{kind}.f32 %d, %a;", ["f32"], kind, [a])
    limits = np.iinfo(DTYPES[kind])
    nan = 0 if kind.endswith("32") else (1 << 63 if kind == "u64" else -(1 << 63))
    expected = [nan] + [
        min(max(int(v) if np.isfinite(v) else (limits.max if v > 0 else limits.min), limits.min),
            limits.max)
        for v in a[1:].astype(float)
    ]  # fmt: skip
    assert result.tolist() == expected
    even = run(f"cvt.rni.{kind}.f32 %d, %a;", ["f32"], kind, [a])
    assert even[5] == 2


APPROXIMATE = [
    ("ex2.approx.f32", np.exp2, 2, lambda r: r.normal(size=700) * 20),
    ("ex2.approx.ftz.f32", np.exp2, 2, lambda r: r.normal(size=700) * 20),
    ("lg2.approx.f32", np.log2, 2, lambda r: np.exp(r.normal(size=700) * 9 + 9)),
    ("rcp.approx.f32", np.reciprocal, 1, lambda r: r.normal(size=700)),
    ("rsqrt.approx.f32", lambda a: 1 / np.sqrt(a), 1, lambda r: np.exp(r.normal(size=700))),
    ("sqrt.approx.f32", np.sqrt, 1, lambda r: np.exp(r.normal(size=700))),
    ("tanh.approx.f32", np.tanh, 2**13, lambda r: r.normal(size=700)),
]


@pytest.mark.parametrize("case", APPROXIMATE, ids=[c[0] for c in APPROXIMATE])
def test_approximate_function(case, rng):
    """Off by up to the documented error, and not always right, unless exactness is asked for."""
    name, function, ulps, numbers = case
    a = numbers(rng).astype(np.float32)
    exact = function(a.astype(np.float64))
    step = np.spacing(np.abs(exact).astype(np.float32)).astype(float)
    result = run(f"{name} %d, %a;", ["f32"], "f32", [a])
    error = np.abs(result - exact) / step
    if name.startswith("lg2"):  # near 1 the bound is an absolute one
        error[np.abs(result - exact) < 2.0**-22.6] = 1
    assert error.max() <= ulps + 0.5
    assert error.max() > 0.6
    same(run(f"{name} %d, %a;", ["f32"], "f32", [a], approx="exact"), exact.astype(np.float32))
    same(run(f"{name} %d, %a;", ["f32"], "f32", [a]), result)


def test_special_values_of_approximations():
    a = np.array([0.0, -0.0, INF, -INF, NAN, -149, 1000], np.float32)
    same(run("ex2.approx.f32 %d, %a;", ["f32"], "f32", [a]),
         np.array([1, 1, INF, 0, NAN, 2.0**-149, INF], np.float32))  # fmt: skip
    assert run("ex2.approx.ftz.f32 %d, %a;", ["f32"], "f32", [a])[5] == 0
    b = np.array([0.0, -0.0, 1, -1, INF], np.float32)
    same(run("lg2.approx.f32 %d, %a;", ["f32"], "f32", [b]),
         np.array([-INF, -INF, 0, NAN, INF], np.float32))  # fmt: skip
    limits = run("rcp.approx.ftz.f32 %d, %a;", ["f32"], "f32", [b])
    same(limits[[0, 1, 4]], np.array([INF, -INF, 0], np.float32))
    c = np.array([2.0**127, 2.0**100], np.float32)
    ones = np.array([1e30, 2.0**100], np.float32)
    divided = run("div.approx.f32 %d, %a, %b;", ["f32", "f32"], "f32", [ones, c])
    assert divided[0] == 0
    assert abs(divided[1] - 1) < 1e-6


def test_flush_to_zero():
    tiny = np.array([1e-40, -1e-40, 2e-38, 1.0], np.float32)
    half = np.full(4, 0.5, np.float32)
    result = run("mul.ftz.f32 %d, %a, %b;", ["f32", "f32"], "f32", [tiny, half])
    same(result, np.array([0.0, -0.0, 0.0, 0.5], np.float32))
    same(run("mul.f32 %d, %a, %b;", ["f32", "f32"], "f32", [tiny, half]), tiny * half)
    assert run("setp.gt.ftz.f32 %d, %a, 0f00000000;", ["f32"], "pred", [tiny])[0] == 0


def test_gross_reciprocal_of_doubles(rng):
    a = rng.normal(size=50)
    result = run("rcp.approx.ftz.f64 %d, %a;", ["f64"], "f64", [a])
    assert (np.abs(result * a - 1) < 2.0**-18).all()
    assert (result.view(np.uint64) & np.uint64(0xFFFFFFFF) == 0).all()


def test_unknown_instructions_are_refused():
    with pytest.raises(Unsupported, match=r"wmma.load.*PTX line"):
        run("wmma.load.a.sync %d, [%a];", ["b64"], "b64", [np.zeros(1, np.uint64)])
