"""The shape of a launch, its parameters and its special registers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .fault import Unsupported


@dataclass
class Counts:
    """What the threads of a launch did."""

    instructions: int = 0  # summed over threads
    loads: Counter = field(default_factory=Counter)  # from global memory: width in bytes -> number
    stores: Counter = field(default_factory=Counter)
    bytes_read: dict = field(default_factory=dict)  # address of an allocation -> bytes
    bytes_written: dict = field(default_factory=dict)


def _three(shape):
    shape = (int(shape),) if np.ndim(shape) == 0 else tuple(int(n) for n in shape)
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise ValueError(f"{shape}: one to three positive numbers are possible")
    return shape + (1,) * (3 - len(shape))


def _split_index(linear, shape):
    return linear % shape[0], linear // shape[0] % shape[1], linear // (shape[0] * shape[1])


class Launch:
    """The shape of a launch and its parameters."""

    def __init__(self, program, grid, block, cluster, args, shared):
        self.grid, self.block = _three(grid), _three(block)
        self.threads = int(np.prod(self.block))
        if self.threads > 1024:
            raise ValueError(f"block={block}: at most 1024 threads")
        limit = program.entry.max_threads
        if limit is not None and self.threads > limit:
            raise ValueError(f"block={block}: the kernel is compiled for {limit} threads at most")
        self.cluster = _three(cluster or program.entry.cluster or 1)
        if any(n % c for n, c in zip(self.grid, self.cluster, strict=True)):
            raise ValueError(f"grid={grid} is not a multiple of the cluster {self.cluster}")
        self.shared = int(shared)
        self.counts = Counts()
        self.global_races = None
        self.clusters_done = 0
        self.params = _params(program, args)

    def clusters(self):
        """Linear block numbers of every cluster, in the order of their ranks."""
        (gx, gy, gz), (cx, cy, cz) = self.grid, self.cluster
        for z in range(0, gz, cz):
            for y in range(0, gy, cy):
                for x in range(0, gx, cx):
                    yield [
                        (x + i) + gx * ((y + j) + gy * (z + k))
                        for k in range(cz)
                        for j in range(cy)
                        for i in range(cx)
                    ]

    def block_index(self, linear):
        return tuple(int(i) for i in _split_index(linear, self.grid))

    def thread_index(self, linear):
        return tuple(int(i) for i in _split_index(linear, self.block))

    def special(self, name, batch, thread):
        """The value of a special register, per thread or for all."""
        base, _, axis = name.lstrip("%").partition(".")
        axis = "xyz".find(axis) if axis else 0
        block = batch.blocks[batch.block_of]
        index = _split_index(block, self.grid)[axis]
        rank = batch.block_of % batch.blocks_per_cluster
        place = batch.place_of
        clusters = [g // c for g, c in zip(self.grid, self.cluster, strict=True)]
        one = np.uint64(1)
        values = {
            "tid": lambda: _split_index(thread, self.block)[axis],
            "ntid": lambda: np.uint32(self.block[axis]),
            "ctaid": lambda: index,
            "nctaid": lambda: np.uint32(self.grid[axis]),
            "laneid": lambda: place,
            "warpid": lambda: thread // 32,
            "nwarpid": lambda: np.uint32(batch.warps_per_block),
            "clusterid": lambda: index // self.cluster[axis],
            "nclusterid": lambda: np.uint32(clusters[axis]),
            "cluster_ctaid": lambda: index % self.cluster[axis],
            "cluster_nctaid": lambda: np.uint32(self.cluster[axis]),
            "cluster_ctarank": lambda: rank,
            "cluster_nctarank": lambda: np.uint32(batch.blocks_per_cluster),
            "is_explicit_cluster": lambda: np.uint32(batch.blocks_per_cluster > 1),
            "lanemask_eq": lambda: one << place.astype(np.uint64),
            "lanemask_lt": lambda: (one << place.astype(np.uint64)) - one,
            "lanemask_le": lambda: (one << (place.astype(np.uint64) + one)) - one,
            "lanemask_gt": lambda: ~((one << (place.astype(np.uint64) + one)) - one),
            "lanemask_ge": lambda: ~((one << place.astype(np.uint64)) - one),
            "dynamic_smem_size": lambda: np.uint32(self.shared),
            "total_smem_size": lambda: np.uint32(batch.shared.stride),
            **dict.fromkeys(("clock", "clock64", "globaltimer", "smid"), lambda: np.uint32(0)),
        }
        if base not in values:
            raise Unsupported(f"special register {name}")
        return values[base]()


def _params(program, args):
    """The bytes of the kernel's parameters."""
    params = program.entry.params
    if len(args) != len(params):
        raise ValueError(f"{len(args)} arguments for {len(params)} parameters")
    data = np.zeros(program.param_bytes, np.uint8)
    for item, value in zip(params, args, strict=True):
        start = program.param_offsets[item.name]
        if isinstance(value, (bytes, np.ndarray)):
            raw = np.frombuffer(bytes(value), np.uint8)
        elif item.dtype.kind == "f":
            raw = np.array([value], item.dtype).view(np.uint8)
        elif isinstance(value, (float, np.floating)):  # a float in a parameter of type .b32
            raw = np.array([value], f"f{item.size}").view(np.uint8)
        else:
            raw = np.frombuffer(
                (int(value) % (1 << 8 * item.size)).to_bytes(item.size, "little"), np.uint8
            )
        if raw.size != item.size:
            raise ValueError(f"parameter {item.name} has {item.size} bytes, not {raw.size}")
        data[start : start + item.size] = raw
    return data
