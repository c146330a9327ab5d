"""Blocks of a program, and how values flow between them.

Two questions are answered before anything runs. Which values must a block leave behind (only these
are scattered where a part of the lanes runs it)? Which reads may meet a register that was never
written (only these are checked while running)?
"""

from __future__ import annotations

import functools

import numpy as np

from .slots import BATCH, BLOCK, LANE, PLACE, WARP


class Block:
    """Closures that run one after another, and what happens then."""

    def __init__(self, index, statement):
        self.index = index
        self.statement = statement  # the first one, for messages
        self.code = []
        self.uses = {}  # slot read before it is written here -> the statement that reads it
        self.defs = set()
        self.outs = ()  # of the slots written here, those somebody may read later
        self.needs = ()  # what has to be gathered
        self.live = 0  # slots that are live at the start, as bits
        self.guard = None  # (slot, negated): only these lanes take part
        self.converge = None  # slot of the mask of lanes that must be here together, or "warp"
        self.late = None  # slot that the end of the block writes, not its code
        self.end = "next"  # next, jump, branch, table, call, return, exit, or one in barriers.py
        self.target = None
        self.count = 0  # statements in it

    def successors(self, program):
        following = self.index + 1
        match self.end:
            case "jump":
                targets = [self.target]
            case "branch":
                targets = [self.target[2], following]
            case "table":
                targets = list(self.target[1])
            case "call":
                targets = [self.target]
            case "return":
                targets = program.returns[self.target]
            case "exit":
                targets = []
            case _:
                targets = [following]
        return targets + [following] if self.guard and following not in targets else targets


def analyse(program):
    """Liveness (what a block must leave behind) and reads of what may not be written."""
    blocks = program.blocks
    following = [block.successors(program) for block in blocks]
    uses = [sum(1 << s for s in b.uses) for b in blocks]
    defs = [sum(1 << s for s in b.defs) for b in blocks]
    # Definitely written at the start of each block; everything at first, then less.
    outside = sum(1 << s for s in given(program))
    everything = (1 << len(program.dtypes)) - 1
    written = [everything] * len(blocks)
    written[program.first] = outside
    work = [program.first]
    reached = {program.first}
    while work:
        index = work.pop()
        after = written[index] | (0 if blocks[index].guard else defs[index])
        for target in following[index]:
            new = written[target] & after
            if new != written[target] or target not in reached:
                written[target] = new
                reached.add(target)
                work.append(target)
    doubtful = {s for i in reached for s in blocks[i].uses if not written[i] >> s & 1}
    watch(program, doubtful, reached, written)
    uses = [sum(1 << s for s in b.uses) for b in blocks]
    defs = [sum(1 << s for s in b.defs) for b in blocks]
    before = [[] for _ in blocks]
    for index, targets in enumerate(following):
        for target in targets:
            before[target].append(index)
    live = [0] * len(blocks)
    work = list(range(len(blocks)))
    while work:
        index = work.pop()
        after = functools.reduce(int.__or__, (live[t] for t in following[index]), 0)
        kept = after & ~defs[index] if not blocks[index].guard else after
        new = uses[index] | kept
        if new != live[index]:
            live[index] = new
            work.extend(before[index])
    for index, block in enumerate(blocks):
        after = functools.reduce(int.__or__, (live[t] for t in following[index]), 0)
        written_here = sorted(block.defs - {block.late})
        block.outs = tuple(s for s in written_here if after >> s & 1)
        block.needs = tuple(sorted(block.uses))
        block.live = live[index]


def given(program):
    return [BATCH, LANE, BLOCK, WARP, PLACE, *program.special.values(), *program.symbols.values()]


def watch(program, doubtful, reached, written):
    """For registers that some path leaves unwritten, a second one says who has written."""
    for slot in sorted(doubtful):
        flag = program.new_slot(np.bool_)
        program.uninitialised.add(flag)
        name = next((n for n, s in program.slots.items() if s == slot), slot)
        name = str(name).rpartition("/")[2]
        for index in reached:
            block = program.blocks[index]
            if slot in block.uses and not written[index] >> slot & 1:
                block.uses[flag] = block.uses[slot]
                block.code.insert(0, _check_written(flag, name, block.uses[slot]))
            if slot in block.defs:
                block.defs.add(flag)
                block.code.append(_set_written(flag))


def _check_written(flag, name, statement):
    def check(R):
        if not R[flag].all():
            R[BATCH].fault(
                statement, R, ~R[flag], f"read of register {name}, which nobody has written"
            )

    return check


def _set_written(flag):
    def set_written(R):
        R[flag] = np.True_

    return set_written
