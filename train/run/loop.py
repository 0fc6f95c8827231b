"""Training, from the inside: a run's state, one step, one epoch."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minigrad
from minigrad import Parameter, Tensor, optim, registry
from minigrad import functional as F
from minigrad.backend import Array, device_kind, is_float, synchronize, to_device, to_numpy
from minigrad.nn import Module
from resnext import create

from ..data import Dataset
from ..options import Decoration
from . import checkpoint, faults, fine_tuning
from .batches import images_of, prepare
from .config import Config
from .faults import TrainingError
from .launched import Launched, fetch, outcome
from .parallel import ALONE, Ranks
from .progress import Bar

# How many steps may be under way when the host hands over the next one. A GPU computes one meanwhile, so that neither
# waits for the other.
AHEAD = {"cpu": 0, "cuda": 1}

# ------------------------------------------------------------------------------------------------- the state of a run


@dataclass(repr=False)
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
    step: int = 0  # steps taken in this epoch; the results of those in `launched` are still to come
    launched: list[Launched] = field(default_factory=list)
    best_error: float = math.inf  # lowest test error so far, in per cent
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(checkpoint.TOTALS, 0.0))
    averaged: dict[str, Array] = field(default_factory=dict)  # averaged weights and statistics, if the recipe asks
    history: list[dict[str, float]] = field(default_factory=list)  # the lines of metrics.jsonl, one an epoch
    data_checksum: int = 0  # of the training images and labels, by which other data is noticed
    test_checksum: int = 0  # the same of the test images
    saved: tuple[int, int] | None = None  # epoch and step of the last state that was saved
    saved_seconds: float = 0.0  # what the run had taken by then, as its report says
    ranks: Ranks = ALONE  # the processes that train this network together
    out: Path | None = None  # its folder, once it is trained
    decoration: Decoration = field(default_factory=Decoration)
    earlier: float = 0.0  # seconds that earlier processes have spent on this run
    started: float = field(default_factory=time.monotonic)
    between: float | None = None  # seconds from the last step of an epoch to the first of the next: evaluation, saving
    cuda_graph: Any = None  # on a GPU: `update` as a CUDA graph, which Python launches once a step
    test_cuda_graph: Any = None  # the same for `classify`, of evaluation.py

    @classmethod
    def start(
        cls, config: Config, train_set: Dataset, test_set: Dataset, ranks: Ranks = ALONE, resumed: bool = False
    ) -> Run:
        """A run at its beginning: fresh weights from the seed, on the device, with their optimiser.

        Where the configuration names weights to start from, all but the last layer's come from there, unless the run is
        `resumed`, which has its own. Raises ValueError where they do not fit.
        """
        minigrad.manual_seed(config.seed)
        model = create(config.model, num_classes=len(train_set.classes))
        mean, std = train_set.mean, train_set.std
        if config.weights and not resumed:
            mean, std = fine_tuning.start_from(model, config.model, config.weights)
        fine_tuning.freeze(model, config.freeze)
        model.to(config.device, "float64" if config.dtype == "float64" else "float32")
        r = config.recipe
        trained = [p for p in model.parameters() if p.requires_grad]
        decayed = [p for p in trained if r.decay_all or p.ndim > 1]
        plain = [p for p in trained if not (r.decay_all or p.ndim > 1)]
        groups: list[dict[str, Any]] = [{"params": decayed}]
        if plain:
            groups.append({"params": plain, "weight_decay": 0.0})
        optimizer = optim.SGD(groups, r.lr, r.momentum, r.weight_decay, r.nesterov)
        checksums = checksum_of_data(train_set), checksum_of_data(test_set)
        train_set, test_set = on_device(train_set, config.device), on_device(test_set, config.device)
        run = cls(config, model, optimizer, train_set, test_set, mean, std, ranks=ranks)
        run.data_checksum, run.test_checksum = checksums
        if r.average:
            run.averaged = {name: t.data.copy() for name, t in model.named_tensors()}
        run.cuda_graph = as_cuda_graph(
            partial(update_from, run), config, largest=lambda number: ranks.maximum(number)[0]
        )
        return run

    def set_training(self) -> None:
        """Switch what is trained of the network to training."""
        fine_tuning.set_training(self.model)

    def state(self) -> tuple[dict[str, np.ndarray], checkpoint.State]:
        """All that changes: arrays by name, and what is no array. Raises TrainingError if a number is not finite."""
        arrays = self.model.state_dict()
        names = {id(p): name for name, p in self.model.named_parameters()}
        for p, v in zip(self.optimizer.parameters(), self.optimizer.velocities, strict=True):
            if v is not None:
                arrays[checkpoint.VELOCITY + names[id(p)]] = to_numpy(v)
        arrays.update({checkpoint.AVERAGE + name: to_numpy(a) for name, a in self.averaged.items()})
        faults.check_finite(arrays)
        return arrays, {
            "config": asdict(self.config),
            "classes": self.train_set.classes,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "size": list(self.train_set.shown),
            "images": self.data_checksum,
            "test_images": self.test_checksum,
            "epoch": self.epoch,
            "step": self.step,
            "best_error": self.best_error if math.isfinite(self.best_error) else None,
            "totals": self.totals,
            "history": self.history,
            "seconds": self.seconds(),
            "generator": minigrad.backend.generator().bit_generator.state,
        }

    def __repr__(self) -> str:
        error = f", test error {self.history[-1]['test_error']:.2f} %" if self.history else ""
        place = f", in {self.out}" if self.out else ""
        epochs = f"{self.epoch} of {self.config.recipe.epochs} epochs"
        return f"<run of {self.config.model} on {self.train_set.name}: {epochs}{error}{place}>"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows of a run: its curves."""
        picture = self.out / "curves.png" if self.out else None
        return picture.read_bytes() if picture and picture.is_file() else None

    def steps_done(self) -> int:
        """How many steps of gradient descent the run has taken."""
        return self.epoch * math.ceil(len(self.train_set) / self.config.batch_size) + self.step

    def seconds(self) -> float:
        """The time that the run has taken so far, in all its processes."""
        return self.earlier + time.monotonic() - self.started

    def settle(self, leave: int = 0) -> None:
        """Wait for the results of all steps but the last `leave`, and count them.

        Raises TrainingError for a loss that is not finite.
        """
        while len(self.launched) > leave:
            begin = time.perf_counter()
            one = self.launched.pop(0)
            mean_loss, errors = outcome(*one.results(), one.labels)
            total_loss, total_errors = self.ranks.add(mean_loss * one.mine, errors if one.mine else 0)
            if not math.isfinite(total_loss):
                raise TrainingError(
                    f"the loss is {total_loss / one.images} in epoch {self.epoch + 1}, step {one.step + 1}, "
                    f"at learning rate {one.lr:.4g}: try a smaller --lr"
                )
            self.totals["loss"] += total_loss
            self.totals["errors"] += total_errors
            self.totals["images"] += one.images
            self.totals["seconds"] += time.perf_counter() - begin

    def save(self, path: Path) -> None:
        """Write the run's state to a file, see checkpoint.py; rank 0 writes, for all."""
        self.settle()
        if self.ranks.rank > 0:
            return
        arrays, state = self.state()
        try:
            if path.name == checkpoint.LAST:
                checkpoint.write_last(path.parent, arrays, state)
                self.saved, self.saved_seconds = (self.epoch, self.step), state["seconds"]
            else:
                checkpoint.write(path, arrays, state)
        except OSError as error:
            raise TrainingError(f"{path} cannot be saved: {error.strerror or error}") from error

    def restore(self, arrays: Mapping[str, np.ndarray], state: checkpoint.State) -> None:
        """Go on from what `state` returned. Raises ValueError, with both values, for the state of another run."""
        old = Config.stored(state["config"], "the run")
        changed = old.differences(self.config)
        done = state["epoch"] + state["step"] / math.ceil(len(self.train_set) / self.config.batch_size)
        if len(changed) == 1 and old.recipe.epochs != self.config.recipe.epochs:
            followed = f"the learning rate of the {old.recipe.schedule} schedule has followed the old number"
            help = "start a new run from these weights with --weights, or plan with --schedule constant --warmup 0"
            changed = [] if old.agrees(self.config, done) else [f"{changed[0]}, and {followed}: {help}"]
        if state["images"] != self.data_checksum and not changed:
            same = old.data == self.config.data
            changed = [
                f"the images of {old.data} are others" if same else f"--data was {old.data} and is {self.config.data}"
            ]
        if state.get("test_images", self.test_checksum) != self.test_checksum and not changed:
            changed = [f"the test images of {old.data} are others, so that errors could not be compared"]
        if changed:
            raise ValueError(f"the run has other settings, {', '.join(changed)}")
        self._check_progress(state)
        self.model.load_state_dict({name: a for name, a in arrays.items() if ":" not in name})
        names = {id(p): name for name, p in self.model.named_parameters()}
        velocities = checkpoint.select(arrays, checkpoint.VELOCITY)
        self.optimizer.load_state_dict(
            {"lr": self.optimizer.lr, "velocities": [velocities.get(names[id(p)]) for p in self.optimizer.parameters()]}
        )
        for name, a in checkpoint.select(arrays, checkpoint.AVERAGE).items():
            if name not in self.averaged or self.averaged[name].shape != a.shape:
                raise ValueError(f"the average of {name} does not fit the network")
            self.averaged[name] = to_device(np.array(a), self.config.device)
        self.mean, self.std = np.array(state["mean"]), np.array(state["std"])
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        self.best_error = math.inf if state["best_error"] is None else state["best_error"]
        self.totals, self.earlier = state["totals"], state.get("seconds", 0.0)
        minigrad.backend.generator().bit_generator.state = state["generator"]
        self.saved, self.saved_seconds = (self.epoch, self.step), self.earlier

    def _check_progress(self, state: checkpoint.State) -> None:
        """Raise ValueError for a state that says to stand where no run of this configuration can."""
        epochs, N, batch = self.config.recipe.epochs, len(self.train_set), self.config.batch_size
        steps, step, totals = math.ceil(N / batch), state["step"], state["totals"]
        if state["epoch"] > epochs or step > steps:
            where = f"epoch {state['epoch']} and step {step}"
            raise ValueError(f"the state stands after {where}, in a run of {epochs} epochs of {steps} steps")
        if len(state["history"]) != state["epoch"]:
            raise ValueError(f"the state has {len(state['history'])} lines of log after {state['epoch']} epochs")
        seen = min(step * batch, N)
        if totals["images"] != seen or totals["errors"] > seen or (seen and not totals["seconds"] > 0):
            raise ValueError(f"the sums of the epoch are {totals} after {step} steps of {batch} images")


def checksum_of_weights(model: Module) -> int:
    """A number that two networks share if, and practically only if, all their weights and statistics are the same."""
    number = 0
    for _, t in model.named_tensors():
        if is_float(t.dtype):
            number = zlib.crc32(np.ascontiguousarray(to_numpy(t.data)).data, number)
    return number


def checksum_of_data(dataset: Dataset) -> int:
    """A number that two data sets share if, and practically only if, all their images and labels are the same."""
    return zlib.crc32(dataset.labels.data, zlib.crc32(np.ascontiguousarray(to_numpy(dataset.images)).data))


def on_device(dataset: Dataset, device: str) -> Dataset:
    """Move a data set's images to the device, once; labels stay on the host, where they are checked and counted."""
    return replace(dataset, images=to_device(dataset.images, device))


def as_cuda_graph(
    step: Callable[..., Any], config: Config, workspace: Any = None, largest: Callable[[int], int] = int
) -> Any:
    """`step` as a CUDA graph, in a workspace if it is given; None where there can be none. See `CudaGraph`.

    That is on a CPU, and where the engine room does not compute: only its operations read nothing back.
    """
    if config.device == "cpu" or config.dtype == "float64" or not registry.fast("cuda"):
        return None
    return minigrad.fast.cuda.graph.CudaGraph(step, workspace, largest)


# ------------------------------------------------------------------------------------------------- one step


def train_step(run: Run, batch: Array, labels: np.ndarray, lr: float, fraction: float = 1.0) -> tuple[Array, Array]:
    """One step of gradient descent on this rank's part, a `fraction` of the batch; return the mean loss and the logits.

    On a GPU it returns when the work is handed over, long before it is done.
    """
    decay = average_decay(run.config.recipe.average, run.steps_done())
    if run.cuda_graph is None:
        return update(run, batch, labels, lr, decay, fraction)
    # Whatever changes from step to step goes into a CUDA graph as an array on the device.
    changing = labels.astype(np.int64), np.array([[lr], [decay], [fraction]], np.float32)
    return run.cuda_graph(batch, *(to_device(a, run.config.device) for a in changing))


def average_decay(decay: float, t: int) -> float:
    """How much of the averaged weights is kept after step t + 1:  min(decay, (1 + t) / (10 + t)).

    So at first the average follows the weights, which still move far: it reaches back over about a tenth of the steps
    so far. (The rule of TensorFlow's ExponentialMovingAverage with `num_updates`.)
    """
    return min(decay, (1 + t) / (10 + t))


def update(
    run: Run, batch: Array, labels: Array, lr: float | Array, decay: float | Array, fraction: float | Array = 1.0
) -> tuple[Array, Array]:
    """Forward, backward and the optimiser's step, which read nothing back; return the mean loss and the logits."""
    run.optimizer.lr = lr
    run.optimizer.zero_grad()
    logits = run.model(Tensor._of(images_of(run, batch)))
    loss = F.cross_entropy(logits, labels, run.config.recipe.label_smoothing)
    if run.ranks.size > 1:
        backward_over_ranks(run, loss, fraction)
    else:
        loss.backward()
    run.optimizer.step()
    if run.averaged:
        update_averaged(run, decay)
    return loss.data, logits.data


def update_from(run: Run, batch: Array, labels: Array, numbers: Array) -> tuple[Array, Array]:
    """`update` with its three numbers in one array on the device."""
    return update(run, batch, labels, *numbers)


def backward_over_ranks(run: Run, loss: Tensor, fraction: float | Array) -> None:
    """Make gradients those of the whole batch, and running statistics the same on all ranks; see parallel.py.

    Each gradient is on its way to the other ranks as soon as it is complete.
    """
    mean, complete = run.ranks.mean(fraction), list[Tensor]()

    def send(p: Tensor) -> None:
        mean.add(p.grad)
        complete.append(p)

    loss.backward(after_leaf=send)
    statistics = [t for _, t in run.model.named_tensors() if not isinstance(t, Parameter) and is_float(t.dtype)]
    for t in statistics:
        mean.add(t.data)
    means = mean.results()
    for p, dw in zip(complete, means, strict=False):
        p.grad = dw
    for t, value in zip(statistics, means[len(complete) :], strict=True):
        t.data[...] = value


def update_averaged(run: Run, decay: float | Array) -> None:
    """averaged ← decay averaged + (1 - decay) value, for parameters and batch-norm statistics; counts are copied.

    `sgd_update` does just that, w ← w - lr (dw + weight_decay w), with w = averaged, dw = value, weight_decay = -1 and
    lr = decay - 1: averaged - (decay - 1) (value - averaged). So the engine room's one launch serves this too.
    """
    updates = []
    for name, t in run.model.named_tensors():
        if is_float(t.dtype):
            updates.append((run.averaged[name], t.data, t.data, 0.0, -1.0, False))
        else:
            run.averaged[name][...] = t.data
    optim.update_all(run.config.device, updates, decay - 1)


# ------------------------------------------------------------------------------------------------- one epoch


def train_epoch(run: Run, after_step: Callable[[Run], None]) -> dict[str, float]:
    """Train from where the run stands to the end of its epoch; return the epoch's mean loss, error and images/s.

    `after_step` is called after every step: it may save the run, which waits for the step's results, or end it by
    raising.
    """
    config, train_set = run.config, run.train_set
    order = np.random.default_rng((config.seed, run.epoch)).permutation(len(train_set))
    steps = math.ceil(len(train_set) / config.batch_size)
    schedule = config.schedule()
    run.set_training()
    batches = [order[i : i + config.batch_size] for i in range(0, len(train_set), config.batch_size)]
    batch = prepare(run, batches[run.step], run.step) if run.step < steps else None
    ahead = AHEAD[device_kind(config.device)]
    with Bar(run, steps) as bar:
        while run.step < steps:
            begin = time.perf_counter()
            indices = batches[run.step]
            lr = schedule(run.epoch + run.step / steps)
            labels = run.ranks.part(train_set.labels[indices])
            mine = run.ranks.count(len(indices))
            results = train_step(run, batch, labels, lr, mine / len(indices))
            run.launched.append(Launched(fetch(*results), labels, mine, len(indices), run.step, lr))
            run.step += 1
            if run.step < steps:  # the next batch, while a GPU is still at work on this one
                batch = prepare(run, batches[run.step], run.step)
            run.totals["seconds"] += max(time.perf_counter() - begin, 1e-9)  # of a clock that stands still, too
            run.settle(leave=ahead if run.step < steps else 0)
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
