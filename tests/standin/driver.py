"""The calls of the stand-in driver: `libcuda.c` asks this module for their addresses.

A call that is not here does not exist for the bindings, which then say its name.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from ctypes import c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np

from tools.ptx import Fault
from tools.ptx.memory import USABLE
from tools.ptx.program import compiled

from .state import (
    ILLEGAL_ADDRESS,
    INVALID_CLUSTER_SIZE,
    INVALID_CONTEXT,
    INVALID_HANDLE,
    INVALID_IMAGE,
    INVALID_VALUE,
    LEGACY,
    NO_DEVICE,
    NOT_FOUND,
    NOT_READY,
    STATE,
    DriverError,
    Function,
    Module,
    put,
    put_pointer,
)

POINTER, HANDLE = c_uint64, c_uint64
CALLS = {}  # name -> callback for C, which must outlive every call
UNWRITTEN = 0xA5  # what bytes hold that nobody has written
NO_BINARY_FOR_GPU = 209
SHARED_BYTES, SHARED_BYTES_ON_REQUEST = 48 << 10, 227 << 10
MAX_THREADS, STATIC_SHARED, MAX_DYNAMIC_SHARED = 0, 1, 8  # attributes of functions
ATTRIBUTES = {  # of devices
    1: 1024,  # threads of a block
    8: SHARED_BYTES,
    10: 32,  # threads of a warp
    16: 4,  # multiprocessors
    20: 0,  # compute mode: default
    41: 1,  # one address space with the host
    97: SHARED_BYTES_ON_REQUEST,
}


def call(*types):
    """The function is a call of the driver, of its own name, with arguments of these types."""

    def register(function):
        def perform(*arguments):
            try:
                return STATE.perform(function.__name__, function, arguments)
            except BaseException:  # nothing may go on into C
                sys.excepthook(*sys.exc_info())
                os._exit(70)

        CALLS[function.__name__] = ctypes.CFUNCTYPE(c_int, *types)(perform)
        return function

    return register


# ---------------------------------------------------------------- driver and devices


@call(c_uint)
def cuInit(flags):
    if STATE.settings.devices == 0:
        raise DriverError(NO_DEVICE)
    if STATE.pid is None:  # a forked process stays without
        STATE.pid = os.getpid()


@call(POINTER)
def cuDriverGetVersion(version):
    put(c_int, version, STATE.settings.version)


@call(POINTER)
def cuDeviceGetCount(count):
    put(c_int, count, STATE.settings.devices)


@call(POINTER, c_int)
def cuDeviceGet(device, ordinal):
    STATE.check_device(ordinal)
    put(c_int, device, ordinal)


@call(POINTER, c_int, c_int)
def cuDeviceGetName(name, length, device):
    STATE.check_device(device)
    text = b"Stand-in, no GPU"[: length - 1] + b"\0"
    ctypes.memmove(name, text, len(text))


@call(POINTER, c_int)
def cuDeviceGetUuid(uuid, device):
    STATE.check_device(device)
    ctypes.memmove(uuid, bytes(15) + bytes([device]), 16)


@call(POINTER, c_int, c_int)
def cuDeviceGetAttribute(value, attribute, device):
    STATE.check_device(device)
    major, minor = map(int, STATE.settings.capability.split("."))
    values = ATTRIBUTES | {75: major, 76: minor, 115: STATE.settings.pools}
    if attribute not in values:
        raise DriverError(INVALID_VALUE)
    put(c_int, value, values[attribute])


# ---------------------------------------------------------------- contexts


@call(POINTER, c_int)
def cuDevicePrimaryCtxRetain(context, device):
    handle = STATE.context_of(device)
    STATE.retained[device] += 1
    put_pointer(context, handle)


@call(c_int)
def cuDevicePrimaryCtxRelease(device):
    STATE.check_device(device)
    if not STATE.retained[device]:
        raise DriverError(INVALID_CONTEXT)
    STATE.retained[device] -= 1


@call(POINTER)
def cuCtxGetCurrent(context):
    put_pointer(context, STATE.contexts[-1] if STATE.contexts else 0)


@call(HANDLE)
def cuCtxSetCurrent(context):
    STATE.device_of(context)
    STATE.contexts[-1:] = [context]


@call(HANDLE)
def cuCtxPushCurrent(context):
    STATE.device_of(context)
    STATE.contexts.append(context)


@call(POINTER)
def cuCtxPopCurrent(context):
    if not STATE.contexts:
        raise DriverError(INVALID_CONTEXT)
    put_pointer(context, STATE.contexts.pop())


@call(POINTER)
def cuCtxGetDevice(device):
    put(c_int, device, STATE.device_of(STATE.context()))


@call()
def cuCtxSynchronize():
    STATE.context()
    STATE.finish()


# ---------------------------------------------------------------- memory


@call(POINTER, c_size_t)
def cuMemAlloc(address, nbytes):
    put_pointer(address, STATE.allocate(nbytes, STATE.context(), False))


@call(POINTER, c_size_t, HANDLE)
def cuMemAllocAsync(address, nbytes, stream):
    context = STATE.in_stream(stream)
    if not STATE.settings.pools:
        raise DriverError(801)  # CUDA_ERROR_NOT_SUPPORTED
    put_pointer(address, STATE.allocate(nbytes, context, True))


@call(POINTER)
def cuMemFree(address):
    STATE.context()
    STATE.check_freeable(address)
    STATE.finish()
    STATE.free(address)


@call(POINTER, HANDLE)
def cuMemFreeAsync(address, stream):
    STATE.check_freeable(address)
    if not STATE.allocated[address][2]:  # from no pool
        raise DriverError(INVALID_VALUE)
    STATE.enqueue(stream, lambda: STATE.free(address))
    STATE.leaving.add(address)


@call(POINTER, c_size_t, c_uint)
def cuMemHostAlloc(address, nbytes, flags):
    STATE.context()
    if nbytes == 0:
        raise DriverError(INVALID_VALUE)
    buffer = ctypes.create_string_buffer(nbytes)
    STATE.pinned[ctypes.addressof(buffer)] = buffer
    put_pointer(address, ctypes.addressof(buffer))


@call(POINTER)
def cuMemFreeHost(address):
    STATE.context()
    if address not in STATE.pinned:
        raise DriverError(INVALID_VALUE)
    STATE.finish()
    del STATE.pinned[address]


@call(POINTER, POINTER)
def cuMemGetInfo(free, total):
    used = sum(size for size, *_ in STATE.allocated.values())
    put(c_size_t, free, STATE.settings.bytes - used)
    put(c_size_t, total, STATE.settings.bytes)


@call(POINTER, POINTER, POINTER)
def cuMemGetAddressRange(start, nbytes, address):
    first, size, _ = STATE.allocation(address)
    put_pointer(start, first)
    put(c_size_t, nbytes, size)


@call(POINTER, c_int, POINTER)
def cuPointerGetAttribute(value, attribute, address):
    start, size, device = STATE.allocation(address)
    kinds = {
        1: (c_uint64, STATE.context_of(device)),
        2: (c_uint, 2),  # memory of a device
        3: (c_uint64, address),
        9: (c_int, device),
        11: (c_uint64, start),
        12: (c_size_t, size),
    }
    if attribute not in kinds:
        raise DriverError(INVALID_VALUE)
    put(kinds[attribute][0], value, kinds[attribute][1])


def _is_pinned(address):
    return any(start <= address < start + len(b) for start, b in STATE.pinned.items())


def _to_device(to, source, nbytes, stream):
    data, flags = STATE.bytes_at(to, nbytes)
    # Other memory than page-locked is read before the call returns
    early = None if _is_pinned(source) else ctypes.string_at(source, nbytes)

    def copy():
        ctypes.memmove(data.ctypes.data, early or source, nbytes)
        flags[:] = USABLE

    STATE.enqueue(stream, copy)


def _to_host(to, source, nbytes, stream):
    data, flags = STATE.bytes_at(source, nbytes)

    def copy():
        visible = np.where(flags == USABLE, data, np.uint8(UNWRITTEN))
        ctypes.memmove(to, visible.ctypes.data, nbytes)

    STATE.enqueue(stream, copy)
    if not _is_pinned(to):  # other memory is complete when the call returns
        STATE.finish(stream)


def _on_device(to, source, nbytes, stream):
    data, flags = STATE.bytes_at(source, nbytes)
    to_data, to_flags = STATE.bytes_at(to, nbytes)

    def copy():
        to_data[:], to_flags[:] = data.copy(), flags.copy()

    STATE.enqueue(stream, copy)


def _copies(name, copy):
    """The two calls of a copy: one that waits, one in a stream."""

    def waits(to, source, nbytes):
        copy(to, source, nbytes, LEGACY)
        STATE.finish(LEGACY)

    def in_stream(to, source, nbytes, stream):
        copy(to, source, nbytes, stream)

    waits.__name__, in_stream.__name__ = name, f"{name}Async"
    call(POINTER, POINTER, c_size_t)(waits)
    call(POINTER, POINTER, c_size_t, HANDLE)(in_stream)


for _name, _copy in (
    ("cuMemcpyHtoD", _to_device),
    ("cuMemcpyDtoH", _to_host),
    ("cuMemcpyDtoD", _on_device),
):
    _copies(_name, _copy)


# ---------------------------------------------------------------- streams and events


@call(POINTER, c_uint)
def cuStreamCreate(stream, flags):
    handle = STATE.handle()
    STATE.streams[handle] = STATE.context(), flags
    put_pointer(stream, handle)


@call(HANDLE)
def cuStreamDestroy(stream):
    STATE.finish(stream)
    del STATE.streams[stream]


@call(HANDLE)
def cuStreamSynchronize(stream):
    STATE.finish(stream)


@call(POINTER, c_uint)
def cuEventCreate(event, flags):
    STATE.context()
    handle = STATE.handle()
    STATE.events[handle] = [None, None]  # the stream, and when its turn came
    put_pointer(event, handle)


@call(HANDLE)
def cuEventDestroy(event):
    STATE.found(STATE.events, event)
    del STATE.events[event]


@call(HANDLE, HANDLE)
def cuEventRecord(event, stream):
    record = STATE.found(STATE.events, event)
    record[:] = stream, None
    STATE.enqueue(stream, lambda: record.__setitem__(1, time.perf_counter()))


@call(HANDLE)
def cuEventSynchronize(event):
    stream, _ = STATE.found(STATE.events, event)
    if stream is not None:
        STATE.finish(stream)


@call(POINTER, HANDLE, HANDLE)
def cuEventElapsedTime(milliseconds, start, end):
    (first, begin), (last, done) = (STATE.found(STATE.events, event) for event in (start, end))
    if None in (first, last):
        raise DriverError(INVALID_HANDLE)
    if None in (begin, done):
        raise DriverError(NOT_READY)
    put(c_float, milliseconds, max(1e3 * (done - begin), 1e-3))


# ---------------------------------------------------------------- modules and launches


def _elf_size(image):
    """The bytes of an ELF file in memory: its tables and sections end it."""

    def number(place, size):
        return int.from_bytes(ctypes.string_at(image + place, size), "little")

    programs, sections = number(32, 8), number(40, 8)
    ends = [programs + number(54, 2) * number(56, 2), sections + number(58, 2) * number(60, 2)]
    for i in range(number(60, 2)):
        header = sections + i * number(58, 2)
        if number(header + 4, 4) != 8:  # SHT_NOBITS takes no place
            ends.append(number(header + 24, 8) + number(header + 32, 8))
    return max(ends)


def _ptx_of(image, device):
    """The PTX that an image is made of: itself, or what the package compiled to this cubin."""
    if ctypes.string_at(image, 4) != b"\x7fELF":
        return ctypes.string_at(image).decode()
    cubin = ctypes.string_at(image, _elf_size(image))
    capability = tuple(map(int, STATE.settings.capability.split(".")))
    for (_, compiled_for), code in sys.modules["numba_ce.cuda.compiled"]._codes.items():
        if code.cubin == cubin:
            if compiled_for != capability:
                raise DriverError(NO_BINARY_FOR_GPU)
            return code.ptx
    raise DriverError(INVALID_IMAGE)


@call(POINTER, POINTER)
def cuModuleLoadData(module, image):
    context = STATE.context()
    handle = STATE.handle()
    STATE.modules[handle] = Module(context, _ptx_of(image, STATE.device_of(context)))
    put_pointer(module, handle)


@call(HANDLE)
def cuModuleUnload(module):
    for handle in STATE.found(STATE.modules, module).functions:
        del STATE.functions[handle]
    del STATE.modules[module]


@call(POINTER, HANDLE, c_char_p)
def cuModuleGetFunction(function, module, name):
    found = STATE.found(STATE.modules, module)
    try:
        program = compiled(found.text, name.decode(), False, False)
    except Fault:
        raise DriverError(NOT_FOUND) from None
    static = sum(
        -(-v.size // 16) * 16
        for f in program.module.functions.values()
        for v in f.variables
        if v.space == "shared"
    )
    attributes = {
        MAX_THREADS: program.entry.max_threads or 1024,
        STATIC_SHARED: static,
        MAX_DYNAMIC_SHARED: SHARED_BYTES - static,
    }
    handle = STATE.handle()
    STATE.functions[handle] = found.functions[handle] = Function(found, program, attributes)
    put_pointer(function, handle)


@call(POINTER, c_int, HANDLE)
def cuFuncGetAttribute(value, attribute, function):
    attributes = STATE.found(STATE.functions, function).attributes
    if attribute not in attributes:
        raise DriverError(INVALID_VALUE)
    put(c_int, value, attributes[attribute])


@call(HANDLE, c_int, c_int)
def cuFuncSetAttribute(function, attribute, value):
    attributes = STATE.found(STATE.functions, function).attributes
    allowed = SHARED_BYTES_ON_REQUEST - attributes[STATIC_SHARED]
    if attribute != MAX_DYNAMIC_SHARED or not 0 <= value <= allowed:
        raise DriverError(INVALID_VALUE)
    attributes[attribute] = value


def _parameters(program, pointers, extra):
    """The bytes of each parameter, from an array of pointers or from one buffer of them all."""
    params = program.entry.params
    if pointers:
        addresses = (c_uint64 * len(params)).from_address(pointers)
        return [ctypes.string_at(a, p.size) for a, p in zip(addresses, params, strict=True)]
    words = (c_uint64 * 5).from_address(extra)
    if (words[0], words[2], words[4]) != (1, 2, 0):  # buffer, its size, end
        raise DriverError(INVALID_VALUE)
    buffer = ctypes.string_at(words[1], c_size_t.from_address(words[3]).value)
    if len(buffer) != program.param_bytes:
        raise DriverError(INVALID_VALUE)
    offsets = program.param_offsets
    return [buffer[offsets[p.name] : offsets[p.name] + p.size] for p in params]


@call(HANDLE, *[c_uint] * 7, HANDLE, c_void_p, c_void_p)
def cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, pointers, extra):
    found = STATE.found(STATE.functions, function)
    if STATE.in_stream(stream) != found.module.context:
        raise DriverError(INVALID_CONTEXT)
    attributes, program = found.attributes, found.program
    fits = 0 < bx * by * bz <= attributes[MAX_THREADS] and 0 < gx < 1 << 31
    if not fits or not (0 < gy < 1 << 16 and 0 < gz < 1 << 16):
        raise DriverError(INVALID_VALUE)
    if shared > attributes[MAX_DYNAMIC_SHARED] or (pointers is None) == (extra is None):
        raise DriverError(INVALID_VALUE)
    grid, block, text = (gx, gy, gz), (bx, by, bz), found.module.text
    if any(n % c for n, c in zip(grid, program.entry.cluster or (1, 1, 1), strict=True)):
        raise DriverError(INVALID_CLUSTER_SIZE)
    arguments = _parameters(program, pointers, extra)
    STATE.launches += 1

    def run():
        try:
            STATE.gpu.launch(text, grid, block, arguments, shared, program.entry.name)
        except Fault as fault:  # told by the call that waits, and by all after it
            STATE.faults.append(str(fault))
            STATE.sticky = ILLEGAL_ADDRESS

    STATE.enqueue(stream, run)


# ---------------------------------------------------------------- where they are


@ctypes.CFUNCTYPE(c_void_p, c_char_p, c_int)
def address_of(name, version):
    """What cuGetProcAddress answers: a driver has no call that is newer than itself."""
    callback = CALLS.get(name.decode())
    if callback is None or version > STATE.settings.version:
        return None
    return ctypes.cast(callback, c_void_p).value


ctypes.CDLL("libcuda.so.1").standin_register(address_of)
