"""How a network does on a data set: while it trains, and from a file."""

from __future__ import annotations

import argparse
import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from minigrad import Tensor, no_grad, registry
from minigrad import functional as F
from minigrad.backend import Array, DeviceError, check_device, device_kind, float_dtype, to_device
from minigrad.nn import Module
from minigrad.weights import to_evaluate
from resnext import create
from resnext.counts import outlines

from ..data import Dataset, augment
from ..data.fetch import note
from ..options import UsageError, say, usage_errors
from . import checkpoint, parallel
from .config import Config, configure
from .faults import leave_out_kernels, memory_for
from .launched import fetch
from .loading import load_data
from .loop import AHEAD, Run, as_cuda_graph, checksum_of_data, checksum_of_weights, on_device
from .parallel import ALONE, Ranks
from .predictor import IMAGENET_MEAN, IMAGENET_STD, for_evaluation


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
    cuda_graph: Any = None,
) -> Evaluation:
    """Classify a data set, normalised with the mean and deviation of the training images.

    Batches of `dataset.at_once` images are dealt to the ranks in turn; sums are made in the batches' order, so that the
    result does not depend on the number of ranks. `after_round` is called whenever each rank has done one batch. On a
    GPU `cuda_graph` may be the model's `classify` as one, and a batch's results are read when the next one has been
    handed over.
    """
    model.eval()
    classifier = cuda_graph or partial(classify, for_evaluation(model, config.device))
    K = len(dataset.classes)
    size = dataset.at_once
    starts = range(0, len(dataset), size)
    losses, confusion = np.zeros(len(starts)), np.zeros((K, K), np.int64)
    dtype = float_dtype(config.dtype, config.device)
    normalise = registry.choose(augment.normalise, config.device, dataset.images, mean, std, dtype)
    under_way: deque[tuple[int, np.ndarray, Callable[[], tuple[Array, Array]]]] = deque()

    def settle(leave: int = 0) -> None:
        while len(under_way) > leave:
            i, labels, results = under_way.popleft()
            loss, logits = results()
            losses[i] = float(loss) * len(labels)
            np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)

    for i, begin in enumerate(starts):
        if i % ranks.size == ranks.rank:
            labels = dataset.labels[begin : begin + size]
            batch = normalise(dataset.images[begin : begin + size], mean, std, dtype)
            given = to_device(labels.astype(np.int64), config.device) if cuda_graph else labels
            under_way.append((i, labels, fetch(*classifier(batch, given))))
            settle(leave=AHEAD[device_kind(config.device)])
        if (i + 1) % ranks.size == 0:
            after_round()
    settle()
    losses, confusion = ranks.add_arrays(losses), ranks.add_arrays(confusion)
    error = 100 * (confusion.sum() - confusion.trace()) / confusion.sum()
    return Evaluation(float(losses.sum()) / len(dataset), float(error), confusion)


def classify(network: Module, batch: Array, labels: Array) -> tuple[Array, Array]:
    """The mean loss and the logits of a batch, which need no gradient."""
    with no_grad():
        logits = network(Tensor._of(batch))
        return F.cross_entropy(logits, labels).data, logits.data


def evaluate_run(run: Run, after_round: Callable[[], None] = lambda: None) -> Evaluation:
    """Evaluate the run's averaged weights, if it keeps an average, else its weights."""
    own = {name: t.data for name, t in run.model.named_tensors()}
    try:
        for name, t in run.model.named_tensors():
            t.data = run.averaged.get(name, t.data)
        if run.test_cuda_graph is None:  # in the memory that training has, and that the last step no longer needs
            memory = run.cuda_graph and run.cuda_graph.workspace
            run.test_cuda_graph = as_cuda_graph(partial(classify, run.model), run.config, memory)
        images = run.test_set, run.mean, run.std
        return evaluate(run.model, *images, run.config, run.ranks, after_round, run.test_cuda_graph)
    finally:
        for name, t in run.model.named_tensors():
            t.data = own[name]


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
        config = configure(args, base, ranks.device)
    with memory_for(config):
        evaluate_weights(args, ranks, config, arrays, state)


def evaluate_weights(
    args: argparse.Namespace, ranks: Ranks, config: Config, arrays: dict[str, np.ndarray], state: checkpoint.State
) -> None:
    """Evaluate what the file `args.evaluate` holds, arrays and a run's state (empty for plain weights)."""
    path = args.evaluate
    parallel.use_threads(args.threads or ranks.threads())
    ranks.connect(config.device)
    leave_out_kernels(config.device, ranks)
    # A run's state knows how its images were normalised: the training images are not needed.
    tested = bool(state) and args.validate is None
    train_set, test_set = ranks.in_turn(lambda: load_data(args, config, tested, progress=ranks.rank == 0))
    if state:
        if ranks.rank == 0 and kept_back_otherwise(config, state, test_set):
            note(
                f"{config.data} has other images than when the run was made: --validate keeps back others to test now, "
                "and the run may have been trained on some of them"
            )
        test_set = relabelled(test_set, state["classes"])
    weights = to_evaluate(arrays)
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
    if not state and getattr(model, "imagenet", False):  # as `train.predict` and --weights take such a file
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    if ranks.size > 1:
        counts = f"{len(test_set):,} of {len(test_set.classes)} classes"
        sums = checksum_of_data(test_set), checksum_of_weights(model)
        named = dict(zip(("test images with the checksum", "weights with the checksum"), sums, strict=True))
        ranks.compare({"test images:": counts, **named, "--dtype": config.dtype})
    cuda_graph = as_cuda_graph(partial(classify, model), config)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at below
        result = evaluate(model, on_device(test_set, config.device), mean, std, config, ranks, cuda_graph=cuda_graph)
    if not math.isfinite(result.loss):
        raise ValueError(f"the test loss of {path} is {result.loss}: its weights cannot be used")
    if ranks.rank == 0:
        digits = [np.format_float_positional(x, trim="0") for x in (result.error, result.loss)]
        say(f"test_error {digits[0]} test_loss {digits[1]}")


def kept_back_otherwise(config: Config, state: checkpoint.State, test_set: Dataset) -> bool:
    """Whether a share of the run's own folder is tested, but not the images that the run was tested on."""
    options = ("data", "validate", "seed", "image_size", "limit_test")
    same = config.validate is not None and all(getattr(config, name) == state["config"].get(name) for name in options)
    return same and "test_images" in state and checksum_of_data(test_set) != state["test_images"]


def relabelled(test_set: Dataset, classes: list[str]) -> Dataset:
    """The same images with a trained network's classes, of which they may show some, under its labels.

    Raises ValueError where they show others: an error that is counted for the wrong class is a wrong number.
    """
    for name in test_set.classes:
        if name not in classes:
            raise ValueError(f"{test_set.name} has a class {name!r}, the network knows {checkpoint.brief(classes)}")
    numbers = np.array([classes.index(name) for name in test_set.classes])
    return replace(test_set, labels=numbers[test_set.labels], classes=classes)


def on_this_machine(config: Config) -> Config:
    """The configuration, on the CPU if its device is not to be had here."""
    try:
        check_device(config.device)
        return config
    except DeviceError:
        return replace(config, device="cpu", dtype="float32" if config.dtype == "bfloat16" else config.dtype)
