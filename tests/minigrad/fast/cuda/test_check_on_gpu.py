"""`python -m minigrad.check --device cuda` on the virtual GPU: right as the kernels are, and broken in three ways."""

import os
import sys
from pathlib import Path

import pytest
import virtual_gpu

from minigrad import check

ROOT = Path(__file__).resolve().parents[4]
if os.environ.get("MINIGRAD_VIRTUAL_GPU") == "1":
    pytest.skip("this process has the virtual GPU already", allow_module_level=True)
if reason := virtual_gpu.missing():
    pytest.skip(reason, allow_module_level=True)

STORE = "store(out + i * V, sum);"  # in add.cu
BROKEN = {
    "it lies": ("store(out + i * V, x);", "wrong: at most"),
    "it writes to a foreign address": ("store(reinterpret_cast<T*>(16), sum);", "crashes: signal 11"),
    "it never returns": ("do " + STORE + " while (vectors > 0);", "hangs: no answer within 20 s"),
}
WORKER = """
import sys
from minigrad import check
from minigrad.fast import cases
from minigrad.fast.cuda import gpu
whole = gpu.kernel_source
gpu.kernel_source = lambda name: whole(name).replace({old!r}, {new!r})
kept = [f for f in cases.families("cuda") if f.dtype == "float32" and f.name in ("addition", "SGD", "matrix product")]
cases.families = lambda device: kept
sys.exit(check.main(sys.argv[1:]))
"""


def verdicts(tmp_path, monkeypatch, new, patience):
    (tmp_path / "broken_kernel.py").write_text(WORKER.format(old=STORE, new=new))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests"))))
    monkeypatch.setattr(check, "WORKER", [sys.executable, "-m", "tests.virtual_gpu", "broken_kernel", "--worker"])
    found = [result for result in check.results("cuda", patience) if isinstance(result, check.Result)]
    return {result.name: result.verdict for result in found}


def test_as_they_are_the_kernels_are_right(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
    monkeypatch.setattr(check, "WORKER", [sys.executable, "-m", "tests.virtual_gpu", "minigrad.check", "--worker"])
    found = [result for result in check.results("cuda") if isinstance(result, check.Result)]
    assert {result.verdict for result in found} == {"right"}, found
    assert {"replay of a captured step", "tensor cores, groups of 4"} < {result.name for result in found}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
def test_a_kernel_that_was_broken_is_found_and_the_others_are_tried(tmp_path, monkeypatch, fault):
    new, verdict = BROKEN[fault]
    found = verdicts(tmp_path, monkeypatch, new, 20.0 if "never" in fault else check.PATIENCE)
    assert found.pop("addition").startswith(verdict)
    assert found == {"SGD": "right", "matrix product": "right"}
