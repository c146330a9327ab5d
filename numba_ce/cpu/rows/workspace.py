"""A worker's memory, and how it is cut up."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inner, larger
from numba_ce.cpu.rows.batch import BATCH, Batch
from numba_ce.cpu.rows.output import EDGE_BYTES
from numba_ce.cpu.rows.tile import TILE, group_size, real_type
from numba_ce.cpu.simd.vector import VECTOR_BYTES

ROOM = TILE + 2 * group_size("float32")  # elements of the room for a tile
SCALE_BYTES = 32  # of a tile, see `measure`


class Elements(NamedTuple):
    """What is needed to write the elements of eight rows."""

    q_factor: int
    values: int  # what an operation returns for its elements: up to seven fields
    single: int  # float32: two factors whose product is that of the exponentials


_FIELD = BATCH * 8
# Offsets in `Workspace.batch` of eight float64 each; a row has the same lane in all of them
FIELDS = Batch(*range(0, len(Batch._fields) * _FIELD, _FIELD))
ELEMENTS = Elements(*(len(FIELDS) * _FIELD + n * _FIELD for n in (0, 1, 8)))
BATCH_BYTES = ELEMENTS.single + 2 * _FIELD


class Workspace(NamedTuple):
    """Addresses in a worker's memory, see `workspace_finder`."""

    edge: int  # the line of the output that is not finished, see `output`
    batch: int  # what is known of eight rows, at FIELDS and ELEMENTS
    exps: int  # of a row, or of the first tiles of eight rows
    scales: int  # float64 (n_tiles, 4): `Scale` of each tile, the class left out and its logit
    tile: int  # room for a `Tile`
    weights: int  # room for a `Tile`
    logits: int
    near: int  # copies of rows, see `gather`


def workspace_bytes(n_classes, width):
    """Bytes a worker needs: O(n_classes), whatever the number of rows.

    width : bytes of the type of the tiles
    """
    n_tiles = max(-(-n_classes // TILE), BATCH)
    tiles = n_tiles * (TILE * width + 2 * SCALE_BYTES)
    return EDGE_BYTES + BATCH_BYTES + tiles + 3 * ROOM * width + 128


@lru_cache
def workspace_finder(kind):
    """The function that cuts a worker's memory into a `Workspace`."""
    width = np.dtype(real_type(kind)).itemsize

    @inner
    def find_workspace(plan, worker):
        start = plan.workspace + worker * plan.workspace_bytes
        edge = (start + 63) // 64 * 64
        batch = edge + EDGE_BYTES
        start = batch + BATCH_BYTES
        n_tiles = larger((plan.n_classes + TILE - 1) // TILE, BATCH)
        tile = start + n_tiles * TILE * width
        scales = tile + 3 * ROOM * width
        weights = tile + ROOM * width
        logits = weights + ROOM * width
        end = plan.workspace + (worker + 1) * plan.workspace_bytes
        near = (end - plan.near_bytes + VECTOR_BYTES - 1) // VECTOR_BYTES * VECTOR_BYTES
        return Workspace(edge, batch, start, scales, tile, weights, logits, near)

    return find_workspace


@lru_cache
def row_workspace(kind):
    """The function that gives the i-th of eight rows, each of one tile, memory of its own."""
    tile_bytes = TILE * np.dtype(real_type(kind)).itemsize

    @inner
    def workspace_of(work, i):
        return Workspace(
            work.edge,
            work.batch,
            work.exps + i * tile_bytes,
            work.scales + i * SCALE_BYTES,
            work.tile,
            work.weights,
            work.logits,
            work.near,
        )

    return workspace_of
