"""How much of a GPU's memory training takes, before it starts: `python -m train.memory [--model NAME ...]`.

The figures come from shapes (measure/memory.py), so no GPU is needed. A card has less than its name says: here a tenth
of it is left to CUDA itself and to what the memory pool cannot use, which is an estimate.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from .measure.memory import USABLE, largest_batch, step_bytes
from .options import DONE, USAGE, Parser, refuse

MODELS = ["resnext29_8x64d", "resnext29_16x64d", "resnext29_8x16d", "resnext29_32x4d", "resnext29_4x16d"]
CARDS = (6, 8, 12, 16, 24, 40, 80)  # GiB


def table(models: Sequence[str], dtypes: Sequence[str], batch: int, size: int | None) -> list[str]:
    """A line for each network and dtype: GiB of a step, and the largest batch on each card."""
    cards = "".join(f" {f'{card} GiB':>7} |" for card in CARDS)
    lines = [f"| {'network':18} | {'dtype':8} | GiB, batch {batch:4} |{cards}"]
    lines.append(f"| {'-' * 18} | {'-' * 8} | {'-' * 14}: |{' ------: |' * len(CARDS)}")
    for model in models:
        for dtype in dtypes:
            gib = step_bytes(model, batch, dtype, size) / 2**30
            batches = (largest_batch(model, int(USABLE * card * 2**30), dtype, size) for card in CARDS)
            row = "".join(f" {found or '-':>7} |" for found in batches)
            lines.append(f"| {model:18} | {dtype:8} | {gib:15.2f} |{row}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    p = Parser(prog="python -m train.memory", description="GiB of a training step, and the largest batch on each card.")
    p.add_argument("--model", nargs="+", default=MODELS, metavar="NAME", help="names that `python -m resnext` lists")
    p.add_argument("--dtype", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    p.add_argument("--batch-size", type=int, default=128, metavar="N", help="for the first column (default: 128)")
    p.add_argument("--image-size", type=int, metavar="N", help="pixels along each side (default: the network's)")
    args = p.parse_args(argv)
    try:
        if args.batch_size < 1 or (args.image_size or 1) < 1:
            raise ValueError(f"sizes must be positive: --batch-size {args.batch_size}, --image-size {args.image_size}")
        if max(args.batch_size, args.image_size or 1) >= 1 << 31:
            raise ValueError("sizes must be below 2^31: no memory holds more")
        print("\n".join(table(args.model, args.dtype, args.batch_size, args.image_size)))
    except (ValueError, TypeError) as error:
        return refuse(error, p.prog, USAGE)
    return DONE


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, `| head`, is no error
    sys.exit(main())
