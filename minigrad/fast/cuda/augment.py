"""A training batch in one launch, from the images of a data set in the GPU's memory; see kernels/augment.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import Array, array_module
from ...registry import accepting
from . import gpu
from .arrays import OLDEST, to_nchw


def accepts(images: Array, choices: Array, mean: np.ndarray, std: np.ndarray, dtype: Any, **options: Any) -> bool:
    """Whether the kernel can make batches of this dtype from these images."""
    oldest = OLDEST.get(np.dtype(dtype).name)
    known = oldest is not None and gpu.properties().compute >= oldest
    return known and images.flags.c_contiguous and images.shape[1] <= 4


@accepting(accepts)
def augmented(
    images: Array,
    choices: Array,
    mean: np.ndarray,
    std: np.ndarray,
    dtype: Any,
    *,
    padding: int,
    mode: str,
    cutout: int,
) -> Array:
    """What train/data/augment.py's `augmented` computes, and where it lies in memory: channels last."""
    xp, (_, C, H, W), N = array_module(images), images.shape, len(choices)
    y = xp.empty((N, H, W, C), dtype)
    numbers = np.zeros(1, gpu.AUGMENT)
    numbers["sizes"] = N, C, H, W, padding, mode == "reflect", cutout
    numbers["mean"][0, :C], numbers["std"][0, :C] = mean, std
    blocks = min(-(-N * H * W // 256), 32 * gpu.properties().processors)
    gpu.launch("augment.cu", f"augment_{y.dtype.name}", (blocks,), (256,), [images, choices, y, numbers])
    return to_nchw(y)
