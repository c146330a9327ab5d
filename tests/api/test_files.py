"""Files that are read and written: none is lost, and those that people have are read."""

from __future__ import annotations

import io
import os
import stat

import ml_dtypes
import numpy as np
import pytest
from cases import make_logits

import numba_ce as nc
from numba_ce._files import OutputFile
from numba_ce.npy import NpyReader

N, C = 30, 7


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr("numba_ce.blocks.BLOCK_BYTES", 7 * C * 8)


@pytest.fixture
def folder(rng, tmp_path, monkeypatch):
    """A folder with the files of all arguments, which is the current one."""
    monkeypatch.chdir(tmp_path)
    np.save("logits.npy", make_logits(rng, (N, C)))
    np.save("targets.npy", rng.dirichlet(np.ones(C), N))  # as large as the gradient
    np.save("sample_weight.npy", rng.uniform(0.5, 2.0, N))
    np.save("class_weight.npy", rng.uniform(0.5, 2.0, C))
    return tmp_path


NAMES = ("logits", "targets", "sample_weight", "class_weight")


def arguments():
    return {name: f"{name}.npy" for name in NAMES}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def expected(**options):
    arrays = {name: np.load(f"{name}.npy") for name in NAMES}
    return nc.cross_entropy_and_grad(**arrays | options)


# ---------------------------------------------------------------- what is written


def plain(path):
    return path


def absolute(path):
    return os.path.abspath(path)


def symbolic(path):
    os.symlink(path, "link.npy")
    return "link.npy"


def hard(path):
    os.link(path, "link.npy")
    return "link.npy"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("link", [plain, absolute, symbolic, hard])
def test_an_input_is_not_an_output(cpu, folder, name, link):
    path = link(f"{name}.npy")
    before = contents(folder)
    with pytest.raises(ValueError, match=f"grad_out = .* is a file of {name}"):
        nc.stream(**arguments(), grad_out=path)
    mapped = arguments() | {name: np.load(f"{name}.npy", mmap_mode="r")[:]}
    with pytest.raises(ValueError, match=f"grad_out = .* is a file of {name}"):
        nc.stream(**mapped, grad_out=path)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["logits", "targets"])
@pytest.mark.parametrize("mode", ["r", None])
def test_a_map_of_an_input_is_not_an_output(cpu, folder, name, mode):
    """By a second map, or by the path of the input."""
    before = contents(folder)
    out = np.load(f"{name}.npy", mmap_mode="r+")
    given = arguments()
    if mode is not None:
        given[name] = np.load(given[name], mmap_mode=mode)
    with pytest.raises(ValueError, match=f"grad_out is in the file of {name}"):
        nc.stream(**given, grad_out=np.asarray(out))
    assert contents(folder) == before
    private = np.load(f"{name}.npy", mmap_mode="c")
    nc.stream(**given, grad_out=private)
    assert contents(folder) == before
    np.testing.assert_allclose(private, expected()[1], rtol=1e-13)


def test_maps_of_two_parts_of_a_file_and_in_place(cpu, folder):
    _, grad = expected()
    np.concatenate([np.load("logits.npy"), np.zeros((N, C))]).tofile("both")
    logits = np.memmap("both", np.float64, "r+", 0, (N, C))
    out = np.memmap("both", np.float64, "r+", logits.nbytes, (N, C))
    nc.stream(**arguments() | {"logits": logits}, grad_out=out)
    np.testing.assert_allclose(out, grad, rtol=1e-13)
    nc.stream(**arguments() | {"logits": logits}, grad_out=logits)
    np.testing.assert_allclose(logits, grad, rtol=1e-13)


def test_zarr_arrays_are_not_overwritten(cpu, folder):
    zarr = pytest.importorskip("zarr")
    for name in ("logits", "targets"):
        zarr.save(f"{name}.zarr", np.load(f"{name}.npy"))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    inside = next(p for p in (folder / "targets.zarr").rglob("*") if p.is_file())
    stores = arguments() | {"logits": "logits.zarr", "targets": "targets.zarr"}
    opened = stores | {"targets": zarr.open("targets.zarr", mode="r+")}
    for given, out, message in (
        (stores, inside, "is a file of targets"),
        (opened, inside, "is a file of targets"),
        (stores, zarr.open("logits.zarr", mode="r+"), "in the file of logits"),
        (stores, zarr.open("targets.zarr", mode="r+"), "in the file of targets"),
        (opened, opened["targets"], "in the file of targets"),
    ):
        with pytest.raises(ValueError, match=message):
            nc.stream(**given, grad_out=out)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_the_name_of_the_unfinished_file_is_free(folder, monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda n: b"\0" * n)
    (folder / "g.npy.00000000.part").write_text("somebody's")
    with pytest.raises(FileExistsError):
        OutputFile("g.npy", "grad_out")
    assert (folder / "g.npy.00000000.part").read_text() == "somebody's"


def make_null(path):
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("needs root")


@pytest.mark.parametrize(
    ("make", "kind"), [(os.mkfifo, "a pipe"), (make_null, "a device"), (os.mkdir, "a folder")]
)
@pytest.mark.parametrize("link", [plain, symbolic])
def test_what_is_no_file_stays(cpu, folder, make, kind, link):
    make("out")
    path, before = link("out"), os.stat("out")
    with pytest.raises(ValueError, match=f"grad_out = '{path}' is {kind}: expected"):
        nc.stream(**arguments(), grad_out=path)
    after = os.stat("out")
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert not list(folder.glob("*.part"))


def test_a_link_stays_and_the_mode_is_kept(cpu, folder):
    os.mkdir("elsewhere")
    for name, mode in (("old.npy", 0o640), ("new.npy", None)):
        if mode is not None:
            np.save("elsewhere/" + name, np.zeros(3))
            os.chmod("elsewhere/" + name, mode)
        os.symlink("elsewhere/" + name, name)
        nc.stream(**arguments(), grad_out=name)
        assert os.path.islink(name)
        np.testing.assert_allclose(np.load(name), expected()[1], rtol=1e-13)
        np.save("like.npy", np.zeros(3))
        like = stat.S_IMODE(os.stat("like.npy").st_mode)
        assert stat.S_IMODE(os.stat(name).st_mode) == (mode or like)
    assert sorted(os.listdir("elsewhere")) == ["new.npy", "old.npy"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every file")
def test_a_file_that_must_not_be_written_to(cpu, folder):
    os.chmod("logits.npy", 0o444)
    with pytest.raises(PermissionError, match="logits"):
        nc.stream(np.load("logits.npy"), np.zeros(N, int), grad_out="logits.npy")


# ---------------------------------------------------------------- what is read


def test_format_3_is_read_and_others_are_named(cpu, folder):
    array = np.load("logits.npy")
    for version in ((1, 0), (2, 0), (3, 0)):
        with open("v.npy", "wb") as file:
            np.lib.format.write_array(file, array, version)
        reader = NpyReader("v.npy", "logits")
        assert (reader[()] == array).all() and reader.dtype == array.dtype
        reader.close()
    raw = bytearray((folder / "v.npy").read_bytes())
    raw[6] = 4
    (folder / "v.npy").write_bytes(raw)
    with pytest.raises(ValueError, match=r"logits v.npy: .*format \(4, 0\), expected 1.0, 2.0"):
        nc.stream("v.npy", "targets.npy")


def test_bfloat16_files(backend, folder, rng):
    logits = np.load("logits.npy").astype(ml_dtypes.bfloat16)
    targets = rng.integers(0, C, N)
    np.save("b.npy", logits)
    loss, grad = nc.cross_entropy_and_grad(logits, targets)
    for given in ("b.npy", np.load("b.npy"), np.load("b.npy", mmap_mode="r")):
        for dtype in ("bfloat16", ml_dtypes.bfloat16):
            result = nc.stream(given, targets, grad_out="g.npy", dtype=dtype)
            np.testing.assert_allclose(result.loss, loss, rtol=1e-6)
            assert (np.load("g.npy").view(ml_dtypes.bfloat16) == grad).all()
        with pytest.raises(TypeError, match=r"logits have dtype \|V2.*expected .* 'bfloat16'"):
            nc.stream(given, targets)
    nc.stream("b.npy", "g.npy", dtype="bfloat16")  # as probabilities
    nc.stream(["b.npy"], targets, dtype="bfloat16")
    for dtype, error, message in (
        ("float32", ValueError, "logits have elements of 2 bytes"),
        ("int16", ValueError, "dtype = 'int16': expected one of float16, bfloat16"),
        ("what", ValueError, "dtype = 'what': expected one of float16, bfloat16"),
        (np.zeros(0), ValueError, r"dtype = array\(\[\], .*: expected one of float16, bfloat16"),
        (np.array(["bfloat16"]), ValueError, r"dtype = array\(.*: expected one of float16"),
    ):
        with pytest.raises(error, match=message):
            nc.stream("b.npy", targets, dtype=dtype)
    with pytest.raises(ValueError, match="dtype = 'bfloat16': logits have dtype float64"):
        nc.stream("logits.npy", targets, dtype="bfloat16")


def test_what_is_no_file_is_not_read(folder):
    os.mkfifo("pipe")  # opened, it would wait for a writer
    for name in NAMES:
        with pytest.raises(ValueError, match=f"{name} pipe is a pipe: expected the path of a regu"):
            nc.stream(**arguments() | {name: "pipe"})


def test_what_is_no_array_is_explained(folder):
    np.savez("a.npz", z=np.load("logits.npy"))
    with open("logits.npy", "rb") as file, np.load("a.npz") as archive:
        for bad in (file, archive, io.BytesIO(b"abc"), b"logits.npy", {"z": 1}):
            for name in ("logits", "targets", "sample_weight"):
                with pytest.raises(TypeError, match=f"{name} = .*: expected a path, an array"):
                    nc.stream(**arguments() | {name: bad})
            with pytest.raises(TypeError, match=r"logits = .*: expected a path, an array"):
                nc.stream(iter([bad]), "targets.npy")
    with pytest.raises(ValueError, match=r"a.npz: an archive of arrays.*numpy.load\(path\)\[name"):
        nc.stream("a.npz", "targets.npy")


def test_pairs_are_explained(cpu, folder):
    z, t = np.load("logits.npy"), np.load("targets.npy")
    for pair in ((z, t), ("logits.npy", "targets.npy")):
        with pytest.raises(TypeError, match="logits block 0 is a tuple of 2: expected an array"):
            nc.stream(iter([pair]), t)


@pytest.mark.parametrize("shape", [(N, C), (9, 3, C)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_shards(cpu, rng, tmp_path, shape, reduction, kind):
    logits, s = make_logits(rng, shape), rng.uniform(0.5, 2.0, shape[:-1])
    targets = rng.integers(0, C, shape[:-1])
    if kind != "index":
        targets = rng.dirichlet(np.ones(C), shape[:-1])
    cuts = [slice(0, 4), slice(4, 4), slice(4, None)]

    def shards(name, array):
        paths = [tmp_path / f"{name}{i}.npy" for i in range(len(cuts))]
        for path, cut in zip(paths, cuts, strict=True):
            np.save(path, array[cut])
        return paths

    loss = nc.cross_entropy(logits, targets, sample_weight=s, reduction=reduction)
    z, y, w = shards("z", logits), shards("y", targets), shards("s", s)
    parts = [targets[cut] for cut in cuts]
    arrays = [logits[cut] for cut in cuts]
    for a, b, c in ((z, y, w), (map(str, z), parts, s), (z, targets, iter(w)), (arrays, y, w)):
        result = nc.stream(a, b, sample_weight=c, reduction=reduction)
        np.testing.assert_allclose(result.loss, loss, rtol=1e-14)
        assert result.n_rows == np.size(s)
    with pytest.raises(ValueError, match=r"targets block 2 has shape .*: expected .* rows"):
        nc.stream(z, [*y[:2], y[0]])
    with pytest.raises(ValueError, match="not with blocks"):
        nc.stream(z, y, grad_out=tmp_path / "g.npy")


def test_lists_are_arrays(cpu, rng):
    logits, targets = make_logits(rng, (4, C)), rng.integers(0, C, 4)
    loss, grad = nc.cross_entropy_and_grad(logits, targets)
    out = np.empty_like(logits)
    for z in (logits.tolist(), tuple(map(tuple, logits.tolist())), list(logits)):
        assert nc.stream(z, targets.tolist(), grad_out=out).loss == loss
        assert (out == grad).all()
    deep = nc.stream(logits.reshape(2, 2, C).tolist(), targets.reshape(2, 2).tolist())
    assert deep.loss == loss
    blocks = nc.stream([logits[:2], logits[2:]], [targets[:2].tolist(), targets[2:].tolist()])
    np.testing.assert_allclose(blocks.loss, loss, rtol=1e-14)
    with pytest.raises(TypeError, match="logits have dtype int64: expected float16"):
        nc.stream([[1, 2], [3, 4]], [0, 1])


def test_eval(cpu, folder, rng):
    evaluation = pytest.importorskip("numba_ce.evaluate")
    targets, weight = rng.integers(0, C, N), "class_weight.npy"
    before = contents(folder)
    with pytest.raises(ValueError, match=r"grad_out = .* is a file of class_weight"):
        evaluation.evaluate("logits.npy", targets, class_weight=weight, grad_out=weight)
    assert contents(folder) == before
    logits = np.load("logits.npy").astype(ml_dtypes.bfloat16)
    np.save("b.npy", logits)
    got = evaluation.evaluate("b.npy", targets, class_weight=weight, dtype="bfloat16")
    wanted = nc.cross_entropy(logits, targets, class_weight=np.load(weight))
    np.testing.assert_allclose(got.loss, wanted, rtol=1e-6)
