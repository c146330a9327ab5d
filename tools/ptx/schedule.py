"""Which lanes run what, and when.

Lanes at the same block of the program form a gang, and a team of gangs is scheduled together, the
lowest one first, so that diverged lanes meet again. Without an order there is one team, and
several clusters share a batch: the cost of a NumPy call is then spread over thousands of lanes.
With an order_seed there is a team for each warp of a cluster (the same warp of all clusters of a
batch, so that these share one schedule), and the teams take turns of random length.

A selection of lanes is None (the whole frame), a slice, or sorted indices; False stands for none.
A gang of the whole frame runs on the registers as they are; another one on copies, and what it
leaves behind is scattered.
"""

from __future__ import annotations

import numpy as np

from .batch import Batch
from .fault import Fault
from .slots import LANE, PLACE, WARP

STEPS = 5_000_000  # blocks of a program executed by a batch, before it counts as endless


class Team:
    def __init__(self, alive, whole):
        self.alive = alive  # number of lanes
        self.whole = whole  # all of them in full warps
        self.ready = {}  # pc -> lanes that can run
        self.parked = {}  # pc -> lanes that wait there for others of their warp
        self.asleep = {}  # pc -> lanes that poll an mbarrier


def tidy(index, size):
    """Sorted indices as the cheapest selection."""
    if index.size == size:
        return None
    if index.size and index[-1] - index[0] + 1 == index.size:
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


class Scheduler(Batch):
    def __init__(self, device, program, launch, blocks, seed):
        super().__init__(device, program, launch, blocks, seed)
        self.program_blocks = program.blocks
        self.steps = 0
        whole = self.threads % 32 == 0
        self.teams = [Team(int(n), whole) for n in np.bincount(self.team_of)]
        self.resume(np.arange(self.lanes), program.first)

    def run(self):
        if self.random is None:
            self._advance(self.teams[0], self.device.limit + 1)
            while self._unblock():
                self._advance(self.teams[0], self.device.limit + 1)
            return
        while True:
            able = [team for team in self.teams if team.ready]
            if able:
                self._advance(self.random.choice(able), self.random.randint(1, 12))
            elif not self._unblock():
                return
            under_way = len(self.messages.in_flight)
            if under_way and self.random.random() < 0.2:
                for _ in range(self.random.randint(1, 1 + under_way // 4)):
                    self.messages.deliver_one()

    def _unblock(self):
        """When nobody is ready: something in flight, or exits that change who is waited for."""
        if self.messages.in_flight:
            self.messages.deliver_one()
            return True
        if not self.alive:
            return False
        found = False
        for team in self.teams:
            for pc in list(team.parked):
                ready = self._converge(team, self.program_blocks[pc], team.parked.pop(pc))
                if ready is not False:
                    self._add(team, pc, ready)
                    found = True
        if not found:
            self._deadlock()
        return True

    def _deadlock(self):
        where = []
        for team in self.teams:
            for pc, sel in team.parked.items():
                where.append((self.G[LANE][self._index(sel)], pc, "for other lanes of its warp"))
            for pc, sel in team.asleep.items():
                where.append((self.G[LANE][self._index(sel)], pc - 1, "for a phase"))
        for barrier in (self.barriers, self.cluster_barrier):
            where += [(lanes, pc - 1, "for others") for lanes, pc in barrier.waiting_lanes()]
        lines = [
            f"{self.name(lanes[0])} and {lanes.size - 1} more wait {why} "
            f"at {self.program_blocks[pc].statement}"
            for lanes, pc, why in where[:6]
        ]
        raise Fault("deadlock, nobody can go on: " + "; ".join(lines))

    # ------------------------------------------------------------------ running a gang

    def _advance(self, team, turns):
        """Runs the gangs of a team for so many blocks of the program, or until none is ready."""
        ready, blocks = team.ready, self.program_blocks
        while ready and turns > 0:
            # The lowest first; from time to time another, in case the lowest waits for it.
            pc = min(ready) if self.steps & 1023 != 1023 else max(ready)
            sel = ready.pop(pc)
            while True:
                if pc in team.parked:
                    sel = self._union(sel, team.parked.pop(pc))
                self.steps += 1
                turns -= 1
                if self.steps > self.device.limit:
                    raise Fault(f"no end after {self.steps} steps, at {blocks[pc].statement}")
                if sel is not None and not self.random and self._count(sel) == self.alive:
                    self.compact(sel, blocks[pc])
                    sel = None
                following = self._execute(team, pc, sel)
                if following is None:
                    break
                pc, sel = following
                if ready or turns <= 0:
                    self._add(team, pc, sel)
                    break

    def _execute(self, team, pc, sel):
        """Runs a block; (pc, selection) to go on with, or None if that has been arranged."""
        block = self.program_blocks[pc]
        if block.guard is not None:
            slot, negated = block.guard
            chosen = self._pick(self.G[slot], sel) ^ np.bool_(negated)
            sel, rest = self._split(sel, np.broadcast_to(chosen, self._count(sel)))
            if rest is not False:
                self._add(team, pc + 1, rest)
            if sel is False:
                return None
        if block.converge is not None:
            sel = self._converge(team, block, sel)
            if sel is False:
                return None
        if sel is None:
            R = self.G
            for closure in block.code:
                closure(R)
        else:
            R = self._gather(block, sel)
            for closure in block.code:
                closure(R)
            self._scatter(block, sel)
        self.counts.instructions += block.count * self._count(sel)
        return self._go_on(team, block, pc, sel, R)

    def _gather(self, block, sel):
        G, R = self.G, self.scratch
        for slot in block.needs:
            value = G[slot]
            R[slot] = value[sel] if value.ndim else value
        return R

    def _scatter(self, block, sel):
        G, R = self.G, self.scratch
        for slot in block.outs:
            value, old = R[slot], G[slot]
            if not old.ndim:
                if not value.ndim and old is self.unset[slot]:
                    G[slot] = value
                    continue
                if not value.ndim and value == old:
                    continue  # the same in all lanes before and after
                old = G[slot] = np.full(self.size, old)
            old[sel] = value

    def _go_on(self, team, block, pc, sel, R):
        match block.end:
            case "next":
                return pc + 1, sel
            case "branch":
                slot, negated, target = block.target
                value = R[slot]
                if not value.ndim:
                    return (target if value != negated else pc + 1), sel
                taken, rest = self._split(sel, value ^ negated if negated else value)
                if taken is False or rest is False:
                    return (pc + 1 if taken is False else target), sel
                self._add(team, target, taken)
                self._add(team, pc + 1, rest)
                return None
            case "jump" | "call":
                return block.target, sel
            case "exit":
                team.alive -= self._count(sel)
                team.whole = False
                self.exit(self._pick(self.G[LANE], sel))
                return None
            case "barrier":
                return self._barrier(block, pc, sel, R)
            case "cluster arrive":
                self.cluster_barrier.arrive(block.statement, R, "relaxed" in block.target)
                return pc + 1, sel
            case "cluster wait":
                self.cluster_barrier.wait(block.statement, R, R[LANE], pc + 1)
                return None
            case "poll":
                return self._poll(team, pc, sel, R[block.target])
            case "return":
                return self._jump_many(team, sel, R[self.program.slots["return", block.target]])
            case "table":
                slot, targets = block.target
                past = R[slot] >= len(targets)
                if past.any():
                    self.fault(block.statement, R, past, "index past the table")
                return self._jump_many(team, sel, np.array(targets)[R[slot]])
        raise AssertionError(block.end)

    def _barrier(self, block, pc, sel, R):
        slots, arrive, reduction = block.target
        everybody = sel is None and self.alive == self.size and not self.barriers.waiting
        if everybody and len(slots) == 1 and not arrive and reduction is None:
            self.meet_all()
            return pc + 1, sel
        self.barriers.arrive(block.statement, R, slots, None if arrive else pc + 1, reduction)
        return (pc + 1, sel) if arrive else None

    def _jump_many(self, team, sel, targets):
        if not targets.ndim:
            return int(targets), sel
        for pc in np.unique(targets):
            chosen, _ = self._split(sel, targets == pc)
            self._add(team, int(pc), chosen)
        return None

    def _poll(self, team, pc, sel, done):
        """Lanes whose mbarrier phase is not complete sleep until some phase completes."""
        ready, rest = self._split(sel, np.broadcast_to(done, self._count(sel)))
        if rest is False:
            return pc + 1, sel
        if self.random and self.random.random() < 0.3:  # a wait may also return early
            return pc + 1, sel
        before = team.asleep.get(pc + 1, False)
        team.asleep[pc + 1] = rest if before is False else self._union(before, rest)
        return None if ready is False else (pc + 1, ready)

    def wake(self):
        for team in self.teams:
            for pc, sel in team.asleep.items():
                self._add(team, pc, sel)
            team.asleep.clear()

    def _converge(self, team, block, sel):
        """The lanes whose partners are all here; the others are parked."""
        mask = self.G[block.converge] if block.converge != "warp" else np.uint32(0xFFFFFFFF)
        if self._count(sel) == team.alive and (
            block.converge == "warp" or (team.whole and not mask.ndim and mask == 0xFFFFFFFF)
        ):
            return sel
        warp, place = self._pick(self.G[WARP], sel), self._pick(self.G[PLACE], sel)
        bits = np.uint32(1) << place.astype(np.uint32)
        alive = self.alive_bits[warp]
        if block.converge == "warp":
            mask = alive
        else:
            mask = self._pick(mask, sel)
            self._check_mask(block, sel, mask, bits, alive)
        present = np.zeros(self.alive_bits.size, np.uint32)
        np.bitwise_or.at(present, warp, bits)
        here = mask & ~present[warp] == 0
        if here.all():
            return sel
        ready, rest = self._split(sel, here)
        before = team.parked.get(block.index, False)
        team.parked[block.index] = rest if before is False else self._union(before, rest)
        return ready

    def _check_mask(self, block, sel, mask, bits, alive):
        R = list(self.G)
        R[LANE] = self._pick(R[LANE], sel)
        if (mask & bits == 0).any():
            text = "a lane that is not in the mask of the instruction"
            self.fault(block.statement, R, mask & bits == 0, text)
        if (mask & ~alive).any():
            text = "missing lanes: the mask names some that have exited or do not exist"
            self.fault(block.statement, R, mask & ~alive != 0, text)

    # ------------------------------------------------------------------ selections

    def _pick(self, value, sel):
        return value if sel is None or not value.ndim else value[sel]

    def _count(self, sel):
        if sel is None:
            return self.size
        return sel.stop - sel.start if isinstance(sel, slice) else sel.size

    def _index(self, sel):
        if sel is None:
            return np.arange(self.size)
        return np.arange(sel.start, sel.stop) if isinstance(sel, slice) else sel

    def _split(self, sel, chosen):
        """(selection where true, where false)"""
        count = np.count_nonzero(chosen)
        if count == 0:
            return False, sel
        if count == chosen.size:
            return sel, False
        true, false = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        if isinstance(sel, slice):
            true, false = true + sel.start, false + sel.start
        elif sel is not None:
            true, false = sel[true], sel[false]
        return tidy(true, self.size), tidy(false, self.size)

    def _union(self, a, b):
        return tidy(np.sort(np.concatenate([self._index(a), self._index(b)])), self.size)

    def _add(self, team, pc, sel):
        before = team.ready.get(pc, False)
        team.ready[pc] = sel if before is False else self._union(before, sel)

    def resume(self, lanes, pc):
        """Lanes (by number) go on at pc."""
        if self.random is None:
            self._add(self.teams[0], pc, tidy(np.sort(self.position_of[lanes]), self.size))
            return
        teams = self.team_of[lanes]
        for team in np.unique(teams):
            place = np.sort(self.position_of[lanes[teams == team]])
            self._add(self.teams[team], pc, tidy(place, self.size))
