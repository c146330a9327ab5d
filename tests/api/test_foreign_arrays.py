"""What is no plain array, in every array argument of every function: an error that names it."""

from __future__ import annotations

import numpy as np
import pytest
from cases import BACKENDS
from public_calls import ARGUMENTS, CALLS, LOSS, Y

import numba_ce as nc

sparse = pytest.importorskip("scipy.sparse", reason="needs SciPy")


Z = LOSS["logits"].astype(np.float64)


class Lazy:
    """Says that it is an array, and cannot be read."""

    def __init__(self, array, error):
        self.array, self.error = array, error

    def __array__(self, dtype=None, copy=None):
        raise self.error


class UnreadError(Exception):
    pass


def with_none(array):
    array = array.astype(object)
    array.flat[0] = None
    return array


class Nullable:
    """As the extension arrays of pandas: of a dtype of its own, and NumPy sees objects."""

    def __init__(self, array):
        self.array, self.shape, self.ndim = with_none(array), array.shape, array.ndim

    @property
    def dtype(self):
        return "Int64Dtype()"

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        return self.array[index]


REFUSED = {
    "csr_matrix": (lambda a: sparse.csr_matrix(np.atleast_2d(a)), r"\.toarray\(\)"),
    "coo_array": (sparse.coo_array, r"\.toarray\(\)"),
    "csc_array": (lambda a: sparse.csc_array(np.atleast_2d(a)), r"\.toarray\(\)"),
    "dok_array": (lambda a: sparse.dok_array(np.atleast_2d(a)), r"\.toarray\(\)"),
    "object": (lambda a: a.astype(object), "dtype object"),
    "None inside": (with_none, "dtype object"),
    "nullable": (Nullable, "dtype object"),
    "structured": (lambda a: np.zeros(a.shape, [("a", "f4"), ("b", "i4")]), "dtype"),
    "record": (lambda a: np.zeros(a.shape, [("a", "f4")]).view(np.recarray), "dtype"),
    "datetime": (lambda a: np.zeros(a.shape, "M8[s]"), "dtype datetime64"),
    "timedelta": (lambda a: np.zeros(a.shape, "m8[s]"), "dtype timedelta64"),
    "text": (lambda a: a.astype("U3"), "dtype <U3"),
    "strings": (lambda a: a.astype("U3").astype(np.dtypes.StringDType()), "dtype StringDType"),
    "complex": (lambda a: a.astype(complex), "dtype complex128"),
    "masked": (np.ma.masked_array, "MaskedArray"),
    "huge": (lambda a: np.full(a.shape, 10**400).tolist(), "dtype object"),
    "lazy": (lambda a: Lazy(a, UnreadError("gone")), "cannot be made an array: gone"),
    "runtime": (lambda a: Lazy(a, RuntimeError("gone")), "cannot be made an array: gone"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_the_error_names_the_argument(name, argument, kind):
    make, hint = REFUSED[kind]
    function, arguments = CALLS[name]
    if name == "stream" and make(Y).__class__ is Lazy:
        hint += "|expected a path, an array or an iterable"
    with pytest.raises(TypeError, match=rf"(^|\n){named(argument)}.*{hint}"):
        function(**arguments | {argument: make(arguments[argument])})


def named(argument):
    return {"scores": "(scores|logits)"}.get(argument, argument) + r"\b"


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("argument", ["targets", "class_weight", "sample_weight"])
def test_dask(argument, kind):
    da = pytest.importorskip("dask.array", reason="needs dask")
    from numba_ce.integrations import dask

    make, hint = REFUSED[kind]
    arguments = LOSS | {"logits": da.from_array(Z), argument: make(LOSS[argument])}
    for function in (dask.cross_entropy, dask.cross_entropy_and_grad):
        with pytest.raises(TypeError, match=rf"^{argument}\b.*{hint}"):
            function(**arguments)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("argument", LOSS)
def test_mpi(argument, kind):
    try:
        from mpi4py import MPI

        from numba_ce.integrations import mpi
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI
        pytest.skip(str(error))
    make, hint = REFUSED[kind]
    arguments = LOSS | {argument: make(LOSS[argument])}
    z, y = arguments.pop("logits"), arguments.pop("targets")
    with pytest.raises(TypeError, match=rf"^(local_)?{argument}\b.*{hint}"):
        mpi.cross_entropy_and_grad(z, y, 0, MPI.COMM_SELF, **arguments)
    with pytest.raises(TypeError, match=rf"^(local_)?{argument}\b.*{hint}"):
        mpi.row_sharded_cross_entropy_and_grad(z, y, MPI.COMM_SELF, **arguments)


@pytest.mark.parametrize("make", [sparse.lil_array, np.ma.masked_array, np.ndarray.tolist])
def test_no_such_array_is_an_output(make):
    for function in (nc.softmax, lambda z, out: nc.cross_entropy_and_grad(z, Y, out=out)):
        with pytest.raises(TypeError, match=r"^out is a .*: expected a NumPy array"):
            function(Z, out=make(Z))
    with pytest.raises(TypeError, match=r"^grad_out is a "):
        nc.stream(Z, Y, grad_out=make(Z))


def test_an_error_of_reading_stays_what_it_is():
    """What is wrong with the disk is not wrong with the argument."""
    for error in (OSError, TimeoutError, MemoryError):
        with pytest.raises(error, match="gone"):
            nc.logsumexp(Lazy(Z, error("gone")))


class Overriding(np.ndarray):
    """As the arrays of units: it has functions of its own in the place of NumPy's."""

    def __array_function__(self, function, types, arguments, options):
        raise AssertionError(f"{function.__name__} of the subclass")

    def __array_ufunc__(self, function, method, *arguments, **options):
        raise AssertionError(f"{function.__name__} of the subclass")


def memory_map(tmp_path):
    def make(array):
        mapped = np.memmap(
            tmp_path / f"{len(list(tmp_path.iterdir()))}", array.dtype, "w+", shape=array.shape
        )
        mapped[...] = array
        return mapped

    return make


@pytest.mark.parametrize("kind", ["overriding", "memmap", "negative", "zero strides"])
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_memory_that_is_read_as_any_other(tmp_path, name, argument, kind):
    function, arguments = CALLS[name]
    repeated = np.broadcast_to(arguments[argument][:1], arguments[argument].shape)
    if kind == "zero strides":
        arguments = arguments | {argument: repeated.copy()}
    made = {
        "overriding": lambda a: a.view(Overriding),
        "memmap": memory_map(tmp_path),
        "negative": lambda a: a[::-1].copy()[::-1],
        "zero strides": lambda a: repeated,
    }[kind](arguments[argument])
    expected, got = function(**arguments), function(**arguments | {argument: made})
    if name.startswith("stream"):
        expected, got = expected[:-1], got[:-1]
    assert_equal(got, expected)


def assert_equal(a, b):
    if isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif a is not None:
        np.testing.assert_array_equal(a, b)
        assert type(a) is type(b)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("kind", ["matrix", "overriding", "memmap", "negative", "columns"])
def test_outputs(tmp_path, backend_name, kind):
    make = {
        "matrix": lambda a: a.view(np.matrix),
        "overriding": lambda a: a.view(Overriding),
        "memmap": memory_map(tmp_path),
        "negative": lambda a: a[::-1, ::-1],
        "columns": lambda a: np.zeros((3, 8))[:, ::-2],
    }[kind]
    out, stored = make(np.zeros(Z.shape)), make(np.zeros(Z.shape))
    with nc.use_backend(backend_name):
        expected = nc.cross_entropy_and_grad(Z, Y)[1]
        assert nc.cross_entropy_and_grad(Z, Y, out=out)[1] is out
        nc.stream(Z, Y, grad_out=stored)
    np.testing.assert_array_equal(np.asarray(out), expected)
    np.testing.assert_allclose(np.asarray(stored), expected, rtol=1e-15)


def test_outputs_that_are_refused():
    for shape, strides in (((3, 4), (0, 8)), ((3, 4), (32, 0)), ((3, 4), (0, 0)), ((3, 4), (8, 8))):
        out = np.lib.stride_tricks.as_strided(np.zeros(12), shape, strides)
        with pytest.raises(ValueError, match=r"^out has strides .*overlap each other"):
            nc.cross_entropy_and_grad(Z, Y, out=out)
        with pytest.raises(ValueError, match=r"^grad_out has strides .*overlap each other"):
            nc.stream(Z, Y, grad_out=out)
    with pytest.raises(ValueError, match="out is read-only"):
        nc.cross_entropy_and_grad(Z, Y, out=np.broadcast_to(np.zeros(4), (3, 4)))


class OnlyDLPack:
    """As an array of the array API without NumPy's own protocols."""

    def __init__(self, array):
        self.array, self.shape, self.ndim, self.dtype = array, array.shape, array.ndim, "a dtype"

    def __getitem__(self, index):
        return OnlyDLPack(self.array[index])

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_dlpack_is_enough(name, argument):
    function, arguments = CALLS[name]
    expected, got = (
        function(**arguments),
        function(**arguments | {argument: OnlyDLPack(arguments[argument])}),
    )
    if name.startswith("stream"):
        expected, got = expected[:-1], got[:-1]
    assert_equal(got, expected)


def test_dlpack_that_numpy_cannot_read():
    with pytest.raises(TypeError, match=r"logits \(OnlyDLPack\) cannot be made an array: "):
        nc.logsumexp(OnlyDLPack(Z.astype(">f8")))


@pytest.mark.parametrize("dtype", ["i8", ">u2", "u1"])
@pytest.mark.parametrize(("name", "argument"), [a for a in ARGUMENTS if "_weight" in a[1]])
def test_weights_of_integers(name, argument, dtype):
    function, arguments = CALLS[name]
    weight = np.arange(1, len(arguments[argument]) + 1)
    expected = function(**arguments | {argument: weight.astype(float)})
    got = function(**arguments | {argument: weight.astype(dtype)})
    if name.startswith("stream"):
        expected, got = expected[:-1], got[:-1]
    assert_equal(got, expected)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_0_d_arrays(name, argument):
    function, arguments = CALLS[name]
    zero = np.array(0, arguments[argument].dtype)
    with pytest.raises((ValueError, TypeError), match=rf"(^|\n)(the )?{named(argument)}"):
        function(**arguments | {argument: zero})


@pytest.mark.parametrize("dtype", [">i8", ">u4", "<u2"])
def test_targets_of_any_byte_order(dtype):
    for name, argument in ARGUMENTS:
        function, arguments = CALLS[name]
        if argument in ("targets", "y", "labels") and name != "probabilities":
            expected, got = (
                function(**arguments),
                function(**arguments | {argument: Y.astype(dtype)}),
            )
            assert_equal(got[:-1], expected[:-1]) if "stream" in name else assert_equal(
                got, expected
            )


@pytest.mark.parametrize(
    "targets", [[2**70, 0, 1], [2**63, 0, 1], [-(2**63), 0, 1], [2**63, -1, 0]]
)
def test_huge_targets(targets):
    for function in (nc.cross_entropy, nc.row_stats, nc.stream, nc.cross_entropy_grad_and_hess):
        with pytest.raises((ValueError, TypeError), match=r"^targets"):
            function(Z, targets)
    with pytest.raises(TypeError, match=r"^targets have dtype object"):
        nc.cross_entropy(Z[0], 2**70)
