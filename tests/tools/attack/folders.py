"""Run folders that somebody has edited by hand: what holds the run is its state, and nothing else can change it.

`config.json`, `metrics.jsonl`, pictures and reports are rewritten from the state; what lies in their place is no
obstacle, or is told in one sentence. The pages that are written have no markup of the names in them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

from train import cifar, figures, report
from train.run.checkpoint import BEST, LAST, PREVIOUS

from .commands import call, copy_of_honest, resume, same_as_honest
from .states import VALUES, spoil

DECORATION = ("config.json", "metrics.jsonl", "curves.png", "confusion.png", "report.html")
SCRIPT = "<script>alert(1)</script>"


def edit(rng: random.Random, path: Path, outside: Path) -> None:
    """Do something to a file that nobody but a run should write."""
    kind = rng.choice(["json", "json", "json", "cut", "noise", "remove", "folder", "link", "dangling", "empty", "deep"])
    text = path.read_bytes()
    if kind == "json" and path.suffix in (".json", ".jsonl"):
        lines = [json.loads(line) for line in text.decode().splitlines()] if path.suffix == ".jsonl" else None
        if lines is None:
            path.write_text(json.dumps(spoil(rng, json.loads(text))))
        else:
            lines[rng.randrange(len(lines))] = spoil(rng, lines[0])
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    path.unlink()
    if kind == "cut":
        path.write_bytes(text[: rng.randrange(len(text) + 1)])
    elif kind == "noise":
        path.write_bytes(rng.randbytes(rng.choice([1, 100, 10_000])))
    elif kind == "folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    elif kind == "link":
        path.symlink_to(outside)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "deep":
        path.write_text(rng.choice(["[" * 100_000, "9" * 10_000, '"\\ud800"', "null", json.dumps(rng.choice(VALUES))]))


def trial(rng: random.Random, folder: Path) -> None:
    """Edit some files of a run that was stopped, go on with it, and compare it with the one that was not."""
    name = rng.choice(["run", SCRIPT.replace("/", "|"), "$\\frac$", "two\nlines", "\x1b[31mred", "a b;c&d\"'"])
    run = copy_of_honest(folder, rng.choice([4, 6, 8])).rename(folder / name)
    outside = folder / "precious.txt"
    outside.write_text("mine")
    present = [run / n for n in (*DECORATION, BEST, PREVIOUS) if (run / n).is_file()]
    for path in rng.sample(present, rng.randint(1, min(3, len(present)))):
        edit(rng, path, outside)
    call(report.main, run)
    if rng.random() < 0.3:
        call(figures.main, "curves", run, "--figure", folder / "x.png")
    code, error = resume(run, pictures=True)
    assert outside.read_text() == "mine", "a link was followed"
    blocked = [n for n in (LAST, BEST, PREVIOUS, *DECORATION) if (run / n).is_dir() and not (run / n).is_symlink()]
    if blocked:  # told, and left as it is
        assert code or all(f"{n} cannot be written" in error for n in blocked if n in DECORATION[1:4]), error
        for n in blocked:
            assert (run / n / "mine").read_text() == "mine"
            shutil.rmtree(run / n)
        code, error = resume(run)
    assert code == 0, error
    same_as_honest(run)
    code, _, error = call(report.main, run)
    page = (run / "report.html").read_text()
    assert code == 0 and SCRIPT not in page.replace("|", "/"), error
    assert call(cifar.main, "--evaluate", run / LAST)[0] == 0
    assert not [n for n in os.listdir(run) if n.endswith(".part")]
