"""What the compiler makes of the CUDA kernels, for every generation of GPUs.

A sample; `python -m benchmarks.cuda_offline` does all of them.
"""

from __future__ import annotations

import pytest

pytest.importorskip("numba_cuda")

from benchmarks.cuda_offline import CAPABILITIES, complaints, figures, generals, name_of
from numba_ce.cuda.compiled import SMALL_KERNELS
from numba_ce.cuda.intrinsics import KINDS
from numba_ce.cuda.plan import FIELDS, PACKER
from numba_ce.cuda.table import layouts, resident_for

GENERALS = [k for k in generals() if k.access.vector or k.access.kind == "float64"]


def _sample():
    """The layouts with the most registers at stake, and some of the general kernels."""
    for i, capability in enumerate(CAPABILITIES):
        for kind in ("float32", "bfloat16"):
            yield capability, layouts(kind, True, capability)[-1]
        for kernel in GENERALS[5 * i :: 32]:
            yield capability, kernel
    yield CAPABILITIES[1], layouts("float16", False, CAPABILITIES[1])[-1]
    for kernel in SMALL_KERNELS:
        yield CAPABILITIES[1], kernel


@pytest.mark.parametrize(
    ("capability", "kernel"),
    [pytest.param(c, k, id=f"sm_{c[0]}{c[1]} {name_of(k)}") for c, k in _sample()],
)
def test_figures(capability, kernel):
    found = figures(kernel, capability)
    assert not list(complaints(kernel, found)), found


@pytest.mark.parametrize("capability", [(7, 5), *CAPABILITIES])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grad", [False, True])
def test_table(kind, grad, capability):
    """Every row finds the smallest layout that holds it; clusters and 16 bits where there are."""
    found = layouts(kind, grad, capability)
    capacities = [k.capacity for k in found]
    assert capacities == sorted(set(capacities))
    for kernel in found:
        assert resident_for(kind, grad, kernel.capacity, capability) == kernel
        assert kernel.cluster == 1 or capability >= (9, 0)
        assert kernel.threads % 32 == 0 and kernel.threads % kernel.sharing == 0
    beyond = capacities[-1] + 1 if found else 1
    assert resident_for(kind, grad, beyond, capability) is None
    if kind != "float64" and grad and capability >= (9, 0):
        assert capacities[-1] >= 262144


def test_plan_is_packed_as_the_kernel_reads_it():
    assert PACKER.size == 8 * len(FIELDS) < 4096
