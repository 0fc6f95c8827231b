"""The rounds of a measurement: the processes take turns, one step to warm up and one that is timed, round after round.

What slows the machine down for a while slows them all, and the ratio of a round stays fair.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .environment import hardware
from .workers import MINIGRAD, Worker, in_a_row

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
IMAGE_SIZES = (16, 32, 64, 96)


def torch_modes(dtype: str, device: str) -> list[str]:
    """PyTorch's ways to run the network: those of the asked precision, then on a CPU bfloat16 beside float32.

    On a GPU only channels_last, the order that tensor cores want, and compiled with and without CUDA graphs.
    """
    modes = [f"torch eager channels_last {dtype}", f"torch compile channels_last {dtype}"]
    modes += [f"torch compile, CUDA graphs, channels_last {dtype}"] if device != "cpu" else []
    if device == "cpu":
        modes = [f"torch eager NCHW {dtype}", *modes]
        modes += ["torch compile channels_last bfloat16"] if dtype == "float32" else []
    return modes


def measure(
    args: argparse.Namespace, say: Callable[[str], None], keep: Callable[[dict[str, Any]], None] = lambda result: None
) -> dict[str, Any]:
    """Run all modes in turns and return the figures as a dictionary, ready for JSON.

    `keep` is given what there is of it after every round: a measurement that is killed need not be lost.
    """
    modes = [MINIGRAD] + (torch_modes(args.dtype, args.device) if args.versus else [])
    workers: list[Worker] = []
    figures: dict[str, dict[str, Any]] = {}
    versions: dict[str, Any] = {"python": platform.python_version()}
    layers: dict[str, float] = {}
    try:
        for mode in modes:
            say(f"warming up {mode}")
            workers.append(Worker(mode, args))
            warm_up(workers, workers[-1], ["train", "train"], args.patience)
        for worker in list(workers):
            figures[worker.mode] = {"peak_memory_bytes": worker.ask("peak_memory")}
            warm_up(workers, worker, ["forward"], args.patience)
        figures = {worker.mode: figures[worker.mode] for worker in workers}
        for worker in workers[:2]:
            versions |= worker.ask("describe")
        for command in ("train", "forward"):
            seconds: dict[str, list[float]] = {worker.mode: [] for worker in workers}
            for i in range(args.rounds):
                say(f"{command}: round {i + 1} of {args.rounds}")
                for worker in workers:
                    worker.ask(command)  # not timed: its threads and caches have been idle during the others' turns
                    seconds[worker.mode].append(worker.ask(command))
                for mode, row in figures.items():
                    row |= speeds(command, seconds[mode], args.batch_size * in_a_row(args.device))
                keep(together(args, figures, versions, layers))
        while len(workers) > 1:  # what follows needs memory that they hold
            workers.pop().stop()
        layers = workers[0].ask("layers")
    finally:
        for worker in workers:
            worker.stop()
    result = together(args, figures, versions, layers)
    keep(result)
    return result


def together(
    args: argparse.Namespace, figures: dict[str, dict[str, Any]], versions: dict[str, Any], layers: dict[str, float]
) -> dict[str, Any]:
    """The figures as one dictionary: what was measured of every mode so far."""
    result = {
        "model": args.model, "device": args.device, "dtype": args.dtype, "batch_size": args.batch_size,
        "image_size": args.image_size, "hardware": hardware(args), "versions": versions, **figures[MINIGRAD],
        "layers": layers,
    }  # fmt: skip
    others = {mode: row for mode, row in figures.items() if mode != MINIGRAD}
    comparable = {mode: row for mode, row in others.items() if mode.endswith(args.dtype)}
    if others:
        result["kept_heap"] = args.keep_heap
        result["versus"] = others | (ratios(figures[MINIGRAD], comparable) if comparable else {})
    return result


def warm_up(workers: list[Worker], worker: Worker, commands: Sequence[str], patience: float | None) -> None:
    """Have a worker do once what is timed later; a mode of PyTorch that fails at it is left out, and said."""
    try:
        for command in commands:
            worker.ask(command, patience=None if worker.mode == MINIGRAD else patience)
    except RuntimeError as error:
        if worker.mode == MINIGRAD:
            raise
        print(f"left out: {error}", file=sys.stderr, flush=True)
        workers.remove(worker)
        worker.stop()


def speeds(command: str, seconds: Sequence[float], batch: int) -> dict[str, Any]:
    """Images per second of every round: the median, and all of them for the spread and the ratios."""
    rounds = [batch / s for s in seconds]
    return {f"{command}_images_per_second": statistics.median(rounds), f"{command}_rounds": rounds}


def ratios(own: dict[str, Any], others: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """minigrad's speed over that of the fastest mode: the median over the rounds, and the lowest and highest round."""
    result: dict[str, Any] = {}
    for command, name in (("train", "ratio"), ("forward", "forward_ratio")):
        if f"{command}_rounds" not in own:  # not measured yet
            continue
        fastest = max(others, key=lambda mode: others[mode][f"{command}_images_per_second"])
        pairs = zip(own[f"{command}_rounds"], others[fastest][f"{command}_rounds"], strict=True)
        rounds = [a / b for a, b in pairs]
        result |= {name: statistics.median(rounds), f"{name}_spread": [min(rounds), max(rounds)]}
        result[f"{name}_against"] = fastest
    return result


def sweep(
    args: argparse.Namespace, say: Callable[[str], None], keep: Callable[[dict[str, Any]], None] = lambda result: None
) -> dict[str, Any]:
    """How minigrad's speed changes with the batch or with the image's size, everything else fixed; see `measure`."""
    sizes = BATCHES if args.sweep == "batch" else IMAGE_SIZES
    rows: list[dict[str, Any]] = []
    result = {"model": args.model, "device": args.device, "dtype": args.dtype, "hardware": hardware(args)}
    result["sweep"] = rows
    worker = Worker(MINIGRAD, args)
    try:
        for size in sizes:
            say(f"{args.sweep} {size}")
            batch, image = (size, args.image_size) if args.sweep == "batch" else (args.batch_size, size)
            worker.ask("use", batch, image)
            row: dict[str, Any] = {"batch_size": batch, "image_size": image}
            for command in ("train", "forward"):
                worker.ask(command)
                images = batch * in_a_row(args.device)
                row |= speeds(command, [worker.ask(command) for _ in range(args.rounds)], images)
            rows.append(row)
            keep(result)
    finally:
        worker.stop()
    return result
