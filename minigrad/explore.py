"""The explorer: `python -m minigrad.explore` writes a page to play with convolution, groups and im2col in.

One HTML file that needs no network, put together from explore.html, explore.css and explore.js. Its numbers are
computed here, by `conv2d` and `nn.Conv2d`, for every setting that the page offers, and put into it as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from . import functional as F
from .display import Parser, printable
from .nn import Conv2d
from .tensor import Tensor, no_grad
from .weights import write_atomically

SIZE = 6  # rows and columns of the image
CHOICES = {"C": (2, 4, 8), "G": (1, 2, 4, 8), "K": (1, 3, 5), "S": (1, 2), "P": (0, 1, 2), "D": (1, 2)}
TABLE_2 = ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))  # the paper's cardinalities and widths of equal complexity
STAGE = 56  # the first stage's images in the paper's networks, in pixels


def settings() -> Iterator[tuple[int, ...]]:
    """Yield (C, G, K, S, P, D) for every layer on the page: C channels and filters, G groups, a window that fits."""
    for C, G, K, S, P, D in product(*CHOICES.values()):
        if C % G == 0 and D * (K - 1) + 1 <= SIZE + 2 * P and (K > 1 or D == 1):
            yield C, G, K, S, P, D


def group_weights(weights: np.ndarray, C: int, G: int, K: int) -> np.ndarray:
    """Cut (C, C/G, K, K) out of the full table of kernels: the blocks on its diagonal, the middle of each kernel."""
    n, edge = C // G, (weights.shape[-1] - K) // 2
    middle = weights[:C, :C, edge : edge + K, edge : edge + K]
    return np.concatenate([middle[g * n : (g + 1) * n, g * n : (g + 1) * n] for g in range(G)])


def layer(x: np.ndarray, weights: np.ndarray, C: int, G: int, K: int, S: int, P: int, D: int) -> dict[str, Any]:
    """Run one layer on the image; return its output, and what it costs."""
    w = group_weights(weights, C, G, K)
    with no_grad():
        y = F.conv2d(Tensor(x[None, :C]), Tensor(w), stride=S, padding=P, dilation=D, groups=G)
    module = Conv2d(C, C, K, S, P, D, G, bias=False)
    _, _, OH, OW = y.shape
    return {
        "size": [OH, OW],
        "y": y.numpy().astype(int).ravel().tolist(),
        "parameters": module.weight.size,
        "multiply_adds": module.weight.size * OH * OW,
    }


def block(groups: int, d: int) -> dict[str, int]:
    """What a ResNeXt block of the first stage costs: 256 channels to G d, 3x3 in G groups, back to 256."""
    width = groups * d
    parts = (Conv2d(256, width, 1, bias=False), Conv2d(width, width, 3, groups=groups, bias=False))
    parameters = sum(p.weight.size for p in (*parts, Conv2d(width, 256, 1, bias=False)))
    return {"G": groups, "d": d, "parameters": parameters, "multiply_adds": parameters * STAGE**2}


def numbers() -> dict[str, Any]:
    """Return everything that the page shows, ready for JSON."""
    rng = np.random.default_rng(2017)
    most = max(CHOICES["C"])
    image = rng.integers(0, 10, (most, SIZE, SIZE)).astype(float)
    weights = rng.integers(-2, 3, (most, most, max(CHOICES["K"]), max(CHOICES["K"]))).astype(float)
    return {
        "choices": CHOICES,
        "image": image.astype(int).tolist(),
        "weights": weights.astype(int).tolist(),
        "layers": {",".join(map(str, s)): layer(image, weights, *s) for s in settings()},
        "equal_width": [block(C, 128 // C) for C in (1, 2, 4, 8, 16, 32, 64, 128)],
        "equal_cost": [block(C, d) for C, d in TABLE_2],
    }


def page() -> str:
    """Return the explorer as one HTML page."""
    html, css, js = ((files(__package__) / f"explore.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    return (
        html.replace("/*style*/", css)
        .replace("/*script*/", js)
        .replace("/*numbers*/ null", json.dumps(numbers(), separators=(",", ":")))
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; return the exit code."""
    parser = Parser(prog="python -m minigrad.explore", description="Write the convolution explorer.")
    parser.add_argument("--out", type=Path, default="explorer.html", metavar="FILE", help="(default: explorer.html)")
    out = parser.parse_args(argv).out
    try:
        write_atomically(out, page().encode())
    except (OSError, ValueError) as error:  # ValueError: a name with a null in it
        reason = getattr(error, "strerror", None) or error
        print(printable(f"python -m minigrad.explore: cannot write {out}: {reason}"), file=sys.stderr)
        return 1
    print(printable(f"{out} is written: open it in a browser"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
