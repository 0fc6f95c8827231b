"""`python -m minigrad.check`: what is right is called right, and a kernel that lies, crashes or hangs is found."""

import os
import sys

import numpy as np
import pytest

from minigrad import check, registry
from minigrad.fast import cases
from minigrad.fast.cpu import FastAvgPool2d, FastMaxPool2d
from minigrad.ops.pool import MaxPool2d

# A worker with three families, of which the second is broken in one of three ways.
BROKEN = """
import os, sys, time
import numpy as np
from minigrad import check
from minigrad.fast import cases
kept = [f for f in cases.families("cpu") if f.dtype == "float64" and ("pool" in f.name or f.name == "addition")]
cases.families = lambda device: kept
break_it = {
    "lies": lambda x: [x * 1.001],
    "dies": lambda x: os.abort(),
    "hangs": lambda x: time.sleep(1000),
    "raises": lambda x: [][0],
    "not a number": lambda x: [x * np.nan],
}[sys.argv[1]]
kept[1] = kept[1]._replace(fast=break_it, book=lambda x: [x])
sys.exit(check.main(sys.argv[2:]))
"""
VERDICTS = {
    "lies": "wrong: at most",
    "dies": "crashes: signal 6",
    "hangs": "hangs: no answer within 3 s",
    "raises": "fails: list index out of range",
    "not a number": "wrong: at most",
}


@pytest.mark.parametrize("fault", VERDICTS)
def test_a_broken_family_is_found_and_the_others_are_tried(tmp_path, monkeypatch, fault):
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(check, "WORKER", [sys.executable, str(script), fault, "--worker"])
    patience = 3 if fault == "hangs" else check.PATIENCE
    verdicts = [result.verdict for result in check.results("cpu", patience) if isinstance(result, check.Result)]
    assert [verdicts[0], verdicts[2]] == ["right", "right"] and len(verdicts) == 3
    assert verdicts[1].startswith(VERDICTS[fault])


def test_this_machine_computes_right(capsys):
    assert check.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(cases.families("cpu")) and lines[-1] == "everything is right"


def test_a_device_that_is_not_there_is_told_apart(capsys):
    assert check.main(["--device", "cuda:77"]) == 2
    assert check.main(["--device", "tpu"]) == 2
    assert capsys.readouterr().err.count("python -m minigrad.check: ") == 2


def test_what_fails_is_left_out_and_the_answer_is_kept(tmp_path, monkeypatch):
    """The GPU is a stand-in: its families are the CPU's."""
    bad = next(f for f in cases.families("cpu") if f.name == "max pooling" and f.dtype == "float32")
    asked, said = [], []

    def results(device):
        asked.append(device)
        yield bad.name, bad.dtype
        yield check.Result(bad.name, bad.dtype, "crashes: signal 11")
        yield check.Result("addition", "float32", check.RIGHT, 1e-7, 2.0)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(check, "machine", lambda device: {"gpu": "Stand-in 3000", "sources": "1"})
    monkeypatch.setattr(check, "results", results)
    monkeypatch.setattr(registry, "fast", lambda device: True)
    families = cases.families
    monkeypatch.setattr(cases, "families", lambda device: families("cpu"))
    with registry.book_only():
        registry.register(MaxPool2d, "cuda", FastAvgPool2d, FastMaxPool2d)
        check.leave_out_what_fails("cuda", said.append)
        assert registry._stand_ins[MaxPool2d, "cuda"] == (FastAvgPool2d,)
        check.leave_out_what_fails("cuda", said.append)
    assert asked == ["cuda"], "the second time the answer is known"
    assert "checking the kernels on this Stand-in 3000 once" in said[0]
    assert said[1:] == [said[1]] * 2 and "max pooling in float32 crashes: signal 11: it is left out" in said[1]

    (file,) = (tmp_path / "minigrad").iterdir()
    file.write_text("[")  # a damaged answer is no answer
    monkeypatch.setattr(check, "leave_out", lambda *arguments: None)
    check.leave_out_what_fails("cuda", said.append)
    monkeypatch.setattr(check, "machine", lambda device: {"gpu": "Stand-in 3000", "sources": "2"})
    check.leave_out_what_fails("cuda", said.append)
    assert len(asked) == 3, "other sources are another question"
    monkeypatch.setenv("MINIGRAD_CHECK", "0")
    check.leave_out_what_fails("cuda", said.append)
    assert len(asked) == 3


def test_differences_are_shares_of_the_largest_value():
    assert check.difference(np.array([1.0, 4.0]), np.array([1.0, 5.0])) == 0.2
    assert check.difference(np.array([np.nan]), np.array([1.0])) == np.inf
    assert check.difference(np.zeros(2), np.zeros(3)) == np.inf
