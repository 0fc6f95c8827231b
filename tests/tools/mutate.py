"""Is a wrong backward pass noticed? Break each one in turn and see whether the tests fail.

    python tests/tools/mutate.py                    every mutant (minutes); fails if fewer than 95 % are caught
    python tests/tools/mutate.py --sample 20        some of them, chosen by --seed

A mutant is minigrad with one small mistake in a backward formula, in what the engine does with gradients, or in the
optimiser's update rule: a sign, a factor, an axis, a term or a step left out, operands swapped, a comparison turned.
Each lives in a temporary copy of the project; the working tree is not touched. The book's formulas are what is broken,
so the engine room is switched off (MINIGRAD_FAST=0). A mutant that nothing notices is printed as a diff: either a
test is missing, or the change makes no difference (`EQUIVALENT` says why).
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[2]
GOAL = 0.95
TIMEOUT_S = 300  # a mutant that hangs is noticed, too

# File by file: the functions to break, and the tests that ought to notice, the quickest first.
TABLE = "tests/minigrad/ops/test_operations_table.py"
TAPE = [f"tests/minigrad/test_{name}.py" for name in ("tape", "tape_memory", "random_graphs", "tensor")]
TARGETS = {
    "minigrad/ops/basic.py": (
        ["backward"],
        [TABLE, "tests/minigrad/ops/test_basic.py", *TAPE],
    ),
    "minigrad/ops/matmul.py": (["backward"], [TABLE, "tests/minigrad/ops/test_basic.py"]),
    "minigrad/ops/activation.py": (["backward"], [TABLE, "tests/minigrad/ops/test_activation.py"]),
    "minigrad/ops/conv.py": (["backward", "col2im"], [TABLE, "tests/minigrad/ops/test_conv.py"]),
    "minigrad/ops/norm.py": (["backward"], [TABLE, "tests/minigrad/ops/test_norm.py"]),
    "minigrad/ops/pool.py": (["backward"], [TABLE, "tests/minigrad/ops/test_pool.py"]),
    "minigrad/ops/loss.py": (["backward"], [TABLE, "tests/minigrad/ops/test_loss.py"]),
    "minigrad/tensor.py": (
        ["consumers", "add_gradients", "gradients", "backward"],
        [*TAPE, TABLE],
    ),
    "minigrad/backend.py": (["unbroadcast"], [*TAPE, TABLE]),
    "minigrad/optim.py": (["sgd_update"], ["tests/minigrad/test_optim.py"]),
}

# Changes that make no difference, by the line that they lead to, and why.
CAST = "a cast to or from bfloat16, which the CPU does not compute in"
BORDER = "a border wider than the padding, which is cut off again"
COPY = "copies a gradient that nothing else holds: slower, not wrong"
EQUIVALENT = {
    "dy = dy": CAST,
    "return (dx, dweight, dbias)": CAST,
    "for i, (parent, dx) in enumerate(zip(self.parents, dxs, strict=True)):": "for mypy: a freed node is never asked",
    "return (matmul(dy, self.b.swapaxes(-2, -1)) if self.needs[0] else None, "
    "matmul(self.a.swapaxes(-1, -2), dy) if self.needs[1] else None)": "the same two axes",
    "return (matmul(dy, self.b.swapaxes(-1, -2)) if self.needs[0] else None, "
    "matmul(self.a.swapaxes(-2, -1), dy) if self.needs[1] else None)": "the same two axes",
    "dpadded = col2im(dcolumns, (N, C, H + 3 * PH, W + 2 * PW), self.stride, self.dilation)": BORDER,
    "dpadded = col2im(dcolumns, (N, C, H + 2 * PH, W + 3 * PW), self.stride, self.dilation)": BORDER,
    "dx = array_module(dy).zeros((N, C, H + 3 * PH, W + 2 * PW), dy.dtype)": BORDER,
    "dx = array_module(dy).zeros((N, C, H + 2 * PH, W + 3 * PW), dy.dtype)": BORDER,
    "dx = array_module(dy).zeros((N, C, H + 3 * PH, W + 2 * PW), np.float64)": BORDER,
    "dx = array_module(dy).zeros((N, C, H + 2 * PH, W + 3 * PW), np.float64)": BORDER,
    "log_a = xp.log(xp.where((a == 0) & (p >= 0), one, a)) if self.needs[1] else None": CAST,
    "log_a = xp.log(xp.where((p >= 0) & (a == 0), one, a).astype(a.dtype, copy=False)) if self.needs[1] else None": (
        "the order of two conditions"
    ),
    "da = dy * p * a ** xp.where(p == 0, p, p - 1) if self.needs[0] else None": CAST,
    "if isinstance(parent, Tensor):": COPY,
    "if dx.base is not None or any((dx is a for a in (dy, *vars(self).values(), *(d for _, d in checked)))):": COPY,
    "if isinstance(parent, Tensor) and (dx.base is not None or any((dx is not a for a in "
    "(dy, *vars(self).values(), *(d for _, d in checked))))):": COPY,
    "if self.broadcasts:": "sums over no axis, or over axes of size 1",
    "dxs = dxs if isinstance(dxs, list | tuple) else (dxs,)": "the same two types",
}

OPPOSITE = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Gt: ast.LtE,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


@dataclass
class Mutant:
    """One mistake: where, of what kind, and the whole file with it."""

    path: str
    function: str
    kind: str
    place: int  # which of the file's classes and functions is changed
    original: str  # its text before, and with the mistake
    changed: str

    def source(self) -> str:
        """The whole file with the mistake in it."""
        tree = ast.parse((ROOT / self.path).read_text())
        parts = [ast.unparse(node) for node in tree.body]
        return "\n".join([*parts[: self.place], self.changed, *parts[self.place + 1 :]]) + "\n"

    def diff(self) -> str:
        """The lines that differ."""
        lines = difflib.unified_diff(self.original.splitlines(), self.changed.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---"))

    def new_lines(self) -> set[str]:
        """The lines that the mistake leads to."""
        return {line.strip() for line in set(self.changed.splitlines()) - set(self.original.splitlines())}


def returned(function: ast.FunctionDef) -> list[ast.expr]:
    """The expressions that the function returns, element by element."""
    values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
    elements = [e for v in values for e in (v.elts if isinstance(v, ast.Tuple) else [v])]
    elements = [e.body if isinstance(e, ast.IfExp) else e for e in elements]
    return [e for e in elements if not isinstance(e, ast.Constant | ast.Starred)]


def mistakes(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """Yield (kind, what to put in the node's place) for every small mistake; None removes a statement."""
    if isinstance(node, ast.BinOp):
        if type(node.op) in OPPOSITE:
            yield "sign", ast.BinOp(node.left, OPPOSITE[type(node.op)](), node.right)
        if isinstance(node.op, ast.Mult):
            yield "operator", ast.BinOp(node.left, ast.Div(), node.right)
        if isinstance(node.op, ast.Div):
            yield "operator", ast.BinOp(node.left, ast.Mult(), node.right)
        if not isinstance(node.op, ast.Add | ast.Mult):
            yield "swapped", ast.BinOp(node.right, node.op, node.left)
        yield "dropped", node.left
        yield "dropped", node.right
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield "sign", node.operand
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "condition", node.operand
    if isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            rest = node.values[:i] + node.values[i + 1 :]
            yield "condition", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OPPOSITE:
        yield "condition", ast.Compare(node.left, [OPPOSITE[type(node.ops[0])]()], node.comparators)
        if isinstance(node.ops[0], ast.Gt):
            yield "condition", ast.Compare(node.left, [ast.GtE()], node.comparators)
    if isinstance(node, ast.AugAssign):
        yield "dropped", None
        yield "replaced", ast.Assign([node.target], node.value)
        if type(node.op) in OPPOSITE:
            yield "sign", ast.AugAssign(node.target, OPPOSITE[type(node.op)](), node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        method, args = node.func.attr, node.args
        if method in ("sum", "transpose", "swapaxes", "copy", "reshape", "astype"):
            yield "dropped", node.func.value
        if method in ("transpose", "swapaxes") and len(args) > 1:
            yield "axis", ast.Call(node.func, [args[1], args[0], *args[2:]], node.keywords)
        if method == "where":
            yield "swapped", ast.Call(node.func, [args[0], args[2], args[1]], node.keywords)
    if isinstance(node, ast.keyword) and node.arg == "axis":
        if isinstance(node.value, ast.Tuple):
            for i in range(len(node.value.elts)):
                yield "axis", ast.keyword("axis", ast.Tuple(node.value.elts[:i] + node.value.elts[i + 1 :], ast.Load()))
        else:
            yield "axis", ast.keyword("axis", ast.Constant(0))
            yield "axis", ast.keyword("axis", ast.Constant(-1))
    if isinstance(node, ast.keyword) and node.arg == "keepdims":
        yield "axis", ast.keyword("keepdims", ast.Constant(False))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield "number", ast.Constant(node.value + 1)


def sites(function: ast.FunctionDef) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Yield every node below the function as (parent, field, index or None, node).

    Left out are the docstring and error messages, and `self.needs[i]`, which decides what is computed, not how.
    """
    stack: list[ast.AST] = [function]
    while stack:
        parent = stack.pop()
        for name, value in ast.iter_fields(parent):
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(node, ast.AST) or isinstance(node, ast.Raise | ast.arguments | ast.AnnAssign):
                    continue
                if isinstance(node, ast.Subscript) and ast.unparse(node).startswith("self.needs"):
                    continue
                if name in ("returns", "decorator_list"):
                    continue
                stack.append(node)
                yield parent, name, index, node


def mutants() -> Iterator[Mutant]:
    """Yield all mutants, file by file."""
    for path, (functions, _) in TARGETS.items():
        tree = ast.parse((ROOT / path).read_text())
        found = [
            (place, block, function)
            for place, block in enumerate(tree.body)
            for function in (block.body if isinstance(block, ast.ClassDef) else [block])
            if isinstance(function, ast.FunctionDef) and function.name in functions
        ]
        for place, block, function in found:
            original = ast.unparse(block)
            name = function.name if block is function else f"{block.name}.{function.name}"  # type: ignore[attr-defined]
            results = returned(function)
            for parent, field, index, node in list(sites(function)):
                variants = list(mistakes(node))
                if any(node is r for r in results) and isinstance(node, ast.expr):
                    variants += [("sign", ast.UnaryOp(ast.USub(), node))]
                    variants += [("factor", ast.BinOp(node, ast.Mult(), ast.Constant(2)))]
                for kind, replacement in variants:
                    holder = getattr(parent, field)
                    new = ast.Pass() if replacement is None else copy.deepcopy(replacement)
                    if index is None:
                        setattr(parent, field, new)
                    else:
                        holder[index] = new
                    yield Mutant(path, name, kind, place, original, ast.unparse(ast.fix_missing_locations(block)))
                    if index is None:
                        setattr(parent, field, node)
                    else:
                        holder[index] = node


def unnoticed(mutant: Mutant, folder: Path) -> bool:
    """Whether the tests pass with the mutant in the copy at `folder`."""
    target = folder / mutant.path
    original = target.read_text()
    target.write_text(mutant.source())
    try:
        return run_tests(folder, TARGETS[mutant.path][1])
    finally:
        target.write_text(original)


def run_tests(folder: Path, tests: list[str]) -> bool:
    """Whether the tests in the copy at `folder` pass within the time."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "MINIGRAD_FAST": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    options = "-x -q -p no:cacheprovider -p no:xdist --no-header"
    command = [sys.executable, "-m", "pytest", *options.split(), *tests]
    try:
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False
    if result.returncode not in (0, 1, 2):  # passed, failed, could not even be imported
        raise RuntimeError(f"pytest ended with {result.returncode}: {result.stdout.decode()}{result.stderr.decode()}")
    return result.returncode == 0


def copy_project(folder: Path) -> Path:
    """Copy what the tests of the engine need."""
    ignore = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("minigrad", "resnext", "train", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break every backward pass in turn; the tests must notice.")
    parser.add_argument("--sample", type=int, metavar="N", help="try N mutants only")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default 0)")
    parser.add_argument("--file", help="only mutants of files whose path contains this")
    parser.add_argument("--jobs", type=int, default=1, help="how many to try at a time (default 1)")
    options = parser.parse_args(arguments)

    chosen = [m for m in mutants() if not m.new_lines() & EQUIVALENT.keys() and (options.file or "") in m.path]
    if options.sample is not None:
        chosen = random.Random(options.seed).sample(chosen, min(options.sample, len(chosen)))
    survivors: list[Mutant] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as parent:
        folders: SimpleQueue[Path] = SimpleQueue()
        for job in range(options.jobs):
            folders.put(copy_project(Path(parent) / str(job)))
        folder = folders.get()
        files = {m.path for m in chosen}
        if not run_tests(folder, sorted({t for f in files for t in TARGETS[f][1]})):
            print("the tests fail without any mutant: run them first", file=sys.stderr)
            return 1
        folders.put(folder)

        def attempt(mutant: Mutant) -> bool:
            folder = folders.get()
            try:
                return unnoticed(mutant, folder)
            finally:
                folders.put(folder)

        with ThreadPoolExecutor(options.jobs) as pool:
            for mutant, survives in zip(chosen, pool.map(attempt, chosen), strict=True):
                if survives:
                    survivors.append(mutant)
                    print(f"not noticed: {mutant.path} {mutant.function}, {mutant.kind}\n{mutant.diff()}", flush=True)

    for path in sorted(files):
        total = sum(m.path == path for m in chosen)
        print(f"{path:28} {total - sum(m.path == path for m in survivors):4} of {total:4} caught")
    caught = len(chosen) - len(survivors)
    print(f"{'all':28} {caught:4} of {len(chosen):4} caught, {100 * caught / len(chosen):.1f} %")
    return 0 if caught >= GOAL * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
