"""What the stand-in driver keeps, and the rules that all its calls share."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import Counter
from dataclasses import dataclass, field

from tools.ptx import Device

from . import SETTINGS

SUCCESS = 0
LEGACY, LEGACY_TOO, OF_A_THREAD = 0, 1, 2  # streams that need not be made
NON_BLOCKING = 1  # the flag of a stream that does not wait for the legacy one
INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED = 1, 2, 3
NO_DEVICE, INVALID_DEVICE, INVALID_IMAGE, INVALID_CONTEXT = 100, 101, 200, 201
INVALID_HANDLE, NOT_FOUND, ILLEGAL_ADDRESS, NOT_SUPPORTED = 400, 500, 700, 801
NOT_READY, INVALID_CLUSTER_SIZE = 600, 912
# These do what they are called for, and tell of an earlier failure
DESTROYING = ("Free", "Destroy", "Unload", "Pop", "Release")
# These need neither cuInit nor a working device
WITHOUT_DEVICE = ("cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString")


class DriverError(Exception):
    """Ends a call with a code."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


@dataclass
class Settings:
    """Of a process; NUMBA_CE_STANDIN=devices=2,fail=cuInit:1:100 sets them from outside."""

    devices: int = 1
    capability: str = "9.0"
    version: int = 13050
    pools: int = 1
    bytes: int = 1 << 30  # of memory, of all devices together
    fail: str = ""  # call:use:code, several with + between them

    @classmethod
    def of_environment(cls):
        pairs = (p.partition("=") for p in os.environ.get(SETTINGS, "").split(",") if "=" in p)
        types = cls.__dataclass_fields__
        return cls(**{name: type(types[name].default)(value) for name, _, value in pairs})


@dataclass
class Module:
    context: int
    text: str
    functions: dict = field(default_factory=dict)  # handle -> Function


@dataclass
class Function:
    module: Module
    program: object  # of the interpreter
    attributes: dict


class State:
    """Contexts, memory, streams, events and modules, each by its handle; and a log of the calls.

    What goes into a stream is done as late as the rules of CUDA allow: when something waits for it.
    """

    def __init__(self):
        self.settings = Settings.of_environment()
        self.lock = threading.RLock()
        self.pid = None  # of the process that called cuInit
        self.gpu = Device()
        self.thread = threading.local()
        self.retained = Counter()  # by device
        self.attributes = {}  # device -> where it differs from the others
        self.allocated = {}  # address -> (bytes, device, from a pool)
        self.pinned = {}  # address -> buffer
        self.streams, self.events, self.modules, self.functions = {}, {}, {}, {}
        self._handles = iter(range(0x7000, 1 << 40, 16))
        self.pending = []  # (context, stream, work), in the order of the calls
        self.leaving = set()  # addresses that a stream has still to free
        self.log = []  # (call, code)
        self.faults = []  # of the interpreter, in words
        self.sticky = SUCCESS  # what a context answers after a kernel went wrong
        self.launches = 0
        self.failures = {}
        for entry in filter(None, self.settings.fail.split("+")):
            name, use, code = entry.split(":")
            self.fail(name, int(code), int(use))

    def fail(self, name, code, use=1, sticky=False):
        """Make the use of a call, counted from now on, fail with a code.

        sticky : all calls after it fail in the same way, as after a kernel's wild access
        """
        self.failures.setdefault(name, {})[use] = code, sticky

    def handle(self):
        """A number that nothing else has."""
        return next(self._handles)

    def live(self):
        """How many there are of all that has to be given back, the streams being empty."""
        with self.lock:
            self.finish()
        kinds = ("allocated", "pinned", "streams", "events", "modules")
        return {kind: len(getattr(self, kind)) for kind in kinds} | {
            "contexts": +self.retained.copy()
        }

    def perform(self, name, function, arguments):
        """One call: its code, after the rules for all of them."""
        with self.lock:
            code = self._perform(name, function, arguments)
            self.log.append((name, code))
            return code

    def _perform(self, name, function, arguments):
        if name not in WITHOUT_DEVICE:
            if self.pid != os.getpid():
                return NOT_INITIALIZED
            if self.sticky:
                return self.sticky
        code = self._injected(name)
        if code and not any(word in name for word in DESTROYING):
            return code
        try:
            function(*arguments)
        except DriverError as error:
            return error.code
        return code or (SUCCESS if name in WITHOUT_DEVICE else self.sticky)

    def _injected(self, name):
        pending, now = {}, SUCCESS
        for use, (code, sticky) in self.failures.pop(name, {}).items():
            if use > 1:
                pending[use - 1] = code, sticky
                continue
            now = code
            if sticky:
                self.sticky = code
        if pending:
            self.failures[name] = pending
        return now

    # ---------------------------------------------------------------- contexts

    @property
    def contexts(self):
        """Of this thread, the current one last."""
        if not hasattr(self.thread, "contexts"):
            self.thread.contexts = []
        return self.thread.contexts

    def context(self):
        """The current one; an error if there is none, or it is gone."""
        if not self.contexts or not self.retained[self.device_of(self.contexts[-1])]:
            raise DriverError(INVALID_CONTEXT)
        return self.contexts[-1]

    def context_of(self, device):
        """The primary context of a device, a handle."""
        self.check_device(device)
        return 0x100 + device

    def device_of(self, context):
        """The device of a primary context."""
        device = context - 0x100
        self.check_device(device, INVALID_CONTEXT)
        return device

    def check_device(self, device, code=INVALID_DEVICE):
        if not 0 <= device < self.settings.devices:
            raise DriverError(code)

    def in_stream(self, stream):
        """The context in which a stream works; 0, 1 and 2 are those of the current one."""
        if stream in (LEGACY, LEGACY_TOO, OF_A_THREAD):
            return self.context()
        return self.found(self.streams, stream)[0]

    def enqueue(self, stream, work):
        """Do some work (a function) when its turn comes in a stream."""
        self.pending.append((self.in_stream(stream), self._queue(stream), work))

    def _queue(self, stream):
        if stream == OF_A_THREAD:
            return stream, threading.get_ident()
        return LEGACY if stream == LEGACY_TOO else stream

    def _blocks(self, queue):
        """Whether a queue and the legacy one wait for each other."""
        return queue not in self.streams or not self.streams[queue][1] & NON_BLOCKING

    def finish(self, stream=None):
        """Do all work that a stream waits for, or everything."""
        if stream is None:
            # Streams that wait for no other come last: the order of calls promises nothing
            needed, self.pending = sorted(self.pending, key=lambda e: not self._blocks(e[1])), []
        else:
            context, queue = self.in_stream(stream), self._queue(stream)
            needed, left, wanted = [], [], {queue}
            for entry in reversed(self.pending):
                where, queue, _ = entry
                waits = LEGACY in wanted and self._blocks(queue)
                if where == context and (queue in wanted or waits):
                    needed.insert(0, entry)
                    wanted |= {queue, LEGACY} if self._blocks(queue) else {queue}
                else:
                    left.insert(0, entry)
            self.pending = left
        for _, _, work in needed:
            if not self.sticky:
                work()

    @staticmethod
    def found(table, handle):
        """What a handle stands for."""
        if handle not in table:
            raise DriverError(INVALID_HANDLE)
        return table[handle]

    # ---------------------------------------------------------------- memory

    def allocate(self, nbytes, context, pooled):
        """An address; the interpreter's memory is the device's."""
        if nbytes == 0:
            raise DriverError(INVALID_VALUE)
        used = sum(size for size, *_ in self.allocated.values())
        if used + nbytes > self.settings.bytes:
            raise DriverError(OUT_OF_MEMORY)
        address = self.gpu.empty(nbytes)
        self.allocated[address] = nbytes, self.device_of(context), pooled
        return address

    def check_freeable(self, address):
        if address not in self.allocated or address in self.leaving:
            raise DriverError(INVALID_VALUE)

    def free(self, address):
        del self.allocated[address]
        self.leaving.discard(address)
        self.gpu.free(address)

    def allocation(self, address):
        """(start, bytes, device) of what an address lies in."""
        for start, (nbytes, device, _) in self.allocated.items():
            if start <= address < start + nbytes:
                return start, nbytes, device
        raise DriverError(INVALID_VALUE)

    def bytes_at(self, address, nbytes):
        """(data, flags) of device memory, all in one allocation."""
        start, size, _ = self.allocation(address)
        if address + nbytes > start + size:
            raise DriverError(INVALID_VALUE)
        return self.gpu.memory.bytes_of(address, nbytes)


def put(kind, address, value):
    """Write a result where the caller wants it."""
    if address:
        kind.from_address(address).value = value


def put_pointer(address, value):
    put(ctypes.c_uint64, address, value)


STATE = State()
