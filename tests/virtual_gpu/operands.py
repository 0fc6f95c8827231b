"""The operands of PTX instructions in C: registers, which hold bits, numbers, special registers and addresses."""

import re

BITS = {"pred": "uint8_t", 8: "uint8_t", 16: "uint16_t", 32: "uint32_t", 64: "uint64_t"}
C_TYPES = {
    f"{letter}{n}": f"{sign}int{n}_t" for letter, sign in (("s", ""), ("u", "u"), ("b", "u")) for n in (8, 16, 32, 64)
}
C_TYPES |= {"f32": "float", "f64": "double", "f16": "half", "bf16": "brain", "pred": "uint8_t"}
FLOATS = {"f32", "f64", "f16", "bf16"}
SPACES = {"global", "shared", "local", "param", "const"}


class UnknownInstruction(NotImplementedError):
    """PTX that the virtual GPU does not know yet."""


def c_name(name: str) -> str:
    """A PTX name as a C identifier."""
    return "x" + re.sub(r"\W", "_", name)


def size_of(kind: str) -> int:
    """Bytes of a PTX type."""
    return 1 if kind == "pred" else 4 if kind.endswith("x2") else int(re.sub(r"\D", "", kind)) // 8


SPECIAL = {
    f"%{ptx}.{axis}": f"{c}[{i}]"
    for ptx, c in (("tid", "T->tid"), ("ntid", "B->ntid"), ("ctaid", "B->ctaid"), ("nctaid", "B->nctaid"))
    for i, axis in enumerate("xyz")
}
SPECIAL |= {"%laneid": "T->lane", "%warpid": "T->warp", "%clock": "0", "%clock64": "0", "%smid": "0", "WARP_SZ": "32"}
SPECIAL |= {"%lanemask_lt": "((1u << T->lane) - 1)", "%lanemask_ge": "~((1u << T->lane) - 1)"}
SPECIAL |= {"%lanemask_eq": "(1u << T->lane)"}
SPECIAL |= {"%lanemask_le": "((2u << T->lane) - 1)", "%lanemask_gt": "~((2u << T->lane) - 1)"}


def split_operands(text: str) -> list[str]:
    """Split at the commas outside of braces, brackets and parentheses."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


class Operands:
    """Collects the C statements of one function, and counts what each stretch without a jump does."""

    def __init__(self, symbols: dict[str, str]):
        self.symbols = symbols
        self.registers: dict[str, str] = {}
        self.tables: dict[str, list[str]] = {}
        self.lines: list[str] = []
        self.pending: dict[str, int] = {}

    def declare(self, kind: str, names: list[str]) -> None:
        """Registers become variables of their width."""
        bits = BITS["pred"] if kind == "pred" else BITS[size_of(kind) * 8]
        for i in range(0, len(names), 16):
            self.lines.append(f"{bits} {', '.join(c_name(n) + ' = 0' for n in names[i : i + 16])};")
        self.registers |= dict.fromkeys(names, bits)

    def count(self, what: str, n: int) -> None:
        """The instructions that follow each other here do this once more, or n times."""
        self.pending[what] = self.pending.get(what, 0) + n

    def flush(self) -> None:
        """Write the counts down: at a jump, its target or a wait the stretch ends."""
        self.lines.extend(f"B->work->{what} += {n};" for what, n in self.pending.items())
        self.pending = {}

    # ---- operands ----

    def bits(self, operand: str) -> str:
        """An operand's bits as a C integer."""
        operand = operand.strip()
        if operand in self.registers:
            return c_name(operand)
        if operand in SPECIAL:
            return SPECIAL[operand]
        if match := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", operand):
            return f"0x{match[1]}u"
        if match := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", operand):
            return f"0x{match[1]}ull"
        if match := re.fullmatch(r"(-?)(0[xX][0-9A-Fa-f]+|\d+)U?", operand):
            number = int(match[2], 0)
            return f"{match[1]}{number}{'ull' if number >= 2**63 else 'll'}"
        name, _, offset = operand.partition("+")
        if name in self.symbols:
            return f"({self.symbols[name]} + {offset or 0})"
        raise UnknownInstruction(f"operand {operand!r}")

    def value(self, kind: str, operand: str) -> str:
        """An operand as a C value of the PTX type."""
        if kind == "pred":
            return f"!{c_name(operand[1:])}" if operand.startswith("!") else self.bits(operand)
        if kind in FLOATS:
            negative, operand = (operand.startswith("-"), operand.lstrip("-")) if "%" in operand else (False, operand)
            return f"{'-' if negative else ''}{kind}_({self.bits(operand)})"
        return f"({C_TYPES[kind]})({self.bits(operand)})"

    def put(self, kind: str, operand: str, expression: str) -> str:
        """The statement that stores a C value of the PTX type in a register."""
        if operand == "_":
            return f"(void)({expression});"
        target = c_name(operand)
        if kind in FLOATS:
            return f"{target} = bits_{kind}({expression});"
        return f"{target} = ({C_TYPES[kind]})({expression});"

    def address(self, operand: str, space: str, kind: str, count: int = 1) -> str:
        """A C pointer to `count` values of the type at [register + offset] or [variable + offset]."""
        inside = operand.strip("[] ")
        name, _, offset = inside.partition("+")
        where = f"({self.bits(name.strip())} + ({offset.strip() or 0}))"
        size = size_of(kind) * count
        if space == "shared":
            return f"shared_at(B, {where}, {size})"
        return f"at((uint64_t){where}, {size})"
