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
        from numba_ce.cuda.driver import CudaError, current_driver
        from numba_ce.cuda.launch import function_of
    except ImportError as error:
        return f"a part of CUDA is missing ({error}): {INSTALL}"
    try:
        gpu = current_driver()
    except CudaError as error:
        return str(error)
    except Exception as error:  # of the bindings, which found no library
        return f"there is no CUDA driver ({error}): install NVIDIA's driver, and {INSTALL}"
    try:  # a small kernel that nearly every call needs: whether it compiles, and loads on the GPU
        function_of("fold", gpu.device())
    except CudaError as error:
        return str(error)
    except Exception as error:
        return f"no kernel can be compiled ({type(error).__name__}: {error}): {INSTALL}"
    return None
