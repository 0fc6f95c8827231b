"""What a step of training must at least move and multiply, from its launches: python -m tests.virtual_gpu.traffic

Counts three of the paper's networks with 128 images on four cards, without running a kernel, and prints a table; with
--before FILE beside what the same command printed for another version with --json. A launch must read or write each of
its arrays once; what it reads twice may come from the cache. Data sheets tell how long a card takes for so many bytes
and products at best. Nothing here is a measurement of time.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NETWORKS = ["resnext29_8x64d", "resnext29_4x16d", "resnext29_32x4d"]
MMA = 2048  # multiply-adds of one tensor-core instruction (mma.m16n8k16)


class Card(NamedTuple):
    """A GPU, from its data sheet: TB/s, bfloat16 TFLOP/s on tensor cores without sparsity (a T4: float32 TFLOP/s)."""

    name: str
    dtype: str
    processors: int
    shared_kib: int
    gib: int
    bandwidth: float
    flops: float


CARDS = (
    Card("H100", "bfloat16", 132, 227, 80, 3.35, 989),  # H100 SXM5 80 GB: NVIDIA H100 Tensor Core GPU data sheet
    Card("A100", "bfloat16", 108, 163, 80, 2.039, 312),  # A100 SXM 80 GB: NVIDIA A100 Tensor Core GPU data sheet
    Card("RTX 4090", "bfloat16", 128, 99, 24, 1.008, 165.2),  # NVIDIA Ada GPU architecture white paper, appendix A
    Card("T4", "float32", 40, 64, 16, 0.32, 8.1),  # NVIDIA T4 data sheet
)


class Record(NamedTuple):
    """A launch: its kernel, the bytes of its arrays, its tensor-core instructions, its multiply-adds in float32."""

    name: str
    bytes: int
    mma: int = 0
    fma: int = 0


def of_launch(name: str, block: Sequence[int], arguments: Sequence[Any]) -> Record:
    """The record of a kernel of the engine room, from its arguments."""
    arrays = [a for a in arguments if hasattr(a, "nbytes") and not isinstance(a, np.generic | np.ndarray)]
    moved = sum(a.nbytes for a in arrays)
    structs = next((a for a in arguments if isinstance(a, np.ndarray)), None)
    if name == "sgd":  # reads w, dw and velocity, writes w and velocity; without momentum there is no velocity
        rows = structs["list"][0]  # type: ignore[index]
        words = np.where(rows["f2"] == 0, 3, 5)
        return Record(name, int(4 * (words * rows["f3"]).sum()))
    if name.startswith("im2col"):  # a 1x1 window of stride 2 passes pixels by
        return Record(name, arrays[1].nbytes + min(a.nbytes for a in arrays[:2]))
    if not name.startswith("conv3x3") or structs is None:
        return Record(name, moved)
    parts = structs["part"][0] if "part" in (structs.dtype.names or ()) else structs
    parts = parts[parts["N"] > 0]
    tiles = -(-parts["N"] // (1 << parts["TI_log"])) * parts["tiles_h"] * parts["tiles_w"]
    diagonal = int(found[1]) if (found := re.search(r"_d(\d+)$", name)) else 64
    if "wgrad" in name:
        s = parts[0]
        pixels = 1 << int(s["TI_log"] + s["TH_log"] + s["TW_log"])
        products = {64: 4, 32: 2, 16: 1}[diagonal]  # of 16 filters by 8 channels, for each of eight warps
        blocks = int(s["packs"] * (s["CO"] // 64) * (s["CI"] // 64))
        return Record(name, moved, int(tiles[0]) * blocks * 8 * (pixels // 16) * 9 * products)
    x, w, y, *sums = arrays
    pixels = parts["N"] * parts["OH"] * parts["OW"]  # a launch may fill a part of y, with some of the taps
    moved = x.nbytes + sum(a.nbytes for a in sums) + min(y.nbytes, int(pixels.sum()) * int(parts["YC"][0]) * 2)
    moved += w.nbytes * min(9, int(parts["taps"].sum())) // 9
    warps = block[0] // 32
    filters = warps * 64 * 64 // (1 << parts["TI_log"] + parts["TH_log"] + parts["TW_log"])
    blocks = tiles * parts["packs"] * (parts["CO"] // filters)
    return Record(
        name, moved, int((blocks * warps * parts["taps"] * (parts["CI"] // 64)).sum()) * 4 * 4 * diagonal // 8
    )


def of_product(M: int, N: int, K: int, a: Any, b: Any, c: Any, batch: int = 1, accumulate: bool = False) -> Record:
    """The record of a cuBLAS product."""
    size = {"float32": 4, "bfloat16": 2}
    moved = M * K * size[a.dtype] + K * N * size[b.dtype] + M * N * size[c.dtype] * (2 if accumulate else 1)
    multiplications = M * N * K * batch
    tensor = a.dtype == "bfloat16"
    return Record("cublas", moved * batch, multiplications // MMA if tensor else 0, 0 if tensor else multiplications)


def of_cupy(name: str, parameters: Sequence[tuple[int, bytes]]) -> Record:
    """The record of one of CuPy's kernels: of arrays it gets the address, the number of values, sizes and strides."""
    sizes = {"float32": 4, "bfloat16": 2, "int64": 8, "float64": 8, "uint8": 1, "int32": 4, "bool": 1}
    types = name.split("__")[-1].split("_") if "__" in name else []
    counts = [
        int.from_bytes(value[8:16], "little") for size, value in parameters if size >= 16 and (size - 16) % 16 == 0
    ]
    return Record(name, sum(n * sizes.get(types[i] if i < len(types) else "", 4) for i, n in enumerate(counts)))


class Watch:
    """The records of one captured step: of what Python captures, and of CuPy's kernels where the driver runs them."""

    def __init__(self, kernels: Any, cublas: Any, kernel_class: Any):
        import cupy

        self.captured: list[Record] = []
        self.cupys: list[Record] = []
        launch, product, run = kernels.launch, cublas.product, kernel_class.launch

        def note(record: Record) -> None:
            if cupy.cuda.get_current_stream().is_capturing():
                self.captured.append(record)

        def launching(file: str, name: str, grid: Any, block: Any, arguments: Any, shared: int = 0) -> None:
            note(of_launch(name, block, arguments))
            launch(file, name, grid, block, arguments, shared)

        def multiplying(*arguments: Any, **options: Any) -> None:
            note(of_product(*arguments, **options))
            product(*arguments, **options)

        def running(kernel: Any, grid: Any, block: Any, shared: int, packed: bytes) -> None:
            if kernel.name.startswith("cupy"):
                parameters = [(p.size, packed[p.offset : p.offset + p.size]) for p in kernel.parameters]
                self.cupys.append(of_cupy(kernel.name, parameters))
            run(kernel, grid, block, shared, packed)

        kernels.launch, cublas.product, kernel_class.launch = launching, multiplying, running


def count(network: str, batch: int, card: Card, watch: Watch, train: Callable[..., Any]) -> dict[str, Any]:
    """What a replayed step of a network asks of a card."""
    from .counters import COUNTERS
    from .properties import Device

    COUNTERS.blank = True
    Device.memory = 640 << 30  # whether it fits is another question
    Device.attributes.update({16: card.processors, 97: card.shared_kib << 10})
    done: dict[str, int] = {}

    def after_step() -> None:
        done.update(COUNTERS.done)
        replayed[:] = watch.cupys
        watch.cupys.clear()
        COUNTERS.reset()

    replayed: list[Record] = []
    watch.captured.clear()
    train(["--model", network, "--batch-size", str(batch), "--dtype", card.dtype], 5, False, after_step)
    records = watch.captured + replayed
    launches = done["launch"] + done["product"]
    assert len(records) == launches, f"{len(records)} launches were watched, {launches} were made"
    by_kernel: Counter[str] = Counter()
    for record in records:
        by_kernel[record.name] += record.bytes
    return {
        "network": network,
        "batch": batch,
        "card": card.name,
        "launches": launches,
        "bytes": sum(r.bytes for r in records),
        "mma": sum(r.mma for r in records),
        "mma of our kernels": sum(r.mma for r in records if r.name != "cublas"),
        "fma": sum(r.fma for r in records),
        "by kernel": dict(by_kernel.most_common()),
    }


def floor_bytes(network: str, batch: int, size: int) -> int:
    """The bytes of a step with separate passes for batch norm, where each pass moves its images once, `size` a value.

    Convolutions: x and y forward, dy and dx, x and dy. Batch norm: x; x and y; then dy and x; dy, x and dx; a shortcut
    is read forward, and its gradient written, and y read, backward; no first pass where a grouped 3x3 in bfloat16
    leaves the sums. Where gradients meet one is read. Weights are read twice, their gradient is written; SGD takes 20.
    """
    import minigrad.tensor
    from minigrad import Tensor
    from resnext import create

    model = create(network, num_classes=10)
    seen: list[tuple[str, tuple[Any, ...], Any, dict[str, Any]]] = []

    def observe(operation: Any, node: Any, compute: Any, *arrays: Any, **options: Any) -> Any:
        y = compute(*arrays, **options)
        seen.append((operation.__name__, arrays, y, options))
        return y

    minigrad.tensor.observer = observe
    model(Tensor(np.zeros((1, 3, 32, 32), np.float32)))
    minigrad.tensor.observer = None
    images = weights = 0
    users: Counter[int] = Counter()
    for i, (name, arrays, y, _) in enumerate(seen):
        if name.endswith("Conv2d"):
            x, w = arrays[:2]
            images += 3 * (x.size + y.size) - (x.size + y.size if x.shape[1] == 3 else 0)
            weights += 3 * 4 * w.size
            images += x.size if users[id(x)] else 0
            users[id(x)] += 1
        elif name.startswith("BatchNorm"):
            shortcut = arrays[3] if len(arrays) > 3 else None
            known = size == 2 and seen[i - 1][3].get("groups", 1) > 1
            images += y.size * (8 + (0 if shortcut is None else 3) - known)
            if shortcut is not None:
                users[id(shortcut)] += 1
    weights += 20 * sum(p.size for p in model.parameters())
    return batch * size * images + weights


def table(after: list[dict[str, Any]], before: list[dict[str, Any]]) -> str:
    """The table for people, in Markdown."""
    titles = ["network", "card", "launches", "GB", "of the floor", "10⁶ tensor-core instructions", "ms for the bytes"]
    lines = [[*titles, "ms for the products"], ["---"] * 2 + ["---:"] * 6]
    for new in after:
        card = next(c for c in CARDS if c.name == new["card"])
        old = next((b for b in before if all(b[key] == new[key] for key in ("network", "batch", "card"))), None)
        floor = floor_bytes(new["network"], new["batch"], 2 if card.dtype == "bfloat16" else 4)

        def both(show: Callable[[dict[str, Any]], str], old: Any = old, new: Any = new) -> str:
            return show(new) if old is None else f"{show(old)} → {show(new)}"

        def products(counts: dict[str, Any], card: Card = card) -> str:
            return f"{2 * (MMA * counts['mma'] + counts['fma']) / card.flops / 1e9:.2f}"

        cells = [
            new["network"].removeprefix("resnext29_"), f"{card.name}, {card.dtype}", both(lambda c: str(c["launches"])),
            both(lambda c: f"{c['bytes'] / 1e9:.2f}"), both(lambda c, f=floor: f"{c['bytes'] / f:.2f}"),
            both(lambda c: f"{c['mma'] / 1e6:.0f}"), both(lambda c, t=card: f"{c['bytes'] / t.bandwidth / 1e9:.2f}"),
            both(products),
        ]  # fmt: skip
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.virtual_gpu.traffic", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the counts for --before, or for a look by kernel")
    parser.add_argument("--before", type=Path, metavar="FILE", help="what --json printed for an earlier version")
    parser.add_argument("--card", choices=[card.name for card in CARDS], help="only this one")
    parser.add_argument("--model", action="append", help="a network; may be given several times (default: three)")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step (default: 128)")
    args = parser.parse_args(argv)
    from . import install, missing

    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    before = json.loads(args.before.read_text()) if args.before else []
    networks = args.model or NETWORKS
    if args.card is None:  # a process for each: what a card can do is asked once
        command = [sys.executable, "-m", "tests.virtual_gpu.traffic", "--json", "--batch-size", str(args.batch_size)]
        command += [word for network in networks for word in ("--model", network)]
        commands = [[*command, "--card", card.name] for card in CARDS]
        outputs = [subprocess.run(c, check=True, stdout=subprocess.PIPE, timeout=3600) for c in commands]
        counts = [one for output in outputs for one in json.loads(output.stdout)]
    else:
        install()
        from minigrad.fast.cuda import cublas, gpu

        from .count import train
        from .device import Kernel

        watch, card = Watch(gpu, cublas, Kernel), next(card for card in CARDS if card.name == args.card)
        counts = [count(network, args.batch_size, card, watch, train) for network in networks]
    counts.sort(key=lambda one: networks.index(one["network"]))
    print(json.dumps(counts, indent=1) if args.json else table(counts, before))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
