"""The processes that `train.bench` measures in: one for every framework and mode.

Each lives through the whole measurement, so that peaks of memory do not mix and no library's threads get in another's
way. It takes commands, one a line on standard input, and answers each with a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad
from minigrad import Tensor, no_grad, optim, registry
from minigrad import functional as F
from minigrad.backend import cupy, synchronize, to_device
from minigrad.fold import fold
from resnext import create

from ..options import prepare_process
from .environment import blas, peak_memory
from .layers import times_of_step

PINS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS")
MINIGRAD = "minigrad"
# What `minigrad.fast.process.keep_heap` asks of glibc, for a process that does not call it.
KEPT_HEAP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=18446744073709551615:glibc.malloc.top_pad=67108864"
RECIPE: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}


def batch_of(size: int, image: int) -> tuple[np.ndarray, np.ndarray]:
    """The same random images and labels for every framework."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((size, 3, image, image), np.float32), rng.integers(0, 10, size)


def in_a_row(device: str) -> int:
    """How many steps are timed together: on a GPU several, so that Python can issue the next ones while one runs."""
    return 1 if device == "cpu" else 10


class Minigrad:
    """The network in minigrad: `train()` and `forward()` do `in_a_row` steps and return when the work is done."""

    def __init__(self, args: argparse.Namespace):
        self.switched = prepare_process()
        if args.device == "cpu" and args.threads and registry.fast("cpu"):
            minigrad.fast.cpu.set_threads(args.threads)
        minigrad.manual_seed(0)
        self.device, self.dtype = args.device, args.dtype
        self.model = create(args.model).to(device=args.device)
        self.evaluated: Callable[..., Any] | None = None  # the network as it evaluates, with the last weights
        self.optimizer = optim.SGD(self.model.parameters(), **RECIPE)
        self.use(args.batch_size, args.image_size)

    def use(self, batch: int, image: int) -> None:
        """Take other images from now on."""
        images, labels = batch_of(batch, image)
        self.images = Tensor(images, device=self.device, dtype=self.dtype)
        self.labels = to_device(labels, self.device)
        self.step: Callable[..., Any] = self.update
        self.cuda_graph: Any = None
        if self.device != "cpu" and self.dtype != "float64" and registry.fast("cuda"):
            self.step = self.cuda_graph = minigrad.fast.cuda.graph.CudaGraph(self.update)  # as in train.cifar
            self.train()  # the first steps are eager and one is captured: what is timed later are replays

    def update(self, images: Any, labels: Any) -> tuple[Any]:
        """Forward, backward and the optimiser's step."""
        self.optimizer.zero_grad()
        logits = self.model(Tensor._of(images))
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        return (loss.data,)

    def train(self) -> None:
        self.model.train()
        self.evaluated = None
        for _ in range(in_a_row(self.device)):
            self.step(self.images.data, self.labels)
        synchronize(self.device)

    def forward(self) -> None:
        if self.evaluated is None:  # at a turn that is not timed
            self.model.eval()
            self.evaluated = fold(self.model) if self.device == "cpu" else self.model
            if self.cuda_graph:  # as in train.cifar, in the step's memory: a second pool would hold as much again
                self.evaluated = minigrad.fast.cuda.graph.CudaGraph(self.classify, self.cuda_graph.workspace)
                self.forward()  # the first ones are eager and one is captured, as in `use`
        images = self.images.data if self.cuda_graph else self.images
        with no_grad():
            for _ in range(in_a_row(self.device)):
                self.evaluated(images)
        synchronize(self.device)

    def classify(self, images: Any) -> tuple[Any]:
        """The network's logits."""
        return (self.model(Tensor._of(images)).data,)

    def peak_memory(self) -> int:
        if self.device == "cpu":
            return peak_memory()
        pools = [cupy().get_default_memory_pool()]
        if self.cuda_graph:  # which has a pool of its own
            pools.append(self.cuda_graph.workspace.memory_pool)
        return sum(pool.total_bytes() for pool in pools)

    def describe(self) -> dict[str, Any]:
        switched = {"switched": "; ".join(self.switched)} if self.switched else {}
        return {"minigrad": minigrad.__version__, "numpy": np.__version__, **blas(), **switched}

    def layers(self) -> dict[str, float]:
        """Seconds of one eager training step by kind of layer, forward and backward; later steps are eager, too."""
        self.optimizer.zero_grad()
        self.step, self.cuda_graph = self.update, None  # and with it goes its memory pool, which eager steps cannot use
        self.model.train()
        _, by_kind, whole = times_of_step(lambda: self.update(self.images.data, self.labels), self.model, self.device)
        ways = ("forward", "backward")
        times = {f"{kind}, {way}": s for kind, pair in by_kind.items() for way, s in zip(ways, pair, strict=True)}
        return times | {"everything else": whole - sum(times.values())}


def serve(args: argparse.Namespace) -> int:
    """Answer commands, one a line on standard input, with one line of JSON each: seconds, bytes or a table."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else prints must not mix with the answers
    network: Any
    if args.worker == MINIGRAD:
        network = Minigrad(args)
    else:  # PyTorch as it is: nothing of minigrad's may change this process's heap, threads or GPU
        from .torch_model import Torch

        network = Torch(args, args.worker)
    for line in sys.stdin:
        command, *numbers = line.split()
        if command in ("train", "forward"):
            start = time.perf_counter()
            getattr(network, command)()
            result: Any = time.perf_counter() - start
        else:
            result = getattr(network, command)(*map(int, numbers))
        print(json.dumps(result), file=answers, flush=True)
    return 0


class Worker:
    """A process that measures one framework in one mode; it is started without BLAS pins."""

    def __init__(self, mode: str, args: argparse.Namespace):
        self.mode = mode
        options = ["--worker", mode, "--device", args.device, "--model", args.model, "--dtype", args.dtype]
        options += ["--batch-size", str(args.batch_size), "--image-size", str(args.image_size)]
        options += ["--threads", str(args.threads)] if args.threads else []
        environment = {name: value for name, value in os.environ.items() if name not in PINS}
        if args.keep_heap and mode != MINIGRAD:
            environment["GLIBC_TUNABLES"] = KEPT_HEAP
        self.process = subprocess.Popen(
            [sys.executable, "-m", "train.bench", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, command: str, *numbers: int, patience: float | None = None) -> Any:
        """Send a command and wait for its answer; RuntimeError if the process has ended, or lets `patience` s pass."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(" ".join([command, *map(str, numbers)]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        if not select.select([self.process.stdout], [], [], patience)[0]:
            raise RuntimeError(f"the process that measures {self.mode} took more than {patience:g} s to warm up")
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that measures {self.mode} ended with exit code {self.process.wait()}")
        return json.loads(answer)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
