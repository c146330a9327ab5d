"""From neighbouring classes to neighbouring rows, and back.

The elements of a row are neighbours, but lanes that run across rows need those of a class side by
side; in an array whose class axis is not the last one it is the other way round. Both directions
are the transposition of a block in registers, log2(16) stages of shuffles.
"""

from functools import lru_cache

from llvmlite import ir
from numba import types

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.simd.element import KINDS, decode, encode
from numba_ce.cpu.simd.lowered import Literal, lowered
from numba_ce.cpu.simd.memory import masked_load, masked_store
from numba_ce.cpu.simd.vector import F32, F64, I1, I32, I64, ROWS_ACROSS, VECTOR_BYTES, lanes_below

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
    return ir.VectorType(F32 if KINDS[name][1] == types.float32 else F64, ROWS_ACROSS)


def _class_pointer(builder, tile, c, vector):
    bytes_ = ROWS_ACROSS * (4 if vector.element == F32 else 8)
    return builder.inttoptr(builder.add(tile, I64(c * bytes_)), vector.as_pointer())


@lowered
def load_turned(
    kind: Literal,
    block: Literal,
    source: types.intp,
    stride: types.intp,
    count: types.intp,
    tile: types.intp,
):
    """tile[c] = class c of sixteen rows at `source`, `stride` bytes apart, for c < `block`.

    count : classes of the rows from `source` on; nothing beyond them is read
    """
    stored = ir.VectorType(ir.IntType(KINDS[kind][0]), ROWS_ACROSS)

    def build(builder, _kind, _block, source, stride, count, tile):
        mask, zeros = lanes_below(builder, count, ROWS_ACROSS), ir.Constant(stored, None)
        rows = []
        for i in range(ROWS_ACROSS):
            raw = masked_load(builder, _row(builder, source, stride, i), mask, zeros)
            rows.append(decode(builder, raw, kind))
        for c, vector in enumerate(_turned(builder, rows)[:block]):
            builder.store(
                vector, _class_pointer(builder, tile, c, vector.type)
            ).align = VECTOR_BYTES

    return types.none, build


@lowered
def store_turned(
    kind: Literal,
    block: Literal,
    target: types.intp,
    stride: types.intp,
    count: types.intp,
    tile: types.intp,
):
    """The reverse: sixteen rows at `target` = tile[c] for c < `count` <= `block`."""

    def build(builder, _kind, _block, target, stride, count, tile):
        mask = lanes_below(builder, count, ROWS_ACROSS)
        computed = _computed(kind)
        undefined = ir.Constant(computed, ir.Undefined)
        loaded = [builder.load(_class_pointer(builder, tile, c, computed)) for c in range(block)]
        for vector in loaded:
            vector.align = VECTOR_BYTES
        for i, row in enumerate(_turned(builder, loaded + [undefined] * (ROWS_ACROSS - block))):
            raw, at = encode(builder, row, kind), _row(builder, target, stride, i)
            if block == 1:
                # LLVM makes four bytes of a masked store of one known lane of two bytes
                element = builder.extract_element(raw, ir.Constant(I32, 0))
                builder.store(element, builder.inttoptr(at, element.type.as_pointer())).align = 1
            else:
                masked_store(builder, at, mask, raw)

    return types.none, build


def _picked(builder, vectors, elements):
    """The sixteen elements with these numbers, counted through all vectors."""
    found = ir.Constant(vectors[0].type, ir.Undefined)
    for n, vector in enumerate(vectors):
        lanes = [
            i if e // ROWS_ACROSS < n else ROWS_ACROSS + e % ROWS_ACROSS
            for i, e in enumerate(elements)
        ]
        mask = ir.Constant(ir.VectorType(I32, ROWS_ACROSS), lanes)
        found = builder.shuffle_vector(found, vector, mask)
    return found


@lowered
def load_packed(kind: Literal, classes: Literal, source: types.intp, tile: types.intp):
    """`load_turned` for sixteen rows side by side: as many loads as classes instead of sixteen."""
    stored = ir.VectorType(ir.IntType(KINDS[kind][0]), ROWS_ACROSS)

    def build(builder, _kind, _block, source, tile):
        vectors = []
        for n in range(classes):
            at = builder.add(source, I64(n * ROWS_ACROSS * KINDS[kind][0] // 8))
            raw = builder.load(builder.inttoptr(at, stored.as_pointer()))
            raw.align = 1
            vectors.append(decode(builder, raw, kind))
        for c in range(classes):
            vector = _picked(builder, vectors, [i * classes + c for i in range(ROWS_ACROSS)])
            pointer = _class_pointer(builder, tile, c, vector.type)
            builder.store(vector, pointer).align = VECTOR_BYTES

    return types.none, build


@lowered
def store_packed(kind: Literal, classes: Literal, target: types.intp, tile: types.intp):
    """The reverse."""
    stored = ir.VectorType(ir.IntType(KINDS[kind][0]), ROWS_ACROSS)

    def build(builder, _kind, _block, target, tile):
        computed = _computed(kind)
        loaded = [builder.load(_class_pointer(builder, tile, c, computed)) for c in range(classes)]
        for vector in loaded:
            vector.align = VECTOR_BYTES
        for n in range(classes):
            numbers = range(n * ROWS_ACROSS, (n + 1) * ROWS_ACROSS)
            elements = [e % classes * ROWS_ACROSS + e // classes for e in numbers]
            raw = encode(builder, _picked(builder, loaded, elements), kind)
            at = builder.add(target, I64(n * ROWS_ACROSS * KINDS[kind][0] // 8))
            builder.store(raw, builder.inttoptr(at, stored.as_pointer())).align = 1

    return types.none, build


@lowered
def _transpose_block(
    size: Literal,
    source: types.intp,
    pitch: types.intp,
    n_lines: types.intp,
    n_columns: types.intp,
    target: types.intp,
    target_pitch: types.intp,
):
    """`make_transpose` for the first block of lines and columns."""
    n = BLOCK[size]
    vector = ir.VectorType(ir.IntType(size * 8), n)

    def build(builder, _, source, pitch, n_lines, n_columns, target, target_pitch):
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

    return types.none, build


@lru_cache
def make_transpose(size):
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
