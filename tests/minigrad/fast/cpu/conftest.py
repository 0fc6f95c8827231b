"""How the CPU's engine room is tested: with one thread and several, each waked for small work too."""

import pytest
from support.engine import only, thread_count

from minigrad.fast import cpu


@pytest.fixture(autouse=True)
def registered():
    """The CPU's operations, whether or not MINIGRAD_FAST left them out."""
    with only(cpu.register):
        yield


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """One thread, two, and more than most of the cases have work for."""
    with thread_count(request.param):
        yield request.param


@pytest.fixture
def eager(monkeypatch):
    """Wake threads for small work too, so that small cases test how work is cut up."""
    for module in ("conv.geometry", "conv.base", "conv.pointwise", "layout", "norm", "pool", "sgd", "add"):
        monkeypatch.setattr(f"minigrad.fast.cpu.{module}.parts_for", lambda operations: cpu.threads())
