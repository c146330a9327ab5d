"""`python -m tests.guard_pages`: every kernel on arrays that end, or begin, at a forbidden page.

Run in a process of its own, which an access one element too far ends. The last line printed before
that names the call. Without --all some kernels stand for the others.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import numpy as np
from cases import DTYPES, TARGET_DTYPES, make_logits, make_targets
from guarded import Guarded, span

import numba_ce as nc
import numba_ce.records
import numba_ce.results

#: Every remainder of sixteen, and both sides of where the kernels change.
FEW_CLASSES = (*range(1, 18), 31, 33, 256, 257, 273, 1025)
ALL_CLASSES = (*range(1, 36), 48, 63, 64, 65, 255, *range(256, 274), 1023, 1024)
ALL_CLASSES += (1025, 2049)
ROWS = (1, 15, 16, 17, 33)
FLAGS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "temperature": {"temperature": 0.5},
    "softcap": {"softcap": 3.0},
    "all": {"label_smoothing": 0.1, "temperature": 0.5, "softcap": 3.0, "z_loss": 0.1},
}
LAYOUTS = ("rows", "columns", "gaps", "reversed")


def settings(everything):
    """One kernel after the other: dtype, that of probabilities, options, that of the output."""
    if not everything:
        f16, _, f32, f64 = DTYPES
        plain = [(dtype, None, "plain", dtype) for dtype in (f32, f16, f64)]
        return [*plain, (f32, f16, "all", f32)]
    return [
        (dtype, kind, flags, out)
        for dtype, kind, flags in itertools.product(DTYPES, (None, *DTYPES), FLAGS)
        for out in ({dtype, DTYPES[2]} if dtype.itemsize == 2 else {dtype})
    ]


class GuardedNumPy:
    """NumPy, but what the package allocates for its results has forbidden pages around it."""

    def __init__(self):
        self.at_end = True

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=np.float64):
        like = np.empty(shape, dtype)
        memory = Guarded(max(like.nbytes, 1))
        return memory.place(like.shape, like.strides, like.dtype, self.at_end)


class Memory:
    """Guarded memory for each argument, all at the end or all at the beginning."""

    def __init__(self):
        self._of = {}

    def put(self, name, values, at_end, layout):
        arena = self._of.setdefault(name, Guarded(1 << 21))
        size, shape = values.itemsize, values.shape
        strides = [size * int(np.prod(shape[i + 1 :])) for i in range(values.ndim)]
        if layout == "columns":
            strides = [size * int(np.prod(shape[:i])) for i in range(values.ndim)]
        elif layout == "gaps":
            strides = [2 * s + size * (i + 1 < values.ndim) for i, s in enumerate(strides)]
        elif layout == "reversed":
            strides = [-s for s in strides]
        view = arena.place(shape, strides, values.dtype, at_end)
        low, high = span(shape, strides, size)
        assert high - low <= arena.memory.size
        view[...] = values
        return view


def run(setting, say, classes, results):
    """All sizes of one setting."""
    dtype, kind, flags, out_dtype = setting
    memory, rng, options = Memory(), np.random.default_rng(0), FLAGS[flags]
    for n_classes, layout, at_end in itertools.product(classes, LAYOUTS, (True, False)):
        if layout != "rows" and n_classes not in (2, 17, 257):
            continue
        results.at_end = at_end
        for n in ROWS if n_classes < 300 else ROWS[:2]:
            say(f"{setting} {n} rows, {n_classes} classes, {layout}, at_end={at_end}")

            def put(name, values, at_end=at_end, layout=layout):
                return memory.put(name, values, at_end, layout)

            z = put("logits", make_logits(rng, (n, n_classes), dtype))
            y = make_targets(rng, (n,), n_classes)
            if kind is None:
                fits = [d for d in TARGET_DTYPES if np.iinfo(d).max >= n_classes]
                t = put("targets", y.astype(fits[n_classes % len(fits)]))
            else:
                t = put("targets", make_targets(rng, (n,), n_classes, "probabilities", kind))
            weights = {
                "sample_weight": put("s", np.ones(n, DTYPES[n % 4])),
                "class_weight": put("w", np.ones(n_classes)),
            }
            for more in ({}, weights):
                nc.cross_entropy(z, t, **options, **more)
                out = put("out", np.empty((n, n_classes), out_dtype))
                nc.cross_entropy_and_grad(z, t, **options, **more, reduction="none", out=out)
            record = nc.row_record(z, t, class_offset=0, n_classes=n_classes, **options)
            record = put("record", record)
            nc.grad_from_record(z, t, record, class_offset=0, **options, out=out)
            if flags == "plain" and dtype.itemsize > 2:
                others(put, z, t, out, kind)
            nc.cross_entropy_and_grad(z, t, **options, out=z)


def others(put, z, t, out, kind):
    """The functions without options."""
    hess = put("hess", np.empty(z.shape, out.dtype))
    nc.cross_entropy_grad_and_hess(z, t, out=(out, hess))
    if kind is None:
        nc.row_stats(z, t)
        nc.logsumexp(z)
        nc.softmax(z, out=out)
        nc.log_softmax(z, out=out)


def main(arguments=None):
    """Run, and print each call on a line of its own that the next one overwrites."""
    parser = argparse.ArgumentParser(prog="python -m tests.guard_pages", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every kernel: a quarter of an hour")
    everything = parser.parse_args(arguments).all
    faulthandler.enable()
    numba_ce.results.np = numba_ce.records.np = results = GuardedNumPy()
    count, kernels = 0, settings(everything)

    def say(text):
        nonlocal count
        count += 1
        sys.stdout.write(f"\r\033[K{text}")
        sys.stdout.flush()

    for setting in kernels:
        run(setting, say, ALL_CLASSES if everything else FEW_CLASSES, results)
    print(f"\r\033[K{len(kernels)} settings, {count} problems, no access outside an array")


if __name__ == "__main__":
    main()
