"""What a run does only at the end of an epoch, tried once before its first step.

A run that is to take days must not end after its first epoch because that epoch's last batch has a single image, or
because the tests need more memory than training does, or the disk has no room for the state.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

import minigrad
from minigrad import Parameter, Tensor
from minigrad import functional as F

from ..data import Dataset
from ..options import warn
from ..show.report import render
from . import checkpoint
from .batches import check_kernel, images_of, prepare
from .evaluation import Evaluation, evaluate
from .faults import TrainingError
from .loop import Run
from .predictor import load_predictor

TRIAL = ".trial.part"  # a name that the next start clears away, should this one be killed


def try_batches(run: Run) -> Evaluation:
    """Train on as few images as the smallest batch has, and evaluate one batch; leave the run as it was.

    Returns the evaluation. Raises ValueError where the images do not fit the network, or the last batch is too small.
    """
    generator = minigrad.backend.generator()
    state = generator.bit_generator.state
    check_kernel(run)
    buffers = [(t, t.data.copy()) for _, t in run.model.named_tensors() if not isinstance(t, Parameter)]
    try:
        try_last_batch(run)
    finally:
        generator.bit_generator.state = state
        run.optimizer.zero_grad()
        for t, before in buffers:
            t.data = before
    few = run.test_set.at_once * run.ranks.size
    few_tests = replace(run.test_set, images=run.test_set.images[:few], labels=run.test_set.labels[:few])
    return evaluate(run.model, few_tests, run.mean, run.std, run.config, run.ranks)


def try_last_batch(run: Run) -> None:
    """Forward and backward on one image, if this rank's part of the last batch is no larger, else on two.

    Whether batch norm can take a batch depends on nothing more: it needs two values for each channel.
    """
    total, size = len(run.train_set), run.config.batch_size
    last = total % size or min(size, total)
    mine = max(run.ranks.count(last), 1)  # a rank without an image goes through the first one, which counts nothing
    images = min(mine, 2)
    indices = np.arange(images * run.ranks.size) % total
    batch = images_of(run, prepare(run, indices, 0))
    run.set_training()
    try:
        logits = run.model(Tensor._of(batch))
        F.cross_entropy(logits, run.ranks.part(run.train_set.labels[indices])).backward()
    except ValueError as error:
        if images > 1:
            raise
        whose = f" for each of the {run.ranks.size} ranks" if run.ranks.size > 1 else ""
        raise ValueError(
            f"of {total:,} training images in batches of {size}, the last batch has a single one{whose}: {error}; "
            "choose another --batch-size or --limit-train"
        ) from None


def try_files(run: Run, out: Path, result: Evaluation) -> None:
    """Write the state, read it, and render the report from it; what is written is removed again.

    Raises TrainingError: a state that cannot be written is a run that can be lost. A report that fails is a warning.
    """
    if run.ranks.rank > 0:
        return
    arrays, state = run.state()
    try:
        try:
            checkpoint.write(out / TRIAL, arrays, state)
        except OSError as error:
            raise TrainingError(f"{out / checkpoint.LAST} cannot be saved: {error.strerror or error}") from error
        try:
            predictor = load_predictor(out / TRIAL, None, None, run.config.device)
            loss = result.loss if math.isfinite(result.loss) else 0.0
            line = dict.fromkeys(checkpoint.FIGURES, 1.0) | {"test_loss": loss, "test_error": result.error}
            few = few_of(run.train_set), few_of(run.test_set)
            render(out, run.config, {**state, "epoch": 1, "history": [line]}, predictor, few, "")
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            warn(f"the report will not be written: {error}")
    finally:
        (out / TRIAL).unlink(missing_ok=True)


def few_of(dataset: Dataset) -> Dataset:
    """The first two images of a data set."""
    aspects = None if dataset.aspects is None else dataset.aspects[:2]
    return replace(dataset, images=dataset.images[:2], labels=dataset.labels[:2], aspects=aspects)
