"""What the GPU does in a captured training step, launch by launch: how long each kind of kernel takes.

    python benchmarks/gpu_trace.py [--batch-size N] [--dtype DTYPE] [--json FILE] MODEL ...

The times are CUPTI's, which torch.profiler reads for every launch of a process, minigrad's own too. "busy" is their
sum, "span" the time from the first launch's begin to the last one's end; the rest is gaps between launches.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STEPS = 2
# Kinds of launches, by how the kernels' names begin. cuBLAS's have other names on every generation of cards.
PRODUCT = re.compile("nvjet|gemm|gemv|xmma|cutlass|cublas", re.IGNORECASE)
KINDS = {
    "conv3x3_wgrad": "3x3 on tensor cores, weight gradient",
    "conv3x3_pack": "weights put in the products' order",
    "filters": "weights put in the products' order",
    "conv3x3": "3x3 on tensor cores, forward and input gradient",
    "bn_sums": "batch norm, sums",
    "bn_apply": "batch norm, output",
    "bn_backward_sums": "batch norm, backward sums",
    "bn_backward_apply": "batch norm, input gradient",
    "bn_fold": "batch norm, sums of sums",
    "add_shares": "weight gradients' shares added",
    "sgd": "SGD",
    "im2col": "columns",
    "col2im": "columns",
}


def kind_of(name: str) -> str:
    """The kind of a launch."""
    other = "products (cuBLAS)" if PRODUCT.search(name) else "everything else"
    return next((kind for start, kind in KINDS.items() if name.startswith(start)), other)


def by_kind(launches: Iterable[tuple[str, float, float]], steps: int) -> list[dict[str, Any]]:
    """Milliseconds and launches of a step by kind, most first, from (name, begin, microseconds) of several steps."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    begin, end = float("inf"), 0.0
    for name, at, us in launches:
        row = found[kind_of(name)]
        row[0], row[1] = row[0] + us / 1e3 / steps, row[1] + 1 / steps
        begin, end = min(begin, at), max(end, at + us)
    rows = [{"kind": k, "ms": ms, "launches": n} for k, (ms, n) in sorted(found.items(), key=lambda kv: -kv[1][0])]
    total = {"kind": "busy", "ms": sum(row["ms"] for row in rows), "launches": sum(row["launches"] for row in rows)}
    return [*rows, total, {"kind": "span", "ms": (end - begin) / 1e3 / steps}]


def launches_of(model: str, batch: int, dtype: str) -> list[tuple[str, float, float]]:
    """The launches of `STEPS` captured steps: name, begin and length in microseconds."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from train.measure.workers import Minigrad

    torch.zeros(1, device="cuda")
    options = {"device": "cuda", "threads": None, "model": model, "batch_size": batch, "image_size": 32}
    network = Minigrad(argparse.Namespace(**options, dtype=dtype))
    network.train()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            network.step(network.images.data, network.labels)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    wanted = ("kernel", "gpu_memcpy", "gpu_memset")
    return [(event["name"], event["ts"], event["dur"]) for event in events if event.get("cat") in wanted]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time each kind of kernel in a captured training step.")
    parser.add_argument("model", nargs="+")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="default 128")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default bfloat16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args(arguments)
    results = {}
    for model in options.model:
        results[model] = by_kind(launches_of(model, options.batch_size, options.dtype), STEPS)
        print(model)
        for row in results[model]:
            print(f"  {row['ms']:7.2f} ms {row.get('launches', 0):6.0f} launches  {row['kind']}")
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
