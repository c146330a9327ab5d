"""NumPy arrays through the device: in pieces, so that they may be larger than its memory.

Two slots take turns. Each has a stream, page-locked host buffers and device buffers; while one
slot's piece is copied or computed, the other's is packed and unpacked by the host. Any strides,
byte order and row axes are dealt with there, a piece on the device is dense.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from numba_ce._validate import PARTLY_WRITTEN, Problem
from numba_ce.cuda.arrays import BFLOAT16, View
from numba_ce.cuda.driver import CudaError, current_driver
from numba_ce.cuda.operations import Place, Scratch

Array = np.ndarray[Any, np.dtype[Any]]
#: Bytes of a piece, inputs and outputs; a slot holds at most one, or one row if that is more.
PIECE_BYTES = 32 << 20
_ALIGNMENT = 256


@dataclass
class Slot:
    """One of the two."""

    stream: int
    pinned: Array = field(default_factory=lambda: np.empty(0, np.uint8))
    address: int = 0
    nbytes: int = 0
    unpack: list[tuple[Array, Array]] = field(default_factory=list)  # to the caller's, from pinned

    def reserve(self, nbytes: int) -> None:
        """Make both buffers at least so large."""
        if nbytes <= self.nbytes:
            return
        gpu = current_driver()
        if self.nbytes:
            self.nbytes = 0
            gpu.free_pinned(self.pinned)
            gpu.free(self.address, self.stream)
        pinned = gpu.pinned(nbytes)
        try:
            self.address = gpu.allocate(nbytes, self.stream)
        except BaseException:
            with contextlib.suppress(CudaError):  # the first error is the one to tell
                gpu.free_pinned(pinned)
            raise
        self.pinned, self.nbytes = pinned, nbytes

    def finish(self) -> None:
        """Wait for the piece and hand its results to the caller."""
        current_driver().synchronize(self.stream)
        for to, source in self.unpack:
            to[...] = source
        self.unpack = []


_idle: dict[int, list[Slot]] = {}
_lock = threading.Lock()


def _take_slots(device: int) -> list[Slot]:
    with _lock:
        idle = _idle.setdefault(device, [])
        slots = [idle.pop() for _ in range(min(2, len(idle)))]
    try:
        while len(slots) < 2:
            slots.append(Slot(current_driver().new_stream()))
    except BaseException:
        _give_back(device, slots)
        raise
    return slots


def _give_back(device: int, slots: list[Slot]) -> None:
    with _lock:
        _idle[device] += slots


def row_blocks(rows: tuple[int, ...], most: int) -> Iterator[tuple[Any, ...]]:
    """Indices that cut rows of this shape into blocks of at most `most`, in C order."""
    if not rows:
        yield ()
        return
    axis, inside = len(rows), 1
    while axis > 0 and inside * rows[axis - 1] <= most:
        axis -= 1
        inside *= rows[axis]
    if axis == 0:
        yield (slice(None),)
        return
    step = max(1, most // inside)
    for outer in itertools.product(*(range(n) for n in rows[: axis - 1])):
        for start in range(0, rows[axis - 1], step):
            yield (*outer, slice(start, start + step))


def _native(array: Array) -> Any:
    """The dtype that a piece has on the device."""
    return array.dtype.newbyteorder("=")


def _device_dtype(dtype: Any) -> Any:
    return BFLOAT16 if dtype.name == "bfloat16" else dtype


def lent(stack: contextlib.ExitStack, array: Array, place: Place) -> View:
    """Device memory for a dense array of the host, until the end of the stack."""
    address = stack.enter_context(Scratch(place, array.nbytes))
    return View(address, array.shape, array.dtype, None)


#: What is done on the device with a problem, and with other arrays by the names of their fields.
Work = Callable[[Problem, dict[str, Any], Place], None]


def in_pieces(
    problem: Problem, outputs: dict[str, Array], work: Work, more: dict[str, Array] | None = None
) -> None:
    """Call ``work(problem, arrays, place)`` for every piece of the rows.

    outputs, more : arrays whose first axes are the rows, `more` of them inputs. An output "grad" of
    the dtype of the logits takes their place in the piece.
    """
    gpu, rows = current_driver(), problem.logits.shape[:-1]
    device, names = gpu.device(), ("logits", "targets", "sample_weight")
    own = {name: array for name in names if (array := getattr(problem, name)) is not None}
    with contextlib.ExitStack() as stack:
        class_weight: Any = None
        if problem.class_weight is not None:
            class_weight = lent(stack, problem.class_weight, Place(device, 0))
            gpu.copy_in(class_weight.address, problem.class_weight, 0)
            gpu.synchronize(0)

        def piece(views: dict[str, Any], stream: int) -> None:
            parts: dict[str, Any] = {name: views.pop(name) for name in own}
            part = replace(problem, **parts, class_weight=class_weight, reduction="none")
            work(part, views, Place(device, stream))

        _take_turns(rows, own | (more or {}), outputs, piece, device)


def _take_turns(
    rows: tuple[int, ...],
    inputs: dict[str, Array],
    outputs: dict[str, Array],
    work: Callable[[dict[str, Any], int], None],
    device: int,
) -> None:
    in_place = "grad" in outputs and outputs["grad"].dtype.name == inputs["logits"].dtype.name
    arrays = inputs | outputs
    sizes = {
        name: _native(a).itemsize * math.prod(a.shape[len(rows) :])
        for name, a in arrays.items()
        if not (in_place and name == "grad")
    }
    per_row = sum(sizes.values())
    most = max(1, PIECE_BYTES // per_row)
    slots, begun = _take_slots(device), False
    try:
        turns = itertools.cycle(slots)
        for index in row_blocks(rows, most):
            slot = next(turns)
            slot.finish()
            _start(slot, index, inputs, outputs, in_place, sizes, work)
            begun = True
        for slot in (next(turns), next(turns)):
            slot.finish()
    except BaseException as error:
        if begun:
            error.add_note(PARTLY_WRITTEN)
        for slot in slots:  # before anything else can fail: nothing more is written
            slot.unpack = []
        for slot in slots:
            # The buffers are not free before the device is done with them. A slot that cannot be
            # waited for is not used again; the first error is the one to tell
            with contextlib.suppress(Exception):
                slot.finish()
                _give_back(device, [slot])
        raise
    _give_back(device, slots)


def _start(
    slot: Slot,
    index: tuple[Any, ...],
    inputs: dict[str, Array],
    outputs: dict[str, Array],
    in_place: bool,
    sizes: dict[str, int],
    work: Callable[[dict[str, Any], int], None],
) -> None:
    gpu = current_driver()
    parts = {name: array[(*index, ...)] for name, array in (inputs | outputs).items()}
    taken = parts["logits"].shape[:-1]
    n_rows = math.prod(taken)
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size * n_rows // _ALIGNMENT) * _ALIGNMENT
    slot.reserve(end)
    if in_place:
        offsets["grad"] = offsets["logits"]
    views, buffers = {}, {}
    for name, part in parts.items():
        dtype, shape = _native(part), part.shape
        nbytes = dtype.itemsize * math.prod(shape)
        start = offsets[name]
        buffers[name] = slot.pinned[start : start + nbytes].view(dtype).reshape(shape)
        flat = (n_rows, *shape[len(taken) :])
        views[name] = View(slot.address + start, flat, _device_dtype(dtype), None)
    for name in inputs:
        np.copyto(buffers[name], parts[name], casting="equiv")
        gpu.copy_in(views[name].address, buffers[name], slot.stream)
    work(views, slot.stream)
    for name in outputs:
        gpu.copy_out(buffers[name], views[name].address, slot.stream)
        slot.unpack.append((parts[name], buffers[name]))
