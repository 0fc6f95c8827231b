"""PTX instructions that touch memory, jump, or need other threads; and the choice among all instructions."""

import re
from collections.abc import Callable

from .instructions import Arithmetic
from .operands import C_TYPES, FLOATS, SPACES, UnknownInstruction, c_name, size_of, split_operands


class Writer(Arithmetic):
    """Turns one instruction after the other into a C statement."""

    def instruction(self, text: str) -> None:
        """Append the statement for `@%p name.modifiers operands`; raises UnknownInstruction."""
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

    # ---- memory ----

    def place(self, m: list[str]) -> tuple[str, int, str]:
        """(space, values, type) of a load or a store."""
        count = next((int(x[1:]) for x in m if re.fullmatch(r"v\d", x)), 1)
        return next((x for x in m if x in SPACES), ""), count, m[-1]

    def do_ld(self, m: list[str], o: list[str]) -> str:
        space, count, kind = self.place(m)
        size = size_of(kind)
        if space not in ("param", "local"):
            self.count("shared_loaded" if space == "shared" else "loaded", size * count)
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
        if space not in ("param", "local"):
            self.count("shared_stored" if space == "shared" else "stored", size * count)
        sources = [self.bits(x) for x in split_operands(o[1].strip("{}"))]
        stores = " ".join(f"p_[{i}] = {s};" for i, s in enumerate(sources))
        return f"{{ uint{size * 8}_t *p_ = {self.address(o[0], space, kind, count)}; {stores} }}"

    def do_ldu(self, m: list[str], o: list[str]) -> str:
        return self.do_ld(m, o)

    def do_atom(self, m: list[str], o: list[str]) -> str:
        """Atomic for real: other blocks may run on other cores."""
        space, _, kind = self.place(m)
        operation = next(x for x in m if x in ("add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"))
        self.count("atomics", 1)
        bits = f"uint{size_of(kind) * 8}_t"
        old, a = f"{kind}_(old_)" if kind in FLOATS else f"({C_TYPES[kind]})old_", self.value(kind, o[2])
        new = {
            "add": f"{old} + {a}", "min": f"{old} < {a} ? {old} : {a}", "max": f"{old} > {a} ? {old} : {a}",
            "and": f"{old} & {a}", "or": f"{old} | {a}", "xor": f"{old} ^ {a}", "exch": a,
            "inc": f"{old} >= {a} ? 0 : {old} + 1", "dec": f"{old} == 0 || {old} > {a} ? {a} : {old} - 1",
            "cas": f"{old} == {a} ? {self.value(kind, o[3]) if operation == 'cas' else ''} : {old}",
        }[operation]  # fmt: skip
        wrap = f"bits_{kind}" if kind in FLOATS else f"({C_TYPES[kind]})"
        result = "" if o[0] == "_" else f"{c_name(o[0])} = old_;"
        return (
            f"{{ {bits} *p_ = {self.address(o[1], space, kind)}, old_ = *p_, new_; do new_ = {wrap}({new}); "
            f"while (!__atomic_compare_exchange_n(p_, &old_, new_, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)); {result} }}"
        )

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
        condition = f"T->in[0] = {self.value('pred', o[1])};"
        return f"{condition} meet(T, {self.bits(o[2])}, VOTE, {mode}); {c_name(o[0])} = T->out[0];"

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
