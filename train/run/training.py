"""A whole run, from the options of the command line to the report: what `python -m train.cifar` does."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.weights import write_atomically
from resnext import create
from resnext.counts import outlines

from ..data import Dataset
from ..data.fetch import note
from ..data.folders import TRAIN_FOLDERS, find_split
from ..options import UsageError, say, usage_errors, warn
from ..show import plots
from ..show.report import write_report
from . import checkpoint, folder, parallel, progress
from .config import Config, adapted, configure, save_interval
from .evaluation import Evaluation, evaluate_run
from .faults import Guard, TrainingError, leave_out_kernels, memory_for, smaller_step
from .fine_tuning import described
from .loading import load_data
from .loop import Run, checksum_of_weights, train_epoch
from .parallel import Deserted, Ranks
from .rehearsal import try_batches, try_files
from .signals import Interrupted, Signals

DRAWN_EVERY = 30.0  # seconds between two drawings of the pictures, which a short epoch would wait for


def train(run: Run, out: Path, guard: Guard, lock: folder.Lock | None = None) -> None:
    """Train from where the run stands to its last epoch; leave log, checkpoints and pictures in `out`.

    `lock` is rank 0's, which alone writes. States come first: what else is written or printed cannot end the run.
    """
    first, drawn = run.ranks.rank == 0, -math.inf
    epochs = run.config.recipe.epochs
    if first:
        with run.decoration("what the run begins with"):
            progress.introduce(run)
            progress.advise_on_steps(run)
            if run.epoch == epochs:
                progress.tell(f"{out} holds all {run.epoch} epochs: nothing is left to do")
        decorate(run, out, None)
    if first and run.saved and not (out / checkpoint.LAST).exists():
        run.save(out / checkpoint.LAST)  # it was gone on from another one; what reads runs looks for this
    while run.epoch < epochs:
        figures = train_epoch(run, guard.after_step)
        begin = time.monotonic()
        result = evaluate_run(run, guard.check)
        if not math.isfinite(result.loss):
            raise TrainingError(f"the test loss is {result.loss} after epoch {run.epoch + 1}: try a smaller --lr")
        if not run.ranks.agree(checksum_of_weights(run.model)):
            raise TrainingError(f"the ranks have come to different weights in epoch {run.epoch + 1}")
        best = result.error < run.best_error
        run.best_error = min(run.best_error, result.error)
        run.epoch, run.step, run.totals = run.epoch + 1, 0, dict.fromkeys(run.totals, 0.0)
        run.history.append({"epoch": run.epoch, **figures, "test_loss": result.loss, "test_error": result.error})
        if lock is not None:
            lock.check()
        if first:
            if best:  # saved before the last state: a crash in between costs nothing, the epoch is done again
                run.save(out / checkpoint.BEST)
            run.save(out / checkpoint.LAST)
            due = run.epoch == epochs or time.monotonic() - drawn >= DRAWN_EVERY
            drawn = time.monotonic() if due else drawn
            decorate(run, out, result.confusion, pictures=due)
        run.between = time.monotonic() - begin
        guard.check()


def decorate(run: Run, out: Path, confusion: np.ndarray | None, pictures: bool = True) -> None:
    """Write log and pictures anew from the run's history, and say how the epoch went that gave this confusion matrix.

    Whatever happened before, they agree with the state; whatever goes wrong here is told and does not end the run.
    """
    title = f"{run.config.model} on {run.train_set.name}"
    with run.decoration("metrics.jsonl"):
        write_atomically(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in run.history).encode())
    if confusion is not None:
        with run.decoration("standard output"):
            say(progress.epoch_line(run, run.history[-1]))
            progress.advise_on_answers(run, confusion)
    if pictures and run.history:
        with run.decoration("curves.png"):
            plots.draw_curves(run.history, out / "curves.png", title)
    if pictures and confusion is not None:
        with run.decoration("confusion.png"):
            what = f"{title}\nafter epoch {run.epoch}: {run.history[-1]['test_error']:.2f} % test error"
            plots.draw_confusion(confusion, run.train_set.classes, out / "confusion.png", what)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Inside, an OSError becomes a TrainingError that names the file, or the run's folder, that cannot be written."""
    try:
        yield
    except OSError as error:
        path = error.filename or f"a file in {out}"
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}") from error


def train_command(args: argparse.Namespace, ranks: Ranks, signals: Signals) -> Run:
    """Train a network as the command line says. Nothing is written before everything that it says has been checked."""
    with ExitStack() as stack:
        found, lock = None, None
        if args.resume and args.out.is_dir() and ranks.rank == 0:
            lock = stack.enter_context(folder.sole_user(args.out))
            found = checkpoint.read_last(args.out, warn)
        found = ranks.broadcast(found)
        run, sets, interval, tried = set_up(args, ranks, found)
        if ranks.rank == 0 and lock is None:
            make_folder(args.out)
            lock = stack.enter_context(folder.sole_user(args.out))

        def save() -> None:
            if lock is not None:
                lock.check()
            run.save(args.out / checkpoint.LAST)

        guard = Guard(save, **interval, ranks=ranks, signals=signals)
        try:
            # Overflow is no news here: losses and weights are looked at before they are believed or saved.
            memory = memory_for(run.config, partial(smaller_step, run.config, ranks, found is not None))
            with memory, writing(args.out), signals.postponed(), np.errstate(over="ignore", invalid="ignore"):
                if ranks.rank == 0:
                    prepare_folder(run, args.out, keep=found is not None)
                try_files(run, args.out, tried)
                try:
                    train(run, args.out, guard, lock)
                except Interrupted as stop:
                    save()
                    with suppress(Deserted):  # the first rank to exit ends the others: not before the state is saved
                        ranks.wait(parallel.GRACE if ranks.rank == 0 else parallel.PATIENCE)
                    raise Interrupted(stop.number, f"; {args.out} holds the run: go on with --resume") from None
        except (TrainingError, folder.InUse, Deserted) as error:
            epoch, step = run.saved or (0, 0)
            kept = (
                f"{args.out} holds the state after epoch {epoch}, step {step}"
                if run.saved
                else "nothing was saved before"
            )
            raise TrainingError(f"{error}; {kept}") from error
        if ranks.rank == 0:
            page = None
            with run.decoration("the report"):
                page = write_report(args.out, args.data_root, sets)
            with run.decoration("standard output"):
                progress.farewell(run, page)
        return run


def set_up(
    args: argparse.Namespace, ranks: Ranks, found: tuple[dict[str, np.ndarray], checkpoint.State] | None
) -> tuple[Run, tuple[Dataset, Dataset], dict[str, Any], Evaluation]:
    """The run that the command line asks for, its images, and when to save it; everything is checked and tried once."""
    with usage_errors():
        config = configure(args, Config.stored(found[1]["config"], args.out) if found else None, ranks.device)
        if config.batch_size < ranks.size:
            raise ValueError(f"--batch-size {config.batch_size} leaves some of the {ranks.size} ranks without an image")
        interval = save_interval(args.save_every)
        check_apart(config, args, found is not None)
        with outlines():
            create(config.model)  # a name that is wrong is told before any image is read
    parallel.use_threads(args.threads or ranks.threads())
    ranks.connect(config.device)
    leave_out_kernels(config.device, ranks)
    train_set, test_set = ranks.in_turn(lambda: load_data(args, config, progress=ranks.rank == 0))
    with usage_errors():
        if not found or args.recipe:
            config = adapted(config, args, len(train_set), resumed=found is not None)
    with usage_errors(), memory_for(config, partial(smaller_step, config, ranks, found is not None)):
        run = Run.start(config, train_set, test_set, ranks, resumed=found is not None)
        if config.weights and found is None and ranks.rank == 0:
            note(described(run.model, config.weights))
        elif config.freeze != "none" and found is None and ranks.rank == 0:
            note(f"--freeze {config.freeze} without --weights: what is frozen keeps random weights")
        if config.recipe.cutout > min(train_set.shown):
            raise ValueError(f"--cutout {config.recipe.cutout} is larger than the images")
        if ranks.size > 1:
            ranks.compare(
                facts(run)
            )  # before the first collective, which would wait for ever or add up what is unequal
        tried = try_batches(run)
        if found:
            try:
                run.restore(*found)
            except ValueError as error:
                raise ValueError(f"cannot go on from {args.out}: {error}") from error
    return run, (train_set, test_set), interval, tried


def check_apart(config: Config, args: argparse.Namespace, resumed: bool) -> None:
    """Raise ValueError where what the run writes would be taken for what it reads, or take its place."""
    if config.weights and not resumed and Path(config.weights).resolve().is_relative_to(args.out.resolve()):
        raise ValueError(f"--weights {config.weights} lies in --out {args.out}, where the new run's weights will be")
    data = Path(config.data)
    if config.validate is None or not data.is_dir() or find_split(data, TRAIN_FOLDERS):
        return
    for option, place in (("--out", args.out), ("--data-root", args.data_root)):
        if place.resolve().is_relative_to(data.resolve()):
            raise ValueError(
                f"{option} {place} lies inside --data {config.data}, where each folder is a class: choose another place"
            )


def facts(run: Run) -> dict[str, Any]:
    """What all ranks must have in common before the first step; a state to go on from is rank 0's, for all."""
    config = {**asdict(run.config), **asdict(run.config.recipe)}
    own = {
        f"--{name.replace('_', '-')}": value
        for name, value in config.items()
        if name not in ("recipe", "device", "data")
    }
    sets = {"training": run.train_set, "test": run.test_set}
    for name, dataset in sets.items():
        own[f"{name} images:"] = f"{len(dataset):,} of {len(dataset.classes)} classes"
    own["training images with the checksum"] = run.data_checksum
    own["test images with the checksum"] = run.test_checksum
    own["weights with the checksum"] = checksum_of_weights(run.model)
    return own


def make_folder(out: Path) -> None:
    """Make the run's folder. Raises UsageError where something else is in its place."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        there = f"{error.filename} is there and is neither a folder nor a link to one"
        reason = there if isinstance(error, FileExistsError) else error.strerror
        raise UsageError(f"--out {out} cannot be made a folder: {reason}") from error


def prepare_folder(run: Run, out: Path, keep: bool) -> None:
    """Put another run that is in the folder aside, unless it is to be kept; write config.json."""
    if not keep and folder.holds_run(out):
        aside = folder.put_aside(out)
        with run.decoration("standard output"):
            say(f"{out} holds another run, which is kept in {aside}")
    write_atomically(out / "config.json", (json.dumps(asdict(run.config), indent=2) + "\n").encode())
