"""The guide keeps its word: every snippet runs, every shown output is what comes out, every link leads somewhere.

A page's ```python blocks run in order in one namespace. A ```text block right below one is what it prints. A ```console
block below the line `<!-- run -->` is run in an empty folder, and what it shows below a command is compared as well; of
the others (and of ```sh blocks), each `python -m` command must at least name a module and options that exist, and each
script or test file must be there. All of them can be copied: a remark beside a command begins with #. "..." stands for
anything.
"""

import ast
import contextlib
import doctest
import io
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from test_layers import TOOLS, code_lines
from tools.attack import ATTACKS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [page for folder in ("docs", "benchmarks") for page in sorted((ROOT / folder).rglob("*.md"))]
PAGES = [page for page in PAGES if page.exists()]
FENCE = re.compile(r"^(?P<mark><!-- run -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    marked: bool  # below the line <!-- run -->
    follows: bool  # directly below the block before it


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    source, found, end = page.read_text(), [], -1
    for match in FENCE.finditer(source):
        follows = not source[end : match.start()].strip() if end >= 0 else False
        line = source.count("\n", 0, match.start("text")) + 1
        found.append(Block(match["language"], match["text"], line, bool(match["mark"]), follows))
        end = match.end()
    return found


def same(expected: str, got: str) -> bool:
    """Whether an output is the one that a page shows."""
    return doctest.OutputChecker().check_output(
        expected.strip() + "\n", got.strip() + "\n", doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_snippets(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "guide"}
    output = ""
    for block in blocks(page):
        if block.language == "python":
            # Blank lines put the code where it stands in the page, so that a traceback shows the page's line.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as stream:
                exec(code, namespace)
            output = stream.getvalue()
        elif block.language == "text" and block.follows:
            assert same(block.text, output), (
                f"{name(page)}:{block.line} shows\n{block.text}\nbut this came out:\n{output}"
            )


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output shown below it."""
    found: list[tuple[str, str]] = []
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines(keepends=True):
        if line.startswith("$ ") or (block.language == "sh" and line.strip()):
            found.append((line.removeprefix("$ ").strip(), ""))
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


CONSOLE = [(page, block) for page in PAGES for block in blocks(page) if block.language in ("console", "sh")]
MARKED = [pytest.param(p, b, id=f"{name(p)}:{b.line}") for p, b in CONSOLE if b.marked]
UNMARKED = [pytest.param(p, b, id=f"{name(p)}:{b.line}") for p, b in CONSOLE if not b.marked]


@pytest.mark.parametrize(("page", "block"), MARKED)
def test_commands(page, block, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "COLUMNS": "100"}
    for command, shown in commands(block):
        shell = f'python() {{ "$PYTHON" "$@"; }}; {command}'
        done = subprocess.run(
            ["sh", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{name(page)}:{block.line}: {command}\n{done.stderr}"
        if shown.strip():
            assert same(shown, done.stdout), f"{name(page)}:{block.line}: {command} gave\n{done.stdout}"


@cache
def usage(*words: str) -> str:
    """What `python -m words... --help` prints; empty where there is no such command."""
    command = [sys.executable, "-m", *words, "--help"]
    environment = os.environ | {"COLUMNS": "1000"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=60)
    return done.stdout if done.returncode == 0 else ""


@pytest.mark.parametrize(("page", "block"), UNMARKED)
def test_commands_that_take_long_exist(page, block):
    for command, _ in commands(block):
        for module, arguments in re.findall(r"python3? -m ((?:train|minigrad|resnext)\b[\w.]*)([^;&|#]*)", command):
            text = usage(module)
            assert text, f"{name(page)}:{block.line}: python -m {module} --help fails"
            if module == "train.figures":  # has subcommands, and passes on what it does not know
                text = usage(module, arguments.split()[0]) + usage("train.cifar")
            for option in re.findall(r"(?<=\s)--[\w-]+", arguments):
                assert option in text, f"{name(page)}:{block.line}: python -m {module} has no option {option}"
        for file in re.findall(r"(?<=\s)(?:tests|docs|benchmarks)/[\w/]+\.\w+", command):
            assert (ROOT / file).exists(), f"{name(page)}:{block.line}: there is no {file}"


@pytest.mark.parametrize(("page", "block"), [*MARKED, *UNMARKED])
def test_commands_can_be_copied(page, block):
    lines = [command for command, _ in commands(block)]
    done = subprocess.run(["sh", "-n"], input="\n".join(lines), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{name(page)}:{block.line}: {done.stderr}"
    for line in lines:
        bare = re.split(r"(?:^|\s)#", re.sub(r"'[^']*'|\"[^\"]*\"", "quoted", line))[0].strip()
        assert "  " not in bare, f"{name(page)}:{block.line}: is what follows the gap a remark without #? {line}"


def test_commands_stand_in_blocks_of_commands():
    for page in PAGES:
        for block in blocks(page):
            if block.language == "text":
                wrong = re.findall(r"^(?:\$ |python3? |bash |mpiexec ).*", block.text, re.MULTILINE)
                assert not wrong, f"{name(page)}:{block.line}: commands stand in ```console or ```sh: {wrong}"


def test_testing_md_lists_all_attacks_and_tools():
    text = (ROOT / "docs" / "testing.md").read_text()
    rows = re.search(r"^\| attack \|.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)[0]
    assert {word for row in rows.splitlines() for word in re.findall(r"`(\w+)`", row.split("|")[1])} == ATTACKS.keys()
    assert set(re.findall(r"`(\w+)`", re.search(r"and the tools (.*?)\)", text, re.DOTALL)[1])) == TOOLS


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page):
    for file in re.findall(r"`((?:tests|docs|benchmarks|minigrad|resnext|train)/[\w/.]+\.\w+)`", page.read_text()):
        assert (ROOT / file).exists(), f"{name(page)} names {file}, which does not exist"


GUIDE = ROOT / "docs" / "guide"
EXERCISES = {page.name: re.findall(r"^(\d+)\. \*\*", page.read_text(), re.MULTILINE) for page in GUIDE.glob("*.md")}
EXERCISES = {page: numbers for page, numbers in EXERCISES.items() if numbers}


def test_every_page_ends_with_exercises():
    assert EXERCISES.keys() == {page.name for page in GUIDE.glob("*.md")} - {"summary.md"}
    assert all(len(numbers) >= 2 for numbers in EXERCISES.values())


@pytest.mark.parametrize("page", EXERCISES)
def test_every_exercise_has_a_solution_that_runs(page, monkeypatch):
    solutions = ROOT / "docs" / "solutions" / f"page_{page.partition('-')[0]}.py"
    assert f"](../solutions/{solutions.name})" in (GUIDE / page).read_text()
    functions = {k: v for k, v in runpy.run_path(str(solutions)).items() if k.startswith("exercise_")}
    assert list(functions) == [f"exercise_{number}" for number in EXERCISES[page]]
    for solve in functions.values():
        solve()


@pytest.mark.parametrize(("file", "pages"), [("conv", 4), ("norm", 5)])
def test_every_name_in_the_files_that_the_guide_explains_is_on_its_pages(file, pages):
    text = "".join(next(GUIDE.glob(f"{number}-*.md")).read_text() for number in range(1, pages + 1))
    tree = list(ast.walk(ast.parse((ROOT / "minigrad" / "ops" / f"{file}.py").read_text())))
    names = {n.id for n in tree if isinstance(n, ast.Name)} | {n.arg for n in tree if isinstance(n, ast.arg)}
    names |= {n.attr for n in tree if isinstance(n, ast.Attribute)}
    missing = {n for n in names if not re.search(rf"\b{n}\b", text)} - {"Any", "bool", "self"}
    assert not missing, f"ops/{file}.py has {sorted(missing)}, of which the guide says nothing"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page):
    text = FENCE.sub("", page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for target in targets:
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{name(page)} links to {target}, which does not exist"
            if anchor and file.suffix == ".md":
                assert anchor in anchors(file), f"{name(page)} links to {target}, but {name(file)} has no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get on GitHub."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pictures_are_what_their_command_draws(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    namespace = runpy.run_path(str(ROOT / "docs" / "draw_pictures.py"), run_name="drawing")
    monkeypatch.setattr("pictures.canvas.IMAGES", tmp_path)
    for picture, draw in namespace["PICTURES"].items():
        if picture != "tape":  # drawn by Graphviz, whose versions differ
            draw()
            drawn, committed = (folder / f"guide_{picture}.svg" for folder in (tmp_path, ROOT / "docs" / "images"))
            assert drawn.read_text() == committed.read_text(), f"run python docs/draw_pictures.py {picture}"


def test_the_picture_of_a_run_names_its_network_and_ends_with_its_last_epoch():
    namespace = runpy.run_path(str(ROOT / "docs" / "draw_run.py"), run_name="drawing")
    title = namespace["heading"]("resnext20_4x32d_w16", "cifar10")
    assert title == "ResNeXt-20, 4x32d, on CIFAR-10"
    assert namespace["heading"]("vgg16_w8", "flowers") == "vgg16_w8, on flowers"
    axis = Figure().subplots()
    lines = [{"epoch": epoch, "train_error": 90.0 / epoch, "test_error": 80.0 / epoch} for epoch in (1, 2, 3)]
    namespace["draw_errors"](axis, title, lines, namespace["THEMES"][""])
    assert axis.get_title() == title
    assert axis.spines["bottom"].get_bounds()[1] == 3 < axis.get_xlim()[1]


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "images").glob("guide_*.svg")), ids=lambda path: path.stem)
def test_pictures_can_be_read_on_a_telephone_and_in_the_dark(picture):
    svg = picture.read_text()
    width = float(re.search(r'<svg[^>]* width="([\d.]+)"', svg)[1])
    sizes = [float(n) for n in re.findall(r"font-size[=:]\"?([\d.]+)", svg)]
    assert sizes and min(sizes) * min(1, 358 / width) > 10  # 390 pixels, less a page's margins
    assert "@media (prefers-color-scheme:dark)" in svg


def test_the_walk_through_the_source_has_the_lines_that_the_readme_says():
    rows = re.findall(r"^\| \[([\w/.]+)\]\(\1\) \| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 8
    for file, stated in rows:
        assert abs(int(stated) - code_lines(ROOT / file)) <= 15, f"{file} has {code_lines(ROOT / file)} lines of code"
