"""What stands between torch and the functions of numba_ce."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from numba_ce._foreign import readable


def array_of(tensor: Tensor | None, name: str) -> Any:
    """The memory of a tensor as an array; a device tensor speaks for itself."""
    if tensor is None:
        return None
    return readable(tensor.detach() if tensor.requires_grad else tensor, name)


def has_memory(tensor: Tensor) -> bool:
    """Whether the numbers lie somewhere, and are not those of many calls under one wrapper."""
    try:
        tensor.data_ptr()
    except RuntimeError:  # the vmap of torch.autograd, which uses no rule of a function
        return False
    return True


def tensor_of(result: Any) -> Tensor:
    """A result of numba_ce as a tensor that shares its memory."""
    if isinstance(result, Tensor):
        return result
    if not isinstance(result, np.ndarray):
        dtype = torch.float64 if result.dtype.itemsize == 8 else torch.float32
        return torch.scalar_tensor(float(result), dtype=dtype)
    return torch.from_numpy(result)


def loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class Positional(inspect.Signature):
    """The signature of a function whose arguments are all given, by position.

    torch binds the arguments at each call: 20 us with the function's own signature, 8 with one that
    is kept, 1 with this one.
    """

    class Bound(NamedTuple):
        """The arguments, as `inspect.BoundArguments` has them."""

        args: tuple[Any, ...]
        kwargs: Mapping[str, Any] = MappingProxyType({})

        def apply_defaults(self) -> None:
            """Nothing is left out."""

    def bind(self, *arguments: Any) -> Any:
        """The arguments as they are."""
        return self.Bound(arguments)
