"""Instructions on which lanes meet: shuffles, votes, barriers, mbarriers, clusters.

A statement here is a block of its own (ALONE). `converge` asks the scheduler to collect the lanes
of a warp first; `end` names what happens in the scheduler afterwards (barriers.py).
"""

from __future__ import annotations

import numpy as np

from .access import Access, store
from .apply import BOOL, U32, U64
from .fault import Unsupported
from .parse import DTYPES, Address, Vector
from .slots import BATCH, LANE, PLACE, WARP

ALONE = {
    "shfl", "vote", "activemask", "bar", "barrier", "mbarrier", "fence", "membar",
}  # fmt: skip


def _collect(program, mask):
    """The lanes of the mask (an operand, or None: the whole warp) have to arrive together."""
    for slot in (LANE, WARP, PLACE):
        program.use(slot)
    program.block.converge = "warp" if mask is None else program.slot(mask, U32)


# ------------------------------------------------------------------ exchange within a warp


def positions(R):
    """For finding lanes: warp * 32 + place in the warp, ascending."""
    return R[WARP] * 32 + R[PLACE]


def _full_warps(R):
    """Whether the lanes are whole warps: they are in order, so that the ends of 32 tell."""
    warp = R[WARP]
    return warp.size % 32 == 0 and (warp[::32] == warp[31::32]).all()


def _shfl(program, statement):
    mode = statement.op[2]
    target, source, b, c, mask = statement.operands
    _collect(program, mask)
    value = program.fetch(source, U32)
    fetch_b, fetch_c = program.fetch(b, U32), program.fetch(c, U32)
    first, second = target if isinstance(target, tuple) else (target, None)
    put = program.put(first, U32)
    put_valid = program.put(second, BOOL) if second is not None else None

    def closure(R):
        place = R[PLACE]
        operand = fetch_b(R).astype(np.int64) & 31
        control = fetch_c(R).astype(np.int64)
        segment = control >> 8 & 31
        clamp = control & 31
        first = place & segment
        last = first | clamp & ~segment
        if mode == "up":
            wanted = place - operand
            valid = wanted >= last
        elif mode == "idx":
            wanted = first | operand & ~segment
            valid = wanted <= last
        else:
            wanted = place + operand if mode == "down" else place ^ operand
            valid = wanted <= last
        wanted = np.where(valid, wanted, place)
        values = value(R)
        if values.ndim:
            if _full_warps(R):
                where = np.arange(place.size) - place + wanted
            else:
                known = positions(R)
                key = R[WARP] * 32 + wanted
                where = np.minimum(np.searchsorted(known, key), known.size - 1)
                absent = known[where] != key
                if absent.any():
                    text = "shuffle from a lane that does not take part"
                    R[BATCH].fault(statement, R, absent, text)
            values = values[where]
        put(R, values)
        if put_valid:
            put_valid(R, valid)

    program.emit(closure)


def _per_warp(R):
    """(index of each lane's warp among those present, number of warps)"""
    warps, which = np.unique(R[WARP], return_inverse=True)
    return which, warps.size


def _ballot(R, predicate):
    which, count = _per_warp(R)
    bits = np.zeros(count, U32)
    chosen = np.broadcast_to(predicate, which.shape)
    np.bitwise_or.at(bits, which[chosen], (U32.type(1) << R[PLACE].astype(U32))[chosen])
    return bits[which]


def _vote(program, statement):
    mode = statement.op[2]
    target, source, mask = statement.operands
    _collect(program, mask)
    if isinstance(source, tuple):
        inner = program.fetch(source[1], BOOL)
        predicate = lambda R: np.logical_not(inner(R))
    else:
        predicate = program.fetch(source, BOOL)
    put = program.put(target, U32 if mode == "ballot" else BOOL)

    def closure(R):
        chosen = _ballot(R, predicate(R))
        if mode == "ballot":
            put(R, chosen)
            return
        everybody = _ballot(R, np.True_)
        put(
            R,
            {
                "all": lambda: chosen == everybody,
                "any": lambda: chosen != 0,
                "uni": lambda: (chosen == everybody) | (chosen == 0),
            }[mode](),
        )

    program.emit(closure)


def _activemask(program, statement):
    for slot in (WARP, PLACE):
        program.use(slot)
    put = program.put(statement.operands[0], U32)
    program.emit(lambda R: put(R, _ballot(R, np.True_)))


# ------------------------------------------------------------------ barriers


def _bar(program, statement):
    op = [f for f in statement.op if f not in ("cta",)]
    if op[1] == "warp":
        _collect(program, statement.operands[0])
        return
    if op[1] == "cluster":
        if "aligned" in op:
            _collect(program, None)
        program.use(LANE)
        program.end_block("cluster arrive" if "arrive" in op else "cluster wait", op)
        return
    if op[0] == "bar" or "aligned" in op:
        _collect(program, None)
    program.use(LANE)
    operands = list(statement.operands)
    reduction = None
    if "red" in op:
        name = op[2]
        target, predicate = operands.pop(0), operands.pop()
        if isinstance(predicate, tuple):
            inner = program.slot(predicate[1], BOOL)
            negated = True
        else:
            inner, negated = program.slot(predicate, BOOL), False
        program.block.late = program.target(target)
        reduction = name, program.block.late, inner, negated
    slots = [program.slot(o, U32) for o in operands] or [program.constant(U32.type(0))]
    program.end_block("barrier", (slots, "arrive" in op, reduction))


def _fence(program, statement):
    for slot in (LANE, WARP):
        program.use(slot)
    if statement.op[1] in ("mbarrier_init", "proxy"):
        return

    def closure(R):
        if R[BATCH].clocks is not None:
            R[BATCH].clocks.fence(np.unique(R[WARP]))

    program.emit(closure)


# ------------------------------------------------------------------ mbarriers


def _mbarrier(program, statement):
    op = statement.op
    name = op[1]
    operands = list(statement.operands)
    wait = name in ("test_wait", "try_wait")
    returns = wait or name.startswith("arrive") or name == "pending_count"
    if name == "pending_count":
        raise Unsupported(str(statement))
    target = operands.pop(0) if returns and not isinstance(operands[0], Address) else None
    location = operands.pop(0)
    access = Access(program, statement, "shared", 8, "mbarrier", location)
    if not any(f.startswith("shared") for f in op):
        access.space = "generic"
    if wait:
        dtype = U32 if "parity" in op else U64
    else:
        dtype = U32
    fetches = [program.fetch(o, dtype) for o in operands if not isinstance(o, Address)]
    put = None
    if target is not None:
        put = program.put(target, BOOL if wait else U64)
    relaxed = "relaxed" in op
    expect = "expect_tx" in op
    action = {"init": "init", "inval": "inval", "expect_tx": "expect"}.get(name, name)
    parity = "parity" in op

    def closure(R):
        batch = R[BATCH]
        values = [fetch(R) for fetch in fetches]
        result = batch.mbarriers.execute(
            access, R, action, values, expect=expect, parity=parity, relaxed=relaxed
        )
        if put is not None:
            put(R, result)

    program.emit(closure)
    if wait:
        slot = program.register(target)
        # Lanes that do not find the phase complete sleep until some phase completes.
        program.end_block("poll", slot)


def _store(program, statement):
    if "async" in statement.op:
        _store_async(program, statement)
    else:
        store(program, statement)


def _store_async(program, statement):
    """st.async: a store to another block that also reports its bytes to an mbarrier there."""
    op = statement.op
    count = next((int(f[1:]) for f in op if f in ("v2", "v4")), 1)
    dtype = DTYPES[op[-1]]
    location, source, barrier = statement.operands
    access = Access(program, statement, "shared", dtype.itemsize * count, "async", location)
    signal = Access(program, statement, "shared", 8, "mbarrier", barrier)
    items = source.items if isinstance(source, Vector) else (source,)
    fetches = [program.fetch(item, dtype) for item in items]

    def closure(R):
        lanes = R[LANE].size
        values = [np.broadcast_to(fetch(R), lanes) for fetch in fetches]
        words = np.ascontiguousarray(np.stack(values, axis=1))
        R[BATCH].messages.send(access, signal, R, words)

    program.emit(closure)


HANDLERS = {
    "shfl": _shfl,
    "vote": _vote,
    "activemask": _activemask,
    "bar": _bar,
    "barrier": _bar,
    "fence": _fence,
    "membar": _fence,
    "mbarrier": _mbarrier,
    "st": _store,
}
