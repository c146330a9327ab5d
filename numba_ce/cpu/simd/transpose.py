"""From neighbouring classes to neighbouring rows, and back.

The elements of a row are neighbours, but lanes that run across rows need those of a class side by
side; in an array whose class axis is not the last one it is the other way round. Both directions
are the transposition of a block in registers, log2(16) stages of shuffles.
"""

from functools import lru_cache

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.simd.element import KINDS, decode, encode, literal
from numba_ce.cpu.simd.memory import masked_load, masked_store
from numba_ce.cpu.simd.vector import F32, F64, I1, I32, I64, SIXTEEN, VECTOR_BYTES, lanes_below

ROWS = SIXTEEN
# Classes of a block, for each of which there is code: fewer need fewer shuffles. Up to
# EXACT_CLASSES a kernel knows how many there are: no loops over them, and rows side by side are
# read and written in whole vectors. 1.36 times the speed with 2 classes, 1.17 times with 5; with 7
# `load_turned` is as fast. The price: another kernel to compile for each of these numbers
EXACT_CLASSES = 5
BLOCK_CLASSES = (*range(1, EXACT_CLASSES + 1), 8, 16)
# Lines and columns of a block of elements of so many bytes: it has to fit the registers
BLOCK = {2: 16, 4: 16, 8: 8}


def _turned(builder, rows):
    """The transposition of n vectors of n lanes (Eklundh 1972); unused results cost nothing.

    Stage s exchanges, between rows i and i + s, the lanes with bit s set in the one and not set in
    the other.
    """
    rows = list(rows)
    n = len(rows)

    def lanes(values):
        return ir.Constant(ir.VectorType(I32, n), values)

    for s in (n >> stage for stage in range(1, n.bit_length())):
        upper = lanes([lane if not lane & s else n + lane - s for lane in range(n)])
        lower = lanes([lane + s if not lane & s else n + lane for lane in range(n)])
        for i in range(n):
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
            raw, at = encode(builder, row, name), _row(builder, target, stride, i)
            if classes == 1:
                # LLVM makes four bytes of a masked store of one known lane of two bytes
                element = builder.extract_element(raw, ir.Constant(I32, 0))
                builder.store(element, builder.inttoptr(at, element.type.as_pointer())).align = 1
            else:
                masked_store(builder, at, mask, raw)
        return context.get_dummy_value()

    address = types.intp
    return types.none(kind, block, address, address, address, address), codegen


def _picked(builder, vectors, elements):
    """The sixteen elements with these numbers, counted through all vectors."""
    found = ir.Constant(vectors[0].type, ir.Undefined)
    for n, vector in enumerate(vectors):
        lanes = [i if e // ROWS < n else ROWS + e % ROWS for i, e in enumerate(elements)]
        mask = ir.Constant(ir.VectorType(I32, ROWS), lanes)
        found = builder.shuffle_vector(found, vector, mask)
    return found


@intrinsic(prefer_literal=True)
def load_packed(typingctx, kind, classes, source, tile):
    """`load_turned` for sixteen rows side by side: as many loads as classes instead of sixteen."""
    name, count = literal(kind), literal(classes)
    if name is None or count is None:
        return None
    stored = ir.VectorType(ir.IntType(KINDS[name][0]), ROWS)

    def codegen(context, builder, sig, args):
        _, _, source, tile = args
        vectors = []
        for n in range(count):
            at = builder.add(source, I64(n * ROWS * KINDS[name][0] // 8))
            raw = builder.load(builder.inttoptr(at, stored.as_pointer()))
            raw.align = 1
            vectors.append(decode(builder, raw, name))
        for c in range(count):
            vector = _picked(builder, vectors, [i * count + c for i in range(ROWS)])
            pointer = _class_pointer(builder, tile, c, vector.type)
            builder.store(vector, pointer).align = VECTOR_BYTES
        return context.get_dummy_value()

    return types.none(kind, classes, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def store_packed(typingctx, kind, classes, target, tile):
    """The reverse."""
    name, count = literal(kind), literal(classes)
    if name is None or count is None:
        return None
    stored = ir.VectorType(ir.IntType(KINDS[name][0]), ROWS)

    def codegen(context, builder, sig, args):
        _, _, target, tile = args
        computed = _computed(name)
        loaded = [builder.load(_class_pointer(builder, tile, c, computed)) for c in range(count)]
        for vector in loaded:
            vector.align = VECTOR_BYTES
        for n in range(count):
            numbers = range(n * ROWS, (n + 1) * ROWS)
            elements = [e % count * ROWS + e // count for e in numbers]
            raw = encode(builder, _picked(builder, loaded, elements), name)
            at = builder.add(target, I64(n * ROWS * KINDS[name][0] // 8))
            builder.store(raw, builder.inttoptr(at, stored.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.none(kind, classes, types.intp, types.intp), codegen


@intrinsic(prefer_literal=True)
def _transpose_block(typingctx, size, source, pitch, lines, columns, target, target_pitch):
    """`transposer` for the first block of lines and columns."""
    bytes_ = literal(size)
    if bytes_ is None:
        return None
    n = BLOCK[bytes_]
    vector = ir.VectorType(ir.IntType(bytes_ * 8), n)

    def codegen(context, builder, sig, args):
        _, source, pitch, n_lines, n_columns, target, target_pitch = args
        nothing = ir.Constant(ir.VectorType(I1, n), None)

        def mask(i, count, lanes):
            return builder.select(builder.icmp_signed(">", count, I64(i)), lanes, nothing)

        lines, columns = lanes_below(builder, n_lines, n), lanes_below(builder, n_columns, n)
        zeros = ir.Constant(vector, None)
        block = [
            masked_load(builder, _row(builder, source, pitch, i), mask(i, n_lines, columns), zeros)
            for i in range(n)
        ]
        for i, line in enumerate(_turned(builder, block)):
            at = _row(builder, target, target_pitch, i)
            masked_store(builder, at, mask(i, n_columns, lines), line)
        return context.get_dummy_value()

    address = types.intp
    return types.none(size, *(address,) * 6), codegen


@lru_cache
def transposer(size):
    """The function that transposes a matrix of elements of so many bytes."""
    n = BLOCK[size]

    @inner
    def transpose(source, pitch, n_lines, n_columns, target, target_pitch):
        """target[column][line] = source[line][column]; pitch : bytes from line to line"""
        for i in range(0, n_lines, n):
            for j in range(0, n_columns, n):
                here, there = source + i * pitch + j * size, target + j * target_pitch + i * size
                _transpose_block(size, here, pitch, n_lines - i, n_columns - j, there, target_pitch)

    return transpose
