"""States of a run whose every field may be anything, with the checksum that belongs to them.

`--resume`, `--evaluate`, `train.predict` and `train.report` take them, or refuse them in one sentence. No state that
was saved before is lost.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train import cifar, predict, report
from train.run import checkpoint
from train.run.checkpoint import BEST, LAST, PREVIOUS

from .commands import call, copy_of_honest, resume

WORDS = """
x <script>alert(1)</script> $\\frac$ ../../x /dev/zero cpu cuda cuda:99 bfloat16 float64 shapes cifar10 resnext29_8x64d
resnext9999999_1x4d resnext11_99999x99999d
"""
NUMBERS = [0, 1, -1, 2, 3, 7, 1.5, -0.0, 1e-300, 1e300, 1e308, 10**30, 2**63]
VALUES: list[Any] = [None, True, False, *NUMBERS, *WORDS.split(), "", "\x1b[31m", "a" * 10_000]
VALUES += [[], [1], [None], {}, {"a": 1}, [[]]]


def place(rng: random.Random, value: Any) -> tuple:
    """A place inside a JSON object or list that is not empty: one of its parts, or a place inside of that.

    Every part is as likely as the others, however much is in it: a state has one step and a hundred figures.
    """
    key = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
    inside = value[key]
    deeper = isinstance(inside, dict | list) and inside and rng.random() < 0.7
    return (key, *place(rng, inside)) if deeper else (key,)


def spoil(rng: random.Random, value: Any) -> Any:
    """Put something else somewhere into a JSON value, remove something, or add something."""
    value = copy.deepcopy(value)
    at = place(rng, value)
    holder = value
    for key in at[:-1]:
        holder = holder[key]
    kind = rng.choice(["replace", "replace", "replace", "remove", "add", "double"])
    old = holder[at[-1]]
    if kind == "remove":
        del holder[at[-1]]
    elif kind == "add" and isinstance(holder, dict):
        holder[rng.choice(["x", "", "epochs", "__class__"])] = rng.choice(VALUES)
    elif kind == "double" and isinstance(old, int | float) and not isinstance(old, bool):
        holder[at[-1]] = rng.choice([-old, 2 * old, old + 1, old - 1, 1000 * old])
    else:
        holder[at[-1]] = rng.choice(VALUES)
    return value


def spoil_arrays(rng: random.Random, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename, remove, reshape, retype or overwrite an array."""
    arrays = dict(arrays)
    last_words = sorted({name.rpartition(".")[2] for name in arrays})
    word = rng.choice(last_words)  # each kind of array is as likely as the others
    name = rng.choice([name for name in sorted(arrays) if name.rpartition(".")[2] == word])
    array = arrays[name]
    kind = rng.choice(["rename", "remove", "reshape", "retype", "nan", "empty", "huge", "negative"])
    if kind in ("rename", "remove"):
        del arrays[name]
    if kind == "rename":
        arrays[rng.choice(["x", "velocity:x", "average:x", ":", "fc.weight.", name + "\x1b[31m"])] = array
    elif kind == "reshape":
        arrays[name] = array.reshape(rng.choice([(-1,), (1, *array.shape), (*array.shape, 1)]))
    elif kind == "retype":
        arrays[name] = array.astype(rng.choice([np.float64, np.float16, np.int8, np.int64, bool, np.uint64]))
    elif kind == "empty":
        arrays[name] = array[:0] if array.ndim else np.zeros((0, 3), array.dtype)
    elif kind != "remove" and array.dtype.kind == "f":
        value = {"nan": np.nan, "huge": 1e30, "negative": -1.0}.get(kind, 0.0)
        arrays[name] = np.full_like(array, value)
    return arrays


def write_spoiled(rng: random.Random, path: Path, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Write a state that is spoiled in one to three places."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if state and rng.random() < 0.7:
            state = spoil(rng, state)
        elif arrays:
            arrays = spoil_arrays(rng, arrays)
    checkpoint.write(path, arrays, state)


def read_by_all(path: Path, image: Path) -> None:
    """Let the commands that only read a state do so; what they print is made of numbers."""
    for main, *words in ((cifar.main, "--evaluate"), (predict.main, image, "--checkpoint")):
        code, said, _ = call(main, *words, path)
        assert code or "nan" not in said, f"what is no number was printed as a result: {said}"


def trial(rng: random.Random, folder: Path) -> None:
    """Spoil a run's state in many ways; let every command that reads states read it, and go on from the last one."""
    run = copy_of_honest(folder, rng.choice([None, None, 4, 6, 8, 8]))
    honest = checkpoint.read(run / LAST)
    image = folder / "x.png"
    Image.new("RGB", (32, 32), "red").save(image)
    for _ in range(8):
        write_spoiled(rng, folder / "state.safetensors", *honest)
        read_by_all(folder / "state.safetensors", image)
    write_spoiled(rng, run / LAST, *honest)
    if rng.random() < 0.5:  # there is nothing else to go on from
        for name in (PREVIOUS, BEST):
            (run / name).unlink(missing_ok=True)
    before = {path.name: path.read_bytes() for path in run.glob("*.safetensors")}
    read_by_all(run / LAST, image)
    if rng.random() < 0.3 and call(report.main, run)[0] == 0:
        assert "<script>" not in (run / "report.html").read_text(), "a page with somebody's script in it"
    for name, content in before.items():
        assert (run / name).read_bytes() == content, f"{name} was changed by a command that reads"
    code, error = resume(run, "--epochs", 3) if rng.random() < 0.3 else resume(run)
    kept = {path.read_bytes() for path in run.glob("*.safetensors")}
    # One that was refused is put aside; one that was gone on with is replaced; a run that went wrong replaces none.
    due = [LAST] if "going on from" in error else list(before) if code else []
    lost = [name for name in due if before[name] not in kept]
    assert not lost, f"{lost} were lost: {error}"
