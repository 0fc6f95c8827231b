"""Train a network on CIFAR-10, CIFAR-100, the embedded shapes or your own images: `python -m train.cifar`.

What a run is and how an epoch goes is in loop.py, the options in config.py. Here: a whole run with its log and its
checkpoints, then the command, which must end well whatever happens to it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from .run.signals import Interrupted, Signals, end_at_once

if __name__ == "__main__":
    end_at_once("python -m train.cifar")  # the imports below take a second

import numpy as np

from minigrad import Tensor, no_grad
from minigrad.backend import DeviceError, to_device
from minigrad.weights import write_atomically
from resnext import create
from resnext.counts import outlines

from .data import Dataset, load
from .options import said
from .report import write_report
from .run import checkpoint, faults, parallel
from .run.config import BATCH_SIZE, Config, configure, parser, save_interval
from .run.faults import Guard, TrainingError
from .run.loop import Run, evaluate, evaluate_run, fingerprint, on_device, prepare, train_epoch
from .run.parallel import ALONE, Ranks
from .show import plots

FAILED, USAGE = 1, 2  # exit codes; 128 + n after signal n


class UsageError(ValueError):
    """A command line that asks for something that cannot be."""


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
    result = evaluate(model, on_device(test_set, config.device), mean, std, config, ranks)
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
