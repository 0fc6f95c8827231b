"""Measure training and forward speed, memory, and where the time goes: `python -m train.bench [--versus torch]`.

Every framework and mode runs in a process of its own (measure/workers.py), and they take turns (measure/rounds.py).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minigrad.backend import check_device
from minigrad.weights import write_atomically
from resnext import ResNeXt, create

from .measure.rounds import measure, sweep
from .measure.tables import speed_table, sweep_table
from .measure.workers import PINS, serve
from .options import DONE, FAILED, USAGE, Parser, check_dtype, check_threads, default_dtype, refuse


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m train.bench", description="Measure speed and memory of a network.")
    p.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    p.add_argument("--model", default="resnext29_8x64d", help="a name that resnext.create knows")
    p.add_argument("--batch-size", type=positive, metavar="N", help="default 32; on cuda 128")
    p.add_argument("--image-size", type=positive, default=32, metavar="N", help="pixels along each side (default 32)")
    p.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="default float32; on cuda bfloat16")
    p.add_argument("--threads", type=positive, metavar="N", help="default: the cores this process may use")
    p.add_argument("--rounds", type=positive, default=5, metavar="N", help="turns that are measured (default 5)")
    p.add_argument("--versus", choices=("torch",), help="run the same network in PyTorch, in turns")
    p.add_argument(
        "--keep-heap", action="store_true", help="let PyTorch's processes keep freed memory, as minigrad's do (glibc)"
    )
    p.add_argument(
        "--patience", type=positive, metavar="S", help="leave out a mode of PyTorch that compiles for longer"
    )
    p.add_argument("--sweep", choices=("batch", "image-size"), help="measure minigrad over a range of sizes instead")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures, as they come")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    return p


def check(args: argparse.Namespace) -> None:
    """Fill in what depends on the device; raise ValueError for what cannot be measured here, before anything starts."""
    network = create(args.model)
    check_threads(args.threads)
    check_device(args.device)
    args.dtype = args.dtype or default_dtype(args.device)
    args.batch_size = args.batch_size or (32 if args.device == "cpu" else 128)
    check_dtype(args.dtype, args.device)
    if args.versus and args.sweep:
        raise ValueError("--sweep measures minigrad alone: leave out --versus")
    if args.keep_heap and not args.versus:
        raise ValueError("--keep-heap concerns PyTorch's processes: give --versus torch, too")
    if args.versus and args.dtype == "float64":
        raise ValueError("--versus compares in float32 or bfloat16, not in float64")
    if args.versus and not isinstance(network, ResNeXt):
        raise ValueError(f"--versus torch knows the networks that are made of ResNeXt's blocks, {args.model} is not")
    if args.json and not args.json.absolute().parent.is_dir():
        raise ValueError(f"--json {args.json} cannot be written: there is no folder {args.json.parent}")
    if args.versus and find_spec("torch") is None:
        raise ValueError("--versus torch needs PyTorch, which is not installed: pip install torch")


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write the figures that there are so far."""
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(argv)
    if args.worker:
        return serve(args)
    try:
        check(args)
    except (ValueError, OSError, MemoryError) as error:
        return refuse(error, "python -m train.bench", USAGE)
    pinned = [f"{name}={os.environ[name]}" for name in PINS if name in os.environ]
    if pinned:
        print(f"measured without {', '.join(pinned)}, which this shell sets", file=sys.stderr)
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if sys.stderr.isatty() else (lambda text: None)
    try:
        keep = partial(write_json, args.json) if args.json else lambda result: None
        result = sweep(args, say, keep) if args.sweep else measure(args, say, keep)
        print(sweep_table(result) if args.sweep else speed_table(result))
    except (RuntimeError, OSError) as error:
        return refuse(error, "python -m train.bench", FAILED)
    except KeyboardInterrupt:
        print("python -m train.bench: stopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT
    return DONE


if __name__ == "__main__":
    sys.exit(main())
