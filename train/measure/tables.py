"""What was measured, as plain text for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .workers import MINIGRAD


def speed_table(result: dict[str, Any]) -> str:
    """The figures for people."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['model']}, batch {result['batch_size']}, images of {result['image_size']} pixels, {result['dtype']}",
        f"{result['hardware']}; {versions}",
        "",
    ]
    versus = result.get("versus", {})
    rows: list[tuple[str, ...]] = [("images/s, median (lowest to highest)", "training", "forward", "peak memory")]
    for mode, row in {MINIGRAD: result, **versus}.items():
        if isinstance(row, dict):
            memory = f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB"
            rows.append((mode, in_range(row["train_rounds"]), in_range(row["forward_rounds"]), memory))
    lines += aligned(rows)
    if result.get("kept_heap"):
        lines.append("PyTorch's processes kept freed memory, as minigrad's do by themselves (--keep-heap)")
    for name, what in (("ratio", "training"), ("forward_ratio", "forward")):
        if name in versus:
            low, high = versus[f"{name}_spread"]
            against = versus[f"{name}_against"]
            lines.append(f"{what}: {versus[name]:.2f} times {against} ({low:.2f} to {high:.2f} in the rounds)")
    rows = [("one training step by kind of layer", "ms", "share")]
    total = sum(result["layers"].values())
    for kind, seconds in sorted(result["layers"].items(), key=lambda item: -item[1]):
        if seconds >= total / 200:
            rows.append((kind, f"{seconds * 1e3:.1f}", f"{seconds / total:.1%}"))
    return "\n".join([*lines, "", *aligned(rows)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column flush left, the others flush right, three spaces between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def in_range(values: Sequence[float]) -> str:
    """A median with its range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def sweep_table(result: dict[str, Any]) -> str:
    """A line for each size."""
    rows = [("batch", "image", "training", "forward")]
    for row in result["sweep"]:
        sizes = (f"{row['batch_size']}", f"{row['image_size']}")
        rows.append((*sizes, in_range(row["train_rounds"]), in_range(row["forward_rounds"])))
    return "\n".join([f"{result['model']}, {result['hardware']}; images/s, median (lowest to highest)", *aligned(rows)])
