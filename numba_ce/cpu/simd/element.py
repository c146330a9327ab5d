"""Single elements and short vectors of any dtype and byte order, read from and written to memory.

16-bit numbers travel as integers: float16 goes through LLVM's conversions (one instruction each
on x86 with F16C, on ARM64), bfloat16 is the upper half of a float32.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_ce.cpu.simd.memory import masked_load, masked_store
from numba_ce.cpu.simd.vector import F32, F64, I16, I32, LANES, Vector, lanes_below, spread

HALF = ir.HalfType()
# name of a logits dtype -> (bits, Numba type it is computed in)
KINDS = {
    "float16": (16, types.float32),
    "bfloat16": (16, types.float32),
    "float32": (32, types.float32),
    "float64": (64, types.float64),
}


def _shaped(like, element):
    """`element` itself, or a vector of as many as `like` has."""
    return ir.VectorType(element, like.count) if isinstance(like, ir.VectorType) else element


def _constant(ty, value):
    return ir.Constant(ty, [value] * ty.count if isinstance(ty, ir.VectorType) else value)


def decode(builder, raw, kind):
    """Integers of the stored width -> the float they are computed in."""
    if kind == "float16":
        return builder.fpext(builder.bitcast(raw, _shaped(raw.type, HALF)), _shaped(raw.type, F32))
    if kind == "bfloat16":
        wide = builder.zext(raw, _shaped(raw.type, I32))
        wide = builder.shl(wide, _constant(wide.type, 16))
        return builder.bitcast(wide, _shaped(raw.type, F32))
    return builder.bitcast(raw, _shaped(raw.type, F32 if kind == "float32" else F64))


def encode(builder, value, kind):
    """The float -> integers of the stored width, rounded to nearest even."""
    bits, _ = KINDS[kind]
    if kind == "float16":
        half = builder.fptrunc(value, _shaped(value.type, HALF))
        return builder.bitcast(half, _shaped(value.type, I16))
    if kind == "bfloat16":
        raw = builder.bitcast(value, _shaped(value.type, I32))
        sixteen, one = _constant(raw.type, 16), _constant(raw.type, 1)
        odd = builder.and_(builder.lshr(raw, sixteen), one)
        half_unit = builder.add(odd, _constant(raw.type, 0x7FFF))
        rounded = builder.lshr(builder.add(raw, half_unit), sixteen)
        # rounding up could turn a NaN into an infinity: keep its upper half and make it quiet
        quiet = builder.or_(builder.lshr(raw, sixteen), _constant(raw.type, 0x40))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, quiet, rounded), _shaped(value.type, I16))
    return builder.bitcast(value, _shaped(value.type, ir.IntType(bits)))


def _swapped_if(builder, raw, swapped):
    """`raw` with its bytes reversed where `swapped` (an i1) is set."""
    scalar = getattr(raw.type, "element", raw.type)
    if scalar.width == 8:
        return raw
    lanes = "" if scalar is raw.type else f"v{raw.type.count}"
    kind = ir.FunctionType(raw.type, [raw.type])
    name = f"llvm.bswap.{lanes}i{scalar.width}"
    swap = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.select(swapped, builder.call(swap, [raw]), raw)


def _raw_pointer(builder, address, ty):
    return builder.inttoptr(address, ty.as_pointer())


def literal(kind):
    """The value of a string literal type."""
    return getattr(kind, "literal_value", None)


@intrinsic(prefer_literal=True)
def load_element(typingctx, kind, address, swapped):
    """The element at `address` in the type it is computed in; `kind` is a literal dtype name."""
    name = literal(kind)
    if name is None:
        return None
    bits, real = KINDS[name]

    def codegen(context, builder, sig, args):
        _, address, swapped = args
        raw = builder.load(_raw_pointer(builder, address, ir.IntType(bits)))
        raw.align = 1
        return decode(builder, _swapped_if(builder, raw, swapped), name)

    return real(kind, types.intp, types.boolean), codegen


@intrinsic(prefer_literal=True)
def store_element(typingctx, kind, address, value, swapped):
    """Round `value` to the dtype named by the literal `kind` and write it."""
    name = literal(kind)
    if name is None:
        return None
    real = KINDS[name][1]

    def codegen(context, builder, sig, args):
        _, address, value, swapped = args
        raw = _swapped_if(builder, encode(builder, value, name), swapped)
        builder.store(raw, _raw_pointer(builder, address, raw.type)).align = 1
        return context.get_dummy_value()

    return types.none(kind, types.intp, real, types.boolean), codegen


@intrinsic(prefer_literal=True)
def load_vector(typingctx, kind, address):
    """A vector of neighbouring elements in native byte order."""
    name = literal(kind)
    if name is None:
        return None
    bits, real = KINDS[name]
    vector = Vector(real)

    def codegen(context, builder, sig, args):
        stored = ir.VectorType(ir.IntType(bits), vector.lanes)
        raw = builder.load(_raw_pointer(builder, args[1], stored))
        raw.align = 1
        return decode(builder, raw, name)

    return vector(kind, types.intp), codegen


@intrinsic(prefer_literal=True)
def store_vector(typingctx, kind, address, vector):
    """Round a vector to the dtype named by the literal `kind` and write it in native byte order."""
    name = literal(kind)
    if name is None:
        return None

    def codegen(context, builder, sig, args):
        raw = encode(builder, args[2], name)
        builder.store(raw, _raw_pointer(builder, args[1], raw.type)).align = 1
        return context.get_dummy_value()

    return types.none(kind, types.intp, vector), codegen


@intrinsic(prefer_literal=True)
def load_some(typingctx, kind, address, count):
    """The first `count` lanes of `load_vector`, 0 in the others; nothing else is read."""
    name = literal(kind)
    if name is None:
        return None
    bits, real = KINDS[name]
    vector = Vector(real)

    def codegen(context, builder, sig, args):
        stored = ir.VectorType(ir.IntType(bits), vector.lanes)
        mask = lanes_below(builder, args[2], vector.lanes)
        raw = masked_load(builder, args[1], mask, ir.Constant(stored, None))
        return decode(builder, raw, name)

    return vector(kind, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def store_some(typingctx, kind, address, vector, count):
    """`store_vector` for the first `count` lanes; nothing else is touched."""
    name = literal(kind)
    if name is None:
        return None

    def codegen(context, builder, sig, args):
        raw = encode(builder, args[2], name)
        masked_store(builder, args[1], lanes_below(builder, args[3], vector.lanes), raw)
        return context.get_dummy_value()

    return types.none(kind, types.intp, vector, types.intp), codegen


@intrinsic(prefer_literal=True)
def stream_line(typingctx, kind, address, vectors):
    """A tuple of vectors, rounded, as one line around the caches; `address` is that of a line.

    Of float16 each vector alone would be stored by the instruction that converts it, through the
    caches: LLVM overlooks there what was asked for.
    """
    name = literal(kind)
    if name is None:
        return None

    def codegen(context, builder, sig, args):
        parts = cgutils.unpack_tuple(builder, args[2])
        raw = encode(builder, parts[0], name)
        if len(parts) == 2:
            lanes = 2 * raw.type.count
            both = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
            raw = builder.shuffle_vector(raw, encode(builder, parts[1], name), both)
        stored = builder.store(raw, _raw_pointer(builder, args[1], raw.type))
        stored.align = raw.type.count * raw.type.element.width // 8
        stored.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return context.get_dummy_value()

    return types.none(kind, types.intp, vectors), codegen


# Integers of any width: (bytes, signed) are run-time values, so one kernel reads them all


def _load_integer(builder, address, swapped, size, signed, lanes=None):
    """An i64 from 1, 2, 4 or 8 bytes; a uint64 above the int64 range becomes negative, no class.

    With `lanes` a vector of so many neighbours.
    """

    def shaped(ty):
        return ty if lanes is None else ir.VectorType(ty, lanes)

    i64 = shaped(ir.IntType(64))
    done = builder.append_basic_block("loaded")
    found = []
    wrong = builder.append_basic_block("other_size")
    choice = builder.switch(size, wrong)
    for width in (8, 16, 32, 64):
        block = builder.append_basic_block(f"load{width}")
        choice.add_case(ir.IntType(64)(width // 8), block)
        builder.position_at_end(block)
        raw = builder.load(_raw_pointer(builder, address, shaped(ir.IntType(width))))
        raw.align = 1
        value = raw = _swapped_if(builder, raw, swapped)
        if width < 64:
            value = builder.select(signed, builder.sext(raw, i64), builder.zext(raw, i64))
        found.append((value, builder.block))
        builder.branch(done)
    builder.position_at_end(wrong)
    builder.branch(done)
    builder.position_at_end(done)
    result = builder.phi(i64)
    for value, block in [*found, (_constant(i64, -(2**63)), wrong)]:
        result.add_incoming(value, block)
    return result


@intrinsic
def load_integer(typingctx, address, size, signed, swapped):
    """The integer of `size` bytes at `address`, modulo 2**64."""

    def codegen(context, builder, sig, args):
        address, size, signed, swapped = args
        return _load_integer(builder, address, swapped, size, signed)

    return types.int64(types.intp, types.intp, types.boolean, types.boolean), codegen


@intrinsic
def load_indices(typingctx, address, size, signed, swapped, ignored, has_ignored, n_classes):
    """Sixteen neighbouring class indices as float32 lanes; -1: ignored, -2: no class."""
    lanes = LANES[types.float32]

    def codegen(context, builder, sig, args):
        address, size, signed, swapped, ignored, has_ignored, n_classes = args
        y = _load_integer(builder, address, swapped, size, signed, lanes)
        is_ignored = builder.icmp_signed("==", y, spread(builder, ignored, lanes))
        is_ignored = builder.and_(is_ignored, spread(builder, has_ignored, lanes))
        is_class = builder.icmp_unsigned("<", y, spread(builder, n_classes, lanes))
        vector = ir.VectorType(F32, lanes)
        index = builder.select(is_class, builder.sitofp(y, vector), _constant(vector, -2.0))
        return builder.select(is_ignored, _constant(vector, -1.0), index)

    flag, number = types.boolean, types.intp
    signature = Vector(types.float32)(number, number, flag, flag, types.int64, flag, number)
    return signature, codegen


@intrinsic
def put(typingctx, address, value):
    """Write a float64, float32 or int64 scalar."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], _raw_pointer(builder, args[0], args[1].type)).align = 1
        return context.get_dummy_value()

    return types.none(types.intp, value), codegen


@intrinsic
def get(typingctx, address, like):
    """Read a scalar of the type of `like`."""

    def codegen(context, builder, sig, args):
        loaded = builder.load(_raw_pointer(builder, args[0], args[1].type))
        loaded.align = 1
        return loaded

    return like(types.intp, like), codegen


@intrinsic
def atomic_add(typingctx, address, number):
    """Add to the int64 at `address` as one indivisible step; returns what it was."""

    def codegen(context, builder, sig, args):
        pointer = _raw_pointer(builder, args[0], ir.IntType(64))
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen
