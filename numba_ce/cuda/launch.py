"""From a plan to a launch."""

from __future__ import annotations

from typing import Any

from numba_ce.cuda.choose import PACKED_FROM
from numba_ce.cuda.compiled import code_of, threads_of
from numba_ce.cuda.driver import current_driver, once
from numba_ce.cuda.kernel import Kernel
from numba_ce.cuda.plan import PACKER
from numba_ce.cuda.resident import Resident
from numba_ce.cuda.stage import stage_bytes
from numba_ce.cuda.thread_layout import rows_at_once

MAX_GRID = 1 << 20  # blocks of the general kernel: each takes several rows beyond that


def function_of(kernel: Any, device: int) -> Any:
    """The function of a kernel on a device, compiled and loaded once."""
    gpu, key = current_driver(), (kernel, device)
    function = gpu.functions.get(key)
    if function is None:
        with once:
            if key not in gpu.functions:
                gpu.functions[key] = gpu.load(code_of(kernel, gpu.capability(device)))
            function = gpu.functions[key]
    return function


def launch(
    kernel: Any, fields: dict[str, Any], device: int, stream: int, blocks: int | None = None
) -> None:
    """Start a kernel over the rows of a plan, given as the dictionary of its fields."""
    gpu, n_rows, shared = current_driver(), fields["n_rows"], 0
    if isinstance(kernel, Kernel) and kernel.access.wide:
        if gpu.capability(device) < PACKED_FROM:
            kernel = kernel._replace(access=kernel.access._replace(wide=False))
    function = function_of(kernel, device)
    if isinstance(kernel, Resident):
        blocks = -(-n_rows // kernel.rows_per_block) * kernel.cluster
    elif isinstance(kernel, Kernel):
        at_once = rows_at_once(fields["lanes"], fields["across"])
        blocks = min(-(-n_rows // at_once), MAX_GRID)
        if kernel.access.staged:
            shared = stage_bytes(kernel.access.kind, fields["n_classes"], at_once)
    gpu.launch(function, blocks, threads_of(kernel), PACKER.pack(*fields.values()), stream, shared)
