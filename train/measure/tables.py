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
        f"{'images/s, median (lowest to highest)':42}{'training':>26}{'forward':>26}{'peak memory':>14}",
    ]
    versus = result.get("versus", {})
    rows = {MINIGRAD: result} | {mode: row for mode, row in versus.items() if isinstance(row, dict)}
    for mode, row in rows.items():
        cells = [in_range(row["train_rounds"]), in_range(row["forward_rounds"])]
        memory = f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB"
        lines.append(f"{mode:42}{cells[0]:>26}{cells[1]:>26}{memory:>14}")
    if result.get("kept_heap"):
        lines.append("PyTorch's processes kept freed memory, as minigrad's do by themselves (--keep-heap)")
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


def in_range(values: Sequence[float]) -> str:
    """A median with its range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def sweep_table(result: dict[str, Any]) -> str:
    """A line for each size."""
    lines = [f"{result['model']}, {result['hardware']}; images/s, median (lowest to highest)"]
    lines.append(f"{'batch':>6}{'image':>7}{'training':>26}{'forward':>26}")
    for row in result["sweep"]:
        cells = f"{in_range(row['train_rounds']):>26}{in_range(row['forward_rounds']):>26}"
        lines.append(f"{row['batch_size']:6}{row['image_size']:7}{cells}")
    return "\n".join(lines)
