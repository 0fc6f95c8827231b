"""Recipes: the hyper-parameters of a training run, by name. Each is also an option of its own on the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of a run but for its batch size, which is in `Config`. `PARTS` says what each is."""

    epochs: int
    lr: float
    schedule: str
    warmup: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True  # as in the authors' code
    weight_decay: float = 5e-4
    decay_all: bool = True  # as in the authors' code
    label_smoothing: float = 0.0
    padding: str = "zero"
    flip: str = "random"
    cutout: int = 0
    crop_area: float = 0.25
    average: float = 0.0


# For people who read this and for --help.
PARTS = {
    "epochs": "passes over the training images",
    "lr": "peak learning rate",
    "schedule": "multi-step: divided by 10 at 1/2 and 3/4 of the epochs; linear, cosine: down to 0; constant",
    "warmup": "share of the epochs in which the learning rate rises from 0",
    "momentum": "of gradient descent; 0 for none, with --no-nesterov",
    "nesterov": "momentum in the look-ahead form",
    "weight_decay": "what is added to the gradient, times the weight",
    "decay_all": "decay batch norm's parameters and biases too",
    "label_smoothing": "share of the target that is spread over all classes",
    "padding": "what the 4-pixel border holds that crops may reach into",
    "flip": "mirror images by a coin per image and epoch, every other epoch, or never",
    "crop_area": "with --image-size: the smallest share of a photograph that a random crop shows",
    "cutout": "side of the square that is blanked, in pixels",
    "average": "decay per step of the averaged weights that are evaluated, less at first; 0: the weights themselves",
}
CHOICES = {
    "schedule": ("multi-step", "linear", "cosine", "constant"),
    "padding": ("zero", "reflect"),
    "flip": ("random", "alternating", "none"),
}

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
    # From weights that are good already: small steps, all weights decayed as in the paper's ImageNet training (1e-4).
    # A small folder is given smaller batches and more epochs: `adapted` in config.py.
    "fine-tune": Recipe(epochs=10, lr=0.01, schedule="cosine", warmup=0.1, weight_decay=1e-4),
    # The embedded shapes in about two minutes on a CPU, in batches of 32: a short run needs many steps.
    "quick": Recipe(epochs=6, lr=0.1, schedule="cosine", warmup=0.3),
}
