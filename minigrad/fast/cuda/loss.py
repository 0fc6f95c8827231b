"""Cross-entropy on a GPU; see kernels/loss.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...backend import Array, array_module
from ...ops import loss
from . import gpu
from .arrays import f32, i32, supported


class CrossEntropy(loss.CrossEntropy):
    """loss.CrossEntropy and its gradient in one launch; see loss.cu. Another scales it, unless the loss is the end."""

    @classmethod
    def accepts(cls, *arrays: Any, **options: Any) -> bool:
        (logits,) = arrays
        return logits.dtype == np.float32 and supported(logits)

    def forward(self, logits: Array, *, labels: Array, label_smoothing: float) -> Array:
        xp, (N, K) = array_module(logits), logits.shape
        logits, labels = xp.ascontiguousarray(logits), xp.ascontiguousarray(labels.astype(np.int64, copy=False))
        self.gradient = xp.empty_like(logits)
        mean, self.first_gradient = xp.empty((), np.float32), xp.empty((), np.float32)
        arguments = [logits, labels, mean, self.first_gradient, self.gradient, i32(N), i32(K), f32(label_smoothing)]
        gpu.launch("loss.cu", "cross_entropy", (1,), (1024,), arguments)
        return mean

    def backward(self, dy: Array) -> Array:
        if dy is self.first_gradient:  # 1, with which `backward()` begins
            return self.gradient
        xp = array_module(self.gradient)
        dx, size = xp.empty_like(self.gradient), self.gradient.size
        arguments = [self.gradient, xp.asarray(dy, np.float32), dx, i32(size)]
        gpu.launch("loss.cu", "cross_entropy_backward", (-(-size // 256),), (256,), arguments)
        return dx
