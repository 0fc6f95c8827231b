"""SVG text under construction.

A picture is at most 440 pixels wide, so that its numbers can still be read on a telephone, where it is made to fit a
column of some 360. Colours switch with the reader's light or dark setting.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

IMAGES = Path(__file__).resolve().parents[1] / "images"
WIDTH = 440

LIGHT = """
svg{font-family:"Helvetica Neue",Helvetica,Arial,sans-serif;font-size:15px}
.card{fill:#fcfbf8;stroke:#e4e0d8} .cell{fill:#fff;stroke:#c9c4ba}
.pad{fill:#f3f0ea;stroke:#d6d1c7;stroke-dasharray:3 2}
.ink{fill:#26292e} .dim{fill:#6f6c65} .faint{fill:#8f8a80} .bold{font-weight:600} .small{font-size:13px}
.big{font-size:18px}
.line{stroke:#7a776f;fill:none;stroke-width:1.4} .axis{stroke:#c9c4ba;fill:none} .none{fill:none}
.g0{fill:#cfe0f6;stroke:#7fa8da} .g1{fill:#fbdcbd;stroke:#dda262} .g2{fill:#cdead4;stroke:#7dbb8e}
.g3{fill:#e5d7f3;stroke:#ab8bcd}
.g4{fill:#fbd3d8;stroke:#d98c97} .g5{fill:#cdebed;stroke:#74b6bb} .g6{fill:#f3eab8;stroke:#c5b45a}
.g7{fill:#dcdfe6;stroke:#98a0b0}
.s0{stroke:#1f65b7;fill:none} .s1{stroke:#c2620c;fill:none} .s2{stroke:#2c8a4b;fill:none}
.s3{stroke:#7a49ad;fill:none}
.t0{fill:#1f65b7} .t1{fill:#a84c05} .t2{fill:#237a40} .t3{fill:#7a49ad}
.heavy{stroke-width:3} .thick{stroke-width:2.2} .dash{stroke-dasharray:4 3}
"""
DARK = """
.card{fill:#1c1e22;stroke:#34373d} .cell{fill:#25282d;stroke:#4a4e56} .pad{fill:#1f2125;stroke:#43474e}
.ink{fill:#e8e6e1} .dim{fill:#a19d94} .faint{fill:#8a8780} .line{stroke:#a19d94} .axis{stroke:#4a4e56}
.g0{fill:#1f3f68;stroke:#4d82c0} .g1{fill:#603a14;stroke:#b8782f} .g2{fill:#1d4a2c;stroke:#4c9464}
.g3{fill:#44296a;stroke:#8b63bd}
.g4{fill:#5d2730;stroke:#b3606d} .g5{fill:#1a484c;stroke:#4a9298} .g6{fill:#4f4715;stroke:#9c8d3a}
.g7{fill:#3a3f49;stroke:#737b8b}
.s0{stroke:#6aa6ec} .s1{stroke:#eb9a4b} .s2{stroke:#67c486} .s3{stroke:#b78be6}
.t0{fill:#6aa6ec} .t1{fill:#eb9a4b} .t2{fill:#67c486} .t3{fill:#b78be6}
"""
STYLE = f"{LIGHT}@media (prefers-color-scheme:dark){{{DARK}}}\n"


class Picture:
    """SVG text under construction; lengths are pixels, y points down."""

    def __init__(self, height: float, title: str, width: float = WIDTH):
        tips = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto" '
            f'markerUnits="userSpaceOnUse"><path d="M0 0.8L7 4L0 7.2" class="{style}"/></marker>'
            for name, style in (("tip", "line"), ("tip1", "s1 thick"))
        )
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img"><title>{escape(title)}</title><style>{STYLE}</style><defs>{tips}</defs>'
        ]
        self.rect(0.5, 0.5, width - 1, height - 1, "card", radius=10)

    def rect(self, x: float, y: float, width: float, height: float, style: str, radius: float = 0) -> None:
        corner = f' rx="{radius:g}"' if radius else ""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{corner} class="{style}"/>')

    def text(self, x: float, y: float, text: str, style: str = "ink", anchor: str = "middle") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>')

    def path(self, d: str, style: str = "line", tip: str = "") -> None:
        end = f' marker-end="url(#{tip})"' if tip else ""
        self.parts.append(f'<path d="{d}" class="{style}"{end}/>')

    def arrow(self, x0: float, y0: float, x1: float, y1: float, style: str = "line", tip: str = "tip") -> None:
        self.path(f"M{x0:g} {y0:g}L{x1:g} {y1:g}", style, tip)

    def cell(self, x: float, y: float, size: float, text: str, style: str = "cell", ink: str = "ink") -> None:
        self.rect(x, y, size, size, style)
        if text:
            self.text(x + size / 2, y + size / 2 + 5, text, ink)

    def grid(self, x: float, y: float, size: float, values: np.ndarray, style: str = "cell", ink: str = "ink") -> None:
        """Draw an array of integers as cells."""
        for (i, j), value in np.ndenumerate(values):
            self.cell(x + j * size, y + i * size, size, number(value), style, ink)

    def box(self, x: float, y: float, width: float, height: float, text: str, style: str, ink: str = "ink") -> None:
        """A box around (x, y) with a text in it."""
        self.rect(x - width / 2, y - height / 2, width, height, style, 6)
        self.text(x, y + 5, text, ink)

    def save(self, name: str) -> None:
        (IMAGES / f"guide_{name}.svg").write_text("\n".join([*self.parts, "</svg>\n"]), encoding="utf-8")


def number(value: float) -> str:
    return f"{int(value)}".replace("-", "−")
