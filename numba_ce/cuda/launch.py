"""From a plan to a launch."""

from __future__ import annotations

from typing import Any

from numba_ce.cuda.compiled import code_of, threads_of
from numba_ce.cuda.driver import current_driver
from numba_ce.cuda.group import rows_of_block
from numba_ce.cuda.plan import PACKER
from numba_ce.cuda.resident import Resident

MAX_GRID = 1 << 20  # blocks of the general kernel: each takes several rows beyond that


def blocks_for(kernel: Any, n_rows: int) -> Any:
    """Blocks of a launch over so many rows."""
    if isinstance(kernel, Resident):
        return -(-n_rows // kernel.rows_per_block) * kernel.cluster
    at_once, _ = rows_of_block(kernel.access.along_rows)
    return min(-(-n_rows // at_once), MAX_GRID)


def launch(
    kernel: Any, fields: dict[str, Any], device: int, stream: int, blocks: int | None = None
) -> None:
    """Start a kernel over the rows of a plan, given as the dictionary of its fields."""
    gpu = current_driver()
    key = kernel, device
    function = gpu.functions.get(key)
    if function is None:
        function = gpu.functions[key] = gpu.load(code_of(kernel, gpu.capability(device)))
    if blocks is None:
        blocks = blocks_for(kernel, fields["n_rows"])
    gpu.launch(function, blocks, threads_of(kernel), PACKER.pack(*fields.values()), stream)
