"""How conv3x3.cu cuts a convolution into launches, packs and tiles: integers only, no arrays, no CUDA.

The kernel computes products over a list of taps; forward, input gradient and weight gradient are the same struct with
other numbers. A larger tile reads less of its surroundings twice and takes more shared memory. GPUs have between 99 KiB
for a block (compute capability 8.6, 8.9 and 12.0) and 227 KiB (9.0), so each pass takes the largest tile that fits.
Everything here runs and is tested without a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

# Conv in conv3x3.cu, field by field; it is passed to the kernels by value.
FIELDS = (
    "N H W C YH YW YC OH OW OS OH0 OW0 S_log CI CO packs TI_log TH_log TW_log tiles tiles_h tiles_w taps top left "
    "PH PW PH_inverse PW_inverse"
)
CONV = np.dtype([(name, "i4") for name in FIELDS.split()] + [(name, "i4", 9) for name in ("dh", "dw", "tap")])
PARTS = np.dtype([("part", CONV, 4)])
ROW = 64  # channels in one row of shared memory: K in conv3x3.cu
RING = 3  # weight buffers: RING in conv3x3.cu
BLOCKS = ((256, 128), (128, 128), (256, 64), (128, 64), (64, 64))  # pixels and filters of a block, best first
WGRAD_PIXELS = (128, 64)  # pixels of a block of the weight gradient, best first

Shape = tuple[int, int, int, int]


class Packing(NamedTuple):
    """How groups of c input and o output channels become packs of CI and CO channels, multiples of 64."""

    packs: int
    CO: int
    CI: int
    o: int
    c: int

    @classmethod
    def of(cls, C: int, O: int, groups: int) -> Packing | None:
        """Return the packing, or None where 64 channels do not hold a whole number of groups."""
        c, o = C // groups, O // groups
        together = max(ROW // c, ROW // o, 1)
        if (c * together) % ROW or (o * together) % ROW or groups % together:
            return None
        return cls(groups // together, o * together, c * together, o, c)

    def turned(self) -> Packing:
        """The packing of the input gradient, where inputs and outputs change places."""
        return Packing(self.packs, self.CI, self.CO, self.c, self.o)

    @property
    def diagonal(self) -> int:
        """The side of the blocks on a pack's diagonal that hold all its weights: 16, 32 or 64 (everything)."""
        narrow = self.o == self.c and ROW % self.c == 0
        return max(16, self.c) if narrow and self.c <= 32 else ROW


class Launch(NamedTuple):
    """One launch: its structs, one for each part of the work, and a block's pixels and filters."""

    structs: np.ndarray
    pixels: int
    filters: int
    diagonal: int

    def kernel(self) -> str:
        """The kernel of the forward pass and of the input gradient."""
        return f"conv3x3_{self.pixels}x{self.filters}{self._ending()}"

    def wgrad_kernel(self) -> str:
        """The kernel of the weight gradient."""
        return f"conv3x3_wgrad_{self.pixels}{self._ending()}"

    def _ending(self) -> str:
        return "" if self.diagonal == ROW else f"_d{self.diagonal}"

    def parts(self) -> np.ndarray:
        """The structs as the kernel takes them: an array with one element."""
        parts = np.zeros(1, PARTS)
        parts["part"][0, : len(self.structs)] = self.structs
        return parts

    def most(self, field: str) -> int:
        """The largest value of a field among the structs."""
        return int(self.structs[field].max())

    def patch_rows(self) -> int:
        """The rows of the largest patch in shared memory."""
        return int((self.structs["PH"] * self.structs["PW"] << self.structs["TI_log"]).max())

    def grid(self) -> tuple[int, int]:
        """Blocks for the part with the most tiles; those of another that has fewer return at once."""
        return self.most("tiles") * self.most("packs") * (self.most("CO") // self.filters), len(self.structs)

    def block(self) -> tuple[int]:
        """A warp for each 64 pixels by 64 filters."""
        return (self.pixels // 64 * self.filters // 64 * 32,)

    def shared_bytes(self) -> int:
        """Shared memory of a block: a patch (two where channels come in several chunks) and the ring of weights."""
        patches = 1 if self.most("CI") == ROW else 2
        return 2 * max((patches * self.patch_rows() + RING * self.filters) * ROW, self.pixels * self.filters)

    def wgrad_bytes(self) -> int:
        """Shared memory of a block of the weight gradient: two stages of a patch and a tile of dy."""
        return 2 * 2 * (self.patch_rows() + self.pixels) * ROW


def best_tile(N: int, OH: int, OW: int, stride: int, reach: tuple[int, int], pixels: int) -> tuple[int, int, int]:
    """Return log2 of the (images, rows, columns) of the tile of `pixels` pixels that covers N x OH x OW best.

    Fewest tiles first, since a tile costs the same whether it is full or not, then the smallest patch. At least eight
    columns where the image has them: ldmatrix reads eight neighbours at a time.
    """
    bits = pixels.bit_length() - 1
    narrowest = min(3, (OW - 1).bit_length())

    def cost(logs: tuple[int, int, int]) -> tuple[int, int]:
        ti, th, tw = (1 << n for n in logs)
        tiles = -(-N // ti) * -(-OH // th) * -(-OW // tw)
        return tiles, ti * ((th - 1) * stride + reach[0]) * ((tw - 1) * stride + reach[1])

    choices = [(bits - th - tw, th, tw) for th, tw in itertools.product(range(bits + 1), repeat=2) if th + tw <= bits]
    return min((logs for logs in choices if logs[2] >= narrowest), key=cost)


def inverse(n: int) -> int:
    """Return 2^20 / n, rounded up: with it i / n is i * inverse >> 20, in 32 bits and exact for i < 2048 and n <= 258.

    A patch has no more rows, since they must fit into shared memory, and no line or column longer than 2 * 127 + 3. The
    GPU has no instruction that divides integers.
    """
    return -(-(1 << 20) // n)


def output_size(H: int, W: int, stride: int) -> tuple[int, int]:
    """Output rows and columns of a 3x3 window with padding 1."""
    return (H - 1) // stride + 1, (W - 1) // stride + 1


def blocks(packing: Packing, stride: int = 1) -> Iterator[tuple[int, int]]:
    """The blocks that a pass may use, best first: their filters divide a pack's.

    A stride of 2 quadruples the patch under a tile: half as many pixels then, to leave room for two patches.
    """
    for pixels, filters in BLOCKS:
        if packing.CO % filters == 0 and pixels <= 256 // stride:
            yield pixels, filters


class Plan(NamedTuple):
    """The launches of a layer's three passes."""

    forward: Launch
    wgrad: Launch
    dgrad: Launch


@cache  # a layer asks for it in every step
def plan(shape: Shape, O: int, stride: int, packing: Packing, shared: int) -> Plan | None:
    """How to compute a layer of O filters, padding 1, on x (N, H, W, C), where blocks have `shared` bytes to share.

    Each launch takes the best block that fits; None where nothing does.
    """
    try:
        forward = next(
            launch
            for block in blocks(packing, stride)
            if (launch := around_every_pixel(shape, O, stride, packing, *block)).shared_bytes() <= shared
        )
        wgrad = next(
            launch
            for pixels in WGRAD_PIXELS
            if (launch := around_every_pixel(shape, O, stride, packing, pixels, ROW)).wgrad_bytes() <= shared
        )
        dgrad = next(
            launch
            for block in blocks(packing.turned())
            if (launch := input_gradient(shape, O, stride, packing, *block)).shared_bytes() <= shared
        )
    except StopIteration:
        return None
    return Plan(forward, wgrad, dgrad)


def around_every_pixel(shape: Shape, O: int, stride: int, packing: Packing, pixels: int, filters: int) -> Launch:
    """The forward convolution (padding 1) of x (N, H, W, C): nine taps around every `stride`-th pixel."""
    _, H, W, _ = shape
    OH, OW = output_size(H, W, stride)
    taps = [(kh - 1, kw - 1, 3 * kh + kw) for kh in range(3) for kw in range(3)]
    struct = _struct(shape, (OH, OW, O), (OH, OW, 1, 0, 0), stride, packing, taps, pixels)
    return Launch(struct, pixels, filters, packing.diagonal)


def input_gradient(shape: Shape, O: int, stride: int, packing: Packing, pixels: int, filters: int) -> Launch:
    """The input gradient dx (N, H, W, C) of that convolution from dy: a part for each parity of dx's rows and columns.

    Output row oh reads row h = S oh - 1 + kh of x, so row h of dx hears of every oh = (h + 1 - kh) / S that is whole.
    With h = S i + a that is oh = i + (a + 1 - kh) / S: for one a the same offsets in every row, that is, a convolution
    of dy with some of the taps. The weights are packed turned by 180 degrees, tap kh at place 2 - kh.
    """
    N, H, W, C = shape
    OH, OW = output_size(H, W, stride)
    turned, parts = packing.turned(), []
    for a, b in itertools.product(range(stride), repeat=2):
        taps = [
            ((a + 1 - kh) // stride, (b + 1 - kw) // stride, 3 * (2 - kh) + 2 - kw)
            for kh in range(3)
            for kw in range(3)
            if (a + 1 - kh) % stride == 0 and (b + 1 - kw) % stride == 0
        ]
        rows, columns = -(-(H - a) // stride), -(-(W - b) // stride)
        if rows > 0 and columns > 0:
            grid = rows, columns, stride, a, b
            parts.append(_struct((N, OH, OW, O), (H, W, C), grid, 1, turned, taps, pixels))
    return Launch(np.concatenate(parts), pixels, filters, turned.diagonal)


def _struct(
    x: Shape,
    y: tuple[int, int, int],
    grid: tuple[int, int, int, int, int],
    stride: int,
    packing: Packing,
    taps: list[tuple[int, int, int]],
    pixels: int,
) -> np.ndarray:
    """The struct, in an array: x (N, H, W, C), y (H, W, C), grid (OH, OW, OS, OH0, OW0), taps (dh, dw, place in w)."""
    N, (OH, OW, *_) = x[0], grid
    top, left = min(t[0] for t in taps), min(t[1] for t in taps)
    reach = max(t[0] for t in taps) - top + 1, max(t[1] for t in taps) - left + 1
    logs = best_tile(N, OH, OW, stride, reach, pixels)
    ti, th, tw = (1 << n for n in logs)
    PH, PW = (th - 1) * stride + reach[0], (tw - 1) * stride + reach[1]
    tiles_h, tiles_w = -(-OH // th), -(-OW // tw)
    offsets = np.zeros((3, 9), np.int32)
    offsets[:, : len(taps)] = np.transpose([(dh - top, dw - left, tap) for dh, dw, tap in taps])
    struct = np.zeros(1, CONV)
    struct[0] = (
        *x, *y, *grid, stride.bit_length() - 1, packing.CI, packing.CO, packing.packs, *logs,
        -(-N // ti) * tiles_h * tiles_w, tiles_h, tiles_w, len(taps), top, left, PH, PW, inverse(PH), inverse(PW),
        *offsets,
    )  # fmt: skip
    return struct
