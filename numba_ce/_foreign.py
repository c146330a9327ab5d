"""Arrays of other libraries, none of which is imported here."""

from __future__ import annotations

from typing import Any

import numpy as np

# NumPy imports this when it is first asked for, as by the first call of any function of Numba's:
# a child that is forked meanwhile would wait for it for ever. 6 ms
from numpy.ma import MaskedArray


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
    try:
        return np.asarray(value)
    except (MemoryError, OSError):  # not about the value, as when what it stands for is read
        raise
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} cannot be made an array: {error}") from error
    except Exception as error:
        raise TypeError(
            f"{name} ({type(value).__name__}) cannot be made an array: {error}"
        ) from error
