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
from train.run.checkpoint import LAST

from .commands import honest, same_as_honest


def trial(rng: random.Random, folder: Path) -> None:
    """Begin a run, or go on with one, on a disk that is full; then make room."""
    sizes = [path.stat().st_size for path in honest().iterdir() if path.is_file()]
    limit = rng.choice([rng.randrange(max(sizes) * 6 // 5), max(0, rng.choice(sizes) + rng.choice([-1, 0, 1]))])
    words = ("--out", folder / "run", "--save-every", "1", "--resume")
    if rng.random() < 0.5:  # there is a state already
        whole = tiny.start(*tiny.OPTIONS, *words)
        assert (whole.communicate(timeout=120)[1], whole.returncode) == ("", 0)
        (folder / "run" / LAST).unlink() if rng.random() < 0.5 else None
    before = list((folder / "run").glob("*.safetensors"))
    full = tiny.start(
        *tiny.OPTIONS, *words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, error = full.communicate(timeout=120)
    assert full.returncode in (0, 1, 2) and "Traceback" not in error, f"{limit} bytes: {full.returncode} {error}"
    assert full.returncode == 0 or "File too large" in error, f"{limit} bytes: {error}"
    for path in before:
        if path.exists():
            checkpoint.read(path)
    roomy = tiny.start(*tiny.OPTIONS, *words)
    _, error = roomy.communicate(timeout=120)
    assert roomy.returncode == 0, f"after {limit} bytes: {error}"
    same_as_honest(folder / "run")
