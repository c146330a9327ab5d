"""Which module does the work: the CPU kernels, the CUDA kernels, or the NumPy reference.

Precedence: `use_backend` > `set_backend` > the variable NUMBA_CE_BACKEND > "auto". The backends are
imported when they are first used, so that importing the package costs nothing and cannot fail.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from numba_ce._fork import importing

if TYPE_CHECKING:
    from numba_ce._validate import Array, Problem

VARIABLE = "NUMBA_CE_BACKEND"
BackendName = Literal["auto", "cpu", "cuda", "numpy"]
NAMES: tuple[BackendName, ...] = get_args(BackendName)
MODULES = {"cpu": "numba_ce.cpu", "cuda": "numba_ce.cuda", "numpy": "numba_ce.reference"}

# Of this thread or asyncio task: the contexts it is in, the innermost last. A tuple and no token,
# so that one context object may serve several threads and be entered again.
_in_context: ContextVar[tuple[BackendName, ...]] = ContextVar("numba_ce_backend", default=())
# Two variables, so that a first call that reads the environment cannot undo a `set_backend`
_of_process: BackendName | None = None
_of_environment: BackendName | None = None


def why_not(name: str) -> str | None:
    """Why a backend cannot be used here; None if it can."""
    with importing:
        if name == "cuda":
            from numba_ce._cuda_presence import why_no_cuda

            return why_no_cuda()
        if name == "cpu":
            from numba import config

            if config.DISABLE_JIT:  # type: ignore[attr-defined]
                return "NUMBA_DISABLE_JIT is set and there is nothing to run but compiled kernels"
        return None


def _check(name: Any, source: str) -> BackendName:
    if not isinstance(name, str):
        raise TypeError(f"{source}: backend {name!r} is not a string")
    if name not in NAMES:
        raise ValueError(f"{source}: unknown backend {name!r}, expected one of {', '.join(NAMES)}")
    reason = why_not(name)
    if reason is not None:
        # "auto" stands for "cpu" where there are host arrays only
        usable = ", ".join(repr(n) for n in NAMES if why_not("cpu" if n == "auto" else n) is None)
        raise RuntimeError(f"{source}: backend {name!r} is not available: {reason}; use {usable}")
    return name


def available_backends() -> dict[str, str | None]:
    """The backends, each with the reason why it cannot be used here, or None if it can.

    Returns
    -------
    dict
        "cpu", "cuda" and "numpy" as keys.

    Examples
    --------
    >>> import numba_ce
    >>> [name for name in numba_ce.available_backends()]
    ['cpu', 'cuda', 'numpy']
    """
    return {name: why_not(name) for name in NAMES if name != "auto"}


def get_backend() -> BackendName:
    """The name of the backend in use here.

    "auto" runs each call where its data lives: NumPy arrays on the CPU, device arrays on CUDA.

    Returns
    -------
    str
        "auto", "cpu", "cuda" or "numpy".

    Raises
    ------
    ValueError, RuntimeError
        If the variable NUMBA_CE_BACKEND, read at the first call, is to decide and names a backend
        that does not exist or cannot be used.

    Examples
    --------
    >>> import numba_ce
    >>> with numba_ce.use_backend("numpy"):
    ...     numba_ce.get_backend()
    'numpy'
    """
    inside = _in_context.get()
    return inside[-1] if inside else _of_process or _of_environment or _from_environment()


def _from_environment() -> BackendName:
    global _of_environment
    name = os.environ.get(VARIABLE) or "auto"
    source = f"environment variable {VARIABLE}"
    _of_environment = "auto" if name == "auto" else _check(name, source)
    return _of_environment


def set_backend(name: BackendName) -> None:
    """Choose the backend of this process.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "numpy"}
        The backend.

    Raises
    ------
    ValueError
        If no such backend exists.
    RuntimeError
        If it exists but cannot be used here; the message says why and what can.

    Examples
    --------
    >>> import numba_ce
    >>> numba_ce.set_backend("auto")
    """
    global _of_process
    _of_process = _check(name, "set_backend")


class _Context(contextlib.AbstractContextManager[None]):
    """What `use_backend` returns."""

    def __init__(self, name: BackendName) -> None:
        self._name = name

    def __enter__(self) -> None:
        _in_context.set((*_in_context.get(), self._name))

    def __exit__(self, *exception: object) -> None:
        _in_context.set(_in_context.get()[:-1])


def use_backend(name: BackendName) -> contextlib.AbstractContextManager[None]:
    """A context in which a backend is used, in this thread or asyncio task only.

    It may be entered again, also within itself and in several threads at once.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "numpy"}
        The backend.

    Returns
    -------
    context manager
        It gives no value.

    Raises
    ------
    ValueError, RuntimeError
        As `set_backend`, at once.

    Examples
    --------
    >>> import numba_ce
    >>> with numba_ce.use_backend("numpy"):
    ...     round(float(numba_ce.logsumexp([0.0, 0.0])), 4)
    0.6931
    """
    return _Context(_check(name, "use_backend"))


_serial: ContextVar[bool] = ContextVar("numba_ce_serial", default=False)


@contextlib.contextmanager
def serial() -> Iterator[None]:
    """A context in which calls from this thread or asyncio task compute in this thread alone.

    For tasks of Dask, joblib or Ray, which share the cores out themselves. Results have the same
    bits as with any number of threads.

    Yields
    ------
    None
        Nothing.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_ce
    >>> logits, targets = np.zeros((4096, 64)), np.zeros(4096, np.int64)
    >>> with numba_ce.serial():
    ...     loss = numba_ce.cross_entropy(logits, targets)
    >>> bool(loss == numba_ce.cross_entropy(logits, targets))
    True
    """
    token = _serial.set(True)
    try:
        yield
    finally:
        _serial.reset(token)


def is_serial() -> bool:
    """Whether this thread is in the context `serial`."""
    return _serial.get()


class Backend(Protocol):
    """What a backend is: a module of these functions.

    Everything is checked but the values of the targets. There is at least one row (*rows) and one
    class, and the classes are the last axis of every array as large as the logits. The caller makes
    the outputs and the backend fills all of them, those of 16 bits by way of float32. A target that
    is no class raises `bad_target_error` before anything is written, or gives NaN in its row if
    targets are not checked.
    """

    def run_loss(
        self, problem: Problem, loss_rows: Array | None, grad: Array | None
    ) -> tuple[float, float]:
        """The sums of the losses and of what the rows weigh in a mean, both in float64.

        loss_rows : (*rows), the losses
        grad : (*rows, n_classes), may be the logits; for "mean" divided by the second sum, and 0
            if that is 0
        """

    def run_grad_hess(self, problem: Problem, grad: Array, hess: Array, kind: str) -> None:
        """Gradient and diagonal Hessian of the row losses, both (*rows, n_classes).

        kind : one of `numba_ce.api.Hess`
        """

    def run_row_stats(self, problem: Problem, outputs: dict[str, Array]) -> None:
        """The fields of `RowStats` that `outputs` names, each (*rows); there may be no targets."""

    def run_normalize(self, logits: Array, what: str, out: Array) -> None:
        """`what`: "softmax" or "log_softmax", (*rows, n_classes), or "logsumexp", (*rows)."""

    def run_row_record(
        self, problem: Problem, class_offset: int, n_classes: int, record: Array
    ) -> None:
        """The records (*rows, 9) of the classes here, of `n_classes` that the whole rows have."""

    def run_grad_from_record(
        self, problem: Problem, record: Array, class_offset: int, grad: Array
    ) -> None:
        """The gradient (*rows, n_classes) of the classes here, from records of whole rows."""

    def loss_on_device(self, problem: Problem, result: Any, grad: Any) -> None:
        """`run_loss` for device arrays, of "cuda" alone: nothing comes back to the host.

        result : (*rows) for "none", else 0-d; there may be no rows
        """


_loaded: dict[str, Backend] = {}


def backend(on_device: bool = False) -> Backend:
    """The module that does the work, for arrays on the host or on a CUDA device."""
    name = get_backend()
    if name == "auto":  # where the data lives
        name = "cuda" if on_device else "cpu"
    elif on_device and name != "cuda":
        raise ValueError(
            f"backend {name!r} cannot read arrays on a CUDA device: use 'auto' or 'cuda', or copy "
            "them to the host"
        )
    if name not in _loaded:
        _check(name, f"backend {get_backend()!r}")
        with importing:
            module: Any = importlib.import_module(MODULES[name])
        _loaded[name] = module
    return _loaded[name]
