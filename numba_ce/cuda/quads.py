"""The part of a row that a thread keeps, as a tuple of quads (16 bytes, four words).

Tuples and not an array: elements of an array are registers only if the compiler happens to unroll
every loop over it first, and the one for sm_100 does not. A tuple has no memory. What is done to
every quad is put together from halves, so that a thread of eight quads needs four functions.
"""

from numba_ce.cuda.intrinsics import inner


def made(n, leaf):
    """From leaf(slot, *args) -> quad to the function (slot, *args) -> quads for n slots."""
    if n == 1:

        @inner
        def one(slot, *args):
            return (leaf(slot, *args),)

        return one
    k = n // 2
    half = made(k, leaf)

    @inner
    def both(slot, *args):
        return half(slot, *args) + half(slot + k, *args)

    return both


def over(n, leaf, combine):
    """The function (quads, slot, *args) that combines leaf(quad, slot, *args) over n quads."""
    if n == 1:

        @inner
        def one(quads, slot, *args):
            return leaf(quads[0], slot, *args)

        return one
    k = n // 2
    half = over(k, leaf, combine)

    @inner
    def both(quads, slot, *args):
        return combine(half(quads[:k], slot, *args), half(quads[k:], slot + k, *args))

    return both


@inner
def join(a, b):
    """For leaves that make quads: leaf(...) -> (quad,)."""
    return a + b


@inner
def add(a, b):
    """For leaves that make numbers."""
    return a + b
