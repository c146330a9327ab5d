"""Executes the blocks of one or more clusters: which lanes run what, and when.

A batch is a frame of lanes, one per thread. Lanes at the same block of the program form a gang,
and a team of gangs is scheduled together, the lowest one first, so that diverged lanes meet again.
Without an order there is one team, and several clusters share a batch (about 4096 lanes: the cost
of a NumPy call is then spread over many). With an order_seed every warp is a team, the batch is
one cluster, and the teams take turns of random length.

A selection of lanes is None (the whole frame), a slice, or sorted indices.
"""

from __future__ import annotations

import random

import numpy as np

from .barriers import BlockBarriers, ClusterBarrier, Mbarriers
from .fault import Fault
from .memory import RANK_SHIFT, SHARED_START, BlockMemory, layout
from .program import BATCH, BLOCK, LANE, PLACE, WARP
from .races import Clocks, Shadow

STEPS = 5_000_000  # blocks of a program executed by a batch, before it counts as endless


class Team:
    def __init__(self):
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


class Batch:
    """The threads of some clusters, their registers and what they share."""

    def __init__(self, device, program, launch, blocks, seed):
        self.device, self.program, self.launch = device, program, launch
        self.memory, self.counts, self.params = device.memory, launch.counts, launch.params
        self.random = None if seed is None else random.Random(f"{seed} {blocks[0]}")
        self.blocks = np.array(blocks)
        self.threads = launch.threads
        self.lanes = len(blocks) * self.threads
        lane = np.arange(self.lanes)
        self.block_of = lane // self.threads
        thread = lane % self.threads
        self.warps_per_block = -(-self.threads // 32)
        self.warp_of = self.block_of * self.warps_per_block + thread // 32
        self.place_of = thread % 32
        self.blocks_per_cluster = int(np.prod(launch.cluster))
        self.cluster_of = self.block_of // self.blocks_per_cluster
        clusters = len(blocks) // self.blocks_per_cluster
        warps = len(blocks) * self.warps_per_block
        self.alive_in_block = np.full(len(blocks), self.threads)
        self.alive_bits = np.zeros(warps, np.uint32)
        bits = np.uint32(1) << self.place_of.astype(np.uint32)
        np.bitwise_or.at(self.alive_bits, self.warp_of, bits)
        self.alive = self.lanes

        dynamic = np.full(-(-launch.shared // 16) * 16, 0, np.uint8)
        dynamic[: launch.shared] = 1
        flags = np.concatenate([program.shared_flags, dynamic])
        flags = np.concatenate([flags, np.zeros(-flags.size % 128, np.uint8)])
        self.shared = BlockMemory(len(blocks), flags)
        self.local = BlockMemory(self.lanes, program.local_flags)
        per_cluster = self.warps_per_block * self.blocks_per_cluster
        self.clocks = self.shadow = None
        if per_cluster > 1:
            self.clocks = Clocks(warps, per_cluster, self.blocks_per_cluster)
            self.shadow = Shadow(self.shared.data.size // program.granule, self.clocks)
        self.barriers = BlockBarriers(self)
        self.cluster_barrier = ClusterBarrier(self, clusters)
        self.mbarriers = Mbarriers(self)
        self.in_flight = []  # stores to other blocks that have not arrived yet

        self.size = self.lanes  # of the frame; less once exited lanes have been dropped
        self.whole = self.threads % 32 == 0
        self.steps = 0
        self._registers(thread)
        everybody = lane if self.random else None
        if self.random is None:
            self.teams = [Team()]
            self.teams[0].ready[program.first] = None
        else:
            self.teams = [Team() for _ in range(warps)]
            self.resume(everybody, program.first)

    # ------------------------------------------------------------------ registers

    def _registers(self, thread):
        program = self.program
        self.G = [None if d is None else d.type(0) for d in program.dtypes]
        for slot, value in program.constants.items():
            self.G[slot] = value
        for name, slot in program.symbols.items():
            self.G[slot] = np.uint64(self.device.symbol(program, name))
        self.G[BATCH] = self
        self.G[LANE] = np.arange(self.lanes)
        self.G[BLOCK], self.G[WARP], self.G[PLACE] = self.block_of, self.warp_of, self.place_of
        for name, slot in program.special.items():
            value = self.launch.special(name, self, thread)
            self.G[slot] = value.astype(program.dtypes[slot])
        self.scratch = list(self.G)

    def write(self, slot, lanes, value):
        """Sets a register of some lanes from outside the program."""
        place = self.positions(lanes)
        if not self.G[slot].ndim:
            self.G[slot] = np.full(self.size, self.G[slot])
        self.G[slot][place] = value

    def positions(self, lanes):
        """Where lanes (by number) are in the frame."""
        if self.size == self.lanes:
            return lanes
        return np.searchsorted(self.G[LANE], lanes)

    def _compact(self, sel, block):
        """Drops the lanes outside the selection: they have exited."""
        keep = block.live | 1 << LANE | 1 << BLOCK | 1 << WARP | 1 << PLACE
        keep |= sum(1 << s for s in self.program.special.values())
        for slot, value in enumerate(self.G):
            if slot != BATCH and value.ndim:
                kept = keep >> slot & 1
                self.G[slot] = value[sel].copy() if kept else value.dtype.type(0)
        self.size = self.G[LANE].size
        self.whole = False

    # ------------------------------------------------------------------ scheduling

    def run(self):
        if self.random is None:
            team = self.teams[0]
            while True:
                self._advance(team, STEPS)
                if not self._unblock():
                    return
        while True:
            able = [team for team in self.teams if team.ready]
            if able:
                self._advance(self.random.choice(able), self.random.randint(1, 12))
            elif not self._unblock():
                return
            while self.in_flight and self.random.random() < 0.2:
                self._deliver(self.in_flight.pop(self.random.randrange(len(self.in_flight))))

    def _unblock(self):
        """When nobody is ready: something in flight, or exits that change who is waited for."""
        if self.in_flight:
            self._deliver(self.in_flight.pop())
            return True
        if not self.alive:
            return False
        found = False
        for team in self.teams:
            for pc, sel in list(team.parked.items()):
                ready = self._converge(team, self.program.blocks[pc], team.parked.pop(pc))
                if ready is not False:
                    self._add(team, pc, ready)
                    found = True
        if not found:
            self._deadlock()
        return True

    def _deadlock(self):
        lines, where = [], []
        for team in self.teams:
            for kind in (team.parked, team.asleep):
                where += [(self.G[LANE][self._index(sel)], pc) for pc, sel in kind.items()]
        where += [(lanes, pc - 1) for lanes, pc in self.barriers.describe() if pc is not None]
        where += [(lanes, pc - 1) for lanes, pc in self.cluster_barrier.describe()]
        parked = {pc for team in self.teams for pc in team.parked}
        for lanes, pc in where[:6]:
            block = self.program.blocks[pc]
            what = "waits for other lanes of its warp at" if pc in parked else "waits at"
            lines.append(
                f"{self.name(lanes[0])} and {lanes.size - 1} more: {what} {block.statement}"
            )
        raise Fault("deadlock: nobody can go on; " + "; ".join(lines))

    def _advance(self, team, turns):
        ready, blocks = team.ready, self.program.blocks
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
                    self._compact(sel, blocks[pc])
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
        block = self.program.blocks[pc]
        if block.guard is not None:
            slot, negated = block.guard
            value = self.G[slot]
            if value.ndim:
                value = value if sel is None else value[sel]
            chosen = np.broadcast_to(value ^ np.bool_(negated), self._count(sel))
            taken, rest = self._split(sel, chosen)
            if rest is not False:
                self._add(team, pc + 1, rest)
            if taken is False:
                return None
            sel = taken
        if block.converge is not None and not (
            sel is None and self.whole and block.converge == "warp"
        ):
            sel = self._converge(team, block, sel)
            if sel is False:
                return None
        G = self.G
        if sel is None:
            R, count = G, self.size
            for closure in block.code:
                closure(R)
        else:
            R, count = self.scratch, self._count(sel)
            for slot in block.needs:
                value = G[slot]
                R[slot] = value[sel] if value.ndim else value
            for closure in block.code:
                closure(R)
            for slot in block.outs:
                value, old = R[slot], G[slot]
                if not old.ndim:
                    if not value.ndim and value == old:
                        continue
                    old = G[slot] = np.full(self.size, old)
                old[sel] = value
        self.counts.instructions += block.count * count
        end = block.end
        if end == "next":
            return pc + 1, sel
        if end == "branch":
            slot, negated, target = block.target
            value = R[slot]
            if not value.ndim:
                return (target if value != negated else pc + 1), sel
            taken, rest = self._split(sel, value ^ negated if negated else value)
            if taken is False:
                return pc + 1, sel
            if rest is False:
                return target, sel
            self._add(team, target, taken)
            self._add(team, pc + 1, rest)
            return None
        if end == "jump" or end == "call":
            return block.target, sel
        return self._end(team, block, pc, sel, R)

    def _end(self, team, block, pc, sel, R):
        """The rarer ends of a block."""
        if block.end == "exit":
            self._exit(self.G[LANE][self._index(sel)])
            return None
        lanes = self.G[LANE] if sel is None else R[LANE] if LANE in block.uses else None
        match block.end:
            case "barrier":
                slots, arrive, reduction = block.target
                simple = sel is None and self.alive == self.size and len(slots) == 1
                if simple and not arrive and reduction is None and not self.barriers.waiting:
                    self.meet_all()
                    return pc + 1, sel
                following = None if arrive else pc + 1
                self.barriers.arrive(block, block.statement, R, lanes, slots, following, reduction)
                return (pc + 1, sel) if arrive else None
            case "cluster arrive":
                relaxed = "relaxed" in block.target
                self.cluster_barrier.arrive(block.statement, R, lanes, relaxed)
                return pc + 1, sel
            case "cluster wait":
                self.cluster_barrier.wait(block.statement, R, lanes, pc + 1)
                return None
            case "poll":
                return self._poll(team, pc, sel, R[block.target])
            case "return":
                return self._jump_many(team, sel, R[self.return_slot(block)])
            case "table":
                slot, targets = block.target
                chosen = R[slot]
                if np.any(chosen >= len(targets)):
                    self.fault(block.statement, R, chosen >= len(targets), "index past the table")
                return self._jump_many(team, sel, np.array(targets)[chosen])
        raise AssertionError(block.end)

    def return_slot(self, block):
        return self.program.slots["return", block.target]

    def _jump_many(self, team, sel, targets):
        if not targets.ndim:
            return int(targets), sel
        for pc in np.unique(targets):
            chosen, _ = self._split(sel, targets == pc)
            self._add(team, int(pc), chosen)
        return None

    def _poll(self, team, pc, sel, done):
        """Lanes whose mbarrier phase is not complete sleep until some phase completes."""
        done = np.broadcast_to(done, self._count(sel))
        woken, rest = self._split(sel, done)
        if rest is False:
            return pc + 1, sel
        if self.random and self.random.random() < 0.3:  # a wait may also return early
            return pc + 1, sel
        before = team.asleep.get(pc + 1, False)
        team.asleep[pc + 1] = rest if before is False else self._union(before, rest)
        return None if woken is False else (pc + 1, woken)

    def wake(self):
        for team in self.teams:
            for pc, sel in team.asleep.items():
                self._add(team, pc, sel)
            team.asleep.clear()

    def _exit(self, lanes):
        self.alive -= lanes.size
        blocks = self.block_of[lanes]
        np.subtract.at(self.alive_in_block, blocks, 1)
        bits = np.uint32(1) << self.place_of[lanes].astype(np.uint32)
        np.bitwise_and.at(self.alive_bits, self.warp_of[lanes], ~bits)
        if self.barriers.waiting:
            self.barriers.after_exit(set(np.unique(blocks).tolist()))
        if self.blocks_per_cluster > 1 or self.cluster_barrier.waiting:
            self.cluster_barrier.after_exit(lanes)

    def alive_in_cluster(self, cluster):
        first = cluster * self.blocks_per_cluster
        return self.alive_in_block[first : first + self.blocks_per_cluster].sum()

    def _converge(self, team, block, sel):
        """The lanes whose partners are all here; the others are parked. False if there are none."""
        G = self.G
        pick = (lambda v: v) if sel is None else (lambda v: v[sel] if v.ndim else v)
        warp, place = pick(G[WARP]), pick(G[PLACE]).astype(np.uint32)
        bits = np.uint32(1) << place
        alive = self.alive_bits[warp]
        if block.converge == "warp":
            mask = alive
        else:
            mask = pick(G[block.converge])
            if sel is None and self.whole and not mask.ndim and mask == 0xFFFFFFFF:
                return sel
            R = self._view_for_fault(sel)
            if (mask & bits == 0).any():
                text = "lane that is not in the mask of the instruction"
                self.fault(block.statement, R, mask & bits == 0, text)
            if (mask & ~alive).any():
                text = "missing lanes: the mask names some that have exited or do not exist"
                self.fault(block.statement, R, mask & ~alive != 0, text)
        present = np.zeros(self.alive_bits.size, np.uint32)
        np.bitwise_or.at(present, warp, bits)
        here = mask & ~present[warp] == 0
        if here.all():
            return sel
        ready, rest = self._split(sel, here)
        pc = block.index
        before = team.parked.get(pc, False)
        team.parked[pc] = rest if before is False else self._union(before, rest)
        return ready

    def _view_for_fault(self, sel):
        R = list(self.G)
        if sel is not None:
            R[LANE] = R[LANE][sel]
        return R

    # ------------------------------------------------------------------ selections

    def _count(self, sel):
        if sel is None:
            return self.size
        return sel.stop - sel.start if isinstance(sel, slice) else sel.size

    def _index(self, sel):
        if sel is None:
            return np.arange(self.size)
        return np.arange(sel.start, sel.stop) if isinstance(sel, slice) else sel

    def _split(self, sel, chosen):
        """(selection where true, where false); False in place of an empty one."""
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
        """Lanes (by number) that waited go on at pc."""
        if self.random is None:
            self._add(self.teams[0], pc, tidy(np.sort(self.positions(lanes)), self.size))
            return
        warps = self.warp_of[lanes]
        for warp in np.unique(warps):
            self._add(self.teams[warp], pc, tidy(np.sort(lanes[warps == warp]), self.size))

    # ------------------------------------------------------------------ order and clocks

    def meet(self, warps):
        """These warps have waited for each other."""
        if self.clocks is not None:
            self.clocks.learn(warps, self.clocks.publish(warps))

    def meet_all(self):
        """The same within every block."""
        if self.clocks is not None:
            heard = self.clocks.heard
            per_block = heard.reshape(-1, self.warps_per_block, heard.shape[1])
            per_block[:] = per_block.max(axis=1, keepdims=True)
            heard[np.arange(len(heard)), self.clocks.column] += 1

    def order(self, lanes):
        """In which order lanes execute an atomic."""
        order = np.arange(lanes)
        if self.random:
            self.random.shuffle(order)
        return order

    # ------------------------------------------------------------------ shared memory of others

    def offset_in_block(self, address):
        return (address & np.uint64((1 << RANK_SHIFT) - 1)) - np.uint64(SHARED_START)

    def block_of_rank(self, statement, R, address):
        """Whose shared memory an address with a rank means."""
        rank, own = (address >> np.uint64(RANK_SHIFT)).astype(np.int64), R[BLOCK]
        if np.any(rank > self.blocks_per_cluster):
            wrong = rank > self.blocks_per_cluster
            self.fault(statement, R, wrong, "rank outside the cluster", address)
        first = own - own % self.blocks_per_cluster
        block = np.where(rank > 0, first + rank - 1, own)
        gone = self.alive_in_block[block] == 0
        if gone.any():
            self.fault(statement, R, gone, "shared memory of a block that has exited", address)
        return block

    def send(self, access, signal, R, words):
        """st.async: arrives at once, or at a random later time."""
        address = access.address(R)
        block = self.block_of_rank(access.statement, R, address)
        flat, _ = access.in_part(R, block, self.offset_in_block(address), self.shared, address)
        flat = np.broadcast_to(flat, R[LANE].shape)
        block = np.broadcast_to(block, R[LANE].shape)
        places = self.mbarriers.places(signal, R)
        for lane, warp in enumerate(R[WARP].tolist()):
            message = (access, int(flat[lane]), int(block[lane]), int(places[lane]), warp)
            message += (words[lane].copy(), int(R[LANE][lane]))
            if self.random is None:
                self._deliver(message)
            else:
                self.in_flight.append(message)

    def _deliver(self, message):
        access, flat, block, place, warp, words, lane = message
        R = list(self.scratch)
        R[LANE], R[WARP] = np.array([lane]), np.array([warp])
        if not self.alive_in_block[block]:
            self.fault(access.statement, R, None, "data arrive at a block that has exited")
        self.shared.data[flat : flat + access.width] = words.view(np.uint8)
        self.shared.mark_written(np.int64(flat >> access.shift), access.width)
        barrier = self.mbarriers.objects.get(place)
        if barrier is None:
            text = "mbarrier that has not been initialised"
            self.fault(access.statement, R, None, text)
        if self.shadow is not None:
            cells = access.cells(self, np.array([flat]))
            cluster = block // self.blocks_per_cluster
            rank = block % self.blocks_per_cluster
            race, known = self.shadow.agent_writes(cells, warp, cluster, rank)
            if race is not None:
                text = f"data race in shared memory: st.async after a {race[1]}, with no barrier"
                self.fault(access.statement, R, None, text)
            self.mbarriers.inform(barrier, warp, known)
        barrier.bytes -= access.width
        self.mbarriers.complete(barrier)

    # ------------------------------------------------------------------ messages

    def name(self, lane):
        block = self.launch.block_index(self.blocks[self.block_of[lane]])
        thread = self.launch.thread_index(lane % self.threads)
        return f"block {block} thread {thread}"

    def fault(self, statement, R, which, message, address=None):
        """Raises for the first lane of which (a mask; None or a scalar: the first there is)."""
        position = 0
        if which is not None and np.ndim(which) and np.size(which) > 1:
            position = int(np.flatnonzero(which)[0])
        text = f"{message}: {statement}, {self.name(R[LANE][min(position, R[LANE].size - 1)])}"
        if address is not None:
            value = address[position] if np.ndim(address) and np.size(address) > 1 else address
            text += f", address {int(np.ravel(value)[0]):#x}"
        raise Fault(text)


__all__ = ["Batch", "layout"]
