"""Vectors of a fixed number of lanes as a Numba type, and what the kernels do with them.

Loops over these vectors do the same operations in the same order on every machine, so the bits
of a result do not depend on what an optimiser makes of a loop, and a 512-bit vector stays 512
bits wide where the default tuning would choose 256. A machine without 512-bit registers splits
every operation; the results are the same.

Memory is named by byte addresses (``intp``): a vector is `LANES` (float32) or half as many
(float64) neighbouring elements, aligned only to one byte unless a function says otherwise.
"""

import operator

from llvmlite import ir
from numba import types
from numba.extending import lower_builtin, models, register_model, type_callable

from numba_ce.cpu.compile.numba_core import call_named, pack_array, unpack_tuple
from numba_ce.cpu.simd.lowered import Literal, lowered
from numba_ce.cpu.simd.width import ROWS_ACROSS

F32, F64 = ir.FloatType(), ir.DoubleType()
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
VECTOR_BYTES = 64
LANES = {types.float32: 16, types.float64: 8}


class Vector(types.Type):
    """`lanes` elements of `dtype` (float32 or float64); by default as many as fill a register."""

    def __init__(self, dtype, lanes=None):
        self.dtype = dtype
        self.lanes = lanes or LANES[dtype]
        super().__init__(name=f"Vector({dtype} x {self.lanes})")


class Mask(types.Type):
    """One truth value per lane."""

    def __init__(self, lanes):
        self.lanes = lanes
        super().__init__(name=f"Mask({lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, llvm_type(fe_type))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, ir.VectorType(I1, fe_type.lanes))


def llvm_type(vector):
    return ir.VectorType(F32 if vector.dtype == types.float32 else F64, vector.lanes)


def _integers(vector):
    return ir.VectorType(I32 if vector.dtype == types.float32 else I64, vector.lanes)


def spread(builder, scalar, lanes):
    """The LLVM vector whose lanes all hold `scalar`."""
    vector = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, undefined, zeros)


# Arithmetic: vector with vector, or with a scalar, which is copied to every lane


def _vector_of(a, b):
    found = [x for x in (a, b) if isinstance(x, Vector)]
    if not found or not all(x == found[0] or isinstance(x, types.Number) for x in (a, b)):
        return None
    return found[0]


def _cast(vector, *given):
    """The types of vectors and of scalars that are copied to the lanes of `vector`."""
    return [ty if ty == vector else vector.dtype for ty in given]


def _widened(builder, args, vector):
    return [
        arg if isinstance(arg.type, ir.VectorType) else spread(builder, arg, vector.lanes)
        for arg in args
    ]


def _binary(function, build, compares):
    @type_callable(function)
    def type_binary(context):
        def typer(a, b):
            vector = _vector_of(a, b)
            if vector is None:
                return None
            return Mask(vector.lanes) if compares else vector

        return typer

    def lower(context, builder, sig, args):
        vector = _vector_of(*sig.args)
        to = _cast(vector, *sig.args)
        args = [context.cast(builder, *arg) for arg in zip(args, sig.args, to, strict=True)]
        return build(builder, *_widened(builder, args, vector))

    for pair in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, *pair)(lower)


for _function, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _binary(_function, lambda builder, a, b, n=_name: getattr(builder, n)(a, b), False)
for _function, _sign in ((operator.lt, "<"), (operator.gt, ">"), (operator.eq, "==")):
    _binary(_function, lambda builder, a, b, s=_sign: builder.fcmp_ordered(s, a, b), True)


@lowered
def splat(scalar):
    """The vector whose lanes all hold `scalar` (float32 or float64)."""
    return Vector(scalar), lambda builder, value: spread(builder, value, LANES[scalar])


@lowered
def splat_like(scalar, vector):
    """A vector of the type of another, whose lanes all hold `scalar`."""
    result = vector(vector.dtype, vector)
    return result, lambda builder, value, _: spread(builder, value, vector.lanes)


@lowered
def splat_rows(scalar):
    """A lane for each of the rows across, all with `scalar`."""
    result = Vector(scalar, ROWS_ACROSS)
    return result, lambda builder, value: spread(builder, value, ROWS_ACROSS)


def suffix(vector):
    """How LLVM writes a vector type in the name of a function."""
    element = vector.element
    if isinstance(element, ir.IntType):
        return f"v{vector.count}i{element.width}"
    return f"v{vector.count}{'f32' if element == F32 else 'f64'}"


def _call(builder, name, *args):
    vector = args[0].type
    return call_named(builder, f"{name}.{suffix(vector)}", vector, *args)


@lowered
def fma(a, b, c):
    """a * b + c, rounded once where the machine can; scalars are copied to every lane."""
    vector = next(x for x in (a, b, c) if isinstance(x, Vector))
    return vector(*_cast(vector, a, b, c)), lambda builder, *args: _call(
        builder, "llvm.fmuladd", *_widened(builder, args, vector)
    )


def _larger(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@lowered
def maximum(a, b):
    """The larger lane; `b` where either is NaN (one instruction on x86)."""
    return a, _larger


@lowered
def absolute(a):
    """|a| in every lane."""
    return a, lambda builder, a: _call(builder, "llvm.fabs", a)


@lowered
def with_sign_of(a, b):
    """|a| with the sign of `b`."""
    return a, lambda builder, a, b: _call(builder, "llvm.copysign", a, b)


@lowered
def select(mask, a, b):
    """`a` where the mask is set, else `b`; a scalar is copied to every lane."""
    vector = next(x for x in (a, b) if isinstance(x, Vector))
    return vector(mask, *_cast(vector, a, b)), lambda builder, mask, *pair: builder.select(
        mask, *_widened(builder, pair, vector)
    )


@lowered
def times_power_of_two(value, magic, exponent: types.intp):
    """value * 2**(n + exponent - bias), n the integer in the low bits of the float `magic`.

    `exponent` (intp) holds the bias of the format; the sum must name a normal number.
    """
    mantissa_bits = 23 if value.dtype == types.float32 else 52
    integers = _integers(value)

    def build(builder, number, magic, exponent):
        shift = ir.Constant(integers, [mantissa_bits] * value.lanes)
        if exponent.type != integers.element:
            exponent = builder.trunc(exponent, integers.element)
        n = builder.add(builder.bitcast(magic, integers), spread(builder, exponent, value.lanes))
        return builder.fmul(number, builder.bitcast(builder.shl(n, shift), llvm_type(value)))

    return value, build


# Folds over the lanes, in an order that is written here


def _half(builder, vector, upper):
    half = vector.type.count // 2
    lanes = ir.Constant(ir.VectorType(I32, half), list(range(upper * half, (upper + 1) * half)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def _fold(builder, vector, combine):
    while vector.type.count > 1:
        vector = combine(_half(builder, vector, 0), _half(builder, vector, 1))
    return builder.extract_element(vector, I32(0))


@lowered
def largest_lane(vector):
    """The largest lane (a NaN may be lost)."""
    return vector.dtype, lambda builder, x: _fold(builder, x, lambda a, b: _larger(builder, a, b))


@lowered
def sum_of_lanes(vector):
    """Sum of the lanes: halves added to halves."""
    return vector.dtype, lambda builder, x: _fold(builder, x, builder.fadd)


@lowered
def as_float64(vector):
    """All lanes of a vector as float64."""
    result = Vector(types.float64, vector.lanes)

    def build(builder, x):
        return x if vector == result else builder.fpext(x, llvm_type(result))

    return result, build


@lowered
def rounded(vector, like):
    """All lanes of a float64 vector in the type of the scalar `like`."""
    result = Vector(like, vector.lanes)

    def build(builder, x, _):
        return x if vector == result else builder.fptrunc(x, llvm_type(result))

    return result, build


@lowered
def batch_of(vector, i: Literal):
    """The i-th eight lanes as a float64 vector."""

    def build(builder, x, _):
        part = _half(builder, x, i)
        return part if vector.dtype == types.float64 else builder.fpext(part, ir.VectorType(F64, 8))

    return Vector(types.float64), build


@lowered
def half_of(vector, i: Literal):
    """The lower or the upper half of the lanes."""
    result = Vector(vector.dtype, vector.lanes // 2)
    return result, lambda builder, x, _: _half(builder, x, i)


@lowered
def field_of(batches, n: Literal):
    """Of a tuple of tuples the n-th field of each, as a tuple."""
    field = types.UniTuple(batches[0][n], len(batches))

    def build(builder, values, _):
        parts = unpack_tuple(builder, values)
        return pack_array(builder, [builder.extract_value(part, n) for part in parts])

    return field, build


@lowered
def joined(batches):
    """One or two vectors of eight lanes as one."""
    vector = Vector(batches[0].dtype, 8 * len(batches))

    def build(builder, values):
        parts = unpack_tuple(builder, values)
        lanes = ir.Constant(ir.VectorType(I32, vector.lanes), list(range(vector.lanes)))
        return builder.shuffle_vector(parts[0], parts[-1], lanes)

    return vector, build


def lanes_below(builder, count, lanes):
    """The LLVM mask of the lanes below an i64."""
    numbers = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, spread(builder, count, lanes))


@lowered
def first_lanes(count: types.intp, like):
    """The mask of the lanes below `count` of a vector like `like`, or of the type of a scalar."""
    lanes = like.lanes if isinstance(like, Vector) else LANES[like]
    return Mask(lanes), lambda builder, count, _: lanes_below(builder, count, lanes)


@lowered
def lane(vector, i: types.intp):
    """Lane `i` of a vector."""
    return vector.dtype, lambda builder, vector, i: builder.extract_element(vector, i)


@lowered
def first_set(mask):
    """The first lane of a mask that is set; the number of lanes if none is."""

    def build(builder, bits):
        bits = builder.zext(builder.bitcast(bits, ir.IntType(mask.lanes)), I64)
        return builder.cttz(builder.or_(bits, I64(1 << mask.lanes)), I1(1))

    return types.intp, build
