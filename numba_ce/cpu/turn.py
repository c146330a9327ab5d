"""Sixteen rows at a time: from neighbouring classes to one vector for each class, and back.

The elements of a row are neighbours, but lanes that run across rows need those of a class side by
side. Both directions are the transposition of a block in registers, log2(16) stages of shuffles.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_ce.cpu.element import KINDS, decode, encode, literal
from numba_ce.cpu.memory import masked_load, masked_store
from numba_ce.cpu.vector import F32, F64, I32, I64, SIXTEEN, VECTOR_BYTES, lanes_below

ROWS = SIXTEEN
# Classes of a block, for each of which there is code: fewer need fewer shuffles
BLOCK_CLASSES = (4, 8, 16)


def _lanes(values):
    return ir.Constant(ir.VectorType(I32, ROWS), values)


def _turned(builder, rows):
    """The transposition of 16 vectors of 16 lanes (Eklundh 1972); unused results cost nothing.

    Stage s exchanges, between rows i and i + s, the lanes with bit s set in the one and not set in
    the other.
    """
    rows = list(rows)
    for s in (8, 4, 2, 1):
        upper = _lanes([lane if not lane & s else ROWS + lane - s for lane in range(ROWS)])
        lower = _lanes([lane + s if not lane & s else ROWS + lane for lane in range(ROWS)])
        for i in range(ROWS):
            if not i & s:
                a, b = rows[i], rows[i + s]
                rows[i] = builder.shuffle_vector(a, b, upper)
                rows[i + s] = builder.shuffle_vector(a, b, lower)
    return rows


def _row(builder, address, stride, i):
    return builder.add(address, builder.mul(stride, I64(i)))


def _computed(name):
    """The LLVM vector of sixteen rows in the type that a dtype is computed in."""
    return ir.VectorType(F32 if KINDS[name][1] == types.float32 else F64, ROWS)


def _class_pointer(builder, tile, c, vector):
    bytes_ = ROWS * (4 if vector.element == F32 else 8)
    return builder.inttoptr(builder.add(tile, I64(c * bytes_)), vector.as_pointer())


@intrinsic(prefer_literal=True)
def load_turned(typingctx, kind, block, source, stride, count, tile):
    """tile[c] = class c of sixteen rows at `source`, `stride` bytes apart, for c < `block`.

    count : classes of the rows from `source` on; nothing beyond them is read
    """
    name, classes = literal(kind), literal(block)
    if name is None or classes is None:
        return None
    stored = ir.VectorType(ir.IntType(KINDS[name][0]), ROWS)

    def codegen(context, builder, sig, args):
        _, _, source, stride, count, tile = args
        mask, zeros = lanes_below(builder, count, ROWS), ir.Constant(stored, None)
        rows = []
        for i in range(ROWS):
            raw = masked_load(builder, _row(builder, source, stride, i), mask, zeros)
            rows.append(decode(builder, raw, name))
        for c, vector in enumerate(_turned(builder, rows)[:classes]):
            builder.store(
                vector, _class_pointer(builder, tile, c, vector.type)
            ).align = VECTOR_BYTES
        return context.get_dummy_value()

    address = types.intp
    return types.none(kind, block, address, address, address, address), codegen


@intrinsic(prefer_literal=True)
def store_turned(typingctx, kind, block, target, stride, count, tile):
    """The reverse: sixteen rows at `target` = tile[c] for c < `count` <= `block`."""
    name, classes = literal(kind), literal(block)
    if name is None or classes is None:
        return None

    def codegen(context, builder, sig, args):
        _, _, target, stride, count, tile = args
        mask = lanes_below(builder, count, ROWS)
        computed = _computed(name)
        undefined = ir.Constant(computed, ir.Undefined)
        loaded = [builder.load(_class_pointer(builder, tile, c, computed)) for c in range(classes)]
        for vector in loaded:
            vector.align = VECTOR_BYTES
        for i, row in enumerate(_turned(builder, loaded + [undefined] * (ROWS - classes))):
            raw = encode(builder, row, name)
            masked_store(builder, _row(builder, target, stride, i), mask, raw)
        return context.get_dummy_value()

    address = types.intp
    return types.none(kind, block, address, address, address, address), codegen
