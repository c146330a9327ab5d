"""From a plan to a launch."""

from __future__ import annotations

from typing import Any

from numba_ce.cuda.compiled import code_of, threads_of
from numba_ce.cuda.driver import current_driver
from numba_ce.cuda.kernel import Kernel
from numba_ce.cuda.plan import PACKER
from numba_ce.cuda.resident import Resident
from numba_ce.cuda.stage import stage_bytes
from numba_ce.cuda.thread_layout import rows_of_block

MAX_GRID = 1 << 20  # blocks of the general kernel: each takes several rows beyond that


def blocks_for(kernel: Any, n_rows: int, n_classes: int) -> Any:
    """Blocks of a launch over so many rows."""
    if isinstance(kernel, Resident):
        return -(-n_rows // kernel.rows_per_block) * kernel.cluster
    return min(-(-n_rows // rows_of_block(kernel.access.layout, n_classes)), MAX_GRID)


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
        blocks = blocks_for(kernel, fields["n_rows"], fields["n_classes"])
    shared = stage_bytes(kernel.access, fields["n_classes"]) if isinstance(kernel, Kernel) else 0
    plan = PACKER.pack(*fields.values())
    gpu.launch(function, blocks, threads_of(kernel), plan, stream, shared)
