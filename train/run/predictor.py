"""Classify photographs: `python -m train.predict IMAGE... --checkpoint FILE` prints the five likeliest classes of each.

A checkpoint of `train.cifar` knows its network, its classes and how its images were normalised. A file of plain
weights, saved from torchvision's or timm's networks for example, needs `--model`, and `--classes` for class names.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .run.signals import end_at_once

if __name__ == "__main__":
    end_at_once("python -m train.predict")  # there is nothing to save

import numpy as np
from PIL import Image, ImageOps

from minigrad import Tensor, no_grad
from minigrad import functional as F
from minigrad.backend import to_device
from minigrad.nn import Module
from resnext import create
from resnext.counts import outlines

from .data import CIFAR10, CIFAR100, augment
from .options import Parser, said
from .run import checkpoint

FAILED, USAGE = 1, 2  # exit codes

# What ImageNet networks are used to (0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 on a scale of 0 to 1); the paper tests
# on the central 224 x 224 pixels of images whose shorter side is 256.
IMAGENET_MEAN = np.array([123.675, 116.28, 103.53])
IMAGENET_STD = np.array([58.395, 57.12, 57.375])
IMAGENET_MARGIN = 256 / 224
MAX_PIXELS = 1 << 26  # of an image that is scaled to the network's size, before the middle is cut out


class UsageError(ValueError):
    """Options that do not fit each other."""


@dataclass(frozen=True)
class Predictor:
    """A trained network and what it wants to see."""

    model: Module
    classes: list[str]
    size: tuple[int, int]  # H, W of its images
    margin: float  # how much larger than that an image is before the middle is cut out
    mean: np.ndarray  # per channel, in the pixels' scale of 0 to 255
    std: np.ndarray

    def probabilities(self, image: Image.Image, device: str) -> np.ndarray:
        """The probability of every class: (K,), they sum to 1."""
        pixels = np.asarray(middle(image, self.size, self.margin)).transpose(2, 0, 1)  # (3, H, W) uint8
        batch = augment.normalise(to_device(pixels[None], device), self.mean, self.std)
        with no_grad():
            return F.softmax(self.model(Tensor._of(batch))).numpy()[0]


def load_predictor(path: Path, name: str | None, classes_file: Path | None, device: str) -> Predictor:
    """Read a checkpoint or a file of weights. Raises UsageError for missing options and ValueError for bad files."""
    arrays, state = checkpoint.read(path)
    weights = checkpoint.weights(arrays)
    config = state.get("config", {})
    name = name or config.get("model")
    if name is None:
        raise UsageError(f"{path} holds weights but not the name of their network: give it with --model")
    head = weights.get("fc.weight", weights.get("module.fc.weight"))
    if head is None or head.ndim != 2:
        raise ValueError(f"{path} is no file of weights for {name}: it has no matrix fc.weight")
    classes = [f"class {k}" for k in range(len(head))]
    if classes_file is not None:
        if not classes_file.is_file():
            raise UsageError(f"there is no file {classes_file}")
        classes = classes_file.read_text().splitlines()
        if len(classes) != len(head):
            raise UsageError(f"{classes_file} has {len(classes)} lines, the network has {len(head)} classes")
    elif len(state.get("classes", ())) == len(head):
        classes = state["classes"]
    try:
        with outlines():  # all values come from the file
            model: Any = create(name, num_classes=len(head))
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        model.load_state_dict(weights)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not fit {name}: {error}") from None
    model.to(device).eval()
    if model.input_size == 224:
        return Predictor(model, classes, (224, 224), IMAGENET_MARGIN, IMAGENET_MEAN, IMAGENET_STD)
    H, W = state.get("size", (model.input_size, model.input_size))
    cifar = CIFAR100 if len(head) == len(CIFAR100.classes) else CIFAR10
    mean, std = np.array(state.get("mean", cifar.mean)), np.array(state.get("std", cifar.std))
    return Predictor(model, classes, (H, W), 1.0, mean, std)


def read_photo(path: Path) -> Image.Image:
    """Decode an image file to RGB, turned upright; white shows through where it is transparent.

    Raises FileNotFoundError, and ValueError for what is no image, is damaged or has too many pixels.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        # Pillow warns about an image that may be a decompression bomb: a reason to stop.
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            return upright.convert("RGB")
    except Exception as error:  # Pillow's decoders raise a dozen types for damaged files
        raise ValueError(f"cannot read {path} as an image: {' '.join(str(error).split())}") from None


def middle(image: Image.Image, size: tuple[int, int], margin: float = 1.0) -> Image.Image:
    """Scale an image until it just covers `margin` times `size` (H, W), and cut H x W pixels out of the middle."""
    H, W = size
    scale = max(margin * H / image.height, margin * W / image.width)
    height, width = max(H, int(image.height * scale + 1e-6)), max(W, int(image.width * scale + 1e-6))
    if height * width > MAX_PIXELS:
        raise ValueError(f"an image of {image.width} x {image.height} pixels is too long and narrow to be classified")
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - H) / 2), round((width - W) / 2)
    return image.crop((left, top, left + W, top + H))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    p = Parser(prog="python -m train.predict", description="Print the likeliest classes of images.")
    p.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    p.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a run's checkpoint, or weights")
    p.add_argument("--model", help="the network's name, for plain weights (`python -m resnext` lists them)")
    p.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line (default: the checkpoint's)")
    p.add_argument("--top", type=int, default=5, metavar="K", help="how many classes to print (default: 5)")
    p.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where to compute (default: cpu)")
    args = p.parse_args(argv)
    if args.top < 1:
        p.error(f"--top must be at least 1, got {args.top}")
    try:
        to_device(np.zeros(1), args.device)  # says what is missing before anything else is done
    except ValueError as error:
        p.error(str(error))
    try:
        predictor = load_predictor(args.checkpoint, args.model, args.classes, args.device)
        for path in args.images:
            probabilities = predictor.probabilities(read_photo(path), args.device)
            print(path)
            for k in np.argsort(-probabilities, kind="stable")[: args.top]:
                print(f"{100 * probabilities[k]:7.2f} %  {predictor.classes[k]}")
    except (ValueError, OSError) as error:
        print(f"python -m train.predict: {said(error)}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError | FileNotFoundError) else FAILED
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, `| head`, is no error
    sys.exit(main())
