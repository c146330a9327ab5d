"""One case of the fuzz run, made again from its seed and number."""

from __future__ import annotations

import inspect
import re
import warnings

import numpy as np

import numba_ce as nc

from .judge import WrongError, check
from .junk import JUNK
from .maker import Maker
from .spoil import Spoiler

ERRORS = (TypeError, ValueError)  # an AxisError is a ValueError


class Tally:
    """What has been seen: functions, outcomes, and the lines of the package that raised."""

    def __init__(self):
        self.counts = {}
        self.raised = set()

    def add(self, *what):
        key = " ".join(what)
        self.counts[key] = self.counts.get(key, 0) + 1

    def note(self, error):
        frame = error.__traceback__
        place = None
        while frame is not None:
            name = frame.tb_frame.f_code.co_filename
            if "numba_ce" in name:
                place = f"{name.rsplit('numba_ce', 1)[1].strip('/')}:{frame.tb_lineno}"
            frame = frame.tb_next
        self.raised.add(place)


def make(seed, number, flavours, arenas):
    """The call, and the expected error: None, (exceptions, pattern), or the name of an argument."""
    rng = np.random.default_rng([seed, number])
    arenas.clear()
    call = Maker(rng, arenas, flavours[number % len(flavours)]).call()
    draw = rng.random()
    if draw < 0.6:
        return call, None
    if draw < 0.87:
        return call, Spoiler(rng, arenas, call).spoil()
    names = list(inspect.signature(getattr(nc, call.function)).parameters)
    names = [n for n in names if n != "progress"]
    name = names[rng.integers(len(names))]
    call.arguments[name] = JUNK[rng.integers(len(JUNK))]
    return call, name


def run(seed, number, flavours, arenas, tally):
    """Raises `WrongError` if something is not as it should be."""
    call, expected = make(seed, number, flavours, arenas)
    try:
        _run(call, expected, arenas, tally)
    except WrongError as wrong:
        wanted = "" if expected is None else f"\nexpected: {expected}"
        raise WrongError(f"{wrong}\n{call.describe()}{wanted}") from None


def _outcome(call, backend):
    with warnings.catch_warnings(), nc.use_backend(backend):
        warnings.simplefilter("error")
        try:
            return call(), None
        except ERRORS as error:
            return None, error
        except Exception as error:
            if isinstance(error, (OSError, ImportError)) and call.function == "stream":
                return None, error
            raise WrongError(f"{type(error).__name__}: {error}") from None


def _run(call, expected, arenas, tally):
    kind = "good" if expected is None else "junk" if isinstance(expected, str) else "fault"
    for placed in arenas.placed.values():
        placed.remember()
    result, error = _outcome(call, "cpu")
    if error is not None:
        tally.note(error)
        for name, placed in arenas.placed.items():
            if not placed.is_unchanged():
                raise WrongError(f"{name} was changed, and then came {error!r}")
    else:
        _check_memory(call, arenas)
    tally.add(call.function, kind, "result" if error is None else "error")
    if kind == "good" and not call.allowed:
        if error is not None:
            raise WrongError(f"{type(error).__name__}: {error}")
        if not call.unchecked:
            check(call, result)
    elif kind == "good" or (kind == "fault" and call.allowed):
        _check_error(error, [*call.allowed, *([expected] if expected else [])])
    elif kind == "fault":
        _check_error(error, [expected])
    else:
        _check_junk(call, expected, result, error)


def _check_memory(call, arenas):
    """Inputs as they were; of outputs nothing but their elements written."""
    outputs = []
    for name in ("out", "grad_out"):
        given = call.arguments.get(name)
        outputs += [g for g in (given if isinstance(given, tuple) else (given,)) if g is not None]
    for name, placed in arenas.placed.items():
        start = placed.view.ctypes.data
        written = [o for o in outputs if isinstance(o, np.ndarray) and o.ctypes.data == start]
        if not written and not placed.is_unchanged():
            raise WrongError(f"{name} was changed")
    # Those that the judge has yet to look at keep their values
    for name, placed in arenas.placed.items():
        start = placed.view.ctypes.data
        if any(isinstance(o, np.ndarray) and o.ctypes.data == start for o in outputs):
            values = placed.view.copy()
            if not placed.only_elements_changed():
                raise WrongError(f"bytes between or beside the elements of {name} were written")
            placed.view[...] = values


def _check_error(error, expected):
    if error is None:
        raise WrongError("accepted")
    for exceptions, pattern in expected:
        if isinstance(error, exceptions) and re.search(pattern, str(error), re.DOTALL):
            return
    raise WrongError(f"{type(error).__name__}: {error}")


def _check_junk(call, name, result, error):
    """The other backend must say the same, and an error must name an argument."""
    if call.arguments.get("out") is not None:
        return
    other, other_error = _outcome(call, "numpy")
    if (error is None) != (other_error is None):
        if error is not None and "on the CPU" in str(error):
            return
        raise WrongError(f"cpu: {error!r}, numpy: {other_error!r}")
    if error is not None:
        if str(error) != str(other_error):
            raise WrongError(f"cpu: {error!r}, numpy: {other_error!r}")
        if isinstance(error, (OSError, ImportError)):  # the argument is a path, which it names
            return
        named = list(inspect.signature(getattr(nc, call.function)).parameters)
        if not any(re.search(rf"\b{n}\b", str(error)) for n in named):
            raise WrongError(f"names no argument: {error!r}")
        return
    pairs = zip(result, other, strict=True) if isinstance(result, tuple) else [(result, other)]
    for one, two in pairs:
        a, b = np.asarray(one), np.asarray(two)
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise WrongError(f"cpu: {a.dtype}{a.shape}, numpy: {b.dtype}{b.shape}")
