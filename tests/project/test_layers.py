"""The house's plan, held to: which module may import which, how long minigrad is, and what importing it costs."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import minigrad

ROOT = Path(minigrad.__file__).parent

# The road that a reader walks has a budget, so that it stays an afternoon's reading. What stands beside it has its own:
# the tools, and the checks of arguments, which hold no formula and which nobody has to read.
TOOLS = {"exchange", "fold", "display", "gradcheck", "weights", "draw", "explore", "diagnosis", "check"}
CHECKS = "ops.arguments"
ROAD_BUDGET, TOOLS_BUDGET, CHECKS_BUDGET = 1250, 830, 210

# Each module imports only from those above it, and from outside of minigrad only what stands here.
LAYERS = [
    ("diagnosis", {"cupy", "cupy_backends"}),
    ("backend", {"numpy", "cupy", "ml_dtypes"}),
    ("registry", set()),
    ("tensor", {"numpy"}),
    ("ops.arguments", {"numpy"}),
    ("ops.basic", {"numpy"}),
    ("ops.matmul", set()),
    ("ops.activation", {"numpy"}),
    ("ops.operators", set()),
    ("ops.conv", {"numpy"}),
    ("ops.norm", set()),
    ("ops.pool", {"numpy"}),
    ("ops.loss", set()),
    ("ops", set()),
    ("functional", set()),
    ("exchange", {"numpy"}),
    ("nn", {"numpy"}),
    ("optim", {"numpy"}),
    ("fold", set()),
    ("display", {"numpy"}),
    ("weights", {"numpy", "safetensors"}),
    ("gradcheck", {"numpy"}),
    ("draw", set()),
    ("explore", {"numpy"}),
    ("check", {"numpy", "cupy_backends"}),
]
NAMES = [name for name, _ in LAYERS]


def module_files():
    """The files of minigrad without the engine room, by module name."""
    files = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] != "fast":
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(name, path):
    """Return the modules of minigrad and the other packages that a file imports, wherever in the file."""
    inside, outside = set(), set()
    package = name.split(".")[:-1] if path.name != "__init__.py" else name.split(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                target = ".".join([*base, alias.name])
                inside.add(target if target in NAMES else ".".join(base))
    return inside - {""}, outside - set(sys.stdlib_module_names)


def test_every_module_has_its_place():
    assert set(module_files()) - {""} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_up_only(name):
    inside, outside = imports(name, module_files()[name])
    assert {module for module in inside if not module.startswith("fast")} <= set(NAMES[: NAMES.index(name)])
    assert outside <= dict(LAYERS)[name]


def test_the_book_does_not_know_the_engine_room():
    """Only minigrad/__init__.py imports minigrad/fast, and what checks it: without it everything else still works."""
    for name, path in module_files().items():
        assert name in ("", "check") or not any(module.startswith("fast") for module in imports(name, path)[0])


def code_lines(path):
    """Lines of code: no blank ones, no comments, no docstrings.

    A statement counts once, over however many lines the formatter spreads it: wrapping is no length, and squeezing
    several statements into a line would be no gain.
    """
    source = path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [n for n in ast.walk(ast.parse(source)) if isinstance(n, documented) and ast.get_docstring(n)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    ends = sum(t.type == tokenize.NEWLINE or (t.type, t.string) == (tokenize.OP, ";") for t in tokens)
    return ends - len(docstrings)


def test_code_lines_are_counted_right(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(
        '"""Two\nlines."""\n\n# why\nx = [\n    1,\n]  # trailing\n\n\ndef f():\n    """One."""\n    y = 1; return y\n'
    )
    assert code_lines(path) == 4


def test_minigrad_can_be_read_in_an_afternoon():
    lines = {name: code_lines(path) for name, path in module_files().items()}
    tools, checks = sum(lines.pop(name) for name in TOOLS), lines.pop(CHECKS)
    assert sum(lines.values()) <= ROAD_BUDGET, f"{sum(lines.values())} lines of code: {lines}"
    assert tools <= TOOLS_BUDGET
    assert checks <= CHECKS_BUDGET


@pytest.mark.parametrize("package", ["minigrad", "resnext", "train"])
def test_training_imports_the_network_and_the_network_minigrad_never_the_other_way(package):
    order = ["minigrad", "resnext", "train"]
    for path in sorted((ROOT.parent / package).rglob("*.py")):
        if "fast" not in path.parts:
            _, outside = imports(package, path)
            assert not outside & set(order[order.index(package) + 1 :]), path


def test_importing_minigrad_loads_nothing_heavy():
    heavy = ("matplotlib", "tqdm", "cupy", "PIL", "hypothesis", "ml_dtypes", "torch")
    script = f"import sys, minigrad; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_no_test_waits_for_ever():
    """Whatever waits for a process or a thread says for how long; tiny.first_line reads a line with a limit."""
    for path in Path(__file__).parents[1].rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                what, place = ast.unparse(call.func), f"{path.name}:{call.lineno}"
                limited = any(keyword.arg == "timeout" for keyword in call.keywords)
                assert limited or what not in ("subprocess.run", "subprocess.check_output"), place
                assert limited or call.args or call.func.attr not in ("wait", "join", "communicate"), place
                assert path.name == "tiny.py" or ".stdout.read" not in what, place
