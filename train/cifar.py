"""Train a network on CIFAR-10, CIFAR-100, the embedded shapes or your own images: `python -m train.cifar`.

Read from top to bottom: configuration, a run's state, one step, one epoch, evaluation, the command line.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import minigrad
from minigrad import Tensor, no_grad, optim
from minigrad import functional as F
from minigrad.backend import Array, cupy, float_dtype, synchronize, to_device, to_numpy
from minigrad.nn import Module
from resnext import create

from . import augment, checkpoint, plots
from .data import Dataset, load
from .recipes import RECIPES, Recipe

FAILED, USAGE = 1, 2  # exit codes; 128 + n after signal n


class TrainingError(RuntimeError):
    """A run that cannot go on; the sentence says why and what is left of it."""


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


# What a machine can do in minutes: without a GPU, a small network on images that need no download.
DEFAULTS = {
    "cpu": {"data": "shapes", "model": "resnext11_4x16d"},
    "cuda": {"data": "cifar10", "model": "resnext29_8x64d"},
}
SHAPES_EPOCHS = 8  # enough for the embedded images, where 300 would be a waste


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
    totals: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("loss", "errors", "images", "seconds"), 0.0)
    )
    average: dict[str, Array] = field(default_factory=dict)  # averaged weights and statistics, if the recipe asks

    @classmethod
    def start(cls, config: Config, train_set: Dataset, test_set: Dataset) -> Run:
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
        train_set, test_set = _on_device(train_set, config.device), _on_device(test_set, config.device)
        run = cls(config, model, optimizer, train_set, test_set, mean, std)
        if r.average:
            run.average = {name: t.data.copy() for name, t in model.named_tensors()}
        return run

    def save(self, path: Path) -> None:
        """Write the run's state to a file; see checkpoint.py."""
        arrays: dict[str, Array] = dict(self.model.state_dict())
        names = {id(p): name for name, p in self.model.named_parameters()}
        for p, v in zip(self.optimizer.parameters(), self.optimizer.velocities, strict=True):
            if v is not None:
                arrays[checkpoint.VELOCITY + names[id(p)]] = to_numpy(v)
        arrays.update({checkpoint.AVERAGE + name: to_numpy(a) for name, a in self.average.items()})
        state = {
            "config": asdict(self.config),
            "classes": self.train_set.classes,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "size": list(self.train_set.images.shape[2:]),
            "epoch": self.epoch,
            "step": self.step,
            "best_error": self.best_error,
            "totals": self.totals,
            "generator": minigrad.backend.generator().bit_generator.state,
        }
        checkpoint.write(path, arrays, state)

    def restore(self, path: Path) -> None:
        """Go on from a file that `save` wrote. Raises ValueError if it belongs to another configuration."""
        arrays, state = checkpoint.read(path)
        theirs, ours = state.get("config"), json.loads(json.dumps(asdict(self.config)))
        if theirs != ours:
            changed = [k for k in ours if theirs is None or theirs.get(k) != ours[k]]
            raise ValueError(
                f"{path} belongs to a run with other settings ({', '.join(changed)}): choose another --out"
            )
        self.model.load_state_dict({name: a for name, a in arrays.items() if ":" not in name})
        names = {id(p): name for name, p in self.model.named_parameters()}
        velocities = checkpoint.select(arrays, checkpoint.VELOCITY)
        self.optimizer.load_state_dict(
            {"lr": self.optimizer.lr, "velocities": [velocities.get(names[id(p)]) for p in self.optimizer.parameters()]}
        )
        average = checkpoint.select(arrays, checkpoint.AVERAGE)
        self.average = {name: to_device(a, self.config.device) for name, a in average.items()}
        self.epoch, self.step, self.best_error = state["epoch"], state["step"], state["best_error"]
        self.totals = state["totals"]
        minigrad.backend.generator().bit_generator.state = state["generator"]


def _on_device(dataset: Dataset, device: str) -> Dataset:
    """Move a data set's images to the device, once; labels stay on the host, where they are checked and counted."""
    return replace(dataset, images=to_device(dataset.images, device))


# ------------------------------------------------------------------------------------------------- one step


def prepare(run: Run, indices: np.ndarray) -> Array:
    """The augmented batch of one step, (N, 3, H, W). Its random numbers depend on seed, epoch and step alone."""
    config, r, train_set = run.config, run.config.recipe, run.train_set
    rng = np.random.default_rng((config.seed, run.epoch, run.step))
    images = train_set.images[to_device(indices, config.device)]
    batch = augment.normalise(images, run.mean, run.std, float_dtype(config.dtype, config.device))
    flips = None
    if r.flip == "alternating":
        flips = augment.alternating_flips(len(train_set), run.epoch, config.seed)[indices]
    batch = augment.crop_and_flip(batch, rng, padding=4, mode=r.padding, flips=flips)
    return augment.cutout(batch, r.cutout, rng) if r.cutout else batch


def train_step(run: Run, batch: Array, labels: np.ndarray, lr: float) -> tuple[float, int]:
    """One step of gradient descent; return the batch's mean loss and its number of errors."""
    run.optimizer.lr = lr
    run.optimizer.zero_grad()
    logits = run.model(Tensor._of(batch))
    if logits.dtype.itemsize < 4:
        logits = logits.to(dtype="float32")  # the loss needs more digits than bfloat16 has
    loss = F.cross_entropy(logits, labels, run.config.recipe.label_smoothing)
    loss.backward()
    run.optimizer.step()
    if run.average:
        update_average(run)
    errors = int((to_numpy(logits.data).argmax(axis=1) != labels).sum())
    return loss.item(), errors


def update_average(run: Run) -> None:
    """average ← decay average + (1 - decay) weights, for parameters and batch-norm statistics alike."""
    decay = run.config.recipe.average
    for name, t in run.model.named_tensors():
        average = run.average[name]
        if average.dtype.kind == "f":
            average *= decay
            average += (1 - decay) * t.data
        else:
            average[...] = t.data


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
    with tqdm(total=steps, initial=run.step, desc=title, unit="step", disable=None, leave=False) as bar:
        while run.step < steps:
            begin = time.perf_counter()
            indices = order[run.step * config.batch_size : (run.step + 1) * config.batch_size]
            lr = schedule(run.epoch + run.step / steps)
            labels = train_set.labels[indices]
            loss, errors = train_step(run, prepare(run, indices), labels, lr)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} in epoch {run.epoch + 1}, step {run.step + 1}, at learning rate {lr:.4g}: "
                    "try a smaller --lr"
                )
            run.step += 1
            run.totals["loss"] += loss * len(indices)
            run.totals["errors"] += errors
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
        "lr": lr if steps else schedule(run.epoch),
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


def evaluate(model: Module, dataset: Dataset, mean: np.ndarray, std: np.ndarray, config: Config) -> Evaluation:
    """Classify a data set, normalised with the mean and deviation of the training images."""
    model.eval()
    K = len(dataset.classes)
    confusion, total = np.zeros((K, K), np.int64), 0.0
    dtype = float_dtype(config.dtype, config.device)
    with no_grad():
        for begin in range(0, len(dataset), 256):
            labels = dataset.labels[begin : begin + 256]
            batch = augment.normalise(dataset.images[begin : begin + 256], mean, std, dtype)
            logits = model(Tensor._of(batch))
            logits = logits.to(dtype="float32") if logits.dtype.itemsize < 4 else logits
            total += F.cross_entropy(logits, labels).item() * len(labels)
            np.add.at(confusion, (labels, to_numpy(logits.data).argmax(axis=1)), 1)
    error = 100 * (1 - confusion.trace() / confusion.sum())
    return Evaluation(total / len(dataset), float(error), confusion)


def evaluate_run(run: Run) -> Evaluation:
    """Evaluate the run's averaged weights, if it keeps an average, else its weights."""
    if not run.average:
        return evaluate(run.model, run.test_set, run.mean, run.std, run.config)
    own = {name: t.data for name, t in run.model.named_tensors()}
    try:
        for name, t in run.model.named_tensors():
            t.data = run.average[name]
        return evaluate(run.model, run.test_set, run.mean, run.std, run.config)
    finally:
        for name, t in run.model.named_tensors():
            t.data = own[name]


# ------------------------------------------------------------------------------------------------- a whole run


class Interrupted(Exception):
    """A signal has asked the run to stop; its state is saved."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@dataclass
class Saver:
    """Decides after every step whether to save the run, and whether to end it because a signal came."""

    path: Path
    every_steps: int | None = None
    every_seconds: float | None = None
    signal: int | None = None
    saved_at: float = field(default_factory=time.monotonic)
    steps: int = 0

    def __call__(self, run: Run) -> None:
        self.steps += 1
        due = self.every_steps is not None and self.steps % self.every_steps == 0
        late = self.every_seconds is not None and time.monotonic() - self.saved_at >= self.every_seconds
        if due or late or self.signal is not None:
            run.save(self.path)
            self.saved_at = time.monotonic()
        if self.signal is not None:
            raise Interrupted(self.signal)

    def on_signal(self, number: int, frame: Any) -> None:
        """Ask for the end of the run after the current step; a second signal ends the process at once."""
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def train(run: Run, out: Path, saver: Saver) -> None:
    """Train from where the run stands to its last epoch; leave log, checkpoints and pictures in `out`."""
    log = out / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()][: run.epoch] if log.exists() else []
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    title = f"{run.config.model} on {run.train_set.name}"
    while run.epoch < run.config.recipe.epochs:
        figures = train_epoch(run, saver)
        result = evaluate_run(run)
        run.epoch, run.step, run.totals = run.epoch + 1, 0, dict.fromkeys(run.totals, 0.0)
        lines.append({"epoch": run.epoch, **figures, "test_loss": result.loss, "test_error": result.error})
        with log.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        best = result.error < run.best_error
        run.best_error = min(run.best_error, result.error)
        run.save(out / "last.safetensors")
        if best:
            run.save(out / "best.safetensors")
            plots.draw_confusion(
                result.confusion,
                run.train_set.classes,
                out / "confusion.png",
                f"{title}: {result.error:.2f} % test error",
            )
        plots.draw_curves(lines, out / "curves.png", title)
        tqdm.write(
            f"epoch {run.epoch:3d}/{run.config.recipe.epochs}  lr {figures['lr']:.4f}  "
            f"train loss {figures['train_loss']:.4f} error {figures['train_error']:6.2f} %  "
            f"test loss {result.loss:.4f} error {result.error:6.2f} %  {figures['images_per_second']:.0f} images/s"
        )


# ------------------------------------------------------------------------------------------------- the command line


def parser() -> argparse.ArgumentParser:
    """The options of `python -m train.cifar`."""
    p = argparse.ArgumentParser(
        prog="python -m train.cifar",
        description="Train a network on images. Without options: a small ResNeXt on embedded drawings, minutes on a CPU.",
    )
    p.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where to compute (default: cpu)")
    p.add_argument(
        "--model", help="a name that `python -m resnext` lists (default: resnext11_4x16d; on cuda resnext29_8x64d)"
    )
    p.add_argument("--data", help="cifar10, cifar100, shapes or a path (default: shapes; on cuda cifar10)")
    p.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR", help="where downloads are kept (default: data)"
    )
    p.add_argument("--data-mirror", metavar="URL", help="fetch archives from this address instead of their home")
    p.add_argument("--recipe", choices=sorted(RECIPES), default="paper", help="hyper-parameters (default: paper)")
    p.add_argument("--epochs", type=int, help="passes over the data (default: the recipe's; 8 for shapes)")
    p.add_argument("--batch-size", type=int, default=128, metavar="N", help="images a step (default: 128)")
    p.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default: 0)")
    p.add_argument(
        "--dtype",
        choices=("float32", "float64", "bfloat16"),
        default="float32",
        help="of activations (default: float32)",
    )
    p.add_argument("--limit-train", type=int, metavar="N", help="use the first N training images only")
    p.add_argument("--limit-test", type=int, metavar="N", help="use the first N test images only")
    p.add_argument(
        "--out", type=Path, default=Path("runs/last"), metavar="DIR", help="where the run is kept (default: runs/last)"
    )
    p.add_argument("--resume", action="store_true", help="go on from what --out holds")
    p.add_argument(
        "--save-every", metavar="N|Nm", help="save every N steps, or every N minutes (default: after each epoch)"
    )
    p.add_argument("--evaluate", type=Path, metavar="FILE", help="evaluate a checkpoint instead of training")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the cores this process may use)")
    p.add_argument(
        "--deterministic", action="store_true", help="on cuda: only algorithms whose results repeat bit for bit"
    )
    recipe = p.add_argument_group("parts of the recipe", "each overrides the value of --recipe")
    for f in fields(Recipe):
        if f.name != "epochs":
            flag = "--" + f.name.replace("_", "-")
            if f.type == "bool":
                recipe.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
            else:
                kind = {"float": float, "int": int, "str": str}[str(f.type)]
                recipe.add_argument(flag, type=kind, metavar="X", default=None, choices=CHOICES.get(f.name))
    return p


CHOICES = {
    "schedule": ("multi-step", "linear", "cosine"),
    "padding": ("zero", "reflect"),
    "flip": ("random", "alternating"),
}


def configure(args: argparse.Namespace) -> Config:
    """Turn the command line into a configuration. Raises ValueError for numbers out of range."""
    kind = args.device.partition(":")[0]
    if args.device != "cpu":
        cupy()  # says what is missing before anything else is done
    defaults = DEFAULTS.get(kind, DEFAULTS["cpu"])
    data, model = args.data or defaults["data"], args.model or defaults["model"]
    recipe = RECIPES[args.recipe]
    epochs = args.epochs if args.epochs is not None else SHAPES_EPOCHS if data == "shapes" else recipe.epochs
    given = {f.name: getattr(args, f.name) for f in fields(Recipe) if f.name != "epochs"}
    recipe = replace(recipe, epochs=epochs, **{name: value for name, value in given.items() if value is not None})
    for name, value in (("--epochs", epochs), ("--batch-size", args.batch_size), ("--threads", args.threads or 1)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    float_dtype(args.dtype, args.device)
    return Config(
        data, model, recipe, args.device, args.dtype, args.batch_size, args.seed, args.limit_train, args.limit_test
    )


def save_interval(text: str | None) -> dict[str, Any]:
    """Turn "20" (steps) or "5m" (minutes) into the options of a `Saver`. Raises ValueError for anything else."""
    if text is None:
        return {}
    number = text.removesuffix("m")
    try:
        value = float(number) if text.endswith("m") else int(number)
    except ValueError:
        value = 0
    if not value > 0:
        raise ValueError(f"--save-every takes a number of steps (20) or minutes (5m) above 0, got {text!r}")
    return {"every_seconds": 60 * value} if text.endswith("m") else {"every_steps": value}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(argv)
    try:
        config = configure(args)
        interval = save_interval(args.save_every)
        train_set, test_set = load(
            config.data,
            args.data_root,
            seed=config.seed,
            mirror=args.data_mirror,
            limit_train=config.limit_train,
            limit_test=config.limit_test,
        )
        run = Run.start(config, train_set, test_set)
    except (ValueError, TypeError, OSError) as error:
        print(f"python -m train.cifar: {error}", file=sys.stderr)
        return USAGE
    try:
        if args.evaluate:
            arrays, _ = checkpoint.read(args.evaluate)
            run.model.load_state_dict(checkpoint.weights(arrays))
            result = evaluate_run(run)
            print(f"test_error {result.error:.4f} test_loss {result.loss:.6f}")
            return 0
        args.out.mkdir(parents=True, exist_ok=True)
        last = args.out / "last.safetensors"
        if args.resume and last.exists():
            run.restore(last)
        (args.out / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
        saver = Saver(last, **interval)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, saver.on_signal)
        train(run, args.out, saver)
        return 0
    except Interrupted as stop:
        print(f"python -m train.cifar: {stop}; {args.out} holds the run: go on with --resume", file=sys.stderr)
        return 128 + stop.number
    except (TrainingError, ValueError, OSError) as error:
        print(f"python -m train.cifar: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
