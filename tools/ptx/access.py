"""Loads, stores and atomics of all address spaces."""

from __future__ import annotations

import numpy as np

from .apply import unsigned
from .fault import Unsupported
from .memory import (
    ALLOCATED,
    LOCAL_WINDOW,
    RANK_SHIFT,
    SHARED_START,
    SHARED_WINDOW,
    USABLE,
    WINDOW,
)
from .parse import DTYPES, Vector
from .slots import BATCH, BLOCK, LANE, WARP

SHARED_MASK = np.uint64((1 << RANK_SHIFT) - 1)
# Of their flags, those that change caching, ordering or scope ask for nothing here: the interpreter
# executes one access at a time, in program order.
MEMORY = {"ld", "ldu", "st", "atom", "red"}


def space_of(statement):
    for flag in statement.op[1:]:
        space = flag.partition("::")[0]
        if space in ("global", "shared", "local", "param", "const"):
            return space
    return "generic"


def shape_of(statement):
    """(dtype, number of elements) of one access."""
    count = next((int(f[1:]) for f in statement.op if f in ("v2", "v4", "v8")), 1)
    if statement.op[-1] not in DTYPES:
        raise Unsupported(f"access {statement}")
    return DTYPES[statement.op[-1]], count


class Access:
    """Finds and checks the bytes of one access per lane, for one statement."""

    def __init__(self, program, statement, space, width, kind, operand):
        self.statement, self.space, self.width, self.kind = statement, space, width, kind
        self.write = kind != "read"
        self.shift = width.bit_length() - 1
        self.address = program.address(operand)
        for slot in (LANE, BLOCK, WARP):
            program.use(slot)
        if space in ("shared", "generic"):
            program.granule = min(program.granule, width)
        self.strong = bool(
            {"volatile", "relaxed", "acquire", "release", "mmio"} & set(statement.op)
        )
        if space in ("global", "generic") and (self.strong or kind == "atomic"):
            program.synchronises = True

    def locate(self, R):
        """(memory, index in units of the width)"""
        address = self.address(R)
        space = self.space
        if space == "generic":
            space, address = self.resolve(R, address)
        if space == "shared":
            return self.in_shared(R, address)
        if space == "local":
            return self.in_local(R, address)
        batch = R[BATCH]

        def fault(which, message):
            batch.fault(self.statement, R, which, message, address)

        lanes = R[LANE].size
        index = batch.memory.index(address, self.width, self.write, lanes, fault)
        if batch.global_races is not None and not self.strong and self.kind != "atomic":
            race = batch.global_races.access(
                batch, self.kind, batch.memory.touched, index, self.width, R[WARP]
            )
            self.report(batch, R, race, address)
        if self.kind != "read":
            batch.counts.stores[self.width] += lanes
        if self.kind != "write":
            batch.counts.loads[self.width] += lanes
            if self.kind == "atomic":
                self.lacking(batch.memory, R, index, USABLE, address)
        return batch.memory, index

    def resolve(self, R, address):
        """The space of generic addresses; all lanes of one instruction have to agree."""
        low, high = int(address.min()), int(address.max())
        if low >= LOCAL_WINDOW + WINDOW:
            return "global", address
        for space, window in (("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW)):
            if window <= low and high < window + WINDOW:
                return space, address - np.uint64(window)
        if high >= LOCAL_WINDOW + WINDOW and low >= SHARED_WINDOW:
            raise Unsupported(f"generic addresses in several spaces: {self.statement}")
        wrong = address < LOCAL_WINDOW + WINDOW
        return R[BATCH].fault(self.statement, R, wrong, "out-of-bounds access", address)

    def lacking(self, memory, R, index, flag, address):
        wrong = memory.lacking(index, self.width, flag)
        if wrong is not None:
            message = "out-of-bounds access"
            if memory.lacking(index, self.width, ALLOCATED) is None:
                message = "read of bytes that nobody has written"
            name = "shared " if memory is R[BATCH].shared else ""
            name = "local " if memory is R[BATCH].local else name
            message = f"{message} ({name}memory, {self.width} bytes)"
            R[BATCH].fault(self.statement, R, wrong, message, address)

    def in_part(self, R, part, offset, memory, address):
        """Index within the memory of a block or a thread, with all checks."""
        width = np.uint64(self.width)
        if (offset & (width - np.uint64(1))).any():
            wrong = offset & (width - np.uint64(1)) != 0
            text = f"misaligned access of {self.width} bytes"
            R[BATCH].fault(self.statement, R, wrong, text, address)
        outside = offset > np.uint64(max(memory.stride - self.width, 0))
        if outside.any() or memory.stride < self.width:
            R[BATCH].fault(self.statement, R, outside, "out-of-bounds access", address)
        flat = part * memory.stride + offset.view(np.int64)
        index = flat >> self.shift
        flag = USABLE if self.kind in ("read", "atomic") else ALLOCATED
        self.lacking(memory, R, index, flag, address)
        return flat, index

    def in_local(self, R, address):
        memory = R[BATCH].local
        _, index = self.in_part(R, R[LANE], address, memory, address)
        if self.write:
            memory.mark_written(index, self.width)
        return memory, index

    def in_shared(self, R, address):
        batch = R[BATCH]
        memory, block = batch.shared, R[BLOCK]
        if address.max() > SHARED_MASK:
            block = batch.block_of_rank(self.statement, R, address)
        offset = (address & SHARED_MASK) - np.uint64(SHARED_START)
        _, index = self.in_part(R, block, offset, memory, address)
        if batch.shadow is not None:
            cells = self.width // batch.program.granule
            race = batch.shadow.access(batch.clocks, self.kind_of_race(), index, cells, R[WARP])
            self.report(batch, R, race, address)
        if self.write:
            memory.mark_written(index, self.width)
        return memory, index

    def kind_of_race(self):
        return "atomic" if self.strong else self.kind

    def report(self, batch, R, race, address):
        if race is not None:
            wrong, other = race
            text = race_message(self.kind_of_race(), other)
            batch.fault(self.statement, R, wrong, text, address)


def race_message(kind, other):
    other = other.split()[0]
    return f"data race: {kind} after a {other} by another warp, with no barrier between"


# ------------------------------------------------------------------ loads and stores


def _items(operand):
    return operand.items if isinstance(operand, Vector) else (operand,)


def _load(program, statement):
    space = space_of(statement)
    dtype, count = shape_of(statement)
    target, operand = statement.operands[:2]  # a third one is a cache policy
    if space == "param":
        _load_param(program, statement, target, operand, dtype)
        return
    access = Access(program, statement, space, dtype.itemsize * count, "read", operand)
    items = _items(target)
    if len(items) != count:
        raise Unsupported(f"{len(items)} registers: {statement}")
    puts = [program.put(item, dtype) for item in items]
    if count == 1:
        put = puts[0]

        def closure(R):
            memory, index = access.locate(R)
            put(R, memory.load(index, dtype, 1))

    else:

        def closure(R):
            memory, index = access.locate(R)
            for put, value in zip(puts, memory.load(index, dtype, count), strict=True):
                put(R, value)

    program.emit(closure)


def _load_param(program, statement, target, operand, dtype):
    puts = [program.put(item, dtype) for item in _items(target)]
    if operand.base in program.param_offsets and program.function.entry:
        start = program.param_offsets[operand.base] + operand.offset
        places = [
            slice(start + i * dtype.itemsize, start + (i + 1) * dtype.itemsize)
            for i in range(len(puts))
        ]

        def closure(R):
            params = R[BATCH].params
            for put, place in zip(puts, places, strict=True):
                put(R, params[place].view(dtype)[0])

        program.emit(closure)
        return
    slots = _param_slots(program, operand, dtype, len(puts))
    for slot in slots:
        program.use(slot)

    def closure(R):
        for put, slot in zip(puts, slots, strict=True):
            put(R, R[slot].view(dtype))

    program.emit(closure)


def _param_slots(program, operand, dtype, count):
    """Registers that stand for the bytes of a parameter of a device function."""
    name = program.aliases.get(operand.base, (program.function.name, operand.base))
    bits = unsigned(dtype)
    return [
        program.named_slot(("param", *name, operand.offset + i * dtype.itemsize), bits)
        for i in range(count)
    ]


def store(program, statement):
    space = space_of(statement)
    dtype, count = shape_of(statement)
    operand, source = statement.operands[:2]
    fetches = [program.fetch(item, dtype) for item in _items(source)]
    if len(fetches) != count:
        raise Unsupported(f"{len(fetches)} registers: {statement}")
    if space == "param":
        slots = _param_slots(program, operand, dtype, count)
        program.block.defs.update(slots)
        bits = unsigned(dtype)

        def closure(R):
            for slot, fetch in zip(slots, fetches, strict=True):
                R[slot] = fetch(R).view(bits).copy()

        program.emit(closure)
        return
    access = Access(program, statement, space, dtype.itemsize * count, "write", operand)

    def closure(R):
        memory, index = access.locate(R)
        memory.store(index, dtype, [fetch(R) for fetch in fetches])

    program.emit(closure)


# ------------------------------------------------------------------ atomics

_ATOMIC = {
    "add": np.add, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "min": np.minimum, "max": np.maximum,
}  # fmt: skip


def _atomic_function(name, dtype):
    if name in _ATOMIC:
        return _ATOMIC[name]
    one = dtype.type(1)
    return {
        "exch": lambda old, new: new,
        "inc": lambda old, limit: np.where(old >= limit, old - old, old + one),
        "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - one),
        "cas": lambda old, compare, new: np.where(old == compare, new, old),
    }[name]


def _atomic(program, statement):
    returns = statement.op[0] == "atom"
    dtype, count = shape_of(statement)
    names = {"add", "and", "or", "xor", "min", "max", "exch", "inc", "dec", "cas"}
    name = next(f for f in statement.op[1:] if f in names)
    if count != 1 or statement.op[-1] in ("f16", "bf16", "f16x2", "bf16x2"):
        raise Unsupported(f"atomic {statement}")
    target = statement.operands[0] if returns else None
    operand, *sources = statement.operands[1:] if returns else statement.operands
    sources = sources[: 2 if name == "cas" else 1]
    access = Access(program, statement, space_of(statement), dtype.itemsize, "atomic", operand)
    fetches = [program.fetch(source, dtype) for source in sources]
    put = program.put(target, dtype) if target is not None else None
    function = _atomic_function(name, dtype)

    def closure(R):
        memory, index = access.locate(R)
        words, lanes = memory.words(dtype), R[LANE].size
        index = np.broadcast_to(index, lanes)
        values = [np.broadcast_to(fetch(R), lanes) for fetch in fetches]
        order = R[BATCH].order(lanes)
        if put is None and name in _ATOMIC:
            _ATOMIC[name].at(words, index[order], values[0][order])
            return
        old = np.empty(lanes, dtype)
        if np.unique(index).size == lanes:
            old[:] = words[index]
            words[index] = function(old, *values)
        else:  # one after another
            for lane in order:
                place = index[lane]
                old[lane] = words[place]
                words[place] = function(words[place], *(v[lane] for v in values))
        if put is not None:
            put(R, old)

    program.emit(closure)


HANDLERS = {
    "ld": _load,
    "ldu": _load,
    "st": store,
    "atom": _atomic,
    "red": _atomic,
}
