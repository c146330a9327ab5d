"""What the threads of some clusters have: registers, shared and local memory, barriers, clocks."""

from __future__ import annotations

import random

import numpy as np

from .barriers import BlockBarriers, ClusterBarrier
from .fault import Fault
from .mbarriers import Mbarriers, Messages
from .memory import ALLOCATED, RANK_SHIFT, SHARED_START, BlockMemory
from .races import Clocks, LaunchClocks, Shadow
from .slots import BATCH, BLOCK, LANE, PLACE, WARP


class Batch:
    """A frame of lanes, one per thread. Closures reach it as R[BATCH].

    Lanes have numbers (block * threads + thread), which they keep. In the frame they lie in that
    order, or, in a random order of warps, team by team; exited lanes are dropped from it.
    """

    def __init__(self, device, program, launch, blocks, seed):
        self.device, self.program, self.launch = device, program, launch
        self.memory, self.counts, self.params = device.memory, launch.counts, launch.params
        self.random = None if seed is None else random.Random(f"{seed} {blocks[0]}")
        self.blocks = np.array(blocks)  # linear number in the grid
        self.threads = launch.threads
        self.blocks_per_cluster = int(np.prod(launch.cluster))
        self.warps_per_block = -(-self.threads // 32)
        self.lanes = self.size = len(blocks) * self.threads

        # By number of the lane.
        lane = np.arange(self.lanes)
        thread = lane % self.threads
        self.block_of = lane // self.threads
        self.warp_of = self.block_of * self.warps_per_block + thread // 32
        self.place_of = thread % 32
        self.cluster_of = self.block_of // self.blocks_per_cluster
        self.warps_per_cluster = self.warps_per_block * self.blocks_per_cluster
        # The same warp of all clusters is one team
        self.team_of = self.warp_of % self.warps_per_cluster if self.random else 0 * lane
        self.frame = np.argsort(self.team_of, kind="stable")
        self.position_of = np.argsort(self.frame)

        self.warps = len(blocks) * self.warps_per_block
        self.alive = self.lanes
        self.alive_in_block = np.full(len(blocks), self.threads)
        self.alive_bits = np.zeros(self.warps, np.uint32)  # of each warp
        bits = np.uint32(1) << self.place_of.astype(np.uint32)
        np.bitwise_or.at(self.alive_bits, self.warp_of, bits)

        self._memories(len(blocks))
        self.global_races = launch.global_races
        first = launch.clusters_done
        self.launch_clocks = LaunchClocks(self, first, program.synchronises)
        self.barriers = BlockBarriers(self)
        self.cluster_barrier = ClusterBarrier(self, len(blocks) // self.blocks_per_cluster)
        self.mbarriers = Mbarriers(self)
        self.messages = Messages(self)
        self._registers(thread)

    def _memories(self, blocks):
        flags = np.zeros(-(-self.launch.shared // 128) * 128, np.uint8)
        flags[: self.launch.shared] = ALLOCATED
        self.shared = BlockMemory(blocks, np.concatenate([self.program.shared_flags, flags]))
        self.local = BlockMemory(self.lanes, self.program.local_flags)
        self.clocks = self.shadow = None
        if self.warps_per_cluster > 1:
            self.clocks = Clocks(self.warps, self.warps_per_cluster, self.blocks_per_cluster)
            self.shadow = Shadow(self.shared.data.size // self.program.granule)

    # ------------------------------------------------------------------ registers

    def _registers(self, thread):
        """G: the values of all slots in the whole frame. scratch: the same for a part of it."""
        program = self.program
        self.G = [None if d is None else np.zeros((), d) for d in program.dtypes]
        for slot, value in program.constants.items():
            self.G[slot] = value
        for name, slot in program.symbols.items():
            self.G[slot] = np.uint64(self.device.symbol(program, name))
        self.G[BATCH] = self
        self.scratch = list(self.G)
        # By identity: a register nobody has written. Its value means nothing to anybody, except
        # for the registers that say whether others have been written.
        self.unset = [
            None if slot in program.uninitialised else value for slot, value in enumerate(self.G)
        ]
        self.G[LANE], self.G[BLOCK] = self.frame, self.block_of[self.frame]
        self.G[WARP], self.G[PLACE] = self.warp_of[self.frame], self.place_of[self.frame]
        for name, slot in program.special.items():
            value = self.launch.special(name, self, thread)
            value = value[self.frame] if value.ndim else value
            self.G[slot] = value.astype(program.dtypes[slot])

    def write(self, slot, lanes, value):
        """Sets a register of some lanes from outside the program."""
        if not self.G[slot].ndim:
            self.G[slot] = np.full(self.size, self.G[slot])
        self.G[slot][self.position_of[lanes]] = value

    def compact(self, keep, block):
        """Drops the other lanes, which have exited, from the frame, before this block runs."""
        live = block.live | 1 << LANE | 1 << BLOCK | 1 << WARP | 1 << PLACE
        live |= sum(1 << slot for slot in self.program.special.values())
        for slot, value in enumerate(self.G):
            if slot != BATCH and value.ndim:
                self.G[slot] = value[keep].copy() if live >> slot & 1 else value.dtype.type(0)
        self.size = self.G[LANE].size
        self.position_of[self.G[LANE]] = np.arange(self.size)

    def exit(self, lanes):
        self.alive -= lanes.size
        blocks = self.block_of[lanes]
        np.subtract.at(self.alive_in_block, blocks, 1)
        bits = np.uint32(1) << self.place_of[lanes].astype(np.uint32)
        np.bitwise_and.at(self.alive_bits, self.warp_of[lanes], ~bits)
        self.barriers.after_exit(blocks)
        self.cluster_barrier.after_exit(lanes)

    def alive_in_cluster(self, cluster):
        first = cluster * self.blocks_per_cluster
        return self.alive_in_block[first : first + self.blocks_per_cluster].sum()

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
        """In which order that many lanes execute an atomic."""
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

    # ------------------------------------------------------------------ messages

    def name(self, lane):
        block = self.launch.block_index(self.blocks[self.block_of[lane]])
        thread = self.launch.thread_index(lane % self.threads)
        return f"block {block} thread {thread}"

    def fault(self, statement, R, which, message, address=None):
        """Raises for the first lane of which (a mask; None or a scalar: the first there is)."""
        position = 0
        if which is not None and np.size(which) > 1:
            position = int(np.flatnonzero(which)[0])
        text = f"{message}: {statement}, {self.name(R[LANE][position])}"
        if address is not None:
            value = np.ravel(address)[position if np.size(address) > 1 else 0]
            text += f", address {int(value):#x}"
        raise Fault(text)
