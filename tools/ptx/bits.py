"""Instructions on bits: logic, shifts, fields, permutations, counts."""

from __future__ import annotations

import numpy as np

from .apply import BOOL, U32, U64, apply, dtype_of, unsigned
from .fault import Unsupported
from .parse import Immediate

_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_BOOLEAN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _logic(program, statement):
    dtype = dtype_of(statement)
    table = _BOOLEAN if dtype == BOOL else _LOGIC
    target, a, b = statement.operands
    apply(program, table[statement.op[0]], target, dtype, (a, dtype), (b, dtype))


def _not(program, statement):
    dtype = dtype_of(statement)
    target, a = statement.operands
    apply(program, np.logical_not if dtype == BOOL else np.invert, target, dtype, (a, dtype))


def shift_left(a, count):
    """Counts are 32-bit and unsigned; those of the width or more clear everything."""
    bits = 8 * a.dtype.itemsize
    moved = a << (count & U32.type(bits - 1)).astype(a.dtype)
    return np.where(count < bits, moved, a.dtype.type(0))


def shift_right(a, count):
    bits = 8 * a.dtype.itemsize
    if a.dtype.kind == "i":
        return a >> np.minimum(count, U32.type(bits - 1)).astype(a.dtype)
    moved = a >> (count & U32.type(bits - 1)).astype(a.dtype)
    return np.where(count < bits, moved, a.dtype.type(0))


def _shift(program, statement):
    dtype = dtype_of(statement)
    target, a, count = statement.operands
    left = statement.op[0] == "shl"
    if isinstance(count, Immediate) and 0 <= count.value < 8 * dtype.itemsize:
        function = np.left_shift if left else np.right_shift
        count_type = dtype
    else:
        function = shift_left if left else shift_right
        count_type = U32
    apply(program, function, target, dtype, (a, dtype), (count, count_type))


def _funnel(program, statement):
    """shf.l and shf.r: 32 bits out of the 64 of a (low) and b (high)."""
    target, a, b, count = statement.operands
    left, wrap = "l" in statement.op, "wrap" in statement.op

    def funnel(a, b, count):
        n = (count & U32.type(31) if wrap else np.minimum(count, U32.type(32))).astype(U64)
        whole = b.astype(U64) << U64.type(32) | a
        if left:
            # n = 32 would be a shift by 64 of the pair: take the two steps apart.
            return (whole << n >> U64.type(32)).astype(U32)
        return (whole >> n).astype(U32)

    apply(program, funnel, target, U32, (a, U32), (b, U32), (count, U32))


def _lop3(program, statement):
    target, a, b, c, table = statement.operands[:5]
    if "pred" in statement.op or isinstance(target, tuple):
        raise Unsupported(str(statement))

    def lop3(a, b, c):
        result = a & U32.type(0)
        for case in range(8):
            if table.value >> case & 1:
                result = result | (
                    (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
                )
        return result

    apply(program, lop3, target, U32, (a, U32), (b, U32), (c, U32))


_PRMT_MODES = {
    "f4e": [(i, i + 1, i + 2, i + 3) for i in range(4)],
    "b4e": [(i, i - 1 & 7, i - 2 & 7, i - 3 & 7) for i in range(4)],
    "rc8": [(i, i, i, i) for i in range(4)],
    "ecl": [(i, max(i, 1), max(i, 2), 3) for i in range(4)],
    "ecr": [(0, min(i, 1), min(i, 2), i) for i in range(4)],
    "rc16": [(2 * (i & 1), 2 * (i & 1) + 1, 2 * (i & 1), 2 * (i & 1) + 1) for i in range(4)],
}


def _prmt(program, statement):
    target, a, b, selector = statement.operands
    mode = next((f for f in statement.op[1:] if f in _PRMT_MODES), None)

    def prmt(a, b, selector):
        whole = b.astype(U64) << U64.type(32) | a
        result = a & U32.type(0)
        for place in range(4):
            if mode:
                table = np.array([row[place] for row in _PRMT_MODES[mode]], U64)
                which, sign = table[selector & U32.type(3)], None
            else:
                nibble = selector >> U32.type(4 * place) & U32.type(15)
                which, sign = (nibble & U32.type(7)).astype(U64), nibble >> U32.type(3)
            byte = (whole >> (which << U64.type(3))).astype(np.uint8)
            if sign is not None and np.any(sign):
                spread = np.where(byte >> np.uint8(7), np.uint8(255), np.uint8(0))
                byte = np.where(sign != 0, spread, byte)
            result = result | byte.astype(U32) << U32.type(8 * place)
        return result

    apply(program, prmt, target, U32, (a, U32), (b, U32), (selector, U32))


def _bfe(program, statement):
    dtype = dtype_of(statement)
    target, a, start, length = statement.operands
    bits = 8 * dtype.itemsize

    def bfe(a, start, length):
        start, length = start & U32.type(255), length & U32.type(255)
        field = shift_right(a, start)
        if dtype.kind == "u":
            ones = ~shift_left(~(a & dtype.type(0)), length)
            return field & ones
        # Signed: bits beyond the end of a are copies of the last bit there is.
        spare = U32.type(bits) - np.minimum(length, U32.type(bits))
        moved = shift_right(shift_left(field.view(unsigned(dtype)), spare).view(dtype), spare)
        return np.where(length == 0, dtype.type(0), moved)

    apply(program, bfe, target, dtype, (a, dtype), (start, U32), (length, U32))


def _bfi(program, statement):
    dtype = dtype_of(statement)
    target, a, b, start, length = statement.operands

    def bfi(a, b, start, length):
        start, length = start & U32.type(255), length & U32.type(255)
        ones = ~shift_left(~(a & dtype.type(0)), length)
        mask = shift_left(ones, start)
        return (b & ~mask) | (shift_left(a, start) & mask)

    apply(program, bfi, target, dtype, (a, dtype), (b, dtype), (start, U32), (length, U32))


def popcount(x):
    return np.bitwise_count(x).astype(U32)


def leading_zeros(x):
    for step in (1, 2, 4, 8, 16, 32)[: 3 + {4: 2, 8: 3}[x.dtype.itemsize]]:
        x = x | x >> x.dtype.type(step)
    return U32.type(8 * x.dtype.itemsize) - popcount(x)


def reverse(x):
    bits = 8 * x.dtype.itemsize
    result = x & x.dtype.type(0)
    for place in range(bits):
        bit = x >> x.dtype.type(place) & x.dtype.type(1)
        result = result | bit << x.dtype.type(bits - 1 - place)
    return result


def _find(program, statement):
    """bfind: the place of the highest bit that counts; ~0 if there is none."""
    dtype = dtype_of(statement)
    target, a = statement.operands
    bits = U32.type(8 * dtype.itemsize)
    amount = "shiftamt" in statement.op

    def find(x):
        value = np.where(x < 0, ~x, x).view(unsigned(dtype)) if dtype.kind == "i" else x
        zeros = leading_zeros(value)
        place = zeros if amount else bits - U32.type(1) - zeros
        return np.where(zeros == bits, ~U32.type(0), place)

    apply(program, find, target, U32, (a, dtype))


def _unary(function, result=None):
    def handler(program, statement):
        dtype = dtype_of(statement)
        target, a = statement.operands
        apply(program, function, target, result or dtype, (a, dtype))

    return handler


HANDLERS = {
    **dict.fromkeys(("and", "or", "xor"), _logic),
    **dict.fromkeys(("shl", "shr"), _shift),
    "not": _not,
    "shf": _funnel,
    "lop3": _lop3,
    "prmt": _prmt,
    "bfe": _bfe,
    "bfi": _bfi,
    "bfind": _find,
    "popc": _unary(popcount, U32),
    "clz": _unary(leading_zeros, U32),
    "brev": _unary(reverse),
}
