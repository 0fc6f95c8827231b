"""How the suite runs itself (tests/support/workers.py)."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.workers import use_all_cores

from minigrad import registry

COMMAND = """
import minigrad
minigrad.fast.process.prepare()
print([library.architecture for library in minigrad.fast.process.libraries()], minigrad.fast.cpu.threads())
"""


def processes(*args, numprocesses=None, markexpr="", dist="no", **more):
    """What a command with these options asks of pytest-xdist: how many processes, and how tests are dealt."""
    options = SimpleNamespace(numprocesses=numprocesses, markexpr=markexpr, dist=dist)
    use_all_cores(SimpleNamespace(args=list(args), option=options, **more))
    return options.numprocesses, options.dist


def test_the_whole_suite_and_folders_run_on_all_cores():
    assert processes("tests") == processes("tests/minigrad", markexpr="not slow") == ("auto", "worksteal")


@pytest.mark.parametrize("arg", ["tests/minigrad/test_nn.py", "tests/minigrad/test_nn.py::test_a_test[a/b]"])
def test_what_is_named_by_file_runs_in_one_process(arg):
    assert processes(arg) == (None, "no")


def test_one_gpu_is_for_one_process():
    assert processes("tests", markexpr="cuda") == (None, "no")


def test_whoever_says_how_has_it_his_way():
    assert processes("tests", numprocesses=0) == (0, "no")
    assert processes("tests", numprocesses=3, dist="loadfile") == (3, "loadfile")
    assert processes("tests", dist="loadfile") == ("auto", "loadfile")


def test_a_worker_starts_no_workers():
    assert processes("tests", workerinput={}) == (None, "no")


def test_without_xdist_nothing_changes():
    options = SimpleNamespace(markexpr="")
    use_all_cores(SimpleNamespace(args=["tests"], option=options))
    assert options == SimpleNamespace(markexpr="")


def test_a_seed_of_hypothesis_is_not_ignored(request, monkeypatch):
    """The profile "ci" draws the same examples with every seed."""
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).parents[1] / "conftest.py"))
    loaded = []
    monkeypatch.setattr(conftest, "settings", SimpleNamespace(load_profile=loaded.append))
    for profile in ("thorough", None):
        monkeypatch.setenv("HYPOTHESIS_PROFILE", profile) if profile else monkeypatch.delenv("HYPOTHESIS_PROFILE")
        for seed in (None, "7"):
            options = {"--hypothesis-seed": seed}
            conftest.pytest_configure(SimpleNamespace(getoption=lambda name, _, options=options: options[name]))
    assert loaded == ["dev"]


@pytest.mark.skipif(not registry.fast("cpu"), reason="the book alone switches nothing")
def test_a_command_computes_with_the_kernels_and_threads_of_this_process():
    """Others add in another order, and what a test computes here and in a command would then differ."""
    from minigrad.fast import cpu, process

    command = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True, timeout=60)
    here = [library.architecture for library in process.libraries()]
    assert command.stdout == f"{here} {cpu.threads()}\n"
