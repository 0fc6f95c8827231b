"""Tables in Markdown, beside a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from minigrad.weights import write_atomically

from ..run.series import Result


def in_words(value: tuple[float, float]) -> str:
    """A mean with its standard error: 12.34 ± 0.56, or 12.34 for a single seed."""
    mean, error = value
    return f"{mean:.2f}" if math.isnan(error) else f"{mean:.2f} ± {error:.2f}"


def check_table(path: Path) -> None:
    """Raise ValueError where a file that `write_table` did not write is in a table's place."""
    if path.exists() and "\n\n```\npython -m train." not in path.read_text(errors="replace")[:1000]:
        raise ValueError(f"the table would take the place of {path}, which is none: choose another name with --figure")


def write_table(
    path: Path, title: str, command: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> None:
    """Write a Markdown table, numbers flush right, under its title and the command that makes it again."""
    whole = (header, ["---", *["---:"] * (len(header) - 1)], *rows)
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in whole]
    text = f"# {title}\n\n```\n{command}\n```\n\n" + "\n".join(lines) + "\n" + (f"\n{note}\n" if note else "")
    write_atomically(path, text.encode())


def write_results(path: Path, title: str, command: str, results: Sequence[tuple[str, Result]]) -> None:
    """Write the table of trained networks."""
    header = (
        "network",
        "parameters",
        "multiply-adds",
        "seeds",
        "train error %",
        "test error %",
        "best epoch %",
        "images/s",
    )
    rows = []
    for label, r in results:
        size = (f"{r.parameters:,}", f"{r.multiply_adds / 1e6:.1f} M", f"{r.seeds}")
        errors = (in_words(r.train_error), in_words(r.test_error), in_words(r.best_error))
        name = f"`{r.model}`" if label == r.model else f"{label} (`{r.model}`)"
        rows.append((name, *size, *errors, f"{r.images_per_second:.0f}"))
    note = (
        "Errors are means over the seeds ± their standard error; train and test error after the last epoch. "
        "The best epoch is\nchosen on the test images, so its error flatters."
    )
    write_table(path, title, command, header, rows, note)
