"""What lanes wait for: barriers of blocks and of clusters."""

from __future__ import annotations

import numpy as np

from .slots import LANE


class BlockBarriers:
    """bar.sync and its kin: 16 barriers per block."""

    def __init__(self, batch):
        self.batch = batch
        self.waiting = {}  # (block, barrier) -> arrivals: (lanes, pc or None for bar.arrive, vote)
        self.expected = {}

    def arrive(self, statement, R, slots, pc, reduction):
        """All lanes of R arrive; pc: where they go on, None if they do not wait."""
        batch, lanes = self.batch, R[LANE]
        numbers = np.broadcast_to(R[slots[0]], lanes.shape)
        counts = np.broadcast_to(R[slots[1]], lanes.shape) if len(slots) > 1 else None
        vote = None
        if reduction is not None:
            _, _, source, negated = reduction
            vote = np.broadcast_to(R[source], lanes.shape) ^ negated
        keys = batch.block_of[lanes] * 16 + numbers
        for key in np.unique(keys):
            chosen = keys == key
            where = divmod(int(key), 16)
            count = int(counts[chosen][0]) if counts is not None else None
            known = self.expected.setdefault(where, count)
            if known != count:
                batch.fault(statement, R, chosen, f"barrier with {count} threads, before {known}")
            arrival = lanes[chosen], pc, None if vote is None else vote[chosen], reduction
            self.waiting.setdefault(where, []).append(arrival)
            self.complete(where)

    def complete(self, where):
        """Lets everybody go if all have come."""
        batch = self.batch
        arrivals = self.waiting.get(where)
        if not arrivals:
            return
        expected = self.expected[where]
        if expected is None:
            expected = batch.alive_in_block[where[0]]
        lanes = np.sort(np.concatenate([a[0] for a in arrivals]))
        if lanes.size < expected:
            return
        del self.waiting[where], self.expected[where]
        batch.meet(np.unique(batch.warp_of[lanes]))
        for members, pc, _, reduction in arrivals:
            if reduction is not None:
                votes = np.concatenate([a[2] for a in arrivals])
                name, slot, _, _ = reduction
                value = {"popc": np.uint32(votes.sum()), "and": votes.all(), "or": votes.any()}
                batch.write(slot, members, value[name])
            if pc is not None:
                batch.resume(members, pc)

    def after_exit(self, blocks):
        """Exited threads are not waited for."""
        for where in [w for w in self.waiting if self.expected[w] is None and w[0] in blocks]:
            self.complete(where)

    def waiting_lanes(self):
        for arrivals in self.waiting.values():
            for lanes, pc, _, _ in arrivals:
                if pc is not None:
                    yield lanes, pc


class ClusterBarrier:
    """barrier.cluster.arrive and .wait."""

    def __init__(self, batch, clusters):
        self.batch = batch
        self.phase = np.zeros(clusters, int)
        self.count = np.zeros(clusters, int)
        self.arrived = np.zeros(batch.lanes, bool)  # arrived and not waited yet
        self.since = np.zeros(batch.lanes, int)  # in which phase
        self.known = [None] * clusters  # what the arrivals of this phase know
        self.done = [None] * clusters  # the same of the phase before
        self.waiting = []  # (lanes, pc)

    def arrive(self, statement, R, relaxed):
        batch, lanes = self.batch, R[LANE]
        if self.arrived[lanes].any():
            batch.fault(statement, R, self.arrived[lanes], "second arrival without a wait")
        clusters = batch.cluster_of[lanes]
        self.arrived[lanes] = True
        self.since[lanes] = self.phase[clusters]
        for cluster in np.unique(clusters):
            mine = lanes[clusters == cluster]
            self.count[cluster] += mine.size
            if batch.clocks is not None:
                warps = np.unique(batch.warp_of[mine])
                clocks = batch.clocks
                known = clocks.fenced[warps].max(axis=0) if relaxed else clocks.publish(warps)
                before = self.known[cluster]
                self.known[cluster] = known if before is None else np.maximum(before, known)
            self.complete(cluster)

    def complete(self, cluster):
        batch = self.batch
        if self.count[cluster] == 0 or self.count[cluster] < batch.alive_in_cluster(cluster):
            return
        self.phase[cluster] += 1
        self.count[cluster] = 0
        self.done[cluster], self.known[cluster] = self.known[cluster], None
        waiting, self.waiting = self.waiting, []
        for lanes, pc in waiting:
            self.wait(None, None, lanes, pc)

    def wait(self, statement, R, lanes, pc):
        batch = self.batch
        if not self.arrived[lanes].all():
            batch.fault(statement, R, ~self.arrived[lanes], "wait without an arrival")
        clusters = batch.cluster_of[lanes]
        free = self.phase[clusters] > self.since[lanes]
        gone = lanes[free]
        if gone.size:
            self.arrived[gone] = False
            if batch.clocks is not None:
                for cluster in np.unique(clusters[free]):
                    warps = np.unique(batch.warp_of[gone[clusters[free] == cluster]])
                    batch.clocks.learn(warps, self.done[cluster])
            batch.resume(gone, pc)
        if gone.size < lanes.size:
            self.waiting.append((lanes[~free], pc))

    def after_exit(self, lanes):
        """Exited threads count as arrived."""
        clusters = self.batch.cluster_of[lanes]
        counted = self.arrived[lanes] & (self.since[lanes] == self.phase[clusters])
        np.subtract.at(self.count, clusters[counted], 1)
        self.arrived[lanes] = False
        for cluster in np.unique(clusters):
            self.complete(cluster)

    def waiting_lanes(self):
        yield from self.waiting
