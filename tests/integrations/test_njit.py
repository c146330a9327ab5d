"""The functions in code that Numba compiles: bits and errors are those of calls from Python."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numba import cfunc, njit, prange, types
from numba.core.errors import TypingError

import numba_ce as nc
import numba_ce.integrations.numba  # where no entry point names it to Numba
from numba_ce.cpu.choose import choose_schedule
from numba_ce.cpu.compile.jit import whole_kernel
from numba_ce.cpu.plan import Kernel, address_of
from numba_ce.cpu.simd.exp import reduction
from numba_ce.integrations.numba import entry
from numba_ce.integrations.numba.reduction import put_reduction
from numba_ce.integrations.numba.sums import STACK_BYTES, sum_of

N_CLASSES = (1, 2, 3, 10, 100, 1000, 3000)
DTYPES = (np.float32, np.float64)


@njit
def plain(z, y):
    return nc.cross_entropy_and_grad(z, y)


@njit
def loss_only(z, y):
    return nc.cross_entropy(z, y), nc.cross_entropy(z, y, reduction="sum")


@njit
def by_row(z, y, out):
    return nc.cross_entropy(z, y, reduction="none"), nc.cross_entropy_and_grad(
        z, y, out=out, reduction="none"
    )


@njit
def with_options(z, y, w, s, e, ignored, z_loss, temperature, checked):
    return nc.cross_entropy_and_grad(
        z,
        y,
        class_weight=w,
        sample_weight=s,
        label_smoothing=e,
        ignore_index=ignored,
        z_loss=z_loss,
        temperature=temperature,
        check_targets=checked,
    )


@njit
def summed_and_capped(z, y, w, softcap):
    return nc.cross_entropy_and_grad(
        z, y, class_weight=w, softcap=softcap, ignore_index=None, reduction="sum"
    )


@njit
def normalized(z):
    return nc.softmax(z), nc.log_softmax(z), nc.logsumexp(z)


@njit
def normalized_to(z, out):
    return nc.softmax(z, out=out)


def same(got, expected):
    """Bit by bit, NaN for NaN; Numba returns a float32 as a float."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    if got.ndim:
        assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got.astype(expected.dtype), expected, strict=True)
    signs = np.signbit(got) == np.signbit(expected)
    assert (signs | np.isnan(expected)).all()


def all_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        same(one, other)


def problem(n_classes, dtype, n_rows=37, seed=0):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((n_rows, n_classes)) * 5).astype(dtype)
    return logits, rng.integers(0, n_classes, n_rows)


def layouts(logits):
    """The same numbers, otherwise in memory."""
    n_rows, n_classes = logits.shape
    wide = np.zeros((n_rows, 2 * n_classes + 1), logits.dtype)
    wide[:, 1::2] = logits
    apart = np.zeros((2 * n_rows, n_classes + 3), logits.dtype)
    apart[::2, 3:] = logits
    yield "fortran", np.asfortranarray(logits)
    yield "every second class", wide[:, 1::2]
    yield "rows apart", apart[::2, 3:]
    yield "backwards", np.ascontiguousarray(logits[::-1, ::-1])[::-1, ::-1]
    readonly = logits.copy()
    readonly.flags.writeable = False
    yield "read-only", readonly


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", N_CLASSES)
def test_bits(n_classes, dtype):
    logits, targets = problem(n_classes, dtype)
    all_same(plain(logits, targets), nc.cross_entropy_and_grad(logits, targets))
    mean, total = loss_only(logits, targets)
    same(mean, nc.cross_entropy(logits, targets))
    same(total, nc.cross_entropy(logits, targets, reduction="sum"))
    out, expected = np.empty_like(logits), np.empty_like(logits)
    losses, (again, grad) = by_row(logits, targets, out)
    assert grad.ctypes.data == out.ctypes.data
    want = nc.cross_entropy_and_grad(logits, targets, out=expected, reduction="none")
    all_same((losses, again, out), (want[0], want[0], expected))
    all_same(normalized(logits), (nc.softmax(logits), nc.log_softmax(logits), nc.logsumexp(logits)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", N_CLASSES)
def test_bits_with_options(n_classes, dtype):
    logits, targets = problem(n_classes, dtype, 50)
    rng = np.random.default_rng(1)
    w, s = rng.random(n_classes) + 0.5, rng.random(50).astype(np.float32)
    targets[::7], s[3::5] = -3, 0
    for e, z_loss, temperature in ((0.1, 0.01, 0.7), (0.0, 0.0, 1.0), (1.0, 0.5, 3.0)):
        got = with_options(logits, targets, w, s, e, -3, z_loss, temperature, True)
        all_same(
            got,
            nc.cross_entropy_and_grad(
                logits,
                targets,
                class_weight=w,
                sample_weight=s,
                label_smoothing=e,
                ignore_index=-3,
                z_loss=z_loss,
                temperature=temperature,
            ),
        )
    targets[::7] = 0
    w = w.astype(np.float32)[::-1]
    all_same(
        summed_and_capped(logits, targets, w, 4.0),
        nc.cross_entropy_and_grad(
            logits, targets, class_weight=w, softcap=4.0, ignore_index=None, reduction="sum"
        ),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", [2, 10, 100, 1000])
def test_any_layout(n_classes, dtype):
    logits, targets = problem(n_classes, dtype, 200)
    for name, view in layouts(logits):
        loss, grad = plain(view, targets)
        want = nc.cross_entropy_and_grad(view, targets)
        all_same((loss, grad), want)
        all_same(normalized(view), (nc.softmax(view), nc.log_softmax(view), nc.logsumexp(view)))
        out = np.full_like(view, np.nan) if name == "read-only" else view.copy("K")
        by_row(view, targets, out)
        same(out, nc.cross_entropy_and_grad(view, targets, reduction="sum")[1])


@pytest.mark.parametrize(
    ("n_rows", "n_classes", "dtype"),
    [(200, 40000, np.float32), (9000, 10, np.float64), (3000, 300, np.float32)],
)
def test_many_blocks(n_rows, n_classes, dtype):
    """Sums of blocks are added in NumPy's order; large gradients go around the caches."""
    logits, targets = problem(n_classes, dtype, n_rows)
    all_same(plain(logits, targets), nc.cross_entropy_and_grad(logits, targets))
    if n_classes < 1000:
        view = np.asfortranarray(logits)
        all_same(plain(view, targets), nc.cross_entropy_and_grad(view, targets))


def test_sums_as_numpy():
    @whole_kernel(types.float64(types.intp, types.intp, types.intp))
    def add(address, n, stack):
        return sum_of(address, n, stack)

    rng, stack = np.random.default_rng(0), np.empty(STACK_BYTES, np.uint8)
    for n in (*range(1, 300), *rng.integers(300, 100_000, 60)):
        values = rng.standard_normal(n) * 10.0 ** rng.integers(-6, 6, n)
        assert add.ctypes(address_of(values), n, address_of(stack)) == values.sum(), n


@pytest.mark.parametrize("dtype", DTYPES)
def test_constants_of_temperatures(dtype):
    @whole_kernel(types.void(types.intp, types.float64, types.boolean))
    def constants(address, temperature, double):
        put_reduction(address, temperature, double)

    rng, out = np.random.default_rng(0), np.empty(4)
    real = types.float64 if dtype is np.float64 else types.float32
    exponents = rng.uniform(-120, 120, 3000)
    for T in (*2.0**exponents, *rng.uniform(0.1, 10, 3000), 0.5, 2.0, 1.0, 1 / np.log(2), 1e-30):
        constants.ctypes(address_of(out), T, dtype is np.float64)
        np.testing.assert_array_equal(out, reduction(real, float(T)), err_msg=str(T))


def test_same_kernels():
    """A code stands for the kernel that a call from Python takes."""

    @whole_kernel(types.intp(types.intp))
    def form(n_classes):
        return entry.form_of(n_classes)

    for n_classes in range(1, 400):
        for flags in range(8 * 2):
            kernel = entry.kernel_of((16 + flags) * entry.FORMS + form.ctypes(n_classes))
            plain = Kernel(
                "loss",
                "along",
                "float64" if flags & 8 else "float32",
                grad_kind="float64" if flags & 8 else "float32",
                smoothing=bool(flags & 4),
                tempered=bool(flags & 2),
                softcap=bool(flags & 1),
            )
            assert kernel == choose_schedule(plain, n_classes)


INTEGERS = [np.dtype(code) for code in "bBhHiIqQ"]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_any_integer(dtype):
    logits, targets = problem(10, np.float32)
    targets = targets.astype(dtype)
    all_same(plain(logits, targets), nc.cross_entropy_and_grad(logits, targets))
    all_same(plain(logits, targets[::-1]), nc.cross_entropy_and_grad(logits, targets[::-1]))
    # What -3 becomes in an unsigned type is not -3
    ignored = np.full(37, -3).astype(dtype)
    if dtype.kind == "i":
        assert with_options(logits, ignored, None, None, 0.0, -3, 0.0, 1.0, True)[1].max() == 0
    else:
        with pytest.raises(ValueError, match=f"= {int(ignored[0])} is not a class index"):
            with_options(logits, ignored, None, None, 0.0, -3, 0.0, 1.0, True)


def test_integer_weights():
    logits, targets = problem(10, np.float32)
    w, s = np.arange(10), np.arange(37, dtype=np.int8)
    got = with_options(logits, targets, w, s, 0.0, -100, 0.0, 1.0, True)
    want = nc.cross_entropy_and_grad(
        logits, targets, class_weight=w.astype(float), sample_weight=s.astype(float)
    )
    all_same(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", [2, 10, 1000])
def test_a_row(n_classes, dtype):
    logits, targets = problem(n_classes, dtype, 2)
    z, y = logits[0], targets[0]
    expected = nc.cross_entropy_and_grad(z, int(y))
    all_same(plain(z, y), expected)
    all_same(plain(z, np.uint8(1)), nc.cross_entropy_and_grad(z, 1))
    all_same(normalized(z), (nc.softmax(z), nc.log_softmax(z), nc.logsumexp(z)))

    @njit
    def row(z, y, out):
        return nc.row_loss_and_grad(z, y, out)

    for function in (row, nc.row_loss_and_grad):
        out = np.empty_like(z)
        same(function(z, y, out), expected[0])
        same(out, expected[1])
        wide = np.zeros((n_classes, 3), dtype)
        wide[:, 1] = z
        same(function(wide[:, 1], y, wide[:, 1]), expected[0])
        same(wide[:, 1], expected[1])
        assert not wide[:, ::2].any()


def test_in_place():
    logits, targets = problem(10, np.float64)
    expected = nc.cross_entropy_and_grad(logits, targets, reduction="sum")[1]
    same(by_row(logits, targets, logits)[1][1], expected)


@pytest.mark.parametrize("shape", [(0, 4), (0, 0)])
def test_nothing(shape):
    logits, targets = np.empty(shape), np.empty(shape[0], np.int64)
    loss, grad = plain(logits, targets)
    assert np.isnan(loss) and grad.shape == shape
    assert loss_only(logits, targets)[1] == 0
    assert by_row(logits, targets, logits.copy())[0].shape == (0,)
    assert normalized(logits)[2].shape == (0,)


def test_no_classes():
    logits, targets = np.empty((3, 0), np.float32), np.zeros(3, np.int64)
    with pytest.raises(ValueError, match="logits of 3 rows have no classes"):
        plain(logits, targets)
    softmax, _, lse = normalized(logits)
    assert softmax.shape == (3, 0) and (lse == -np.inf).all() and lse.dtype == np.float32


def test_edges():
    logits, targets = problem(10, np.float64)
    logits[3, 2], logits[4, 1], logits[5], logits[6, 3] = np.nan, np.inf, -np.inf, -np.inf
    all_same(plain(logits, targets), nc.cross_entropy_and_grad(logits, targets))
    all_same(normalized(logits), (nc.softmax(logits), nc.log_softmax(logits), nc.logsumexp(logits)))
    targets[2] = 77
    got = with_options(logits, targets, None, None, 0.0, -100, 0.0, 1.0, False)
    all_same(got, nc.cross_entropy_and_grad(logits, targets, check_targets=False))
    ignored = np.full(37, -100)
    loss, grad = plain(logits, ignored)
    assert np.isnan(loss) and not grad.any()


# ---------------------------------------------------------------- errors


def spoiled():
    """A function, arguments for it in compiled code, and options for Python to complain of."""
    z, y = problem(10, np.float32)
    options = {
        "w": None,
        "s": None,
        "e": 0.0,
        "ignored": -100,
        "z_loss": 0.0,
        "temperature": 1.0,
        "checked": True,
    }
    names = {
        "w": "class_weight",
        "s": "sample_weight",
        "e": "label_smoothing",
        "ignored": "ignore_index",
        "z_loss": "z_loss",
        "temperature": "temperature",
        "checked": "check_targets",
    }
    bad = y.copy()
    bad[[5, 9]] = 10, -1
    for targets, changed in (
        (bad, {}),
        (bad, {"ignored": 10}),
        (bad.astype(np.int8), {}),
        (bad.astype(np.uint64), {}),
        (y, {"e": 1.5}),
        (y, {"e": np.nan}),
        (y, {"z_loss": -1.0}),
        (y, {"z_loss": np.inf}),
        (y, {"temperature": 0.0}),
        (y, {"temperature": 1e-40}),
        (y, {"w": np.ones(9)}),
        (y, {"s": np.ones(36)}),
    ):
        arguments = options | changed
        yield z, targets, list(arguments.values()), {names[k]: v for k, v in arguments.items()}


@pytest.mark.parametrize("index", range(12))
def test_errors_are_those_of_python(index):
    logits, targets, arguments, options = list(spoiled())[index]
    with pytest.raises(ValueError) as expected:
        nc.cross_entropy_and_grad(logits, targets, **options)
    with pytest.raises(ValueError) as got:
        with_options(logits, targets, *arguments)
    assert type(got.value) is ValueError
    assert str(got.value).replace("in compiled code", "on the CPU") == str(expected.value)


def test_other_errors():
    logits, targets = problem(10, np.float32)
    with pytest.raises(ValueError, match=r"targets have shape \(36,\): expected \(37,\)"):
        plain(logits, targets[1:])
    with pytest.raises(ValueError, match=r"targets = 10 is not a class index"):
        plain(logits[0], 10)
    with pytest.raises(ValueError, match=r"softcap = -1.0: expected a finite softcap > 0"):
        summed_and_capped(logits, targets, None, -1.0)
    with pytest.raises(ValueError, match=r"softcap = 1e-60: expected"):
        summed_and_capped(logits, targets, None, 1e-60)


def test_outputs_that_do_not_fit():
    logits, targets = problem(10, np.float32)
    before = logits.copy()
    repeated = np.lib.stride_tricks.as_strided(np.zeros(10, np.float32), (37, 10), (0, 4))
    shifted = np.zeros(371, np.float32)
    shifted[:370] = logits.ravel()
    other = np.zeros((37, 10), np.float32)
    for z, out, text in (
        (logits, other[:, :9], r"out has shape \(37, 9\): expected \(37, 10\)"),
        (logits, repeated, r"out has strides \(0, 4\): its elements overlap"),
        (shifted[:370].reshape(37, 10), shifted[1:].reshape(37, 10), "out overlaps logits"),
        (logits, logits[::-1], "out overlaps logits"),
    ):
        with pytest.raises(ValueError, match=text):
            by_row.py_func(z, targets, out)[1]
        with pytest.raises(ValueError, match=text):
            by_row(z, targets, out)
    np.testing.assert_array_equal(logits, before)
    assert not other.any()
    mixed = np.zeros((37, 10), np.float32)
    weights = mixed[:, 3]
    weights += 1

    @njit
    def weighted(z, y, s, out):
        return nc.cross_entropy_and_grad(z, y, sample_weight=s, out=out)

    with pytest.raises(ValueError, match="out overlaps sample_weight"):
        weighted(logits, targets, weights, mixed)


def test_columns_of_one_array():
    """Logits and gradient may lie side by side."""
    logits, targets = problem(10, np.float32)
    both = np.zeros((37, 25), np.float32)
    both[:, 3:13] = logits
    by_row(both[:, 3:13], targets, both[:, 13:23])
    same(both[:, 13:23], nc.cross_entropy_and_grad(logits, targets, reduction="sum")[1])
    same(both[:, 3:13], logits)
    assert not both[:, :3].any() and not both[:, 23:].any()


REFUSED = {
    "logits": lambda z, y: nc.softmax(y),
    "axis = 0": lambda z, y: nc.softmax(z, axis=0),
    "targets is array(float64, 2d, C): probabilities": lambda z, y: nc.cross_entropy(z, z),
    "reduction = 'average'": lambda z, y: nc.cross_entropy(z, y, reduction="average"),
    "keepdims = True": lambda z, y: nc.logsumexp(z, keepdims=True),
    "label_smoothing is": lambda z, y: nc.cross_entropy(z, y, label_smoothing=True),
    "temperature is": lambda z, y: nc.cross_entropy(z, y, temperature=z),
    "softcap is": lambda z, y: nc.cross_entropy(z, y, softcap=z),
    "ignore_index is": lambda z, y: nc.cross_entropy(z, y, ignore_index=1.0),
    "check_targets is": lambda z, y: nc.cross_entropy(z, y, check_targets=1),
    "class_weight is": lambda z, y: nc.cross_entropy(z, y, class_weight=z),
    "sample_weight is": lambda z, y: nc.cross_entropy(z, y, sample_weight=2.0),
    "out is": lambda z, y: nc.cross_entropy_and_grad(z, y, out=z[0]),
    "out_row is": lambda z, y: nc.row_loss_and_grad(z[0], y[0], z),
    "target is": lambda z, y: nc.row_loss_and_grad(z[0], 1.0, z[0]),
    "unexpected keyword argument 'smoothing'": lambda z, y: nc.cross_entropy(z, y, smoothing=0.1),
}


@pytest.mark.parametrize("text", REFUSED)
def test_typing_errors(text):
    with pytest.raises(TypingError) as error:
        njit(REFUSED[text])(np.zeros((2, 3)), np.zeros(2, np.int64))
    assert text in str(error.value)


def test_more_typing_errors():
    z, y = np.zeros((2, 3)), np.zeros(2, np.int64)
    with pytest.raises(TypingError, match="reduction is unicode_type"):
        njit(lambda z, y, r: nc.cross_entropy(z, y, reduction=r))(z, y, "sum")
    readonly = z.copy()
    readonly.flags.writeable = False
    with pytest.raises(TypingError, match="read-only: expected a writeable array"):
        by_row(z, y, readonly)
    with pytest.raises(TypingError, match="one or two axes"):
        normalized(np.zeros((2, 3, 4)))


# ---------------------------------------------------------------- where it runs


def test_prange():
    """Kernels that no thread has asked for yet are loaded by those that are the first to."""

    @njit(parallel=True)
    def many(z, y, grads):
        losses = np.empty(len(z))
        for i in prange(len(z)):
            losses[i] = nc.cross_entropy_and_grad(z[i], y[i], out=grads[i], temperature=1.5)[0]
        return losses

    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((500, 20, 7)), rng.integers(0, 7, (500, 20))
    grads = np.empty_like(logits)
    losses = many(logits, targets, grads)
    for i in range(500):
        want = nc.cross_entropy_and_grad(logits[i], targets[i], temperature=1.5)
        all_same((losses[i], grads[i]), want)


def test_threads_without_the_gil():
    @njit(nogil=True)
    def repeat(z, y, out, n):
        total = 0.0
        for _ in range(n):
            total += nc.cross_entropy_and_grad(z, y, out=out, label_smoothing=0.25)[0]
        return total

    logits, targets = problem(13, np.float32, 8)
    results = {}

    def work(i):
        out = np.empty_like(logits)
        results[i] = repeat(logits, targets, out, 2000), out

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = nc.cross_entropy_and_grad(logits, targets, label_smoothing=0.25)
    for total, grad in results.values():
        same(grad, want[1])
        assert total == results[0][0]
        np.testing.assert_allclose(total, 2000 * float(want[0]), rtol=1e-10)


def test_cfunc():
    from numba import carray

    @cfunc(types.float64(types.CPointer(types.float64), types.intp, types.intp))
    def row_loss(pointer, n_classes, target):
        return nc.cross_entropy(carray(pointer, n_classes), target)

    logits = np.array([0.5, -1.0, 2.0])
    pointer = logits.ctypes.data_as(row_loss.ctypes.argtypes[0])
    assert row_loss.ctypes(pointer, 3, 1) == nc.cross_entropy(logits, 1)


def test_catching_an_error():
    @njit
    def attempt(z, y):
        try:
            return nc.cross_entropy(z, y)
        except Exception:
            return -1.0

    assert attempt(np.zeros((2, 3)), np.array([0, 3])) == -1.0


def test_a_kernel_that_cannot_be_had(monkeypatch):
    """Whatever keeps Python from it is the cause of the error."""

    def fail(kernel):
        raise OSError("no compiler")

    monkeypatch.setattr(entry, "compiled", fail)
    monkeypatch.setattr(entry, "failures", [])

    @njit
    def rare(z, y):
        return nc.cross_entropy_and_grad(z, y, softcap=3.0, label_smoothing=0.5, temperature=0.3)

    with pytest.raises(RuntimeError, match="could not be compiled or loaded") as error:
        rare(np.zeros((2, 21)), np.zeros(2, np.int64))
    assert str(error.value.__cause__) == "no compiler"
    monkeypatch.undo()
    rare(np.zeros((2, 21)), np.zeros(2, np.int64))
