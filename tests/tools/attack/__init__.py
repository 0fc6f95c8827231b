"""Attacks on what the project promises, each from outside its tests, for as long as one likes.

    python -m tests.tools.attack --minutes 10            all of them, in turn
    python -m tests.tools.attack chains --minutes 2      one of them
    python -m tests.tools.attack chains --seed 3 --trial 17      one trial again, which was found to fail

An attack is a module here with a function `trial(rng, folder)`: it draws something hostile from `rng`, does it in an
empty folder, and raises whatever shows that a promise was not kept; anything raised is a finding. What a trial does
depends on the attack's name, the seed and the trial's number alone, as far as the clock and the processes allow.
"""

from __future__ import annotations

import importlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[2]
for place in (TESTS / "train" / "data", TESTS / "minigrad", TESTS, TESTS.parent):  # the packages, what tests share
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

ATTACKS = {
    "chains": "random networks in nine memory layouts: fast against book against PyTorch, values that are no numbers",
    "precision": "float32 operations with large means and long axes, against float64",
    "expressions": "expressions as users write them, in shapes that nobody thinks of, against PyTorch",
    "checker": "gradcheck on functions of somebody's own, right and wrong, at all scales",
    "values": "two hostile values at a time for everything public, and one for every option of every command",
    "archives": "damaged and malicious archives, whose hash nobody checks",
    "images": "damaged images under wrong names",
    "servers": "servers that stall, lie, break off, redirect and send too much",
    "states": "states of a run with hostile fields and a valid checksum",
    "folders": "run folders edited by hand, and things in the place of files",
    "clocks": "clocks that jump, stand still and run backwards during a run",
    "kills": "runs killed at random moments, compared bit by bit in the end",
    "disks": "disks that are full at a random byte",
    "interrupts": "Ctrl-C at any place of a loop in a notebook and of a run",
    "places": "odd locales, homes, folders and outputs to run in",
    "ranks": "ranks killed, stopped and signalled, and one alone with a full disk",
}
PATIENCE = 180  # seconds after which a trial counts as one that would never have ended
Trial = Callable[[random.Random, Path], None]


class Skipped(Exception):
    """An attack that this machine cannot make; the sentence says what is missing."""


class Endless(BaseException):
    """A trial took longer than it may. No Exception, so that nothing under attack takes it for a failure of its own."""


def trial_of(name: str) -> Trial:
    """The function that tries an attack once."""
    return importlib.import_module(f"{__name__}.{name}").trial


def attempt(name: str, seed: int, number: int) -> str:
    """Try an attack once; return what was found in words, "" for nothing."""
    with tempfile.TemporaryDirectory(prefix=f"attack-{name}-", ignore_cleanup_errors=True) as folder:
        try:
            with patience(PATIENCE):
                trial_of(name)(random.Random(f"{name} {seed} {number}"), Path(folder))
        except (Skipped, KeyboardInterrupt):
            raise
        except BaseException:  # whatever it is, no promise allows for it; a SystemExit would end the campaign
            return traceback.format_exc()
    return ""


@contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Inside, raise Endless after so many seconds, where the system has an alarm clock."""

    def ring(number: int, frame: Any) -> None:
        raise Endless(f"no end within {seconds} seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def campaign(name: str, minutes: float, seed: int = 0) -> int:
    """Try an attack again and again for so many minutes, once at least; print what comes out, return the findings."""
    begin, number, found = time.monotonic(), 0, 0
    try:
        while not number or time.monotonic() - begin < 60 * minutes:
            finding = attempt(name, seed, number)
            if finding:
                found += 1
                print(f"{finding}found by: python -m tests.tools.attack {name} --seed {seed} --trial {number}")
            number += 1
    except Skipped as reason:
        print(f"{name:10} left out: {reason}", flush=True)
        return 0
    seconds = time.monotonic() - begin
    print(f"{name:10} {number:7,} trials in {seconds:6.1f} s, {found or 'nothing'} found: {ATTACKS[name]}", flush=True)
    return found


def all_campaigns(names: Sequence[str], minutes: float, seed: int) -> int:
    """Make the attacks in turn, each in a process of its own, whose crash is a finding too; return how many found."""
    found = 0
    for name in names:
        words = [name, "--minutes", str(minutes / len(names)), "--seed", str(seed)]
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.tools.attack", *words]
        try:
            code = subprocess.run(command, cwd=TESTS.parent, timeout=60 * minutes + 4 * PATIENCE).returncode
        except subprocess.TimeoutExpired:
            code = -1
        found += bool(code)
        if code not in (0, 1):
            print(f"{name:10} ended with {code}", flush=True)
    return found
