"""How a data-parallel step scales: `python -m train.scaling --model NAME --step-ms T --batch-size N ...`.

Every rank computes the gradient of its share of the batch; then all ranks average their gradients over a ring. Each of
n ranks sends S/n bytes to its neighbour, 2 (n - 1) times: n - 1 times to add up, n - 1 times to spread the sums.

    reduce(n) = 2 (n - 1)/n S/B + 2 (n - 1) a       S bytes of gradients, bandwidth B, latency a of a message
    step(n)   = compute + reduce(n)                 nothing overlaps; in training some does: buckets.py

Weak scaling keeps the images of each rank, and the batch grows with n; its efficiency is compute / step(n). Strong
scaling divides the same batch, and compute is taken to shrink with it, which is the best that can be hoped for.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from minigrad.backend import is_float
from resnext import create
from resnext.counts import outlines

from .options import Parser


@dataclass(frozen=True)
class Cluster:
    """What connects the GPUs. The slowest link of a ring decides, so one between machines if there are several."""

    gpus: int  # in one machine
    inside: float  # bytes a second between two GPUs of one machine
    between: float  # bytes a second between two machines, for each ring
    latency: float  # seconds a message


def reduce_seconds(n: int, size: float, cluster: Cluster) -> float:
    """The time in which n ranks average `size` bytes over a ring; none for a rank alone."""
    bandwidth = cluster.inside if n <= cluster.gpus else cluster.between
    return 2 * (n - 1) / n * size / bandwidth + 2 * (n - 1) * cluster.latency


def gradient_bytes(name: str) -> int:
    """What a step of this network sends: gradients and running statistics, float32."""
    with outlines():
        return sum(4 * t.size for _, t in create(name).named_tensors() if is_float(t.dtype))


def table(size: int, compute: float, batch_size: int, cluster: Cluster, ranks: Sequence[int]) -> list[str]:
    """A line for each number of ranks: the times of weak and strong scaling, images a second, efficiency."""
    lines = ["  GPUs  reduce ms |   weak: step ms  images/s  efficiency | strong: step ms  images/s  efficiency"]
    for n in ranks:
        reduce = reduce_seconds(n, size, cluster)
        columns = [f"{n:6d} {1e3 * reduce:10.2f}"]
        for seconds, images in ((compute, n * batch_size), (compute / n, batch_size)):  # weak, strong
            step = seconds + reduce
            columns.append(f"{1e3 * step:15.2f} {images / step:9.0f} {100 * seconds / step:9.1f} %")
        lines.append(" | ".join(columns))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    p = Parser(prog="python -m train.scaling", description="Model a data-parallel step on many GPUs.")
    p.add_argument("--model", required=True, metavar="NAME", help="a network that `python -m resnext` lists")
    p.add_argument(
        "--step-ms", type=float, required=True, metavar="T", help="a step on one GPU, measured, milliseconds"
    )
    p.add_argument("--batch-size", type=int, required=True, metavar="N", help="images of that step")
    p.add_argument("--gpus", type=int, required=True, metavar="N", help="GPUs in one machine")
    p.add_argument("--inside", type=float, required=True, metavar="GB/S", help="bandwidth between two of them")
    p.add_argument("--between", type=float, required=True, metavar="GB/S", help="bandwidth between two machines")
    p.add_argument("--latency", type=float, required=True, metavar="US", help="of a message, microseconds")
    p.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 512], metavar="N", help="default: 1 8 64 512")
    args = p.parse_args(argv)
    positive = (args.step_ms, args.batch_size, args.gpus, args.inside, args.between, *args.ranks)
    if not all(value > 0 for value in positive) or not args.latency >= 0:
        p.error("every number must be above 0 (--latency may be 0)")
    if max(args.batch_size, args.gpus, *args.ranks) >= 1 << 31:
        p.error("images, GPUs and ranks must be below 2^31")
    try:
        size = gradient_bytes(args.model)
    except (ValueError, MemoryError) as error:
        p.error(str(error))
    cluster = Cluster(args.gpus, 1e9 * args.inside, 1e9 * args.between, 1e-6 * args.latency)
    print(f"{args.model}: {size / 1e6:.1f} MB a step")
    print("\n".join(table(size, args.step_ms / 1e3, args.batch_size, cluster, args.ranks)))
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, `| head`, is no error
    sys.exit(main())
