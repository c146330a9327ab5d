"""Dask arrays in blocks of rows and classes give what one call gives, under every scheduler."""

from __future__ import annotations

import os
import signal
import threading
import time
import tracemalloc

import numpy as np
import pytest
from cases import (
    FEW_OPTION_SETS,
    TARGET_KINDS,
    make_logits,
    make_options,
    make_targets,
    option_id,
)

import numba_ce as nc

dask = pytest.importorskip("dask", reason="needs dask")
da = pytest.importorskip("dask.array", reason="needs dask[array]")

from numba_ce.integrations import dask as integration  # noqa: E402

N, C = 23, 19
CHUNKS = [(10, C), (N, 6), (7, 5)]


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


def lazy(logits, chunks):
    return da.from_array(logits, chunks=chunks)


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("names", FEW_OPTION_SETS, ids=option_id)
@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_options(cpu, rng, names, kind, chunks):
    logits, targets = make_logits(rng, (N, C)), make_targets(rng, (N,), C, kind)
    if kind == "index":
        targets[3] = 1
    options = make_options(names, rng, (N,), C, kind)
    z = lazy(logits, chunks)
    for reduction in ("mean", "sum", "none"):
        call = options | {"reduction": reduction}
        expected, expected_grad = nc.cross_entropy_and_grad(logits, targets, **call)
        loss, grad = integration.cross_entropy_and_grad(z, targets, **call)
        alone = integration.cross_entropy(z, targets, **call)
        assert grad.chunks == z.chunks and loss.shape == alone.shape == np.shape(expected)
        loss, grad, alone = dask.compute(loss, grad, alone)
        np.testing.assert_allclose(loss, expected, rtol=1e-13)
        np.testing.assert_allclose(alone, expected, rtol=1e-13)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("class_chunk", [4, C])
def test_axes_and_dtypes(cpu, rng, axis, dtype, class_chunk):
    logits = np.moveaxis(make_logits(rng, (6, 5, C), dtype), -1, axis)
    targets = rng.integers(0, C, (6, 5)).astype(np.int16)
    chunks = [3, 2]
    chunks.insert(axis % 3, class_chunk)
    s = rng.uniform(0.5, 2, (6, 5))
    options = {"axis": axis, "sample_weight": s}
    expected, expected_grad = nc.cross_entropy_and_grad(logits, targets, **options)
    loss, grad = dask.compute(
        *integration.cross_entropy_and_grad(
            lazy(logits, chunks), da.from_array(targets, chunks=4), **options
        )
    )
    eps = {2: 1e-3, 4: 1e-6, 8: 1e-13}[np.dtype(dtype).itemsize]
    assert loss.dtype == expected.dtype and grad.dtype == dtype
    np.testing.assert_allclose(loss, expected, rtol=min(eps, 1e-6))
    np.testing.assert_allclose(grad, expected_grad, rtol=eps, atol=eps / 1e3)
    for keepdims in (False, True):
        lse = integration.logsumexp(lazy(logits, chunks), axis, keepdims=keepdims)
        got, whole = lse.compute(), nc.logsumexp(logits, axis, keepdims=keepdims)
        assert got.dtype == whole.dtype and got.shape == whole.shape == lse.shape
        np.testing.assert_allclose(got, whole, rtol=1e-6 if dtype != np.float64 else 1e-14)
    check_stats(logits, targets, axis, chunks)


def check_stats(logits, targets, axis, chunks):
    expected = nc.row_stats(logits, targets, axis=axis)
    stats = integration.row_stats(lazy(logits, chunks), targets, axis=axis)
    single = expected.lse.dtype == np.float32
    for name, got, want in zip(stats._fields, dask.compute(*stats), expected, strict=True):
        assert got.dtype == want.dtype, name
        if name in ("argmax", "rank"):
            np.testing.assert_array_equal(got, want, err_msg=name)
        else:
            np.testing.assert_allclose(got, want, rtol=5e-7 if single else 1e-13, err_msg=name)
    without = integration.row_stats(lazy(logits, chunks), axis=axis)
    assert without.rank is None and without.loss is None
    np.testing.assert_array_equal(without.argmax.compute(), expected.argmax)


def edge_rows(rng):
    logits = make_logits(rng, (12, C))
    logits[0] = -np.inf  # a whole row masked
    logits[1, :12] = -np.inf  # whole blocks masked
    logits[2, 4] = np.nan
    logits[3, 14] = np.inf
    logits[4, 7] = 60.0  # saturated: entropy and loss far below the spacing of lse
    logits[5] = 0.0
    logits[6] += 1e4
    logits[6, 2] += 30
    return logits


def test_edge_rows(cpu, rng):
    logits = edge_rows(rng)
    targets = np.array([0, 13, 3, 3, 7, 8, 2, -100, 1, 2, 3, 4])
    logits[7] = np.nan  # ignored
    for chunks in ((5, 6), (4, C)):
        check_stats(logits, targets, -1, chunks)
        lse = integration.logsumexp(lazy(logits, chunks)).compute()
        np.testing.assert_allclose(lse, nc.logsumexp(logits), rtol=1e-14)
        loss, grad = dask.compute(
            *integration.cross_entropy_and_grad(lazy(logits, chunks), targets, reduction="none")
        )
        want = nc.cross_entropy_and_grad(logits, targets, reduction="none")
        np.testing.assert_allclose(loss, want[0], rtol=1e-13)
        np.testing.assert_allclose(grad, want[1], rtol=1e-11)


def test_nothing_to_average(cpu, rng):
    z, targets = lazy(make_logits(rng, (N, C)), (7, 5)), np.full(N, -100)
    loss, grad = dask.compute(*integration.cross_entropy_and_grad(z, targets))
    assert np.isnan(loss) and not grad.any()
    assert np.isnan(integration.cross_entropy(z, targets).compute())
    for chunks in CHUNKS:  # bad targets that nobody was to check
        z = lazy(make_logits(rng, (N, C)), chunks)
        loss, grad = dask.compute(
            *integration.cross_entropy_and_grad(z, targets - 1, check_targets=False)
        )
        assert np.isnan(loss) and not grad.any()


@pytest.mark.parametrize("chunks", [(2, 4), (2, 2)], ids=str)
def test_no_warning(cpu, chunks):
    """Warnings are errors here: beyond float32, and infinities of both signs."""
    z = lazy(np.array([[3e38, -3e38, 0, 0], [-np.inf, 0, 0, 0]], np.float32), chunks)
    for targets, weights in (([1, 1], [1.0, 1.0]), ([1, 0], [1.0, -1.0]), ([0, 0], [1.0, -1.0])):
        for reduction in ("mean", "sum", "none"):
            options = {"reduction": reduction, "sample_weight": np.array(weights)}
            expected = nc.cross_entropy_and_grad(z.compute(), targets, **options)
            _, grad = dask.compute(*integration.cross_entropy_and_grad(z, targets, **options))
            np.testing.assert_allclose(grad, expected[1], rtol=1e-6)
            integration.cross_entropy(z, targets, **options).compute()


def test_logsumexp_of_a_confident_row(cpu):
    """As the unsharded function: the sum of the others, not what it leaves of the maximum."""
    logits = np.array([[0.0, -40.0], [-40.0, 0.0]])
    got = integration.logsumexp(lazy(logits, (2, 1))).compute()
    np.testing.assert_allclose(got, nc.logsumexp(logits), rtol=1e-15)


def test_rows_are_not_held_by_the_client(cpu):
    """A graph of many rows is no larger than one of few: nothing as long as the rows is in it."""
    z = da.zeros((10**7, 4), chunks=(10**6, 2), dtype=np.float32)
    tracemalloc.start()
    integration.logsumexp(z), integration.row_stats(z)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


# ---------------------------------------------------------------- errors


def test_errors_come_when_the_graph_is_made(cpu, rng):
    z, y = lazy(make_logits(rng, (N, C)), (7, 5)), np.zeros(N, int)
    for arguments, options, error, message in (
        ((np.zeros((2, 2)), y), {}, TypeError, "dask.array.Array"),
        ((z, y[1:]), {}, ValueError, r"targets have shape \(22,\)"),
        ((z.astype(int), y), {}, TypeError, "logits have dtype"),
        ((z, y > 0), {}, TypeError, "targets have"),
        ((z[0], 0), {}, ValueError, "rows and classes"),
        ((z[z[:, 0] > 0], y), {}, ValueError, "compute_chunk_sizes"),
        ((z, y), {"label_smoothing": 2}, ValueError, "label_smoothing"),
        ((z, y), {"class_weight": np.ones(3)}, ValueError, "class_weight"),
        ((z, y), {"sample_weight": np.ones(3)}, ValueError, "sample_weight"),
        ((z, y), {"reduction": "avg"}, ValueError, "reduction"),
        ((z, y), {"axis": 2}, np.exceptions.AxisError, "axis"),
    ):
        with pytest.raises(error, match=message):
            integration.cross_entropy_and_grad(*arguments, **options)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_a_bad_target_is_named_by_its_place_in_the_whole(cpu, rng, chunks):
    logits, targets = make_logits(rng, (N, C)), np.zeros(N, np.int16)
    targets[[3, 21]], z = (-100, C), lazy(logits, chunks)
    message = r"targets\[21\] = 19 is not a class index: expected 0 <= target < 19 or ignore"
    for lazy_result in (
        integration.cross_entropy(z, targets, reduction="none"),
        integration.cross_entropy(z, targets),
        integration.cross_entropy_and_grad(z, targets)[1],
        integration.row_stats(z, targets).loss,
    ):
        with pytest.raises(ValueError, match=message):
            lazy_result.compute()
    loss = integration.cross_entropy(z, targets, reduction="none", check_targets=False)
    assert np.flatnonzero(np.isnan(loss.compute())).tolist() == [21]
    turned = lazy(np.broadcast_to(logits, (3, N, C)), (2, *chunks))
    places = np.zeros((3, N), int)
    places[2, 17] = -1
    with pytest.raises(ValueError, match=r"targets\[2, 17\] = -1 .* < 19$"):
        integration.cross_entropy(turned, places, ignore_index=None).compute()


# ---------------------------------------------------------------- what is read, and how much held


class Counting:
    """An array that counts how often each of its blocks is read."""

    def __init__(self, array):
        self.array, self.reads, self.lock = array, [], threading.Lock()
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, index):
        with self.lock:
            self.reads.append(str(index))
        return self.array[index].copy()


@pytest.mark.parametrize(("chunks", "n_blocks"), [((7, C), 4), ((7, 5), 16)])
def test_each_block_is_read_once(cpu, rng, chunks, n_blocks):
    logits, targets = make_logits(rng, (N, C)), make_targets(rng, (N,), C)
    for reload, times in ((False, 1), (True, 2)):
        source = Counting(logits)
        z = da.from_array(source, chunks=chunks, name=False, meta=np.empty((0, 0)))
        dask.compute(*integration.cross_entropy_and_grad(z, targets, reload=reload))
        whole_rows = chunks[1] == C
        assert len(source.reads) == n_blocks * (1 if whole_rows else times)


def test_a_band_of_rows_is_never_held_twice(cpu):
    """One band is read, its gradient computed and stored block by block."""
    n, c, block = 64, 32768, 4096
    band = n * c * 8

    def make(block_info=None):
        return np.zeros((n, block))

    targets = np.zeros(n, np.int64)

    class Sink:
        shape, dtype, ndim = (n, c), np.dtype("f8"), 2

        def __setitem__(self, index, value):
            assert value.shape == (n, block)

    def run():
        chunks = ((n,), (block,) * (c // block))
        z = da.map_blocks(make, chunks=chunks, dtype="f8", meta=np.empty((0, 0)))
        _, grad = integration.cross_entropy_and_grad(z, targets)
        da.store(grad, Sink(), lock=False)

    run()  # compiles
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.9 * band < peak < 1.5 * band


def test_tasks_are_serial(cpu, rng, monkeypatch):
    import numba_ce.cpu.run.launch as launch

    def never():
        raise AssertionError("a task started the parallel loop")

    monkeypatch.setattr(launch, "n_threads", never)
    logits = make_logits(rng, (4096, 64))
    for chunks in ((4096, 64), (4096, 32)):
        z, targets = lazy(logits, chunks), np.zeros(4096, int)
        dask.compute(*integration.cross_entropy_and_grad(z, targets))
        dask.compute(*integration.row_stats(z, targets), integration.logsumexp(z))


# ---------------------------------------------------------------- schedulers


def problem(rng, chunks=(50, 40)):
    logits, targets = make_logits(rng, (400, 120)), make_targets(rng, (400,), 120)
    return lazy(logits, chunks), targets, nc.cross_entropy_and_grad(logits, targets)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_schedulers(cpu, rng, scheduler):
    z, targets, (expected, expected_grad) = problem(rng)
    if scheduler == "processes":
        z, targets = z[:100], targets[:100]
        expected, expected_grad = nc.cross_entropy_and_grad(z.compute(), targets)
    with dask.config.set(scheduler=scheduler, num_workers=2):
        loss, grad = dask.compute(*integration.cross_entropy_and_grad(z, targets))
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-12)


def test_progress_bar(cpu, rng, capsys):
    from dask.diagnostics import ProgressBar

    z, targets, _ = problem(rng)
    with ProgressBar(minimum=0):
        dask.compute(*integration.cross_entropy_and_grad(z, targets))
    assert "100%" in capsys.readouterr().out


def slow_block(block, folder):
    """Tells that it was started, and takes a while."""
    with open(os.path.join(folder, str(os.getpid())), "a") as file:
        file.write("x")
    time.sleep(0.1)
    return block


@pytest.mark.filterwarnings("default")
def test_a_killed_worker_changes_nothing(cpu, rng, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    z, targets, (expected, expected_grad) = problem(rng, (25, 60))
    slow = z.map_blocks(slow_block, str(tmp_path), meta=np.empty((0, 0)))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        future = client.compute(list(integration.cross_entropy_and_grad(slow, targets)))
        while len(list(tmp_path.iterdir())) < 2:  # both have begun
            time.sleep(0.02)
        os.kill(next(iter(pids.values())), signal.SIGKILL)
        loss, grad = (f.result(timeout=120) for f in future)
        distributed.progress(future, notebook=False)
        assert len(list(tmp_path.iterdir())) >= 2
        assert set(client.run(os.getpid).values()) != set(pids.values())
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-12)


# ---------------------------------------------------------------- chunks of any kind


@pytest.mark.parametrize("classes", [(0, 5), (2, 0, 3), (5, 0), (0, 0, 5)])
@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_without_classes(cpu, rng, classes, axis):
    logits, targets = make_logits(rng, (6, 5)), rng.integers(0, 5, 6)
    chunks = ((4, 2), classes) if axis else (classes, (4, 2))
    z = lazy(logits if axis else logits.T, chunks)
    stats = dask.compute(*integration.row_stats(z, targets, axis=axis))
    for got, expected in zip(stats, nc.row_stats(logits, targets), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-13)
    _, grad = integration.cross_entropy_and_grad(z, targets, axis=axis)
    assert grad.chunks == z.chunks


def test_unknown_chunk_sizes_are_named(cpu, rng):
    logits, targets = make_logits(rng, (6, 5)), rng.integers(0, 5, 6)

    def unknown(array):
        array = da.from_array(array, chunks=3)
        return array[da.ones(len(array), dtype=bool, chunks=3)]

    weight = np.ones(6)
    for name in ("logits", "targets", "sample_weight", "class_weight"):
        values = {"logits": logits, "targets": targets, "sample_weight": weight}
        values["class_weight"] = np.ones(5)
        values[name] = unknown(values[name])
        known = values | {"logits": da.from_array(logits, chunks=3)} | {name: values[name]}
        message = rf"{name} have unknown chunk sizes: expected {name}\.compute_chunk_sizes\(\)"
        with pytest.raises(ValueError, match=message):
            integration.cross_entropy(**known)
        if name != "class_weight":
            with pytest.raises(ValueError, match=message):
                nc.stream(**values)
