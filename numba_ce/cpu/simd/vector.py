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
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.extending import intrinsic, models, register_model, type_callable

F32, F64 = ir.FloatType(), ir.DoubleType()
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
VECTOR_BYTES = 64
LANES = {types.float32: 16, types.float64: 8}
SIXTEEN = 16  # lanes, of either type, where sixteen rows are done at a time


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


def _widened(context, builder, sig, args, vector):
    return [
        arg
        if ty == vector
        else spread(builder, context.cast(builder, arg, ty, vector.dtype), vector.lanes)
        for ty, arg in zip(sig.args, args, strict=True)
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
        a, b = _widened(context, builder, sig, args, _vector_of(*sig.args))
        return build(builder, a, b)

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


@intrinsic
def splat(typingctx, scalar):
    """The vector whose lanes all hold `scalar` (float32 or float64)."""
    vector = Vector(scalar)

    def codegen(context, builder, sig, args):
        return spread(builder, args[0], vector.lanes)

    return vector(scalar), codegen


@intrinsic
def splat_like(typingctx, scalar, vector):
    """A vector of the type of another, whose lanes all hold `scalar`."""

    def codegen(context, builder, sig, args):
        return spread(builder, args[0], vector.lanes)

    return vector(vector.dtype, vector), codegen


@intrinsic
def splat_sixteen(typingctx, scalar):
    """Sixteen lanes that all hold `scalar`: of float64, two registers."""
    vector = Vector(scalar, SIXTEEN)

    def codegen(context, builder, sig, args):
        return spread(builder, args[0], SIXTEEN)

    return vector(scalar), codegen


def suffix(vector):
    """How LLVM writes a vector type in the name of a function."""
    element = vector.element
    if isinstance(element, ir.IntType):
        return f"v{vector.count}i{element.width}"
    return f"v{vector.count}{'f32' if element == F32 else 'f64'}"


def _call(builder, name, args):
    vector = args[0].type
    kind = ir.FunctionType(vector, [vector] * len(args))
    name = f"{name}.{suffix(vector)}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once where the machine can; scalars are copied to every lane."""
    vector = next(x for x in (a, b, c) if isinstance(x, Vector))

    def codegen(context, builder, sig, args):
        return _call(builder, "llvm.fmuladd", _widened(context, builder, sig, args, vector))

    return vector(a, b, c), codegen


@intrinsic
def maximum(typingctx, a, b):
    """The larger lane; `b` where either is NaN (one instruction on x86)."""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, a), codegen


@intrinsic
def absolute(typingctx, a):
    """|a| in every lane."""

    def codegen(context, builder, sig, args):
        return _call(builder, "llvm.fabs", list(args))

    return a(a), codegen


@intrinsic
def with_sign_of(typingctx, a, b):
    """|a| with the sign of `b`."""

    def codegen(context, builder, sig, args):
        return _call(builder, "llvm.copysign", list(args))

    return a(a, a), codegen


@intrinsic
def select(typingctx, mask, a, b):
    """`a` where the mask is set, else `b`; a scalar is copied to every lane."""
    vector = next(x for x in (a, b) if isinstance(x, Vector))

    def codegen(context, builder, sig, args):
        pair = _widened(context, builder, vector(*sig.args[1:]), args[1:], vector)
        return builder.select(args[0], *pair)

    return vector(mask, a, b), codegen


@intrinsic
def times_power_of_two(typingctx, value, magic, exponent):
    """value * 2**(n + exponent - bias), n the integer in the low bits of the float `magic`.

    `exponent` (intp) holds the bias of the format; the sum must name a normal number.
    """
    mantissa_bits = 23 if value.dtype == types.float32 else 52

    def codegen(context, builder, sig, args):
        integers = _integers(value)
        shift = ir.Constant(integers, [mantissa_bits] * value.lanes)
        exponent = args[2]
        if exponent.type != integers.element:
            exponent = builder.trunc(exponent, integers.element)
        n = builder.add(builder.bitcast(args[1], integers), spread(builder, exponent, value.lanes))
        return builder.fmul(args[0], builder.bitcast(builder.shl(n, shift), llvm_type(value)))

    return value(value, magic, types.intp), codegen


# Folds over the lanes, in an order that is written here


def _halves(builder, vector):
    half = vector.type.count // 2
    undefined = ir.Constant(vector.type, ir.Undefined)
    low, high = (
        builder.shuffle_vector(
            vector,
            undefined,
            ir.Constant(ir.VectorType(I32, half), list(range(start, start + half))),
        )
        for start in (0, half)
    )
    return low, high


def _fold(builder, vector, combine):
    while vector.type.count > 1:
        vector = combine(*_halves(builder, vector))
    return builder.extract_element(vector, I32(0))


@intrinsic
def largest_lane(typingctx, vector):
    """The largest lane (a NaN may be lost)."""

    def codegen(context, builder, sig, args):
        return _fold(
            builder, args[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b)
        )

    return vector.dtype(vector), codegen


@intrinsic
def sum_of_lanes(typingctx, vector):
    """Sum of the lanes: halves added to halves."""

    def codegen(context, builder, sig, args):
        return _fold(builder, args[0], builder.fadd)

    return vector.dtype(vector), codegen


def _widened_half(builder, vector, upper):
    half = _halves(builder, vector)[upper]
    return half if vector.type.element == F64 else builder.fpext(half, ir.VectorType(F64, 8))


@intrinsic
def low_as_float64(typingctx, vector):
    """The lower eight of sixteen lanes as a float64 vector."""

    def codegen(context, builder, sig, args):
        return _widened_half(builder, args[0], 0)

    return Vector(types.float64)(vector), codegen


@intrinsic
def high_as_float64(typingctx, vector):
    """The upper eight of sixteen lanes as a float64 vector."""

    def codegen(context, builder, sig, args):
        return _widened_half(builder, args[0], 1)

    return Vector(types.float64)(vector), codegen


@intrinsic
def joined(typingctx, low, high, like):
    """Two float64 vectors as sixteen lanes of the type of the scalar `like`, rounded to it."""

    def codegen(context, builder, sig, args):
        both = args[:2]
        if like == types.float32:
            both = [builder.fptrunc(arg, ir.VectorType(F32, 8)) for arg in both]
        lanes = ir.Constant(ir.VectorType(I32, SIXTEEN), list(range(SIXTEEN)))
        return builder.shuffle_vector(*both, lanes)

    return Vector(like, SIXTEEN)(low, high, like), codegen


def lanes_below(builder, count, lanes):
    """The LLVM mask of the lanes below an i64."""
    numbers = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, spread(builder, count, lanes))


@intrinsic
def first_lanes(typingctx, count, like):
    """The mask of the lanes below `count` of a vector of the type of the scalar `like`."""
    lanes = LANES[like]

    def codegen(context, builder, sig, args):
        return lanes_below(builder, args[0], lanes)

    return Mask(lanes)(types.intp, like), codegen


@intrinsic
def lane(typingctx, vector, i):
    """Lane `i` of a vector."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(*args)

    return vector.dtype(vector, types.intp), codegen


@intrinsic
def first_set(typingctx, mask):
    """The first lane of a mask that is set; the number of lanes if none is."""
    lanes = mask.lanes

    def codegen(context, builder, sig, args):
        bits = builder.zext(builder.bitcast(args[0], ir.IntType(lanes)), I64)
        bits = builder.or_(bits, I64(1 << lanes))
        return builder.cttz(bits, ir.Constant(ir.IntType(1), 1))

    return types.intp(mask), codegen
