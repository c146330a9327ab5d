"""Digests of results, kept for each set of processor features, so that changed bits are noticed.

    python tests/digests.py        # after a change of numerics on purpose: renew digests.json

The results are those of fixed inputs; the key are the vector instructions that Numba compiles for.
Those of a processor that is not in the file are added by the same command; to add others, set
NUMBA_CPU_NAME, and NUMBA_CPU_FEATURES to nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from bits import bits_of
from cases import BFLOAT16

FEATURES = ("avx", "avx2", "avx512f", "fma", "neon", "sve")
FILE = Path(__file__).with_name("digests.json")
SHAPES = {"few": (2603, 3), "narrow": (2603, 10), "eight": (301, 700), "wide": (101, 3001)}
DTYPES = (np.dtype(np.float32), np.dtype(np.float64), BFLOAT16)
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 3.0, "temperature": 0.7}


def features():
    """What Numba compiles for, as far as it could change results: the vector instructions."""
    from numba.core.registry import cpu_target

    triple, processor, names = cpu_target.target_context.codegen().magic_tuple()
    if not names:  # NUMBA_CPU_FEATURES is empty: those of the processor that was named
        return f"{triple.split('-')[0]} {processor}"
    names = names.split(",")
    return " ".join([triple.split("-")[0], *(name for name in FEATURES if f"+{name}" in names)])


def digest(*parts):
    result = hashlib.sha256()
    for part in parts:
        result.update(part)
    return result.hexdigest()[:16]


def exact_numbers(shape, dtype, seed):
    """Multiples of 1/64 between -8 and 8: the same logits whatever NumPy's generators do."""
    n = np.arange(np.prod(shape), dtype=np.uint64).reshape(shape) + np.uint64(seed)
    n = (n * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(54)
    return ((n.astype(np.float64) - 512) / 64).astype(dtype)


def results():
    """(name of the case, arrays) for each case."""
    import numba_ce as nc

    for name, shape in SHAPES.items():
        y = (np.arange(shape[0]) * 7919) % shape[1]
        t = np.abs(exact_numbers(shape, np.float64, 5)) / 64
        s, w = 0.5 + np.arange(shape[0]) % 3, 0.5 + np.arange(shape[1]) % 5
        options = OPTIONS | {"sample_weight": s, "class_weight": w}
        for dtype in DTYPES:
            z = exact_numbers(shape, dtype, 1)
            case = f"{name} {dtype.name}"
            yield f"{case} loss", nc.cross_entropy_and_grad(z, y)
            yield f"{case} rows", nc.cross_entropy_and_grad(z, y, reduction="none")
            yield f"{case} softmax", (nc.softmax(z), nc.log_softmax(z), nc.logsumexp(z))
            if dtype == BFLOAT16:
                continue
            yield f"{case} options", nc.cross_entropy_and_grad(z, y, **options)
            yield f"{case} probabilities", nc.cross_entropy_and_grad(z, t)
            yield f"{case} stats", nc.row_stats(z, y)
            yield f"{case} hess", nc.cross_entropy_grad_and_hess(z, y)


def digests():
    """{case: digest of its results}"""
    return {name: digest(*(bits_of(a) for a in arrays)) for name, arrays in results()}


def kept():
    return json.loads(FILE.read_text())


def main():
    everything = kept() if FILE.exists() else {}
    before, now = everything.get(features(), {}), digests()
    everything[features()] = now
    FILE.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")
    changed = [name for name in now if before.get(name) != now[name]]
    print(f"{features()}: {len(changed)} of {len(now)} digests are new", *changed, sep="\n  ")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
