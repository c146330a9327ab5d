"""From neighbouring classes to neighbouring rows, and back.

The elements of a row are neighbours, but lanes that run across rows need those of a class side by
side; in an array whose class axis is not the last one it is the other way round. Both directions
are the transposition of a block in registers, log2(n) stages of shuffles for n lanes.
"""

from functools import lru_cache

from llvmlite import ir
from numba import types

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.simd.element import KINDS, decode, encode
from numba_ce.cpu.simd.lowered import Literal, lowered
from numba_ce.cpu.simd.memory import load_raw, masked_load, masked_store, pointer, store_raw
from numba_ce.cpu.simd.vector import F32, F64, I1, I32, I64, lanes_below
from numba_ce.cpu.simd.width import CHEAP_MASKS, ROWS_ACROSS, VECTOR_BITS

# Classes of a block, for each of which there is code: fewer need fewer shuffles. Up to
# EXACT_CLASSES a kernel knows how many there are: no loops over them, and rows side by side are
# read and written in whole vectors. 1.36 times the speed with 2 classes, 1.17 times with 5; with 7
# `load_turned` is as fast. The price: another kernel to compile for each of these numbers. Where
# masks are not cheap a kernel has to know it if there are fewer than LARGEST_BLOCK
LARGEST_BLOCK = 16 if CHEAP_MASKS else 8
EXACT_CLASSES = 5 if CHEAP_MASKS else LARGEST_BLOCK - 1
BLOCK_CLASSES = (*range(1, EXACT_CLASSES + 1), *range(8, LARGEST_BLOCK + 1, 8))
# Lines and columns of a block of elements of so many bytes: it has to fit the registers
BLOCK = {2: VECTOR_BITS // 32, 4: VECTOR_BITS // 32, 8: VECTOR_BITS // 64}


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


def _row(builder, address, stride, i, offset=0):
    return builder.add(builder.add(address, I64(offset)), builder.mul(stride, I64(i)))


def _resized(builder, vector, n):
    """The first n lanes; lanes beyond those of `vector` hold anything."""
    lanes = [min(i, vector.type.count) for i in range(n)]
    mask = ir.Constant(ir.VectorType(I32, n), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


class _Blocks:
    """A block of classes of the rows across, cut into squares that fit the registers."""

    def __init__(self, kind, block):
        bits, real = KINDS[kind]
        self.kind, self.size = kind, bits // 8
        self.element, self.width = (F32, 4) if real == types.float32 else (F64, 8)
        self.n = BLOCK[self.width]
        self.squares = [
            (row, c, min(self.n, block - c))
            for row in range(0, ROWS_ACROSS, self.n)
            for c in range(0, block, self.n)
        ]
        # LLVM makes four bytes of a masked store of one known lane of two bytes
        self.masked = CHEAP_MASKS and block > 1

    def in_tile(self, builder, tile, c, row, lanes=None):
        """Pointer to the class c of some rows, and how it is aligned."""
        at = builder.add(tile, I64((c * ROWS_ACROSS + row) * self.width))
        lanes = lanes or self.n
        return pointer(builder, at, ir.VectorType(self.element, lanes)), lanes * self.width

    def load_class(self, builder, tile, c, row, lanes=None):
        at, align = self.in_tile(builder, tile, c, row, lanes)
        loaded = builder.load(at)
        loaded.align = align
        return loaded

    def store_class(self, builder, vector, tile, c, row):
        at, align = self.in_tile(builder, tile, c, row, vector.type.count)
        builder.store(vector, at).align = align

    def stored(self, lanes):
        return ir.VectorType(ir.IntType(self.size * 8), lanes)


@lowered
def load_turned(
    kind: Literal,
    block: Literal,
    source: types.intp,
    stride: types.intp,
    count: types.intp,
    tile: types.intp,
):
    """tile[c] = class c of the rows at `source`, `stride` bytes apart, for c < `block`.

    count : classes of the rows from `source` on, `block` unless masks are cheap; nothing beyond
    them is read
    """
    blocks = _Blocks(kind, block)

    def build(builder, _kind, _block, source, stride, count, tile):
        for first, c, known in blocks.squares:
            mask = lanes_below(builder, builder.sub(count, I64(c)), blocks.n)
            rows = []
            for i in range(first, first + blocks.n):
                at = _row(builder, source, stride, i, c * blocks.size)
                if blocks.masked:
                    zeros = ir.Constant(blocks.stored(blocks.n), None)
                    raw = masked_load(builder, at, mask, zeros)
                else:
                    raw = load_raw(builder, at, blocks.stored(known))
                    raw = _resized(builder, raw, blocks.n)
                rows.append(decode(builder, raw, kind))
            for j, vector in enumerate(_turned(builder, rows)[:known]):
                blocks.store_class(builder, vector, tile, c + j, first)

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
    """The reverse: rows at `target` = tile[c] for c < `count` <= `block`."""
    blocks = _Blocks(kind, block)

    def build(builder, _kind, _block, target, stride, count, tile):
        for first, c, known in blocks.squares:
            mask = lanes_below(builder, builder.sub(count, I64(c)), blocks.n)
            loaded = [blocks.load_class(builder, tile, c + j, first) for j in range(known)]
            undefined = ir.Constant(loaded[0].type, ir.Undefined)
            turned = _turned(builder, loaded + [undefined] * (blocks.n - known))
            for i, row in enumerate(turned, first):
                raw = encode(builder, row, kind)
                at = _row(builder, target, stride, i, c * blocks.size)
                if blocks.masked:
                    masked_store(builder, at, mask, raw)
                else:
                    store_raw(builder, at, _resized(builder, raw, known))

    return types.none, build


def _picked(builder, vectors, elements):
    """The elements with these numbers, counted through all vectors."""
    n_lanes = len(elements)
    found = ir.Constant(vectors[0].type, ir.Undefined)
    for n, vector in enumerate(vectors):
        lanes = [i if e // n_lanes < n else n_lanes + e % n_lanes for i, e in enumerate(elements)]
        mask = ir.Constant(ir.VectorType(I32, n_lanes), lanes)
        found = builder.shuffle_vector(found, vector, mask)
    return found


@lowered
def load_packed(kind: Literal, classes: Literal, source: types.intp, tile: types.intp):
    """`load_turned` for rows side by side: only as many loads as classes."""
    blocks = _Blocks(kind, classes)

    def build(builder, _kind, _block, source, tile):
        vectors = []
        for n in range(classes):
            at = builder.add(source, I64(n * ROWS_ACROSS * blocks.size))
            vectors.append(decode(builder, load_raw(builder, at, blocks.stored(ROWS_ACROSS)), kind))
        for c in range(classes):
            vector = _picked(builder, vectors, [i * classes + c for i in range(ROWS_ACROSS)])
            blocks.store_class(builder, vector, tile, c, 0)

    return types.none, build


@lowered
def store_packed(kind: Literal, classes: Literal, target: types.intp, tile: types.intp):
    """The reverse."""
    blocks = _Blocks(kind, classes)

    def build(builder, _kind, _block, target, tile):
        loaded = [blocks.load_class(builder, tile, c, 0, ROWS_ACROSS) for c in range(classes)]
        for n in range(classes):
            numbers = range(n * ROWS_ACROSS, (n + 1) * ROWS_ACROSS)
            elements = [e % classes * ROWS_ACROSS + e // classes for e in numbers]
            raw = encode(builder, _picked(builder, loaded, elements), kind)
            store_raw(builder, builder.add(target, I64(n * ROWS_ACROSS * blocks.size)), raw)

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
