"""mbarrier objects, and the stores to other blocks that report to them."""

from __future__ import annotations

import numpy as np

from .slots import BLOCK, LANE, WARP


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


class Messages:
    """st.async: data for another block and an mbarrier there, under way.

    They arrive at once if the warps run in step, else at a random later time.
    """

    def __init__(self, batch):
        self.batch = batch
        self.in_flight = []

    def send(self, access, signal, R, words):
        """One message per lane; words: what each stores."""
        batch, lanes = self.batch, R[LANE]
        address = access.address(R)
        block = batch.block_of_rank(access.statement, R, address)
        offset = batch.offset_in_block(address)
        flat, _ = access.in_part(R, block, offset, batch.shared, address)
        flat, block = np.broadcast_to(flat, lanes.shape), np.broadcast_to(block, lanes.shape)
        places = self.batch.mbarriers.places(signal, R)
        for i, lane in enumerate(lanes.tolist()):
            message = access, lane, int(block[i]), int(flat[i]), int(places[i]), words[i].copy()
            self.in_flight.append(message)
            if batch.random is None:
                self.deliver_one()

    def deliver_one(self):
        count = len(self.in_flight)
        which = self.batch.random.randrange(count) if self.batch.random else 0
        self._deliver(*self.in_flight.pop(which))

    def _deliver(self, access, lane, block, flat, place, words):
        batch = self.batch
        R = list(batch.scratch)
        R[LANE] = np.array([lane])

        def fault(text):
            batch.fault(access.statement, R, None, text)

        if not batch.alive_in_block[block]:
            fault("data arrive at a block that has exited")
        barrier = batch.mbarriers.objects.get(place)
        if barrier is None:
            fault("mbarrier that has not been initialised")
        batch.shared.data[flat : flat + access.width] = words.view(np.uint8)
        batch.shared.mark_written(np.int64(flat >> access.shift), access.width)
        if batch.shadow is not None:
            warp = int(batch.warp_of[lane])
            index, cells = flat >> access.shift, access.width // batch.program.granule
            where = divmod(block, batch.blocks_per_cluster)
            race, known = batch.shadow.agent_writes(batch.clocks, index, cells, warp, *where)
            if race is not None:
                fault(f"data race: st.async after a {race[1]}, with no barrier between")
            batch.mbarriers.inform(barrier, warp, known)
        barrier.bytes -= access.width
        batch.mbarriers.complete(barrier)
