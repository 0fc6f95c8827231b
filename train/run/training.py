"""A whole run, from the options of the command line to the report: what `python -m train.cifar` does."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from minigrad.weights import write_atomically

from ..data import Dataset
from ..data.fetch import note
from ..options import UsageError, say, usage_errors, warn
from ..show import plots
from ..show.report import write_report
from . import checkpoint, folder, parallel
from .config import Config, configure, save_interval
from .evaluation import evaluate_run
from .faults import Guard, TrainingError, leave_out_kernels
from .fine_tuning import told
from .loading import load_data
from .loop import Run, fingerprint, train_epoch
from .parallel import Ranks
from .rehearsal import try_batches, try_files
from .signals import Interrupted, Signals


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


def write_log(run: Run, out: Path, title: str) -> None:
    """Write metrics.jsonl and curves.png anew from the run's history: whatever happened before, they agree with it."""
    if run.ranks.rank == 0:
        write_atomically(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in run.history).encode())
        if run.history:
            plots.draw_curves(run.history, out / "curves.png", title)


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
            stack.enter_context(folder.sole_user(args.out))
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
        leave_out_kernels(config.device, ranks)
        train_set, test_set = ranks.in_turn(lambda: load_data(args, config, progress=ranks.rank == 0))
        with usage_errors():
            run = Run.start(config, train_set, test_set, ranks, resumed=found is not None)
            if config.weights and found is None and ranks.rank == 0:
                note(told(run.model, config.weights))
            if config.recipe.cutout > min(train_set.shown):
                raise ValueError(f"--cutout {config.recipe.cutout} is larger than the images")
            tried = try_batches(run)
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
            stack.enter_context(folder.sole_user(args.out))
        save = partial(run.save, args.out / checkpoint.LAST)
        guard = Guard(save, **interval, ranks=ranks, signals=signals)
        try:
            # Overflow is no news here: losses and weights are looked at before they are believed or saved.
            with writing(args.out), signals.postponed(), np.errstate(over="ignore", invalid="ignore"):
                if ranks.rank == 0:
                    prepare_folder(args.out, config, keep=found is not None)
                try_files(run, args.out, tried)
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
            describe(args, (train_set, test_set))


def prepare_folder(out: Path, config: Config, keep: bool) -> None:
    """Put another run that is in the folder aside, unless it is to be kept; write config.json."""
    if not keep and folder.holds_run(out):
        say(f"{out} holds another run, which is kept in {folder.put_aside(out)}")
    write_atomically(out / "config.json", (json.dumps(asdict(config), indent=2) + "\n").encode())


def describe(args: argparse.Namespace, sets: tuple[Dataset, Dataset]) -> None:
    """Write the finished run's report.html; a run is not less finished if that fails."""
    try:
        write_report(args.out, args.data_root, sets)
    except (ValueError, OSError) as error:
        warn(f"the report cannot be written: {error}")
