"""The notebooks run from the first cell to the last, on the CPU and small, and the learners' one is the guide's pages.

A cell is run as Jupyter would: `!command` in a shell, with {expressions} filled in, everything else as Python. What
Jupyter brings along, IPython's `display`, stands in the runner below, so that the tests need no kernel.
"""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"

# Reads cells as JSON from standard input and runs them in one namespace; shown pictures are only counted.
RUNNER = r"""
import ast, json, re, subprocess, sys, types

def shell(command):
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    print(done.stdout, end="", flush=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"

def display(picture):
    assert picture._repr_png_().startswith(b"\x89PNG")
    print("<picture>")

ipython, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
module.display = display
ipython.version_info, ipython.get_ipython = (9, 0), lambda: None  # what Matplotlib asks for
sys.modules |= {"IPython": ipython, "IPython.display": module}
space = {"__name__": "__main__", "_shell": shell}
for cell in json.load(sys.stdin):
    code = re.sub(r"^!(.*)$", lambda line: f"_shell(f{line[1]!r})", cell, flags=re.MULTILINE)
    tree = ast.parse(code)
    shown = tree.body.pop().value if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, cell[:60], "exec"), space)
    value = eval(compile(ast.Expression(shown), cell[:60], "eval"), space) if shown else None
    if hasattr(value, "_repr_png_"):  # a cell shows what its last line comes to
        display(value)
"""


def cells(path: Path, kind: str = "code") -> list[dict]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def run(sources: list[str], folder: Path) -> str:
    """Run cells in a process of their own; return what they print."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUNNER],
        input=json.dumps(sources),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_learners_notebook_is_what_its_command_makes():
    made = runpy.run_path(str(ROOT / "docs" / "make_notebooks.py"))["notebook"]()
    assert (NOTEBOOKS / "convolution.ipynb").read_text(encoding="utf-8") == made, "run python docs/make_notebooks.py"


def test_the_learners_notebook_runs(tmp_path):
    found = cells(NOTEBOOKS / "convolution.ipynb")
    shown = "".join("".join(output["text"]) + "\n" for cell in found for output in cell["outputs"])
    printed = run(["".join(cell["source"]) for cell in found], tmp_path)
    assert (tmp_path / "explorer.html").exists()
    lines = [line for line in printed.splitlines() if not line.startswith("explorer.html is written")]
    assert lines == shown.splitlines()


def test_its_pictures_are_inside():
    for cell in cells(NOTEBOOKS / "convolution.ipynb", "markdown"):
        text = "".join(cell["source"])
        assert text.count("](attachment:") == len(cell.get("attachments", {}))
        assert "](../images" not in text


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_links_lead_somewhere(notebook):
    for cell in cells(notebook, "markdown"):
        for target in re.findall(r"\]\(((?!attachment:|[a-z]+:)[^)#\s]+)", "".join(cell["source"])):
            assert (NOTEBOOKS / target).exists(), target


def test_the_training_notebook_runs_small_on_the_cpu(tmp_path):
    found = cells(NOTEBOOKS / "train_on_a_gpu.ipynb")
    tags = [cell["metadata"].get("tags") for cell in found]
    assert tags.index(["parameters"]) == 0
    small = {"DATA": "shapes", "MODEL": "resnext11_1x4d", "EPOCHS": 1, "MORE": {"limit_train": 20, "limit_test": 40}}
    sources = ["".join(cell["source"]) for cell in found]
    for name in small:
        assert f"\n{name} = " in sources[0]
    sources.insert(1, "\n".join(f"{name} = {value!r}" for name, value in small.items()))
    sources = [source.replace('DEVICE = "cuda" if GPU else "cpu"', 'DEVICE = "cpu"') for source in sources]
    printed = run(sources, tmp_path)
    assert "% of the test images wrong" in printed and printed.count("<picture>") == 3
    assert re.search(r"It shows: \w+\nexample.png\n +[\d.]+ %  \w+", printed)
    assert (tmp_path / "runs" / "first" / "report.html").exists()
