"""Arrays of other libraries, none of which is imported here, as arrays that NumPy reads."""

from __future__ import annotations

import sys
from typing import Any


def readable(value: Any, name: str) -> Any:
    """A tensor of torch as an array that shares its memory; anything else as it is.

    A CUDA tensor, which speaks for itself, stays one.
    """
    # Subclasses of Tensor live in any module. Half imported, torch may have no Tensor yet
    tensor: Any = getattr(sys.modules.get("torch"), "Tensor", ())
    if not isinstance(value, tensor):
        return value
    if value.requires_grad:
        raise TypeError(
            f"{name} is a tensor that requires a gradient: expected {name}.detach(), or a function "
            "of numba_ce.integrations.torch"
        )
    if value.is_nested:
        raise TypeError(f"{name} is a nested tensor: expected {name}.to_padded_tensor(...)")
    if str(value.layout) != "torch.strided":
        raise TypeError(f"{name} is a tensor of layout {value.layout}: expected {name}.to_dense()")
    if value.device.type not in ("cpu", "cuda"):
        raise TypeError(
            f"{name} is a tensor on the device {value.device}: expected {name}.cpu(), or a tensor "
            "on a CUDA device"
        )
    if not value.is_cpu:
        return value
    if str(value.dtype) == "torch.bfloat16":
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
