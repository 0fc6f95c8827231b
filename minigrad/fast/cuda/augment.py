"""A batch in one launch, from the images of a data set in the GPU's memory; see kernels/augment.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import Array, array_module
from ...registry import accepting
from . import gpu
from .arrays import OLDEST, to_nchw


def accepts(
    images: Array, choices: Array | None, mean: np.ndarray, std: np.ndarray, dtype: Any, **options: Any
) -> bool:
    """Whether the kernel can make batches of this dtype from these images."""
    oldest = OLDEST.get(np.dtype(dtype).name)
    known = oldest is not None and gpu.properties().compute >= oldest and images.dtype == np.uint8
    return known and images.ndim == 4 and images.size > 0 and images.flags.c_contiguous and images.shape[1] <= 4


def accepts_all(images: Array, mean: np.ndarray, std: np.ndarray, dtype: Any) -> bool:
    """The same, where the batch is all of the images."""
    return accepts(images, None, mean, std, dtype)


@accepting(accepts)
def augmented(
    images: Array,
    choices: Array | None,
    mean: np.ndarray,
    std: np.ndarray,
    dtype: Any,
    *,
    padding: int = 0,
    mode: str = "zero",
    cutout: int = 0,
) -> Array:
    """What train/data/augment.py's `augmented` computes, and where it lies in memory: channels last.

    Without choices they are the images as they are, normalised.
    """
    xp, (N, C, H, W) = array_module(images), images.shape
    N = N if choices is None else len(choices)
    y = xp.empty((N, H, W, C), dtype)
    numbers = np.zeros(1, gpu.AUGMENT)
    numbers["sizes"] = N, C, H, W, padding, mode == "reflect", cutout
    numbers["mean"][0, :C], numbers["std"][0, :C] = mean, std
    blocks = min(-(-N * H * W // 256), 32 * gpu.properties().processors)
    gpu.launch("augment.cu", f"augment_{y.dtype.name}", (blocks,), (256,), [images, choices, y, numbers])
    return to_nchw(y)


@accepting(accepts_all)
def normalise(images: Array, mean: np.ndarray, std: np.ndarray, dtype: Any) -> Array:
    """What train/data/augment.py's `normalise` computes, channels last."""
    return augmented(images, None, mean, std, dtype)
