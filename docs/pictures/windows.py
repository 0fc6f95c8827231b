"""Pages 3 and 4: windows on images, im2col and col2im, groups."""

from __future__ import annotations

import numpy as np

from minigrad import Tensor
from minigrad import functional as F
from minigrad.ops.conv import col2im, im2col, output_size

from .canvas import Picture, number


def convolution() -> None:
    """One output pixel of a 3x3 convolution with padding 1, and its sum."""
    image = np.array([[1, 2, 0, 1], [0, 1, 3, 2], [2, 0, 1, 0], [1, 3, 0, 2]])
    weights = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    y = F.conv2d(Tensor(image[None, None] * 1.0), Tensor(weights[None, None] * 1.0), padding=1).numpy()[0, 0]
    row, col, size = 0, 1, 36
    p = Picture(466, "A 3x3 window on a 4x4 image, its filter and the output")
    padded = np.pad(image, 1)
    x0, y0 = 24, 42
    p.text(x0 + 3 * size, 28, "image 4×4, padding 1", "dim")
    for (i, j), value in np.ndenumerate(padded):
        inside = 0 < i < 5 and 0 < j < 5
        seen = row <= i < row + 3 and col <= j < col + 3
        style = "g0" if seen else "cell" if inside else "pad"
        p.cell(x0 + j * size, y0 + i * size, size, number(value), style, "ink" if inside or seen else "faint")
    p.rect(x0 + col * size, y0 + row * size, 3 * size, 3 * size, "s0 heavy", 3)
    p.text(274, y0 + 3 * size + 6, "·", "big ink bold")
    p.text(300 + 1.5 * size, 82, "filter 3×3", "dim")
    p.grid(300, 96, size, weights, "g1")
    window = padded[row : row + 3, col : col + 3]
    p.text(24, 310, "the sum, row by row:", "dim", "start")
    for i in range(3):
        terms = " + ".join(
            f"{number(a)}·{f'({number(b)})' if b < 0 else number(b)}"
            for a, b in zip(window[i], weights[i], strict=True)
        )
        p.text(40, 338 + 26 * i, f"{'+ ' if i else ''}{terms}", "ink", "start")
    p.text(40, 338 + 26 * 3, f"= {number(y[row, col])}", "ink bold", "start")
    p.text(250, 370, "=", "big ink bold")
    p.text(274 + 2 * size, 290, "output 4×4", "dim")
    p.grid(274, 302, size, y)
    p.cell(274 + col * size, 302 + row * size, size, number(y[row, col]), "g0")
    p.rect(274 + col * size, 302 + row * size, size, size, "s0 heavy", 3)
    p.save("convolution")


def channels() -> None:
    """The window is a box through all channels; each filter is such a box and gives one output channel."""
    p = Picture(374, "A window through three channels, two filters of three channels each, and two output channels")
    lift, cell = 20, 22

    def stack(x: float, y: float, n: int, style: str, window: bool = False) -> None:
        """Three sheets of n x n cells, the last one behind."""
        for c in (2, 1, 0):
            for i, j in np.ndindex(n, n):
                seen = window and 1 <= i < 4 and 1 <= j < 4
                left, top = x + c * lift + j * cell, y - c * lift + i * cell
                p.rect(left, top, cell, cell, "g7" if seen else style)
        if window:
            near, far, side = (x + cell, y + cell), (x + cell + 2 * lift, y + cell - 2 * lift), 3 * cell
            p.path(
                f"M{near[0]} {near[1]}L{far[0]} {far[1]}h{side}v{side}L{near[0] + side} {near[1] + side}", "s3 thick"
            )
            p.path(f"M{near[0] + side} {near[1]}L{far[0] + side} {far[1]}", "s3 thick")
            p.rect(*near, side, side, "s3 heavy", 2)

    p.text(99, 30, "one image", "dim")
    p.text(99, 48, "(C, H, W)", "dim small")
    stack(24, 130, 5, "cell", window=True)
    p.text(24 + 3 * cell, 264, "C = 3 channels:", "ink small")
    p.text(24 + 3 * cell, 282, "the window is a box", "t3 small")
    p.text(24 + 3 * cell, 300, "of C·KH·KW numbers", "t3 small")
    p.text(258, 30, "filters", "dim")
    p.text(258, 48, "(O, C, KH, KW)", "dim small")
    p.text(393, 30, "output", "dim")
    p.text(393, 48, "(O, OH, OW)", "dim small")
    for o, y in enumerate((104, 242)):
        stack(206, y, 3, f"g{o}")
        p.text(194, y + 38, "·", "big ink bold")
        p.text(206 + 2.6 * cell, y + 84, f"filter {o}", f"t{o} small")
        p.arrow(318, y + 30, 348, y + 30)
        for i, j in np.ndindex(3, 3):
            p.rect(360 + j * cell, y - 4 + i * cell, cell, cell, f"g{o}")
        p.rect(360 + cell, y - 4 + cell, cell, cell, "s3 heavy", 2)
        p.text(360 + 1.5 * cell, y + 84, f"channel {o}", f"t{o} small")
    p.text(220, 358, "each output is one sum over the whole box", "dim small")
    p.save("channels")


def window() -> None:
    """Which pixels of a row the window's three taps meet, for stride, padding and dilation."""
    size, line, pixels = 22, 19, 6
    panels = (
        ("stride 1", 1, 0, 1, ""),
        ("stride 2", 2, 0, 1, "pixel 5 is unseen"),
        ("padding 1", 1, 1, 1, "the border is 0"),
        ("dilation 2", 1, 0, 2, "every second pixel"),
    )
    p = Picture(406, "The windows of three taps on a row of six pixels, for stride 1 and 2, padding 1 and dilation 2")
    for k, (title, S, P, D, note) in enumerate(panels):
        x0, y0 = 46 + (k % 2) * 212, 62 + (k // 2) * 180
        (out, _) = output_size((pixels, 1), (3, 1), (S, 1), (P, 0), (D, 1))
        p.text(x0, y0 - 32, title, "ink bold", "start")
        p.text(x0, y0 - 13, f"OH = {out}" + (f"; {note}" if note else ""), "dim small", "start")
        left = x0 - P * size
        for i in range(pixels + 2 * P):
            inside = P <= i < pixels + P
            text = str(i - P) if inside else "0"
            p.cell(
                left + i * size, y0, size, text, "cell" if inside else "pad", "ink small" if inside else "faint small"
            )
        for oh in range(out):
            y = y0 + size + 7 + oh * line
            taps = [oh * S + kh * D for kh in range(3)]
            p.path(f"M{left + taps[0] * size + size / 2} {y + 6}H{left + taps[2] * size + size / 2}", "line")
            for i in taps:
                p.rect(left + i * size + 3, y, size - 6, 12, f"g{oh % 4}", 2)
    p.save("window")


def im2col_matrix() -> None:
    """The image of page 3, its columns, and the product with one filter."""
    image = np.arange(16).reshape(4, 4)
    matrix = im2col(image[None, None], (3, 3), (2, 2), (1, 1), (1, 1)).reshape(9, 4)
    weights = np.array([1, 0, -1, 2, 1, -2, 1, 0, -1])
    column, row, size = 1, 6, 34
    p = Picture(640, "im2col lays the windows of an image side by side")
    p.text(24 + 2 * size, 60, "image", "dim")
    seen, met = set(matrix[:, column]), set(matrix[row])
    for (i, j), value in np.ndenumerate(image):
        x, y = 24 + j * size, 76 + i * size
        p.cell(x, y, size, number(value), "g0" if value in seen else "cell")
        if value in met:
            p.rect(x + 3, y + 3, size - 6, size - 6, "s1 thick", 6)
    p.rect(24 + size, 76, 3 * size, 3 * size, "s0 heavy", 3)
    p.text(24, 242, "window (0, 1)", "t0", "start")
    p.text(24, 266, "pixels that tap (2, 0)", "t1", "start")
    p.text(24, 285, "meets", "t1", "start")
    p.arrow(170, 144, 214, 144)
    p.text(192, 134, "im2col", "dim small")

    x0, y0 = 276, 76
    p.text(x0 + 2 * size, 28, "columns (9, 4)", "dim")
    p.text(x0 - 14, 52, "output", "dim small", "end")
    p.text(x0 - 14, 69, "tap", "dim small", "end")
    for k in range(4):
        p.text(x0 + (k + 0.5) * size, 60, f"{k // 2},{k % 2}", "t0 bold small" if k == column else "dim small")
    for (i, j), value in np.ndenumerate(matrix):
        p.cell(x0 + j * size, y0 + i * size, size, number(value), "g0" if j == column else "g1" if i == row else "cell")
    for i in range(9):
        p.text(
            x0 - 14, y0 + (i + 0.5) * size + 5, f"{i // 3},{i % 3}", "t1 bold small" if i == row else "dim small", "end"
        )
    p.rect(x0 + column * size, y0, size, 9 * size, "s0 heavy", 3)
    p.rect(x0, y0 + row * size, 4 * size, size, "s1 heavy", 3)
    p.text(24, 408, "a column: all that one output sees", "t0", "start")
    p.text(24, 430, "a row: all that one tap meets", "t1", "start")

    p.text(24, 478, "one filter (1, 9)", "dim", "start")
    p.grid(24, 490, size, weights[None], "g2")
    p.text(345, 512, "@ columns", "ink", "start")
    y = weights @ matrix
    p.text(24, 570, "= outputs (1, 4)", "dim", "start")
    p.grid(24, 582, size, y[None])
    p.cell(24 + column * size, 582, size, number(y[column]), "g0")
    p.arrow(176, 599, 236, 599)
    p.text(204, 590, "reshape", "dim small")
    p.text(340, 592, "output 2×2", "dim", "start")
    p.grid(252, 556, size, y.reshape(2, 2))
    p.cell(252 + size, 556, size, number(y[column]), "g0")
    p.save("im2col")


def groups() -> None:
    """Tables of kernels, slabs of columns and outputs for 8 channels and 8 filters in 1, 2, 4 and 8 groups."""
    size, m, high = 14, 6, 222
    p = Picture(4 * high + 8, "Groups cut the table of kernels into blocks and the columns into slabs")
    for panel, G in enumerate((1, 2, 4, 8)):
        x0, y0 = 40, 60 + panel * high
        n = 8 // G
        name = {1: "groups = 1", 8: "groups = 8 = C, depthwise"}.get(G, f"groups = {G}")
        p.text(x0, y0 - 32, name, "ink bold", "start")
        p.text(x0 + 4 * size, y0 - 10, "weights", "dim small")
        p.text(x0 + 150 + 3 * size, y0 - 10, "columns", "dim small")
        p.text(x0 + 276 + 3 * size, y0 - 10, "outputs", "dim small")
        for o in range(8):
            for c in range(8):
                if o // n == c // n:
                    p.rect(x0 + c * size, y0 + o * size, size, size, f"g{o // n}")
                else:
                    p.rect(x0 + c * size + 5, y0 + o * size + 5, 3, 3, "faint")
        p.text(x0 + 131, y0 + 4 * size + 5, "@", "dim")
        for k in range(8):
            for j in range(m):
                p.rect(x0 + 150 + j * size, y0 + k * size, size, size, f"g{k // n}")
                p.rect(x0 + 276 + j * size, y0 + k * size, size, size, f"g{k // n}")
        p.text(x0 + 255, y0 + 4 * size + 5, "=", "dim")
        for g in range(1, G):
            y = y0 + g * n * size
            p.path(f"M{x0 + 146} {y}h{m * size + 8}M{x0 + 272} {y}h{m * size + 8}", "line")
        slabs = f"{G} slab{'s' if G > 1 else ''} of {n} channel{'s' if n > 1 else ''}"
        p.text(x0, y0 + 8 * size + 21, f"{64 // G} of 64 kernels, {slabs}", "ink small", "start")
        p.text(x0, y0 + 8 * size + 40, f"({G}, {n}, {9 * n}) @ ({G}, {9 * n}, m) = ({G}, {n}, m)", "dim small", "start")
    p.save("groups")


def col2im_sum() -> None:
    """col2im on four windows that hold 1, 10, 100 and 1000."""
    p = Picture(672, "col2im adds the windows back into the image")
    marks, size = (1, 10, 100, 1000), 36
    for k, mark in enumerate(marks):
        i, j = divmod(k, 2)
        x0, y0 = 52 + j * 194, 40 + i * 182
        p.text(x0 - 20, y0 + 2 * size + 6, "+" if k else "", "big dim")
        p.text(x0 + 2 * size, y0 - 12, f"window ({i}, {j})", f"t{k} small")
        for a in range(4):
            for b in range(4):
                inside = i <= a < i + 3 and j <= b < j + 3
                style = f"g{k}" if inside else "pad"
                p.cell(x0 + b * size, y0 + a * size, size, str(mark) if inside else "", style, "ink small")
    p.text(84, 516, "=", "big ink bold")
    c = np.broadcast_to(np.array(marks).reshape(2, 2), (1, 1, 3, 3, 2, 2))
    total = col2im(c, (1, 1, 4, 4), (1, 1), (1, 1))[0, 0]
    size = 58
    for (i, j), value in np.ndenumerate(total):
        x, y = 104 + j * size, 398 + i * size
        p.cell(x, y, size, "")
        p.text(x + size / 2, y + size / 2 + 1, str(value))
        for k in range(4):
            a, b = divmod(k, 2)
            if a <= i < a + 3 and b <= j < b + 3:
                p.rect(x + 7 + k * 11.5, y + 40, 9, 9, f"g{k}", 2)
    p.text(220, 655, "each digit 1 is a window that the pixel lies in", "dim small")
    p.save("col2im")
