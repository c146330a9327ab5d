"""Calls, returns, jump tables, traps, and instructions without effect here."""

from __future__ import annotations

import numpy as np

from .slots import BATCH, LANE

INT = np.dtype(np.int64)


def _leave(program, statement):
    if statement.op[0] == "exit" or program.function.entry:
        program.end_block("exit")
    else:
        program.use(program.named_slot(("return", program.function.name), INT))
        program.end_block("return", program.function.name)


def _call(program, statement):
    name = statement.operands[1]
    if name not in program.module.functions:

        def absent(R):
            R[BATCH].fault(statement, R, None, f"call of {name}, which has no body")

        program.use(LANE)
        program.emit(absent)
        return
    slot = program.named_slot(("return", name), INT)
    program.block.defs.add(slot)
    back = INT.type(program.block.index + 1)

    def call(R):
        R[slot] = back

    program.emit(call)
    program.end_block("call", name)


def _table(program, statement):
    index, table = statement.operands
    program.end_block("table", (program.slot(index, np.uint32), table.name))


def _trap(program, statement):
    program.use(LANE)

    def trap(R):
        R[BATCH].fault(statement, R, None, "trap")

    program.emit(trap)


def _nothing(program, statement):
    """Hints and what concerns only the hardware."""


HANDLERS = {
    "ret": _leave,
    "exit": _leave,
    "call": _call,
    "brx": _table,
    "trap": _trap,
    "brkpt": _trap,
    **dict.fromkeys(("nanosleep", "prefetch", "prefetchu", "nop"), _nothing),
}
