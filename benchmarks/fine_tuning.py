"""What fine-tuning is worth where there are few images: `python benchmarks/fine_tuning.py --data cifar10`.

Trains a small network on five of ten classes. Then, on twenty images of each of the other five, trains the same network
from random weights and from those just found, in four ways. Each seed draws other images. Every command is printed,
and in the end a table of the test errors. A run that is done is not done again, and one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from train.data import Dataset, load
from train.run.series import mean_and_error, read_metrics
from train.show.tables import in_words

WAYS = {  # options of train.cifar
    "random": ("--recipe", "quick"),
    "found, all trained": ("--freeze", "none"),
    "found, last stage and layer trained": ("--freeze", "all-but-last-stage"),
    "found, last layer trained": ("--freeze", "all-but-last-layer"),
}


def write_classes(dataset: Dataset, labels: Sequence[int], number: int, seed: int, folder: Path) -> None:
    """Write `number` images of each of these classes, drawn by `seed`, as a folder for each class."""
    for label in labels:
        place = folder / dataset.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        for i in np.random.default_rng((seed, label)).permutation(np.flatnonzero(dataset.labels == label))[:number]:
            Image.fromarray(dataset.images[i].transpose(1, 2, 0)).save(place / f"{i:05}.png")


def train(out: Path, words: Sequence[str]) -> dict[str, float]:
    """Run `train.cifar`, saying so; return the figures of its last epoch."""
    command = ["-m", "train.cifar", *words, "--out", str(out), "--resume"]
    print(f"$ python {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return read_metrics(out)[-1]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    p = argparse.ArgumentParser(prog="python benchmarks/fine_tuning.py", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--data", default="cifar10", help="cifar10, shapes or a path, as for train.cifar")
    p.add_argument("--model", default="resnext11_4x4d_w16")
    p.add_argument("--many", type=int, default=5000, help="training images of each of the first five classes")
    p.add_argument("--few", type=int, default=20, help="training images of each of the others")
    p.add_argument("--tests", type=int, default=200, help="test images of each class")
    p.add_argument("--epochs", type=int, default=5, help="of the first training")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--out", type=Path, default=Path("runs/fine-tuning"))
    p.add_argument("--more", default="", metavar="WORDS", help="more options of train.cifar for all runs")
    args = p.parse_args(argv)
    more = shlex.split(args.more)

    train_set, test_set = load(args.data, Path("data"))
    first, others = range(0, len(train_set.classes), 2), range(1, len(train_set.classes), 2)
    for name, labels in (("first", first), ("others", others)):
        print(f"{name}: {', '.join(train_set.classes[label] for label in labels)}")
    folders = {"many": (first, args.many, 0)} | {f"few-seed{s}": (others, args.few, s) for s in range(args.seeds)}
    for name, (labels, number, seed) in folders.items():
        write_classes(train_set, labels, number, seed, args.out / name / "train")
        write_classes(test_set, labels, args.tests, 0, args.out / name / "test")

    words = ["--data", str(args.out / "many"), "--model", args.model, "--recipe", "quick"]
    found = train(args.out / "found", [*words, "--epochs", str(args.epochs), *more])
    print(f"the first training ends at a test error of {found['test_error']:.1f} %\n")
    rows = []
    for way, options in WAYS.items():
        start = ["--model", args.model] if way == "random" else ["--weights", str(args.out / "found/last.safetensors")]
        errors = []
        for seed in range(args.seeds):
            words = ["--data", str(args.out / f"few-seed{seed}"), "--seed", str(seed), *start, *options, *more]
            out = args.out / f"{way.replace(',', '').replace(' ', '-')}-seed{seed}"
            errors.append(train(out, words)["test_error"])
        each = ", ".join(f"{error:.1f}" for error in errors)
        rows.append(f"| {way} | `{' '.join(options)}` | {in_words(mean_and_error(errors))} | {each} |")
    header = ("\n| weights at the start | options | test error % | of each seed |", "| --- | --- | ---: | --- |")
    print(*header, *rows, sep="\n")


if __name__ == "__main__":
    main()
