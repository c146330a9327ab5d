"""Vectors in memory, which is named by byte addresses (``intp``), aligned to one byte at least."""

from llvmlite import ir
from numba import types

from numba_ce.cpu.compile.numba_core import call_named
from numba_ce.cpu.simd.lowered import Literal, lowered
from numba_ce.cpu.simd.vector import (
    F64,
    I8,
    I32,
    I64,
    VECTOR_BYTES,
    Vector,
    lanes_below,
    llvm_type,
    spread,
    suffix,
)
from numba_ce.cpu.simd.width import CHEAP_MASKS, ROWS_ACROSS


def pointer(builder, address, to):
    """An i64 as a pointer to an LLVM type."""
    return builder.inttoptr(address, to.as_pointer())


def load_raw(builder, address, to):
    """What is at an i64, aligned or not."""
    loaded = builder.load(pointer(builder, address, to))
    loaded.align = 1
    return loaded


def store_raw(builder, address, value):
    """Write to an i64, aligned or not."""
    builder.store(value, pointer(builder, address, value.type)).align = 1


@lowered
def load(address: types.intp, like):
    """The vector at `address`, of the element type of the scalar `like`."""
    vector = Vector(like)
    return vector, lambda builder, address, _: load_raw(builder, address, llvm_type(vector))


@lowered
def load_rows(address: types.intp, like):
    """A lane for each of the rows across, of the element type of the scalar `like`."""
    vector = Vector(like, ROWS_ACROSS)
    return vector, lambda builder, address, _: load_raw(builder, address, llvm_type(vector))


@lowered
def load_lanes(address: types.intp, like):
    """The vector at `address`, of the type of the vector `like`."""
    return like, lambda builder, address, _: load_raw(builder, address, llvm_type(like))


@lowered
def store(address: types.intp, vector):
    """Write a vector to any address."""
    return types.none, store_raw


def masked_load(builder, address, mask, other):
    """LLVM's load of the masked lanes at an i64; the others are those of `other`."""
    vector = other.type
    at = pointer(builder, address, vector)
    name = f"llvm.masked.load.{suffix(vector)}.p0"
    return call_named(builder, name, vector, at, I32(1), mask, other)


def masked_store(builder, address, mask, value):
    """Write the masked lanes at an i64; where masks are not cheap, mostly without them."""
    if CHEAP_MASKS:
        _masked_store(builder, address, mask, value)
        return
    bits = ir.IntType(mask.type.count)
    is_whole = builder.icmp_unsigned("==", builder.bitcast(mask, bits), bits(-1))
    with builder.if_else(is_whole, likely=True) as (whole, some):
        with whole:
            store_raw(builder, address, value)
        with some:
            _masked_store(builder, address, mask, value)


def _masked_store(builder, address, mask, value):
    """LLVM's store of the masked lanes at an i64."""
    vector = value.type
    at = pointer(builder, address, vector)
    name = f"llvm.masked.store.{suffix(vector)}.p0"
    call_named(builder, name, ir.VoidType(), value, at, I32(1), mask)


@lowered
def store_lanes(address: types.intp, mask, vector):
    """Write the masked lanes; nothing else is touched."""
    return types.none, masked_store


@lowered
def move_some(width: Literal, source: types.intp, target: types.intp, count: types.intp):
    """Copy `count` elements of `width` bytes, at most a vector of them; nothing else is touched."""
    vector = ir.VectorType(ir.IntType(width * 8), VECTOR_BYTES // width)

    def build(builder, _, source, target, count):
        mask = lanes_below(builder, count, vector.count)
        moved = masked_load(builder, source, mask, ir.Constant(vector, None))
        masked_store(builder, target, mask, moved)

    return types.none, build


@lowered
def store_whole_numbers(address: types.intp, mask, vector):
    """Write the masked lanes, whole numbers below 2**51, as int64."""
    integers, magic = ir.VectorType(I64, vector.lanes), 1.5 * 2**52

    def build(builder, address, mask, value):
        # Few processors convert vectors of them: the sum has the integer in its low bits
        offset = ir.Constant(value.type, [magic] * vector.lanes)
        numbers = builder.bitcast(builder.fadd(value, offset), integers)
        numbers = builder.sub(numbers, builder.bitcast(offset, integers))
        masked_store(builder, address, mask, numbers)

    return types.none, build


@lowered
def gather_float64(address: types.intp, index):
    """Of each lane of a vector of whole numbers the float64 with that index, 0 below index 0."""
    lanes = index.lanes

    def build(builder, address, index):
        found, pointers = ir.VectorType(F64, lanes), ir.VectorType(F64.as_pointer(), lanes)
        integers, zero = ir.VectorType(I64, lanes), ir.Constant(index.type, [0.0] * lanes)
        here = builder.fcmp_ordered(">=", index, zero)
        offsets = builder.mul(builder.fptosi(index, integers), ir.Constant(integers, [8] * lanes))
        at = builder.inttoptr(builder.add(offsets, spread(builder, address, lanes)), pointers)
        name = f"llvm.masked.gather.v{lanes}f64.v{lanes}p0"
        others = ir.Constant(found, [0.0] * lanes)
        return call_named(builder, name, found, at, I32(8), here, others)

    return Vector(types.float64, lanes), build


def _prefetch(builder, address, writes):
    line = I8.as_pointer()
    function = builder.module.declare_intrinsic(
        "llvm.prefetch", [line], ir.FunctionType(ir.VoidType(), [line, I32, I32, I32])
    )
    keep_close, data = I32(3), I32(1)
    builder.call(function, [pointer(builder, address, I8), I32(writes), keep_close, data])


@lowered
def prefetch(address: types.intp):
    """Ask for the cache line of `address`, which may lie outside every array."""
    return types.none, lambda builder, address: _prefetch(builder, address, 0)


@lowered
def prefetch_to_write(address: types.intp):
    """The same, as the owner of the line."""
    return types.none, lambda builder, address: _prefetch(builder, address, 1)


@lowered
def fence():
    """Make streamed stores visible before anything that follows."""
    return types.none, lambda builder: builder.fence("seq_cst")
