"""PTX, the assembly language that NVRTC makes of CUDA C++, translated to C: one function for one thread of a kernel.

Registers become variables that hold bits; what an instruction means follows the PTX ISA manual's section of its name.
What threads do together (barriers, shuffles, tensor cores) is in device.h.
"""

import re
from typing import NamedTuple

from .effects import Writer
from .operands import UnknownInstruction, c_name, size_of

# What makes threads of a block wait for one another; a kernel without any of it runs one thread after the other.
TOGETHER = re.compile(r"\b(bar|barrier|shfl|vote|ldmatrix|mma|activemask|match|redux|elect|call)\b")


class Parameter(NamedTuple):
    """Where a kernel's parameter lies in the block of all parameters."""

    offset: int
    size: int


class Entry(NamedTuple):
    """What a launch needs to know of a kernel."""

    name: str
    parameters: list[Parameter]
    shared: int  # bytes of static shared memory; the dynamic part follows
    together: bool


def translate(ptx: str) -> tuple[str, list[Entry]]:
    """Return a module as C and its kernels; raises UnknownInstruction for what the imitation lacks."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", ptx, flags=re.DOTALL)
    text = re.sub(r"^\s*\.(version|target|address_size|file|loc|section)\b[^\n]*", "", text, flags=re.MULTILINE)
    symbols: dict[str, str] = {}  # a variable's address
    output, entries, prototypes, shared = ['#include "device.h"\n'], [], [], 0
    at = 0
    while at < len(text := text.rstrip()):
        if match := re.compile(r"\s*((?:\.(?:visible|weak|extern|noreturn)\s+)*)\.(entry|func)\b").match(text, at):
            opened, declared = text.find("{", at), text.find(";", at)
            if declared != -1 and (declared < opened or opened == -1):
                at = declared + 1
                continue
            header, closed = text[match.end() : opened], _closing(text, opened)
            body, at = text[opened + 1 : closed], closed + 1
            if match[2] == "entry":
                code, entry = _entry(header, body, symbols, shared)
                entries.append(entry)
            else:
                prototype, code = _function(header, body, symbols, shared)
                prototypes.append(prototype + ";\n")
            output.append(code)
        else:
            end = text.index(";", at)
            declaration = Variable.parse(text[at:end])
            at = end + 1
            if declaration is None:
                continue
            if declaration.space == "shared":
                shared = declaration.place(shared, symbols)
            else:
                output.append(declaration.definition())
                symbols[declaration.name] = f"(uint64_t){c_name(declaration.name)}"
    return "".join(output[:1] + prototypes + output[1:]), entries


def _closing(text: str, opened: int) -> int:
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, opened):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise UnknownInstruction("a brace that is never closed")


class Variable(NamedTuple):
    """.global, .const, .shared, .local or .param variable."""

    space: str
    align: int
    type: str
    name: str
    length: int | None  # None for a scalar, 0 for an array of unknown length
    values: str

    @classmethod
    def parse(cls, text: str) -> "Variable | None":
        match = re.match(
            r"\s*(?:\.(?:visible|weak|extern|common)\s+)*\.(global|const|shared|local|param)\s+(?:\.align\s+(\d+)\s+)?"
            r"(?:\.ptr\s*(?:\.\w+\s*)?(?:\.align\s+\d+\s*)?)?\.(\w+)\s+(?:\.ptr\s*(?:\.\w+\s*)?(?:\.align\s+\d+\s*)?)?"
            r"([\w$%]+)\s*(\[\s*\d*\s*\])?\s*(?:=\s*(.*))?$",
            text,
            re.DOTALL,
        )
        if match is None:
            return None
        space, align, kind, name, array, values = match.groups()
        length = None if array is None else int(array.strip("[] ") or 0)
        return cls(space, int(align or size_of(kind)), kind, name, length, values or "")

    @property
    def bytes(self) -> int:
        return size_of(self.type) * (1 if self.length is None else self.length)

    def place(self, start: int, symbols: dict[str, str]) -> int:
        """Give a shared variable its offset; return where the next one may begin. The dynamic array has no length."""
        if self.length == 0:
            symbols[self.name] = "B->static_shared"
            return start
        offset = -(-start // self.align) * self.align
        symbols[self.name] = str(offset)
        return offset + self.bytes

    def definition(self) -> str:
        """A C array with the variable's values."""
        bits = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}[size_of(self.type)]
        values = re.sub(r"\b0[fd]([0-9A-Fa-f]+)", r"0x\1", self.values).strip("{} \n")
        count = 1 if self.length is None else self.length
        return (
            f"static {bits} {c_name(self.name)}[{count}] __attribute__((aligned({max(self.align, 1)})))"
            f" = {{{values}}};\n"
        )


def _parameters(header: str) -> tuple[list[Variable], list[Variable], str]:
    """(results, parameters, name) of `(.param ...) name(.param ..., ...)`."""
    match = re.match(r"\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*(?:\(([^)]*)\))?", header)
    assert match is not None

    def variables(text: str | None) -> list[Variable]:
        return [v for piece in (text or "").split(",") if piece.strip() and (v := Variable.parse(piece.strip()))]

    return variables(match[1]), variables(match[3]), match[2]


def _entry(header: str, body: str, symbols: dict[str, str], shared: int) -> tuple[str, Entry]:
    _, variables, name = _parameters(header)
    symbols, places, offset = dict(symbols), [], 0
    for v in variables:
        offset = -(-offset // v.align) * v.align
        places.append(Parameter(offset, v.bytes))
        symbols[v.name] = f"(uint64_t)(params + {offset})"
        offset += v.bytes
    code, shared = _body(body, symbols, shared)
    text = f"void {c_name(name)}(Thread *T, uint8_t *params) {{\nBlock *B = T->block;\n{code}}}\n"
    return text, Entry(name, places, -(-shared // 128) * 128, bool(TOGETHER.search(body)))


def _function(header: str, body: str, symbols: dict[str, str], shared: int) -> tuple[str, str]:
    results, variables, name = _parameters(header)
    symbols = dict(symbols)
    for v in results + variables:
        symbols[v.name] = f"(uint64_t)p_{c_name(v.name)}"
    parameters = "".join(f", uint8_t *p_{c_name(v.name)}" for v in results + variables)
    prototype = f"static void {c_name(name)}(Thread *T{parameters})"
    code, _ = _body(body, symbols, shared)
    return prototype, f"{prototype} {{\nBlock *B = T->block;\n{code}}}\n"


STATEMENT = re.compile(r"\s*(?:([{}])|([\w$]+):(?!:)|([^;]*);)", re.DOTALL)


def _body(body: str, symbols: dict[str, str], shared: int) -> tuple[str, int]:
    """The C statements of a function's body, and the end of its shared variables."""
    writer = Writer(symbols)
    tables: dict[str, list[str]] = {}
    for label, targets in re.findall(r"([\w$]+):\s*\.branchtargets\s+([^;]*);", body):
        tables[label] = [target.strip() for target in targets.split(",")]
    writer.tables = tables
    at = 0
    while match := STATEMENT.match(body, at):
        at = match.end()
        brace, label, statement = match.groups()
        if brace:
            writer.flush()
            writer.lines.append(brace)
        elif label:
            if label not in tables:
                writer.flush()
                writer.lines.append(f"{c_name(label)}:;")
        elif statement.startswith("."):
            shared = _declare(statement, writer, shared)
        elif statement:
            writer.instruction(" ".join(statement.split()))
    writer.flush()
    return "\n".join(writer.lines) + "\n", shared


def _declare(statement: str, writer: Writer, shared: int) -> int:
    """A .reg, .local, .shared or .param declaration inside a body."""
    if match := re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.DOTALL):
        for name in match[2].split(","):
            prefix, _, count = name.strip().partition("<")
            names = [f"{prefix}{i}" for i in range(int(count.rstrip(">")))] if count else [prefix]
            writer.declare(match[1], names)
        return shared
    if re.match(r"\.(pragma|loc|branchtargets|callprototype)", statement):
        return shared
    variable = Variable.parse(statement)
    if variable is None:
        raise UnknownInstruction(f"declaration {statement!r}")
    if variable.space == "shared":
        return variable.place(shared, writer.symbols)
    name = c_name(variable.name)
    writer.lines.append(f"_Alignas(16) uint8_t {name}[{max(variable.bytes, 1)}];")
    writer.symbols[variable.name] = f"(uint64_t){name}"
    return shared
