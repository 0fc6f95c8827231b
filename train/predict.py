"""Classify photographs: `python -m train.predict IMAGE... --checkpoint FILE` prints the five likeliest classes of each.

A checkpoint of `train.cifar` knows its network, its classes and how its images were normalised. A file of plain
weights, saved from torchvision's or timm's networks for example, needs `--model`, and `--classes` for class names.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .run.signals import end_at_once

if __name__ == "__main__":
    end_at_once("python -m train.predict")  # there is nothing to save

import numpy as np

from minigrad.backend import check_device

from .options import DONE, FAILED, USAGE, Parser, UsageError, prepare_process, printable, refuse, say
from .run.predictor import Predictor, load_predictor

PROGRAM = "python -m train.predict"
MANY = 12  # photographs, from which on it is worth the time to fold a network's batch norms away


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: that of all images, FAILED where some had an answer and some none."""
    p = Parser(prog=PROGRAM, description="Print the likeliest classes of images.")
    p.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    p.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a run's checkpoint, or weights")
    p.add_argument("--model", help="the network's name, for plain weights (`python -m resnext` lists them)")
    p.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line (default: the checkpoint's)")
    p.add_argument("--top", type=int, default=5, metavar="K", help="how many classes to print (default: 5)")
    p.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where to compute (default: cpu)")
    words = sys.argv[1:] if argv is None else argv
    # A shell may have written -1.jpg for *.jpg: a file's name, and no option.
    args = p.parse_args([f"./{word}" if word.startswith("-") and os.path.isfile(word) else word for word in words])
    if args.top < 1:
        p.error(f"--top must be at least 1, got {args.top}")
    prepare_process()
    try:
        check_device(args.device)  # says what is missing before anything else is done
    except ValueError as error:
        p.error(str(error))
    try:
        predictor = load_predictor(args.checkpoint, args.model, args.classes, args.device)
        if len(args.images) >= MANY:
            predictor = predictor.for_many(args.device)
        codes = {classify(path, predictor, args) for path in args.images}
        return codes.pop() if len(codes) == 1 else FAILED
    except (ValueError, OSError) as error:
        return complain(error)


def classify(path: Path, predictor: Predictor, args: argparse.Namespace) -> int:
    """Print the likeliest classes of one image; say what is wrong with it, which keeps no other from its answer."""
    try:
        probabilities = predictor.probabilities(path, args.device)
    except (ValueError, OSError) as error:
        return complain(error)
    say(printable(str(path)))
    for k in np.argsort(-probabilities, kind="stable")[: args.top]:
        say(f"{100 * probabilities[k]:7.2f} %  {printable(predictor.classes[k])}")
    return DONE


def complain(error: Exception) -> int:
    """Print an error in one sentence; return the exit code."""
    return refuse(error, PROGRAM, USAGE if isinstance(error, UsageError | FileNotFoundError) else FAILED)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, `| head`, is no error
    sys.exit(main())
