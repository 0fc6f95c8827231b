"""Clocks that jump: the time of day by years, back and forth, and the clock that only runs forward not at all.

NTP, suspended laptops, virtual machines that are moved, and coarse clocks do this. A run trains the same weights; it
saves when its steps say so, and no line that it prints or writes is nonsense.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from pathlib import Path
from unittest import mock

from support import tiny

from train import cifar
from train.run import loop

from .commands import call, copy_of_honest, resume, same_as_honest


def trial(rng: random.Random, folder: Path) -> None:
    """Train, or go on with a run, while the clocks misbehave."""
    real, offset, now = time.time, [0.0], [rng.choice([0.0, 1e9])]
    steady = rng.choice(["frozen", "coarse", "leaps", "as it is"])

    def day() -> float:
        offset[0] += rng.choice([0.0, 0.0, 3600.0, -3600.0, 1e9, -1e9])
        return max(0.0, real() + offset[0])

    def forward() -> float:
        now[0] += {"frozen": 0.0, "coarse": rng.choice([0.0, 0.0, 0.0, 0.0156]), "leaps": rng.choice([0.0, 1e-3, 1e6])}[
            steady
        ]
        return now[0]

    patches = [mock.patch("time.time", day), mock.patch("time.time_ns", lambda: int(1e9 * day()))]
    if steady != "as it is":
        patches.append(mock.patch.object(loop.time, "perf_counter", forward))
    out = folder / "run"
    go_on = rng.random() < 0.5
    if go_on:
        copy_of_honest(folder, rng.choice([4, 6, 8]))
        for path in out.iterdir():
            os.utime(path, (rng.choice([0, 2**31, 2**33]),) * 2)  # files from before and after our time
    for patch in patches:
        patch.start()
    try:
        if go_on:
            code, error = resume(out, "--save-every", rng.choice(["1", "2", "0.02m", "5m"]))
            assert code == 0, error
        else:
            call(cifar.main, *tiny.OPTIONS, "--out", out, "--save-every", rng.choice(["1", "2", "0.02m", "5m"]))
    finally:
        for patch in patches:
            patch.stop()
    same_as_honest(out)
    for line in (out / "metrics.jsonl").read_text().splitlines():
        rate = json.loads(line)["images_per_second"]
        assert math.isfinite(rate) and rate > 0, f"{rate} images/s with a clock that is {steady}"
