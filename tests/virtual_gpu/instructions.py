"""One PTX instruction after the other as a C statement."""

import re
from collections.abc import Callable

BITS = {"pred": "uint8_t", 8: "uint8_t", 16: "uint16_t", 32: "uint32_t", 64: "uint64_t"}
C_TYPES = {f"{letter}{n}": f"{sign}int{n}_t" for letter, sign in (("s", ""), ("u", "u"), ("b", "u")) for n in (8, 16, 32, 64)}
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


BINARY = {
    "add": "{a} + {b}", "sub": "{a} - {b}", "and": "{a} & {b}", "or": "{a} | {b}", "xor": "{a} ^ {b}",
}  # fmt: skip
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
UNORDERED = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<", "neu": "=="}  # the negation of an ordered comparison
FLOAT_UNARY = {
    "sqrt": "sqrt", "rsqrt": "1 / sqrt", "rcp": "1 / ", "ex2": "exp2", "lg2": "log2", "sin": "sin", "cos": "cos",
    "tanh": "tanh", "abs": "fabs", "neg": "-",
}  # fmt: skip
SPECIAL = {f"%{ptx}.{axis}": f"{c}[{i}]" for ptx, c in (("tid", "T->tid"), ("ntid", "B->ntid"), ("ctaid", "B->ctaid"), ("nctaid", "B->nctaid")) for i, axis in enumerate("xyz")}
SPECIAL |= {"%laneid": "T->lane", "%warpid": "T->warp", "%clock": "0", "%clock64": "0", "%smid": "0", "%lanemask_lt": "((1u << T->lane) - 1)", "%lanemask_le": "(2u << T->lane) - 1", "%lanemask_eq": "(1u << T->lane)", "%lanemask_gt": "~((2u << T->lane) - 1)", "%lanemask_ge": "~((1u << T->lane) - 1)", "WARP_SZ": "32"}


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


class Writer:
    """Collects the C statements of one function, and counts what each stretch without a jump does."""

    def __init__(self, symbols: dict[str, str]):
        self.symbols = symbols
        self.registers: dict[str, str] = {"%old_": ""}  # the value that an atomic operation finds
        self.tables: dict[str, list[str]] = {}
        self.lines: list[str] = []
        self.pending: dict[str, int] = {}

    def declare(self, kind: str, names: list[str]) -> None:
        bits = BITS["pred"] if kind == "pred" else BITS[size_of(kind) * 8]
        for i in range(0, len(names), 16):
            self.lines.append(f"{bits} {', '.join(c_name(n) + ' = 0' for n in names[i : i + 16])};")
        self.registers |= dict.fromkeys(names, bits)

    def count(self, what: str, n: int) -> None:
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
            return f"{match[1]}{number}{'ull' if number >= 2**63 else 'll'}" if number != 2**63 else "(-9223372036854775807ll - 1)"
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

    # ---- instructions ----

    def instruction(self, text: str) -> None:
        guard = ""
        if text.startswith("@"):
            condition, text = text[1:].split(" ", 1)
            self.flush()
            guard = f"if ({self.value('pred', condition)}) "
        opcode, _, rest = text.partition(" ")
        name, *modifiers = opcode.split(".")
        operands = split_operands(rest)
        method: Callable | None = getattr(self, f"do_{name}", None)
        try:
            if name in ("bra", "ret", "exit", "brx", "call"):
                self.flush()
            statement = self.arithmetic(name, modifiers, operands) if method is None else method(modifiers, operands)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise UnknownInstruction(f"{text!r} ({type(error).__name__}: {error})") from error
        if guard:
            counts = " ".join(f"B->work->{what} += {n};" for what, n in self.pending.items())
            self.pending = {}
            statement = f"{guard}{{ {statement} {counts} }}"
        self.lines.append(statement)

    def arithmetic(self, name: str, m: list[str], o: list[str]) -> str:
        kind = m[-1]
        if kind in ("f16x2", "bf16x2"):
            return self.pairs(name, m, o)
        if name in BINARY:
            if "rm" in m or "rp" in m or "rz" in m:
                raise ValueError("rounding")
            self.count("add", name in ("add", "sub") and kind in ("f32", "f64"))
            return self.put(kind, o[0], BINARY[name].format(a=self.value(kind, o[1]), b=self.value(kind, o[2])))
        if name in FLOAT_UNARY and kind in FLOATS:
            suffix = "f" if kind != "f64" and FLOAT_UNARY[name][-1].isalnum() else ""
            return self.put(kind, o[0], f"{FLOAT_UNARY[name]}{suffix}({self.value(kind, o[1])})")
        if name in ("min", "max") and kind in FLOATS:
            function = f"{'nan_' if 'NaN' in m else 'f'}{name}{'' if kind == 'f64' else 'f'}"
            return self.put(kind, o[0], f"{function}({self.value(kind, o[1])}, {self.value(kind, o[2])})")
        if name in ("min", "max"):
            a, b = self.value(kind, o[1]), self.value(kind, o[2])
            return self.put(kind, o[0], f"{a} {'<' if name == 'min' else '>'} {b} ? {a} : {b}")
        if name in ("fma", "mad") and kind in FLOATS:
            self.count("fma", 1)
            function = "fma" + ("" if kind == "f64" else "f") + ("_down" if "rm" in m else "")
            return self.put(kind, o[0], f"{function}({', '.join(self.value(kind, x) for x in o[1:4])})")
        if name in ("mul", "mad"):
            return self.product(name, m, o)
        if name in ("div", "rem") and kind not in FLOATS:
            return self.put(kind, o[0], f"{name}_{kind}({self.value(kind, o[1])}, {self.value(kind, o[2])})")
        if name == "div":
            return self.put(kind, o[0], f"{self.value(kind, o[1])} / {self.value(kind, o[2])}")
        if name in ("neg", "not", "abs", "cnot"):
            if name == "not" and kind == "pred":
                return self.put(kind, o[0], f"!{self.value(kind, o[1])}")
            a = self.value(kind, o[1])
            return self.put(kind, o[0], {"neg": f"-{a}", "not": f"~{a}", "abs": f"{a} < 0 ? -{a} : {a}", "cnot": f"!{a}"}[name])
        if name in ("shl", "shr"):
            return self.put(kind, o[0], f"{name}_{kind}({self.value(kind, o[1])}, {self.value('u32', o[2])})")
        if name in ("bfe", "bfi", "brev", "clz", "popc", "prmt", "lop3", "shf", "copysign", "bfind", "slct", "sad", "testp"):
            result = "u32" if name in ("clz", "popc", "bfind") else kind
            function = "_".join([name, *[x for x in m if x in ("l", "r", "wrap", "clamp")], kind])
            sources = [self.value(kind if kind in FLOATS else f"{kind[0]}{kind[1:]}", x) for x in o[1:]]
            return self.put("pred" if name == "testp" else result, o[0], f"{function}({', '.join(sources)})")
        raise UnknownInstruction(name + "." + ".".join(m))

    def product(self, name: str, m: list[str], o: list[str]) -> str:
        kind = m[-1]
        a, b = self.value(kind, o[1]), self.value(kind, o[2])
        if kind in FLOATS:
            self.count("fma", 1)
            return self.put(kind, o[0], f"{a} * {b}")
        wide = f"{kind[0]}{2 * int(kind[1:])}"
        result = wide if "wide" in m else kind
        if "wide" in m:
            expression = f"({C_TYPES[wide]}){a} * ({C_TYPES[wide]}){b}"
        elif "hi" in m:
            expression = f"mul_hi_{kind}({a}, {b})"
        else:
            expression = f"{a} * {b}"
        if name == "mad":
            expression += f" + {self.value(result, o[3])}"
        return self.put(result, o[0], expression)

    def pairs(self, name: str, m: list[str], o: list[str]) -> str:
        """Two half-precision numbers in one register."""
        half = m[-1][:-2]
        registers = {x: self.bits(x) for x in o[1:]}
        parts = []
        for i in (0, 16):
            sources = [f"{half}_((uint16_t)({registers[x]} >> {i}))" for x in o[1:]]
            function = {"add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "fma": "fmaf({0}, {1}, {2})", "neg": "-{0}", "min": "fminf({0}, {1})", "max": "fmaxf({0}, {1})"}[name]
            parts.append(f"(uint32_t)bits_{half}({function.format(*sources)}) << {i}")
        return f"{c_name(o[0])} = {' | '.join(parts)};"

    def do_setp(self, m: list[str], o: list[str]) -> str:
        kind, compare = m[-1], m[0]
        a, b = self.value(kind, o[1]), self.value(kind, o[2])
        targets = o[0].split("|")
        test = self.comparison(compare, kind, a, b)
        combine = next((x for x in m[1:-1] if x in ("and", "or", "xor")), None)
        symbol = {"and": "&&", "or": "||", "xor": "^", None: ""}[combine]
        third = f" {symbol} {self.value('pred', o[3])}" if combine else ""
        statement = f"{{ uint8_t t_ = {test}; {c_name(targets[0])} = t_{third}; "
        if len(targets) > 1:
            statement += f"{c_name(targets[1])} = !t_{third}; "
        return statement + "}"

    def comparison(self, compare: str, kind: str, a: str, b: str) -> str:
        if kind in FLOATS:
            if compare == "ne":
                return f"({a} < {b} || {a} > {b})"
            if compare in UNORDERED:
                return f"!({a} {UNORDERED[compare]} {b})"
            if compare in ("num", "nan", "equ"):
                unordered = f"__builtin_isunordered({a}, {b})"
                return {"num": f"!{unordered}", "nan": unordered, "equ": f"({unordered} || {a} == {b})"}[compare]
        return f"({a} {COMPARE[compare]} {b})"

    def do_set(self, m: list[str], o: list[str]) -> str:
        test = self.comparison(m[0], m[-1], self.value(m[-1], o[1]), self.value(m[-1], o[2]))
        return self.put(m[-2], o[0], f"{test} ? {'1.0f' if m[-2] == 'f32' else '-1'} : 0")

    def do_selp(self, m: list[str], o: list[str]) -> str:
        return f"{c_name(o[0])} = {self.value('pred', o[3])} ? {self.bits(o[1])} : {self.bits(o[2])};"

    def do_mov(self, m: list[str], o: list[str]) -> str:
        if o[0].startswith("{"):
            parts = split_operands(o[0].strip("{}"))
            width = size_of(m[-1]) * 8 // len(parts)
            source = self.bits(o[1])
            return " ".join(f"{c_name(p)} = {source} >> {i * width};" for i, p in enumerate(parts) if p != "_")
        if o[1].startswith("{"):
            parts = split_operands(o[1].strip("{}"))
            width = size_of(m[-1]) * 8 // len(parts)
            whole = BITS[size_of(m[-1]) * 8]
            return f"{c_name(o[0])} = {' | '.join(f'({whole}){self.bits(p)} << {i * width}' for i, p in enumerate(parts))};"
        return f"{c_name(o[0])} = {self.value('pred', o[1]) if m[-1] == 'pred' else self.bits(o[1])};"

    def do_cvta(self, m: list[str], o: list[str]) -> str:
        base = "(uint64_t)B->shared" if "shared" in m else "0"
        sign = "-" if "to" in m else "+"
        return f"{c_name(o[0])} = (uint64_t){self.bits(o[1])} {sign} {base};"

    def do_cvt(self, m: list[str], o: list[str]) -> str:
        to, source = m[-2], m[-1]
        if to in ("bf16x2", "f16x2"):
            half = to[:-2]
            high, low = self.value(source, o[1]), self.value(source, o[2])
            return f"{c_name(o[0])} = (uint32_t)bits_{half}({high}) << 16 | bits_{half}({low});"
        a = self.value(source, o[1])
        if to in FLOATS:
            rounding = next((x for x in m[:-2] if x in ("rni", "rzi", "rmi", "rpi")), None)
            if rounding:
                function = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[rounding]
                a = f"{function}{'' if source == 'f64' else 'f'}({a})"
            if {"rm", "rp"} & set(m) or ("rz" in m and to != "f32"):
                raise ValueError("rounding")
            if "rz" in m:
                a = f"toward_zero((double){a})"
            if "sat" in m:
                a = f"saturate({a})"
            return self.put(to, o[0], a)
        if source in FLOATS:
            rounding = next(x for x in m[:-2] if x in ("rni", "rzi", "rmi", "rpi"))
            function = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[rounding]
            return self.put(to, o[0], f"to_{to}({function}((double){a}))")
        if "sat" in m:
            return self.put(to, o[0], f"clamp_{to}((__int128){a})")
        return self.put(to, o[0], a)

    # ---- memory ----

    def place(self, m: list[str]) -> tuple[str, int, str]:
        """(space, values, type) of a load or a store."""
        count = next((int(x[1:]) for x in m if re.fullmatch(r"v\d", x)), 1)
        return next((x for x in m if x in SPACES), ""), count, m[-1]

    def do_ld(self, m: list[str], o: list[str]) -> str:
        space, count, kind = self.place(m)
        size = size_of(kind)
        if space != "param":
            self.count("shared_loaded" if space == "shared" else "loaded", size * count * (space != "local"))
        targets = split_operands(o[0].strip("{}"))
        pointer = self.address(o[1], space, kind, count)
        c = f"int{size * 8}_t" if kind[0] == "s" else f"uint{size * 8}_t"
        if count == 1:
            return f"{c_name(targets[0])} = *({c} *){pointer};"
        loads = " ".join(f"{c_name(t)} = p_[{i}];" for i, t in enumerate(targets) if t != "_")
        return f"{{ {c} *p_ = {pointer}; {loads} }}"

    def do_st(self, m: list[str], o: list[str]) -> str:
        space, count, kind = self.place(m)
        size = size_of(kind)
        if space != "param":
            self.count("shared_stored" if space == "shared" else "stored", size * count * (space != "local"))
        sources = [self.bits(x) for x in split_operands(o[1].strip("{}"))]
        stores = " ".join(f"p_[{i}] = {s};" for i, s in enumerate(sources))
        return f"{{ uint{size * 8}_t *p_ = {self.address(o[0], space, kind, count)}; {stores} }}"

    def do_ldu(self, m: list[str], o: list[str]) -> str:
        return self.do_ld(m, o)

    def do_atom(self, m: list[str], o: list[str]) -> str:
        space, _, kind = self.place(m)
        operation = next(x for x in m if x in ("add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"))
        pointer = self.address(o[1], space, kind)
        self.count("atomics", 1)
        bits, old = f"uint{size_of(kind) * 8}_t", self.value(kind, "%old_")
        self_registers = self.registers
        b = self.value(kind, o[2])
        third = self.value(kind, o[3]) if len(o) > 3 else ""
        del self_registers
        new = {
            "add": f"{old} + {b}", "min": f"{old} < {b} ? {old} : {b}", "max": f"{old} > {b} ? {old} : {b}", "exch": b,
            "and": f"{old} & {b}", "or": f"{old} | {b}", "xor": f"{old} ^ {b}", "cas": f"{old} == {b} ? {third} : {old}",
            "inc": f"{old} >= {b} ? 0 : {old} + 1", "dec": f"{old} == 0 || {old} > {b} ? {b} : {old} - 1",
        }[operation]  # fmt: skip
        wrap = f"bits_{kind}" if kind in FLOATS else f"({C_TYPES[kind]})"
        result = "" if o[0] == "_" else f"{c_name(o[0])} = {c_name('%old_')};"
        return f"{{ {bits} *p_ = {pointer}, {c_name('%old_')} = *p_; *p_ = {wrap}({new}); {result} }}"

    def do_red(self, m: list[str], o: list[str]) -> str:
        return self.do_atom(m, ["_", *o])

    def do_cp(self, m: list[str], o: list[str]) -> str:
        """cp.async: the copy is done at once; waiting for it is nothing."""
        if m[1] in ("commit_group", "wait_group", "wait_all"):
            return ";"
        size = self.bits(o[2])
        source = self.bits(o[3]) if len(o) > 3 else size
        self.count("shared_stored", int(o[2]))
        return f"copy_async(B, shared_at(B, {self.inside(o[0])}, {size}), {self.inside(o[1])}, {size}, {source});"

    def inside(self, operand: str) -> str:
        name, _, offset = operand.strip("[] ").partition("+")
        return f"({self.bits(name)} + ({offset or 0}))"

    def nothing(self, m: list[str], o: list[str]) -> str:
        return ";"

    do_prefetch = do_prefetchu = do_membar = do_fence = do_nanosleep = do_griddepcontrol = nothing

    # ---- jumps ----

    def do_bra(self, m: list[str], o: list[str]) -> str:
        return f"goto {c_name(o[0])};"

    def do_brx(self, m: list[str], o: list[str]) -> str:
        cases = " ".join(f"case {i}: goto {c_name(target)};" for i, target in enumerate(self.tables[o[1]]))
        return f"switch ({self.bits(o[0])}) {{ {cases} }}"

    def do_ret(self, m: list[str], o: list[str]) -> str:
        return "return;"

    do_exit = do_ret

    def do_trap(self, m: list[str], o: list[str]) -> str:
        return 'fault("trap");'

    def do_call(self, m: list[str], o: list[str]) -> str:
        arguments = [a for piece in o if piece.startswith("(") for a in split_operands(piece.strip("()"))]
        name = next(piece for piece in o if not piece.startswith("("))
        return f"{c_name(name)}({', '.join(['T', *(f'(uint8_t *){self.symbols[a]}' for a in arguments)])});"

    # ---- together ----

    def do_bar(self, m: list[str], o: list[str]) -> str:
        if m[0] == "warp":
            return f"meet(T, {self.bits(o[0])}, WARP_BARRIER, 0);"
        if m[0] != "sync" or len(o) > 1 or o[0] != "0":
            raise ValueError("barrier")
        self.flush()
        return "block_barrier(T);"

    def do_barrier(self, m: list[str], o: list[str]) -> str:
        return self.do_bar([x for x in m if x not in ("cta", "aligned")], o)

    def do_shfl(self, m: list[str], o: list[str]) -> str:
        target, _, valid = o[0].partition("|")
        inputs = f"T->in[0] = {self.bits(o[1])}; T->in[1] = {self.bits(o[2])}; T->in[2] = {self.bits(o[3])};"
        mode = {"up": 0, "down": 1, "bfly": 2, "idx": 3}[m[1]]
        result = f"{c_name(target)} = T->out[0];" + (f" {c_name(valid)} = T->out[1];" if valid else "")
        return f"{inputs} meet(T, {self.bits(o[4])}, SHUFFLE, {mode}); {result}"

    def do_vote(self, m: list[str], o: list[str]) -> str:
        mode = {"all": 0, "any": 1, "uni": 2, "ballot": 3}[m[1]]
        return f"T->in[0] = {self.value('pred', o[1])}; meet(T, {self.bits(o[2])}, VOTE, {mode}); {c_name(o[0])} = T->out[0];"

    def do_activemask(self, m: list[str], o: list[str]) -> str:
        return f"{c_name(o[0])} = active_lanes(T);"

    def do_ldmatrix(self, m: list[str], o: list[str]) -> str:
        if "m8n8" not in m or "b16" not in m:
            raise ValueError("shape")
        targets = split_operands(o[0].strip("{}"))
        results = " ".join(f"{c_name(t)} = T->out[{i}];" for i, t in enumerate(targets))
        self.count("shared_loaded", 4 * len(targets))
        mode = len(targets) + 16 * ("trans" in m)
        return f"T->in[0] = {self.inside(o[1])}; meet(T, 0xffffffff, LDMATRIX, {mode}); {results}"

    def do_mma(self, m: list[str], o: list[str]) -> str:
        if m[2] != "m16n8k16" or m[5:9] != ["f32", "bf16", "bf16", "f32"]:
            raise ValueError("shape")
        d, a, b, c = (split_operands(x.strip("{}")) for x in o)
        inputs = " ".join(f"T->in[{i}] = {self.bits(x)};" for i, x in enumerate(a + b + c))
        results = " ".join(f"{c_name(x)} = T->out[{i}];" for i, x in enumerate(d))
        return f"{inputs} meet(T, 0xffffffff, MMA, 0); {results}"
