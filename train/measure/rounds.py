"""Measure training and forward speed, memory, and where the time goes: `python -m train.bench [--versus torch]`.

Every framework and mode runs in a process of its own that lives through the whole measurement, so that peaks of memory
do not mix and no library's threads get in another's way. The processes take turns, one step to warm up and one that is
timed, round after round: what slows the machine down for a while slows them all, and the ratio of a round stays fair.
Read from top to bottom: the work of such a process, the rounds, the tables, the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import minigrad
from minigrad import Tensor, no_grad, optim
from minigrad import functional as F
from minigrad.backend import DeviceError, cupy, float_dtype, synchronize, to_device
from minigrad.tensor import Function
from resnext import ResNeXt, create

from .options import Parser, default_dtype, said

FAILED, USAGE = 1, 2
PINS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
IMAGE_SIZES = (16, 32, 64, 96)
MINIGRAD = "minigrad"
RECIPE: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}


def torch_modes(dtype: str, device: str) -> list[str]:
    """PyTorch's ways to run the network: those of the asked precision, then on a CPU bfloat16 beside float32.

    On a GPU only channels_last, the order that tensor cores want.
    """
    modes = [f"torch eager channels_last {dtype}", f"torch compile channels_last {dtype}"]
    if device == "cpu":
        modes = [f"torch eager NCHW {dtype}", *modes]
        modes += ["torch compile channels_last bfloat16"] if dtype == "float32" else []
    return modes


# ------------------------------------------------------------------------------------ the work of one process


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
        if args.device == "cpu" and args.threads and hasattr(minigrad, "fast"):
            minigrad.fast.cpu.set_threads(args.threads)
        minigrad.manual_seed(0)
        self.device, self.dtype = args.device, args.dtype
        self.model = create(args.model).to(device=args.device)
        self.optimizer = optim.SGD(self.model.parameters(), **RECIPE)
        self.use(args.batch_size, args.image_size)

    def use(self, batch: int, image: int) -> None:
        """Take other images from now on."""
        images, labels = batch_of(batch, image)
        self.images = Tensor(images, device=self.device, dtype=self.dtype)
        self.labels = to_device(labels, self.device)
        self.step: Callable[..., Any] = self.update
        self.graph: Any = None
        if self.device != "cpu" and self.dtype != "float64" and hasattr(minigrad, "fast"):
            self.step = self.graph = minigrad.fast.graph.Graph(self.update)  # as in train.cifar
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
        for _ in range(in_a_row(self.device)):
            self.step(self.images.data, self.labels)
        synchronize(self.device)

    def forward(self) -> None:
        self.model.eval()
        with no_grad():
            for _ in range(in_a_row(self.device)):
                self.model(self.images)
        synchronize(self.device)

    def peak_memory(self) -> int:
        if self.device == "cpu":
            return peak_memory()
        pools = [cupy().get_default_memory_pool()] + ([self.graph.pool] if self.graph else [])  # a graph has its own
        return sum(pool.total_bytes() for pool in pools)

    def describe(self) -> dict[str, Any]:
        return {"minigrad": minigrad.__version__, "numpy": np.__version__, **blas()}

    def layers(self) -> dict[str, float]:
        """Seconds of one eager training step by kind of layer, forward and backward."""
        self.model.train()
        self.update(self.images.data, self.labels)
        with layer_times(self.device) as times:
            start = time.perf_counter()
            self.update(self.images.data, self.labels)
            synchronize(self.device)
            times["everything else"] = time.perf_counter() - start - sum(times.values())
        return dict(times)


class Torch:
    """The same network in PyTorch, with minigrad's weights, in one of `torch_modes`."""

    def __init__(self, args: argparse.Namespace, mode: str):
        import torch

        from .measure import torch_model

        if args.threads and args.device == "cpu":
            torch.set_num_threads(args.threads)
        minigrad.manual_seed(0)
        self.torch, self.device = torch, args.device
        layout = torch.contiguous_format if "NCHW" in mode else torch.channels_last
        network = create(args.model)
        assert isinstance(network, ResNeXt)  # `check` has made sure
        model = torch_model.ResNeXt(network).to(args.device, memory_format=layout)
        self.layout, self.model = layout, model
        self.run = torch.compile(model) if "compile" in mode else model
        self.half = mode.endswith("bfloat16")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # float32 with all its digits, as in minigrad
        self.optimizer = torch.optim.SGD(model.parameters(), **RECIPE, fused=args.device != "cpu")
        self.use(args.batch_size, args.image_size)

    def use(self, batch: int, image: int) -> None:
        images, labels = batch_of(batch, image)
        self.images = self.torch.from_numpy(images).to(self.device).contiguous(memory_format=self.layout)
        self.labels = self.torch.from_numpy(labels).to(self.device)

    def autocast(self) -> Any:
        return self.torch.autocast(self.device, dtype=self.torch.bfloat16, enabled=self.half)

    def train(self) -> None:
        self.model.train()
        for _ in range(in_a_row(self.device)):
            self.optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                loss = self.torch.nn.functional.cross_entropy(self.run(self.images), self.labels)
            loss.backward()
            self.optimizer.step()
        self.wait()

    def forward(self) -> None:
        self.model.eval()
        with self.torch.no_grad(), self.autocast():
            for _ in range(in_a_row(self.device)):
                self.run(self.images)
        self.wait()

    def wait(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def peak_memory(self) -> int:
        return peak_memory() if self.device == "cpu" else self.torch.cuda.max_memory_reserved()

    def describe(self) -> dict[str, Any]:
        return {"torch": self.torch.__version__}


def peak_memory() -> int:
    """The most memory that this process has held, in bytes; what its parent held does not count (Linux)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def blas() -> dict[str, str]:
    """Which BLAS library and kernels NumPy runs."""
    from threadpoolctl import ThreadpoolController

    # threadpoolctl remembers the kernels that it saw first; the engine room may have chosen others.
    fast = hasattr(minigrad, "fast")
    found = (
        minigrad.fast.process.libraries() if fast else ThreadpoolController().select(user_api="blas").lib_controllers
    )
    return {"blas": ", ".join(f"{b.internal_api} {b.version}, {b.architecture} kernels" for b in found)}


@contextmanager
def layer_times(device: str) -> Iterator[dict[str, float]]:
    """Inside, the seconds that each kind of layer takes are added up; outside, the tape is as it was."""
    times: dict[str, float] = defaultdict(float)
    apply, gradients = Function.apply.__func__, Function.gradients  # type: ignore[attr-defined]

    def timed_apply(cls: type[Function], *tensors: Any, **options: Any) -> Tensor:
        start = time.perf_counter()
        y = apply(cls, *tensors, **options)
        synchronize(device)
        kind = kind_of(cls, tensors, options)
        if y.node is not None:
            y.node.kind = kind
        times[f"{kind}, forward"] += time.perf_counter() - start
        return y

    def timed_gradients(node: Any, dy: Any) -> Any:
        start, kind = time.perf_counter(), node.kind
        result = gradients(node, dy)
        synchronize(device)
        times[f"{kind}, backward"] += time.perf_counter() - start
        return result

    Function.apply, Function.gradients = classmethod(timed_apply), timed_gradients  # type: ignore[assignment,method-assign]
    try:
        yield times
    finally:
        Function.apply, Function.gradients = classmethod(apply), gradients  # type: ignore[assignment,method-assign]


def kind_of(cls: type[Function], tensors: tuple, options: dict[str, Any]) -> str:
    """A layer's kind for the table: the operation, and for a convolution its window, stride and groups."""
    if cls.__name__ != "Conv2d":
        return cls.__name__
    _, _, KH, KW = tensors[1].shape
    stride, groups = options["stride"][0], options["groups"]
    details = (f", stride {stride}" if stride > 1 else "") + (f", {groups} groups" if groups > 1 else "")
    return f"Conv2d {KH}x{KW}{details}"


def serve(args: argparse.Namespace) -> int:
    """Answer commands, one a line on standard input, with one line of JSON each: seconds, bytes or a table."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else prints must not mix with the answers
    network: Any = Minigrad(args) if args.worker == MINIGRAD else Torch(args, args.worker)
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


# ------------------------------------------------------------------------------------------------- the rounds


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all modes in turns and return the figures as a dictionary, ready for JSON."""
    modes = [MINIGRAD] + (torch_modes(args.dtype, args.device) if args.versus else [])
    workers: list[Worker] = []
    figures: dict[str, dict[str, Any]] = {}
    try:
        for mode in modes:
            say(f"warming up {mode}")
            workers.append(Worker(mode, args))
            warm_up(workers, workers[-1], ["train", "train"], args.patience)
        for worker in list(workers):
            figures[worker.mode] = {"peak_memory_bytes": worker.ask("peak_memory")}
            warm_up(workers, worker, ["forward"], args.patience)
        for command in ("train", "forward"):
            seconds: dict[str, list[float]] = {worker.mode: [] for worker in workers}
            for i in range(args.rounds):
                say(f"{command}: round {i + 1} of {args.rounds}")
                for worker in workers:
                    worker.ask(command)  # not timed: its threads and caches have been idle during the others' turns
                    seconds[worker.mode].append(worker.ask(command))
            images = args.batch_size * in_a_row(args.device)
            for worker in workers:
                figures[worker.mode] |= speeds(command, seconds[worker.mode], images)
        versions: dict[str, Any] = {"python": platform.python_version()}
        for worker in workers[:2]:
            versions |= worker.ask("describe")
        layers = workers[0].ask("layers")
    finally:
        for worker in workers:
            worker.stop()
    own = figures.pop(MINIGRAD)
    figures = {worker.mode: figures[worker.mode] for worker in workers[1:]}
    result = {
        "model": args.model, "device": args.device, "dtype": args.dtype, "batch_size": args.batch_size,
        "image_size": args.image_size, "hardware": hardware(args), "versions": versions, **own, "layers": layers,
    }  # fmt: skip
    if figures:
        comparable = {mode: row for mode, row in figures.items() if mode.endswith(args.dtype)}
        result["versus"] = figures | (ratios(own, comparable) if comparable else {})
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
        fastest = max(others, key=lambda mode: others[mode][f"{command}_images_per_second"])
        pairs = zip(own[f"{command}_rounds"], others[fastest][f"{command}_rounds"], strict=True)
        rounds = [a / b for a, b in pairs]
        result |= {name: statistics.median(rounds), f"{name}_spread": [min(rounds), max(rounds)]}
        result[f"{name}_against"] = fastest
    return result


def hardware(args: argparse.Namespace) -> str:
    """The processor's or the GPU's name, and how many cores or threads are used."""
    if args.device != "cpu":
        device = cupy().cuda.Device(0).id
        return cupy().cuda.runtime.getDeviceProperties(device)["name"].decode()
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    threads = args.threads or (minigrad.fast.cpu.threads() if hasattr(minigrad, "fast") else os.cpu_count())
    return f"{name}, {threads} threads"


def sweep(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """How minigrad's speed changes with the batch or with the image's size, everything else fixed."""
    sizes = BATCHES if args.sweep == "batch" else IMAGE_SIZES
    worker, rows = Worker(MINIGRAD, args), []
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
    finally:
        worker.stop()
    return {"model": args.model, "device": args.device, "dtype": args.dtype, "hardware": hardware(args), "sweep": rows}


# ------------------------------------------------------------------------------------------------- the tables


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['model']}, batch {result['batch_size']}, images of {result['image_size']} pixels, {result['dtype']}",
        f"{result['hardware']}; {versions}",
        "",
        f"{'images/s, median (lowest to highest)':42}{'training':>26}{'forward':>26}{'peak memory':>14}",
    ]
    versus = result.get("versus", {})
    rows = {MINIGRAD: result} | {mode: row for mode, row in versus.items() if isinstance(row, dict)}
    for mode, row in rows.items():
        cells = [spread(row["train_rounds"]), spread(row["forward_rounds"])]
        memory = f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB"
        lines.append(f"{mode:42}{cells[0]:>26}{cells[1]:>26}{memory:>14}")
    for name, what in (("ratio", "training"), ("forward_ratio", "forward")):
        if name in versus:
            low, high = versus[f"{name}_spread"]
            against = versus[f"{name}_against"]
            lines.append(f"{what}: {versus[name]:.2f} times {against} ({low:.2f} to {high:.2f} in the rounds)")
    width = max(38, *map(len, result["layers"]))
    lines += ["", f"{'one training step by kind of layer':{width}}{'ms':>10}{'share':>8}"]
    total = sum(result["layers"].values())
    for kind, seconds in sorted(result["layers"].items(), key=lambda item: -item[1]):
        if seconds >= total / 200:
            lines.append(f"{kind:{width}}{seconds * 1e3:10.1f}{seconds / total:8.1%}")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """A median with its range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def sweep_table(result: dict[str, Any]) -> str:
    """A line for each size."""
    lines = [f"{result['model']}, {result['hardware']}; images/s, median (lowest to highest)"]
    lines.append(f"{'batch':>6}{'image':>7}{'training':>26}{'forward':>26}")
    for row in result["sweep"]:
        cells = f"{spread(row['train_rounds']):>26}{spread(row['forward_rounds']):>26}"
        lines.append(f"{row['batch_size']:6}{row['image_size']:7}{cells}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- the command line


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
        "--patience", type=positive, metavar="S", help="leave out a mode of PyTorch that compiles for longer"
    )
    p.add_argument("--sweep", choices=("batch", "image-size"), help="measure minigrad over a range of sizes instead")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    return p


def check(args: argparse.Namespace) -> None:
    """Fill in what depends on the device; raise ValueError for what cannot be measured here, before anything starts."""
    network = create(args.model)
    to_device(np.zeros(1), args.device)
    args.dtype = args.dtype or default_dtype(args.device)
    args.batch_size = args.batch_size or (32 if args.device == "cpu" else 128)
    float_dtype(args.dtype, args.device)
    if args.versus and args.sweep:
        raise ValueError("--sweep measures minigrad alone: leave out --versus")
    if args.versus and args.dtype == "float64":
        raise ValueError("--versus compares in float32 or bfloat16, not in float64")
    if args.versus and not isinstance(network, ResNeXt):
        raise ValueError(f"--versus torch knows the networks that are made of ResNeXt's blocks, {args.model} is not")
    if args.json and not args.json.absolute().parent.is_dir():
        raise ValueError(f"--json {args.json} cannot be written: there is no folder {args.json.parent}")
    if args.versus and find_spec("torch") is None:
        raise ValueError("--versus torch needs PyTorch, which is not installed: pip install torch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parser().parse_args(argv)
    if args.worker:
        return serve(args)
    try:
        check(args)
    except (ValueError, DeviceError, MemoryError) as error:
        print(f"python -m train.bench: {said(error)}", file=sys.stderr)
        return USAGE
    pinned = [f"{name}={os.environ[name]}" for name in PINS if name in os.environ]
    if pinned:
        print(f"measured without {', '.join(pinned)}, which this shell sets", file=sys.stderr)
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if sys.stderr.isatty() else (lambda text: None)
    try:
        result = sweep(args, say) if args.sweep else measure(args, say)
        print(sweep_table(result) if args.sweep else table(result))
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n")
    except (RuntimeError, OSError) as error:
        print(f"python -m train.bench: {said(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("python -m train.bench: stopped by SIGINT", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
