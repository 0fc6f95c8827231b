"""Recipes: the hyper-parameters of a training run, by name. Each is also an option of its own on the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; everything but the network and the data."""

    epochs: int  # passes over the training images
    lr: float  # peak learning rate
    schedule: str  # "multi-step": divided by 10 at 1/2 and 3/4 of the epochs; "linear" or "cosine": down to 0
    warmup: float = 0.0  # share of the epochs in which the learning rate rises linearly from 0
    momentum: float = 0.9
    nesterov: bool = True  # the look-ahead form, as in the authors' code
    weight_decay: float = 5e-4
    decay_all: bool = True  # decay batch norm's parameters and biases too, as in the authors' code
    label_smoothing: float = 0.0
    padding: str = "zero"  # what the 4-pixel border holds that crops may reach into: "zero" or "reflect"
    flip: str = "random"  # "random": a coin per image and epoch; "alternating": every other epoch
    cutout: int = 0  # side of the square that is blanked, in pixels
    average: float = 0.0  # decay per step of the averaged weights that are evaluated; 0: the weights themselves


RECIPES = {
    # Xie et al. 2017, Appendix A: 300 epochs, learning rate 0.1 reduced at 150 and 225, weight decay 5e-4, momentum
    # 0.9, pad-4 crop and flip. The factor 10 and Nesterov's form are from the authors' code.
    "paper": Recipe(epochs=300, lr=0.1, schedule="multi-step"),
    # Meant to reach the same accuracy in a fifth of the epochs (not measured yet, see docs/paper.md): linear decay (Li
    # et al., ICLR 2020), label smoothing (Szegedy et al., CVPR 2016), cutout (DeVries & Taylor 2017), alternating flips
    # (Jordan 2024), averaged weights.
    "short": Recipe(
        epochs=60,
        lr=0.1,
        schedule="linear",
        warmup=0.05,
        decay_all=False,
        label_smoothing=0.1,
        padding="reflect",
        flip="alternating",
        cutout=12,
        average=0.999,
    ),
    # The embedded shapes in about two minutes on a CPU, in batches of 32: a short run needs many steps.
    "quick": Recipe(epochs=6, lr=0.1, schedule="cosine", warmup=0.3),
}
