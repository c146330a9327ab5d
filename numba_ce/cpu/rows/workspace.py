"""A worker's memory, and how it is cut up."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numba_ce.cpu.compile.jit import inner, larger
from numba_ce.cpu.rows.output import EDGE_BYTES
from numba_ce.cpu.rows.tile import TILE, group_size, real_type
from numba_ce.cpu.simd.vector import VECTOR_BYTES

ROOM = TILE + 2 * group_size("float32")  # elements of the room for a tile
EIGHT = 8  # rows that are finished together, see `eight`
ROWS_BYTES = 16 * EIGHT * 8


class Workspace(NamedTuple):
    """Addresses in a worker's memory, see `workspace_finder`."""

    edge: int  # the line of the output that is not finished, see `output`
    rows: int  # what is known of eight rows, see `eight`
    exps: int  # of a row, or of the first tiles of eight rows
    scales: int  # float64 (n_tiles, 4): `Scale` of each tile, the class left out and its logit
    tile: int  # room for a `Tile`
    weights: int  # room for a `Tile`
    logits: int
    near: int  # copies of rows, see `copies`


def workspace_bytes(n_classes, kind):
    """Bytes a worker needs: O(n_classes), whatever the number of rows."""
    width = 8 if kind == "float64" else 4
    n_tiles = max(-(-n_classes // TILE), EIGHT)
    return EDGE_BYTES + ROWS_BYTES + n_tiles * (TILE * width + 64) + 3 * ROOM * width + 128


@lru_cache
def workspace_finder(kind):
    """The function that cuts a worker's memory into a `Workspace`."""
    width = np.dtype(real_type(kind)).itemsize

    @inner
    def find_workspace(plan, worker):
        start = plan.workspace + worker * plan.workspace_bytes
        edge = (start + 63) // 64 * 64
        rows = edge + EDGE_BYTES
        start = rows + ROWS_BYTES
        n_tiles = larger((plan.n_classes + TILE - 1) // TILE, EIGHT)
        tile = start + n_tiles * TILE * width
        scales = tile + 3 * ROOM * width
        weights = tile + ROOM * width
        logits = weights + ROOM * width
        end = plan.workspace + (worker + 1) * plan.workspace_bytes
        near = (end - plan.near_bytes + VECTOR_BYTES - 1) // VECTOR_BYTES * VECTOR_BYTES
        return Workspace(edge, rows, start, scales, tile, weights, logits, near)

    return find_workspace
