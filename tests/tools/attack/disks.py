"""Disks that are full at a random byte of any file that a run writes, by the limit that a system puts on a file's size.

The run ends with a sentence, or goes on without what only decorates it; the state that was saved before stays whole,
and with room on the disk the run goes on to the same bits.
"""

from __future__ import annotations

import random
import resource
from pathlib import Path

from support import tiny

from train.run import checkpoint
from train.run.checkpoint import BEST, LAST, PREVIOUS

from .commands import copy_of_honest, honest, same_as_honest


def steps_saved(run: Path) -> int:
    """The steps behind the latest state in a folder, -1 without one; each that is there must be whole."""
    states = [checkpoint.read(run / name)[1] for name in (LAST, PREVIOUS, BEST) if (run / name).exists()]
    return max((state["epoch"] * tiny.STEPS + state["step"] for state in states), default=-1)


def trial(rng: random.Random, folder: Path) -> None:
    """Begin a run, or go on with one, on a disk that is full; then make room."""
    sizes = [path.stat().st_size for path in honest().iterdir() if path.is_file()]
    limit = rng.choice([rng.randrange(max(sizes) * 6 // 5), max(0, rng.choice(sizes) + rng.choice([-1, 0, 1]))])
    words = ("--out", folder / "run", "--save-every", "1", "--resume")
    before = -1
    if rng.random() < 0.7:  # there is a state already
        copy_of_honest(folder, rng.choice([2, 4, 6, 8]))
        if rng.random() < 0.3 and (folder / "run" / BEST).exists():
            (folder / "run" / LAST).unlink()
        before = steps_saved(folder / "run")
    full = tiny.start(
        *tiny.OPTIONS, *words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, error = full.communicate(timeout=120)
    assert full.returncode in (0, 1, 2) and "Traceback" not in error, f"{limit} bytes: {full.returncode} {error}"
    assert full.returncode == 0 or "File too large" in error, f"{limit} bytes: {error}"
    after = steps_saved(folder / "run")
    done = after == tiny.EPOCHS * tiny.STEPS
    assert done or full.returncode, f"{limit} bytes: it ended well, and its last state is one of {after} steps"
    assert after >= before, f"{limit} bytes: a state of {before} steps was there, of {after} is left"
    roomy = tiny.start(*tiny.OPTIONS, *words)
    _, error = roomy.communicate(timeout=120)
    assert roomy.returncode == 0, f"after {limit} bytes: {error}"
    same_as_honest(folder / "run")
