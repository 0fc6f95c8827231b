"""The classification loss: the one number that training makes small."""

from __future__ import annotations

from typing import Any

from ..backend import Array, array_module, total
from ..tensor import Function, Tensor
from .activation import log_softmax_array
from .arguments import as_labels, as_number, check_tensors
from .basic import to


class CrossEntropy(Function):
    """loss = -1/N Σₙ Σₖ q[n, k] log p[n, k]  with p = softmax(logits) and the target distribution q.

    q is 1 at the label and 0 elsewhere, or with label smoothing s (Szegedy et al., CVPR 2016, Section 7) 1 - s + s/K
    at the label and s/K elsewhere. So the loss is the mean of -log p at the labels, mixed with the mean
    of -log p everywhere; and since Σₖ q = 1, dlogits = (p - q) / N · dy.
    """

    def forward(self, logits: Array, *, labels: Array, label_smoothing: float) -> Array:
        xp = array_module(logits)
        self.at_labels, self.smoothing = (xp.arange(len(logits)), xp.array(labels)), label_smoothing
        self.log_p = log_softmax_array(logits, axis=1)
        N, K = logits.shape
        loss = -(1 - label_smoothing) * total(self.log_p[self.at_labels], None) / N
        return loss - label_smoothing * total(self.log_p, None) / (N * K) if label_smoothing else loss

    def backward(self, dy: Array) -> Array:
        N, K = self.log_p.shape
        p_minus_q = array_module(dy).exp(self.log_p) - self.smoothing / K
        p_minus_q[self.at_labels] -= 1 - self.smoothing
        return p_minus_q * (dy / N)


def cross_entropy(logits: Tensor, labels: Any, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the batch of -log softmax(logits)[label], in nats: logits (N, K), integer labels (N,).

    `label_smoothing` s mixes the target with the uniform distribution: (1 - s) one-hot + s/K. The loss of bfloat16
    logits is computed, and returned, in float32: it needs more digits than bfloat16 has. Raises ValueError for a
    label that is no class, shapes that do not fit and an empty batch, TypeError for labels that are no integers.
    """
    check_tensors("cross_entropy", logits=logits)
    if logits.ndim != 2:
        raise ValueError(f"cross_entropy expects logits of shape (N, K), got {logits.shape}")
    if 0 in logits.shape:
        raise ValueError(f"cross_entropy got an empty batch: the logits' shape is {logits.shape}")
    label_smoothing = as_number(label_smoothing, "cross_entropy's label_smoothing")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must lie between 0 and 1, got {label_smoothing}")
    precise = to(logits, dtype="float32") if logits.dtype.name == "bfloat16" else logits
    return CrossEntropy.apply(precise, labels=as_labels(labels, logits), label_smoothing=label_smoothing)
