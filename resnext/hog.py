"""Histograms of oriented gradients and a linear classifier: features made by hand (Dalal & Triggs, CVPR 2005).

The road to ResNeXt starts here: a person decides what to measure, edges and their directions in small cells, and only
the last layer learns. Everything after this file learns its features.
"""

from __future__ import annotations

import math

from minigrad import Tensor
from minigrad.backend import Array, array_module
from minigrad.nn import Linear, Module

CELL = 4  # pixels; a histogram each
BINS = 9  # directions from 0 to 180 degrees: an edge has no sign
BLOCK = 2  # cells on a side that are normalised together


def gradients(x: Array) -> tuple[Array, Array]:
    """The image's slope at every pixel: its length and direction in [0, π), both (N, H, W).

    Centred differences, gx = (x[i, j+1] - x[i, j-1]) / 2 and gy likewise, one-sided at the border; of the three colour
    channels the one with the longest slope counts.
    """
    xp = array_module(x)
    gy, gx = xp.gradient(x, axis=(2, 3))  # (N, C, H, W)
    square = gx * gx + gy * gy
    strongest = square.argmax(axis=1)[:, None]  # (N, 1, H, W)
    gx, gy, square = (xp.take_along_axis(a, strongest, axis=1)[:, 0] for a in (gx, gy, square))
    return xp.sqrt(square), xp.arctan2(gy, gx) % math.pi


def histograms(length: Array, angle: Array) -> Array:
    """Sum the slopes of every cell by direction: (N, H, W) -> (N, H/CELL, W/CELL, BINS).

    A slope counts by its length and is shared between the two nearest bins: at bin b with weight max(0, 1 - |b - t|),
    t its direction in bins; bin BINS is bin 0 again.
    """
    xp = array_module(length)
    N, H, W = length.shape
    t = angle * (BINS / math.pi)
    cells = xp.empty((N, H // CELL, W // CELL, BINS), length.dtype)
    for b in range(BINS):
        distance = xp.abs(t - b)
        distance = xp.minimum(distance, BINS - distance)
        votes = length * xp.maximum(1 - distance, 0)
        cells[..., b] = votes.reshape(N, H // CELL, CELL, W // CELL, CELL).sum(axis=(2, 4))
    return cells


def hog(x: Array) -> Array:
    """The descriptor of images x (N, C, H, W), sides multiples of CELL: (N, (H/CELL - 1) (W/CELL - 1) 4 BINS).

    Neighbouring cells form overlapping blocks of BLOCK x BLOCK; each block is divided by its length, clipped at 0.2 and
    divided by its length again, which takes out the lighting and keeps one strong edge from drowning the others.
    """
    xp = array_module(x)
    cells = histograms(*gradients(x))
    rows, cols = cells.shape[1] - BLOCK + 1, cells.shape[2] - BLOCK + 1
    corners = [cells[:, i : i + rows, j : j + cols] for i in range(BLOCK) for j in range(BLOCK)]
    blocks = xp.concatenate(corners, axis=-1)  # (N, rows, cols, BLOCK² BINS)
    for limit in (0.2, 1.0):
        norm = xp.sqrt((blocks * blocks).sum(axis=-1, keepdims=True) + 1e-6)
        blocks = xp.minimum(blocks / norm, limit)
    return blocks.reshape(len(x), -1)


class HOGLinear(Module):
    """A linear layer on the images' HOG descriptors: (N, 3, 32, 32) -> logits (N, num_classes).

    Raises ValueError for images of another size.
    """

    input_size = 32

    def __init__(self, num_classes: int = 10):
        self.features = (self.input_size // CELL - BLOCK + 1) ** 2 * BLOCK**2 * BINS
        self.fc = Linear(self.features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2:] != (self.input_size,) * 2:
            raise ValueError(f"hog_linear expects images of shape (N, 3, 32, 32), got {x.shape}")
        # No operation of the tape: the features have nothing to learn, and images need no gradient.
        images = x.data if x.dtype.itemsize > 2 else x.data.astype("float32")
        return self.fc(Tensor._of(hog(images)))
