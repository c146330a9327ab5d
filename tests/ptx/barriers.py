"""What lanes wait for: barriers of blocks and of clusters, and mbarriers."""

from __future__ import annotations

import numpy as np

from .program import BATCH, BLOCK, LANE, WARP


class BlockBarriers:
    """bar.sync and its kin: 16 barriers per block."""

    def __init__(self, batch):
        self.batch = batch
        self.waiting = {}  # (block, barrier) -> arrivals: (lanes, pc or None for bar.arrive, vote)
        self.expected = {}

    def arrive(self, block, statement, R, lanes, slots, pc, reduction):
        """All these lanes arrive; pc: where they go on, None if they do not wait."""
        batch = self.batch
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
        for where in [w for w in self.waiting if w[0] in blocks and self.expected[w] is None]:
            self.complete(where)

    def describe(self):
        for arrivals in self.waiting.values():
            for lanes, pc, _, _ in arrivals:
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

    def arrive(self, statement, R, lanes, relaxed):
        batch = self.batch
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

    def describe(self):
        yield from self.waiting


class Mbarrier:
    def __init__(self, count):
        self.count = self.pending = count
        self.bytes = 0  # expected and not arrived yet
        self.phase = 0
        self.known = self.done = None  # clocks: of the arrivals so far, of the phase before


class Mbarriers:
    """Barrier objects in shared memory, by their place in the batch's shared memory."""

    def __init__(self, batch):
        self.batch = batch
        self.objects = {}

    def places(self, access, R):
        """Byte position of the object of every lane."""
        batch, lanes = self.batch, R[LANE]
        address = access.address(R)
        if access.space == "generic":
            _, address = access.resolve(R, address)
        block = R[BLOCK]
        if address.max() >> np.uint64(24):
            block = batch.block_of_rank(access.statement, R, address)
        flat = access.in_part(R, block, batch.offset_in_block(address), batch.shared, address)[0]
        return np.broadcast_to(flat, lanes.shape)

    def find(self, place, access, R, lane):
        found = self.objects.get(int(place))
        if found is None:
            which = np.arange(R[LANE].size) == lane
            text = "mbarrier that has not been initialised"
            self.batch.fault(access.statement, R, which, text, access.address(R))
        return found

    def execute(self, access, R, action, values, expect, parity, relaxed):
        places = self.places(access, R)
        values = [np.broadcast_to(v, places.shape) for v in values]
        if action in ("test_wait", "try_wait"):
            return self.test(access, R, places, values[0], parity, relaxed)
        tokens = np.zeros(places.size, np.uint64)
        for lane, place in enumerate(places.tolist()):
            if action == "init":
                count = int(values[0][lane])
                if place in self.objects and self.objects[place].pending != count:
                    which = np.arange(places.size) == lane
                    text = "mbarrier initialised while in use"
                    self.batch.fault(access.statement, R, which, text)
                self.objects[place] = Mbarrier(count)
                continue
            barrier = self.find(place, access, R, lane)
            if action == "inval":
                del self.objects[place]
                continue
            tokens[lane] = barrier.phase
            if action == "expect":
                barrier.bytes += int(values[0][lane])
                continue
            count = 1
            if expect:
                barrier.bytes += int(values[0][lane])
            elif values:
                count = int(values[0][lane])
            if count > barrier.pending:
                which = np.arange(places.size) == lane
                text = f"{count} arrivals at an mbarrier that expects {barrier.pending}"
                self.batch.fault(access.statement, R, which, text)
            barrier.pending -= count
            if action == "arrive_drop":
                barrier.count -= count
            if not relaxed:
                self.inform(barrier, int(R[WARP][lane]))
            self.complete(barrier)
        return tokens

    def inform(self, barrier, warp, known=None):
        """Adds what the warp knows to what the waiting ones will learn."""
        clocks = self.batch.clocks
        if clocks is None:
            return
        if known is None:
            known = clocks.publish(np.array([warp]))
        barrier.known = known if barrier.known is None else np.maximum(barrier.known, known)

    def complete(self, barrier):
        if barrier.pending == 0 and barrier.bytes == 0:
            barrier.phase += 1
            barrier.pending = barrier.count
            barrier.done, barrier.known = barrier.known, None
            self.batch.wake()

    def test(self, access, R, places, values, parity, relaxed):
        result = np.zeros(places.size, bool)
        for place in np.unique(places):
            mine = places == place
            barrier = self.find(place, access, R, int(np.argmax(mine)))
            now = barrier.phase & 1 if parity else barrier.phase
            result[mine] = values[mine] != now
            clocks = self.batch.clocks
            if clocks is not None and barrier.done is not None and not relaxed:
                warps = np.unique(R[WARP][mine & result])
                clocks.learn(warps, barrier.done)
        return result


__all__ = ["BATCH", "BlockBarriers", "ClusterBarrier", "Mbarriers"]
