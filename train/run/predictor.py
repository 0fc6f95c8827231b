"""A trained network, read from a file, and what it says of photographs and of data sets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Tensor, no_grad
from minigrad import functional as F
from minigrad.backend import to_device
from minigrad.fold import fold
from minigrad.nn import Module
from minigrad.weights import to_evaluate
from resnext import create
from resnext.counts import outlines

from ..data import CIFAR10, CIFAR100, Dataset, augment
from ..data.images import MARGIN, MAX_PIXELS, photograph, quiet
from ..options import UsageError
from . import checkpoint

# What ImageNet networks are used to (0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 on a scale of 0 to 1).
IMAGENET_MEAN = np.array([123.675, 116.28, 103.53])
IMAGENET_STD = np.array([58.395, 57.12, 57.375])


def for_evaluation(model: Module, device: str) -> Module:
    """What to evaluate a network with, as long as its weights stay as they are: on a CPU, batch norm is folded away.

    On a GPU it is the network itself: batch norm, ReLU and shortcut are one kernel there, and a convolution's bias
    would be another.
    """
    return fold(model) if device == "cpu" else model


@dataclass(frozen=True)
class Predictor:
    """A trained network and what it wants to see."""

    model: Module
    classes: list[str]
    size: tuple[int, int]  # H, W of its images
    margin: float  # how much larger than that an image is before the middle is cut out
    mean: np.ndarray  # per channel, in the pixels' scale of 0 to 255
    std: np.ndarray

    def for_many(self, device: str) -> Predictor:
        """The same, faster from the first dozen photographs on: see `for_evaluation`."""
        return replace(self, model=for_evaluation(self.model, device))

    def probabilities(self, path: Path, device: str) -> np.ndarray:
        """The probability of every class for the image in a file, whose middle is looked at: (K,), they sum to 1.

        Raises FileNotFoundError, DataError for what is no image, is damaged or has too many pixels, and ValueError
        where no number comes out of the network.
        """
        if path.is_dir():
            raise UsageError(f"{path} is a folder: give the images in it, {path}/*.jpg")
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        with quiet():
            pixels = photograph(path, self.size, self.margin).transpose(2, 0, 1)  # (3, H, W) uint8
        batch = augment.normalise(to_device(pixels[None], device), self.mean, self.std)
        with no_grad(), np.errstate(over="ignore", invalid="ignore"):
            found = F.softmax(self.model(Tensor._of(batch))).numpy()[0]
        if not np.isfinite(found).all():
            raise ValueError(f"the network's answer to {path} is {found.max()}: its weights cannot be used")
        return found


def load_predictor(path: Path, name: str | None, classes_file: Path | None, device: str) -> Predictor:
    """Read a checkpoint or a file of weights. Raises UsageError for missing options and ValueError for bad files."""
    arrays, state = checkpoint.read(path)
    weights = to_evaluate(arrays)
    config = state.get("config", {})
    if math.prod(state.get("size", ())) > MAX_PIXELS:
        H, W = state["size"]
        raise ValueError(f"{path} asks for images of {W} x {H} pixels; at most {MAX_PIXELS:,} pixels are accepted")
    name = name or config.get("model")
    if name is None:
        raise UsageError(f"{path} holds weights but not the name of their network: give it with --model")
    head = weights.get("fc.weight", weights.get("module.fc.weight"))
    if head is None or head.ndim != 2:
        raise ValueError(f"{path} is no file of weights for {name}: it has no matrix fc.weight")
    classes = [f"class {k}" for k in range(len(head))]
    if classes_file is not None:
        if not classes_file.is_file():
            what = f"{classes_file} is a folder" if classes_file.is_dir() else f"there is no file {classes_file}"
            raise UsageError(what)
        try:
            classes = classes_file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UsageError(f"{classes_file} is no text in UTF-8: {error}") from None
        if len(classes) != len(head):
            raise UsageError(f"{classes_file} has {len(classes)} lines, the network has {len(head)} classes")
    elif len(state.get("classes", ())) == len(head):
        classes = state["classes"]
    try:
        with outlines():  # all values come from the file
            model: Any = create(name, num_classes=len(head))
    except (ValueError, TypeError) as error:  # TypeError: a state may hold anything for the name
        raise UsageError(str(error)) from None
    try:
        model.load_state_dict(weights)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not fit {name}: {error}") from None
    model.to(device).eval()
    if not state and model.input_size == 224:
        return Predictor(model, classes, (224, 224), MARGIN, IMAGENET_MEAN, IMAGENET_STD)
    H, W = state.get("size", (model.input_size, model.input_size))
    cifar = CIFAR100 if len(head) == len(CIFAR100.classes) else CIFAR10
    mean, std = np.array(state.get("mean", cifar.mean)), np.array(state.get("std", cifar.std))
    margin = MARGIN if config.get("image_size") else 1.0  # as the run's own tests saw them
    return Predictor(model, classes, (H, W), margin, mean, std)


@dataclass(frozen=True)
class Predictions:
    """What the network says of every test image."""

    probabilities: np.ndarray  # (N, K)
    labels: np.ndarray  # (N,)

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)

    def confusion(self) -> np.ndarray:
        """How often class i was taken for class j: (K, K)."""
        K = self.probabilities.shape[1]
        return np.bincount(self.labels * K + self.predicted, minlength=K * K).reshape(K, K)

    def mistakes(self) -> np.ndarray:
        """The indices of the misclassified images, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        confidence = self.probabilities[wrong, self.predicted[wrong]]
        return wrong[np.argsort(-confidence, kind="stable")]


def predict(predictor: Predictor, dataset: Dataset, device: str) -> Predictions:
    """Classify a data set in evaluation mode."""
    parts, predictor = [], predictor.for_many(device)
    with no_grad():
        for begin in range(0, len(dataset), dataset.at_once):
            images = to_device(dataset.images[begin : begin + dataset.at_once], device)
            logits = predictor.model(Tensor._of(augment.normalise(images, predictor.mean, predictor.std)))
            parts.append(F.softmax(logits).numpy())
    return Predictions(np.concatenate(parts), dataset.labels)
