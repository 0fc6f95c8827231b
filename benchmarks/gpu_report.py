"""Turn what benchmarks/gpu.sh has left in a folder into gpu.md, the tables for benchmarks/gpu.md.

python benchmarks/gpu_report.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with the columns of all rows, in the order in which they appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(key)) for key in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add, to every pair of times "X ours ms" and "X torch ms", how many times faster ours is."""
    done = []
    for row in rows:
        new = dict(row)
        for key, value in row.items():
            mine = key.replace("torch ms", "ours ms")
            if key.endswith("torch ms") and row.get(mine):
                new[key.replace("torch ms", "ratio").strip()] = value / row[mine]
        done.append(new)
    return done


def flat(figures: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures as one level: {"versus": {"ratio": 2}} becomes {"versus.ratio": 2}."""
    found: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def report(folder: Path) -> str:
    """The whole text; a step that left no figures is named as such."""
    parts = []
    environment = folder / "environment.json"
    if environment.exists():
        parts += ["## Machine", table([flat(json.loads(environment.read_text()))])]
    steps = folder / "steps.tsv"
    if steps.exists():
        rows = [
            dict(zip(("step", "exit status", "seconds"), l.split("\t"), strict=True))
            for l in steps.read_text().splitlines()
        ]
        parts += ["## Steps", "Exit status 0: passed. 124: out of time.", table(rows)]
    networks = [json.loads(path.read_text()) for path in sorted(folder.glob("resnext*.json"))]
    profiles = [{"model": n["model"], **n.pop("layers")} for n in networks if n.get("layers")]
    parts += ["## Networks", table([flat(n) for n in networks]) if networks else "No figures: see log.txt."]
    for profile in profiles:
        parts += [f"### Seconds by kind of layer: {profile.pop('model')}, one eager step"]
        parts += [table([{"layer": name, "seconds": seconds} for name, seconds in profile.items()])]
    kernels = folder / "kernels.json"
    for name, rows in (json.loads(kernels.read_text()) if kernels.exists() else {}).items():
        parts += [f"## Kernels: {name}", table(with_ratios(rows))]
    trace = folder / "trace.json"
    for name, rows in (json.loads(trace.read_text()) if trace.exists() else {}).items():
        parts += [f"## A captured step, launch by launch: {name}", table(rows)]
    curve = folder / "cifar10.jsonl"
    if curve.exists():
        parts += ["## CIFAR-10", table([json.loads(line) for line in curve.read_text().splitlines()])]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1 or not Path(given[0]).is_dir():
        print("usage: python benchmarks/gpu_report.py FOLDER (which exists)", file=sys.stderr)
        return 2
    text = report(Path(given[0]))
    (Path(given[0]) / "gpu.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
