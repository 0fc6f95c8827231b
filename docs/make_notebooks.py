"""Make the learners' notebook from the guide: `python docs/make_notebooks.py` writes docs/notebooks/convolution.ipynb.

Pages 3 and 4 as they stand, with their snippets as cells, what these print as outputs, the pictures inside the file,
and a cell to answer each exercise in. The other notebook, train_on_a_gpu.ipynb, is written by hand.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGES = ("3-convolution.md", "4-groups.md")
FENCE = re.compile(r"^(?:<!-- run -->\n)?```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
LEFT_OUT = re.compile(r"^(?:\*Read beside it.*|\*Drawn by\*.*|(?:Back: .*)?Next: .*)\n+", re.MULTILINE)
PICTURE = re.compile(r"!\[(.*?)\]\(\.\./images/(.*?)\)", re.DOTALL)

WELCOME = """# Convolution and its gradients, cell by cell

Pages 3 and 4 of minigrad's guide as a notebook: run the cells from top to bottom, change them, and break them. At the
end of each page are exercises, with a cell for your answer.
"""
SETUP = """import importlib.util
import subprocess
import sys

# Where minigrad comes from, if it is not installed: a folder, a .zip of the project (in Colab: upload it in the panel
# on the left), or "git+" and an address for git.
SOURCE = "minigrad.zip"

if importlib.util.find_spec("minigrad") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", SOURCE], check=True)
"""


def lines(text: str) -> list[str]:
    return text.strip("\n").splitlines(keepends=True)


def markdown(text: str) -> dict[str, Any]:
    """A cell of text; its pictures come along as attachments."""
    cell: dict[str, Any] = {"cell_type": "markdown", "metadata": {}, "source": []}
    for _, name in PICTURE.findall(text):
        picture = base64.b64encode((DOCS / "images" / name).read_bytes()).decode()
        cell.setdefault("attachments", {})[name] = {"image/svg+xml": picture}
    text = PICTURE.sub(r"![\1](attachment:\2)", text)
    text = re.sub(r"\]\((\d+-[\w-]+\.md|summary\.md)", r"](../guide/\1", text)  # the page's links, from here
    cell["source"] = lines(text)
    return cell


def code(text: str) -> dict[str, Any]:
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": lines(text)}


def cells(page: str) -> list[dict[str, Any]]:
    """A page's text and snippets as cells, in order."""
    text, found, end = LEFT_OUT.sub("", page), [], 0
    for fence in FENCE.finditer(text):
        between = text[end : fence.start()]
        end = fence.end()
        found += [markdown(part) for part in re.split(r"\n(?=## )", between) if part.strip()]
        language, block = fence.groups()
        if language == "text":
            found[-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": lines(block)}]
        elif language == "console":
            found.append(code(re.sub(r"^\$ python\b", "!{sys.executable}", block, flags=re.MULTILINE)))
        else:
            found.append(code(block))
    rest, exercises = text[end:].split("## Exercises\n")
    found += [markdown(part) for part in re.split(r"\n(?=## )", rest) if part.strip()]
    head, *numbered = re.split(r"^(?=\d+\. \*\*)", exercises, flags=re.MULTILINE)
    found.append(markdown(f"## Exercises\n{head}"))
    for number, exercise in enumerate(numbered, 1):
        found += [markdown(exercise), code(f"# Exercise {number}: your answer")]
    return found


def notebook() -> str:
    """The learners' notebook as JSON."""
    content = [markdown(WELCOME), code(SETUP)]
    for page in PAGES:
        content += cells((DOCS / "guide" / page).read_text(encoding="utf-8"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    document = {"cells": content, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (DOCS / "notebooks" / "convolution.ipynb").write_text(notebook(), encoding="utf-8")
