"""Hold the model of docs/scaling.md against ranks on this machine: `mpiexec -n 2 python -m mpi4py benchmarks/ranks.py`.

Every rank computes with one thread. Latency and bandwidth come from plain MPI calls, the other figures from what a
training step does, but for the reduction by itself, which begins when all arrays are there. Each is the median of nine
times, of which each is that of the slowest rank.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from train import scaling
from train.data import load
from train.run import loop, parallel
from train.run.config import configure, parser


def seconds(ranks: parallel.MPIRanks, function: Callable[[], object]) -> float:
    """The median time of a function that all ranks call together; the first two calls do not count."""
    times = []
    for _ in range(11):
        ranks.wait()
        begin = time.perf_counter()
        function()
        times.append(ranks.maximum(round(1e9 * (time.perf_counter() - begin)))[0] / 1e9)
    return statistics.median(times[2:])


def mean_of(ranks: parallel.Ranks, arrays: Sequence[np.ndarray]) -> None:
    """The mean over the ranks of the arrays, all of which are there at once."""
    mean = ranks.mean(1 / ranks.size)
    for a in arrays:
        mean.add(a)
    mean.results()


def main() -> None:
    p = argparse.ArgumentParser(description="Time a data-parallel step and its parts.")
    p.add_argument("--model", default="resnext29_32x4d")
    p.add_argument("--batch-size", type=int, default=8, help="images of each rank (default: 8)")
    args = p.parse_args()
    ranks = parallel.start()
    if not isinstance(ranks, parallel.MPIRanks):
        p.error("start this with mpiexec -n 2 python -m mpi4py")
    parallel.use_threads(1)
    n, size = ranks.size, scaling.gradient_bytes(args.model)

    few, many = np.zeros(1, np.float32), np.zeros(size // 4, np.float32)
    latency = seconds(ranks, lambda: ranks.comm.Allreduce(ranks.MPI.IN_PLACE, few)) / (2 * (n - 1))
    whole = seconds(ranks, lambda: ranks.comm.Allreduce(ranks.MPI.IN_PLACE, many))
    bandwidth = 2 * (n - 1) / n * size / (whole - 2 * (n - 1) * latency)

    command = ["--model", args.model, "--data", "shapes", "--batch-size", str(n * args.batch_size)]
    train_set, test_set = load("shapes", Path("."), limit_train=args.batch_size, limit_test=1)
    run = loop.Run.start(configure(parser().parse_args(command)), train_set, test_set, ranks)
    batch = loop.prepare(run, np.arange(args.batch_size).repeat(n), step=0)
    step = seconds(ranks, lambda: loop.train_step(run, batch, train_set.labels, 0.01, 1 / n))
    arrays = [t.data for _, t in run.model.named_tensors() if t.data.dtype == np.float32]  # gradients are as large
    packed = [np.empty_like(a) for a in arrays]
    packing = seconds(ranks, lambda: [np.multiply(a, 1 / n, out=b) for a, b in zip(arrays, packed, strict=True)])
    reduce = seconds(ranks, lambda: mean_of(ranks, arrays))
    run.ranks = parallel.ALONE
    compute = seconds(ranks, lambda: loop.train_step(run, batch, train_set.labels, 0.01))
    if ranks.rank == 0:
        print(f"{args.model}, {n} ranks of {args.batch_size} images and one thread; {size / 1e6:.1f} MB a step")
        print(f"MPI: latency {1e6 * latency:.1f} us, bandwidth {bandwidth / 1e9:.2f} GB/s")
        formula = scaling.reduce_seconds(n, size, scaling.Cluster(n, bandwidth, bandwidth, latency))
        found = f"packing {1e3 * packing:.1f}; in buckets, all at once {1e3 * reduce:.1f}"
        print(f"reduction, ms: formula {1e3 * formula:.1f}, {found}")
        print(f"step: without reduction {1e3 * compute:.1f} ms, with it {1e3 * step:.1f} ms")


if __name__ == "__main__":
    main()
