"""The drawing of the folders in CONTRIBUTING.md is of this house."""

import re

from support.tiny import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
DRAWING = re.search(r"```text\n(.*?)```", TEXT, re.S)[1]


def drawn():
    """The paths of the drawing: a folder ends with a slash, what stands in it is indented below."""
    folders = []  # (indentation, path) from the outermost to where we are
    for line in DRAWING.splitlines():
        indentation = len(line) - len(line.lstrip())
        folders = [(deep, path) for deep, path in folders if deep < indentation]
        above = folders[-1][1] if folders else ROOT
        names = re.split(r" {3,}", line.strip())[0].split()
        yield from (above / name for name in names)
        if names[-1].endswith("/"):
            folders.append((indentation, above / names[-1]))


def test_what_is_drawn_exists():
    paths = list(drawn())
    assert len(paths) > 30
    for path in paths:
        assert path.is_dir() or path.is_file(), f"CONTRIBUTING.md draws {path.relative_to(ROOT)}, which does not exist"


def test_every_folder_of_code_is_drawn():
    paths = set(drawn())
    for package in ("minigrad", "resnext", "train"):
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            # A folder within a room of the engine is a matter of that room.
            assert folder in paths or (folder.parent in paths and "fast" in folder.parts), folder


def test_what_the_table_names_exists():
    rows = re.findall(r"^\|.*\|$", TEXT, re.M)
    names = {name for row in rows for name in re.findall(r"`([\w./]+)`", row) if "/" in name or "." in name}
    assert len(names) > 10
    for name in names:
        assert (ROOT / name).exists(), name
