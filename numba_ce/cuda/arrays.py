"""Arrays on the device: what the kernels are told of them, and the libraries they come from.

`View` is an address with shape and strides. A `DeviceArray` is the view of an array that somebody
passed (CuPy, Numba, torch, anything with `__cuda_array_interface__`); it looks enough like a NumPy
array to go through the checks, and makes results of the family that it came from.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from numba_ce.cuda.driver import LEGACY_STREAM, current_driver


class _Bfloat16:
    """The dtype bfloat16, also where `ml_dtypes` is not installed."""

    name, itemsize, kind, isnative = "bfloat16", 2, "V", True

    def __str__(self) -> str:
        return self.name


BFLOAT16: Any = _Bfloat16()


@lru_cache(maxsize=1024)
def dense_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The strides of a C-contiguous array."""
    strides, step = [], itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


class View:
    """An array in device memory."""

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None
    ) -> None:
        self.address, self.shape, self.dtype = address, shape, dtype
        self.strides = dense_strides(shape, dtype.itemsize) if strides is None else strides

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.dtype.itemsize)


class DeviceArray(View):
    """An array that was passed to a public function."""

    def __init__(
        self,
        owner: Any,
        name: str,
        place: tuple[int, tuple[int, ...], Any, tuple[int, ...] | None],
        interface_stream: int | None,
        readonly: bool,
    ) -> None:
        super().__init__(*place)
        self.dense = place[3] is None
        self.owner, self.name, self.readonly = owner, name, readonly
        self.interface_stream = interface_stream  # as the interface says, which may be nothing

    @property
    def stream(self) -> int:
        """The stream in which the caller works; asked of the logits alone, for it takes a while."""
        return _current_stream(self.owner, self.interface_stream)

    def classes_last(self, axis: int) -> DeviceArray:
        """A view with one axis at the end."""
        axes = tuple(a for a in range(self.ndim) if a != axis) + (axis,)
        shape, strides = (tuple(of[a] for a in axes) for of in (self.shape, self.strides))
        place = self.address, shape, self.dtype, strides
        return DeviceArray(self.owner, self.name, place, self.interface_stream, self.readonly)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{self.name} is on a CUDA device: copy it to the host first")

    def __getitem__(self, index: Any) -> Any:
        """One element, copied to the host: for messages."""
        offset = sum(int(i) * s for i, s in zip(index, self.strides, strict=True))
        value = np.empty((), self.dtype)
        current_driver().copy_out(value, self.address + offset, self.stream)
        current_driver().synchronize(self.stream)
        return value[()]

    def to_host(self) -> np.ndarray[Any, Any]:
        """All elements, copied to the host."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        low, high = self.span()
        raw, gpu = np.empty(high - low, np.uint8), current_driver()
        gpu.device()  # a new thread has none
        gpu.copy_out(raw, low, self.stream)
        gpu.synchronize(self.stream)
        return np.ndarray(self.shape, self.dtype, raw, self.address - low, self.strides)

    def span(self) -> tuple[int, int]:
        """The addresses between which the elements lie."""
        if self.dense:
            return self.address, self.address + self.size * self.itemsize
        low = high = self.address
        for length, stride in zip(self.shape, self.strides, strict=True):
            reach = (length - 1) * stride
            low, high = low + min(reach, 0), high + max(reach, 0)
        return low, high + self.itemsize


_families: WeakKeyDictionary[type, str] = WeakKeyDictionary()  # by class


def family(owner: Any) -> str:
    """The library that an array comes from: "torch", "cupy" or "numba" (also anything else)."""
    kind = type(owner)
    found = _families.get(kind)
    if found is None:  # of a class of the caller's own, what it is made from
        roots = (base.__module__.partition(".")[0] for base in kind.__mro__)
        found = next((root for root in roots if root in ("torch", "cupy")), "numba")
        _families[kind] = found
    return found


_dtypes: dict[str, Any] = {}  # by typestr


def _dtype(owner: Any, typestr: str, name: str) -> Any:
    if typestr in ("<V2", "|V2") and str(owner.dtype).endswith("bfloat16"):
        return BFLOAT16
    dtype = _dtypes.get(typestr)
    if dtype is None:
        dtype = _dtypes[typestr] = np.dtype(typestr)
    if not dtype.isnative:
        raise TypeError(
            f"{name} on the device has byte order {typestr[0]!r}: expected the native one"
        )
    return dtype


def _current_stream(owner: Any, stream: int | None) -> int:
    """The stream in which the caller works; `stream` is what the interface says of it."""
    origin = family(owner)
    if origin == "torch":
        stream = sys.modules["torch"].cuda.current_stream(owner.device).cuda_stream
    elif origin == "cupy":
        stream = sys.modules["cupy"].cuda.get_current_stream().ptr
    return int(stream or LEGACY_STREAM)


def device_array(value: Any, name: str, interface: dict[str, Any] | None = None) -> DeviceArray:
    """A `DeviceArray` for anything with `__cuda_array_interface__`, which may have been asked."""
    if isinstance(value, DeviceArray):
        return value
    if interface is None:
        interface = value.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise TypeError(f"{name} has a mask: expected an ordinary array")
    dtype = _dtype(value, interface["typestr"], name)
    address, readonly = interface["data"]
    shape, strides = tuple(map(int, interface["shape"])), interface.get("strides")
    size = dtype.itemsize
    address = int(address or 0)
    if strides is not None:
        strides = tuple(map(int, strides))
    if address % size or (strides is not None and any(s % size for s in strides)):
        raise ValueError(f"{name} on the device is not aligned to its {size} bytes")
    place = address, shape, dtype, strides
    return DeviceArray(value, name, place, interface.get("stream"), bool(readonly))


def empty(like: DeviceArray, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
    """A fresh dense array of the family, and on the device, of another one."""
    owner, origin = like.owner, family(like.owner)
    if origin == "torch":
        torch = sys.modules["torch"]
        fresh = torch.empty(shape, dtype=getattr(torch, dtype.name), device=owner.device)
    elif origin == "cupy":
        cupy = sys.modules["cupy"]
        with owner.device:
            fresh = cupy.empty(shape, owner.dtype if dtype is BFLOAT16 else dtype)
    else:
        from numba import cuda

        if dtype is BFLOAT16:
            raise TypeError("bfloat16 results need CuPy or torch arrays")
        gpu = current_driver()  # an array without elements lies on no device
        with cuda.gpus[gpu.device_of(like.address) if like.address else gpu.device()]:
            fresh = cuda.device_array(shape, dtype, stream=cuda.external_stream(like.stream))
    return device_array(fresh, "result")


def empty_like(like: DeviceArray) -> DeviceArray:
    """A fresh dense array in the axis order of the logits, as `np.empty_like` would give.

    Of Numba's family it is in C order: there a transpose is a copy.
    """
    order = sorted(range(like.ndim), key=lambda a: -abs(like.strides[a]))
    if order == list(range(like.ndim)) or family(like.owner) == "numba":
        return empty(like, like.shape, like.dtype)
    fresh = empty(like, tuple(like.shape[a] for a in order), like.dtype)
    back = [order.index(a) for a in range(like.ndim)]
    owner = fresh.owner
    moved = owner.permute(*back) if family(owner) == "torch" else owner.transpose(back)
    return device_array(moved, "result")


def overlap(a: DeviceArray, b: DeviceArray) -> bool:
    """Whether two arrays may share memory, judged by the addresses they span."""
    if 0 in a.shape or 0 in b.shape:
        return False
    (a_low, a_high), (b_low, b_high) = a.span(), b.span()
    return a_low < b_high and b_low < a_high
