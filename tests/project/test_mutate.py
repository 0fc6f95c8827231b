"""The mutation check (mutate.py) on a small scale: it breaks what it says, and a few mutants are caught."""

import ast

import pytest
from tools import mutate


def test_mutants_are_programs_that_differ_from_the_original_and_from_each_other():
    mutants = list(mutate.mutants())
    assert len(mutants) > 400
    assert len({(m.path, m.place, m.changed) for m in mutants}) >= 0.99 * len(mutants)
    for mutant in mutants:
        assert mutant.changed != mutant.original
        compile(mutant.changed, mutant.path, "exec")
    assert mutants[0].changed in mutants[0].source()
    assert mutants[0].diff() == "-        return (dy, dy)\n+        return (-dy, dy)"


def test_every_backward_pass_has_mutants():
    broken = {(m.path, m.function) for m in mutate.mutants() if m.kind in ("sign", "factor", "dropped")}
    for path in mutate.TARGETS:
        for node in ast.walk(ast.parse((mutate.ROOT / path).read_text())):
            if isinstance(node, ast.ClassDef) and path.startswith("minigrad/ops"):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name == "backward":
                        assert (path, f"{node.name}.backward") in broken


def test_what_counts_as_equivalent_still_exists():
    assert set(mutate.EQUIVALENT) <= set().union(*(m.new_lines() for m in mutate.mutants()))


@pytest.mark.slow
def test_a_sample_is_caught(capsys):
    assert mutate.main(["--file", "loss", "--sample", "1"]) == 0
    assert "1 of    1 caught, 100.0 %" in capsys.readouterr().out
