"""Train with minigrad, and let PyTorch take the same step from the same state now and then: do both go the same way?

    python benchmarks/lockstep.py --data cifar10 --model resnext11_4x3d_w8 --recipe short --epochs 4 --batch-size 32

takes the options of `python -m train.cifar`. Two runs part after a few steps whatever computes them, since rounding
grows; a single step from one state does not. So every 25th step (`--every N`: every Nth), and each epoch's last, is
taken three times from minigrad's weights, statistics, velocities and average: by minigrad, by PyTorch in float32 and by
PyTorch in float64.
Printed are the losses, and how far the float32 steps lie from the float64 one: |Δw - Δw₆₄| / |Δw₆₄| over all weights.
PyTorch is needed (`pip install torch`), on a CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch
from convergence import Twin

from minigrad.fast import process
from train.run.config import configure, parser
from train.run.loading import load_data
from train.run.loop import Run, outcome, prepare, train_step

Weights = dict[str, np.ndarray]


def follow(twin: Twin) -> None:
    """Put a twin where the run stands."""
    run, weights = twin.run, dict(twin.model.named_parameters())
    twin.model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in run.model.state_dict().items()})
    names = {id(p): name for name, p in run.model.named_parameters()}
    for p, v in zip(run.optimizer.parameters(), run.optimizer.velocities, strict=True):
        if v is not None:
            buffer = torch.from_numpy(v.copy()).to(twin.dtype)
            twin.optimizer.state[weights[names[id(p)]]]["momentum_buffer"] = buffer
    for name, a in run.averaged.items():
        twin.average[name] = torch.from_numpy(np.array(a)).to(twin.average[name].dtype)


def distance(step: Weights, exact: Weights) -> float:
    """|step - exact| / |exact|, over all weights."""
    off = sum(float(np.square(step[name] - exact[name]).sum()) for name in exact)
    return float(np.sqrt(off / sum(float(np.square(a).sum()) for a in exact.values())))


def main(argv: Sequence[str] | None = None) -> None:
    """Train to the last epoch, and compare on the way."""
    process.prepare()
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--every", type=int, default=25)
    given, rest = own.parse_known_args(argv)
    if given.every < 1:
        own.error(f"--every must be at least 1, got {given.every}")
    args = parser().parse_args(rest)
    config = configure(args)
    run = Run.start(config, *load_data(args, config))
    single, double = Twin(run), Twin(run, torch.float64)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    run.set_training()
    single.model.train()
    double.model.train()
    schedule, losses, steps = config.schedule(), [], []
    print("epoch step     loss  PyTorch's  float64   minigrad's step is off by, PyTorch's")
    for run.epoch in range(config.recipe.epochs):
        order = np.random.default_rng((config.seed, run.epoch)).permutation(len(run.train_set))
        batches = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
        for run.step, indices in enumerate(batches):
            batch, lr = prepare(run, indices, run.step), schedule(run.epoch + run.step / len(batches))
            labels = run.train_set.labels[indices].astype(np.int64)
            due = run.step % given.every == given.every - 1 or run.step == len(batches) - 1
            compared = due and lr > 0  # a warm-up begins with a step of no length
            if compared:
                before = {name: p.data.astype(np.float64) for name, p in run.model.named_parameters()}
                found = []
                for twin in (single, double):
                    follow(twin)
                    loss, _ = twin.step(batch, labels, lr)
                    after = {name: p.detach().double().numpy() for name, p in twin.model.named_parameters()}
                    found.append((loss, {name: after[name] - before[name] for name in before}))
            loss, _ = outcome(*train_step(run, batch, labels, lr), labels)
            if compared:
                (torch32, step32), (torch64, step64) = found
                mine = {name: p.data.astype(np.float64) - before[name] for name, p in run.model.named_parameters()}
                losses.append([abs(loss - torch64), abs(torch32 - torch64)])
                steps.append([distance(mine, step64), distance(step32, step64)])
                figures = f"{loss:.6f}  {torch32:.6f}  {torch64:.6f}   {steps[-1][0]:.1e}  {steps[-1][1]:.1e}"
                print(f"{run.epoch + 1:5} {run.step + 1:4}  {figures}", flush=True)
    for what, values in (("a loss", losses), ("a step", steps)):
        median, worst = np.median(values, axis=0), np.max(values, axis=0)
        print(
            f"{len(values)} steps, {what} is off by: minigrad {median[0]:.1e}, {worst[0]:.1e} at most; "
            f"PyTorch {median[1]:.1e}, {worst[1]:.1e} at most"
        )


if __name__ == "__main__":
    sys.exit(main())
