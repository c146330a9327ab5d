"""The processor, its caches and the versions that figures belong to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding

from numba_ce import __version__

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
DISTRIBUTIONS = (
    "numpy", "numba", "llvmlite", "tbb", "torch", "jax", "jaxlib", "scikit-learn", "scipy",
    "ml_dtypes",
)  # fmt: skip


def _cores() -> int | None:
    """Of this process, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _model() -> str:
    """The name that the processor gives itself, where Linux tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """Size of each cache of the first core, such as {"L2": "1024K"}; empty where unknown."""
    sizes = {}
    for folder in sorted(CACHES.glob("index*")):
        level, kind, size = (
            (folder / name).read_text().strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            sizes[f"L{level}"] = size
    return sizes


def machine() -> dict[str, Any]:
    """What the figures depend on, as JSON."""
    features = binding.get_host_cpu_features()
    wanted = ("avx512f", "avx512bf16", "avx2", "fma", "f16c", "neon", "sve")
    return {
        "processor": _model(),
        "llvm_name": binding.get_host_cpu_name(),
        "features": [name for name in wanted if features.get(name)],
        "cores": _cores(),
        "threads": numba.get_num_threads(),
        "caches": _caches(),
        "system": platform.platform(),
    }


def versions(distributions: Iterable[str] = DISTRIBUTIONS) -> dict[str, str]:
    """Of Python, ours, and of all that is installed and may be timed."""
    found = {"python": platform.python_version(), "numba_ce": __version__}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
