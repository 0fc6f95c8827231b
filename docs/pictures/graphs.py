"""Pages 1 and 5 to 8: the tape, the walk back, batch norm, the block, the network, schedules."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np

from minigrad import Tensor, draw, optim

from . import canvas
from .canvas import Picture

# Graphviz writes colours as attributes; a style sheet has the last word.
TAPE_DARK = """<style>@media (prefers-color-scheme:dark){
[fill="#ffffff"]{fill:#25282d} [fill="#dfe9f7"]{fill:#1f3f68} [fill="#fcfbf8"]{fill:#1c1e22}
[stroke="#5b6572"],[stroke="#717c89"]{stroke:#a19d94} polygon[fill="#717c89"]{fill:#a19d94}
text{fill:#e8e6e1} text[fill="#717c89"]{fill:#a19d94}}</style>"""


def tape() -> None:
    """y = ((x * w).sum() + b) ** 2, as minigrad.draw sees it, from top to bottom and in larger letters."""
    x = Tensor([1.0, 2.0, 3.0])
    w, b = Tensor([0.5, -1.0, 2.0], requires_grad=True), Tensor(1.0, requires_grad=True)
    y = ((x * w).sum() + b) ** 2
    dot = shutil.which("dot")
    if dot is None:
        print("guide_tape.svg is left as it is: drawing it needs Graphviz's `dot`", file=sys.stderr)
        return
    text = draw.graph(y, {"w": w, "b": b, "y": y}).replace("rankdir=LR", "rankdir=TB")
    text = text.replace('bgcolor="transparent"', 'bgcolor="#fcfbf8"; pad=0.2')
    text = text.replace("fontsize=12", "fontsize=15").replace("fontsize=10", "fontsize=13")
    text = text.replace('[label="(', '[label="  (')  # a shape beside its arrow, not on it
    svg = subprocess.run([dot, "-Tsvg"], input=text, capture_output=True, text=True, check=True).stdout
    svg = svg.replace('pt" height="', '" height="').replace('pt"\n', '"\n')  # a point of the drawing is a pixel
    head, rest = svg.split("<g id=", 1)
    (canvas.IMAGES / "guide_tape.svg").write_text(f"{head}{TAPE_DARK}\n<g id={rest}", encoding="utf-8")


def walk() -> None:
    """y = u·u + u with u = 2x: forward down, backward up, and the place where three gradients meet."""
    x = Tensor(3.0, requires_grad=True)
    u = 2 * x
    y = u * u + u
    y.backward()
    p = Picture(
        460, "A graph with a meeting point: forward, u is used three times; backward, its three gradients are added"
    )
    p.path("M220 20V440", "axis")
    for left, title in ((0, "forward: values"), (220, "backward: gradients")):
        p.text(left + 110, 34, title, "ink bold")
        p.box(left + 110, 76, 110, 34, f"x = {x.item():g}" if not left else f"dx = {x.grad:g}", "g0")
        p.box(
            left + 110,
            176,
            170 if left else 130,
            38,
            "u = 2·x" if not left else "du = 1 + 6 + 6 = 13",
            "cell" if not left else "g1",
        )
        p.box(left + 66, 292, 84, 38, "u·u", "cell")
        p.box(left + 110, 384, 84, 38, "+", "cell")
    p.arrow(110, 94, 110, 155)
    p.arrow(84, 196, 54, 271)
    p.arrow(100, 196, 78, 271)
    p.path("M150 196C190 260 180 340 150 372", "line", "tip")
    p.arrow(72, 312, 98, 363)
    p.arrow(110, 404, 110, 428)
    p.text(58, 234, "6", "dim", "end")
    p.text(100, 240, "6", "dim", "start")
    p.text(184, 290, "6", "dim", "start")
    p.text(74, 345, "36", "dim", "end")
    p.text(110, 446, f"y = {y.item():g}", "ink bold")
    p.arrow(330, 155, 330, 96, "s1 thick", "tip1")
    p.arrow(274, 272, 304, 198, "s1 thick", "tip1")
    p.arrow(298, 272, 320, 198, "s1 thick", "tip1")
    p.path("M370 370C400 340 410 260 372 199", "s1 thick", "tip1")
    p.arrow(318, 364, 292, 314, "s1 thick", "tip1")
    p.arrow(330, 430, 330, 406, "s1 thick", "tip1")
    p.text(340, 130, "2·13 = 26", "t1 bold", "start")
    p.text(278, 238, "6", "t1 bold", "end")
    p.text(318, 244, "6", "t1 bold", "start")
    p.text(404, 290, "1", "t1 bold", "start")
    p.text(294, 346, "1", "t1 bold", "end")
    p.text(330, 446, "dy = 1", "t1 bold")
    p.save("walk")


def batch_norm() -> None:
    """Eight values of one channel, x̂, and dy as its mean, its part along x̂, and the rest."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal(8) * 0.55 + 1.1
    x_hat = (x - x.mean()) / x.std()
    dy = 0.6 + 0.55 * x_hat + 0.5 * rng.standard_normal(8)
    mean, along = np.full(8, dy.mean()), x_hat * (dy * x_hat).mean()
    panels = (
        ("x, one channel", "", x, "g7", "mean μ, deviation σ"),
        ("x̂", "→", x_hat, "g1", "mean 0, deviation 1"),
        ("dy", "", dy, "g7", "what comes back for y"),
        ("mean(dy)", "=", mean, "g0", "a shift of x leaves y as it is"),
        ("x̂ · mean(dy·x̂)", "+", along, "g1", "so does a stretch of x"),
        ("the rest", "+", dy - mean - along, "g2", "times weight/√(σ²+ε): dx"),
    )
    p = Picture(576, "x and its normalised values; the gradient dy as its mean, its part along x-hat, and the rest")
    for k, (title, sign, values, style, note) in enumerate(panels):
        x0, y0 = 38 + (k % 2) * 208, 104 + (k // 2) * 190
        scale = 30 if k < 2 else 66 / max(abs(v).max() for v in (dy, mean, along))
        p.text(x0 + 86, y0 - 74, title, "ink bold")
        p.text(x0 - 16, y0 + 6, sign, "big ink bold")
        middle, spread = (values.mean() * scale, values.std() * scale) if k < 2 else (0, 0)
        if k < 2:
            p.rect(x0 - 2, y0 - middle - spread, 176, 2 * spread, "pad")
        for i, value in enumerate(values):
            height = abs(value) * scale
            p.rect(x0 + 4 + i * 21, y0 - height if value > 0 else y0, 17, max(height, 0.5), style, 2)
        p.path(f"M{x0 - 4} {y0}h180", "line")
        if k == 0:
            p.path(f"M{x0 - 2} {y0 - middle:g}h176", "s1 dash thick")
            p.text(x0 + 178, y0 - middle + 5, "μ", "t1 small", "start")
        p.text(x0 + 86, y0 + 76, note, "dim small")
    p.save("batch_norm")


def block() -> None:
    """Figure 3 of the paper with three paths: (a) sums, (b) concatenates, (c) uses groups."""
    high = 312
    p = Picture(3 * high + 4, "The block as summed paths, as concatenated paths, and with a grouped convolution")
    centres = (96, 196, 296)
    for form, title in enumerate(("(a) paths, summed", "(b) paths, concatenated", "(c) grouped convolution")):
        y = form * high

        def level(n: int, top: float = y) -> float:
            return top + 92 + 52 * n

        p.text(16, y + 28, title, "ink bold", "start")
        p.text(196, y + 56, "x: 256 channels", "dim small")
        if form < 2:
            for k, x in enumerate(centres):
                p.arrow(196, y + 61, x, level(0) - 18)
                p.box(x, level(0), 84, 30, "1×1, 4", f"g{k}", "ink small")
                p.arrow(x, level(0) + 16, x, level(1) - 17)
                p.box(x, level(1), 84, 30, "3×3, 4", f"g{k}", "ink small")
        if form == 0:
            for k, x in enumerate(centres):
                p.arrow(x, level(1) + 16, x, level(2) - 17)
                p.box(x, level(2), 84, 30, "1×1, 256", f"g{k}", "ink small")
                p.path(f"M{x} {level(2) + 15}L196 {level(3) - 18}")
            p.text(206, level(3) - 8, "Σ", "ink", "start")
            p.arrow(196, level(3) - 18, 196, level(3) + 9)
        elif form == 1:
            for k, x in enumerate(centres):
                p.path(f"M{x} {level(1) + 15}L{156 + 40 * k} {level(2) - 22}")
                p.rect(136 + 40 * k, level(2) - 22, 40, 12, f"g{k}")
            p.text(264, level(2) - 10, "12 channels", "dim small", "start")
            p.arrow(196, level(2) - 9, 196, level(2) + 7)
            p.box(196, level(2) + 24, 150, 30, "1×1, 256", "g7", "ink small")
            p.arrow(196, level(2) + 40, 196, level(3) + 9)
        else:
            p.arrow(196, y + 61, 196, level(0) - 18)
            p.box(196, level(0), 150, 30, "1×1, 12", "g7", "ink small")
            p.arrow(196, level(0) + 16, 196, level(1) - 17)
            for k in range(3):
                p.rect(121 + 50 * k, level(1) - 15, 50, 30, f"g{k}")
            p.text(196, level(1) + 5, "3×3, 12", "ink small")
            p.text(280, level(1) + 5, "3 groups", "dim small", "start")
            p.arrow(196, level(1) + 16, 196, level(2) - 17)
            p.box(196, level(2), 150, 30, "1×1, 256", "g7", "ink small")
            p.arrow(196, level(2) + 16, 196, level(3) + 9)
        p.text(188, level(3) + 2, "BN", "dim small", "end")
        p.rect(182, level(3) + 11, 28, 28, "cell", 14)
        p.text(196, level(3) + 31, "+", "ink")
        p.arrow(196, level(3) + 40, 196, level(3) + 62)
        p.text(188, level(3) + 56, "ReLU", "dim small", "end")
        corner = level(3) + 25
        p.path(
            f"M252 {y + 52}H376Q396 {y + 52} 396 {y + 72}V{corner - 20}Q396 {corner} 376 {corner}H214", "line", "tip"
        )
        p.text(390, level(2), "shortcut", "dim small", "end") if form == 2 else None
    p.save("block")


def network() -> None:
    """The shapes on the way through resnext29_8x64d."""
    steps = (
        ("image", 3, 32, "g7", ""),
        ("conv 3×3", 64, 32, "g7", ""),
        ("stage 1", 256, 32, "g0", "3 blocks, 8 × 64"),
        ("stage 2", 512, 16, "g1", "3 blocks, 8 × 128"),
        ("stage 3", 1024, 8, "g2", "3 blocks, 8 × 256"),
    )
    p = Picture(656, "The stages of resnext29_8x64d")
    y, middle = 22.0, 120
    for name, channels, side, style, note in steps:
        height, depth = 16 + side * 1.7, 10 + 3.6 * np.sqrt(channels)
        lift = 8 + side * 0.4
        left, top = middle - (depth + lift) / 2, y + lift
        p.path(f"M{left:g} {top:g}l{lift:g} {-lift:g}h{depth:g}v{height:g}l{-lift:g} {lift:g}h{-depth:g}z", style)
        p.path(f"M{left:g} {top:g}h{depth:g}v{height:g}M{left + depth:g} {top:g}l{lift:g} {-lift:g}", "axis")
        centre = y + (height + lift) / 2
        p.text(236, centre - (4 if note else -5) - 8, name, "ink bold", "start")
        p.text(236, centre + (6 if note else 15), f"{channels} × {side} × {side}", "ink small", "start")
        p.text(236, centre + 24, note, "dim small", "start")
        y += height + lift
        gap = 24 if channels < 1024 else 44
        p.arrow(middle, y + 4, middle, y + gap)
        y += gap + 6
    p.text(236, y - 8, "mean over the image", "dim small", "start")
    p.rect(middle - 62, y, 124, 12, "g2")
    p.text(236, y + 12, "1024 numbers", "ink small", "start")
    p.arrow(middle, y + 17, middle, y + 40)
    p.text(236, y + 36, "linear layer", "dim small", "start")
    p.rect(middle - 30, y + 46, 60, 12, "g3")
    p.text(236, y + 57, "10 logits", "ink small", "start")
    p.save("network")


def training() -> None:
    """The three schedules over 300 epochs."""
    p = Picture(372, "Learning rate over the epochs: staircase, linear with warm-up, cosine")
    x0, y0, width, height = 54, 234, 356, 186
    p.path(f"M{x0} {y0 - height}V{y0}H{x0 + width}", "axis")
    for t in (0, 75, 150, 225, 300):
        p.text(x0 + width * t / 300, y0 + 20, str(t), "dim small")
    for lr in (0, 0.05, 0.1):
        p.text(x0 - 8, y0 - height * lr / 0.1 + 4, f"{lr:g}", "dim small", "end")
    p.text(x0 + width / 2, y0 + 40, "epoch", "dim small")
    p.text(x0 - 30, y0 - height - 18, "learning rate", "dim small", "start")
    curves = (
        ("staircase: multi_step(0.1, (150, 225))", optim.multi_step(0.1, (150, 225)), 0),
        ("cosine(0.1, 300)", optim.cosine(0.1, 300), 1),
        ("linear(0.1, 300, warmup=15)", optim.linear(0.1, 300, 15), 2),
    )
    for name, schedule, k in curves:
        points = [(t, schedule(t)) for t in np.linspace(0, 299.9, 1200)]
        d = "L".join(f"{x0 + width * t / 300:.1f} {y0 - height * lr / 0.1:.1f}" for t, lr in points)
        p.path("M" + d, f"s{k} thick" + (" dash" if k == 1 else ""))
        y = y0 + 74 + 24 * k
        p.path(f"M{x0} {y - 5}h34", f"s{k} thick" + (" dash" if k == 1 else ""))
        p.text(x0 + 44, y, name, f"t{k}", "start")
    p.save("training")
