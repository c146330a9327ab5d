"""What every rank runs, started by test_mpi.py. Each makes the whole problem for itself."""

from __future__ import annotations

import sys

import numpy as np
from bits import bits_of
from cases import FEW_OPTION_SETS, make_logits, make_options, make_targets
from mpi4py import MPI

import numba_ce as nc
from numba_ce.integrations.mpi import cross_entropy_and_grad, row_sharded_cross_entropy_and_grad

comm = MPI.COMM_WORLD
rank, size = comm.Get_rank(), comm.Get_size()


class CountingComm:
    """Counts the collectives."""

    def __init__(self, comm):
        self._comm, self.calls = comm, []

    def __getattr__(self, name):
        if name.lower() in ("allreduce", "gather", "bcast", "allgather"):
            self.calls.append(name)
        return getattr(self._comm, name)


def cuts_of(n):
    """Where the ranks' shares begin and end: about equal; the first with nothing; the last too."""
    yield [n * i // size for i in range(size + 1)]
    if size > 1:
        yield [0, *([0] * (size - 1)), n]
        yield [0, *([n] * size)]


def ulps(a, b):
    return np.max(np.abs(a - b) / np.spacing(np.maximum(np.abs(b), np.finfo(b.dtype).tiny)))


def check_classes(kind, dtype, names, edges):
    rng = np.random.default_rng(5)
    n, c = 17, 23
    logits, targets = make_logits(rng, (n, c), dtype, 4.0), make_targets(rng, (n,), c, kind)
    options = make_options(names, rng, (n,), c, kind)
    if edges:
        logits[0, :12] = -np.inf  # some ranks have nothing else
        logits[1, 20] = 60
        logits[2, 5] = np.nan
        if kind == "index":
            targets[:3] = (20, 20, 1)
            options["ignore_index"] = int(targets[4])
    for cuts in cuts_of(c):
        here = slice(cuts[rank], cuts[rank + 1])
        local = dict(options)
        if "class_weight" in local:
            local["class_weight"] = local["class_weight"][here]
        t = targets[:, here] if kind == "probabilities" else targets
        for reduction in ("mean", "sum", "none"):
            expected, whole = nc.cross_entropy_and_grad(
                logits, targets, reduction=reduction, **options
            )
            results = []
            for collectives in (1, 2, 1):
                counting = CountingComm(comm)
                loss, grad = cross_entropy_and_grad(
                    logits[:, here], t, here.start, counting, n_classes=c, reduction=reduction,
                    collectives=collectives, **local,
                )  # fmt: skip
                assert len(counting.calls) == collectives, counting.calls
                assert grad.shape == (n, here.stop - here.start) and grad.dtype == dtype
                assert loss.dtype == expected.dtype
                eps = np.finfo(dtype).eps
                np.testing.assert_allclose(loss, expected, rtol=8 * eps, atol=0)
                # Where terms of opposite sign meet: relative to the largest
                mixed = names or kind == "probabilities"
                atol = 4 * eps * np.nanmax(np.abs(whole)) if mixed else 0
                np.testing.assert_allclose(grad, whole[:, here], rtol=40 * eps, atol=atol)
                everywhere = comm.allgather(bits_of(loss))
                assert len(set(everywhere)) == 1  # the same bits on all ranks
                results.append(bits_of((loss, grad)))
            assert results[0] == results[2]  # and in every run
            if reduction == "none" and not names:
                finite = np.isfinite(expected)
                assert ulps(loss[finite], expected[finite]) <= 2
                if kind == "index":
                    own = np.flatnonzero((targets >= here.start) & (targets < here.stop) & finite)
                    g = grad[own, targets[own] - here.start], whole[own, targets[own]]
                    assert own.size == 0 or ulps(*g) <= 2


def check_rows(dtype):
    rng = np.random.default_rng(6)
    n, c = 29, 11
    logits, targets = make_logits(rng, (n, c), dtype), make_targets(rng, (n,), c)
    targets[3] = -100
    options = {"class_weight": rng.uniform(0.5, 2, c), "label_smoothing": 0.1}
    s = rng.uniform(0.5, 2, n)
    for cuts in cuts_of(n):
        here = slice(cuts[rank], cuts[rank + 1])
        for reduction in ("mean", "sum", "none"):
            expected, whole = nc.cross_entropy_and_grad(
                logits, targets, sample_weight=s, reduction=reduction, **options
            )
            loss, grad = row_sharded_cross_entropy_and_grad(
                logits[here], targets[here], comm, sample_weight=s[here], reduction=reduction,
                **options,
            )  # fmt: skip
            if reduction == "none":
                assert (loss == expected[here]).all()
            else:
                np.testing.assert_allclose(loss, expected, rtol=4 * np.finfo(dtype).eps)
                assert len(set(comm.allgather(bits_of(loss)))) == 1
            if reduction == "mean":
                eps = np.finfo(dtype).eps  # of smoothing: terms of opposite sign
                atol = 4 * eps * np.abs(whole).max()
                np.testing.assert_allclose(grad, whole[here], rtol=4 * eps, atol=atol)
            else:
                assert (grad == whole[here]).all()  # the same bits


def check_the_mean_of_16_bits():
    """Rounded twice in all, never with a rounded factor: 1 ULP and not 1.5."""
    import ml_dtypes

    z = np.random.default_rng(7).standard_normal((15, 40)).astype(ml_dtypes.bfloat16)
    y = np.arange(15)
    here = slice(15 * rank // size, 15 * (rank + 1) // size)
    _, grad = row_sharded_cross_entropy_and_grad(z[here], y[here], comm)
    _, exact = nc.cross_entropy_and_grad(np.float64(z), y)
    exact = exact[here]
    ulp = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
    assert np.max(np.abs(np.float64(grad) - exact) / ulp, initial=0.0) <= 1.05


def raises(error, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except error as caught:
        return str(caught)
    raise AssertionError(f"no {error}")


def check_an_error_of_one_rank(z):
    """It raises there what it always raises; the others learn of it and do not wait."""
    y = np.arange(4)
    readonly = z.copy()
    readonly.flags.writeable = False
    bad_calls = (
        ({"local_logits": z.astype(int)}, TypeError),
        ({"local_logits": z[:3]}, ValueError),  # the targets have four rows
        ({"local_logits": [[1.0], [1.0, 2.0]]}, ValueError),
        ({"class_weight": np.ones(7)}, ValueError),
        ({"class_offset": 100}, ValueError),
        ({"temperature": -1.0}, ValueError),
        ({"axis": 5}, np.exceptions.AxisError),
        ({"reduction": "avg"}, ValueError),
        ({"out": np.zeros((4, 5))}, ValueError),
        ({"out": readonly}, ValueError),
    )
    for last in {0, size - 1}:
        for collectives in (1, 2):
            for n_classes in (6 * size, None):
                good = {
                    "local_logits": z, "targets": y, "class_offset": 6 * rank, "comm": comm,
                    "n_classes": n_classes, "collectives": collectives,
                }  # fmt: skip
                for bad, error in bad_calls:
                    call = good | bad if rank == last else good
                    kind = error if rank == last else RuntimeError
                    message = raises(kind, cross_entropy_and_grad, **call)
                    assert rank == last or f"rank {last}" in message
                cross_entropy_and_grad(**good)  # and nothing is left in the way of the next call
    if size > 1:  # one row less on one rank, which is right by itself
        n = 3 if rank == 0 else 4
        message = raises(ValueError, cross_entropy_and_grad, z[:n], y[:n], 6 * rank, comm)
        assert "[3, 4" in message
        bad = z.astype(int) if rank == 0 else z
        kind = TypeError if rank == 0 else RuntimeError
        raises(kind, cross_entropy_and_grad, bad, y, 6 * rank, comm)


def check_errors():
    z = np.zeros((4, 6))
    bad = np.array([0, 1, 6 * size, 0])
    message = raises(ValueError, cross_entropy_and_grad, z, bad, 6 * rank, comm)
    assert "targets[2]" in message
    raises(ValueError, cross_entropy_and_grad, z, bad, 0, comm, collectives=3)
    # On one rank only: the others learn of it
    targets = np.full(4, 9 if rank == size - 1 else 0)
    kind = ValueError if rank == size - 1 else RuntimeError
    message = raises(kind, row_sharded_cross_entropy_and_grad, z, targets, comm)
    assert ("targets[0] = 9" if rank == size - 1 else f"rank {size - 1}") in message
    for call in (
        {"reduction": "avg"},
        {"local_logits": [[1.0], [1.0, 2.0]]},
        {"axis": 5},
        {"unknown": 1},
    ):
        good = {"local_logits": z, "local_targets": np.zeros(4, int), "comm": comm}
        bad = rank == size - 1
        kind = (ValueError, TypeError) if bad else RuntimeError  # an AxisError is a ValueError
        raises(kind, row_sharded_cross_entropy_and_grad, **(good | call if bad else good))
    check_an_error_of_one_rank(z)
    # All ignored, or nothing but bad targets that nobody was to check
    loss, grad = cross_entropy_and_grad(z, np.full(4, -100), 6 * rank, comm)
    assert np.isnan(loss) and not grad.any()
    for function, place in (
        (cross_entropy_and_grad, (6 * rank, comm)),
        (row_sharded_cross_entropy_and_grad, (comm,)),
    ):
        loss, grad = function(z, np.full(4, 10**6), *place, check_targets=False)
        assert np.isnan(loss) and not grad.any()


for kind in ("index", "probabilities"):
    for dtype in (np.float32, np.float64):
        for edges in (False, True):
            check_classes(kind, dtype, (), edges)
    for names in (("class_weight", "sample_weight"), FEW_OPTION_SETS[-1]):
        check_classes(kind, np.float64, names, False)
for dtype in (np.float32, np.float64):
    check_rows(dtype)
check_the_mean_of_16_bits()
check_errors()
print(f"rank {rank} of {size}: right", flush=True)
sys.stdout.flush()
