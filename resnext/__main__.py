"""What the networks cost, beside what the paper prints: `python -m resnext`; with a name, that one layer by layer."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from minigrad.display import Parser

from . import counts, zoo
from .blocks import Bottleneck

NOTES = """\
px: the image's side in pixels. mult-adds: multiply-adds of one forward pass of
one image (the paper's "FLOPs"). On the right what the paper prints: parameters
in millions, multiply-adds in billions, error on ImageNet (top-1 or top-1/top-5,
224x224 crop) or CIFAR-10/CIFAR-100. CIFAR names work for any depth 9n + 2, C
and d; vgg, plain, resnet and inception names take a width: vgg16_w16."""


def columns(rows: Iterable[Sequence[str]], align: str, gap: str = "  ") -> str:
    """Lay rows of texts out in columns, each flush left ("<") or right (">"). Everything fits 80 columns of ASCII."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (gap.join(f"{text:{a}{w}}" for text, a, w in zip(row, align, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def in_words(products: int) -> str:
    """A count with three digits and a unit: 4.09 G, 41 M."""
    if products < 1e5:
        return f"{products:,}"
    return f"{products / 1e9:.2f} G" if products >= 1e9 else f"{products / 1e6:.{0 if products >= 1e7 else 2}f} M"


def all_networks() -> str:
    """Every network's parameters and multiply-adds, and the paper's figures."""
    rows = [
        ("", "", "", "", "paper", "paper", "paper", ""),
        ("network", "px", "parameters", "mult-adds", "M", "G", "error %", "table"),
    ]
    for name in zoo.names():
        with counts.outlines():
            network: Any = zoo.create(name)
        paper = zoo.REPORTED.get(name, zoo.Reported("", ""))
        size, products = f"{network.input_size}", counts.multiply_adds(network)
        ours = (name, size, f"{counts.parameters(network):,}", in_words(products))
        rows.append((*ours, paper.parameters, paper.multiply_adds, paper.errors, paper.table))
    return f"{columns(rows, '<>>>>>><', gap=' ')}\n\n{NOTES}"


def table_2() -> str:
    """Table 2: as C grows, the width d that keeps a block of conv2 as large, by Equation 4 and counted."""
    rows = [("C", "d", "C d", "C (256 d + 9 d^2 + 256 d)", "counted", "mult-adds at 56x56")]
    for C, d in zoo.TABLE_2:
        with counts.outlines():
            block = Bottleneck(256, 256, C, d)
        weights = sum(p.size for p in block.parameters() if p.ndim > 1)
        rows.append(
            (f"{C}", f"{d}", f"{C * d}", f"{zoo.block_parameters(C, d):,}", f"{weights:,}", in_words(weights * 56**2))
        )
    return f"Table 2 and Equation 4: blocks with 256 channels outside\n{columns(rows, '>>>>>>')}"


def one_network(name: str, size: int | None, num_classes: int | None) -> str:
    """The layers of one network with their output shapes, parameters and multiply-adds."""
    with counts.outlines():
        network = zoo.create(name, num_classes)
    rows = [("layer", "", "output", "parameters", "mult-adds")]
    layers = counts.trace(network, size)
    for layer in layers:
        shape = "x".join(map(str, layer.output))
        kind = re.sub(r"(\d+) groups", r"G=\1", layer.kind.removeprefix("conv ").replace(" -> ", "->"))
        rows.append((layer.name, kind, shape, f"{layer.parameters:,}", in_words(layer.multiply_adds)))
    total = sum(layer.multiply_adds for layer in layers)
    rows.append(("total", "", "", f"{counts.parameters(network):,}", in_words(total)))
    return columns(rows, "<<>>>", gap=" ") + f"\n\n{total:,} multiply-adds (mult-adds) for one image"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    p = Parser(prog="python -m resnext", description="Show what the networks cost, beside the paper's figures.")
    p.add_argument("name", nargs="?", help="show one network, layer by layer")
    p.add_argument("--size", type=int, metavar="PIXELS", help="side of the image (default: 32 or 224)")
    p.add_argument("--classes", type=int, metavar="K", help="number of classes (default: 10 or 1000)")
    args = p.parse_args(argv)
    if args.name is None:
        if args.size is not None or args.classes is not None:
            p.error("--size and --classes need the name of a network")
        print(f"{all_networks()}\n\n{table_2()}")
        return 0
    try:
        if args.size is not None and args.size < 1:
            raise ValueError(f"--size must be at least 1 pixel, got {args.size}")
        print(one_network(args.name, args.size, args.classes))
    except (ValueError, MemoryError) as error:  # a network of 10⁹ paths is a typing error
        print(f"python -m resnext: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, `| head`, is no error
    sys.exit(main())
