"""Seeing the tape: the graph below a tensor as Graphviz text, and as an SVG picture where Graphviz is installed.

    loss = cross_entropy(model(x), labels)
    Path("tape.svg").write_text(svg(loss, model))        before loss.backward(), which frees the graph

An ellipse is an operation; an arrow carries the tensor whose shape stands beside it. A box is a leaf: filled where
`backward()` will leave a gradient, dashed where an input wants none.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from .nn import Module
from .ops.arguments import check_kind, check_tensors
from .registry import book_of
from .tensor import Function, Tensor


class Picture(str):
    """An SVG picture as text, which a notebook shows."""

    def _repr_svg_(self) -> str:
        return str(self)


HEAD = """digraph tape {
  rankdir=LR; bgcolor="transparent"; nodesep=0.25; ranksep=0.45;
  node [fontname="Helvetica,Arial,sans-serif", fontsize=12, color="#5b6572", fillcolor="#ffffff", style=filled];
  edge [fontname="Helvetica,Arial,sans-serif", fontsize=10, color="#717c89", fontcolor="#717c89", arrowsize=0.7];
"""


def _quoted(name: object) -> str:
    """A name as it may stand between the quotes of a label."""
    return str(name).replace("\\", "\\\\").replace('"', '\\"')


def graph(y: Tensor, names: Module | Mapping[str, Tensor] | None = None) -> str:
    """Return the graph that leads to `y` in Graphviz's DOT language, inputs on the left.

    `names` labels the leaves, and y: a module, whose parameters have names, or a dictionary {"x": x, "y": y}. The nodes
    are named as in the book (minigrad/ops), whichever implementation ran. Raises ValueError for a tensor that no
    operation made, and for a graph that `backward()` has freed.
    """
    check_tensors("graph", y=y)
    check_kind(names, Module | Mapping | None, "the leaves' names are a module or a dictionary")
    if y.node is None:
        raise ValueError("there is no graph to draw: no recorded operation made this tensor")
    named = dict(names.named_parameters()) if isinstance(names, Module) else dict(names or {})
    name_of = {id(t): name for name, t in named.items()}
    ids: dict[Function | Tensor, str] = {}
    lines: list[str] = []

    def declare(node: Function | Tensor) -> str:
        """Write the node down the first time it is met; return its id."""
        if node not in ids:
            ids[node] = f"n{len(ids)}"
            if isinstance(node, Tensor):
                label = f"{_quoted(name_of.get(id(node), 'leaf'))}\\n{node.shape}"
                lines.append(f'  {ids[node]} [shape=box, fillcolor="#dfe9f7", label="{label}"];')
            else:
                name = _quoted(book_of(type(node)).__name__)
                lines.append(f'  {ids[node]} [shape=ellipse, label="{name}"];')
                waiting.append(node)
        return ids[node]

    waiting: list[Function] = []
    root = declare(y.node)
    while waiting:
        node = waiting.pop()
        if node.parents is None:
            raise ValueError("there is no graph to draw: backward() has freed it, so draw before calling it")
        for i, (parent, given) in enumerate(zip(node.parents, node.inputs, strict=True)):
            if given is None:
                continue
            shape = str(given[0])
            if parent is None:
                source = f"{ids[node]}_{i}"
                lines.append(f'  {source} [shape=box, style="filled,dashed", label="no gradient\\n{shape}"];')
            else:
                source = declare(parent)
            label = f' [label="{shape}"]' if isinstance(parent, Function) else ""
            lines.append(f"  {source} -> {ids[node]}{label};")
    last = f"{_quoted(name_of[id(y)])}\\n" if id(y) in name_of else ""
    lines.append(f'  y [shape=plain, style="", fontcolor="#717c89", label="{last}{y.shape}"];\n  {root} -> y;')
    return HEAD + "\n".join(lines) + "\n}\n"


def svg(y: Tensor, names: Module | Mapping[str, Tensor] | None = None) -> Picture:
    """Return the graph that leads to `y` as an SVG picture, which a notebook shows; see `graph`.

    Raises FileNotFoundError where Graphviz's `dot` is not installed.
    """
    dot = shutil.which("dot")
    if dot is None:
        raise FileNotFoundError(
            "drawing an SVG needs Graphviz's `dot`, which is not installed: install the package graphviz, or paste the "
            "text of minigrad.draw.graph() into any Graphviz viewer"
        )
    drawn = subprocess.run([dot, "-Tsvg"], input=graph(y, names), capture_output=True, text=True, check=True)
    return Picture(drawn.stdout)
