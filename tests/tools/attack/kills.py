"""Runs killed with SIGKILL at random moments, gone on with, and compared bit by bit: a few of kill_runs.py a trial."""

import random
from pathlib import Path

from tools import kill_runs


def trial(rng: random.Random, folder: Path) -> None:
    result = kill_runs.trial(4, rng.getrandbits(30), folder)
    assert not result.lost and not result.different, result
