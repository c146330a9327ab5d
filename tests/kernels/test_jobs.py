"""What is remembered from call to call says nothing about another call."""

import numpy as np
from bits import bits_of

import numba_ce as nc
from numba_ce import cpu as cpu_functions

OPTIONS = [
    {},
    {"label_smoothing": -0.0, "z_loss": -0.0},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1},
    {"ignore_index": None},
    {"ignore_index": 2},
    {"ignore_index": 156},  # -100 as uint8
    {"z_loss": 0.1},
    {"temperature": 1},
    {"temperature": 2.0},
    {"softcap": 1.0},
    {"softcap": 2},
    {"check_targets": False},
]


def layouts(rng):
    """Logits of few kernels: shapes, strides and byte orders that differ in a little each."""
    z = rng.standard_normal((33, 7), dtype=np.float32)
    yield from (z, z.astype(">f4"), np.asfortranarray(z), z[:, ::-1], z[::-1], z[::2], z[:1])
    yield from (np.broadcast_to(z[:1], z.shape), z.reshape(3, 11, 7), z.reshape(33, 1, 7), z[0])


def targets_of(logits, rng):
    rows = logits.shape[:-1]
    y = np.asarray(rng.integers(0, 7, rows))
    some_ignored = np.where(np.arange(y.size).reshape(rows) % 3 == 0, -100, y)
    yield from (y.astype("i1"), y.astype("u1"), y.astype(">i4"), some_ignored.astype("i8"))
    yield from (rng.random(logits.shape).astype(dtype) for dtype in ("f4", ">f4"))


def calls(rng):
    """Functions without arguments, which return the bytes of the results or the error."""
    for logits in layouts(rng):
        for targets in targets_of(logits, rng):
            for options in OPTIONS:
                kind = rng.choice(["none", "f4", ">f4", "f8"])
                weight = None if kind == "none" else rng.random(logits.shape[:-1]).astype(kind)
                more = {"sample_weight": weight, "reduction": rng.choice(["mean", "sum", "none"])}
                in_place = bool(rng.integers(2))
                yield lambda o=options | more, i=in_place, z=logits, y=targets: run(z, y, o, i)


def run(logits, targets, options, in_place):
    logits = logits.copy(order="K") if in_place else logits
    try:
        out = logits if in_place else None
        loss, grad = nc.cross_entropy_and_grad(logits, targets, out=out, **options)
    except (TypeError, ValueError) as error:
        return repr(error)
    return bits_of((loss, grad)), grad.dtype.str


def test_the_order_of_calls_does_not_matter(cpu, rng):
    todo = list(calls(rng))
    todo = [todo[i] for i in rng.permutation(len(todo))]
    cpu_functions._job.cache_clear()
    first = [call() for call in todo]
    cpu_functions._job.cache_clear()
    last = [call() for call in reversed(todo)]
    assert first == last[::-1]
    assert any(isinstance(result, str) for result in first)
