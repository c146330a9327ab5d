"""Instructions of the CUDA kernels for each element: python -m benchmarks.cuda_instructions

Counted by the interpreter in `tools/ptx`, without a GPU: what all threads of a float32 loss and
gradient execute, over the elements.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import numba_ce as nc

CLASSES = (2, 10, 16, 64, 600, 4000, 12000)
ELEMENTS = 1 << 16


def per_element(n_classes: int, **options: float) -> float:
    """Of the kernel that reads the logits, the last one launched."""
    from emulated import emulated  # type: ignore[import-not-found]

    rng = np.random.default_rng(n_classes)
    logits = rng.standard_normal((ELEMENTS // n_classes, n_classes), dtype=np.float32)
    targets = rng.integers(0, n_classes, len(logits))
    with emulated() as gpu:
        nc.cross_entropy_and_grad(logits, targets, reduction="none", **options)
        return float(gpu.launches[-1][2].instructions / logits.size)


def main() -> None:
    """Print the table."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    print("classes   plain  smoothed")
    for n_classes in CLASSES:
        plain, smoothed = per_element(n_classes), per_element(n_classes, label_smoothing=0.1)
        print(f"{n_classes:7}{plain:8.0f}{smoothed:10.0f}")


if __name__ == "__main__":
    main()
