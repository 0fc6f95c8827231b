"""Commands start where a notebook has named a backend for Matplotlib that is not installed."""

import os
import subprocess
import sys

import pytest


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
