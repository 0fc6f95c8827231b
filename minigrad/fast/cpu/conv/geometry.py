"""How a convolution's work is cut up on a CPU: its sizes and its parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from ....ops.conv import Pair, output_size
from ..threads import Span, parts_for, spans, steps

ROWS = 1024  # rows of a product: enough for BLAS, few enough for the cache
NUMBERS = 1 << 16  # of an image at a time, or more: with few channels more rows, for each call of NumPy costs time too
MERGED = 8  # narrow groups are merged up to so many channels

Cell = tuple[int, Span, Span]  # a part of the work: its index, its packs, its images


@dataclass(frozen=True)
class Geometry:
    """The sizes of one convolution, in `packs` of merged groups of CI channels and CO filters each."""

    N: int
    C: int
    H: int
    W: int
    O: int
    KH: int
    KW: int
    OH: int
    OW: int
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    merge: int  # neighbouring groups in one product

    @property
    def packs(self) -> int:
        return self.groups // self.merge

    @property
    def CI(self) -> int:
        return self.C // self.packs

    @property
    def CO(self) -> int:
        return self.O // self.packs

    @property
    def plain3x3(self) -> bool:
        return (self.KH, self.KW, self.stride, self.padding, self.dilation) == (3, 3, (1, 1), (1, 1), (1, 1))

    @property
    def one_tap(self) -> bool:
        """Whether a 1x1 convolution of groups that are not merged: the image itself is the matrix."""
        return (self.KH, self.KW, self.merge) == (1, 1, 1)

    @property
    def operations(self) -> int:
        return self.N * self.OH * self.OW * self.O * self.CI * self.KH * self.KW

    def apart(self) -> Geometry:
        """The same convolution with each group alone."""
        return replace(self, merge=1)

    def grid(self, least: int = 1) -> list[Cell]:
        """The parts of the work, one per thread, of `least` packs or more; those of the same packs are neighbours."""
        parts = parts_for(self.operations)
        by_packs = gcd(self.packs // least, parts)
        cells = [(g, n) for g in spans(self.packs, by_packs) for n in spans(self.N, parts // by_packs)]
        return [(i, g, n) for i, (g, n) in enumerate(cells)]

    @staticmethod
    def rows(images: Span, band: Span, H: int, W: int) -> slice:
        """The rows, one per pixel, of a band of image rows; several images at once only with all of their rows."""
        return slice((images[0] * H + band[0]) * W, ((images[1] - 1) * H + band[1]) * W)

    def images(self, span: Span) -> list[Span]:
        """Walk over a span of images so many at a time that a product has about ROWS rows, or more of few channels."""
        rows = max(ROWS, NUMBERS // max(self.C, self.O))
        return list(steps(span, max(1, rows // (self.OH * self.OW))))

    def most(self, span: Span) -> int:
        """The most images that `images` takes at a time."""
        return max(stop - start for start, stop in self.images(span))


@lru_cache(maxsize=1024)
def geometry(x: tuple, w: tuple, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Geometry:
    (N, C, H, W), (O, _, KH, KW) = x, w
    narrow = max(C, O) // groups
    merge = max(m for m in range(1, groups + 1) if groups % m == 0 and (m == 1 or narrow * m <= MERGED))
    out = output_size((H, W), (KH, KW), stride, padding, dilation)
    return Geometry(N, C, H, W, O, KH, KW, *out, stride, padding, dilation, groups, merge)
