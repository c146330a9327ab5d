"""Compiled kernels on disk: found by the next process, never out of date, no reason to fail."""

from __future__ import annotations

import compileall
import ctypes
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import every_kernel
import numba
import numpy as np
import pytest
from llvmlite import binding

import numba_ce as nc
from numba_ce import _cache

PACKAGE = Path(nc.__file__).parent
NAME = "0" * 64
posix = pytest.mark.skipif(os.name != "posix", reason="owners and permissions")

# Prints what had to be compiled and, in hexadecimal, the result
PROGRAM = """
    import json, os, sys
    import numpy as np
    import numba_ce as nc
    from numba_ce.cpu.run import launch, threads

    made = []

    def noted(module, name):
        function = getattr(module, name)
        def compile_noted(*arguments):
            made.append(name + str(*arguments))
            return function(*arguments)
        setattr(module, name, compile_noted)

    noted(launch, "compile_kernel")
    noted(launch, "compile_scan_first")
    noted(threads, "compile_parallel_loop")
    z = np.linspace(-9, 9, 600 * 300, dtype=np.float32).reshape(600, 300)
    {body}
    print(json.dumps([made, result.hex()]))
"""
ONE_KERNEL = PROGRAM.format(body="result = nc.logsumexp(z[:9]).tobytes()")
ALL_KINDS = PROGRAM.format(
    body="""
    y = np.arange(600) % 300
    calls = [nc.cross_entropy_and_grad(z[:9], y[:9]), nc.cross_entropy_and_grad(z, y),
             nc.cross_entropy_and_grad(z[:, :20], y % 20), nc.softmax(z.astype(np.float64))]
    result = b"".join(np.asarray(x).tobytes() for call in calls for x in call)
    """
)
EXPECTED = np.linspace(-9, 9, 600 * 300, dtype=np.float32).reshape(600, 300)[:9]


def start(program, cwd=None, **environment):
    environment = {"PYTHONPATH": str(PACKAGE.parent), **os.environ} | environment
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in environment.items() if value is not None},
        cwd=cwd or environment.get("PYTHONPATH"),
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    made, result = json.loads(out)
    return made, result


def run(program, folder="0", **environment):
    """What a new process had to compile, and its result."""
    return finish(start(program, **{"NUMBA_CE_CACHE_DIR": str(folder)} | environment))


@pytest.fixture(scope="session")
def plain():
    """The result of ONE_KERNEL without a cache."""
    made, result = run(ONE_KERNEL)
    assert len(made) == 1
    values = np.frombuffer(bytes.fromhex(result), np.float32)
    wide = EXPECTED.astype(np.float64)
    np.testing.assert_allclose(values, np.log(np.exp(wide).sum(-1)), rtol=3e-7)
    return result


@pytest.fixture(scope="session")
def filled_once(tmp_path_factory, plain):
    folder = tmp_path_factory.mktemp("filled")
    made, result = run(ONE_KERNEL, folder)
    assert [name.partition("Kernel")[0] for name in made] == ["compile_kernel"]
    assert result == plain
    assert len(list((folder / "cpu").iterdir())) == 1
    return folder


@pytest.fixture
def filled(tmp_path, filled_once):
    """A cache in which ONE_KERNEL has left its file."""
    shutil.copytree(filled_once / "cpu", tmp_path / "cpu")
    return tmp_path


# ---------------------------------------------------------------- between processes


def test_the_next_process_compiles_nothing(tmp_path):
    made, result = run(ALL_KINDS, tmp_path)
    assert "compile_parallel_loop" in made
    assert "compile_scan_first" in made
    assert len(made) == 6
    assert len(list((tmp_path / "cpu").iterdir())) == 6
    assert run(ALL_KINDS, tmp_path) == ([], result)
    environment = {"NUMBA_NUM_THREADS": "1", "NUMBA_THREADING_LAYER": "workqueue"}
    assert run(ALL_KINDS, tmp_path, **environment) == ([], result)


def test_the_next_process_compiles_no_kernel_of_any_kind(tmp_path):
    """Some of each kind; `python -m tests.every_kernel --all` takes all of them."""
    compiled = every_kernel.in_a_process(folder=tmp_path)
    assert len(compiled) > 20
    assert every_kernel.in_a_process(folder=tmp_path) == []


def test_eight_processes_start_cold(tmp_path, plain):
    processes = [start(ONE_KERNEL, NUMBA_CE_CACHE_DIR=str(tmp_path)) for _ in range(8)]
    for process in processes:
        assert finish(process)[1] == plain
    assert len(list((tmp_path / "cpu").iterdir())) == 1
    assert run(ONE_KERNEL, tmp_path) == ([], plain)


@pytest.mark.parametrize(
    "environment",
    [
        {"NUMBA_BOUNDSCHECK": "1"},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        {"NUMBA_CE_VECTOR_BITS": "128"},
    ],
    ids=lambda environment: "+".join(environment),
)
def test_other_settings_compile_anew(filled, plain, environment):
    made, result = run(ONE_KERNEL, filled, **environment)
    assert len(made) == 1
    if "NUMBA_CPU_NAME" not in environment:  # which has no fused multiply-add: other bits
        assert result == plain
    assert run(ONE_KERNEL, filled, **environment) == ([], result)
    assert run(ONE_KERNEL, filled) == ([], plain)


def copy_of_package(folder):
    shutil.copytree(PACKAGE, folder / "numba_ce", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "numba_ce"


def test_an_edited_module_runs_at_once(filled, plain):
    package = copy_of_package(filled / "code")
    environment = {"PYTHONPATH": str(package.parent)}
    assert run(ONE_KERNEL, filled, **environment) == ([], plain)
    path, line = (
        package / "cpu" / "rows" / "batch.py",
        " " * 12 + "here = first_lanes(count, F64_0)\n",
    )
    source = path.read_text()
    assert source.count(line) == 1  # of `put_floats`
    path.write_text(source.replace(line, " " * 12 + "values = values + 0.5\n" + line))
    made, result = run(ONE_KERNEL, filled, **environment)
    assert len(made) == 1
    before, after = (np.frombuffer(bytes.fromhex(x), np.float32) for x in (plain, result))
    np.testing.assert_allclose(after, before + 0.5, rtol=1e-6)
    assert run(ONE_KERNEL, filled, **environment) == ([], result)


EDIT_ROW = """
    def edit(kernel=None, compile_kernel=launch.compile_kernel):
        with open({path!r}, "a") as file:
            file.write("# edited")
        return compile_kernel(kernel) if kernel else None
    {use}
    result"""


@pytest.mark.parametrize("when", ["before the first call", "while it compiles"])
def test_sources_edited_under_a_running_process(filled, plain, when):
    """It runs the code that it has imported, which is not what the files say now."""
    package = copy_of_package(filled / "code")
    (path,) = (filled / "cpu").iterdir()
    use = "edit()"
    if when == "while it compiles":
        use = "launch.compile_kernel = edit"
        path.unlink()
    edit = EDIT_ROW.format(path=str(package / "row.py"), use=use)
    made, result = run(
        ONE_KERNEL.replace("    result", edit, 1), filled, PYTHONPATH=str(package.parent)
    )
    assert result == plain
    assert len(made) == 1
    assert [p for p in (filled / "cpu").iterdir() if p != path] == []
    assert path.exists() == (use == "edit()")


# ---------------------------------------------------------------- what may be wrong with a cache


def truncated(data):
    return data[: len(data) // 2]


def flipped(at):
    def flip(data):
        i = at % len(data)
        return data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :]

    return flip


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", truncated, lambda data: data + b"\0", lambda data: bytes(len(data))]
    + [flipped(at) for at in (0, 31, 32, 40, 5000, -1)],
    ids=["empty", "truncated", "longer", "zeros"]
    + [f"flipped {at}" for at in ("sum", "sum end", "head", "name", "code", "end")],
)
def test_a_damaged_file_counts_as_absent(tmp_path, damage):
    content = b'["entry", []]\n' + os.urandom(20000)
    _cache.write(tmp_path, NAME, content)
    assert _cache.read(tmp_path, NAME) == content
    path = tmp_path / NAME
    path.write_bytes(damage(path.read_bytes()))
    assert _cache.read(tmp_path, NAME) is None
    _cache.write(tmp_path, NAME, content)
    assert _cache.read(tmp_path, NAME) == content


def test_a_file_under_the_name_of_another_counts_as_absent(tmp_path):
    _cache.write(tmp_path, NAME, b"one")
    os.rename(tmp_path / NAME, tmp_path / NAME.replace("0", "1"))
    assert _cache.read(tmp_path, NAME.replace("0", "1")) is None


def test_damage_is_repaired(filled, plain):
    (path,) = (filled / "cpu").iterdir()
    path.write_bytes(flipped(5000)(path.read_bytes()))
    assert len(run(ONE_KERNEL, filled)[0]) == 1
    assert run(ONE_KERNEL, filled) == ([], plain)


def make_folder_of_all(where, path):
    where.chmod(0o777)


def make_folder_of_the_group(where, path):
    where.chmod(0o770)


def make_file_of_all(where, path):
    path.chmod(0o666)


def make_folder_foreign(where, path):
    os.chown(where, 65534, -1)


def make_file_foreign(where, path):
    os.chown(path, 65534, -1)


def make_link(where, path):
    path.rename(where / "elsewhere")
    path.symlink_to(where / "elsewhere")


def make_folder(where, path):
    path.unlink()
    path.mkdir()


def make_file(where, path):
    shutil.rmtree(where)
    where.write_bytes(b"")


@posix
@pytest.mark.parametrize(
    "spoil",
    [
        make_folder_of_all,
        make_folder_of_the_group,
        make_file_of_all,
        make_folder_foreign,
        make_file_foreign,
        make_link,
        make_folder,
        make_file,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_what_others_may_have_written_is_not_read(tmp_path, spoil):
    if "foreign" in spoil.__name__ and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    where = tmp_path / "cpu"
    _cache.write(where, NAME, b"old")
    assert _cache.read(where, NAME) == b"old"
    spoil(where, where / NAME)
    assert _cache.read(where, NAME) is None
    _cache.write(where, NAME, b"new")
    # A file in a folder of our own is replaced, a folder that is not ours is left alone
    replaced = spoil in (make_file_of_all, make_file_foreign, make_link)
    assert _cache.read(where, NAME) == (b"new" if replaced else None)
    if where.is_dir():
        assert not [path for path in where.iterdir() if path.name.startswith(".")]


@posix
def test_a_folder_of_all(filled, plain):
    (filled / "cpu").chmod(0o777)
    made, result = run(ONE_KERNEL, filled)
    assert len(made) == 1
    assert result == plain


# Without its capabilities root may write no more than its permissions say
NO_CAPABILITIES = """
    import ctypes
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, data) == 0
"""
SMALL_DISK = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
@pytest.mark.parametrize("before", [NO_CAPABILITIES, SMALL_DISK], ids=["read-only", "full"])
def test_a_cache_that_cannot_be_written(tmp_path, plain, before):
    cpu = tmp_path / "cpu"
    cpu.mkdir(mode=0o700)
    if before is NO_CAPABILITIES:
        cpu.chmod(0o500)
    made, result = run(textwrap.dedent(before) + textwrap.dedent(ONE_KERNEL), tmp_path)
    assert len(made) == 1
    assert result == plain
    assert list(cpu.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_a_cache_that_can_only_be_read_is_read(filled, plain):
    (filled / "cpu").chmod(0o500)
    program = textwrap.dedent(NO_CAPABILITIES) + textwrap.dedent(ONE_KERNEL)
    assert run(program, filled) == ([], plain)


@posix
def test_no_home(plain):
    environment = {"HOME": "/dev/null/nobody", "XDG_CACHE_HOME": None, "NUMBA_CE_CACHE_DIR": None}
    made, result = run(ONE_KERNEL, **environment)
    assert len(made) == 1
    assert result == plain


def test_off(tmp_path, plain):
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    assert run(ONE_KERNEL, "0", **environment)[1] == plain
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- where


@posix
def test_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CE_CACHE_DIR", "~/kernels")
    monkeypatch.setenv("HOME", "/home/u")
    assert _cache.folder("cpu") == Path("/home/u/kernels/cpu")
    monkeypatch.setenv("NUMBA_CE_CACHE_DIR", "here")
    assert _cache.folder("cpu") == Path.cwd() / "here" / "cpu"
    monkeypatch.setenv("NUMBA_CE_CACHE_DIR", "0")
    assert _cache.folder("cpu") is None
    assert _cache.describe("cpu") == "nowhere: NUMBA_CE_CACHE_DIR=0"
    monkeypatch.setenv("NUMBA_CE_CACHE_DIR", "")  # as if it were not set
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert _cache.folder("cuda") == Path("/caches/numba_ce/cuda")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification: ignore it
    assert _cache.folder("cpu") is None
    assert _cache.describe("cpu") == "nowhere: there is no home folder"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert _cache.folder("cpu") == Path("/home/u/.cache/numba_ce/cpu")
    monkeypatch.setattr("sys.platform", "darwin")
    assert _cache.folder("cpu") == Path("/home/u/Library/Caches/numba_ce/cpu")


@posix
def test_new_folders_and_files_are_private(tmp_path, monkeypatch):
    umask = os.umask(0)
    try:
        _cache.write(tmp_path / "a" / "cpu", NAME, b"content")
    finally:
        os.umask(umask)
    assert (tmp_path / "a" / "cpu").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "cpu" / NAME).stat().st_mode & 0o777 == 0o600


def test_the_oldest_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "LIMIT_BYTES", 5000)
    names = [str(i) * 64 for i in range(6)]
    for i, name in enumerate(names[:4]):
        _cache.write(tmp_path, name, bytes(1200))
        os.utime(tmp_path / name, (1000 + i, 1000 + i))
    assert len(_cache.files(tmp_path)) == 4
    assert _cache.read(tmp_path, names[0])  # used: no longer the oldest
    for name in names[4:]:
        _cache.write(tmp_path, name, bytes(1200))
    kept = {Path(path).name for _, _, path in _cache.files(tmp_path)}
    assert kept == {names[0], names[3], names[4], names[5]}


def test_describe(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CE_CACHE_DIR", str(tmp_path))
    where = tmp_path / "cpu"
    assert _cache.describe("cpu") == f"{where}: 0 files, 0.0 MB"
    _cache.write(where, NAME, bytes(200_000))
    assert _cache.describe("cpu") == f"{where}: 1 files, 0.2 MB"
    if os.name == "posix":
        where.chmod(0o777)
        assert _cache.describe("cpu") == f"{where}: not used, others can write to it"
        assert os.geteuid() != 0 or _cache.distrust(os.stat("/")) is None
    shutil.rmtree(where)
    where.write_bytes(b"")
    assert "not used, Not a directory" in _cache.describe("cpu")


# ---------------------------------------------------------------- what a file is named by


def test_every_module_counts(tmp_path, monkeypatch):
    package = copy_of_package(tmp_path)
    monkeypatch.setattr(_cache, "__file__", str(package / "_cache.py"))
    before = _cache.sources()
    paths = sorted(package.rglob("*.py"))
    assert len(paths) > 60
    seen = {before}
    for path in paths:
        source = path.read_bytes()
        path.write_bytes(source + b"#")
        seen.add(_cache.sources())
        path.write_bytes(source)
    assert len(seen) == 1 + len(paths)
    assert _cache.sources() == before
    one, other = paths[0].read_bytes(), paths[-1].read_bytes()
    paths[0].write_bytes(other)
    paths[-1].write_bytes(one)
    seen.add(_cache.sources())
    (package / "cpu" / "new.py").write_bytes(b"")
    seen.add(_cache.sources())
    (package / "cpu" / "new.py").rename(package / "cpu" / "newer.py")
    seen.add(_cache.sources())
    assert len(seen) == 4 + len(paths)


def zipped(package):
    """The package in a zip file, and a function that edits a module there."""
    archive = package.parent / "package.zip"

    def pack():
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in package.rglob("*.py"):
                file.write(path, path.relative_to(package.parent))

    def edit():
        edit_row(package)
        pack()

    pack()
    return archive, edit


def compiled(package):
    """The package without its source files, and a function that edits a module there."""
    target = package.parent / "compiled"
    target.mkdir()

    def compile_all():
        assert compileall.compile_dir(package, quiet=1, legacy=True)
        for path in package.rglob("*.pyc"):
            to = target / path.relative_to(package.parent)
            to.parent.mkdir(parents=True, exist_ok=True)
            path.replace(to)

    def edit():
        edit_row(package)
        compile_all()

    compile_all()
    return target, edit


def edit_row(package):
    with open(package / "row.py", "a") as file:
        file.write("EDITED = 1\n")


@pytest.mark.parametrize("deliver", [zipped, compiled])
def test_a_package_without_source_files(tmp_path, plain, deliver):
    path, edit = deliver(copy_of_package(tmp_path / "code"))
    environment = {"PYTHONPATH": str(path)}
    program = ONE_KERNEL.replace("z = np", f"assert nc.__file__.startswith({str(path)!r}); z = np")
    cache = tmp_path / "cache"
    made, result = run(program, cache, cwd=tmp_path, **environment)
    assert len(made) == 1
    assert result == plain
    assert run(program, cache, cwd=tmp_path, **environment) == ([], plain)
    edit()
    assert len(run(program, cache, cwd=tmp_path, **environment)[0]) == 1
    assert run(program, cache, cwd=tmp_path, **environment) == ([], plain)


@pytest.mark.parametrize("content", [None, b"no zip file"], ids=["absent", "damaged"])
def test_without_sources_nothing_is_kept(cache, tmp_path, monkeypatch, content):
    archive = tmp_path / "package.zip"
    if content is not None:
        archive.write_bytes(content)
    monkeypatch.setattr(_cache, "__file__", str(archive / "numba_ce" / "_cache.py"))
    assert _cache.sources() is None
    assert "not used, the files of the package have changed" in _cache.describe("cpu")
    monkeypatch.setattr(_cache, "SOURCES", None)
    assert "not used, the files of the package cannot be read" in _cache.describe("cpu")
    get = a_function(cache)
    assert [get(), get()] == [1, 2]
    assert not (tmp_path / "cpu").exists()


def test_the_sources_are_noted_first():
    program = "import sys, numba_ce; print(*[n for n in sys.modules if n.startswith('numba_ce.')])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.stdout.split()[0] == "numba_ce._cache"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from numba_ce.cpu.compile import cache

    monkeypatch.setenv("NUMBA_CE_CACHE_DIR", str(tmp_path))
    return cache


def test_everything_that_changes_code_counts(cache, monkeypatch):
    names = {cache._file_name("kernel"), cache._file_name("another")}
    from llvmlite import __version__
    from numba.core import config

    changes = [
        (numba, "__version__", "0.0"),
        (np, "__version__", "0.0"),
        (cache.llvmlite, "__version__", __version__ + "+"),
        (binding, "llvm_version_info", (0, 0, 0)),
        (sys, "version", "0"),
        (config, "BOUNDSCHECK", 1),
        (config, "OPT", 0),
        (config, "DEBUGINFO_DEFAULT", 1),
        (config, "ENABLE_AVX", 0),
        (_cache, "SOURCES", b"others"),
        (type(cache.cpu_target.target_context.codegen()), "magic_tuple", lambda self: ("i386",)),
    ]
    for owner, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            names.add(cache._file_name("kernel"))
    assert len(names) == 2 + len(changes)
    assert cache._file_name("kernel") in names
    for name in ("NUMBA_NUM_THREADS", "THREADING_LAYER", "CUDA_LOG_LEVEL", "COLOR_SCHEME"):
        monkeypatch.setattr(config, name, "other")
    assert cache._file_name("kernel") in names


# ---------------------------------------------------------------- another Numba


def a_function(cache, body=lambda plan, worker: None):
    """A function like the kernels, and what `cached` makes of it."""
    made = []

    def compile_now():
        made.append(1)
        return numba.cfunc("void(voidptr, intp)")(body)

    def get():
        signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t)
        function = cache.cached("nothing", signature, compile_now)
        function.ctypes(None, 0)
        return len(made)

    return get


def test_it_is_compiled_once(cache, tmp_path):
    get = a_function(cache)
    assert [get(), get()] == [1, 1]
    assert len(list((tmp_path / "cpu").iterdir())) == 1


@posix
def test_addresses_of_this_process_are_not_kept(cache):
    """Numba writes the address of a ctypes function into the code."""
    getpid = ctypes.CFUNCTYPE(ctypes.c_int)(("getpid", ctypes.CDLL(None)))

    def body(plan, worker):
        getpid()

    get = a_function(cache, body)
    assert [get(), get()] == [1, 2]


@pytest.mark.parametrize("part", ["_fingerprint", "_content", "_load"])
def test_without_numbas_private_parts_all_is_compiled(cache, monkeypatch, part):
    def missing(*arguments):
        raise AttributeError("no such thing in this version")

    monkeypatch.setattr(cache, part, missing)
    get = a_function(cache)
    assert [get(), get()] == [1, 2]


def test_nothing_is_loaded_while_a_process_forks(cache, monkeypatch):
    """The lock that is held then, held here: the child could not load or compile any more."""
    from numba.core.compiler_lock import global_compiler_lock

    get = a_function(cache)
    get()
    locked = []
    create = binding.create_mcjit_compiler

    def noted(*arguments):
        locked.append(global_compiler_lock.is_locked())
        return create(*arguments)

    monkeypatch.setattr(binding, "create_mcjit_compiler", noted)
    assert get() == 1
    assert locked == [True]


def test_a_symbol_that_is_not_there(cache, monkeypatch):
    """LLVM would end the process."""
    content = cache._content

    def wanting(function):
        head, _, code = content(function).partition(b"\n")
        entry, wanted = json.loads(head)
        return json.dumps([entry, [*wanted, "no_such_symbol"]]).encode() + b"\n" + code

    monkeypatch.setattr(cache, "_content", wanting)
    get = a_function(cache)
    assert [get(), get()] == [1, 2]


def test_info_shows_the_folder(cache, tmp_path):
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from numba_ce.cli import app

    output = CliRunner().invoke(app, ["info"], env={"COLUMNS": "300"}).output
    assert f"{tmp_path / 'cpu'}: " in output
    assert " files, " in output


def test_what_compiling_leaves_is_given_back():
    """Some 40,000 objects of each kernel wait for a collection, and some 10 MB with them."""
    code = """
import gc
import numpy as np, numba_ce
gc.collect()
for n_classes in range(1, 6):
    for kind in ("f4", "f8"):
        numba_ce.softmax(np.zeros((4, n_classes), kind))
        numba_ce.logsumexp(np.zeros((4, n_classes), kind))
print(gc.isenabled(), gc.collect())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NUMBA_CE_CACHE_DIR": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    enabled, left = done.stdout.split()
    assert enabled == "True"
    assert int(left) < 8 * 60_000  # of 20 kernels
