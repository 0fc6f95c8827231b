"""Commands start where a notebook has named a backend for Matplotlib that is not installed."""

import os
import subprocess
import sys

import pytest

from train.show import forget_missing_backend


@pytest.mark.parametrize("command", ["train.cifar", "train.figures", "train.report", "train.bench", "train.predict"])
def test_a_backend_that_is_not_installed_stops_no_command(command):
    done = subprocess.run(
        [sys.executable, "-m", command, "--help"],
        env=os.environ | {"MPLBACKEND": "module://a_notebook_that_is_not_here.backend_inline"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("backend", "kept"), [("agg", True), ("module://numpy.core", True), ("module://not_here.x", False)]
)
def test_a_backend_that_is_installed_is_left_alone(backend, kept, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", backend)
    forget_missing_backend()
    assert ("MPLBACKEND" in os.environ) == kept
