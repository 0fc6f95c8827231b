"""Draw the guide's pictures: `python docs/draw_pictures.py [NAME...]` writes docs/images/guide_NAME.svg.

The numbers in them come from minigrad. Each picture is plain SVG text, put together by `Picture`; colours switch with
the reader's light or dark setting. The picture of the tape needs Graphviz's `dot` and is left as it is without it.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

import numpy as np

from minigrad import Tensor, draw, optim
from minigrad import functional as F
from minigrad.ops.conv import col2im, im2col

IMAGES = Path(__file__).resolve().parent / "images"

STYLE = """
svg{font-family:"Helvetica Neue",Helvetica,Arial,sans-serif;font-size:14px}
.card{fill:#fcfbf8;stroke:#e4e0d8} .cell{fill:#fff;stroke:#c9c4ba}
.pad{fill:#f3f0ea;stroke:#d6d1c7;stroke-dasharray:3 2}
.ink{fill:#26292e} .dim{fill:#6f6c65} .faint{fill:#b9b4a9} .bold{font-weight:600} .small{font-size:12px}
.big{font-size:16px}
.line{stroke:#7a776f;fill:none;stroke-width:1.4} .axis{stroke:#c9c4ba;fill:none} .none{fill:none}
.g0{fill:#cfe0f6;stroke:#7fa8da} .g1{fill:#fbdcbd;stroke:#dda262} .g2{fill:#cdead4;stroke:#7dbb8e}
.g3{fill:#e5d7f3;stroke:#ab8bcd}
.g4{fill:#fbd3d8;stroke:#d98c97} .g5{fill:#cdebed;stroke:#74b6bb} .g6{fill:#f3eab8;stroke:#c5b45a}
.g7{fill:#dcdfe6;stroke:#98a0b0}
.s0{stroke:#1f65b7;fill:none} .s1{stroke:#c2620c;fill:none} .s2{stroke:#2c8a4b;fill:none}
.s3{stroke:#7a49ad;fill:none}
.t0{fill:#1f65b7} .t1{fill:#b45309} .t2{fill:#237a40} .t3{fill:#7a49ad}
.heavy{stroke-width:3} .thick{stroke-width:2.2}
@media (prefers-color-scheme:dark){
.card{fill:#1c1e22;stroke:#34373d} .cell{fill:#25282d;stroke:#4a4e56} .pad{fill:#1f2125;stroke:#43474e}
.ink{fill:#e8e6e1} .dim{fill:#a19d94} .faint{fill:#5f6167} .line{stroke:#a19d94} .axis{stroke:#4a4e56}
.g0{fill:#1f3f68;stroke:#4d82c0} .g1{fill:#603a14;stroke:#b8782f} .g2{fill:#1d4a2c;stroke:#4c9464}
.g3{fill:#44296a;stroke:#8b63bd}
.g4{fill:#5d2730;stroke:#b3606d} .g5{fill:#1a484c;stroke:#4a9298} .g6{fill:#4f4715;stroke:#9c8d3a}
.g7{fill:#3a3f49;stroke:#737b8b}
.s0{stroke:#6aa6ec} .s1{stroke:#eb9a4b} .s2{stroke:#67c486} .s3{stroke:#b78be6}
.t0{fill:#6aa6ec} .t1{fill:#eb9a4b} .t2{fill:#67c486} .t3{fill:#b78be6}}
"""


class Picture:
    """SVG text under construction; lengths are pixels, y points down."""

    def __init__(self, width: float, height: float, title: str):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img"><title>{escape(title)}</title><style>{STYLE}</style>'
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0.8L7 4L0 7.2" class="line"/></marker></defs>'
        ]
        self.rect(0.5, 0.5, width - 1, height - 1, "card", radius=10)

    def rect(self, x: float, y: float, width: float, height: float, style: str, radius: float = 0) -> None:
        corner = f' rx="{radius:g}"' if radius else ""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{corner} class="{style}"/>')

    def text(self, x: float, y: float, text: str, style: str = "ink", anchor: str = "middle") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>')

    def path(self, d: str, style: str = "line", arrow: bool = False) -> None:
        tip = ' marker-end="url(#tip)"' if arrow else ""
        self.parts.append(f'<path d="{d}" class="{style}"{tip}/>')

    def arrow(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.path(f"M{x0:g} {y0:g}L{x1:g} {y1:g}", arrow=True)

    def cell(self, x: float, y: float, size: float, text: str, style: str = "cell", ink: str = "ink") -> None:
        self.rect(x, y, size, size, style)
        if text:
            self.text(x + size / 2, y + size / 2 + 5, text, ink)

    def grid(self, x: float, y: float, size: float, values: np.ndarray, style: str = "cell", ink: str = "ink") -> None:
        """Draw an array of integers as cells."""
        for (i, j), value in np.ndenumerate(values):
            self.cell(x + j * size, y + i * size, size, number(value), style, ink)

    def save(self, name: str) -> None:
        (IMAGES / f"guide_{name}.svg").write_text("\n".join([*self.parts, "</svg>\n"]))


def number(value: float) -> str:
    return f"{int(value)}".replace("-", "−")


def tape() -> None:
    """y = ((x * w).sum() + b) ** 2, as minigrad.draw sees it."""
    x = Tensor([1.0, 2.0, 3.0])
    w, b = Tensor([0.5, -1.0, 2.0], requires_grad=True), Tensor(1.0, requires_grad=True)
    y = ((x * w).sum() + b) ** 2
    try:
        (IMAGES / "guide_tape.svg").write_text(draw.svg(y, {"w": w, "b": b}))
    except FileNotFoundError as error:
        print(f"guide_tape.svg is left as it is: {error}", file=sys.stderr)


def convolution() -> None:
    """One output pixel of a 3x3 convolution with padding 1, and its sum."""
    image = np.array([[1, 2, 0, 1], [0, 1, 3, 2], [2, 0, 1, 0], [1, 3, 0, 2]])
    weights = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    y = F.conv2d(Tensor(image[None, None] * 1.0), Tensor(weights[None, None] * 1.0), padding=1).numpy()[0, 0]
    row, col, size = 0, 1, 38
    p = Picture(760, 345, "A 3x3 window on a 4x4 image, its filter and the output")
    padded = np.pad(image, 1)
    x0, y0 = 36, 62
    p.text(x0 + 3 * size, 40, "image 4×4, padding 1", "dim")
    for (i, j), value in np.ndenumerate(padded):
        inside = 0 < i < 5 and 0 < j < 5
        seen = row <= i < row + 3 and col <= j < col + 3
        style = "g0" if seen else "cell" if inside else "pad"
        p.cell(x0 + j * size, y0 + i * size, size, number(value), style, "ink" if inside or seen else "faint")
    p.rect(x0 + col * size, y0 + row * size, 3 * size, 3 * size, "s0 heavy", 3)
    p.text(296, 183, "·", "big ink bold")
    p.text(382, 102, "filter 3×3", "dim")
    p.grid(325, 119, size, weights, "g1")
    p.text(472, 183, "=", "big ink bold")
    p.text(582, 83, "output 4×4", "dim")
    p.grid(506, 100, size, y)
    p.cell(506 + col * size, 100 + row * size, size, number(y[row, col]), "g0")
    p.rect(506 + col * size, 100 + row * size, size, size, "s0 heavy", 3)
    window = padded[row : row + 3, col : col + 3]
    terms = " + ".join(
        f"{number(a)}·{f'({number(b)})' if b < 0 else number(b)}"
        for a, b in zip(window.flat, weights.flat, strict=True)
    )
    p.text(380, 325, f"{terms}  =  {number(y[row, col])}", "ink")
    p.save("convolution")


def im2col_matrix() -> None:
    """The image of page 3, its columns, and the product with one filter."""
    image = np.arange(16).reshape(4, 4)
    matrix = im2col(image[None, None], (3, 3), (2, 2), (1, 1), (1, 1)).reshape(9, 4)
    weights = np.array([1, 0, -1, 2, 1, -2, 1, 0, -1])
    column, row, size = 1, 6, 32
    p = Picture(860, 440, "im2col lays the windows of an image side by side")
    p.text(112, 66, "image", "dim")
    seen, met = set(matrix[:, column]), set(matrix[row])
    for (i, j), value in np.ndenumerate(image):
        style = "g0" if value in seen else "cell"
        p.cell(40 + j * 36, 84 + i * 36, 36, number(value), style)
        if value in met:
            p.rect(40 + j * 36 + 3, 84 + i * 36 + 3, 30, 30, "s1 thick", 6)
    p.rect(40 + 36, 84, 108, 108, "s0 heavy", 3)
    p.text(112, 256, "window (0, 1)", "t0")
    p.text(112, 278, "pixels that tap (2, 0) meets", "t1")
    p.arrow(204, 156, 262, 156)
    p.text(233, 146, "im2col", "dim small")

    x0, y0 = 356, 84
    p.text(x0 + 2 * size, 32, "columns (9, 4)", "dim")
    p.text(x0 - 16, 60, "output", "dim small", "end")
    p.text(x0 - 16, 76, "tap", "dim small", "end")
    for k in range(4):
        p.text(x0 + (k + 0.5) * size, 66, f"{k // 2},{k % 2}", "t0 bold small" if k == column else "dim small")
    for (i, j), value in np.ndenumerate(matrix):
        p.cell(x0 + j * size, y0 + i * size, size, number(value), "g0" if j == column else "g1" if i == row else "cell")
    for i in range(9):
        p.text(
            x0 - 16, y0 + (i + 0.5) * size + 5, f"{i // 3},{i % 3}", "t1 bold small" if i == row else "dim small", "end"
        )
    p.rect(x0 + column * size, y0, size, 9 * size, "s0 heavy", 3)
    p.rect(x0, y0 + row * size, 4 * size, size, "s1 heavy", 3)
    p.text(x0 + 2 * size, 400, "a column: all that one output sees", "t0")
    p.text(x0 + 2 * size, 421, "a row: all that one tap meets", "t1")

    x1 = 540
    p.text(x1 + 4.5 * 30, 66, "one filter (1, 9)", "dim")
    p.grid(x1, 84, 30, weights[None], "g2")
    p.text(x1 + 4.5 * 30, 150, "@  columns (9, 4)  =", "ink")
    y = weights @ matrix
    p.grid(x1 + 4.5 * 30 - 2 * 38, 176, 38, y[None])
    p.cell(x1 + 4.5 * 30 - 38, 176, 38, number(y[column]), "g0")
    p.text(x1 + 4.5 * 30, 240, "outputs (1, 4)", "dim")
    p.arrow(x1 + 4.5 * 30, 252, x1 + 4.5 * 30, 286)
    p.text(x1 + 4.5 * 30 + 12, 274, "reshape", "dim small", "start")
    p.grid(x1 + 4.5 * 30 - 38, 296, 38, y.reshape(2, 2))
    p.cell(x1 + 4.5 * 30, 296, 38, number(y[column]), "g0")
    p.text(x1 + 4.5 * 30, 396, "output 2×2", "dim")
    p.save("im2col")


def groups() -> None:
    """Tables of kernels, slabs of columns and outputs for 8 channels and 8 filters in 1, 2, 4 and 8 groups."""
    p = Picture(860, 490, "Groups cut the table of kernels into blocks and the columns into slabs")
    size, m = 15, 6
    for panel, G in enumerate((1, 2, 4, 8)):
        x0, y0 = 48 + (panel % 2) * 418, 66 + (panel // 2) * 240
        name = {1: "groups = 1", 8: "groups = 8 = C, depthwise"}.get(G, f"groups = {G}")
        p.text(x0, y0 - 32, name, "ink bold", "start")
        p.text(x0 + 4 * size, y0 - 10, "weights", "dim small")
        p.text(x0 + 191, y0 - 10, "columns", "dim small")
        p.text(x0 + 313, y0 - 10, "outputs", "dim small")
        n = 8 // G
        for o in range(8):
            for c in range(8):
                if o // n == c // n:
                    p.rect(x0 + c * size, y0 + o * size, size, size, f"g{o // n}")
                else:
                    p.rect(x0 + c * size + 6, y0 + o * size + 6, 3, 3, "faint")
        p.text(x0 + 8 * size + 10, y0 + 4 * size + 4, "@", "dim")
        for k in range(8):
            for j in range(m):
                p.rect(x0 + 146 + j * size, y0 + k * size, size, size, f"g{k // n}")
                p.rect(x0 + 268 + j * size, y0 + k * size, size, size, f"g{k // n}")
        p.text(x0 + 252, y0 + 4 * size + 4, "=", "dim")
        for g in range(1, G):
            y = y0 + g * n * size
            p.path(f"M{x0 + 142} {y}h{m * size + 8}M{x0 + 264} {y}h{m * size + 8}", "line")
        p.text(x0, y0 + 8 * size + 24, f"{64 // G} of 64 kernels", "ink", "start")
        p.text(
            x0 + 146,
            y0 + 8 * size + 24,
            f"{G} slab{'s' if G > 1 else ''} of {n} channel{'s' if n > 1 else ''}",
            "dim",
            "start",
        )
        p.text(x0, y0 + 8 * size + 44, f"({G}, {n}, {9 * n}) @ ({G}, {9 * n}, m) = ({G}, {n}, m)", "dim small", "start")
    p.save("groups")


def col2im_sum() -> None:
    """col2im on four windows that hold 1, 10, 100 and 1000."""
    p = Picture(760, 356, "col2im adds the windows back into the image")
    marks = (1, 10, 100, 1000)
    for k, mark in enumerate(marks):
        i, j = divmod(k, 2)
        x0, y0 = 48 + j * 178, 52 + i * 160
        p.text(x0 - 18, y0 + 66, "+" if k else "", "big dim", "end")
        for a in range(4):
            for b in range(4):
                inside = i <= a < i + 3 and j <= b < j + 3
                p.cell(
                    x0 + b * 30,
                    y0 + a * 30,
                    30,
                    str(mark) if inside else "",
                    f"g{k} small" if inside else "pad",
                    "ink small",
                )
        p.text(x0 + 60, y0 - 8, f"window ({i}, {j})", f"t{k} small")
    p.text(396, 186, "=", "big ink bold")
    c = np.broadcast_to(np.array(marks).reshape(2, 2), (1, 1, 3, 3, 2, 2))
    total = col2im(c, (1, 1, 4, 4), (1, 1), (1, 1))[0, 0]
    size = 60
    for (i, j), value in np.ndenumerate(total):
        p.cell(440 + j * size, 62 + i * size, size, str(value))
        for k in range(4):
            a, b = divmod(k, 2)
            if a <= i < a + 3 and b <= j < b + 3:
                p.rect(440 + j * size + 8 + k * 11.5, 62 + i * size + 42, 9, 9, f"g{k}", 2)
    p.text(560, 336, "each digit 1 is a window that the pixel lies in", "dim")
    p.save("col2im")


def batch_norm() -> None:
    """dy of one channel as its mean, its part along x̂, and the rest."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal(8)
    x_hat = (x - x.mean()) / x.std()
    dy = 0.6 + 0.55 * x_hat + 0.5 * rng.standard_normal(8)
    mean = np.full(8, dy.mean())
    along = x_hat * (dy * x_hat).mean()
    p = Picture(880, 236, "The gradient dy is its mean, plus its part along x-hat, plus the rest")
    titles = ("dy", "mean(dy)", "x̂ · mean(dy x̂)", "the rest: dx, but for its scale")
    styles = ("g7", "g0", "g1", "g2")
    notes = ("", "a shift of x leaves y as it is", "so does a stretch", "")
    scale = 66 / max(abs(v).max() for v in (dy, mean, along))
    for k, (title, values, style, note) in enumerate(
        zip(titles, (dy, mean, along, dy - mean - along), styles, notes, strict=True)
    ):
        x0, y0 = 36 + k * 216, 126
        if k:
            p.text(x0 - 26, y0 + 6, "=" if k == 1 else "+", "big ink bold")
        for i, value in enumerate(values):
            height = abs(value) * scale
            p.rect(x0 + i * 19, y0 - height if value > 0 else y0, 15, max(height, 0.5), style, 2)
        p.path(f"M{x0 - 4} {y0}h156", "line")
        p.text(x0 + 74, 36, title, "ink bold" if k != 3 else "ink bold small")
        p.text(x0 + 74, 212, note, "dim small")
    p.save("batch_norm")


def block() -> None:
    """Figure 3 of the paper with three paths: (a) sums, (b) concatenates, (c) uses groups."""
    p = Picture(900, 420, "The block as summed paths, as concatenated paths, and with a grouped convolution")

    def box(x: float, y: float, width: float, text: str, style: str) -> None:
        p.rect(x - width / 2, y, width, 34, style, 6)
        p.text(x, y + 22, text, "ink small")

    for centre, title in (
        (165, "(a) paths, summed"),
        (465, "(b) paths, concatenated"),
        (750, "(c) grouped convolution"),
    ):
        p.text(centre, 34, title, "ink bold")
        p.text(centre, 64, "x: 256 channels", "dim small")
        p.rect(centre - 15, 341, 30, 30, "cell", 15)
        p.text(centre, 361, "+", "ink")
        p.text(centre - 8, 333, "BN", "dim small", "end")
        p.arrow(centre, 371, centre, 398)
        p.text(centre - 8, 391, "ReLU", "dim small", "end")
    for k in range(3):
        x = 75 + 90 * k
        p.arrow(165, 70, x, 94)
        for y, text in ((96, "1×1, 4"), (162, "3×3, 4"), (228, "1×1, 256")):
            box(x, y, 80, text, f"g{k}")
        p.arrow(x, 130, x, 160)
        p.arrow(x, 196, x, 226)
        p.path(f"M{x} 262L165 296")
    p.arrow(165, 296, 165, 339)
    p.text(174, 308, "Σ", "ink", "start")
    for k in range(3):
        x = 375 + 90 * k
        p.arrow(465, 70, x, 94)
        for y, text in ((96, "1×1, 4"), (162, "3×3, 4")):
            box(x, y, 80, text, f"g{k}")
        p.arrow(x, 130, x, 160)
        p.path(f"M{x} 196L{425 + 40 * k} 234")
        p.rect(405 + 40 * k, 234, 40, 12, f"g{k}")
    p.text(533, 245, "12 channels", "dim small", "start")
    p.arrow(465, 248, 465, 268)
    box(465, 270, 130, "1×1, 256", "g7")
    p.arrow(465, 304, 465, 339)
    p.arrow(750, 70, 750, 94)
    for y, text in ((96, "1×1, 12"), (162, "3×3, 12"), (228, "1×1, 256")):
        if y == 162:
            for k in range(3):
                p.rect(675 + 50 * k, y, 50, 34, f"g{k}")
            p.text(758, 217, "3 groups", "dim small", "start")
            p.text(750, y + 22, text, "ink small")
        else:
            box(750, y, 150, text, "g7")
    p.arrow(750, 130, 750, 160)
    p.arrow(750, 196, 750, 226)
    p.arrow(750, 262, 750, 339)
    for centre, edge in ((165, 318), (465, 612), (750, 872)):
        p.path(
            f"M{centre + 60} 60H{edge - 20}Q{edge} 60 {edge} 80V336Q{edge} 356 {edge - 20} 356H{centre + 19}",
            "line",
            arrow=True,
        )
    p.save("block")


def network() -> None:
    """The shapes on the way through resnext29_8x64d."""
    p = Picture(860, 296, "The stages of resnext29_8x64d")
    steps = (
        ("image", 3, 32, "g7", ""),
        ("conv 3×3", 64, 32, "g7", ""),
        ("stage 1", 256, 32, "g0", "3 blocks, 8 × 64"),
        ("stage 2", 512, 16, "g1", "3 blocks, 8 × 128"),
        ("stage 3", 1024, 8, "g2", "3 blocks, 8 × 256"),
    )
    x, middle = 36.0, 140
    for i, (name, channels, side, style, note) in enumerate(steps):
        height, depth = 26 + side * 3.4, 8 + 3.3 * np.sqrt(channels)
        lift = 14 + side * 0.5
        top = middle - height / 2
        p.path(f"M{x:g} {top:g}l{lift:g} {-lift:g}h{depth:g}v{height:g}l{-lift:g} {lift:g}h{-depth:g}z", style)
        p.path(f"M{x:g} {top:g}h{depth:g}v{height:g}M{x + depth:g} {top:g}l{lift:g} {-lift:g}", "axis")
        centre = x + (depth + lift) / 2
        p.text(centre, 232, name, "ink bold")
        p.text(centre, 252, f"{channels} × {side} × {side}", "dim small")
        p.text(centre, 271, note, "dim small")
        x += depth + lift
        if i < len(steps) - 1:
            p.arrow(x + 7, middle, x + 33, middle)
        x += 42
    p.arrow(x - 40, middle, x - 12, middle)
    p.text(x - 24, middle - 10, "mean", "dim small")
    p.rect(x - 4, middle - 72, 12, 144, "g2")
    p.text(x + 2, 232, "1024", "dim small")
    p.arrow(x + 16, middle, x + 48, middle)
    p.text(x + 32, middle - 10, "linear", "dim small")
    p.rect(x + 56, middle - 30, 12, 60, "g3")
    p.text(x + 62, 232, "10 logits", "dim small")
    p.save("network")


def training() -> None:
    """The three schedules over 300 epochs."""
    p = Picture(800, 270, "Learning rate over the epochs: staircase, linear with warm-up, cosine")
    x0, y0, width, height = 64, 220, 560, 176
    p.path(f"M{x0} {y0 - height}V{y0}H{x0 + width}", "axis")
    for t in (0, 75, 150, 225, 300):
        p.text(x0 + width * t / 300, y0 + 20, str(t), "dim small")
    for lr in (0, 0.05, 0.1):
        p.text(x0 - 8, y0 - height * lr / 0.1 + 4, f"{lr:g}", "dim small", "end")
    p.text(x0 + width / 2, y0 + 40, "epoch", "dim small")
    p.text(x0, y0 - height - 14, "learning rate", "dim small", "start")
    curves = (
        ("staircase: multi_step(0.1, (150, 225))", optim.multi_step(0.1, (150, 225)), 0, 60),
        ("cosine(0.1, 300)", optim.cosine(0.1, 300), 1, 84),
        ("linear(0.1, 300, warmup=15)", optim.linear(0.1, 300, 15), 2, 108),
    )
    for name, schedule, k, y in curves:
        points = [(t, schedule(t)) for t in np.linspace(0, 299.9, 1200)]
        d = "L".join(f"{x0 + width * t / 300:.1f} {y0 - height * lr / 0.1:.1f}" for t, lr in points)
        p.path("M" + d, f"s{k} thick")
        p.text(480, y, name, f"t{k}", "start")
    p.save("training")


PICTURES = {
    "tape": tape,
    "convolution": convolution,
    "im2col": im2col_matrix,
    "groups": groups,
    "col2im": col2im_sum,
    "batch_norm": batch_norm,
    "block": block,
    "network": network,
    "training": training,
}

if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in PICTURES]
    if unknown:
        sys.exit(f"there is no picture {unknown[0]!r}: choose from {', '.join(PICTURES)}")
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
