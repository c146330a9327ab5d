"""Single elements and short vectors of any dtype and byte order, read from and written to memory.

16-bit numbers travel as integers: float16 goes through LLVM's conversions (one instruction each
on x86 with F16C, on ARM64), bfloat16 is the upper half of a float32.
"""

from llvmlite import ir
from numba import types

from numba_ce.cpu.compile.numba_core import call_named, unpack_tuple
from numba_ce.cpu.simd.lowered import Literal, lowered
from numba_ce.cpu.simd.memory import load_raw, masked_load, masked_store, pointer, store_raw
from numba_ce.cpu.simd.vector import F32, F64, I16, I32, LANES, Vector, lanes_below, spread
from numba_ce.cpu.simd.width import ROWS_ACROSS

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
    other = call_named(builder, f"llvm.bswap.{lanes}i{scalar.width}", raw.type, raw)
    return builder.select(swapped, other, raw)


@lowered
def load_element(kind: Literal, address: types.intp, swapped: types.boolean):
    """The element at `address` in the type it is computed in; `kind` is a literal dtype name."""
    bits, real = KINDS[kind]

    def build(builder, _, address, swapped):
        raw = load_raw(builder, address, ir.IntType(bits))
        return decode(builder, _swapped_if(builder, raw, swapped), kind)

    return real, build


@lowered
def store_element(kind: Literal, address: types.intp, value, swapped: types.boolean):
    """Round `value` to the dtype named by the literal `kind` and write it."""
    real = KINDS[kind][1]
    signature = types.none(types.literal(kind), types.intp, real, types.boolean)
    return signature, lambda builder, _, address, value, swapped: store_raw(
        builder, address, _swapped_if(builder, encode(builder, value, kind), swapped)
    )


def _stored(kind):
    """The LLVM vector of elements as they are stored that make a vector."""
    bits, real = KINDS[kind]
    return ir.VectorType(ir.IntType(bits), LANES[real])


@lowered
def load_vector(kind: Literal, address: types.intp):
    """A vector of neighbouring elements in native byte order."""
    return Vector(KINDS[kind][1]), lambda builder, _, address: decode(
        builder, load_raw(builder, address, _stored(kind)), kind
    )


@lowered
def load_stored_rows(kind: Literal, address: types.intp):
    """The same with a lane for each of the rows across."""
    bits, real = KINDS[kind]
    stored = ir.VectorType(ir.IntType(bits), ROWS_ACROSS)
    return Vector(real, ROWS_ACROSS), lambda builder, _, address: decode(
        builder, load_raw(builder, address, stored), kind
    )


@lowered
def store_vector(kind: Literal, address: types.intp, vector):
    """Round a vector to the dtype named by the literal `kind` and write it in native byte order."""
    return types.none, lambda builder, _, address, value: store_raw(
        builder, address, encode(builder, value, kind)
    )


@lowered
def load_some(kind: Literal, address: types.intp, count: types.intp):
    """The first `count` lanes of `load_vector`, 0 in the others; nothing else is read."""
    stored = _stored(kind)

    def build(builder, _, address, count):
        mask = lanes_below(builder, count, stored.count)
        return decode(builder, masked_load(builder, address, mask, ir.Constant(stored, None)), kind)

    return Vector(KINDS[kind][1]), build


@lowered
def store_some(kind: Literal, address: types.intp, vector, count: types.intp):
    """`store_vector` for the first `count` lanes; nothing else is touched."""

    def build(builder, _, address, value, count):
        raw = encode(builder, value, kind)
        masked_store(builder, address, lanes_below(builder, count, vector.lanes), raw)

    return types.none, build


@lowered
def stream_line(kind: Literal, address: types.intp, vectors):
    """A tuple of vectors, rounded, as one line around the caches; `address` is that of a line.

    Of float16 each vector alone would be stored by the instruction that converts it, through the
    caches: LLVM overlooks there what was asked for.
    """

    def build(builder, _, address, vectors):
        parts = unpack_tuple(builder, vectors)
        raw = encode(builder, parts[0], kind)
        if len(parts) == 2:
            lanes = 2 * raw.type.count
            both = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
            raw = builder.shuffle_vector(raw, encode(builder, parts[1], kind), both)
        stored = builder.store(raw, pointer(builder, address, raw.type))
        stored.align = raw.type.count * raw.type.element.width // 8
        stored.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))

    return types.none, build


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
        raw = load_raw(builder, address, shaped(ir.IntType(width)))
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


@lowered
def load_integer(
    address: types.intp, size: types.intp, signed: types.boolean, swapped: types.boolean
):
    """The integer of `size` bytes at `address`, modulo 2**64."""
    return types.int64, lambda builder, address, size, signed, swapped: _load_integer(
        builder, address, swapped, size, signed
    )


@lowered
def load_indices(
    address: types.intp,
    size: types.intp,
    signed: types.boolean,
    swapped: types.boolean,
    ignored: types.int64,
    has_ignored: types.boolean,
    n_classes: types.intp,
):
    """Class indices of neighbouring rows as float32 lanes; -1: ignored, -2: no class."""
    lanes = ROWS_ACROSS

    def build(builder, address, size, signed, swapped, ignored, has_ignored, n_classes):
        y = _load_integer(builder, address, swapped, size, signed, lanes)
        is_ignored = builder.icmp_signed("==", y, spread(builder, ignored, lanes))
        is_ignored = builder.and_(is_ignored, spread(builder, has_ignored, lanes))
        is_class = builder.icmp_unsigned("<", y, spread(builder, n_classes, lanes))
        vector = ir.VectorType(F32, lanes)
        # Few processors convert vectors of int64. Below 2**52 they are the last bits of a float64
        magic = _constant(ir.VectorType(F64, lanes), 2.0**52)
        exact = builder.bitcast(builder.or_(y, builder.bitcast(magic, y.type)), magic.type)
        index = builder.fptrunc(builder.fsub(exact, magic), vector)
        index = builder.select(is_class, index, _constant(vector, -2.0))
        return builder.select(is_ignored, _constant(vector, -1.0), index)

    return Vector(types.float32, lanes), build


@lowered
def put(address: types.intp, value):
    """Write a float64, float32 or int64 scalar."""
    return types.none, store_raw


@lowered
def get(address: types.intp, like):
    """Read a scalar of the type of `like`."""
    return like, lambda builder, address, like: load_raw(builder, address, like.type)


@lowered
def atomic_add(address: types.intp, number: types.int64):
    """Add to the int64 at `address` as one indivisible step; returns what it was."""
    return types.int64, lambda builder, address, number: builder.atomic_rmw(
        "add", pointer(builder, address, ir.IntType(64)), number, "seq_cst"
    )
