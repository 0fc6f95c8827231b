"""How tensors, networks and nodes show themselves: in a console, in an f-string, in a notebook.

    Tensor(shape=(2,), dtype=float32, requires_grad=True, values=[1., 2.])
    <Conv2d of minigrad/ops/conv.py, computed by FastConv2d>

Everything here is read by people. Nothing computes with it, and it changes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from html import escape
from typing import Any, NoReturn

import numpy as np

from .backend import is_float, to_numpy
from .nn import Module, Parameter
from .registry import book_of
from .tensor import Function, Tensor

FEW = 24  # values that are shown one by one; of more, their range
CELLS = 12  # rows and columns of a notebook's table


def printable(text: str) -> str:
    """A text in one line that every terminal and every page can show: other characters as Python writes them.

    Names of files and classes may hold line breaks, escape sequences, or bytes that are no UTF-8.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one printable line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, printable(f"{self.prog}: {message}; {self.prog} --help lists the options") + "\n")


def head(t: Tensor) -> str:
    """Shape, dtype and what is not as usual."""
    device = "" if t.device == "cpu" else f", device={t.device!r}"
    return f"shape={t.shape}, dtype={t.dtype}{device}{', requires_grad=True' if t.requires_grad else ''}"


def summary(values: np.ndarray) -> str:
    """A few values one by one, on one line, or how far many reach."""
    values = values.astype(np.float64) if is_float(values.dtype) else values
    if values.size > FEW:
        with np.errstate(all="ignore"):
            return f"values from {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"
    text = " ".join(np.array2string(values, separator=", ", precision=4).split())
    return f"values={text.replace('[ ', '[')}"


def tensor_repr(t: Tensor) -> str:
    """One line that begins with the shape."""
    return f"{type(t).__name__}({head(t)}, {summary(to_numpy(t._array))})"


def tensor_format(t: Tensor, spec: str) -> str:
    """`f"{t:.3f}"`: the only value in that format."""
    if spec and t.size != 1:
        raise ValueError(f"{spec!r} formats one value, this tensor has shape {t.shape}: format t.mean() or t[i]")
    return format(t.item(), spec) if spec else str(t)


def tensor_html(t: Tensor) -> str:
    """A table of the first values of the last two axes, for notebooks."""
    values = to_numpy(t._array)
    values = values.astype(np.float64) if is_float(values.dtype) else values
    title = f"<b>{escape(type(t).__name__)}</b> {escape(head(t))}"
    if not values.size or not t.ndim:
        return f"<div>{title}, {escape(summary(values))}</div>"
    sheet = values.reshape(-1, *values.shape[-2:])[0] if t.ndim > 2 else np.atleast_2d(values)
    which = f", here [{', '.join('0' * (t.ndim - 2))}]" if t.ndim > 2 else ""
    lines = [[f"{v:.4g}" if sheet.dtype.kind == "f" else str(v) for v in row[:CELLS]] for row in sheet[:CELLS]]
    lines = [line + ["…"] * (sheet.shape[1] > CELLS) for line in lines] + [["…"]] * (len(sheet) > CELLS)
    table = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<div>{title}, {escape(summary(values))}{which}<table>{table}</table></div>"


def module_lines(module: Module, name: str = "", depth: int = 0) -> Iterator[tuple[str, str, int]]:
    """Yield (name and class, shapes of its own parameters, their number with all below) for a module and all below."""
    shapes = ", ".join(f"{n} {t.shape}" for n, t in vars(module).items() if isinstance(t, Parameter))
    count = sum(p.size for p in module.parameters())
    yield "  " * depth + (f"{name}: " if name else "") + type(module).__name__, shapes, count
    for child, below in module.children():
        yield from module_lines(below, child, depth + 1)


def module_repr(module: Module) -> str:
    """The layers, one a line, with the shapes and the number of their parameters."""
    lines = list(module_lines(module))
    widths = [max(len(str(line[i])) for line in lines) for i in (0, 1)]
    counts = [f"{count:,}" if count else "" for _, _, count in lines]
    wide = max(map(len, counts))
    rows = [
        f"{name:{widths[0]}}  {shapes:{widths[1]}}  {count:>{wide}}"
        for (name, shapes, _), count in zip(lines, counts, strict=True)
    ]
    return "\n".join(line.rstrip() for line in [f"{rows[0]} parameters" if counts[0] else rows[0], *rows[1:]])


def function_repr(node: Function) -> str:
    """The formula that a node stands for, where it is written down, and what computed it."""
    book, fast = book_of(type(node)), type(node)
    place = "" if book.__module__ == "__main__" else f" of {book.__module__.replace('.', '/')}.py"
    return f"<{book.__name__}{place}{'' if fast is book else f', computed by {fast.__name__}'}>"


DISPLAYS: list[tuple[Any, str, Any]] = [
    (Tensor, "__repr__", tensor_repr),
    (Tensor, "__format__", tensor_format),
    (Tensor, "_repr_html_", tensor_html),
    (Module, "__repr__", module_repr),
    (Function, "__repr__", function_repr),
]
for cls, method, function in DISPLAYS:
    setattr(cls, method, function)
