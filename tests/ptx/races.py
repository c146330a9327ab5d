"""Data races in shared memory: happens-before by vector clocks, one clock per warp.

Every warp counts its synchronisations. For each cell of shared memory the last writer, the last
atomic access and the two latest readers from different warps are remembered with the time on
their own warp's clock. An access is ordered after a remembered one if its warp has heard, through
barriers, of that time. With barriers of whole blocks two readers are enough: if one reader is
unordered with a later write then one of the two latest is. Data that `st.async` brings counts as
written by an agent of the receiving block; whoever waits for the mbarrier has heard of it.

Lanes of one warp are not checked against each other.
"""

from __future__ import annotations

import numpy as np


class Clocks:
    """heard[w, c]: the latest time of the warp in column c of its cluster that warp w knows of."""

    def __init__(self, warps, warps_per_cluster, blocks_per_cluster):
        self.columns = warps_per_cluster + blocks_per_cluster  # the agents come last
        self.first_agent = warps_per_cluster
        self.column = np.arange(warps) % warps_per_cluster
        self.heard = np.zeros((warps, self.columns), np.int32)
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


class Shadow:
    """Who touched each cell (a fixed number of bytes) of shared memory, and when."""

    KINDS = ("write", "atomic", "read", "read before")

    def __init__(self, cells, clocks):
        self.clocks = clocks
        self.who = {kind: np.zeros(cells, np.int32) for kind in self.KINDS}
        self.when = {kind: np.zeros(cells, np.int32) for kind in self.KINDS}

    def _unordered(self, kind, cells, warps):
        who, when = self.who[kind][cells], self.when[kind][cells]
        return self.clocks.heard[warps, who] < when

    def _stamp(self, kind, cells, columns, times):
        self.who[kind][cells] = columns
        self.when[kind][cells] = times

    def access(self, kind, cells, warps):
        """Records; returns which accesses race, and with what, or None.

        kind: read, write or atomic; cells and warps: one per access.
        """
        against = {
            "read": ("write", "atomic"),
            "write": ("write", "atomic", "read", "read before"),
            "atomic": ("write", "read", "read before"),
        }[kind]
        for other in against:
            wrong = self._unordered(other, cells, warps)
            if wrong.any():
                return wrong, other
        columns = self.clocks.column[warps]
        times = self.clocks.heard[warps, columns]
        if kind != "read":
            self._stamp(kind, cells, columns, times)
            wrong = self.who[kind][cells] != columns
            if kind == "write" and wrong.any():  # two warps in one step of the interpreter
                return wrong, "write"
            return None
        old_who, old_when = self.who["read"][cells], self.when["read"][cells]
        self._stamp("read before", cells[::-1], columns[::-1], times[::-1])
        self._stamp("read", cells, columns, times)
        # "read before" now holds the first reader of this step; where that is also the last, the
        # reader of an earlier step is the one to keep, if it was another warp.
        same = (self.who["read before"][cells] == self.who["read"][cells]) & (
            old_who != self.who["read"][cells]
        )
        if same.any():
            self._stamp("read before", cells[same], old_who[same], old_when[same])
        return None

    def agent_writes(self, cells, warp, cluster, block):
        """A write by the agent of a block, on behalf of a warp.

        Returns (race or None, what a thread learns that waits for the mbarrier).
        """
        warps = np.full(cells.size, warp)
        for other in ("write", "atomic", "read", "read before"):
            wrong = self._unordered(other, cells, warps)
            if wrong.any():
                return (wrong, other), None
        clocks = self.clocks
        clocks.agent_time[cluster, block] += 1
        column, time = clocks.first_agent + block, clocks.agent_time[cluster, block]
        self._stamp("write", cells, column, time)
        known = clocks.publish(np.array([warp]))
        known[column] = max(known[column], time)
        return None, known
