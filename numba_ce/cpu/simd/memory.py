"""Vectors in memory, which is named by byte addresses (``intp``), aligned to one byte at least."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_ce.cpu.simd.vector import (
    F64,
    I8,
    I32,
    I64,
    SIXTEEN,
    VECTOR_BYTES,
    Vector,
    lanes_below,
    llvm_type,
    spread,
    suffix,
)


def _pointer(builder, address, to):
    return builder.inttoptr(address, to.as_pointer())


def _load(vector, like):
    def codegen(context, builder, sig, args):
        loaded = builder.load(_pointer(builder, args[0], llvm_type(vector)))
        loaded.align = 1
        return loaded

    return vector(types.intp, like), codegen


@intrinsic
def load(typingctx, address, like):
    """The vector at `address`, of the element type of the scalar `like`."""
    return _load(Vector(like), like)


@intrinsic
def load_sixteen(typingctx, address, like):
    """Sixteen lanes at `address`, of the element type of the scalar `like`."""
    return _load(Vector(like, SIXTEEN), like)


@intrinsic
def store(typingctx, address, vector):
    """Write a vector to any address."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], _pointer(builder, args[0], llvm_type(vector))).align = 1
        return context.get_dummy_value()

    return types.none(types.intp, vector), codegen


def masked_load(builder, address, mask, other):
    """LLVM's load of the masked lanes at an i64; the others are those of `other`."""
    vector = other.type
    pointer = _pointer(builder, address, vector)
    kind = ir.FunctionType(vector, [pointer.type, I32, mask.type, vector])
    name = f"llvm.masked.load.{suffix(vector)}.p0"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [pointer, I32(1), mask, other])


def masked_store(builder, address, mask, value):
    """LLVM's store of the masked lanes at an i64."""
    vector = value.type
    pointer = _pointer(builder, address, vector)
    kind = ir.FunctionType(ir.VoidType(), [vector, pointer.type, I32, mask.type])
    name = f"llvm.masked.store.{suffix(vector)}.p0"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    builder.call(function, [value, pointer, I32(1), mask])


@intrinsic
def load_lanes(typingctx, address, mask, other):
    """The masked lanes at `address`, the lanes of `other` elsewhere; nothing else is read."""

    def codegen(context, builder, sig, args):
        return masked_load(builder, *args)

    return other(types.intp, mask, other), codegen


@intrinsic
def store_lanes(typingctx, address, mask, vector):
    """Write the masked lanes; nothing else is touched."""

    def codegen(context, builder, sig, args):
        masked_store(builder, *args)
        return context.get_dummy_value()

    return types.none(types.intp, mask, vector), codegen


@intrinsic(prefer_literal=True)
def move_some(typingctx, width, source, target, count):
    """Copy `count` elements of `width` bytes, at most a vector of them; nothing else is touched."""
    bytes_ = getattr(width, "literal_value", None)
    if bytes_ is None:
        return None
    vector = ir.VectorType(ir.IntType(bytes_ * 8), VECTOR_BYTES // bytes_)

    def codegen(context, builder, sig, args):
        _, source, target, count = args
        mask = lanes_below(builder, count, vector.count)
        moved = masked_load(builder, source, mask, ir.Constant(vector, None))
        masked_store(builder, target, mask, moved)
        return context.get_dummy_value()

    return types.none(width, types.intp, types.intp, types.intp), codegen


@intrinsic
def store_whole_numbers(typingctx, address, mask, vector):
    """Write the masked lanes, whole numbers, as int64."""

    def codegen(context, builder, sig, args):
        address, mask, value = args
        value = builder.fptosi(value, ir.VectorType(I64, vector.lanes))
        masked_store(builder, address, mask, value)
        return context.get_dummy_value()

    return types.none(types.intp, mask, vector), codegen


@intrinsic
def gather_float64(typingctx, address, index):
    """Of each lane of a vector of whole numbers the float64 with that index, 0 below index 0."""
    lanes = index.lanes

    def codegen(context, builder, sig, args):
        found, pointers = ir.VectorType(F64, lanes), ir.VectorType(F64.as_pointer(), lanes)
        integers, zero = ir.VectorType(I64, lanes), ir.Constant(args[1].type, [0.0] * lanes)
        here = builder.fcmp_ordered(">=", args[1], zero)
        offsets = builder.mul(builder.fptosi(args[1], integers), ir.Constant(integers, [8] * lanes))
        addresses = builder.add(offsets, spread(builder, args[0], lanes))
        kind = ir.FunctionType(found, [pointers, I32, here.type, found])
        name = f"llvm.masked.gather.v{lanes}f64.v{lanes}p0"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        nothing = ir.Constant(found, [0.0] * lanes)
        return builder.call(
            function, [builder.inttoptr(addresses, pointers), I32(8), here, nothing]
        )

    return Vector(types.float64, lanes)(types.intp, index), codegen


def _prefetch(builder, address, writes):
    pointer = I8.as_pointer()
    function = builder.module.declare_intrinsic(
        "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    )
    keep_close, data = I32(3), I32(1)
    builder.call(function, [_pointer(builder, address, I8), I32(writes), keep_close, data])


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line of `address`, which may lie outside every array."""

    def codegen(context, builder, sig, args):
        _prefetch(builder, args[0], 0)
        return context.get_dummy_value()

    return types.none(types.intp), codegen


@intrinsic
def prefetch_to_write(typingctx, address):
    """The same, as the owner of the line."""

    def codegen(context, builder, sig, args):
        _prefetch(builder, args[0], 1)
        return context.get_dummy_value()

    return types.none(types.intp), codegen


@intrinsic
def fence(typingctx):
    """Make streamed stores visible before anything that follows."""

    def codegen(context, builder, sig, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen
