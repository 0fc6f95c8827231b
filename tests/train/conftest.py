"""What the tests of training share: a run that was never stopped, and ways to disturb one."""

import pytest
from support import tiny

from train.run import loop


@pytest.fixture
def at_step(monkeypatch):
    """Arrange that something happens after the nth step from now: a function of the run, or another result."""

    def arrange(n, action):
        train_step, calls = loop.train_step, iter(range(1, 1000))

        def step(run, *arguments):
            result = train_step(run, *arguments)
            return (action(run) or result) if next(calls) == n else result

        monkeypatch.setattr(loop, "train_step", step)

    return arrange


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert tiny.train(out) == 0
    return out


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run, and what its command printed."""
    out = tmp_path_factory.mktemp("run") / "with" / "folders"
    process = tiny.start(*tiny.OPTIONS, "--out", out)
    printed, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (0, "")
    return out, printed
