"""Whether the backend "cuda" can be used, and if not, why and what to do about it."""

from __future__ import annotations

import importlib.util

INSTALL = "pip install 'numba-ce[cu13]' (or [cu12] for an older driver)"


def why_no_cuda() -> str | None:
    """The reason, or None if CUDA can be used here."""
    if importlib.util.find_spec("numba_cuda") is None:
        return (
            "NVIDIA's package numba-cuda is not installed (the CUDA support inside Numba itself is "
            f"an old copy that is not used): {INSTALL}"
        )
    from numba import config

    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return "NUMBA_DISABLE_JIT is set and there is nothing to run but compiled kernels"
    if config.ENABLE_CUDASIM:  # type: ignore[attr-defined]
        return "NUMBA_ENABLE_CUDASIM is set and the simulator has no clusters and no shuffles"
    import numba.cuda

    if "numba_cuda" not in (numba.cuda.__file__ or ""):
        return (
            f"numba.cuda is Numba's own old copy ({numba.cuda.__file__}) and not NVIDIA's "
            f"numba-cuda, whose hook has not run: {INSTALL} in a fresh environment"
        )
    try:
        from numba_ce.cuda.driver import current_driver
    except ImportError as error:
        return f"a part of CUDA is missing ({error}): {INSTALL}"
    try:
        current_driver()
    except Exception as error:  # the bindings raise RuntimeError without a driver, Numba its own
        return (
            f"there is no CUDA driver, or no GPU that it can use ({error}): install NVIDIA's "
            f"driver, and {INSTALL}"
        )
    return None
