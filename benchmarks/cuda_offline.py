"""What the compiler made of every CUDA kernel, without a GPU: python -m benchmarks.cuda_offline

For each kernel that the launch table can choose and each compute capability: registers, the bound
that the launch sets, spilled bytes, 128-bit loads and stores. Exits with 1 if one of them is not
what it has to be. Takes some minutes; with arguments ("9.0 12.0") for these capabilities only.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

try:
    from numba_ce.cuda.compiled import SMALL_KERNELS, ptx_of, threads_of
    from numba_ce.cuda.intrinsics import KINDS
    from numba_ce.cuda.kernel import Kernel
    from numba_ce.cuda.ptx import to_cubin
    from numba_ce.cuda.resident import Resident
    from numba_ce.cuda.table import blocks_per_processor, layouts
    from numba_ce.cuda.walk import Access
except ModuleNotFoundError:
    # asv imports every module of this folder, also where numba-cuda is not installed
    if __name__ == "__main__":
        raise

CAPABILITIES = ((8, 0), (9, 0), (10, 0), (12, 0))
REGISTERS = 65536
WIDE = r"(v4\.[bfu]32|v2\.[bfu]64)"  # the compiler for sm_100 moves floats in pairs


class Figures(NamedTuple):
    """Of one kernel."""

    registers: int
    bound: int  # registers that a thread may have
    local_bytes: int  # spilled, or of arrays that are not in registers
    loads: int  # of 128 bits, in the code
    stores: int


def figures(kernel, capability):
    """Compile a kernel and count."""
    text, _ = ptx_of(kernel, capability)
    _, log = to_cubin(text, capability)
    blocks = blocks_per_processor(kernel, capability)
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", log)))
    stack = int(re.search(r"(\d+) stack|$", log).group(1) or 0)
    return Figures(
        int(re.search(r"used (\d+) registers", log).group(1)),
        min(255, REGISTERS // (blocks * threads_of(kernel)) // 8 * 8),
        spills + stack,
        len(re.findall(r"ld\.global\." + WIDE, text)),
        len(re.findall(r"st\.global\." + WIDE, text)),
    )


def complaints(kernel, found):
    """What is wrong with the figures of a kernel."""
    if found.local_bytes:
        yield f"{found.local_bytes} bytes in local memory"
    if found.registers > found.bound:
        yield f"{found.registers} registers of {found.bound}"
    if isinstance(kernel, Resident):
        expected = kernel.slots, kernel.slots * kernel.grad
        if (found.loads, found.stores) != expected:
            yield f"{(found.loads, found.stores)} accesses of 128 bits, expected {expected}"


def residents(capability):
    """Every register-resident kernel."""
    for kind in KINDS:
        for grad in (False, True):
            yield from layouts(kind, grad, capability)


def generals():
    """The general kernels: all operations and kinds, the ways to walk, with and without options."""
    for kind in KINDS:
        ways = [Access(kind, layout=layout) for layout in ("few", "staged", "row", "beside")]
        if kind != "float64":
            ways.append(Access(kind, vector=True))
        for access in ways:
            for operation in ("stats", "logsumexp"):
                yield Kernel(operation, access)
            for operation in ("softmax", "log_softmax"):
                yield Kernel(operation, access, grad_kind=kind)
            for targets, smoothing in ((None, False), (None, True), (kind, False)):
                grad = {"grad_kind": kind}
                options = {"targets_kind": targets, "smoothing": smoothing}
                yield Kernel("record", access, **options)
                yield Kernel("from_record", access, **options, **grad)
                yield Kernel("loss", access, **options)
                yield Kernel("loss", access, **options, **grad)
                yield Kernel("loss", access._replace(softcap=True), **options, **grad)
                if not smoothing:
                    yield Kernel("hess", access, **options, **grad, hess_kind=kind)


def name_of(kernel):
    """A line's worth."""
    if isinstance(kernel, Resident):
        what = "loss+grad" if kernel.grad else "loss"
        shape = f"{kernel.sharing} of {kernel.threads} threads x {kernel.slots} x {kernel.cluster}"
        return f"resident {kernel.kind} {what} {shape}, up to {kernel.capacity} classes"
    if isinstance(kernel, Kernel):
        access = kernel.access
        way = "128 bits" if access.vector else access.layout
        kinds = "/".join(str(k) for k in (kernel.targets_kind, kernel.grad_kind) if k)
        extra = " smoothing" * kernel.smoothing + " softcap" * access.softcap
        return f"general {access.kind} {kernel.operation} {way} {kinds}{extra}"
    return kernel


def main(arguments):
    """Print the table."""
    wanted = [tuple(map(int, a.split("."))) for a in arguments] or CAPABILITIES
    bad = count = 0
    for capability in wanted:
        for kernel in (*residents(capability), *generals(), *SMALL_KERNELS):
            found = figures(kernel, capability)
            wrong = "; ".join(complaints(kernel, found))
            bad, count = bad + bool(wrong), count + 1
            sm = f"sm_{capability[0]}{capability[1]}"
            print(
                f"{sm:7}{name_of(kernel):78} registers {found.registers:3} of {found.bound:3}  "
                f"local {found.local_bytes:3}  128 bit {found.loads:2} in {found.stores:2} out  "
                f"{wrong or 'ok'}",
                flush=True,
            )
    print(f"{count} kernels, {bad} not as expected")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
