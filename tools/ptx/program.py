"""Parsed PTX -> blocks of closures.

Every statement becomes, once, a closure over the numbers of its registers. R, the argument of
all closures, is a list with one value per register: an array with one element per lane, or a
scalar where all lanes hold the same. The arrays hold the lanes that execute, nothing else, so
closures know nothing of masks: schedule.py gathers and scatters around a block, and does neither
where all lanes run together. A value is never changed in place by a closure; it puts a new one.

Besides PTX registers R has: the batch (slot 0), and per lane its number, block, warp and place in
the warp; special registers; addresses of variables; parameters of device functions.
"""

from __future__ import annotations

import functools
import gc

import numpy as np

from . import access, arithmetic, bits, collective, control, convert, select
from .fault import Fault, Unsupported
from .flow import Block, analyse
from .memory import SHARED_START, layout
from .parse import Immediate, Name, Register, parse

INT = np.dtype(np.int64)


class Program:
    """The closures of one kernel; does not depend on a launch, so it is kept."""

    def __init__(self, text, entry, fine, exact):
        self.module = parse(text)
        self.fine, self.exact = fine, exact
        self.entry = self._find_entry(entry)
        self.dtypes = [None, INT, INT, INT, INT]
        self.slots = {}  # name -> slot
        self.constants = {}  # slot -> scalar
        self.special = {}  # "%tid.x" -> slot
        self.symbols = {}  # name of a global variable -> slot of its address
        self.uninitialised = set()  # slots that say whether a register has been written
        self.blocks, self.block = [], None
        self.starts = {}  # function -> index of its first block
        self.returns = {}  # function -> blocks after its calls
        self._variables()
        self._params()
        self.aliases = {}  # parameter of a call -> parameter of the function
        functions = [self.entry, *(f for f in self.module.functions.values() if not f.entry)]
        self.granule = 4  # bytes of a cell of the race check in shared memory
        self.synchronises = False  # blocks may talk to each other through global memory
        for function in functions:
            self._function(function)
        self._link()
        analyse(self)

    # ------------------------------------------------------------------ declarations

    def _find_entry(self, name):
        entries = [f for f in self.module.functions.values() if f.entry]
        if name is not None:
            entries = [f for f in entries if f.name == name]
        if len(entries) != 1:
            names = [f.name for f in self.module.functions.values() if f.entry]
            raise Fault(f"entry={name!r}: the module has {names}")
        return entries[0]

    def _variables(self):
        everywhere = [v for f in self.module.functions.values() for v in f.variables]
        everywhere += self.module.variables
        shared = [v for v in everywhere if v.space == "shared" and v.size]
        # Dynamic shared memory comes last, and its variables all begin at the same place.
        self.addresses, self.shared_flags = layout(shared, SHARED_START, 64)
        self.dynamic_start = SHARED_START + self.shared_flags.size
        for item in everywhere:
            if item.space == "shared" and not item.size:
                self.addresses[item.name] = self.dynamic_start
        # The first 128 bytes of local memory belong to nobody
        local = [v for v in everywhere if v.space == "local"]
        addresses, flags = layout(local, 128, 64)
        self.addresses |= addresses
        self.local_flags = np.concatenate([np.zeros(128, np.uint8), flags])
        self.globals = {v.name: v for v in everywhere if v.space in ("global", "const")}

    def _params(self):
        """Parameters of the kernel lie one after another, as in the constant bank."""
        self.param_offsets, top = {}, 0
        for item in self.entry.params:
            top = -(-top // item.align) * item.align
            self.param_offsets[item.name] = top
            top += item.size
        self.param_bytes = top

    # ------------------------------------------------------------------ slots and operands

    def new_slot(self, dtype):
        self.dtypes.append(np.dtype(dtype))
        return len(self.dtypes) - 1

    def named_slot(self, name, dtype):
        if name not in self.slots:
            self.slots[name] = self.new_slot(dtype)
        return self.slots[name]

    def constant(self, value):
        slot = self.named_slot(("constant", value.dtype.str, value.tobytes()), value.dtype)
        self.constants[slot] = value
        return slot

    def use(self, slot):
        if slot not in self.block.defs and slot not in self.constants:
            self.block.uses.setdefault(slot, self.statement)
        return slot

    def source(self, operand, dtype):
        """(slot or None, constant or None) of an operand read as dtype."""
        if isinstance(operand, Immediate):
            return None, operand.cast(dtype)
        if isinstance(operand, Register):
            return self.use(self.register(operand)), None
        if isinstance(operand, Name):
            if operand.name in self.addresses:
                return None, np.dtype(dtype).type(self.addresses[operand.name])
            if operand.name in self.globals:
                return self.use(self.symbol(operand.name)), None
        raise Unsupported(f"operand {operand} of {self.statement}")

    def symbol(self, name):
        slot = self.named_slot(("symbol", name), np.uint64)
        self.symbols[name] = slot
        return slot

    def register(self, operand):
        if operand.name in self.function.registers:
            return self.named_slot(operand.name, self.function.registers[operand.name])
        kind = np.uint64 if operand.name in ("%clock64", "%globaltimer") else np.uint32
        slot = self.named_slot(operand.name, kind)
        self.special[operand.name] = slot
        return slot

    def slot(self, operand, dtype):
        """The slot of an operand; constants get one too."""
        slot, constant = self.source(operand, np.dtype(dtype))
        return self.constant(constant) if slot is None else slot

    def target(self, operand):
        """The slot that an instruction writes; for the sink `_` one that nobody reads."""
        slot = self.named_slot("_", np.uint64) if operand is None else self.register(operand)
        self.block.defs.add(slot)
        return slot

    def fetch(self, operand, dtype):
        """A function of R that gives the operand as dtype; wider registers are cut."""
        dtype = np.dtype(dtype)
        slot, constant = self.source(operand, dtype)
        if slot is None:
            return lambda R: constant
        stored = self.dtypes[slot]
        if stored == dtype:
            return lambda R: R[slot]
        if stored.itemsize == dtype.itemsize:
            return lambda R: R[slot].view(dtype)
        unsigned, cut = np.dtype(f"u{stored.itemsize}"), np.dtype(f"u{dtype.itemsize}")
        if stored.kind == "b" or dtype.kind == "b":
            return lambda R: R[slot].astype(dtype)
        return lambda R: R[slot].view(unsigned).astype(cut).view(dtype)

    def put(self, operand, dtype):
        """A function of (R, value of dtype) that writes; wider registers are extended."""
        dtype = np.dtype(dtype)
        slot = self.target(operand)
        stored = self.dtypes[slot]

        def same(R, value):
            R[slot] = value

        def view(R, value):
            R[slot] = value.view(stored)

        def wider(R, value):
            R[slot] = value.astype(middle).view(stored)

        if stored == dtype or operand is None:
            return same
        if stored.itemsize == dtype.itemsize and "b" not in (stored.kind, dtype.kind):
            return view
        signed = dtype.kind == "i"
        middle = np.dtype(f"{'i' if signed else 'u'}{stored.itemsize}")
        return wider

    def address(self, operand, dtype=np.uint64):
        """A function of R that gives base + offset as 64-bit numbers."""
        offset = np.uint64(operand.offset & (2**64 - 1))
        if isinstance(operand.base, str):
            if operand.base in self.addresses:
                fixed = np.uint64(self.addresses[operand.base] + operand.offset)
                return lambda R: fixed
            if operand.base not in self.globals:
                raise Unsupported(f"address {operand} of {self.statement}")
            base = self.use(self.symbol(operand.base))
        elif operand.base is None:
            return lambda R: offset
        else:
            base = self.use(self.register(operand.base))
        if self.dtypes[base].itemsize == 4:
            return lambda R: R[base].astype(np.uint64) + offset
        if not offset:
            return lambda R: R[base]
        return lambda R: np.add(R[base], offset)

    def emit(self, closure):
        self.block.code.append(closure)

    # ------------------------------------------------------------------ blocks

    def start_block(self):
        """A new block, unless the present one is still empty."""
        if self.block is not None and not self.block.count and self.block.guard is None:
            return self.block
        self.block = Block(len(self.blocks), self.statement)
        self.blocks.append(self.block)
        return self.block

    def end_block(self, end, target=None):
        """The present statement ends its block."""
        self.block.end, self.block.target = end, target
        self.block.count += 1
        self.start_block()

    def _function(self, function):
        self.function = function
        self._find_aliases(function)
        at = {}  # statement index -> labels
        for label, place in function.labels.items():
            at.setdefault(place, []).append(label)
        self.labels = {}
        self.statement = function.statements[0] if function.statements else None
        self.block = None
        self.starts[function.name] = self.start_block().index
        for place, statement in enumerate(function.statements):
            self.statement = statement
            if place in at:
                self.start_block()
                self.labels |= dict.fromkeys(at[place], self.block.index)
            self._statement(statement)
        if self.block.count == 0:  # the end of the text is a return
            self.block.end = "exit" if function.entry else "return"
            self.block.target = function.name
            self.labels |= dict.fromkeys(at.get(len(function.statements), []), self.block.index)
            if not function.entry:
                self.use(self.named_slot(("return", function.name), INT))
        else:
            raise Fault(f"{function.name} ends without ret")
        self._resolve_labels(function)

    def _find_aliases(self, function):
        """Parameters declared for a call are those of the function that is called."""
        for statement in function.statements:
            if statement.op[0] == "call":
                results, name, arguments = statement.operands
                callee = self.module.functions.get(name)
                if callee is None:
                    continue  # an error only if it is executed
                for here, there in zip(
                    results + arguments, callee.results + callee.params, strict=True
                ):
                    if isinstance(here, Name):
                        self.aliases[here.name] = callee.name, there.name

    def _resolve_labels(self, function):
        for block in self.blocks[self.starts[function.name] :]:
            if block.end == "jump":
                block.target = self._label(block.target, block)
            elif block.end == "branch":
                slot, negated, label = block.target
                block.target = slot, negated, self._label(label, block)
            elif block.end == "table":
                slot, table = block.target
                labels = function.tables[table]
                block.target = slot, [self._label(label, block) for label in labels]

    def _label(self, name, block):
        if name not in self.labels:
            raise Fault(f"no label {name!r} for {block.statement}")
        return self.labels[name]

    def _statement(self, statement):
        op = statement.op
        if op[0] == "bra":
            self._branch(statement)
            return
        handler = HANDLERS.get(op[0])
        if handler is None:
            raise Unsupported(f"instruction {statement}")
        alone = op[0] in collective.ALONE or (self.fine and op[0] in access.MEMORY)
        if statement.guard is not None or alone:
            self.start_block()
        if statement.guard is not None:
            register, negated = statement.guard
            self.block.guard = self.use(self.register(register)), negated
            self.block.count = 0
        self.block.statement = statement if self.block.count == 0 else self.block.statement
        here = self.block
        handler(self, statement)
        if self.block is here:
            here.count += 1
            if statement.guard is not None or alone:
                self.start_block()

    def _branch(self, statement):
        label = statement.operands[0].name
        if statement.guard is None:
            self.end_block("jump", label)
        else:
            register, negated = statement.guard
            self.end_block("branch", (self.use(self.register(register)), negated, label))

    # ------------------------------------------------------------------ flow of data

    def _link(self):
        for block in self.blocks:
            if block.end == "call":
                name = block.target
                self.returns.setdefault(name, []).append(block.index + 1)
                block.target = self.starts[name]
        for function in self.module.functions:
            self.returns.setdefault(function, [])
        self.first = self.starts[self.entry.name]


HANDLERS = {
    **arithmetic.HANDLERS,
    **select.HANDLERS,
    **bits.HANDLERS,
    **convert.HANDLERS,
    **access.HANDLERS,
    **collective.HANDLERS,
    **control.HANDLERS,
}


@functools.lru_cache(maxsize=64)
def compiled(text, entry, fine, exact):
    """The program of a PTX text, decoded once per process."""
    collects = gc.isenabled()
    gc.disable()  # so many objects that stay make the collector take a third of the time
    try:
        with np.errstate(all="ignore"):
            return Program(text, entry, fine, exact)
    finally:
        if collects:
            gc.enable()
