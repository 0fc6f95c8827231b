"""Train a network on CIFAR-10, CIFAR-100, the embedded shapes or your own images: `python -m train.cifar`.

Read from top to bottom: configuration, a run's state, one step, one epoch, evaluation, the command line.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

from .signals import Interrupted, Signals, end_at_once

if __name__ == "__main__":
    end_at_once("python -m train.cifar")  # the imports below take a second

import numpy as np
from tqdm import tqdm

import minigrad
from minigrad import Parameter, Tensor, no_grad, optim
from minigrad import functional as F
from minigrad.backend import Array, DeviceError, float_dtype, is_float, synchronize, to_device, to_numpy
from minigrad.nn import Module
from minigrad.weights import write_atomically
from resnext import create
from resnext.counts import outlines

from . import augment, checkpoint, faults, parallel, plots
from .data import Dataset, load
from .faults import Guard, TrainingError
from .options import Parser, default_dtype, folder, said
from .parallel import ALONE, Ranks
from .recipes import CHOICES, PARTS, RECIPES, Recipe
from .report import write_report

FAILED, USAGE = 1, 2  # exit codes; 128 + n after signal n


class UsageError(ValueError):
    """A command line that asks for something that cannot be."""


# ------------------------------------------------------------------------------------------------- configuration


@dataclass(frozen=True)
class Config:
    """What a run depends on: with the same configuration, device and number of threads, the same weights come out."""

    data: str  # cifar10, cifar100, shapes or a path
    model: str  # a name that resnext.create knows
    recipe: Recipe
    device: str = "cpu"
    dtype: str = "float32"  # of activations; weights stay in float32 under bfloat16
    batch_size: int = 128
    seed: int = 0
    limit_train: int | None = None
    limit_test: int | None = None

    def schedule(self) -> optim.Schedule:
        """The learning rate as a function of the time in epochs."""
        r = self.recipe
        if r.schedule == "multi-step":
            return optim.multi_step(r.lr, (0.5 * r.epochs, 0.75 * r.epochs))
        decay = optim.cosine if r.schedule == "cosine" else optim.linear
        return decay(r.lr, r.epochs, r.warmup * r.epochs)

    @classmethod
    def stored(cls, values: Mapping[str, Any], where: object) -> Config:
        """The configuration in the checkpoint `where`. Raises ValueError for one that is not of this version."""
        kinds = {"str": str, "int": int, "bool": bool, "int | None": int | NoneType}
        try:
            config = cls(**{**values, "recipe": Recipe(**values["recipe"])})
        except TypeError as error:
            raise ValueError(f"{where} has a configuration of another version: {error}") from None
        for part, held in ((config, values), (config.recipe, values["recipe"])):
            for f in fields(part):
                value, kind = held.get(f.name), str(f.type)
                fits = checkpoint.is_number(value) if kind == "float" else isinstance(value, kinds.get(kind, dict))
                if not fits or f.name not in held:
                    raise ValueError(f"{where} has {f.name} = {checkpoint.brief(value)} in its configuration")
        return config

    def differences(self, other: Config) -> list[str]:
        """The options, the data aside, by which another configuration makes another run, with both values."""
        old, new = ({**asdict(c), **asdict(c.recipe)} for c in (self, other))
        return [
            f"--{name.replace('_', '-')} was {old[name]} and is {new[name]}"
            for name in old
            if name not in ("recipe", "device", "data") and old[name] != new[name]
        ]


# What a machine can do in minutes: without a GPU, a small network on images that need no download.
DEFAULTS = {
    "cpu": {"data": "shapes", "model": "resnext11_4x4d_w16"},
    "cuda": {"data": "cifar10", "model": "resnext29_8x64d"},
}
BATCH_SIZE = {"paper": 128, "short": 128, "quick": 32}  # by recipe


# ------------------------------------------------------------------------------------------------- the state of a run


@dataclass
class Run:
    """Everything that changes while a network is trained, and the data it is trained on."""

    config: Config
    model: Module
    optimizer: optim.SGD
    train_set: Dataset
    test_set: Dataset
    mean: np.ndarray  # per channel of the training images, in the pixels' scale of 0 to 255
    std: np.ndarray
    epoch: int = 0  # epochs completed
    step: int = 0  # steps completed in this epoch
    best_error: float = math.inf  # lowest test error so far, in per cent
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(checkpoint.TOTALS, 0.0))
    average: dict[str, Array] = field(default_factory=dict)  # averaged weights and statistics, if the recipe asks
    history: list[dict[str, float]] = field(default_factory=list)  # the lines of metrics.jsonl, one an epoch
    fingerprint: int = 0  # of the training images and labels, by which other data is noticed
    saved: tuple[int, int] | None = None  # epoch and step of the last state that was saved
    ranks: Ranks = ALONE  # the processes that train this network together
    graph: Any = None  # on a GPU: `update` as a CUDA graph, which Python launches once a step

    @classmethod
    def start(cls, config: Config, train_set: Dataset, test_set: Dataset, ranks: Ranks = ALONE) -> Run:
        """A run at its beginning: fresh weights from the seed, on the device, with their optimiser."""
        minigrad.manual_seed(config.seed)
        model = create(config.model, num_classes=len(train_set.classes))
        model.to(config.device, "float64" if config.dtype == "float64" else "float32")
        r = config.recipe
        decayed = [p for p in model.parameters() if r.decay_all or p.ndim > 1]
        plain = [p for p in model.parameters() if not (r.decay_all or p.ndim > 1)]
        groups: list[dict[str, Any]] = [{"params": decayed}]
        if plain:
            groups.append({"params": plain, "weight_decay": 0.0})
        optimizer = optim.SGD(groups, r.lr, r.momentum, r.weight_decay, r.nesterov)
        mean, std = train_set.mean, train_set.std
        fingerprint = zlib.crc32(train_set.labels.data, zlib.crc32(train_set.images.data))
        train_set, test_set = _on_device(train_set, config.device), _on_device(test_set, config.device)
        run = cls(config, model, optimizer, train_set, test_set, mean, std, fingerprint=fingerprint, ranks=ranks)
        if r.average:
            run.average = {name: t.data.copy() for name, t in model.named_tensors()}
        # Only the engine room's operations read nothing back; and MPI is not to be found in a graph.
        if config.device != "cpu" and config.dtype != "float64" and ranks.size == 1 and minigrad.tensor.faster:
            run.graph = minigrad.fast.graph.Graph(partial(update, run))
        return run

    def state(self) -> tuple[dict[str, np.ndarray], checkpoint.State]:
        """All that changes: arrays by name, and what is no array. Raises TrainingError if a number is not finite."""
        arrays = self.model.state_dict()
        names = {id(p): name for name, p in self.model.named_parameters()}
        for p, v in zip(self.optimizer.parameters(), self.optimizer.velocities, strict=True):
            if v is not None:
                arrays[checkpoint.VELOCITY + names[id(p)]] = to_numpy(v)
        arrays.update({checkpoint.AVERAGE + name: to_numpy(a) for name, a in self.average.items()})
        faults.check_finite(arrays)
        return arrays, {
            "config": asdict(self.config),
            "classes": self.train_set.classes,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "size": list(self.train_set.images.shape[2:]),
            "images": self.fingerprint,
            "epoch": self.epoch,
            "step": self.step,
            "best_error": self.best_error if math.isfinite(self.best_error) else None,
            "totals": self.totals,
            "history": self.history,
            "generator": minigrad.backend.generator().bit_generator.state,
        }

    def save(self, path: Path) -> None:
        """Write the run's state to a file, see checkpoint.py; rank 0 writes, for all."""
        if self.ranks.rank > 0:
            return
        arrays, state = self.state()
        try:
            if path.name == checkpoint.LAST:
                checkpoint.write_last(path.parent, arrays, state)
                self.saved = (self.epoch, self.step)
            else:
                checkpoint.write(path, arrays, state)
        except OSError as error:
            raise TrainingError(f"{path} cannot be saved: {error.strerror or error}") from error

    def restore(self, arrays: Mapping[str, np.ndarray], state: checkpoint.State) -> None:
        """Go on from what `state` returned. Raises ValueError, with both values, for the state of another run."""
        old = Config.stored(state["config"], "the run")
        changed = old.differences(self.config)
        if state["images"] != self.fingerprint and not changed:
            same = old.data == self.config.data
            changed = [
                f"the images of {old.data} are others" if same else f"--data was {old.data} and is {self.config.data}"
            ]
        if changed:
            raise ValueError(f"the run has other settings, {', '.join(changed)}")
        self.model.load_state_dict({name: a for name, a in arrays.items() if ":" not in name})
        names = {id(p): name for name, p in self.model.named_parameters()}
        velocities = checkpoint.select(arrays, checkpoint.VELOCITY)
        self.optimizer.load_state_dict(
            {"lr": self.optimizer.lr, "velocities": [velocities.get(names[id(p)]) for p in self.optimizer.parameters()]}
        )
        for name, a in checkpoint.select(arrays, checkpoint.AVERAGE).items():
            if name not in self.average or self.average[name].shape != a.shape:
                raise ValueError(f"the average of {name} does not fit the network")
            self.average[name] = to_device(np.array(a), self.config.device)
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        self.best_error = math.inf if state["best_error"] is None else state["best_error"]
        self.totals = state["totals"]
        minigrad.backend.generator().bit_generator.state = state["generator"]
        self.saved = (self.epoch, self.step)


def fingerprint(model: Module) -> int:
    """A number that two networks share if, and practically only if, all their weights and statistics are the same."""
    number = 0
    for _, t in model.named_tensors():
        if is_float(t.dtype):
            number = zlib.crc32(np.ascontiguousarray(to_numpy(t.data)).data, number)
    return number


def _on_device(dataset: Dataset, device: str) -> Dataset:
    """Move a data set's images to the device, once; labels stay on the host, where they are checked and counted."""
    return replace(dataset, images=to_device(dataset.images, device))


# ------------------------------------------------------------------------------------------------- one step


def prepare(run: Run, indices: np.ndarray, step: int) -> Array:
    """This rank's share of the augmented batch of one step, (N, 3, H, W).

    Random numbers depend on seed, epoch and step alone: every rank augments the whole batch, then takes its share.
    """
    config, r, train_set = run.config, run.config.recipe, run.train_set
    rng = np.random.default_rng((config.seed, run.epoch, step))
    images = train_set.images[to_device(indices, config.device)]
    batch = augment.normalise(images, run.mean, run.std, float_dtype(config.dtype, config.device))
    flips = np.zeros(len(indices), bool) if r.flip == "none" else None
    if r.flip == "alternating":
        flips = augment.alternating_flips(len(train_set), run.epoch, config.seed)[indices]
    batch = augment.crop_and_flip(batch, rng, padding=4, mode=r.padding, flips=flips)
    batch = augment.cutout(batch, r.cutout, rng) if r.cutout else batch
    return run.ranks.share(batch)


def train_step(run: Run, batch: Array, labels: np.ndarray, lr: float, share: float = 1.0) -> tuple[Array, Array]:
    """One step of gradient descent on this rank's `share` of the batch; return the mean loss and the logits.

    On a GPU it returns when the work is handed over, long before it is done.
    """
    if run.graph is None:
        return update(run, batch, labels, lr, share)
    # Whatever changes from step to step goes into a graph as an array on the device.
    there = (to_device(a, run.config.device) for a in (labels.astype(np.int64), np.array([lr], np.float32)))
    return run.graph(batch, *there)


def outcome(loss: Array, logits: Array, labels: np.ndarray) -> tuple[float, int]:
    """Wait for a step's results; return its mean loss and how many images it took for another class."""
    return float(loss), int((to_numpy(logits).argmax(axis=1) != labels).sum())


def update(run: Run, batch: Array, labels: Array, lr: float | Array, share: float = 1.0) -> tuple[Array, Array]:
    """Forward, backward and the optimiser's step, which read nothing back; return the mean loss and the logits."""
    run.optimizer.lr = lr
    run.optimizer.zero_grad()
    logits = run.model(Tensor._of(batch))
    if logits.dtype.itemsize < 4:
        logits = logits.to(dtype="float32")  # the loss needs more digits than bfloat16 has
    loss = F.cross_entropy(logits, labels, run.config.recipe.label_smoothing)
    loss.backward()
    if run.ranks.size > 1:
        average_over_ranks(run, share)
    run.optimizer.step()
    if run.average:
        update_average(run)
    return loss.data, logits.data


def average_over_ranks(run: Run, share: float) -> None:
    """Make gradients those of the whole batch, and running statistics the same on all ranks; see parallel.py."""
    parameters = list(run.model.parameters())
    tensors = [t for _, t in run.model.named_tensors() if not isinstance(t, Parameter) and is_float(t.dtype)]
    averages = run.ranks.average([p.grad for p in parameters] + [t.data for t in tensors], share)
    for p, dw in zip(parameters, averages, strict=False):
        p.grad = dw
    for t, statistic in zip(tensors, averages[len(parameters) :], strict=True):
        t.data[...] = statistic


def update_average(run: Run) -> None:
    """average ← decay average + (1 - decay) weights, for parameters and batch-norm statistics; counts are copied.

    That is gradient descent with rate 1 - decay on ½ (average - value)²: the gradient, value - average up to the sign,
    which the rate takes, is what `sgd_update` makes of dw = value and a weight decay of -1. So the engine room's one
    launch serves this too.
    """
    updates = []
    for name, t in run.model.named_tensors():
        if is_float(t.dtype):
            updates.append((run.average[name], t.data, t.data, 0.0, -1.0, False))
        else:
            run.average[name][...] = t.data
    optim.update_all(run.config.device.partition(":")[0], updates, run.config.recipe.average - 1)


# ------------------------------------------------------------------------------------------------- one epoch


def train_epoch(run: Run, after_step: Callable[[Run], None]) -> dict[str, float]:
    """Train from where the run stands to the end of its epoch; return the epoch's mean loss, error and images/s.

    `after_step` is called after every step: it may save the run, or end it by raising.
    """
    config, train_set = run.config, run.train_set
    order = np.random.default_rng((config.seed, run.epoch)).permutation(len(train_set))
    steps = math.ceil(len(train_set) / config.batch_size)
    schedule = config.schedule()
    run.model.train()
    title = f"epoch {run.epoch + 1}/{config.recipe.epochs}"
    batches = [order[i : i + config.batch_size] for i in range(0, len(train_set), config.batch_size)]
    batch = prepare(run, batches[run.step], run.step) if run.step < steps else None
    quiet = None if run.ranks.rank == 0 and sys.stderr else True  # None: no bar where standard error is no terminal
    with tqdm(total=steps, initial=run.step, desc=title, unit="step", disable=quiet, leave=False) as bar:
        while run.step < steps:
            begin = time.perf_counter()
            indices = batches[run.step]
            lr = schedule(run.epoch + run.step / steps)
            labels = run.ranks.share(train_set.labels[indices])
            mine = run.ranks.count(len(indices))
            results = train_step(run, batch, labels, lr, mine / len(indices))
            ahead = run.step + 1
            if ahead < steps:  # the next batch, while a GPU is still at work on this one
                batch = prepare(run, batches[ahead], ahead)
            mean_loss, errors = outcome(*results, labels)
            total_loss, total_errors = run.ranks.add(mean_loss * mine, errors if mine else 0)
            if not math.isfinite(total_loss):
                raise TrainingError(
                    f"the loss is {total_loss / len(indices)} in epoch {run.epoch + 1}, step {run.step + 1}, "
                    f"at learning rate {lr:.4g}: try a smaller --lr"
                )
            run.step += 1
            run.totals["loss"] += total_loss
            run.totals["errors"] += total_errors
            run.totals["images"] += len(indices)
            run.totals["seconds"] += time.perf_counter() - begin
            seen = run.totals["images"]
            bar.set_postfix_str(
                f"loss {run.totals['loss'] / seen:.3f}, error {100 * run.totals['errors'] / seen:.1f} %, "
                f"{seen / run.totals['seconds']:.0f} images/s",
                refresh=False,
            )
            bar.update()
            after_step(run)
    synchronize(config.device)
    totals = run.totals
    return {
        "lr": schedule(run.epoch + (steps - 1) / steps),  # of the last step
        "train_loss": totals["loss"] / totals["images"],
        "train_error": 100 * totals["errors"] / totals["images"],
        "images_per_second": totals["images"] / totals["seconds"],
    }


# ------------------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a data set: mean loss, error in per cent, and how often class i was taken for class j."""

    loss: float
    error: float
    confusion: np.ndarray


def evaluate(
    model: Module,
    dataset: Dataset,
    mean: np.ndarray,
    std: np.ndarray,
    config: Config,
    ranks: Ranks = ALONE,
    after_round: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Classify a data set, normalised with the mean and deviation of the training images.

    Batches of 256 images are dealt to the ranks in turn; sums are made in the batches' order, so that the result does
    not depend on the number of ranks. `after_round` is called whenever each rank has done one batch.
    """
    model.eval()
    K = len(dataset.classes)
    starts = range(0, len(dataset), 256)
    losses, confusion = np.zeros(len(starts)), np.zeros((K, K), np.int64)
    dtype = float_dtype(config.dtype, config.device)
    with no_grad():
        for i, begin in enumerate(starts):
            if i % ranks.size == ranks.rank:
                labels = dataset.labels[begin : begin + 256]
                batch = augment.normalise(dataset.images[begin : begin + 256], mean, std, dtype)
                logits = model(Tensor._of(batch))
                logits = logits.to(dtype="float32") if logits.dtype.itemsize < 4 else logits
                losses[i] = F.cross_entropy(logits, labels).item() * len(labels)
                np.add.at(confusion, (labels, to_numpy(logits.data).argmax(axis=1)), 1)
            if (i + 1) % ranks.size == 0:
                after_round()
    losses, confusion = ranks.add_arrays(losses), ranks.add_arrays(confusion)
    error = 100 * (confusion.sum() - confusion.trace()) / confusion.sum()
    return Evaluation(float(losses.sum()) / len(dataset), float(error), confusion)


def evaluate_run(run: Run, after_round: Callable[[], None] = lambda: None) -> Evaluation:
    """Evaluate the run's averaged weights, if it keeps an average, else its weights."""
    own = {name: t.data for name, t in run.model.named_tensors()}
    try:
        for name, t in run.model.named_tensors():
            t.data = run.average.get(name, t.data)
        return evaluate(run.model, run.test_set, run.mean, run.std, run.config, run.ranks, after_round)
    finally:
        for name, t in run.model.named_tensors():
            t.data = own[name]


# ------------------------------------------------------------------------------------------------- a whole run


def train(run: Run, out: Path, guard: Guard) -> None:
    """Train from where the run stands to its last epoch; leave log, checkpoints and pictures in `out`."""
    title = f"{run.config.model} on {run.train_set.name}"
    write_log(run, out, title)
    if run.epoch == run.config.recipe.epochs and run.ranks.rank == 0:
        say(f"{out} holds all {run.epoch} epochs: nothing is left to do")
    while run.epoch < run.config.recipe.epochs:
        figures = train_epoch(run, guard.after_step)
        result = evaluate_run(run, guard.check)
        if not math.isfinite(result.loss):
            raise TrainingError(f"the test loss is {result.loss} after epoch {run.epoch + 1}: try a smaller --lr")
        if not run.ranks.agree(fingerprint(run.model)):
            raise TrainingError(f"the ranks have come to different weights in epoch {run.epoch + 1}")
        best = result.error < run.best_error
        run.best_error = min(run.best_error, result.error)
        run.epoch, run.step, run.totals = run.epoch + 1, 0, dict.fromkeys(run.totals, 0.0)
        run.history.append({"epoch": run.epoch, **figures, "test_loss": result.loss, "test_error": result.error})
        if run.ranks.rank == 0:
            if best:  # saved before the last state: a crash in between costs nothing, the epoch is done again
                run.save(out / checkpoint.BEST)
                plots.draw_confusion(
                    result.confusion,
                    run.train_set.classes,
                    out / "confusion.png",
                    f"{title}: {result.error:.2f} % test error",
                )
            run.save(out / checkpoint.LAST)
            write_log(run, out, title)
            say(
                f"epoch {run.epoch:3d}/{run.config.recipe.epochs}  lr {figures['lr']:.4f}  "
                f"train loss {figures['train_loss']:.4f} error {figures['train_error']:6.2f} %  "
                f"test loss {result.loss:.4f} error {result.error:6.2f} %  {figures['images_per_second']:.0f} images/s"
            )
        guard.check()


def say(line: str) -> None:
    """Print a line, at once also into a pipe. Raises TrainingError where nobody reads it any more."""
    try:
        print(line, flush=True)
    except OSError as error:
        raise TrainingError(f"standard output cannot be written: {error.strerror}") from error


def write_log(run: Run, out: Path, title: str) -> None:
    """Write metrics.jsonl and curves.png anew from the run's history: whatever happened before, they agree with it."""
    if run.ranks.rank == 0:
        write_atomically(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in run.history).encode())
        if run.history:
            plots.draw_curves(run.history, out / "curves.png", title)


# ------------------------------------------------------------------------------------------------- the command line


def parser() -> argparse.ArgumentParser:
    """The options of `python -m train.cifar`."""
    p = Parser(
        prog="python -m train.cifar",
        description="Train a network on images. Without options: a small ResNeXt on drawn shapes, minutes on a CPU.",
    )
    p.add_argument("--device", metavar="cpu|cuda", help="where to compute (default: cpu)")
    p.add_argument(
        "--model", help="a name that `python -m resnext` lists (default: resnext11_4x4d_w16; on cuda resnext29_8x64d)"
    )
    p.add_argument("--data", help="cifar10, cifar100, shapes or a path (default: shapes; on cuda cifar10)")
    p.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR", help="where downloads are kept (default: data)"
    )
    p.add_argument("--data-mirror", metavar="URL", help="fetch archives from this address instead of their home")
    p.add_argument("--recipe", choices=sorted(RECIPES), help="hyper-parameters (default: paper; quick for shapes)")
    p.add_argument("--epochs", type=int, help="passes over the data (default: the recipe's)")
    p.add_argument("--batch-size", type=int, metavar="N", help="images a step, of all ranks (default: 128; quick: 32)")
    p.add_argument("--seed", type=int, metavar="N", help="of weights, order and augmentation (default: 0)")
    p.add_argument(
        "--dtype",
        choices=("float32", "float64", "bfloat16"),
        help="of activations (default: float32; on cuda bfloat16, from Ampere on)",
    )
    p.add_argument("--limit-train", type=int, metavar="N", help="use the first N training images only")
    p.add_argument("--limit-test", type=int, metavar="N", help="use the first N test images only")
    p.add_argument(
        "--out",
        type=folder,
        default=Path("runs/last"),
        metavar="DIR",
        help="the run's folder (default: runs/last)",
    )
    p.add_argument("--resume", action="store_true", help="go on from what --out holds, if anything")
    p.add_argument(
        "--save-every", metavar="N|Nm", help="save every N steps, or every N minutes (default: after each epoch)"
    )
    p.add_argument("--evaluate", type=Path, metavar="FILE", help="evaluate a checkpoint or weights instead of training")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the cores this process may use)")
    p.add_argument(
        "--deterministic", action="store_true", help="on cuda: only algorithms whose results repeat bit for bit"
    )
    recipe = p.add_argument_group("parts of the recipe", "each overrides the value of --recipe")
    for f in fields(Recipe):
        if f.name != "epochs":
            flag, meaning = "--" + f.name.replace("_", "-"), PARTS[f.name]
            if f.type == "bool":
                recipe.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=meaning)
            elif f.name in CHOICES:
                recipe.add_argument(flag, choices=CHOICES[f.name], help=meaning)
            else:
                recipe.add_argument(flag, type=int if f.type == "int" else float, metavar="X", help=meaning)
    return p


def configure(args: argparse.Namespace, base: Config | None = None) -> Config:
    """Turn the command line into a configuration; what it leaves open is as in `base`, or by default.

    Raises ValueError for numbers out of range, and DeviceError for a device that cannot be used.
    """
    device = args.device or (base.device if base else "cpu")
    to_device(np.zeros(1), device)  # says what is missing before anything else is done
    defaults = DEFAULTS.get(device.partition(":")[0], DEFAULTS["cpu"])
    data = args.data or (base.data if base else defaults["data"])
    name = args.recipe or ("quick" if data == "shapes" else "paper")
    recipe = base.recipe if base and not args.recipe else RECIPES[name]
    base = base or Config(data, defaults["model"], recipe, dtype=default_dtype(device), batch_size=BATCH_SIZE[name])
    given = {name: value for name, value in vars(args).items() if value is not None} | {"device": device}
    given["recipe"] = replace(recipe, **{f.name: given[f.name] for f in fields(Recipe) if f.name in given})
    config = replace(base, **{f.name: given[f.name] for f in fields(Config) if f.name in given})
    recipe = config.recipe

    for name, value, least in (
        ("--epochs", recipe.epochs, 1),
        ("--batch-size", config.batch_size, 1),
        ("--limit-train", config.limit_train, 1),
        ("--limit-test", config.limit_test, 1),
        ("--threads", args.threads, 1),
        ("--seed", config.seed, 0),
        ("--cutout", recipe.cutout, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if args.threads and args.threads > 1024:
        raise ValueError(f"--threads must be at most 1024, got {args.threads}")
    for name in ("label_smoothing", "average", "warmup"):
        if not 0 <= getattr(recipe, name) < 1:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be at least 0 and below 1, got {getattr(recipe, name)}")
    float_dtype(config.dtype, device)
    config.schedule()
    return config


def save_interval(text: str | None) -> dict[str, Any]:
    """Turn "20" (steps) or "5m" (minutes) into the options of a `Saver`. Raises ValueError for anything else."""
    if text is None:
        return {}
    number = text.removesuffix("m")
    try:
        value = float(number) if text.endswith("m") else int(number)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise ValueError(f"--save-every takes a number of steps (20) or minutes (5m) above 0, got {text!r}")
    return {"every_seconds": 60 * value} if text.endswith("m") else {"every_steps": value}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(argv)
    try:
        ranks = parallel.start()
    except ValueError as error:
        return complain(error, USAGE, ALONE)
    signals = Signals()
    with signals.caught():
        return run_command(args, ranks, signals)


def run_command(args: argparse.Namespace, ranks: Ranks, signals: Signals) -> int:
    """Evaluate or train; say what goes wrong in one sentence, and return the exit code."""
    batch_size = args.batch_size or BATCH_SIZE["paper"]
    try:
        if args.evaluate:
            evaluate_file(args, ranks)
        else:
            train_command(args, ranks, signals)
        return 0
    except UsageError as error:
        return complain(error, USAGE, ranks)
    except Interrupted as stop:
        return complain(stop, 128 + stop.number, ranks)
    except MemoryError as error:
        return complain(faults.out_of_memory(error, args.device or "cpu", batch_size), FAILED, ranks)
    except OSError as error:
        return complain(said(error), FAILED, ranks)
    except (TrainingError, ValueError, TypeError) as error:
        return complain(error, FAILED, ranks)


def complain(sentence: object, code: int, ranks: Ranks) -> int:
    """Print a sentence to standard error and return the exit code."""
    if ranks.rank > 0:
        time.sleep(1)  # if rank 0 has the same to say, its exit ends this process before it repeats it
    warn(sentence, kind="")
    return code


@contextmanager
def usage_errors() -> Iterator[None]:
    """Inside, a bad value is the fault of the command line."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Inside, an OSError becomes a TrainingError that names the file, or the run's folder, that cannot be written."""
    try:
        yield
    except OSError as error:
        path = error.filename or f"a file in {out}"
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}") from error


def train_command(args: argparse.Namespace, ranks: Ranks, signals: Signals) -> None:
    """Train a network as the command line says. Nothing is written before everything that it says has been checked."""
    with ExitStack() as stack:
        found = None
        if args.resume and args.out.is_dir() and ranks.rank == 0:
            stack.enter_context(faults.sole_user(args.out))
            found = checkpoint.read_last(args.out, warn)
        found = ranks.broadcast(found)
        with usage_errors():
            config = configure(args, Config.stored(found[1]["config"], args.out) if found else None)
            if config.batch_size < ranks.size:
                raise ValueError(
                    f"--batch-size {config.batch_size} leaves some of the {ranks.size} ranks without an image"
                )
            config = replace(config, device=ranks.device(config.device))
            interval = save_interval(args.save_every)
        parallel.use_threads(args.threads or ranks.threads())
        train_set, test_set = ranks.in_turn(lambda: load_data(args, config))
        with usage_errors():
            run = Run.start(config, train_set, test_set, ranks)
            if config.recipe.cutout > min(train_set.images.shape[2:]):
                raise ValueError(f"--cutout {config.recipe.cutout} is larger than the images")
            try_image(run)
            if found:
                try:
                    run.restore(*found)
                except ValueError as error:
                    raise ValueError(f"cannot go on from {args.out}: {error}") from error

        if ranks.rank == 0 and not (args.resume and args.out.is_dir()):
            try:
                args.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                there = f"{error.filename} is there and is neither a folder nor a link to one"
                reason = there if isinstance(error, FileExistsError) else error.strerror
                raise UsageError(f"--out {args.out} cannot be made a folder: {reason}") from error
            stack.enter_context(faults.sole_user(args.out))
        save = partial(run.save, args.out / checkpoint.LAST)
        guard = Guard(save, **interval, ranks=ranks, signals=signals)
        try:
            # Overflow is no news here: losses and weights are looked at before they are believed or saved.
            with writing(args.out), signals.postponed(), np.errstate(over="ignore", invalid="ignore"):
                if ranks.rank == 0:
                    prepare_folder(args.out, config, keep=found is not None)
                try:
                    train(run, args.out, guard)
                except Interrupted as stop:
                    save()
                    ranks.wait()  # the first rank to exit ends the others: not before the state is saved
                    raise Interrupted(stop.number, f"; {args.out} holds the run: go on with --resume") from None
        except TrainingError as error:
            epoch, step = run.saved or (0, 0)
            kept = (
                f"{args.out} holds the state after epoch {epoch}, step {step}"
                if run.saved
                else "nothing was saved before"
            )
            raise TrainingError(f"{error}; {kept}") from error
        if ranks.rank == 0:
            describe(args, test_set)


def try_image(run: Run) -> None:
    """Augment a training image and send it through the network. Raises ValueError where its size does not fit."""
    run.model.eval()
    with no_grad():
        run.model(Tensor._of(prepare(run, np.arange(1), 0)))


def prepare_folder(out: Path, config: Config, keep: bool) -> None:
    """Put another run that is in the folder aside, unless it is to be kept; write config.json."""
    if not keep and faults.holds_run(out):
        say(f"{out} holds another run, which is kept in {faults.put_aside(out)}")
    write_atomically(out / "config.json", (json.dumps(asdict(config), indent=2) + "\n").encode())


def describe(args: argparse.Namespace, test_set: Dataset) -> None:
    """Write the finished run's report.html; a run is not less finished if that fails."""
    try:
        write_report(args.out, args.data_root, test_set)
    except (ValueError, OSError) as error:
        warn(f"the report cannot be written: {error}")


def evaluate_file(args: argparse.Namespace, ranks: Ranks) -> None:
    """Evaluate a checkpoint on the data it was trained for, or weights on --data, and print one line."""
    path = args.evaluate
    try:
        arrays, state = checkpoint.read(path)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    with usage_errors():
        base = Config.stored(state["config"], path) if state else None
        if base and not args.device:
            base = on_this_machine(base)
        if not base and not args.model:
            raise ValueError(f"{path} holds weights but not the name of their network: give it with --model")
        config = configure(args, base)
        config = replace(config, device=ranks.device(config.device))
    parallel.use_threads(args.threads or ranks.threads())
    # A run's state knows how its images were normalised: the training images are not needed.
    train_set, test_set = ranks.in_turn(lambda: load_data(args, config, limit_train=1 if state else None))
    weights = checkpoint.weights(arrays)
    # A checkpoint from somewhere else may name a network that no memory can hold: no number in a network's name is
    # larger than its number of arrays and than all their axes.
    largest = max([len(weights), *(size for array in weights.values() for size in array.shape)])
    if any(int(number) > largest for number in re.findall(r"\d+", config.model)):
        raise ValueError(f"{path} does not fit {config.model}, which is a larger network")
    with usage_errors(), outlines():
        model = create(config.model, num_classes=len(test_set.classes))
    try:
        model.load_state_dict(weights)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not fit {config.model} with {len(test_set.classes)} classes: {error}") from None
    model.to(config.device, "float64" if config.dtype == "float64" else "float32")
    mean, std = (np.array(state["mean"]), np.array(state["std"])) if state else (train_set.mean, train_set.std)
    result = evaluate(model, _on_device(test_set, config.device), mean, std, config, ranks)
    if ranks.rank == 0:
        digits = [np.format_float_positional(x, trim="0") for x in (result.error, result.loss)]
        say(f"test_error {digits[0]} test_loss {digits[1]}")


def on_this_machine(config: Config) -> Config:
    """The configuration, on the CPU if its device is not to be had here."""
    try:
        to_device(np.zeros(1), config.device)
        return config
    except DeviceError:
        return replace(config, device="cpu", dtype="float32" if config.dtype == "bfloat16" else config.dtype)


def load_data(args: argparse.Namespace, config: Config, limit_train: int | None = None) -> tuple[Dataset, Dataset]:
    """Load the images of a configuration."""
    path = Path(config.data)
    if config.data not in ("cifar10", "cifar100", "shapes") and not (path.is_file() or path.is_dir()):
        raise UsageError(
            f"--data {config.data} is not cifar10, cifar100 or shapes, and there is no such folder or file"
        )
    return load(
        config.data,
        args.data_root,
        seed=config.seed,
        mirror=args.data_mirror,
        limit_train=limit_train or config.limit_train,
        limit_test=config.limit_test,
    )


def warn(sentence: object, kind: str = "warning: ") -> None:
    """Print a sentence to standard error, in one line even where a file's name has several."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"python -m train.cifar: {kind}{sentence}")
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
