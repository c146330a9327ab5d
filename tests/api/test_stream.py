"""Arrays in blocks: the results of one call, whatever the source, and nothing half written."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
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

import numba_ce as nc
from numba_ce.blocks import block_indices, read_ahead
from numba_ce.npy import NpyReader, NpyWriter

N, C = 50, 11


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr("numba_ce.blocks.BLOCK_BYTES", 7 * C * 8)


def make(rng, shape=(N, C), dtype=np.float64, kind="index"):
    return make_logits(rng, shape, dtype), make_targets(rng, shape[:-1], shape[-1], kind)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("names", FEW_OPTION_SETS, ids=option_id)
@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_options(cpu, rng, names, kind, reduction, tmp_path):
    logits, targets = make(rng, kind=kind)
    if kind == "index":
        targets[3] = 1
    options = make_options(names, rng, (N,), C, kind) | {"reduction": reduction}
    loss, grad = nc.cross_entropy_and_grad(logits, targets, **options)
    plain = nc.stream(logits, targets, **options)
    result = nc.stream(logits, targets, grad_out=tmp_path / "g.npy", **options)
    assert result.n_rows == N and result.n_classes == C and result.n_bytes == logits.nbytes
    for got in (plain.loss, result.loss):
        np.testing.assert_allclose(got, loss, rtol=1e-14)
        assert got.dtype == loss.dtype
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), grad, rtol=1e-13, atol=1e-18)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_dtypes_into_an_array(backend, rng, dtype):
    logits, targets = make(rng, dtype=dtype)
    grad = np.empty_like(logits)
    result = nc.stream(logits, targets, reduction="sum", grad_out=grad)
    loss, expected = nc.cross_entropy_and_grad(logits, targets, reduction="sum")
    assert result.loss.dtype == loss.dtype
    np.testing.assert_allclose(np.float64(result.loss), np.float64(loss), rtol=1e-6)
    assert (grad == expected).all()


def npy(folder, name, array):
    np.save(folder / name, array)
    return folder / name


SOURCES = {
    "path": npy,
    "string": lambda folder, name, a: str(npy(folder, name, a)),
    "fortran": lambda folder, name, a: npy(folder, name, np.asfortranarray(a)),
    "swapped": lambda folder, name, a: npy(folder, name, a.astype(a.dtype.newbyteorder())),
    "memmap": lambda folder, name, a: np.load(npy(folder, name, a), mmap_mode="r"),
    "array": lambda folder, name, a: a,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(N, C), (3, 40, C), (60, 2, C)])
def test_sources_and_axes(cpu, rng, source, axis, shape, tmp_path):
    logits, targets = make(rng, shape)
    s = rng.uniform(0.5, 2, shape[:-1])
    loss, grad = nc.cross_entropy_and_grad(logits, targets, sample_weight=s)
    moved = np.ascontiguousarray(np.moveaxis(logits, -1, axis))
    open_ = SOURCES[source]
    result = nc.stream(
        open_(tmp_path, "z.npy", moved), open_(tmp_path, "y.npy", targets), axis=axis,
        sample_weight=open_(tmp_path, "s.npy", s), grad_out=tmp_path / "g.npy",
    )  # fmt: skip
    np.testing.assert_allclose(result.loss, loss, rtol=1e-14)
    np.testing.assert_allclose(
        np.load(tmp_path / "g.npy"), np.moveaxis(grad, -1, axis), rtol=1e-13, atol=1e-18
    )
    if source != "array":
        assert names_in(tmp_path) == ["g.npy", "s.npy", "y.npy", "z.npy"]


@pytest.mark.parametrize("chunks", [(10, C), (64, 4), (3, 2)])
def test_zarr(cpu, rng, tmp_path, chunks):
    zarr = pytest.importorskip("zarr")
    logits, targets = make(rng)
    store = zarr.create_array(tmp_path / "z.zarr", shape=logits.shape, chunks=chunks, dtype="f8")
    store[:] = logits
    out = zarr.create_array(tmp_path / "g.zarr", shape=logits.shape, chunks=chunks, dtype="f8")
    loss, grad = nc.cross_entropy_and_grad(logits, targets)
    for source in (store, tmp_path / "z.zarr"):
        np.testing.assert_allclose(nc.stream(source, targets, grad_out=out).loss, loss, rtol=1e-14)
        np.testing.assert_allclose(out[:], grad, rtol=1e-13)
    zarr.create_group(tmp_path / "group.zarr")
    with pytest.raises(ValueError, match="group"):
        nc.stream(tmp_path / "group.zarr", targets)


def test_torch_and_dask(cpu, rng):
    """torch has dtypes of its own, and Dask chunks of several lengths."""
    logits, targets = make(rng)
    expected = nc.cross_entropy(logits, targets)
    torch = pytest.importorskip("torch")
    z, y = torch.from_numpy(logits), torch.from_numpy(targets)
    np.testing.assert_allclose(nc.stream(z, y).loss, expected, rtol=1e-14)
    with pytest.raises(TypeError, match="grad_out is a Tensor: expected a path or an array"):
        nc.stream(logits, targets, grad_out=z)
    da = pytest.importorskip("dask.array")
    z = da.from_array(logits, chunks=(8, 4))
    np.testing.assert_allclose(nc.stream(z, targets).loss, expected, rtol=1e-14)


def test_a_chunk_of_a_store_is_read_for_one_block_only():
    cases = (((100, 8), 1, (9, 3)), ((8, 100), 0, (8, 200)), ((5, 90, 8), 2, (2, 4, 8)))
    for shape, axis, chunks in cases:
        lengths, seen = chunks[:axis] + chunks[axis + 1 :], set()
        for index in block_indices(shape, axis, 8, chunks):
            ranges = [
                range(s.start // n, -(-s.stop // n)) for s, n in zip(index, lengths, strict=True)
            ]
            here = set(itertools.product(*ranges))
            assert not here & seen
            seen |= here


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("blocks_of_targets", [False, True])
def test_blocks(cpu, rng, reduction, blocks_of_targets):
    logits, targets = make(rng)
    targets[4] = -100
    s = rng.uniform(0.5, 2, N)
    w = rng.uniform(0.5, 2, C)

    def cut(a):
        return (a[i : i + 13] for i in range(0, N, 13))

    given = (cut(targets), cut(s)) if blocks_of_targets else (targets, s)
    seen = []
    result = nc.stream(
        cut(logits), given[0], sample_weight=given[1], class_weight=w, reduction=reduction,
        progress=lambda done, rows: seen.append((done, rows)),
    )  # fmt: skip
    options = {"sample_weight": s, "class_weight": w, "reduction": reduction}
    np.testing.assert_allclose(
        result.loss, nc.cross_entropy(logits, targets, **options), rtol=1e-14
    )
    assert seen == [(13, None), (26, None), (39, None), (50, None)]


def test_float64_sum_of_float32_losses(cpu):
    """A million equal losses: adding blocks in float32 would be off by 1e-4."""
    loss = nc.stream(np.zeros((1 << 17, 3), np.float32), np.zeros(1 << 17, np.int8)).loss
    assert loss == np.float32(np.log(3))


def test_losses_too_large_for_float32_of_both_signs_do_not_make_the_sum_nan(backend):
    """Rounded one by one they would be inf and -inf."""
    logits = np.array([[1e30, 0.0], [2e30, 0.0]], np.float32)
    arguments = {"z_loss": 1.0, "sample_weight": np.array([1.0, -0.5]), "reduction": "sum"}
    assert nc.cross_entropy(logits, [0, 0], **arguments) == -np.inf
    assert nc.stream(logits, [0, 0], **arguments).loss == -np.inf
    arguments["z_loss"] = 1e-30
    assert nc.stream(logits, [0, 0], **arguments).loss == np.float32(-1e30)


def test_progress_and_empty(cpu, rng):
    logits, targets = make(rng)
    seen = []
    nc.stream(logits, targets, progress=lambda *a: seen.append(a))
    assert seen[0] == (7, N) and seen[-1] == (N, N) and len(seen) == 8
    empty = nc.stream(logits[:0], targets[:0])
    assert np.isnan(empty.loss) and empty.n_classes == C
    assert nc.stream(iter([]), targets[:0], reduction="sum").loss == 0
    assert nc.stream(logits[:0], targets[:0], reduction="none").loss.shape == (0,)
    grad = np.full_like(logits, 7)
    with pytest.raises(TypeError, match="progress = 'bar': expected a function or None"):
        nc.stream(logits, targets, grad_out=grad, progress="bar")
    assert (grad == 7).all()


def test_all_ignored(cpu, rng, tmp_path):
    logits, targets = make(rng)
    targets[:] = -100
    result = nc.stream(logits, targets, grad_out=tmp_path / "g.npy")
    assert np.isnan(result.loss) and result.weight == 0
    assert not np.load(tmp_path / "g.npy").any()


# ---------------------------------------------------------------- errors


def test_without_rows_and_without_anything_to_average(backend):
    result = nc.stream(np.zeros((3, 0, 5), np.float32), np.zeros((3, 0), int), reduction="none")
    assert (result.loss.shape, result.loss.dtype) == ((3, 0), np.float32)
    logits, grad = np.ones((2, 3)), np.full((2, 3), 7.0)
    result = nc.stream(logits, np.array([-100, 9]), check_targets=False, grad_out=grad)
    expected = nc.cross_entropy_and_grad(logits, [-100, 9], check_targets=False)
    np.testing.assert_array_equal(result.loss, expected[0])
    np.testing.assert_array_equal(grad, expected[1])


def test_bad_target_is_named_by_its_place_before_anything_is_written(cpu, rng, tmp_path):
    logits, targets = make(rng)
    targets[41] = C
    out = np.full_like(logits, 7)
    for grad_out in (tmp_path / "g.npy", out):
        with pytest.raises(ValueError, match=r"targets\[41\] = 11 is not a class index"):
            nc.stream(logits, targets, grad_out=grad_out)
    assert names_in(tmp_path) == [] and (out == 7).all()
    with pytest.raises(ValueError, match=r"targets\[41\] = 11"):
        nc.stream((logits[i : i + 9] for i in range(0, N, 9)), targets)
    logits, targets = make(rng, (4, 30, C))
    targets[2, 17] = -1
    with pytest.raises(ValueError, match=r"targets\[2, 17\] = -1"):
        nc.stream(logits, targets)


def pair(logits, targets):
    return iter([logits]), iter([targets])


ERRORS = {
    "length": (lambda z, y: (z, y[:-1]), ValueError, r"shape \(49,\)"),
    "integers": (lambda z, y: (z.astype(int), y), TypeError, "logits have dtype"),
    "float targets": (lambda z, y: (z, y * 1.0), TypeError, "must be integers"),
    "one axis": (lambda z, y: (z[0], y[0]), ValueError, "expected rows and classes"),
    "no classes": (lambda z, y: (z[:, :0], y), ValueError, "no classes"),
    "masked": (lambda z, y: (np.ma.masked_array(z), y), TypeError, "MaskedArray"),
    "blocks of targets": (lambda z, y: (z, iter([y])), TypeError, "targets are blocks"),
    "few targets": (lambda z, y: (iter([z]), y[:-1]), ValueError, "logits have more"),
    "many targets": (lambda z, y: (iter([z[:-1]]), y), ValueError, "logits have 49"),
    "few blocks": (lambda z, y: (iter([z, z]), iter([y])), ValueError, "fewer blocks"),
    "many blocks": (lambda z, y: (iter([z]), iter([y, y])), ValueError, "more blocks"),
    "block shape": (lambda z, y: (iter([z]), iter([y[1:]])), ValueError, r"shape \(49,\)"),
    "other classes": (lambda z, y: (iter([z[:9], z[9:, 1:]]), y), ValueError, "block 1 has .*10,"),
    "other rows": (
        lambda z, y: (
            iter([np.zeros((2, 3, 4)), np.zeros((2, 5, 4))]),
            iter([y[:6].reshape(2, 3) % 4]),
        ),
        ValueError,
        r"block 1 has dtype float64 and rows of shape \(5, 4\): expected float64 and \(3, 4\)",
    ),
    "other dtype": (lambda z, y: (iter([z[:9], z[9:].astype("f4")]), y), ValueError, "float32"),
    "missing": (lambda z, y: ("nowhere.npy", y), FileNotFoundError, "nowhere"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(cpu, rng, name):
    change, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        nc.stream(*change(*make(rng)))


def test_bad_grad_out(cpu, rng, tmp_path):
    logits, targets = make(rng)
    for bad, error, message in (
        (np.empty((N, C), np.float32), ValueError, "grad_out has dtype"),
        (np.empty((N, 3)), ValueError, "grad_out has shape"),
        (3, TypeError, "expected a path"),
        (tmp_path / "nowhere" / "g.npy", FileNotFoundError, "nowhere"),
        (tmp_path, ValueError, "grad_out = .* is a folder"),
        ("", ValueError, "grad_out = '' is a folder"),
    ):
        with pytest.raises(error, match=message):
            nc.stream(logits, targets, grad_out=bad)
    both = np.zeros((N + 1, C))
    locked = np.empty((N, C))
    locked.flags.writeable = False
    weight, probabilities = np.zeros(N * C), np.zeros((N, C))
    for z, bad, options, error, message in (
        (both[:-1], both[1:], {}, ValueError, "overlaps logits"),
        (logits, locked, {}, ValueError, "read-only"),
        (npy(tmp_path, "z.npy", logits), locked, {}, ValueError, "read-only"),
        (logits, np.ma.zeros((N, C)), {}, TypeError, "MaskedArray"),
        (logits, np.broadcast_to(both[:1], (N, C)).view(), {}, ValueError, "grad_out"),
        (logits, weight.reshape(N, C), {"sample_weight": weight[:N]}, ValueError, "overlaps sam"),
        (logits, weight.reshape(N, C), {"class_weight": weight[:C]}, ValueError, "overlaps class"),
        (logits, probabilities, {"targets": probabilities}, ValueError, "overlaps targets"),
    ):
        with pytest.raises(error, match=message):
            nc.stream(z, **{"targets": targets, "grad_out": bad} | options)
    os.remove(tmp_path / "z.npy")
    expected = nc.cross_entropy_and_grad(logits, targets)[1]
    nc.stream(logits, targets, grad_out=logits)
    np.testing.assert_allclose(logits, expected, rtol=1e-13)
    with pytest.raises(ValueError, match="not with blocks"):
        nc.stream(iter([logits]), targets, grad_out=tmp_path / "g.npy")
    assert names_in(tmp_path) == []


def test_truncated_before_and_while_it_is_read(cpu, rng, tmp_path):
    logits, targets = make(rng)
    path = npy(tmp_path, "z.npy", logits)
    whole = path.read_bytes()

    def cut(*_):
        os.truncate(path, len(whole) - 100)

    with pytest.raises(OSError, match="became shorter"):
        nc.stream(path, targets, grad_out=tmp_path / "g.npy", progress=cut)
    with pytest.raises(ValueError, match="truncated"):
        nc.stream(path, targets, grad_out=tmp_path / "g.npy")
    assert names_in(tmp_path) == ["z.npy"]


@pytest.mark.skipif(not os.path.exists("/dev/shm"), reason="no memory file system")
def test_full_disk(tmp_path):
    """A limit on the size of a file stands for the end of the disk: the same errors come back."""
    code = """
import resource, signal, sys
import numpy as np, numba_ce
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    numba_ce.stream(np.zeros((1000, 50)), np.zeros(1000, int), grad_out=sys.argv[1])
except OSError as error:
    print("errno", error.errno)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "g.npy"], capture_output=True, text=True
    )
    assert result.stdout.strip() in (f"errno {errno.EFBIG}", f"errno {errno.ENOSPC}"), result
    assert names_in(tmp_path) == []


def test_failure_half_way_and_interrupt_leave_nothing(cpu, rng, tmp_path):
    logits, targets = make(rng)
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):

        def fail(done, rows, error=error):
            if done > 20:
                raise error

        with pytest.raises(type(error)):
            nc.stream(logits, targets, grad_out=tmp_path / "g.npy", progress=fail)
        assert names_in(tmp_path) == []


def test_blocks_are_closed_before_the_stream_ends(cpu, rng):
    """In the caller's thread, as a file around the call may be closed next."""
    logits, targets = make(rng)
    ended = []

    def blocks():
        try:
            for first in range(0, N, 10):
                yield logits[first : first + 10]
        finally:
            ended.append(threading.current_thread())

    def fail(done, rows):
        raise OSError

    for _ in range(20):
        with pytest.raises(OSError):
            nc.stream(blocks(), targets, progress=fail)
        assert ended.pop() is threading.current_thread()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_may_leave_a_stream():
    """Of a block that is being read the child has the lock, and not the thread that reads."""
    reading, go_on = threading.Event(), threading.Event()

    def items():
        yield 0
        reading.set()
        assert go_on.wait(10)

    ahead = read_ahead(items())
    assert next(ahead) == 0 and reading.wait(10)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        ahead.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    go_on.set()
    ahead.close()


def test_nothing_is_read_after_the_end():
    """What is read when the consumer ends is read to its end, then the thread ends as well."""
    read, reading, go_on = [], threading.Event(), threading.Event()

    def items():
        for i in range(10):
            if i == 1:
                reading.set()
                assert go_on.wait(10)
            read.append(i)
            yield i

    ahead = read_ahead(items())
    assert next(ahead) == 0
    assert reading.wait(10)
    threading.Timer(0.2, go_on.set).start()
    ahead.close()
    assert read == [0, 1]
    for thread in threading.enumerate():
        if "read-ahead" in thread.name:
            thread.join(10)
            assert not thread.is_alive()
    assert read == [0, 1]


# ---------------------------------------------------------------- memory


def sparse(path, n_rows, n_classes):
    """An .npy file of zeros that takes no room on the disk."""
    writer = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, n_classes))
    del writer


def test_memory_is_bounded(cpu, tmp_path, monkeypatch):
    block = 1 << 20
    monkeypatch.setattr("numba_ce.blocks.BLOCK_BYTES", block)
    sparse(tmp_path / "z.npy", 32768, 500)  # 64 MB
    targets = np.zeros(32768, np.int8)
    sparse(tmp_path / "short.npy", 1000, 500)
    nc.stream(tmp_path / "short.npy", targets[:1000], grad_out=tmp_path / "g.npy")  # compiles
    tracemalloc.start()
    nc.stream(tmp_path / "z.npy", targets, grad_out=tmp_path / "g.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * block


def test_file_larger_than_the_address_space(tmp_path):
    sparse(tmp_path / "z.npy", 500_000, 1000)  # 2 GB
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))
import numpy as np, numba_ce
print(numba_ce.stream(sys.argv[1], np.zeros(500_000, np.int16)).loss == np.float32(np.log(1000)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "z.npy"], capture_output=True, text=True
    )
    assert result.stdout.strip() == "True", result.stderr


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("shape", [(), (0,), (5,), (4, 6), (3, 4, 5), (2, 3, 4, 2)])
@pytest.mark.parametrize("fortran", [False, True])
def test_parts_of_files(rng, tmp_path, shape, fortran):
    array = rng.standard_normal(shape)
    if fortran:
        array = np.asfortranarray(array)
    reader = NpyReader(npy(tmp_path, "a.npy", array), "a")
    writer = NpyWriter(tmp_path / "b.npy", "b", shape, array.dtype, fortran)
    for _ in range(20):
        index = tuple(slice(*sorted(rng.integers(0, n + 1, 2).tolist())) for n in shape)
        assert (reader[index] == array[index]).all()
    assert (reader[()] == array).all()
    for i in range(shape[0] if shape else 1):
        index = (slice(i, i + 1),) if shape else ()
        writer[index] = array[index]
    writer.commit()
    writer.discard()
    reader.close()
    assert (np.load(tmp_path / "b.npy") == array).all()


class Handout:
    """An array-like of no type of NumPy's, whose parts are views of the caller's memory."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, index):
        return self.array[index]


@pytest.mark.parametrize("make", [Handout, lambda a: a.view(np.memmap)], ids=["views", "no map"])
def test_memory_that_belongs_to_the_caller_is_not_written_to(backend, rng, make):
    logits, targets = make_logits(rng, (40, 7)), rng.integers(0, 7, 40)
    before, grad = logits.copy(), np.empty((40, 7))
    nc.stream(make(logits), targets, grad_out=grad)
    assert (logits == before).all()
    expected = nc.cross_entropy_and_grad(logits, targets)[1]
    np.testing.assert_allclose(grad, expected, rtol=1e-14)


def test_infinite_losses_of_both_signs_warn_of_nothing(backend):
    logits = np.array([[-np.inf, 0.0], [-np.inf, 0.0]])
    assert np.isnan(nc.stream(logits, [0, 0], sample_weight=[1.0, -1.0], reduction="sum").loss)
    weights = np.array([np.inf, -np.inf])
    nc.stream(logits, [1, 1], sample_weight=weights)


@pytest.mark.parametrize("name", ["logits", "targets"])
def test_what_is_no_array_is_named(backend, name):
    arguments = {"logits": np.zeros((2, 3)), "targets": [0, 1], name: 5}
    with pytest.raises(TypeError, match=f"{name} = 5: expected a path, an array or an iterable"):
        nc.stream(**arguments)


def test_no_targets():
    with pytest.raises(TypeError, match="targets is None: expected"):
        nc.stream(np.zeros((3, 4), np.float32), None)
