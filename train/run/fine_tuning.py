"""Starting from weights that another training has found: a new last layer, and what of the rest is trained.

The files are safetensors: torchvision's and timm's ImageNet networks as they are, or a run of one's own. Images are
normalised as those that the weights were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minigrad.nn import Module
from minigrad.weights import to_evaluate

from ..data import CIFAR10, CIFAR100
from . import checkpoint
from .predictor import IMAGENET_MEAN, IMAGENET_STD

HEAD = "fc."  # the last layer's names begin so
FREEZE = ("none", "all-but-last-stage", "all-but-last-layer")


def read(path: str) -> tuple[dict[str, np.ndarray], checkpoint.State]:
    """The weights of a file, averaged ones where a run kept them, and the run's state, empty for plain weights."""
    try:
        arrays, state = checkpoint.read(Path(path))
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None  # the option names it
    weights = to_evaluate(arrays)
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): a for name, a in weights.items()}
    return weights, state


def network_of(path: str) -> str:
    """The name of the network that a run's weights are for. Raises ValueError where the file does not say it."""
    name = read(path)[1].get("config", {}).get("model")
    if not isinstance(name, str):
        raise ValueError(f"{path} holds weights but not the name of their network: give it with --model")
    return name


def start_from(model: Any, name: str, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Load all weights but the last layer's; return mean and deviation of the images that they are used to.

    Raises ValueError, and leaves the network as it is, where the file does not fit it.
    """
    weights, state = read(path)
    body = {n: a for n, a in weights.items() if not n.startswith(HEAD)}
    own = {n for n, _ in model.named_tensors() if not n.startswith(HEAD)}
    check_names(path, name, own, body)
    try:
        model.load_state_dict(body, strict=False)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not fit {name}: {error}") from None
    if state:
        return np.array(state["mean"]), np.array(state["std"])
    if getattr(model, "imagenet", False):
        return IMAGENET_MEAN, IMAGENET_STD
    head = weights.get("fc.weight", weights.get("module.fc.weight", ()))
    cifar = CIFAR100 if len(head) == len(CIFAR100.classes) else CIFAR10
    return np.array(cifar.mean), np.array(cifar.std)


def check_names(path: str, name: str, own: set[str], body: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless the file has all the network's arrays but the last layer's, and no others."""
    missing = sorted(n for n in own - body.keys() if not n.endswith("num_batches_tracked"))
    unexpected = sorted(body.keys() - own)
    for kind, names in (("lacks", missing), ("has besides", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path} does not fit {name}: it {kind} {names[0]}{more}")


def freeze(model: Any, what: str) -> None:
    """Keep everything as it is but the last layer, or the last stage and the last layer.

    Raises ValueError for a network that has no stages, or whose last layer is not called fc.
    """
    if what == "none":
        return
    stage = f"layer{getattr(model, 'stages', 0)}."
    names = [name for name, _ in model.named_parameters()]
    trained = (HEAD,) if what == "all-but-last-layer" else (HEAD, stage)
    for part in trained:
        if not any(name.startswith(part) for name in names):
            raise ValueError(
                f"--freeze {what} is for networks with parameters called {part}..., which this one has not"
            )
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith(trained)


def set_training(model: Module) -> None:
    """Switch to training, all but the modules without a parameter that is trained: batch norm keeps its statistics."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def described(model: Module, path: str) -> str:
    """What is trained from where, in a sentence."""
    sizes = [(p.size, p.requires_grad) for p in model.parameters()]
    trained, total = sum(size for size, wanted in sizes if wanted), sum(size for size, _ in sizes)
    return f"weights from {path}, a new last layer; {trained:,} of {total:,} parameters are trained"
