"""Arrays of other libraries, none of which is imported here, as arrays that NumPy reads."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

# NumPy imports this when it is first asked for, as by the first call of any function of Numba's:
# a child that is forked meanwhile would wait for it for ever. 6 ms
from numpy.ma import MaskedArray


def readable(value: Any, name: str) -> Any:
    """A tensor of torch as an array that shares its memory; anything else as it is.

    A CUDA tensor, which speaks for itself, stays one.
    """
    # Subclasses of Tensor live in any module. Half imported, torch may have no Tensor yet
    torch: Any = sys.modules.get("torch")
    tensor: Any = getattr(torch, "Tensor", ())
    if not isinstance(value, tensor):
        return value
    if value.requires_grad:
        raise TypeError(
            f"{name} is a tensor that requires a gradient: expected {name}.detach(), or a function "
            "of numba_ce.integrations.torch"
        )
    if value.is_nested:
        raise TypeError(f"{name} is a nested tensor: expected {name}.to_padded_tensor(...)")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} is a tensor of layout {value.layout}: expected {name}.to_dense()")
    if not value.is_cpu and value.device.type not in ("cpu", "cuda"):
        raise TypeError(
            f"{name} is a tensor on the device {value.device}: expected {name}.cpu(), or a tensor "
            "on a CUDA device"
        )
    if not value.is_cpu:
        return value
    if value.dtype is torch.bfloat16:
        return _bfloat16(value, name)
    try:
        return value.numpy()
    except (RuntimeError, TypeError) as error:  # a dtype that NumPy lacks, a lazy negation
        raise TypeError(
            f"{name} is a tensor of dtype {value.dtype} that NumPy cannot read: {error}"
        ) from None


def _bfloat16(value: Any, name: str) -> Any:
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(
            f"{name} is a tensor of dtype bfloat16: expected pip install ml_dtypes, which NumPy "
            f"needs for it, or {name}.float()"
        ) from None
    return value.view(sys.modules["torch"].int16).numpy().view(ml_dtypes.bfloat16)


def is_sparse(value: Any) -> bool:
    """Whether `value` is a sparse matrix or array of SciPy, or of CuPy after its example."""
    # Of the type: an instance may have any attribute one asks for
    return hasattr(type(value), "toarray") and hasattr(type(value), "nnz")


def numpy_array(value: Any, name: str) -> np.ndarray[Any, Any]:
    """What NumPy makes of `value`, sharing its memory if it can; an error names the argument."""
    if isinstance(value, MaskedArray):
        raise TypeError(
            f"{name} is a MaskedArray, whose mask would be lost: fill it (-inf masks a class, "
            "ignore_index a row) and pass an ordinary array"
        )
    if is_sparse(value):
        raise TypeError(
            f"{name} is a sparse {type(value).__name__}: expected a dense array, {name}.toarray()"
        )
    value = readable(value, name)
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except (MemoryError, OSError):  # not about the value, as when what it stands for is read
        raise
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} cannot be made an array: {error}") from error
    except Exception as error:
        raise TypeError(
            f"{name} ({type(value).__name__}) cannot be made an array: {error}"
        ) from error
