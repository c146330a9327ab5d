"""The sum of float64 numbers in the order in which NumPy adds them up: the same bits."""

import numpy as np

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.simd.element import get, put

PAIRWISE = 128  # more are the sums of two halves
FRAME_BYTES, LEVELS = 32, 64  # of a half that waits for the other one
STACK_BYTES = FRAME_BYTES * LEVELS
I0 = np.int64(0)


@inner
def _sum_of_few(address, n):
    if n < 8:
        total = -0.0
        for i in range(n):
            total += get(address + 8 * i, 0.0)
        return total
    a, b = get(address, 0.0), get(address + 8, 0.0)
    c, d = get(address + 16, 0.0), get(address + 24, 0.0)
    e, f = get(address + 32, 0.0), get(address + 40, 0.0)
    g, h = get(address + 48, 0.0), get(address + 56, 0.0)
    whole = n - n % 8
    for i in range(8, whole, 8):
        at = address + 8 * i
        a += get(at, 0.0)
        b += get(at + 8, 0.0)
        c += get(at + 16, 0.0)
        d += get(at + 24, 0.0)
        e += get(at + 32, 0.0)
        f += get(at + 40, 0.0)
        g += get(at + 48, 0.0)
        h += get(at + 56, 0.0)
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, n):
        total += get(address + 8 * i, 0.0)
    return total


@inner
def sum_of(address, n, stack):
    """The sum of `n` numbers.

    stack : address of STACK_BYTES, which more than PAIRWISE numbers need
    """
    if n <= PAIRWISE:
        return _sum_of_few(address, n)
    # A frame: where a part begins, its length, whether its first half is done, and that sum
    put(stack, address)
    put(stack + 8, n)
    put(stack + 16, I0)
    frame, total = stack, 0.0
    while frame >= stack:
        start, length = get(frame, I0), get(frame + 8, I0)
        if length > PAIRWISE:
            half = length // 2
            half -= half % 8
            if get(frame + 16, I0) == 0:
                put(frame + 16, I0 + 1)
                put(frame + FRAME_BYTES, start)
                put(frame + FRAME_BYTES + 8, half)
            elif get(frame + 16, I0) == 1:
                put(frame + 16, I0 + 2)
                put(frame + 24, total)
                put(frame + FRAME_BYTES, start + 8 * half)
                put(frame + FRAME_BYTES + 8, length - half)
            else:
                total = get(frame + 24, 0.0) + total
                frame -= FRAME_BYTES
                continue
            frame += FRAME_BYTES
            put(frame + 16, I0)
        else:
            total = _sum_of_few(start, length)
            frame -= FRAME_BYTES
    return total
