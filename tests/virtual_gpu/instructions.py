"""PTX instructions that compute: registers in, registers out."""

from .operands import BITS, C_TYPES, FLOATS, Operands, UnknownInstruction, c_name, size_of, split_operands

BINARY = {
    "add": "{a} + {b}", "sub": "{a} - {b}", "and": "{a} & {b}", "or": "{a} | {b}", "xor": "{a} ^ {b}",
}  # fmt: skip
COMPARE = {
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">=",
}  # fmt: skip
IN_DEVICE_H = ("bfe", "bfi", "brev", "clz", "popc", "prmt", "lop3", "shf", "copysign", "bfind")  # functions there
UNORDERED = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<", "neu": "=="}  # the negation of an ordered comparison
FLOAT_UNARY = {
    "sqrt": "sqrt", "rsqrt": "1 / sqrt", "rcp": "1 / ", "ex2": "exp2", "lg2": "log2", "sin": "sin", "cos": "cos",
    "tanh": "tanh", "abs": "fabs", "neg": "-",
}  # fmt: skip
PAIRS = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "fma": "fmaf({0}, {1}, {2})", "neg": "-{0}",
    "min": "fminf({0}, {1})", "max": "fmaxf({0}, {1})",
}  # fmt: skip


class Arithmetic(Operands):
    """Statements for what needs no memory and no other thread; `m`: the modifiers after the name, `o`: the operands."""

    def arithmetic(self, name: str, m: list[str], o: list[str]) -> str:
        """Whatever has no method of its own."""
        kind = m[-1]
        unknown = {"cc", "relu", "rp", "rz", "sat"} | ({"rm"} if (name, kind) != ("fma", "f32") else set())
        if unknown & set(m):
            raise ValueError("modifier")
        if kind in ("f16x2", "bf16x2"):
            return self.pairs(name, m, o)
        if name in BINARY:
            if kind in FLOATS:
                self.count("add", 1)
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
            forms = {"neg": f"-{a}", "not": f"~{a}", "abs": f"{a} < 0 ? -{a} : {a}", "cnot": f"!{a}"}
            return self.put(kind, o[0], forms[name])
        if name in ("shl", "shr"):
            return self.put(kind, o[0], f"{name}_{kind}({self.value(kind, o[1])}, {self.value('u32', o[2])})")
        if name in IN_DEVICE_H:
            result = "u32" if name in ("clz", "popc", "bfind") else kind
            function = "_".join([name, *[x for x in m if x in ("l", "r", "wrap", "clamp")], kind])
            return self.put(result, o[0], f"{function}({', '.join(self.value(kind, x) for x in o[1:])})")
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
            parts.append(f"(uint32_t)bits_{half}({PAIRS[name].format(*sources)}) << {i}")
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
            shifted = (f"({whole}){self.bits(p)} << {i * width}" for i, p in enumerate(parts))
            return f"{c_name(o[0])} = {' | '.join(shifted)};"
        return f"{c_name(o[0])} = {self.value('pred', o[1]) if m[-1] == 'pred' else self.bits(o[1])};"

    def do_cvta(self, m: list[str], o: list[str]) -> str:
        base = "(uint64_t)B->shared" if "shared" in m else "0"
        sign = "-" if "to" in m else "+"
        return f"{c_name(o[0])} = (uint64_t){self.bits(o[1])} {sign} {base};"

    def do_cvt(self, m: list[str], o: list[str]) -> str:
        to, source = m[-2], m[-1]
        if {"relu", "satfinite"} & set(m):
            raise ValueError("modifier")
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
