"""Train a ResNeXt in PyTorch exactly as `train.cifar` trains it, to see whether both come to the same errors.

    python benchmarks/convergence.py --data cifar10 --model resnext11_4x3d_w8 --seed 0 --out runs/torch-seed0 ...

takes the options of `python -m train.cifar`. Initial weights, the images' order, their augmentation and the recipe are
those of that command with the same options and seed, number for number: they come from the same functions. Forward,
backward, the optimiser and the average of the weights are PyTorch's. What a run leaves is what `train.figures curves`
reads. PyTorch is needed (`pip install torch`), on a CPU; a run that was stopped goes on from its last epoch.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import minigrad
from minigrad import Tensor
from minigrad.weights import write_atomically
from train.data import augment
from train.measure.torch_model import ResNeXt
from train.run.config import configure, parser
from train.run.loading import load_data
from train.run.loop import Run, average_decay, prepare

STATE = "torch_state.pt"


class Twin:
    """The network of a run in PyTorch, with PyTorch's optimiser and an average of its weights and statistics."""

    def __init__(self, run: Run, dtype: torch.dtype = torch.float32, layout: Any = torch.channels_last):
        self.run, self.recipe, self.dtype, self.layout = run, run.config.recipe, dtype, layout
        self.model = ResNeXt(run.model).to(dtype, memory_format=layout)
        decayed = [p for p in self.model.parameters() if self.recipe.decay_all or p.ndim > 1]
        plain = [p for p in self.model.parameters() if not (self.recipe.decay_all or p.ndim > 1)]
        groups = [{"params": decayed, "weight_decay": self.recipe.weight_decay}]
        groups += [{"params": plain, "weight_decay": 0.0}] if plain else []
        r = self.recipe
        self.optimizer = torch.optim.SGD(groups, lr=r.lr, momentum=r.momentum, nesterov=r.nesterov)
        self.average = {name: t.clone() for name, t in self.model.state_dict().items()}
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []  # of every step so far

    def step(self, batch: np.ndarray, labels: np.ndarray, lr: float) -> tuple[float, int]:
        """One step of gradient descent; return the mean loss and how many images were taken for another class."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        images = torch.from_numpy(batch).to(self.dtype, memory_format=self.layout)
        logits, y = self.model(images), torch.from_numpy(labels)
        loss = F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing)
        loss.backward()
        self.optimizer.step()
        decay = average_decay(self.recipe.average, self.run.steps_done())
        with torch.no_grad():
            for name, t in self.model.state_dict().items():
                if t.is_floating_point():
                    self.average[name].lerp_(t, 1 - decay)
                else:
                    self.average[name].copy_(t)
        self.losses.append(loss.item())
        return self.losses[-1], int((logits.argmax(1) != y).sum())

    def check_start(self) -> None:
        """Ends the program where the first batch's loss is not the one that minigrad computes."""
        run = self.run
        indices = np.random.default_rng((run.config.seed, 0)).permutation(len(run.train_set))[: run.config.batch_size]
        batch, labels = prepare(run, indices, 0), run.train_set.labels[indices].astype(np.int64)
        theirs = minigrad.functional.cross_entropy(run.model(Tensor(batch)), labels, self.recipe.label_smoothing).item()
        state = {name: t.clone() for name, t in self.model.state_dict().items()}
        with torch.no_grad():
            logits = self.model(torch.from_numpy(batch))
            ours = F.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=self.recipe.label_smoothing).item()
        self.model.load_state_dict(state)  # the forward pass has moved the running statistics
        if abs(ours - theirs) > 1e-4:
            sys.exit(
                f"the first batch's loss is {ours} in PyTorch and {theirs} in minigrad: the two do not start alike"
            )

    def epoch(self, number: int) -> dict[str, float]:
        """Train for one epoch, the `number`th from 0: its mean loss, error in per cent and images a second."""
        run, size = self.run, self.run.config.batch_size
        run.epoch = number  # from which `prepare` draws its random numbers
        order = np.random.default_rng((run.config.seed, number)).permutation(len(run.train_set))
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        schedule = run.config.schedule()
        self.model.train()
        total_loss, errors, begin = 0.0, 0, time.perf_counter()
        for i, indices in enumerate(batches):
            labels = run.train_set.labels[indices].astype(np.int64)
            lr = schedule(number + i / len(batches))
            run.step = i  # from which `step` knows how far the average reaches back
            loss, wrong = self.step(prepare(run, indices, i), labels, lr)
            total_loss += loss * len(indices)
            errors += wrong
        if not math.isfinite(total_loss):
            sys.exit(f"the loss is {total_loss / len(order)} in epoch {number + 1}")
        seconds = time.perf_counter() - begin
        return {
            "lr": lr,
            "train_loss": total_loss / len(order),
            "train_error": 100 * errors / len(order),
            "images_per_second": len(order) / seconds,
        }

    def evaluate(self) -> dict[str, float]:
        """Loss and error in per cent on the test images: of the averaged weights, if the recipe keeps an average."""
        run, own = self.run, {name: t.clone() for name, t in self.model.state_dict().items()}
        if self.recipe.average:
            self.model.load_state_dict(self.average)
        self.model.eval()
        total_loss, errors = 0.0, 0
        with torch.no_grad():
            for begin in range(0, len(run.test_set), 256):
                images = run.test_set.images[begin : begin + 256]
                batch = torch.from_numpy(augment.normalise(images, run.mean, run.std, np.dtype("float32")))
                y = torch.from_numpy(run.test_set.labels[begin : begin + 256].astype(np.int64))
                logits = self.model(batch.contiguous(memory_format=torch.channels_last))
                total_loss += F.cross_entropy(logits, y, reduction="sum").item()
                errors += int((logits.argmax(1) != y).sum())
        self.model.load_state_dict(own)
        return {"test_loss": total_loss / len(run.test_set), "test_error": 100 * errors / len(run.test_set)}

    def save(self, out: Path) -> None:
        """Write the log and all that changes, so that the run can go on from here."""
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        write_atomically(out / "metrics.jsonl", lines.encode())
        state = {"config": asdict(self.run.config), "model": self.model.state_dict(), "average": self.average}
        state |= {"optimizer": self.optimizer.state_dict(), "history": self.history}
        torch.save(state, out / f"{STATE}.new")
        (out / f"{STATE}.new").replace(out / STATE)

    def restore(self, path: Path) -> None:
        """Go on from a saved state; ends the program where that is the state of a run with other options."""
        state = torch.load(path, weights_only=True)
        if state["config"] != asdict(self.run.config):
            sys.exit(f"{path} belongs to a run with other options: choose another --out")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.history = state["average"], state["history"]


def main(argv: Sequence[str] | None = None) -> None:
    """Train to the last epoch, from the beginning or from where the run stands."""
    args = parser().parse_args(argv)
    try:
        config = configure(args)
        if (config.device, config.dtype) != ("cpu", "float32"):
            raise ValueError(f"this comparison runs in float32 on a CPU, not in {config.dtype} on {config.device}")
        train_set, test_set = load_data(args, config)
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks/convergence.py: {error}")
    torch.set_num_threads(args.threads or torch.get_num_threads())
    twin = Twin(Run.start(config, train_set, test_set))
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.out / STATE).is_file():
        twin.restore(args.out / STATE)
    else:
        twin.check_start()
    write_atomically(args.out / "config.json", (json.dumps(asdict(config), indent=2) + "\n").encode())
    for number in range(len(twin.history), config.recipe.epochs):
        figures = twin.epoch(number)
        twin.history.append({"epoch": number + 1, **figures, **twin.evaluate()})
        twin.save(args.out)
        print(
            f"epoch {number + 1:3d}/{config.recipe.epochs}  train error {figures['train_error']:6.2f} %  "
            f"test error {twin.history[-1]['test_error']:6.2f} %  {figures['images_per_second']:.0f} images/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
