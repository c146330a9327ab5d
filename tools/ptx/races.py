"""Data races: happens-before by vector clocks, one clock per warp.

Every warp counts its synchronisations. For each cell of memory the last writer, the last atomic
access and the two latest readers from different warps are remembered, with the time on their own
warp's clock. An access is ordered after a remembered one if its warp has heard of that time,
through barriers. With barriers of whole blocks two readers are enough: if one reader is unordered
with a later write then one of the two latest is.

Data that `st.async` brings counts as written by an agent of the receiving block; whoever waits
for the mbarrier hears of it. In global memory nothing orders the warps of different clusters,
except atomics, and a program that has these is not checked between clusters. Lanes of one warp
are not checked against each other.
"""

from __future__ import annotations

import numpy as np

from .memory import GLOBAL_BASE


class Clocks:
    """heard[w, c]: the latest time of the warp in column c of its cluster that warp w knows of."""

    def __init__(self, warps, warps_per_cluster, blocks_per_cluster):
        self.first_agent = warps_per_cluster  # the agents have the last columns
        self.column = np.arange(warps) % warps_per_cluster
        self.heard = np.zeros((warps, warps_per_cluster + blocks_per_cluster), np.int32)
        self.heard[np.arange(warps), self.column] = 1
        # What a relaxed arrival publishes: what the warp knew at its last fence.
        self.fenced = np.zeros_like(self.heard)
        clusters = warps // warps_per_cluster
        self.agent_time = np.zeros((clusters, blocks_per_cluster), np.int32)

    def fence(self, warps):
        self.fenced[warps] = self.heard[warps]

    def publish(self, warps):
        """What these warps know now, and a new tick of their clocks."""
        known = self.heard[warps].max(axis=0)
        self.heard[warps, self.column[warps]] += 1
        return known

    def learn(self, warps, known):
        self.heard[warps] = np.maximum(self.heard[warps], known)

    def stamp(self, warps):
        """(who, when) of an access now, for memory of one cluster."""
        columns = self.column[warps]
        return columns, self.heard[warps, columns]

    def unordered(self, who, when, warps):
        """Whether the warps have not heard of these accesses."""
        return self.heard[warps, who] < when


class LaunchClocks:
    """The same for global memory: warps have numbers in the launch, from 1; 0 is nobody."""

    def __init__(self, batch, first_cluster, lenient):
        self.clocks, self.lenient = batch.clocks, lenient
        self.per_cluster = batch.warps_per_block * batch.blocks_per_cluster
        warps = np.arange(batch.warps)
        self.base = (first_cluster + warps // self.per_cluster) * self.per_cluster
        self.number = (self.base + warps % self.per_cluster + 1).astype(np.int32)

    def stamp(self, warps):
        if self.clocks is None:
            return self.number[warps], np.int32(1)
        return self.number[warps], self.clocks.stamp(warps)[1]

    def unordered(self, who, when, warps):
        column = who - 1 - self.base[warps]
        here = (column >= 0) & (column < self.per_cluster)
        wrong = np.zeros(who.shape, bool) if self.lenient else (who > 0) & ~here
        if self.clocks is not None:
            wrong |= here & self.clocks.unordered(np.where(here, column, 0), when, warps)
        return wrong


class Shadow:
    """Who touched each cell (a fixed number of bytes) of a memory, and when."""

    AGAINST = {
        "read": ("write", "atomic"),
        "write": ("write", "atomic", "read", "read before"),
        "atomic": ("write", "read", "read before"),
    }

    def __init__(self, cells):
        kinds = self.AGAINST["write"]
        self.who = {kind: np.zeros(cells, np.int32) for kind in kinds}
        self.when = {kind: np.zeros(cells, np.int32) for kind in kinds}
        self.seen = set()  # kinds of access there have been

    def split(self, parts):
        """Makes the cells smaller."""
        for table in (self.who, self.when):
            for kind in table:
                table[kind] = np.repeat(table[kind], parts)

    def access(self, order, kind, index, cells, warps):
        """Checks and records accesses of `cells` cells each; None, or (which race, with what).

        index: in units of the access, one per lane, as warps.
        """
        race = self.check(order, kind, index, cells, warps)
        return race or self.record(order, kind, index, cells, warps)

    def check(self, order, kind, index, cells, warps):
        each = warps if cells == 1 else warps[:, None]
        for other in self.AGAINST[kind]:
            if other not in self.seen:
                continue
            when = self._rows(self.when, other, cells)[index]
            if when.any():
                who = self._rows(self.who, other, cells)[index]
                wrong = order.unordered(who, when, each)
                if wrong.any():
                    return wrong.reshape(len(warps), -1).any(axis=1), other
        return None

    def record(self, order, kind, index, cells, warps):
        self.seen.add(kind)
        stamp, time = order.stamp(warps)
        if cells > 1:
            stamp, time = stamp[:, None], time[:, None] if time.ndim else time
        who, when = self._rows(self.who, kind, cells), self._rows(self.when, kind, cells)
        old, old_time = (who[index], when[index]) if kind == "read" else (None, None)
        who[index], when[index] = stamp, time
        others = who[index] != stamp  # lanes of a warp that is not the last one at its cell
        if kind != "read":
            # A write by two warps in one step of the interpreter
            wrong = kind == "write" and others.any()
            return (others.reshape(len(warps), -1).any(axis=1), "write") if wrong else None
        # Keep one reader besides the last: of this step if there is one, else of an earlier step
        earlier = (old != stamp) & (old_time > 0)
        for chosen, reader, then in ((earlier, old, old_time), (others, stamp, time)):
            if chosen.any():
                self.seen.add("read before")
                self._keep_before(chosen, index, cells, reader, then)
        return None

    def _keep_before(self, chosen, index, cells, reader, then):
        reader, then = np.broadcast_to(reader, chosen.shape), np.broadcast_to(then, chosen.shape)
        where = np.nonzero(chosen)
        place = (index[where[0]], *where[1:])
        self._rows(self.who, "read before", cells)[place] = reader[chosen]
        self._rows(self.when, "read before", cells)[place] = then[chosen]

    def _rows(self, table, kind, cells):
        return table[kind] if cells == 1 else table[kind].reshape(-1, cells)

    def agent_writes(self, clocks, index, cells, warp, cluster, block):
        """A write by the agent of a block, on behalf of a warp.

        Returns (race or None, what a thread learns that waits for the mbarrier).
        """
        index = np.array([index])
        race = self.check(clocks, "write", index, cells, np.array([warp]))
        if race is not None:
            return race, None
        self.seen.add("write")
        clocks.agent_time[cluster, block] += 1
        column, time = clocks.first_agent + block, clocks.agent_time[cluster, block]
        self._rows(self.who, "write", cells)[index] = column
        self._rows(self.when, "write", cells)[index] = time
        known = clocks.publish(np.array([warp]))
        known[column] = max(known[column], time)
        return None, known


class GlobalRaces:
    """The race check of global memory during a launch, one allocation at a time.

    Reads of an allocation that nobody writes need no check, and recording them costs more than
    the reads themselves, so they are kept as they come, and recorded at the first write.
    """

    def __init__(self):
        self.reads = {}  # allocation that nobody has written yet -> its reads
        self.shadows = {}  # allocation that somebody has written -> _Part

    def access(self, batch, kind, allocations, index, width, warps):
        """None, or (which race, with what). index: bytes // width from GLOBAL_BASE."""
        if len(allocations) == 1:
            return self._one(batch.launch_clocks, kind, allocations[0], index, width, warps)
        index = np.broadcast_to(index, warps.shape)
        place = index * width + GLOBAL_BASE
        for allocation in allocations:
            mine = (place >= allocation.start) & (place < allocation.end)
            race = self._one(batch.launch_clocks, kind, allocation, index[mine], width, warps[mine])
            if race is not None:
                wrong = np.zeros(warps.shape, bool)
                wrong[mine] = race[0]
                return wrong, race[1]
        return None

    def _one(self, order, kind, allocation, index, width, warps):
        if allocation.readonly:
            return None
        part = self.shadows.get(allocation)
        if part is None and kind == "read":
            self.reads.setdefault(allocation, []).append((_Then(order), index, width, warps))
            return None
        if part is None:
            part = self.shadows[allocation] = _Part(allocation, width)
            for then, *read in self.reads.pop(allocation, ()):
                part.shadow.record(then, "read", *part.place(*read))
        return part.shadow.access(order, kind, *part.place(index, width, warps))


class _Part:
    """The shadow of one allocation; its cells are as small as the smallest access so far."""

    def __init__(self, allocation, width):
        self.granule = width
        # 32 bytes are the largest access
        self.base = (allocation.start - GLOBAL_BASE) // 32 * 32
        self.size = -(-(allocation.end - GLOBAL_BASE - self.base) // 32) * 32
        self.shadow = Shadow(self.size // width)

    def place(self, index, width, warps):
        """(index in the shadow, cells of an access, warps)"""
        if width < self.granule:
            self.shadow.split(self.granule // width)
            self.granule = width
        index = index - self.base // width
        index = index if index.ndim else np.full(warps.shape, index)
        return index, width // self.granule, warps


class _Then:
    """The clocks of a launch as they stood at some time, for recording a read later."""

    def __init__(self, order):
        self.number = order.number
        clocks = order.clocks
        own = (np.arange(len(order.number)), clocks.column) if clocks is not None else None
        self.time = clocks.heard[own] if own is not None else None

    def stamp(self, warps):
        return self.number[warps], np.int32(1) if self.time is None else self.time[warps]
