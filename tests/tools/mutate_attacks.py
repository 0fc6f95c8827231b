"""Would an attack notice? Put one bug at a time into what it attacks, and see whether it finds something.

    python tests/tools/mutate_attacks.py                   every bug below (an hour)
    python tests/tools/mutate_attacks.py states --seconds 60    the bugs for one attack, so long for each
    python tests/tools/mutate_attacks.py "links are followed"    one bug

Each bug lives in a temporary copy of the project; the working tree is not touched. Printed are, for every bug, the
trials that it took; the exit code is 1 where a bug was not found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, time
from tests.tools import attack
name, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
end, trials = time.monotonic() + seconds, 0
while time.monotonic() < end:
    found = attack.attempt(name, seed, trials)
    trials += 1
    if found:
        print(f"found by trial {trials}: {found.strip().splitlines()[-1][:100]}")
        sys.exit()
print(f"NOT FOUND in {trials} trials")
"""


@dataclass(frozen=True)
class Bug:
    """A text in a file of the project, and what stands there with the bug."""

    attack: str
    path: str
    text: str
    wrong: str


CHECKPOINT, TRAINING, LOOP = "train/run/checkpoint.py", "train/run/training.py", "train/run/loop.py"
OPTIONS, WEIGHTS, PROCESS = "train/options.py", "minigrad/weights.py", "minigrad/fast/process.py"
SIGNALS, PARALLEL, REPORT = "train/run/signals.py", "train/run/parallel.py", "train/show/report.py"
PART, IN_PLACE = "    part = path.with_name(", "    path.write_bytes(content)\n    return\n    part = path.with_name("
ANYTHING = "lambda value: True,"
CAUGHT, NOT_CAUGHT = (
    "        except Exception as error:\n            if name",
    "        except KeyError as error:\n            if name",
)
LEFT_OUT = "        except KeyError:\n            pass\n        "
BUGS = {
    "a negative variance is taken": Bug("states", CHECKPOINT, "if (counted or variance) and", "if False and"),
    "NaN and infinity are taken": Bug("states", CHECKPOINT, 'dtype.kind == "f" and', "dtype.kind is None and"),
    "any step is taken": Bug("states", CHECKPOINT, '"step": _count,', f'"step": {ANYTHING}'),
    "any history is taken": Bug("states", CHECKPOINT, "_list_of(has_numbers(*FIGURES)),", ANYTHING),
    "any deviation is taken": Bug(
        "states", CHECKPOINT, "_list_of(lambda value: is_number(value) and value > 0, 3),", ANYTHING
    ),
    "any totals are taken": Bug("states", CHECKPOINT, '"totals": _totals,', f'"totals": {ANYTHING}'),
    "any generator is taken": Bug("states", CHECKPOINT, '"generator": _generator,', f'"generator": {ANYTHING}'),
    "any size is taken": Bug(
        "states", CHECKPOINT, "_list_of(lambda value: _count(value) and 0 < value <= 1 << 16, 2),", ANYTHING
    ),
    "any average is taken": Bug("states", LOOP, "if name not in self.averaged or", "if False and"),
    "a refused state is thrown away": Bug("states", CHECKPOINT, "os.replace(folder / LAST, folder / DAMAGED)", "pass"),
    "names are markup in the report": Bug("states", REPORT, "autoescape=True", "autoescape=False"),
    "links are followed": Bug("folders", WEIGHTS, PART, "    path = path.resolve()\n" + PART),
    "the log is not written anew": Bug(
        "folders", TRAINING, 'with run.decoration("metrics.jsonl"):', 'if not (out / "metrics.jsonl").exists():'
    ),
    "names are markup in the page": Bug("folders", REPORT, "autoescape=True", "autoescape=False"),
    "a folder in the way is a raw error": Bug(
        "folders", TRAINING, 'raise TrainingError(f"{path} cannot be w', 'raise KeyError(f"{path} cannot be w'
    ),
    "names are formulas in pictures": Bug(
        "folders", "train/show/plots.py", '["text.parse_math"] = False', '["text.parse_math"] = True'
    ),
    "the first epoch is forgotten": Bug(
        "folders", LOOP, 'state["step"], state["history"]', 'state["step"], state["history"][1:]'
    ),
    "files are written in place": Bug("kills", WEIGHTS, PART, IN_PLACE),
    "the last state before the best": Bug(
        "kills",
        TRAINING,
        "            if best:  #",
        "            run.save(out / checkpoint.LAST)\n            if best:  #",
    ),
    "momentum begins anew": Bug("kills", LOOP, "[velocities.get(names[id(p)]) for p in", "[None for p in"),
    "an epoch's loss begins anew": Bug(
        "kills", LOOP, 'self.earlier = state["totals"],', 'self.earlier = {**state["totals"], "loss": 0.0},'
    ),
    "a full disk spoils the old file": Bug("disks", WEIGHTS, PART, IN_PLACE),
    "errors of saving are hidden": Bug(
        "disks", LOOP, 'raise TrainingError(f"{path} cannot be saved: {error.strerror or error}") from error', "pass"
    ),
    "states are removed before saving": Bug(
        "disks",
        CHECKPOINT,
        "    write(last, arrays",
        "    previous.unlink(missing_ok=True)\n    last.unlink(missing_ok=True)\n    write(last, arrays",
    ),
    "decoration ends a run on a full disk": Bug("disks", OPTIONS, CAUGHT, NOT_CAUGHT),
    "the best state is not gone on with": Bug(
        "disks", CHECKPOINT, "folder / PREVIOUS, folder / BEST):", "folder / PREVIOUS):"
    ),
    "Python's turns are not put back": Bug(
        "interrupts", PROCESS, "        finally:\n            sys.setsw", LEFT_OUT + "sys.setsw"
    ),
    "BLAS's threads are not put back": Bug(
        "interrupts",
        PROCESS,
        "    finally:\n        list(put_back)",
        "    except KeyError:\n        pass\n    list(put_back)",
    ),
    "a lock stays taken": Bug(
        "interrupts",
        "minigrad/fast/cpu/threads.py",
        "        with self.lock:\n            parallel_section(section)",
        "        self.lock.acquire()\n        parallel_section(section)\n        self.lock.release()",
    ),
    "signals stay caught": Bug(
        "interrupts", SIGNALS, "                signal.signal(number, handler)", "                pass"
    ),
    "a signal interrupts anything": Bug("interrupts", SIGNALS, "if not self.postpone:", "if True:"),
    "no tape after an interrupt": Bug(
        "interrupts",
        "minigrad/tensor.py",
        "        _thread.recording = self.before.pop()",
        "        _thread.recording = self.before.pop() and _[0] is None",
    ),
    "odd encodings end a run": Bug(
        "places",
        OPTIONS,
        '    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)',
        "    print(line, flush=True)",
    ),
    "warnings fail where nobody reads": Bug(
        "places", OPTIONS, "with suppress(OSError, ValueError):", "with suppress(KeyError):"
    ),
    "warnings fail without stderr": Bug("places", OPTIONS, "    if sys.stderr is not None:", "    if True:"),
    "decoration ends a run in odd places": Bug("places", OPTIONS, CAUGHT, NOT_CAUGHT),
    "ranks wait for ever": Bug(
        "ranks", PARALLEL, "            if now - begin > patience or now - signalled > grace:", "            if False:"
    ),
    "only rank 0 goes on": Bug("ranks", TRAINING, "        found = ranks.broadcast(found)\n", ""),
    "signals are not shared": Bug(
        "ranks",
        "train/run/faults.py",
        "= self.ranks.maximum(self.signals.number, int(late))",
        "= self.signals.number, int(late)",
    ),
}


def copy_with(bug: Bug, folder: Path) -> Path:
    """A copy of the project with the bug in it."""
    copy = folder / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "docs", "__pycache__", ".*_cache"), symlinks=True)
    path = copy / bug.path
    source = path.read_text()
    if source.count(bug.text) != 1:
        raise ValueError(f"{bug.path} has {source.count(bug.text)} times the text {bug.text!r}")
    path.write_text(source.replace(bug.text, bug.wrong))
    return copy


def attack_with(bug: Bug, seconds: float, seed: int) -> str:
    """Let the attack try to find the bug for so many seconds; return what it says."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_with(bug, Path(folder))
        command = [sys.executable, "-c", SCRIPT, bug.attack, str(seconds), str(seed)]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=seconds + 600)
    return (done.stdout.strip() or f"found: the attack ended with {done.returncode}").splitlines()[-1]


def main() -> int:
    p = argparse.ArgumentParser(description="Put bugs into what the attacks attack, and see whether they are found.")
    p.add_argument("names", nargs="*", metavar="NAME", help="attacks or bugs (default: all bugs)")
    p.add_argument("--seconds", type=float, default=60, help="for each bug (default: 60)")
    p.add_argument("--seed", type=int, default=0, help="of the trials (default: 0)")
    args = p.parse_args()
    unfound = 0
    for name, bug in BUGS.items():
        if args.names and name not in args.names and bug.attack not in args.names:
            continue
        begin = time.monotonic()
        said = attack_with(bug, args.seconds, args.seed)
        unfound += said.startswith("NOT")
        print(f"{bug.attack:10} {name:34} {time.monotonic() - begin:4.0f} s  {said}", flush=True)
    return 1 if unfound else 0


if __name__ == "__main__":
    sys.exit(main())
