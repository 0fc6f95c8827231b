"""Odd places to run in: locales, homes, folders, outputs that nobody reads, and what a shell may have set.

A run trains to the bits of an honest one, or ends with one sentence; no traceback comes from anywhere in between.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from support import tiny

from .commands import honest, same_as_honest

VARIABLES = {
    "LC_ALL": ["C", "POSIX", "C.UTF-8", "tr_TR.UTF-8", "xx_YY.none"],
    "PYTHONUTF8": ["0", "1"],
    "PYTHONIOENCODING": ["ascii", "latin-1", "utf-16", "cp1252:strict"],
    "PYTHONCOERCECLOCALE": ["0"],
    "PYTHONOPTIMIZE": ["1", "2"],
    "PYTHONDONTWRITEBYTECODE": ["1"],
    "PYTHONWARNINGS": ["error", "always"],
    "PYTHONDEVMODE": ["1"],
    "PYTHONSAFEPATH": ["1"],
    "HOME": ["/dev/null", "/nowhere", "/proc", "", "ohne \udcff"],
    "XDG_CACHE_HOME": ["/dev/null", "/proc", "relative"],
    "MPLCONFIGDIR": ["/dev/null/mpl", "/proc/mpl"],
    "MPLBACKEND": ["agg", "tkagg", "nonsense", ""],
    "TMPDIR": ["/nowhere", "/dev/null"],
    "COLUMNS": ["0", "1", "-5", "many", "10000"],
    "LINES": ["0", "x"],
    "TERM": ["dumb", "", "nonsense"],
    "NO_COLOR": ["1"],
    "TZ": ["nonsense", "Asia/Kathmandu", ":/dev/null"],
    "MINIGRAD_DEVICE": ["x"],
    "TORCH_HOME": ["/dev/null"],
    "KERAS_HOME": ["/dev/null"],
    "OPENBLAS_NUM_THREADS": ["1"],
}
FOLDERS = [
    "run",
    "-",
    "-run",
    "a b",
    "zwei\nZeilen",
    "größe 猫",
    "\udcff\udcfe",
    "x" * 200,
    "a/../b",
    "'\"$HOME`ls`",
    "~",
    "%s",
]
OUTPUTS = ["a pipe", "a pipe", "a pipe", "/dev/full", "closed", "nobody"]


def trial(rng: random.Random, folder: Path) -> None:
    """Train in an odd place, then once more where all is well if that did not come to its end."""
    honest()
    chosen = {name: rng.choice(VARIABLES[name]) for name in rng.sample(list(VARIABLES), rng.randint(0, 5))}
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT), **chosen}
    if rng.random() < 0.2:
        environment.pop("HOME", None)
    name, out, err = rng.choice(FOLDERS), rng.choice(OUTPUTS), rng.choice(OUTPUTS[:4])
    place = rng.choice(["here", "größe", "\udcfd", "b c"])
    limit = rng.choice([None, None, None, 0o777, 0o077])
    files = rng.choice([None, None, None, 12, 40])

    def prepare(err: str) -> None:
        import resource

        if limit is not None:
            os.umask(limit)
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        for number, kind in ((1, out), (2, err)):
            if kind == "closed":
                os.close(number)

    def target(kind: str) -> int:
        if kind == "/dev/full":
            return os.open("/dev/full", os.O_WRONLY)
        if kind == "nobody":
            reader, writer = os.pipe()
            os.close(reader)
            return writer
        return subprocess.PIPE

    def train(here: Path, err: str) -> tuple[int, str]:
        """Train in a folder, with errors going there; return the exit code and what was said."""
        here.mkdir(parents=True)
        words = [sys.executable, "-m", "train.cifar", *tiny.OPTIONS, "--save-every", "1", f"--out={name}"]
        outs = target(out), target(err)
        process = subprocess.Popen(
            words, cwd=here, env=environment, stdin=subprocess.DEVNULL, stdout=outs[0], stderr=outs[1],
            preexec_fn=lambda: prepare(err),
        )  # fmt: skip
        for number in outs:
            if number >= 0:
                os.close(number)
        _, said = process.communicate(timeout=170)
        return process.returncode, (said or b"").decode(errors="replace")

    here = folder / place
    code, error = train(here, err)
    story = f"{chosen} in {str(here)!r}, --out {name!r}, output {out}, errors {err}, umask {limit}, {files} files"
    assert code in (0, 1, 2), f"{story}: exit code {code}: {error}"
    assert "Traceback" not in error and "Exception ignored" not in error, f"{story}: {error}"
    assert out != "a pipe" or "standard output cannot be written" not in error, f"{story}: {error}"
    if code == 0:
        if limit != 0o777 or os.geteuid() == 0:
            same_as_honest(here / name)
    elif err == "a pipe":
        assert error.strip(), f"{story}: exit code {code} without a word"
    else:  # who reads the errors changes nothing
        read, error = train(folder / "read" / place, "a pipe")
        assert read == code, f"{story}: exit code {code}, and {read} where somebody reads the errors: {error}"
