"""What a run depends on, and how the command line says it: `python -m train.cifar --help`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from minigrad import optim
from minigrad.backend import check_device, device_kind
from minigrad.diagnosis import shown

from ..data.folders import check_options
from ..options import Parser, check_dtype, check_threads, compute_capability, default_dtype, folder, word
from . import checkpoint
from .fine_tuning import FREEZE, network_of
from .recipes import CHOICES, PARTS, RECIPES, Recipe


@dataclass(frozen=True)
class Config:
    """What a run depends on: with the same configuration, device and number of threads, the same weights come out."""

    data: str  # cifar10, cifar100, shapes or a path
    model: str  # a name that resnext.create knows
    recipe: Recipe
    device: str = "cpu"
    dtype: str = "float32"  # of activations; weights stay in float32 under bfloat16
    batch_size: int = 128
    seed: int = 0
    limit_train: int | None = None
    limit_test: int | None = None
    image_size: int | None = None  # of photographs, which are scaled and cropped to it
    validate: float | None = None  # share of a folder's images that is kept back for testing
    weights: str | None = None  # the file that training starts from
    freeze: str = "none"  # what keeps the weights that it has

    def schedule(self) -> optim.Schedule:
        """The learning rate as a function of the time in epochs."""
        r = self.recipe
        warmup = r.warmup * r.epochs
        if r.schedule in ("linear", "cosine"):
            decay = optim.cosine if r.schedule == "cosine" else optim.linear
            return decay(r.lr, r.epochs, warmup)
        steps = optim.multi_step(r.lr, () if r.schedule == "constant" else (0.5 * r.epochs, 0.75 * r.epochs))
        return lambda t: steps(t) * t / warmup if t < warmup else steps(t)

    def agrees(self, other: Config, done: float) -> bool:
        """Whether another configuration has had the same learning rates in the first `done` epochs."""
        one, two = self.schedule(), other.schedule()
        return all(math.isclose(one(t), two(t), rel_tol=1e-9) for t in np.linspace(0, done, 1000, endpoint=False))

    @classmethod
    def stored(cls, values: Mapping[str, Any], where: object) -> Config:
        """The configuration in the checkpoint `where`. Raises ValueError for one that is not of this version."""
        kinds = {"str": str, "int": int, "bool": bool, "int | None": int | NoneType, "float | None": float | NoneType}
        kinds["str | None"] = str | NoneType
        try:
            values = LATER | {**values, "recipe": LATER_RECIPE | values["recipe"]}
            config = cls(**{**values, "recipe": Recipe(**values["recipe"])})
        except TypeError:
            known = {f.name for f in (*fields(cls), *fields(Recipe))}
            odd = [name for name in (*values, *values["recipe"]) if name not in known] or "something is missing"
            raise ValueError(f"{where} has a configuration of another version: {checkpoint.brief(odd)}") from None
        for part, held in ((config, values), (config.recipe, values["recipe"])):
            for f in fields(part):
                value, kind = held.get(f.name), str(f.type)
                fits = checkpoint.is_number(value) if kind == "float" else isinstance(value, kinds.get(kind, dict))
                if not fits or f.name not in held or value not in WORDS.get(f.name, [value]):
                    raise ValueError(f"{where} has {f.name} = {checkpoint.brief(value)} in its configuration")
        return config

    def differences(self, other: Config) -> list[str]:
        """The options, the data aside, by which another configuration makes another run, with both values."""
        old, new = ({**asdict(c), **asdict(c.recipe)} for c in (self, other))
        return [
            f"--{name.replace('_', '-')} was {old[name]} and is {new[name]}"
            for name in old
            if name not in ("recipe", "device", "data") and old[name] != new[name]
        ]


# What else is no free text; a page shows the command that repeats a run, for people to copy.
WORDS: dict[str, tuple[str, ...]] = {**CHOICES, "freeze": tuple(FREEZE), "dtype": ("float32", "float64", "bfloat16")}

# What configurations of version 0.1 do not have, and what they meant.
LATER: dict[str, Any] = {"image_size": None, "validate": None, "weights": None, "freeze": "none"}
LATER_RECIPE = {"crop_area": 0.25}

# What a machine can do in minutes: without a GPU, a small network on images that need no download.
DEFAULTS = {
    "cpu": {"data": "shapes", "model": "resnext11_4x4d_w16"},
    "cuda": {"data": "cifar10", "model": "resnext29_8x64d"},
    # Without bfloat16's tensor cores: a seventh of the multiplications.
    "older cuda": {"data": "cifar10", "model": "resnext29_32x4d"},
}
# What recipes need where images are few: steps in all, in epochs of so many steps, of so many images at least.
STEPS, STEPS_AN_EPOCH, SMALLEST_BATCH = {"quick": 600, "fine-tune": 200}, 20, 8
BATCH_SIZE = {"paper": 128, "short": 128, "quick": 32, "fine-tune": 32}  # by recipe


def defaults_for(device: str) -> dict[str, str]:
    """The data and the network for a device, where the command line names none."""
    if device != "cpu" and compute_capability(device) < 80:
        return DEFAULTS["older cuda"]
    return DEFAULTS[device_kind(device)]


def parser() -> argparse.ArgumentParser:
    """The options of `python -m train.cifar`."""
    p = Parser(
        prog="python -m train.cifar",
        description="Train a network on images. Without options: a small ResNeXt on drawn shapes, minutes on a CPU.",
    )
    p.add_argument("--device", metavar="cpu|cuda", help="where to compute (default: cpu)")
    p.add_argument(
        "--model",
        type=word,
        help="a name that `python -m resnext` lists (default: resnext11_4x4d_w16; on cuda resnext29_8x64d)",
    )
    p.add_argument("--data", type=word, help="cifar10, cifar100, shapes or a path (default: shapes; on cuda cifar10)")
    p.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR", help="where downloads are kept (default: data)"
    )
    p.add_argument(
        "--data-mirror",
        action="append",
        metavar="URL",
        help="fetch the archive from below this address, or any of several, instead of the known ones",
    )
    p.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="for folders of images of any size: scale and crop to N x N, at random to train, in the middle to test",
    )
    p.add_argument(
        "--validate",
        type=float,
        metavar="SHARE",
        help="for folders without test/ or val/: keep this share of each class back for testing",
    )
    p.add_argument(
        "--weights",
        type=word,
        metavar="FILE",
        help="start from these weights (safetensors of torchvision, timm or a run) with a new last layer",
    )
    p.add_argument("--freeze", choices=FREEZE, help="what keeps its weights (default: none)")
    p.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        help="hyper-parameters (default: paper; quick for shapes, fine-tune with --weights)",
    )
    p.add_argument("--epochs", type=int, help="passes over the data (default: the recipe's)")
    p.add_argument(
        "--batch-size", type=int, metavar="N", help="images a step, of all ranks (default: 128; quick, fine-tune: 32)"
    )
    p.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of weights, order, augmentation, drawn shapes, and what --validate keeps back (default: 0)",
    )
    p.add_argument(
        "--dtype",
        choices=("float32", "float64", "bfloat16"),
        help="of activations (default: float32; on cuda bfloat16, from Ampere on)",
    )
    p.add_argument("--limit-train", type=int, metavar="N", help="use the first N training images only")
    p.add_argument("--limit-test", type=int, metavar="N", help="use the first N test images only")
    p.add_argument(
        "--out",
        type=folder,
        default=Path("runs/last"),
        metavar="DIR",
        help="the run's folder (default: runs/last)",
    )
    p.add_argument("--resume", action="store_true", help="go on from what --out holds, if anything")
    p.add_argument(
        "--save-every", metavar="N|Nm", help="save every N steps, or every N minutes (default: after each epoch)"
    )
    p.add_argument("--evaluate", type=Path, metavar="FILE", help="evaluate a checkpoint or weights instead of training")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the cores this process may use)")
    p.add_argument(
        "--deterministic", action="store_true", help="changes nothing: results repeat bit for bit without it, too"
    )
    recipe = p.add_argument_group("parts of the recipe", "each overrides the value of --recipe")
    for f in fields(Recipe):
        if f.name != "epochs":
            flag, meaning = "--" + f.name.replace("_", "-"), PARTS[f.name]
            if f.type == "bool":
                recipe.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=meaning)
            elif f.name in CHOICES:
                recipe.add_argument(flag, choices=CHOICES[f.name], help=meaning)
            else:
                recipe.add_argument(flag, type=int if f.type == "int" else float, metavar="X", help=meaning)
    return p


def configure(
    args: argparse.Namespace, base: Config | None = None, place: Callable[[str], str] = lambda device: device
) -> Config:
    """Turn the command line into a configuration; what it leaves open is as in `base`, or by default.

    `place` turns the device that the user asked for into this process's own, where several train together. Nothing is
    put on it yet. Raises ValueError for numbers out of range, and DeviceError for a device that cannot be used.
    """
    device = place(args.device or (base.device if base else "cpu"))
    check_device(device)  # says what is missing before anything else is done
    defaults = defaults_for(device)
    data = args.data or (base.data if base else defaults["data"])
    name = recipe_name(args, data)
    recipe = base.recipe if base and not args.recipe else RECIPES[name]
    if base is None:
        model = args.model or (network_of(args.weights) if args.weights else defaults["model"])
        base = Config(data, model, recipe, dtype=default_dtype(device), batch_size=BATCH_SIZE[name])
    given = {name: value for name, value in vars(args).items() if value is not None} | {"device": device}
    given["recipe"] = replace(recipe, **{f.name: given[f.name] for f in fields(Recipe) if f.name in given})
    config = replace(base, **{f.name: given[f.name] for f in fields(Config) if f.name in given})
    recipe = config.recipe

    for name, value, least in (
        ("--epochs", recipe.epochs, 1),
        ("--batch-size", config.batch_size, 1),
        ("--limit-train", config.limit_train, 1),
        ("--limit-test", config.limit_test, 1),
        ("--seed", config.seed, 0),
        ("--cutout", recipe.cutout, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
        if value is not None and value >= 1 << 31 and name != "--seed":
            raise ValueError(f"{name} must be below 2^31, got {shown(value)}")
    check_threads(args.threads)
    for name in ("label_smoothing", "average", "warmup"):
        if not 0 <= getattr(recipe, name) < 1:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be at least 0 and below 1, got {getattr(recipe, name)}")
    if not 0 < recipe.crop_area <= 1:
        raise ValueError(f"--crop-area must be above 0 and at most 1, got {recipe.crop_area}")
    if recipe.nesterov and not recipe.momentum:
        raise ValueError("--momentum 0 leaves nothing for Nesterov's rule to look ahead with: add --no-nesterov")
    check_options(config.image_size, config.validate)
    check_dtype(config.dtype, device)
    config.schedule()
    return config


def recipe_name(args: argparse.Namespace, data: str) -> str:
    """The recipe that a new run with these options begins with."""
    return args.recipe or ("fine-tune" if args.weights else "quick" if data == "shapes" else "paper")


def adapted(config: Config, args: argparse.Namespace, images: int, resumed: bool = False) -> Config:
    """The configuration for a training set of this size; what the command line gave stays as it is.

    `quick` and `fine-tune` are made for a thousand images and more in batches of 32. A small folder of photographs has
    but a few such batches an epoch: too few steps to learn much. Here an epoch has about STEPS_AN_EPOCH steps in
    smaller batches, and there are as many epochs as the recipe's STEPS take. Each of `quick`'s large steps is shorter
    in proportion: batch norm's running averages stay behind them (0.9 of the old is kept in each step), so that the
    test loss would run away. From weights that are good already, steps are small, and stay as they are. A run that is
    resumed with its recipe said again has found its batches already.
    """
    recipe, name = config.recipe, recipe_name(args, config.data)
    if name not in STEPS:
        return config
    batch = config.batch_size
    if args.batch_size is None and not resumed:
        batch = max(SMALLEST_BATCH, min(batch, images // STEPS_AN_EPOCH))
    if args.lr is None and name == "quick":
        recipe = replace(recipe, lr=recipe.lr * min(1.0, batch / BATCH_SIZE["quick"]))
    if args.epochs is None:
        recipe = replace(recipe, epochs=max(recipe.epochs, math.ceil(STEPS[name] / math.ceil(images / batch))))
    return replace(config, batch_size=batch, recipe=recipe)


def save_interval(text: str | None) -> dict[str, Any]:
    """Turn "20" (steps) or "5m" (minutes) into the options of a `Guard`. Raises ValueError for anything else."""
    if text is None:
        return {}
    number = text.removesuffix("m")
    try:
        value = float(number) if text.endswith("m") else int(number)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise ValueError(f"--save-every takes a number of steps (20) or minutes (5m) above 0, got {text!r}")
    if text.endswith("m") and not 1 <= 60 * value <= 86_400 * 365:
        raise ValueError(f"--save-every takes at least a second, 0.02m, and at most a year, got {text!r}")
    return {"every_seconds": 60 * value} if text.endswith("m") else {"every_steps": value}
