"""Train one epoch with minigrad, PyTorch, and PyTorch in its other memory order, from many seeds: do they agree?

    python benchmarks/paired.py --pairs 34 --data cifar10 --limit-train 8000 --model resnext11_4x3d_w8 --epochs 4 ...

takes the options of `python -m train.cifar`, of whose run the first epoch is trained, and the number of pairs; the
first has --seed, the next one more. A seed gives all three the same weights, order and augmentation, so their
differences are free of most of what chance does. Printed are training error and loss of each, then the differences'
means with their standard errors. PyTorch is needed (`pip install torch`), on a CPU.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from convergence import Twin

from minigrad.fast import process
from train.run.config import configure, parser
from train.run.loading import load_data
from train.run.loop import Run, train_epoch

NAMES = ("minigrad", "PyTorch channels_last", "PyTorch NCHW")


def main(argv: Sequence[str] | None = None) -> None:
    """Train all pairs and compare."""
    process.prepare()
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--pairs", type=int, default=6)
    given, rest = own.parse_known_args(argv)
    args = parser().parse_args(rest)
    first = configure(args)
    sets = load_data(args, first)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    found = []
    print(f"seed  training error % and loss of {', '.join(NAMES)}")
    for seed in range(first.seed, first.seed + given.pairs):
        config = replace(first, seed=seed)
        epochs = [train_epoch(Run.start(config, *sets), lambda run: None)]
        for layout in (torch.channels_last, torch.contiguous_format):
            twin = Twin(Run.start(config, *sets), layout=layout)
            twin.check_start()
            epochs.append(twin.epoch(0))
        found.append([(epoch["train_error"], epoch["train_loss"]) for epoch in epochs])
        print(f"{seed:4}  " + "   ".join(f"{error:.2f} {loss:.4f}" for error, loss in found[-1]), flush=True)
    figures = np.array(found)  # (pairs, 3, 2)
    for i, j in ((0, 1), (0, 2), (2, 1)):
        difference = figures[:, i] - figures[:, j]
        error, loss = difference.mean(axis=0)
        spread = difference.std(axis=0, ddof=1) / math.sqrt(given.pairs)
        print(f"{NAMES[i]} - {NAMES[j]}: error {error:+.2f} ± {spread[0]:.2f}, loss {loss:+.4f} ± {spread[1]:.4f}")


if __name__ == "__main__":
    sys.exit(main())
