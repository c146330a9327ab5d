"""What the compiler makes of the CUDA kernels, for every generation of GPUs.

A sample; `python -m benchmarks.cuda_offline` does all of them.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from benchmarks.cuda_launch import without_driver
from benchmarks.cuda_offline import (
    CAPABILITIES,
    complaints,
    figures,
    generals,
    name_of,
    residents,
)
from numba_ce._validate import Problem
from numba_ce.cuda import operations
from numba_ce.cuda.arrays import BFLOAT16, View, dense_strides
from numba_ce.cuda.choose import layouts, resident_for
from numba_ce.cuda.compiled import SMALL_KERNELS
from numba_ce.cuda.intrinsics import KINDS
from numba_ce.cuda.kernel import Kernel
from numba_ce.cuda.plan import FIELDS, PACKER
from numba_ce.cuda.walk import Access
from numba_ce.options import LossOptions

GENERALS = list(generals())


def _sample():
    """The layouts with the most registers at stake, and some of the general kernels."""
    for i, capability in enumerate(CAPABILITIES):
        for kind in ("float32", "bfloat16"):
            yield capability, layouts(kind, True, capability)[-1]
        for kernel in GENERALS[17 * i + 3 :: 60]:
            yield capability, kernel
        yield capability, Kernel("loss", Access("float32", True), grad_kind="float32")
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


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_long_rows_of_sixteen_bits_before_sm_80(kind):
    """There is no instruction for two of them at once: the assembler rejects it."""
    with without_driver() as driver:
        driver.functions, driver.capability = {}, lambda device: (7, 5)
        rows = 2, 24000
        logits = View(4096, rows, BFLOAT16 if kind == "bfloat16" else np.dtype(kind), None)
        problem = Problem(logits, None, False, None, None, LossOptions(), "none")
        operations.normalize(problem, {"grad": logits}, operations.Place(0, 1), "softmax")
        (code,) = driver.functions.values()
    assert len(code.cubin) > 1000


# ---------------------------------------------------------------- no kernel that was not looked at

DTYPES = [np.dtype("f2"), BFLOAT16, np.dtype("f4"), np.dtype("f8")]
OPTIONS = [
    LossOptions(),
    LossOptions(label_smoothing=0.1),
    LossOptions(softcap=5.0, temperature=0.5),
    LossOptions(softcap=5.0, label_smoothing=0.1, z_loss=0.1),
]


def _places(dtype, n_classes):
    """(address, shape, strides) of logits in memory: dense, padded, strided, misaligned, ..."""
    size, rows = dtype.itemsize, (6, 4)
    dense = dense_strides((*rows, n_classes), size)
    yield 4096, dense
    yield 4096 + size, dense
    yield 4096, (dense[0] + 16, dense[1], size)
    yield 4096, (4 * (dense[1] + size), dense[1] + size, size)
    yield 4096, (size, 6 * size, 24 * size)
    yield 4096, (2 * dense[0], 2 * dense[1], 2 * size)


def _every_call(dtype, n_classes, place, strides):
    """Calls every operation on logits of this place."""
    shape = 6, 4, n_classes
    logits = View(place, shape, dtype, strides)
    outs = [View(1 << 30, shape, dtype, strides)]
    outs.append(View((1 << 30) + 4, shape, np.dtype("f4"), None))
    if dtype.itemsize != 2:
        outs = [outs[0], View((1 << 30) + dtype.itemsize, shape, dtype, None)]
    here = operations.Place(0, 1)
    rows = View(1 << 31, shape[:-1], np.dtype("f8"), None)
    problem = Problem(logits, None, False, None, None, OPTIONS[0], "none")
    for out in outs:
        operations.normalize(problem, {"grad": out}, here, "softmax")
        operations.normalize(problem, {"grad": out}, here, "log_softmax")
    operations.normalize(problem, {"lse": rows}, here, "logsumexp")
    targets = [View(1 << 32, shape[:-1], np.dtype("i4"), None)]
    targets += [View(1 << 32, shape, d, None) for d in DTYPES]
    record = View(1 << 33, (*shape[:-1], 9), np.dtype("f8"), None)
    for y, options in itertools.product(targets, OPTIONS):
        problem = Problem(logits, y, y.ndim == 3, None, None, options, "mean")
        operations.row_record(problem, {"record": record}, here, 0, n_classes)
        operations.loss(problem, View(1 << 34, (), np.dtype("f4"), None), None, here)
        for out in outs:
            operations.loss_rows(problem, {"row_loss": rows, "grad": out}, here, 1.0)
            arrays = {"record": record, "grad": out}
            operations.grad_from_record(problem, arrays, here, 0, n_classes)
        if options == OPTIONS[0]:
            for grad, hess in itertools.product(outs, outs):
                operations.grad_hess(problem, {"grad": grad, "hess": hess}, here, "diagonal")
    operations.row_stats(
        Problem(logits, targets[0], False, None, None, OPTIONS[0], "none"), {"lse": rows}, here
    )


@pytest.mark.parametrize("capability", [(7, 5), *CAPABILITIES])
def test_no_kernel_is_chosen_that_the_table_does_not_list(monkeypatch, capability):
    chosen = set()
    monkeypatch.setattr(operations, "launch", lambda kernel, *_, **__: chosen.add(kernel))
    with without_driver() as driver:
        driver.capability = lambda device: capability
        for dtype, n_classes in itertools.product(DTYPES, (3, 100, 600, 5000, 12000, 300000)):
            for place, strides in _places(dtype, n_classes):
                _every_call(dtype, n_classes, place, strides)
    known = {*GENERALS, *SMALL_KERNELS, *residents(capability)}
    assert chosen <= known, [name_of(k) for k in chosen - known]
    # And the table lists little that cannot be chosen
    assert len(chosen & set(GENERALS)) > 0.8 * len(GENERALS)
