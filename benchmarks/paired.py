"""Train one epoch with minigrad, PyTorch, and PyTorch in its other memory order, from many seeds: do they agree?

    python benchmarks/paired.py --pairs 34 --data cifar10 --limit-train 8000 --model resnext11_4x3d_w8 --epochs 4 ...

takes the options of `python -m train.cifar`, of whose run the first epoch is trained, and the number of pairs; the
first has --seed, the next one more. A seed gives all three the same weights, order and augmentation. Printed are
training error and loss of each, and after how many steps the losses have parted by more than 10⁻⁶: rounding grows from
step to step, so from there on it is chance which way each goes. With --dtype float64 rounding is smaller, and they stay
together for longer. At the end come the differences' means with their standard errors. PyTorch is needed (`pip install
torch`), on a CPU.
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
    found, dtype = [], torch.float64 if first.dtype == "float64" else torch.float32
    print(f"seed  training error %, loss of {', '.join(NAMES)}; steps until minigrad and each of the others part")
    for seed in range(first.seed, first.seed + given.pairs):
        config = replace(first, seed=seed)
        run, sums = Run.start(config, *sets), [(0.0, 0.0)]
        epochs = [train_epoch(run, lambda run, sums=sums: sums.append((run.totals["loss"], run.totals["images"])))]
        totals, images = np.diff(sums, axis=0).T  # of every step
        losses, apart = totals / images, []
        for layout in (torch.channels_last, torch.contiguous_format):
            twin = Twin(Run.start(config, *sets), dtype, layout)
            twin.check_start()
            epochs.append(twin.epoch(0))
            apart.append(int(np.argmax([*(abs(losses - twin.losses) > 1e-6), True])))
        found.append([(epoch["train_error"], epoch["train_loss"]) for epoch in epochs])
        columns = [f"{error:.2f} {loss:.4f}" for error, loss in found[-1]]
        print(f"{seed:4}  " + "   ".join([*columns, *map(str, apart)]), flush=True)
    figures = np.array(found)  # (pairs, 3, 2)
    for i, j in ((0, 1), (0, 2), (2, 1)):
        difference = figures[:, i] - figures[:, j]
        error, loss = difference.mean(axis=0)
        spread = difference.std(axis=0, ddof=1) / math.sqrt(given.pairs)
        print(f"{NAMES[i]} - {NAMES[j]}: error {error:+.2f} ± {spread[0]:.2f}, loss {loss:+.4f} ± {spread[1]:.4f}")


if __name__ == "__main__":
    sys.exit(main())
