"""`numpy.seterr` of the caller: no result, warning or exception depends on it, and it stays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import BACKENDS, BFLOAT16

import numba_ce as nc
from numba_ce.evaluate import evaluate
from numba_ce.integrations import boosting

N, C = 5, 6
TINY, HUGE = 1e-310, 1e300
Y = np.array([0, 1, 2, 5, 3])


def rows(dtype):
    """Logits that overflow, underflow and are no numbers, in sums, differences and exponentials."""
    z = np.linspace(-3, 3, N * C).reshape(N, C)
    z[0] = HUGE, -HUGE, 0, TINY, -TINY, 5e-324
    z[1] = -np.inf
    z[2, 1:3] = -np.inf, np.inf
    z[3] = np.nan, 1, 2, 3, 4, 5
    with np.errstate(all="ignore"):
        return z.astype(dtype)


FINE = {
    name: np.linspace(-3, 3, N * C).reshape(N, C).astype(dtype)
    for name, dtype in (("16", np.float16), ("32", np.float32), ("64", np.float64))
}
LOGITS = FINE | {f"{np.dtype(d).name}": rows(d) for d in (np.float16, BFLOAT16, np.float32, float)}
SIGNALING = np.frombuffer(np.uint32([0x7FA00000]).tobytes() * C, np.float32)
CLASS_WEIGHTS = (None, [1e-50] * C, [HUGE, -HUGE, 0, TINY, 1e308, 1], [5e-324] * C, SIGNALING)
SAMPLE_WEIGHTS = (None, np.array([TINY, HUGE, 0, -HUGE, 5e-324]), np.full(N, 1e-320), np.zeros(N))
P = np.abs(np.where(np.isfinite(LOGITS["float64"]), LOGITS["float64"], 0.0))
H, V = LOGITS["float64"], np.linspace(-1e200, 1e200, 3 * C).reshape(3, C)
RECORD = nc.row_record(LOGITS["float64"], Y, class_offset=0, n_classes=C, z_loss=HUGE)
RECORD[0, 3:7] = HUGE, 1e308, 1e308, 1.7e308


def losses(function, **more):
    def call():
        for z, w, s in itertools.product(LOGITS.values(), CLASS_WEIGHTS, SAMPLE_WEIGHTS):
            options = {"class_weight": w, "sample_weight": s, **more}
            yield function(z, Y, **options)
        for w, s in itertools.product(CLASS_WEIGHTS, SAMPLE_WEIGHTS):
            options = {"class_weight": w, "sample_weight": s, "label_smoothing": 0.5, **more}
            yield function(LOGITS["float64"], Y, z_loss=1e308, softcap=1e-200, **options)
            yield function(LOGITS["float32"], P, temperature=1e-30, **options)

    return call


def normalized(function):
    return lambda: (function(z) for z in LOGITS.values())


def record_functions():
    for z, w, s in itertools.product(LOGITS.values(), CLASS_WEIGHTS, SAMPLE_WEIGHTS):
        options = {"class_offset": 0, "class_weight": w, "sample_weight": s, "z_loss": 1e308}
        record = nc.row_record(z, Y, n_classes=C, **options)
        yield nc.loss_from_record(nc.merge_records(record, RECORD))
        yield nc.grad_from_record(z, Y, record, **options)


def linear(function):
    def call():
        for dtype in (np.float32, np.float64):
            with np.errstate(all="ignore"):
                hidden, weight = H.astype(dtype), V.astype(dtype)
            for w, s in itertools.product(CLASS_WEIGHTS, SAMPLE_WEIGHTS):
                options = {"class_weight": None if w is None else w[:3], "sample_weight": s}
                yield function(hidden, weight, Y % 3, bias=weight[:, 0], **options)

    return call


def regression():
    for X, l2, s in itertools.product(LOGITS.values(), (0.0, 1e308), SAMPLE_WEIGHTS):
        if X.dtype.itemsize > 2:
            objective = nc.multinomial_objective(X, Y, C, l2=l2, sample_weight=s)
            for x in (1e-60, 1e-200, 1e200):
                yield objective(objective.x0 + x)[0]


def streams():
    for z, w, s in itertools.product(LOGITS.values(), CLASS_WEIGHTS, SAMPLE_WEIGHTS[:2]):
        grad, options = np.empty_like(z), {"class_weight": w, "sample_weight": s}
        yield nc.stream(z, Y, grad_out=grad, **options)[0], grad
        yield nc.stream(iter([z, z]), iter([Y, Y]), class_weight=w)[0]
    for reduction in ("mean", "sum"):
        yield evaluate(LOGITS["float64"], Y, reduction=reduction, temperature=1e-200).loss


def boosted():
    for library in ("xgboost", "lightgbm"):
        for z, s in itertools.product(LOGITS.values(), SAMPLE_WEIGHTS):
            yield boosting.softmax_objective(library, C)(Y, z, s)
            yield boosting.softmax_metric(library, C)(Y, z, s)
        with pytest.raises(ValueError, match=r"label\[0\] = nan"):
            boosting.softmax_metric(library, C)(np.full(N, np.nan), LOGITS["64"])


CALLS = {
    "cross_entropy": losses(nc.cross_entropy),
    "cross_entropy_and_grad": losses(nc.cross_entropy_and_grad),
    "no reduction": losses(nc.cross_entropy_and_grad, reduction="none"),
    "cross_entropy_grad_and_hess": lambda: (
        nc.cross_entropy_grad_and_hess(z, y, sample_weight=s)
        for z, y, s in itertools.product(LOGITS.values(), (Y, P), SAMPLE_WEIGHTS)
    ),
    "row_stats": lambda: (nc.row_stats(z, Y) for z in LOGITS.values()),
    "logsumexp": normalized(nc.logsumexp),
    "softmax": normalized(nc.softmax),
    "log_softmax": normalized(nc.log_softmax),
    "records": record_functions,
    "linear_cross_entropy": linear(nc.linear_cross_entropy),
    "linear_cross_entropy_and_grad": linear(nc.linear_cross_entropy_and_grad),
    "multinomial_objective": regression,
    "stream": streams,
    "boosting": boosted,
}


def equal(a, b):
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return str(a) == str(b) if a is None or isinstance(a, str) else bits(a) == bits(b)


def bits(a):
    return np.asarray(a).tobytes()


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_no_function_sees_the_error_state(backend_name, name):
    """Nor changes it. That under "warn", as at first, something warns is an error in any test."""
    with nc.use_backend(backend_name):
        expected = list(CALLS[name]())
        for state in ("raise", "ignore"):
            with np.errstate(all=state):
                before = np.geterr()
                results = CALLS[name]()
                assert all(equal(a, b) for a, b in zip(results, expected, strict=True))
                assert np.geterr() == before


def test_the_state_is_that_of_before_after_an_exception():
    with np.errstate(all="raise"):
        before = np.geterr()
        for call in (
            lambda: nc.cross_entropy(FINE["32"], Y + C),
            lambda: nc.stream(FINE["32"], Y + C),
            lambda: nc.linear_cross_entropy(FINE["32"], FINE["32"], Y + C),
        ):
            with pytest.raises(ValueError, match="not a class index"):
                call()
            assert np.geterr() == before


def test_what_stream_calls_has_the_state_of_the_caller():
    """The caller's own blocks, sink and progress, in whichever thread they are run."""
    seen = []

    def blocks():
        for _ in range(4):
            seen.append(np.geterr())
            yield FINE["64"]

    class Sink:
        shape, dtype = FINE["64"].shape, FINE["64"].dtype

        def __setitem__(self, index, value):
            seen.append(np.geterr())

    def progress(done, rows):
        seen.append(np.geterr())

    with np.errstate(all="raise", under="call", call=print):
        nc.stream(blocks(), itertools.repeat(Y, 4), progress=progress)
        nc.stream(FINE["64"], Y, grad_out=Sink(), progress=progress)
        assert len(seen) == 10 and all(state == np.geterr() for state in seen)


def test_blocks_are_made_with_the_backend_of_the_caller():
    seen = []

    def blocks():
        seen.append(nc.get_backend())
        yield FINE["64"]

    with nc.use_backend("numpy"):
        nc.stream(blocks(), [Y])
    assert seen == ["numpy"]


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("chunks", [(2, 3), (2, C)])
def test_dask(scheduler, chunks):
    dask = pytest.importorskip("dask", reason="needs dask")
    da = pytest.importorskip("dask.array")
    from numba_ce.integrations import dask as of_dask

    for dtype in (np.float32, np.float64):
        z = da.from_array(rows(dtype), chunks=chunks)
        for w, s in itertools.product(CLASS_WEIGHTS, SAMPLE_WEIGHTS):
            options = {"class_weight": w, "sample_weight": s}
            calls = [of_dask.cross_entropy(z, Y, **options)]
            calls += of_dask.cross_entropy_and_grad(z, Y, **options)
            calls += [of_dask.logsumexp(z), *of_dask.row_stats(z, Y)]
            with np.errstate(all="raise"):
                dask.compute(*calls, scheduler=scheduler)


def test_mpi():
    try:
        from mpi4py import MPI

        from numba_ce.integrations import mpi
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI
        pytest.skip(str(error))
    with np.errstate(all="raise"):
        for z, w, s in itertools.product(LOGITS.values(), CLASS_WEIGHTS, SAMPLE_WEIGHTS):
            for reduction in ("mean", "sum", "none"):
                options = {"class_weight": w, "sample_weight": s, "reduction": reduction}
                mpi.cross_entropy_and_grad(z, Y, 0, MPI.COMM_SELF, **options)
                mpi.row_sharded_cross_entropy_and_grad(z, Y, MPI.COMM_SELF, **options)
