"""What is run by hand starts as its documentation says, and finds nothing in a few trials (tests/tools)."""

import os
import random
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
from tools import attack

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"chains": 30, "precision": 3, "checker": 50, "values": 20, "archives": 3, "images": 20, "servers": 3}
QUICK["expressions"] = 30 if util.find_spec("torch") else 0
SLOW = (
    "states",
    "folders",
    "clocks",
    "disks",
    "interrupts",
    "places",
)  # which train; the kills are tried in test_faults.py


def help_of(words):
    """Ask a tool for help as from a fresh shell in the checkout."""
    shell = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *words, "--help"]
    return subprocess.run(command, env=shell, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "words", [["tests/tools/kill_runs.py"], ["tests/tools/mutate.py"], ["-m", "tests.tools.attack"]]
)
def test_a_tool_starts_from_the_checkout_alone(words):
    done = help_of(words)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ")


@pytest.mark.parametrize("name", QUICK)
def test_an_attack_finds_nothing_in_a_few_trials(name):
    assert [found for i in range(QUICK[name]) if (found := attack.attempt(name, 1, i))] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_an_attack_on_runs_finds_nothing(name):
    assert attack.attempt(name, 1, 0) == ""


def test_whatever_a_trial_raises_is_found(monkeypatch, capsys):
    def trial(rng, folder):
        assert folder.is_dir() and isinstance(rng, random.Random)
        raise AssertionError("a promise that was not kept")

    monkeypatch.setattr(attack, "trial_of", lambda name: trial)
    assert attack.campaign("chains", minutes=0, seed=7) == 1
    printed = capsys.readouterr().out
    assert "a promise that was not kept" in printed
    assert "found by: python -m tests.tools.attack chains --seed 7 --trial 0" in printed


def test_every_attack_is_a_module():
    here = {path.stem for path in Path(attack.__file__).parent.glob("*.py")} - {"__init__", "__main__", "commands"}
    assert here == set(attack.ATTACKS)
