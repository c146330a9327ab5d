"""The CUDA kernels: their PTX, executed on the CPU, against mpmath and the reference.

Everything goes through the public functions. The interpreter turns accesses out of bounds or
misaligned, reads of what nobody has written, races and deadlocks into errors.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from bits import bits_of
from cases import (
    DTYPE_IDS,
    DTYPES,
    FEW_OPTION_SETS,
    TARGET_KINDS,
    make_logits,
    make_options,
    make_targets,
    option_id,
)
from exact import assert_same, check_grad, check_loss, exact_rows

pytest.importorskip("numba_cuda")

from emulated import FakeArray, emulated

import numba_ce as nc
from numba_ce.cuda import launch
from numba_ce.cuda.choose import layouts
from tools.ptx import Fault

INF, NAN = np.inf, np.nan
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def check(logits, targets, **options):
    """Loss and gradient against mpmath, per element."""
    loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
    alone = nc.cross_entropy(logits, targets, reduction="none", **options)
    options.pop("check_targets", None)
    rows = exact_rows(logits, targets, **options)
    check_loss(loss, rows, logits.dtype)
    check_loss(alone, rows, logits.dtype)
    check_grad(grad, rows, logits.dtype)
    return loss, grad


@pytest.mark.parametrize("names", FEW_OPTION_SETS, ids=option_id)
@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_options(rng, kind, names):
    logits = make_logits(rng, (5, 21), np.float32)
    targets = make_targets(rng, (5,), 21, kind)
    with emulated():
        check(logits, targets, **make_options(names, rng, (5,), 21, kind))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_dtypes(rng, kind, dtype):
    logits = make_logits(rng, (4, 37), dtype)
    targets = make_targets(rng, (4,), 37, kind, dtype if kind == "probabilities" else "i2")
    everything = make_options(FEW_OPTION_SETS[-1], rng, (4,), 37, kind)
    with emulated():
        check(logits, targets)
        check(logits, targets, **everything)


# ---------------------------------------------------------------- the layouts and their borders


def _borders(kind):
    """Every layout of the launch table with the smallest and largest rows that it takes."""
    smallest = 1
    for i, kernel in enumerate(layouts(kind, True, (9, 0))):
        # 16-bit rows differ in their words only: not every one of their large layouts
        if kind != "float32" and (kernel.capacity > 40000 or (kind == "float16" and i % 4)):
            smallest = kernel.capacity + 1
            continue
        sizes = [smallest, kernel.capacity - 1, kernel.capacity]
        yield pytest.param(
            kind, sizes, id=f"{kind}-{kernel.sharing}x{kernel.slots}x{kernel.cluster}"
        )
        smallest = kernel.capacity + 1


LAYOUTS = [p for kind in ("float32", "bfloat16", "float16") for p in _borders(kind)]


@pytest.mark.parametrize(("kind", "sizes"), LAYOUTS)
def test_borders_of_every_layout(rng, kind, sizes):
    """Against the reference; the large rows are too many for mpmath."""
    dtype = np.dtype(kind) if kind != "bfloat16" else BFLOAT16
    for n_classes in sizes if sizes[-1] < 20000 else sizes[1:2]:
        n_rows = 1 if n_classes > 20000 else 3
        logits = make_logits(rng, (n_rows, n_classes), dtype, 3.0)
        targets = make_targets(rng, (n_rows,), n_classes)
        targets[0] = n_classes - 1
        with emulated(order_seed=1 if n_classes < 2000 else None) as gpu:
            loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none")
            read, written = gpu.launches[-1][2].loads, gpu.launches[-1][2].stores
        check_close(loss, grad, logits, targets)
        if n_classes > 1000:  # one read and one write of each element, all but the ends by 128 bits
            size = logits.size * logits.itemsize
            assert 16 * read[16] <= size and 16 * read[16] >= size - n_rows * 32
            assert 16 * written[16] == 16 * read[16]


def check_close(loss, grad, logits, targets, ulps=8, **options):
    """Against the reference in float64: loss and gradient at the target, then all the others."""
    with nc.use_backend("numpy"):
        loss_0, grad_0 = nc.cross_entropy_and_grad(
            np.array(logits, np.float64), targets, reduction="none", **options
        )
    unit = ulps * 2.0**-23
    np.testing.assert_allclose(np.asarray(loss, float), loss_0, rtol=unit)
    of_grad = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(logits.dtype.name, 0.0) * 1.01
    floor = {"float16": 2.0**-25, "bfloat16": 2.0**-133}.get(logits.dtype.name, 2.0**-149)
    # 16-bit rows: their exponentials lose up to |z - m| units before the rounding
    np.testing.assert_allclose(
        np.asarray(grad, float), grad_0, rtol=unit + of_grad, atol=1.01 * floor
    )


def check_traffic(launch, logits):
    """Each element is read once and written once, all but the ends of a block's run by 128 bits."""
    blocks, _, counts = launch
    for accesses in (counts.loads, counts.stores):
        assert logits.nbytes - 32 * blocks <= 16 * accesses[16] <= logits.nbytes


# The borders of how many lanes share a row, and of the layouts on both sides
@pytest.mark.parametrize("n_classes", [1, 2, 3, 5, 16, 17, 33, 64])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float64"])
def test_few_classes(rng, kind, n_classes):
    """Several rows to a block, the last one not full; the rows begin anywhere."""
    dtype = np.dtype(kind) if kind != "bfloat16" else BFLOAT16
    n_rows = 300 if n_classes < 17 else 70
    logits = make_logits(rng, (n_rows, n_classes), dtype)
    targets = make_targets(rng, (n_rows,), n_classes)
    for offset in (0, 3 * dtype.itemsize % 16):
        with emulated(capability=(8, 0), order_seed=offset) as gpu:
            x, y, out = device_problem(gpu.gpu, logits, targets, offset=offset)
            loss, _ = nc.cross_entropy_and_grad(x, y, reduction="none", out=out)
            check_traffic(gpu.launches[-1], logits)
            check_close(loss.get(), out.get(), logits, targets)
            nc.cross_entropy_and_grad(x, y, reduction="none", out=x)
            assert_same(x.get(), out.get())


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y, out: nc.cross_entropy_and_grad(x, y, out=out, label_smoothing=0.1),
        lambda x, y, out: nc.log_softmax(x, out=out),
        lambda x, y, out: nc.row_stats(x, y),
    ],
    ids=["smoothing", "log_softmax", "row_stats"],
)
@pytest.mark.parametrize(
    ("dtype", "n_classes"), [(np.float32, 600), (np.float32, 2000), (np.float64, 70)]
)
def test_one_read_for_everything(rng, function, n_classes, dtype):
    """Rows that fit shared memory are read once, whatever is asked for, and written once."""
    logits = make_logits(rng, (9, n_classes), dtype)
    targets = make_targets(rng, (9,), n_classes)
    with emulated(capability=(8, 0)) as gpu:
        x, y, out = device_problem(gpu.gpu, logits, targets)
        function(x, y, out)
        large = max((launch[2] for launch in gpu.launches), key=lambda c: c.loads[16])
        wide = 16 * large.loads[16]
        assert logits.nbytes - 32 * 9 <= wide <= logits.nbytes
        assert large.bytes_read[x.address] == logits.nbytes
        assert large.bytes_written[out.address] in (0, logits.nbytes)


@pytest.mark.parametrize("n_classes", [7, 100, 600, 2700])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_same_bits_wherever_a_staged_row_stands(rng, n_classes, dtype):
    """In any row, at any distance from 16 bytes, in place or not, in any order of warps."""
    row = make_logits(rng, (n_classes,), dtype)
    logits = make_logits(rng, (40, n_classes), dtype)
    logits[[0, 1, 2, 3, 17, 39]] = row
    targets = np.full(40, n_classes // 2)
    options = {"reduction": "none", "label_smoothing": 0.1}
    found = set()
    for offset, seed in ((0, None), (4, 1), (14 if dtype == BFLOAT16 else 12, 2)):
        with emulated(order_seed=seed) as gpu:
            x, y, out = device_problem(gpu.gpu, logits, targets, offset=offset)
            loss, _ = nc.cross_entropy_and_grad(x, y, out=out, **options)
            loss, grad = loss.get(), out.get()
        found |= {bits_of((loss[i], grad[i])) for i in (0, 1, 2, 3, 17, 39)}
    assert len(found) == 1


@pytest.mark.parametrize("n_classes", [3, 40, 1500])
def test_more_rows_than_the_grid_has_blocks(rng, monkeypatch, n_classes):
    """A block then does one set of rows after the other in the same shared memory."""
    monkeypatch.setattr(launch, "MAX_GRID", 2)
    n_rows = 1100 if n_classes == 3 else 11 if n_classes == 1500 else 300
    logits = make_logits(rng, (n_rows, n_classes), np.float32)
    targets = make_targets(rng, (n_rows,), n_classes)
    with emulated(order_seed=3) as gpu:
        loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", temperature=0.7)
        assert gpu.launches[-1][0] == 2
    check_close(loss, grad, logits, targets, temperature=0.7)


@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize(
    ("dtype", "most"), [(np.float32, 120), (BFLOAT16, 120), (np.float64, 1000)]
)
def test_extreme_temperatures_and_caps(rng, name, dtype, most):
    """Right as far as the constants of the exponential reach, an error beyond."""
    logits = make_logits(rng, (3, 7), dtype)
    targets = make_targets(rng, (3,), 7)
    tight = 1e-13 if dtype == np.float64 else 1e-6
    for power in (-most, 1 - most, -30, 30, most - 1, most):
        with emulated():
            loss, grad = nc.cross_entropy_and_grad(
                logits, targets, reduction="none", **{name: 2.0**power}
            )
        with nc.use_backend("numpy"):
            loss_0, grad_0 = nc.cross_entropy_and_grad(
                logits.astype(np.float64), targets, reduction="none", **{name: 2.0**power}
            )
        np.testing.assert_allclose(loss, loss_0, rtol=tight)
        coarse = 2.0**-8 if dtype == BFLOAT16 else tight
        np.testing.assert_allclose(np.asarray(grad, float), grad_0, rtol=coarse, atol=1e-40)
    for power in (-most - 1, most + 1):
        with (
            emulated(),
            pytest.raises(ValueError, match=f"{name} = .*: expected .* logits on CUDA"),
        ):
            nc.cross_entropy(logits, targets, **{name: 2.0**power})


# ---------------------------------------------------------------- families of rows


def _families(rng):
    n = 130
    z = rng.standard_normal(n)
    yield "offset", z + 1e4, 3
    yield "trained", np.where(np.arange(n) == 5, z + 12, z), 5
    yield "saturated", np.where(np.arange(n) == 5, z + 40, z), 5
    yield "far behind", np.where(np.arange(n) == 5, z - 60, z), 5
    yield "wide", rng.uniform(-80, 80, n), 7
    yield "plateau", np.where(np.arange(n) < 3, 14.0, np.zeros(n)), 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_families(rng, dtype, temperature):
    _, rows, targets = zip(*_families(rng), strict=True)
    with emulated():
        check(np.array(rows).astype(dtype), np.array(targets), temperature=temperature)


EDGE_ROWS = [
    ([0.0, 1.0, 2.0, NAN], 1),
    ([0.0, INF, 2.0, 1.0], 0),
    ([INF, 0.0, 2.0, 1.0], 0),
    ([NAN, 0.0, 2.0, 1.0], 0),
    ([-INF] * 4, 1),
    ([-INF, -INF, 3.0, -INF], 2),
    ([-INF, -INF, 3.0, -INF], 0),
    ([-INF, 1.0, 3.0, -INF], 1),
    ([1.0, 1.0, 1.0, 1.0], 3),
]


@pytest.mark.parametrize("n_classes", [4, 300, 2100])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=["plain", "smoothed"])
def test_edge_rows(n_classes, options):
    """Infinities and NaN; the rest of a longer row is masked, whole lanes and warps of it."""
    logits = np.full((len(EDGE_ROWS), n_classes), -INF, np.float32)
    for row, (values, _) in zip(logits, EDGE_ROWS, strict=True):
        row[:4] = values
    targets = np.array([y for _, y in EDGE_ROWS])
    if n_classes > 1000:
        logits, targets = logits[::3], targets[::3]
    with emulated():
        check(logits, targets, **options)


@pytest.mark.parametrize("n_classes", [5, 1030])
def test_ignored_and_bad_rows(n_classes):
    logits = np.zeros((6, n_classes), np.float32)
    logits[1] = NAN
    logits[3, 2] = INF
    targets = np.array([1, -100, 2, -100, n_classes, -1])
    with emulated():
        loss, grad = nc.cross_entropy_and_grad(
            logits, targets, reduction="none", check_targets=False
        )
        with pytest.raises(ValueError, match=rf"targets\[4\] = {n_classes} is not a class index"):
            nc.cross_entropy(logits, targets)
    assert_same(loss[[1, 3]], np.zeros(2, np.float32))
    assert_same(grad[[1, 3]], np.zeros((2, n_classes), np.float32))
    assert np.isnan(loss[4:]).all() and np.isnan(grad[4:]).all()
    assert np.isfinite(loss[:4]).all() and np.isfinite(grad[:4]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_label_smoothing_of_one_looks_at_no_probability(rng, dtype):
    logits = make_logits(rng, (4, 21), np.float32)
    logits[3, 5] = -INF
    targets = make_targets(rng, (4,), 21, "probabilities", dtype)
    with nc.use_backend("numpy"):
        expected = nc.cross_entropy(logits, targets, label_smoothing=1.0, reduction="none")
    targets[0], targets[1, 3], targets[2, :3] = 6e4, INF, NAN
    with emulated():
        loss, grad = nc.cross_entropy_and_grad(
            logits, targets, label_smoothing=1.0, reduction="none"
        )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert np.isfinite(grad).all() and grad[3, 5] == np.float32(-1 / 21)


# ---------------------------------------------------------------- memory: any place, any strides


def device_problem(gpu, logits, targets, strides=None, offset=0):
    return (
        FakeArray(gpu, logits, strides, offset),
        FakeArray(gpu, targets),
        FakeArray(gpu, np.zeros_like(logits), strides, offset),
    )


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_classes", [3, 61, 300, 2061])
def test_misaligned_rows(rng, kind, n_classes):
    """Rows at every distance from 16 bytes; nothing beside them is read or written."""
    dtype = np.dtype(np.float32) if kind == "float32" else BFLOAT16
    logits = make_logits(rng, (4, n_classes), dtype)
    targets = make_targets(rng, (4,), n_classes)
    for padding, offset in ((1, 0), (3, dtype.itemsize), (0, 3 * dtype.itemsize)):
        with emulated() as gpu:
            x, y, out = device_problem(gpu.gpu, logits, targets, (n_classes + padding, 1), offset)
            loss, grad = nc.cross_entropy_and_grad(x, y, reduction="none", out=out)
            assert grad is out
            check_close(loss.get(), out.get(), logits, targets)
            nc.cross_entropy_and_grad(x, y, reduction="none", out=x)
            assert_same(x.get(), out.get())


@pytest.mark.parametrize("strides", [(1, 5), (160, 4), (-34, 1)], ids=["first", "both", "reversed"])
def test_strides(rng, strides):
    logits, targets = make_logits(rng, (5, 33), np.float32), make_targets(rng, (5,), 33)
    options = {"label_smoothing": 0.1}
    if strides[0] < 0:  # a fake array starts at its lowest address
        strides, logits = (34, 1), logits[::-1]
    with emulated() as gpu:
        x, y, out = device_problem(gpu.gpu, logits, targets, strides)
        loss, _ = nc.cross_entropy_and_grad(x, y, reduction="none", out=out, **options)
        rows = exact_rows(logits, targets, **options)
        check_loss(loss.get(), rows, logits.dtype)
        check_grad(out.get(), rows, logits.dtype)
        nc.cross_entropy_and_grad(x, y, reduction="none", out=x, **options)
        assert_same(x.get(), out.get())


def test_short_rows_with_gaps_share_a_block(rng):
    """As many as there are threads for, though they are not staged."""
    logits, targets = make_logits(rng, (300, 10), np.float32), make_targets(rng, (300,), 10)
    with emulated() as gpu:
        x, y, out = device_problem(gpu.gpu, logits, targets, (16, 1))
        loss, _ = nc.cross_entropy_and_grad(x, y, reduction="none", out=out, temperature=0.7)
        assert gpu.launches[-1][0] == 2
        check_close(loss.get(), out.get(), logits, targets, temperature=0.7)
        nc.cross_entropy_and_grad(x, y, reduction="none", out=x, temperature=0.7)
        assert_same(x.get(), out.get())


@pytest.mark.parametrize(
    ("kind", "offset", "capability"),
    [("float16", 6, (7, 5)), ("float16", 0, (9, 0)), ("bfloat16", 6, (9, 0))],
)
def test_long_rows_of_sixteen_bits(rng, kind, offset, capability):
    """Read where they lie, by 128 bits where that can be; options and statistics, in place."""
    dtype = np.dtype(kind) if kind == "float16" else BFLOAT16
    logits, targets = make_logits(rng, (2, 20497), dtype, 3.0), make_targets(rng, (2,), 20497)
    options = {"reduction": "none", "label_smoothing": 0.1, "softcap": 20.0}
    with emulated(capability=capability) as gpu:
        x, y, out = device_problem(gpu.gpu, logits, targets, (20500, 1), offset)
        loss, _ = nc.cross_entropy_and_grad(x, y, out=out, **options)
        counts = gpu.launches[-1][2]
        wide = 2 * 20497 // 8 - 2 * 2 if capability >= (8, 0) else 0
        assert counts.loads[16] >= 2 * wide and counts.stores[16] >= wide
        assert bool(counts.loads[16]) == bool(wide)
        check_close(loss.get(), out.get(), logits, targets, label_smoothing=0.1, softcap=20.0)
        stats = nc.row_stats(x, y)
        nc.cross_entropy_and_grad(x, y, out=x, **options)
        assert_same(x.get(), out.get())
    with nc.use_backend("numpy"):
        expected = nc.row_stats(logits, targets)
    for value, right in zip(stats, expected, strict=True):
        np.testing.assert_allclose(value.get(), right, rtol=1e-6)


def test_class_axis_in_the_middle(rng):
    """Lanes go along the rows, which lie side by side; more rows than lanes, and not all in use."""
    logits = make_logits(rng, (2, 7, 37), np.float32)
    targets = make_targets(rng, (2, 37), 7)
    with emulated() as gpu:
        x, y = FakeArray(gpu.gpu, logits), FakeArray(gpu.gpu, targets)
        loss, grad = nc.cross_entropy_and_grad(x, y, axis=1, reduction="none")
        loss, grad = loss.get(), grad.get()
    with nc.use_backend("numpy"):
        loss_0, grad_0 = nc.cross_entropy_and_grad(logits, targets, axis=1, reduction="none")
    np.testing.assert_allclose(loss, loss_0, rtol=5e-7)
    np.testing.assert_allclose(grad, grad_0, rtol=5e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_stay_on_the_device(rng, reduction):
    logits, targets = make_logits(rng, (1500, 6), np.float32), make_targets(rng, (1500,), 6)
    targets[::7] = -100
    weight = rng.uniform(0.5, 2.0, 6)
    with emulated() as gpu:
        x, y, w = (FakeArray(gpu.gpu, a) for a in (logits, targets, weight))
        loss, grad = nc.cross_entropy_and_grad(x, y, class_weight=w, reduction=reduction)
        assert loss.shape == ()
        loss, grad = loss.get(), grad.get()
    with nc.use_backend("numpy"):
        loss_0, grad_0 = nc.cross_entropy_and_grad(
            logits, targets, class_weight=weight, reduction=reduction
        )
    np.testing.assert_allclose(loss, loss_0, rtol=5e-7)
    np.testing.assert_allclose(grad, grad_0, rtol=1e-6)


def test_one_piece_of_memory_for_the_sums(rng):
    """Arrays are asked once what they are, memory once, and it is given back after an error too."""
    asked = []

    class Asked(FakeArray):
        @property
        def __cuda_array_interface__(self):
            asked.append(self)
            return FakeArray.__cuda_array_interface__.fget(self)

    logits, targets = make_logits(rng, (1500, 6), np.float32), make_targets(rng, (1500,), 6)
    with emulated() as gpu:
        taken, allocate = [], gpu.allocate
        gpu.allocate = lambda *arguments: taken.append(arguments) or allocate(*arguments)
        x, y, out = (Asked(gpu.gpu, a) for a in (logits, targets, logits))
        nc.cross_entropy_and_grad(x, y, out=out)
        assert asked == [x, y, out] and len(taken) == 1 and not gpu.allocated
        targets[1400] = targets[1499] = 6
        y = FakeArray(gpu.gpu, targets)
        for reduction in ("mean", "sum", "none"):
            with pytest.raises(ValueError, match=r"targets\[1400\] = 6 is not a"):
                nc.cross_entropy_and_grad(x, y, reduction=reduction, out=out)
            assert not gpu.allocated


def test_a_bad_target_on_the_device_is_named_and_nothing_written(rng):
    logits, targets = make_logits(rng, (40, 6), np.float32), make_targets(rng, (40,), 6, dtype="u8")
    targets[17] = 2**64 - 100
    with emulated() as gpu:
        x, y, out = device_problem(gpu.gpu, logits, targets)
        with pytest.raises(ValueError, match=r"targets\[17\] = 18446744073709551516 is not a"):
            nc.cross_entropy_and_grad(x, y, out=out)
        assert_same(out.get(), np.zeros_like(logits))
        waits = gpu.log.count(("wait", 1))
        nc.cross_entropy_and_grad(x, y, out=out, check_targets=False)
        assert gpu.log.count(("wait", 1)) == waits  # no synchronisation


# ---------------------------------------------------------------- broken on purpose


def _without(text, pattern):
    """PTX with every line that has the pattern made a comment."""
    assert pattern in text
    return "\n".join("//" + line if pattern in line else line for line in text.splitlines())


def _nth(text, pattern, n, new):
    """PTX with the n-th occurrence of a pattern replaced."""
    parts = text.split(pattern)
    assert len(parts) > n + 1, f"{len(parts) - 1} times {pattern}"
    return pattern.join(parts[: n + 1]) + new + pattern.join(parts[n + 1 :])


# name: shape, options, mutation
PLAIN: dict[str, object] = {}
LONG, Z_LOSS = (3, 4003), {"z_loss": 0.1}  # staged rows that a whole block shares
MUTATIONS = {
    "no barrier": ((1, 2100), PLAIN, lambda t: _without(t, "bar.sync")),
    "no wait for the cluster": (
        (1, 16385),
        PLAIN,
        lambda t: t.replace("mbarrier.try_wait.parity", "mbarrier.test_wait.parity").replace(
            "@p bra D_", "bra D_"
        ),
    ),
    "wrong lanes": ((1, 500), PLAIN, lambda t: t.replace("shfl.sync.bfly", "shfl.sync.down")),
    "no tail": ((1, 1003), PLAIN, lambda t: _without(t, "st.global.f32")),
    "no quads": ((1, 1000), PLAIN, lambda t: _without(t, "st.global.v4.f32")),
    # The rows staged in shared memory: in, between, out, and the next ones
    "few: rows not waited for": ((600, 3), PLAIN, lambda t: _nth(t, "bar.sync", 0, "//")),
    "few: gradient not waited for": (
        (600, 3),
        PLAIN,
        lambda t: _nth(t, "bar.sync", t.count("bar.sync") - 2, "//"),
    ),
    "few: no ends": ((3, 3), PLAIN, lambda t: _without(t, "st.global.b32")),
    "few: no quads": ((600, 3), PLAIN, lambda t: _without(t, "st.global.v4")),
    "few: wrong lanes": ((40, 40), PLAIN, lambda t: t.replace("shfl.sync.bfly", "shfl.sync.down")),
    "few: told by another lane": (
        (200, 40),
        PLAIN,
        lambda t: t.replace("shfl.sync.idx", "shfl.sync.up"),
    ),
    "staged: rows not waited for": (LONG, Z_LOSS, lambda t: _nth(t, "bar.sync", 0, "//")),
    "staged: sum not waited for": (
        LONG,
        Z_LOSS,
        lambda t: _nth(t, "bar.sync", t.count("bar.sync") - 4, "//"),
    ),
    "staged: finished row not waited for": (
        LONG,
        Z_LOSS,
        lambda t: _nth(t, "bar.sync", t.count("bar.sync") - 3, "//"),
    ),
    "staged: gradient not waited for": (
        LONG,
        Z_LOSS,
        lambda t: _nth(t, "bar.sync", t.count("bar.sync") - 2, "//"),
    ),
    "staged: next rows not waited for": (
        LONG,
        Z_LOSS,
        lambda t: _nth(t, "bar.sync", t.count("bar.sync") - 1, "//"),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_kernel_is_noticed(rng, monkeypatch, name):
    """What the tests above rely on: each of these is a Fault or a wrong result, on some order."""
    shape, options, mutate = MUTATIONS[name]
    monkeypatch.setattr(launch, "MAX_GRID", 1)  # of staged rows: several sets one after the other
    logits, targets = make_logits(rng, shape, np.float32), make_targets(rng, shape[:1], shape[1])

    def run(seed, mutate=None):
        with emulated(order_seed=seed, mutate=mutate):
            loss, grad = nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
            check_close(loss, grad, logits, targets, **options)

    run(1)
    found = []
    for seed in range(4):
        try:
            run(seed, mutate)
        except (AssertionError, Fault) as error:
            found.append(error)
    assert found
