"""What the compiler made of every CUDA kernel, without a GPU: python -m benchmarks.cuda_offline

For each kernel that the launch table can choose and each compute capability: registers, the bound
that the launch sets, spilled bytes, 128-bit loads and stores. Exits with 1 if one of them is not
what it has to be. Takes half an hour; `--capability 9.0` does one only, `--part 2/8` an eighth.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from contextlib import contextmanager
from typing import NamedTuple

try:
    from numba.cuda.codegen import CUDACodeLibrary

    from numba_ce.cuda.choose import blocks_per_processor, layouts
    from numba_ce.cuda.compiled import SMALL_KERNELS, ptx_of, threads_of
    from numba_ce.cuda.intrinsics import KINDS
    from numba_ce.cuda.kernel import Kernel
    from numba_ce.cuda.ptx import to_cubin
    from numba_ce.cuda.resident import Resident
    from numba_ce.cuda.stage import SLOTS
    from numba_ce.cuda.walk import Access, staged_out
except ImportError:
    # asv imports every module of this folder, also where numba-cuda is not installed: then Numba's
    # own numba.cuda is found, which has other names in it
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


@contextmanager
def _for_others(capabilities, texts):
    """What is compiled within it is compiled for these capabilities too.

    Nine tenths of the time goes into what is the same for all of them.
    """
    assembly = CUDACodeLibrary.get_asm_strs

    def for_all(library, cc=None):
        for capability in capabilities:
            texts[capability] = "\n".join(assembly(library, (*capability, *cc[2:])))
        return assembly(library, cc)

    CUDACodeLibrary.get_asm_strs = for_all
    try:
        yield
    finally:
        CUDACodeLibrary.get_asm_strs = assembly


def texts_of(kernel, capabilities):
    """The PTX of a kernel, by capability."""
    texts, waiting = {}, list(capabilities)
    while waiting:
        first = waiting[0]
        blocks = blocks_per_processor(kernel, first)  # is part of the text
        alike = [c for c in waiting if blocks_per_processor(kernel, c) == blocks]
        with _for_others(alike[1:], texts):
            texts[first], _ = ptx_of(kernel, first)
        waiting = [c for c in waiting if c not in alike]
    return texts


def figures(kernel, capability, text=None):
    """Compile a kernel and count."""
    if text is None:
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
    if isinstance(kernel, Kernel) and kernel.access.staged:
        # One loop in, SLOTS at a time, and one out; the compiler may unroll both
        leaves = staged_out(kernel.access, kernel.grad_kind)
        if found.loads % SLOTS or not found.loads or bool(found.stores) != leaves:
            yield f"{(found.loads, found.stores)} accesses of 128 bits, expected two loops"


def residents(capability):
    """Every register-resident kernel."""
    for kind in KINDS:
        for grad in (False, True):
            yield from layouts(kind, grad, capability)


def generals():
    """Every general kernel: the operations, ways to walk, options, and dtypes of the outputs."""
    accesses = [Access(kind, staged) for kind in KINDS for staged in (True, False)]
    accesses += [Access(kind, wide=True) for kind in KINDS if KINDS[kind][0] == 2]
    for access in accesses:
        kind = access.kind
        out_kinds = (kind, "float32") if KINDS[kind][0] == 2 else (kind,)
        for operation in ("stats", "logsumexp"):
            yield Kernel(operation, access)
        for out in out_kinds:
            yield Kernel("softmax", access, grad_kind=out)
            yield Kernel("log_softmax", access, grad_kind=out)
            for dense, hess_kind in itertools.product((False, True), out_kinds):
                yield Kernel("hess", access, dense, out, hess_kind)
        for softcap, dense in itertools.product((False, True), repeat=2):
            capped = access._replace(softcap=softcap)
            for out in out_kinds:
                yield Kernel("loss", capped, dense, out)
                yield Kernel("from_record", capped, dense, out)
            yield Kernel("loss", capped, dense)
            yield Kernel("record", capped, dense)


def name_of(kernel):
    """A line's worth."""
    if isinstance(kernel, Resident):
        what = "loss+grad" if kernel.grad else "loss"
        shape = f"{kernel.sharing} of {kernel.threads} threads x {kernel.slots} x {kernel.cluster}"
        return f"resident {kernel.kind} {what} {shape}, up to {kernel.capacity} classes"
    if isinstance(kernel, Kernel):
        access = kernel.access
        way = "staged" if access.staged else "wide" if access.wide else "direct"
        words = ["general", access.kind, kernel.operation, way]
        words += ["/".join(kind for kind in (kernel.grad_kind, kernel.hess_kind) if kind)]
        words += ["dense"] * kernel.dense + ["softcap"] * access.softcap
        return " ".join(word for word in words if word)
    return kernel


def main(arguments=None):
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", action="append", help="such as 9.0; several are possible")
    parser.add_argument("--part", default="1/1", help="i/n: every n-th kernel, from the i-th")
    chosen = parser.parse_args(arguments)
    wanted = [tuple(map(int, c.split("."))) for c in chosen.capability or ()] or CAPABILITIES
    part, parts = map(int, chosen.part.split("/"))
    resident = dict.fromkeys(k for c in wanted for k in residents(c))
    bad = spilled = count = 0
    for kernel in [*resident, *generals(), *SMALL_KERNELS][part - 1 :: parts]:
        used = [c for c in wanted if kernel not in resident or kernel in residents(c)]
        texts = texts_of(kernel, used)
        for capability in used:
            found = figures(kernel, capability, texts[capability])
            wrong = "; ".join(complaints(kernel, found))
            bad, count = bad + bool(wrong), count + 1
            spilled += bool(found.local_bytes)
            sm = f"sm_{capability[0]}{capability[1]}"
            print(
                f"{sm:7}{name_of(kernel):78} registers {found.registers:3} of {found.bound:3}  "
                f"local {found.local_bytes:3}  128 bit {found.loads:2} in {found.stores:2} out  "
                f"{wrong or 'ok'}",
                flush=True,
            )
    print(f"{count} kernels, {spilled} with bytes in local memory, {bad} not as expected")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
