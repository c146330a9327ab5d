"""PTX text -> functions, each a list of statements, and the module's variables.

Nothing is interpreted here: operands are recognised (register, number, address, vector, name),
names of registers are made unique, and every statement remembers its line.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .fault import Fault, Unsupported

# Storage of a value of each PTX type. Half precision lives in integers of its width: NumPy has no
# bfloat16, and the arithmetic on both goes through float32 or float64 anyway.
DTYPES = {
    **{f"u{n}": np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64)},
    **{f"s{n}": np.dtype(f"i{n // 8}") for n in (8, 16, 32, 64)},
    **{f"b{n}": np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64)},
    "f16": np.dtype("u2"),
    "bf16": np.dtype("u2"),
    "f16x2": np.dtype("u4"),
    "bf16x2": np.dtype("u4"),
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "pred": np.dtype("?"),
}


@dataclass(frozen=True)
class Register:
    name: str  # unique in the module


@dataclass(frozen=True)
class Immediate:
    """An integer, or a float given by its bits."""

    value: int | float

    def cast(self, dtype):
        if dtype.kind == "b":
            return np.bool_(bool(self.value))
        if dtype.kind == "f":
            return dtype.type(self.value)
        if isinstance(self.value, float):  # a float literal moved as bits
            kind = {4: np.float32, 8: np.float64}[dtype.itemsize]
            return np.array(self.value, kind).view(dtype)[()]
        bits = int(self.value) & ((1 << 8 * dtype.itemsize) - 1)
        return np.array(bits, f"u{dtype.itemsize}").view(dtype)[()]


@dataclass(frozen=True)
class Address:
    base: Register | str | None  # a register, the name of a variable, or nothing
    offset: int


@dataclass(frozen=True)
class Vector:
    items: tuple


@dataclass(frozen=True)
class Name:
    """A label, a variable, a function or a parameter."""

    name: str


@dataclass
class Statement:
    op: tuple[str, ...]  # "ld.global.v4.f32" split at the dots
    operands: list
    guard: tuple[Register, bool] | None  # (register, True for @!p)
    line: int
    text: str

    def __str__(self):
        return f"{self.text!r} (PTX line {self.line})"


@dataclass
class Variable:
    name: str
    space: str
    dtype: np.dtype
    size: int  # bytes; 0: dynamic shared memory
    align: int
    values: list = field(default_factory=list)


@dataclass
class Function:
    name: str
    entry: bool
    params: list[Variable]
    results: list[Variable]
    statements: list[Statement] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name -> index into statements
    registers: dict[str, np.dtype] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)  # local and shared ones
    tables: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets
    cluster: tuple[int, ...] | None = None
    max_threads: int | None = None


class Module(NamedTuple):
    functions: dict[str, Function]
    variables: list[Variable]


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{};\n]|[^{};\n"]+')
_LABEL = re.compile(r"\s*([\w$%]+)\s*:(?!:)")
_FUNCTION = re.compile(
    r"\.(entry|func)\s+(?:\((?P<results>[^)]*)\)\s*)?(?P<name>[\w$]+)\s*"
    r"(?:\((?P<params>[^)]*)\))?(?P<rest>.*)",
    re.S,
)
_VARIABLE = re.compile(
    r"\.(?P<space>shared|global|const|local|param)\s+(?:\.align\s+(?P<align>\d+)\s+)?"
    r"(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?\.(?P<type>\w+)\s*(?:\.ptr[\s.\w]*?)?\s*"
    r"(?P<name>[\w$%]+)\s*(?P<array>(?:\[\s*\d*\s*\])*)\s*(?:=\s*(?P<values>.*))?$",
    re.S,
)
_ADDRESS = re.compile(r"^\[\s*([^+\]\s]+)\s*(?:\+\s*(-?\w+))?\s*\]$")
_CALL = re.compile(r"(?:\(([^)]*)\)\s*,\s*)?([\w$%]+)\s*(?:,\s*\(([^)]*)\))?\s*(.*)$")
_BRACKET = re.compile(r"[{\[(]")
_NUMBER = re.compile(r"^[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")


def statements_of(text):
    """(kind, text, line): kind is 'open', 'close', 'end' (of a statement, text without ;)."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    pending, start, line, vector = "", 1, 1, 0
    for token in _TOKEN.findall(text):
        if token == "\n":
            line += 1
            # Directives that end with their line instead of a semicolon.
            if re.match(r"\s*\.(version|target|address_size|file|loc)\b", pending):
                pending = ""
            else:
                pending += " "
            continue
        if not pending.strip():
            start = line
        if token == "{":
            before = pending.strip()
            if not before or before.endswith(":") or _opens_body(before):
                yield "open", before, start
                pending = ""
            else:
                vector += 1
                pending += token
        elif token == "}":
            if vector:
                vector -= 1
                pending += token
            else:
                if pending.strip():
                    yield "end", pending.strip(), start
                yield "close", "", line
                pending = ""
        elif token == ";":
            yield "end", pending.strip(), start
            pending = ""
        else:
            pending += token


def _opens_body(before):
    return re.search(r"\.(entry|func)\b", before) is not None or before.startswith(".section")


def number(text):
    """The value of a literal, or None."""
    if _NUMBER.match(text):
        text = text.rstrip("U")
        digits = text.lstrip("+-")
        octal = len(digits) > 1 and digits[0] == "0" and digits[1:].isdigit()
        return int(text, 8 if octal else 0)
    if re.match(r"^0[fF][0-9a-fA-F]{8}$", text):
        return struct.unpack(">f", bytes.fromhex(text[2:]))[0]
    if re.match(r"^0[dD][0-9a-fA-F]{16}$", text):
        return struct.unpack(">d", bytes.fromhex(text[2:]))[0]
    if re.match(r"^-?\d+\.\d*(e[-+]?\d+)?$", text):
        return float(text)
    return None


def variable(text):
    """A declaration such as `.shared .align 4 .b8 name[128]`, or None."""
    match = _VARIABLE.search(text)
    if match is None:
        return None
    dtype = DTYPES[match["type"]]
    counts = re.findall(r"\[\s*(\d*)\s*\]", match["array"])
    size = dtype.itemsize
    for count in counts:
        size *= int(count or 0)
    values = []
    if match["values"]:
        for item in re.findall(r"[^\s,{}]+", match["values"]):
            value = number(item)
            if value is None:
                raise Unsupported(f"initial value {item!r} in {text!r}")
            values.append(value)
    align = int(match["align"] or dtype.itemsize)
    return Variable(match["name"], match["space"], dtype, size, align, values)


class _Body:
    """Reads the statements of one function and resolves names by scope."""

    def __init__(self, function, place):
        self.function, self.place = function, place  # place: its number in the module
        self.scopes = []  # [(number of the scope, {name as written: unique name})]
        self.count = 0

    def open(self):
        self.count += 1
        self.scopes.append((self.count, {}))

    def close(self):
        self.scopes.pop()

    def resolve(self, name):
        for _, names in reversed(self.scopes):
            if name in names:
                return names[name]
        return None

    def declare(self, name):
        """A name for something declared here that is unique in the module."""
        number, names = self.scopes[-1]
        if name in names:
            raise Fault(f"{name} is declared twice")
        unique = f"{self.place}/{name}" if number == 1 else f"{self.place}/{name}@{number}"
        names[name] = unique
        return unique

    def declare_registers(self, text):
        match = re.match(r"\.reg\s+(?:\.v[24]\s+)?\.(\w+)\s+(.*)", text, re.S)
        dtype = DTYPES[match[1]]
        for name in re.split(r"\s*,\s*", match[2].strip()):
            many = re.match(r"(.+?)<(\d+)>$", name)
            names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
            for one in names:
                self.function.registers[self.declare(one)] = dtype

    def operand(self, text):
        text = text.strip()
        if text.startswith("{"):
            return Vector(tuple(self.operand(item) for item in split(text[1:-1])))
        if text.startswith("["):
            return self.address(text)
        if text == "_":
            return None
        if "|" in text:
            return tuple(self.operand(part) for part in text.split("|"))
        unique = self.resolve(text)
        if unique in self.function.registers:
            return Register(unique)
        value = number(text)
        if value is not None:
            return Immediate(value)
        if text == "WARP_SZ":
            return Immediate(32)
        if text.startswith("%"):
            return Register(text)  # a special register
        if text.startswith("!"):
            return ("not", self.operand(text[1:]))
        return Name(unique or text)

    def address(self, text):
        match = _ADDRESS.match(text)
        if match is None:
            raise Unsupported(f"address {text!r}")
        base, offset = match[1], int(match[2] or "0", 0)
        value = number(base)
        if value is not None:
            return Address(None, value + offset)
        unique = self.resolve(base)
        if unique in self.function.registers:
            return Address(Register(unique), offset)
        return Address(unique or base, offset)

    def statement(self, text, line):
        while match := _LABEL.match(text):
            # A label may be used before its scope declares it, and inline assembly gives its
            # labels unique names itself, so labels are names of the function.
            self.function.labels[match[1]] = len(self.function.statements)
            text = text[match.end() :]
            if table := re.match(r"\s*\.branchtargets\s+(.*)", text, re.S):
                self.function.tables[match[1]] = split(table[1])
                return
        text = " ".join(text.split())
        if not text:
            return
        if text.startswith(".reg"):
            self.declare_registers(text)
            return
        if text.startswith("."):
            declared = variable(text)
            if declared is not None:
                declared.name = self.declare(declared.name)
                if declared.space != "param":
                    self.function.variables.append(declared)
            return  # .pragma, .loc and the like change nothing here
        guard = None
        if match := re.match(r"@(!?)\s*(\S+)\s+", text):
            guard = (self.operand(match[2]), bool(match[1]))
            text = text[match.end() :]
        op, _, rest = text.partition(" ")
        if op.startswith("call"):
            operands = self.call_operands(rest)
        else:
            operands = [self.operand(item) for item in split(rest)]
        statement = Statement(tuple(op.split(".")), operands, guard, line, text)
        self.function.statements.append(statement)

    def call_operands(self, rest):
        """[results, function name, arguments]"""
        results, name, arguments, more = _CALL.match(rest).groups()
        if name.startswith("%") or more:
            raise Unsupported(f"indirect call {rest!r}")

        names = [[self.operand(item) for item in split(t or "")] for t in (results, arguments)]
        return [names[0], name, names[1]]


def split(text):
    """Splits at the commas outside braces and brackets."""
    if not _BRACKET.search(text):
        return [item.strip() for item in text.split(",")] if text.strip() else []
    items, depth, item = [], 0, ""
    for character in text:
        if character == "," and not depth:
            items.append(item.strip())
            item = ""
            continue
        depth += (character in "{[(") - (character in "}])")
        item += character
    if item.strip():
        items.append(item.strip())
    return items


def _function(header):
    match = _FUNCTION.search(header)
    rest = match["rest"]

    cluster = re.search(r"\.reqnctapercluster\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", rest)
    threads = re.search(r"\.(?:maxntid|reqntid)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", rest)
    return Function(
        match["name"],
        match[1] == "entry",
        [variable(item) for item in split(match["params"] or "")],
        [variable(item) for item in split(match["results"] or "")],
        cluster=tuple(int(n or 1) for n in cluster.groups()) if cluster else None,
        max_threads=int(np.prod([int(n) for n in threads.groups() if n])) if threads else None,
    )


def parse(text):
    """The module a PTX text describes."""
    module, body = Module({}, []), None
    text = text.rstrip("\0")
    for kind, part, line in statements_of(text):
        try:
            if body is None:
                if kind == "open":
                    body = _Body(_function(part), len(module.functions))
                    body.open()
                elif kind == "end" and (declared := variable(part)) and "(" not in part:
                    module.variables.append(declared)
                continue
            if kind == "open":
                if part:  # a label before a scope
                    body.statement(part, line)
                body.open()
            elif kind == "close":
                body.close()
                if not body.scopes:
                    module.functions[body.function.name] = body.function
                    body = None
            else:
                body.statement(part, line)
        except Fault as error:
            raise type(error)(f"{error} (PTX line {line})") from None
        except Exception as error:
            raise Fault(f"cannot read PTX line {line}: {part!r}: {error!r}") from error
    if body is not None:
        raise Fault(f"the body of {body.function.name} does not end")
    return module
