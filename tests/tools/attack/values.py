"""Hostile values: two at a time for everything public, one or two for the options of every command.

A call gives a result, or one TypeError or ValueError of ours; a command ends with 0, or with 1 or 2 and one sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from support import tiny
from support.public import HOSTILE, PUBLIC
from test_public import FLAGS, RAW

import minigrad
from minigrad import Tensor, check, explore, nn
from resnext import __main__ as networks
from train import bench, cifar, figures, memory, predict, report, scaling
from train.run import parallel, training
from train.run.faults import TrainingError

from .commands import call, honest

MORE: dict[str, Callable[[], object]] = {
    "largest": lambda: np.iinfo(np.int64).max,
    "smallest": lambda: np.iinfo(np.int64).min,
    "half": lambda: np.float16(0.5),
    "numpy's integer": lambda: np.int8(2),
    "numpy's boolean": lambda: np.bool(True),
    "a scalar array": lambda: np.array(2),
    "no numbers": lambda: np.zeros((0, 3), np.float32),
    "a set": lambda: {1, 2},
    "bytes": lambda: b"\xff\x00",
    "a null": lambda: "a\0b",
    "a surrogate": lambda: "\udcff",
    "nested": lambda: [[[1.0]]],
    "ragged": lambda: [[1.0], [1.0, 2.0]],
    "a generator": lambda: (i for i in range(3)),
    "a function": lambda: len,
    "a structured array": lambda: np.zeros(2, [("a", "f4")]),
    "dates": lambda: np.array(["2020"], "M8[Y]"),
    "a masked array": lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    "a subclass": lambda: np.ones(2).view(np.recarray),
    "foreign bytes": lambda: np.arange(2, dtype=">f4"),
    "an integer tensor": lambda: Tensor([1, 2]),
    "a tensor of none": lambda: Tensor(np.zeros((0, 4, 6, 6), np.float32)),
    "a large tensor": lambda: Tensor(np.full((2, 4, 6, 6), 3e38, np.float32)),
    "not a number": lambda: Tensor(np.full((2, 4, 6, 6), np.nan, np.float32)),
    "doubles": lambda: Tensor(np.ones((2, 4, 6, 6))),
}
KINDS = {**HOSTILE, **MORE}
SINGLE = """
-1 0 1 00 1.5 1e3 1e308 1e-308 1e400 -1e400 2147483647 2147483648 9223372036854775807 nan inf -inf
1_000 ٣ 0x10 x None ../.. / /dev/null /dev/zero /proc/self/mem ~ * $HOME -- --help -h --out = 1,2 [1]
true <b> $\\frac$ 5m 1e-300m cpu cuda cuda:-1 cuda:0x1 bfloat16 float16 shapes cifar10
resnext29_0x4d resnext11_1x0d resnext2_1x1d
"""
WORDS = [*SINGLE.split(), "", " ", "\x1b[31m", "a\nb", "\udcff", "a" * 5000, "9" * 400]
SCALING = "--model resnext11_2x4d --step-ms 1 --batch-size 8 --gpus 2 --inside 1 --between 1 --latency 1"


class Enough(TrainingError, ValueError):
    """Ends work that the options allow before its first step, as something that each command tells."""


def commands() -> dict[str, tuple[Callable, list[object]]]:
    """Commands with arguments that are all right and take no time."""
    return {
        "train.cifar": (cifar.main, [*tiny.OPTIONS, "--out", "out"]),
        "train.cifar --evaluate": (cifar.main, ["--evaluate", honest() / "last.safetensors", "--limit-test", "5"]),
        "train.predict": (predict.main, ["x.png", "--checkpoint", honest() / "last.safetensors"]),
        "train.report": (report.main, ["nothing"]),
        "train.memory": (memory.main, ["--model", "resnext11_2x4d"]),
        "train.scaling": (scaling.main, [*SCALING.split()]),
        "train.figures": (figures.main, ["curves", honest(), "--figure", "x.png"]),
        "train.figures sweep": (figures.main, ["sweep", "--figure", "x.png"]),
        "train.figures equal": (figures.main, ["sweep", "--size", "equal", "--figure", "x.png"]),
        "train.figures road": (figures.main, ["road", "--models", "resnext11_2x4d", "--figure", "x.png"]),
        "train.bench": (bench.main, ["--model", "resnext11_2x4d"]),
        "resnext": (networks.main, ["resnext11_2x4d"]),
        "minigrad.explore": (explore.main, ["--out", "x.html"]),
        "minigrad.check": (check.main, ["--device", "cuda"]),
    }


def options_of(main: Callable, words: list[object]) -> list[str]:
    """The options that a command has, as its own parser knows them."""
    seen: list[str] = []
    real = argparse.ArgumentParser.parse_known_args

    def watch(self: argparse.ArgumentParser, *arguments: object, **options: object) -> object:
        seen.extend(option for option in self._option_string_actions if option.startswith("--"))
        return real(self, *arguments, **options)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", watch):
        call(main, *words, "--help")
    return [option for option in seen if option not in ("--help", "--worker", "--skip")]


def try_call(rng: random.Random) -> None:
    """Call something public with two hostile values."""
    minigrad.save_weights(nn.Linear(3, 2), "weights.safetensors")
    rows = {name: [key for key in row.valid if key not in {*row.skip, *FLAGS}] for name, row in PUBLIC.items()}
    name = rng.choice([name for name, keys in rows.items() if keys])
    row, keys = PUBLIC[name], rows[name]
    chosen = {key: rng.choice(list(KINDS)) for key in rng.sample(keys, min(len(keys), rng.choice([1, 2, 2])))}
    arguments = {key: make() for key, make in row.valid.items()}
    arguments |= {key: KINDS[kind]() for key, kind in chosen.items()}
    try:
        with np.errstate(all="ignore"):
            row.call(**arguments)
    except row.errors as error:
        raw = "\n" in str(error) or RAW.search(str(error)) or not str(error)
        assert not raw, f"{name} with {chosen}: {type(error).__name__}: {error}"
    except Exception as error:
        raise AssertionError(f"{name} with {chosen}: {type(error).__name__}: {error}") from error


def try_command(rng: random.Random) -> None:
    """Run a command with one or two hostile words."""
    _name, (main, words) = rng.choice(list(commands().items()))
    options = options_of(main, words)
    given = [*words]
    for _ in range(rng.choice([1, 1, 2])):
        given += [rng.choice(options), rng.choice(WORDS)] if rng.random() < 0.8 else [rng.choice(WORDS)]
    if rng.random() < 0.2 and len(given) > 1:
        del given[rng.randrange(len(given))]
    work = [(training, "train"), (figures, "train_in_turn"), (figures, "train_side_by_side"), (bench, "measure")]
    with contextlib.ExitStack() as stack:
        for module, name in [*work, (bench, "sweep")]:
            stack.enter_context(mock.patch.object(module, name, mock.Mock(side_effect=Enough("enough"))))
        stack.enter_context(mock.patch.object(check, "results", lambda *_: iter(())))
        stack.enter_context(mock.patch.object(parallel, "use_threads"))  # this process goes on
        call(main, *given)


def trial(rng: random.Random, folder: Path) -> None:
    """One call or one command, in an empty folder."""
    before = os.getcwd()
    honest()
    os.chdir(folder)
    try:
        (try_call if rng.random() < 0.8 else try_command)(rng)
    finally:
        os.chdir(before)
