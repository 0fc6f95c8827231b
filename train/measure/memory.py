"""How much of a GPU's memory a training step takes, from shapes: nothing is computed.

The backward pass needs what the forward pass made, so at its start everything is there at once:

    kept          the output of every convolution (its batch norm's input) and of every batch norm (the next layer's
                  input), in the dtype of the activations; a projection's batch norm keeps nothing, its output is added
    parameters    weights and velocities in float32 and the copies that the layers compute with, 12 bytes each; averaged
                  weights, 4 bytes more; the gradients come while the arrays above go
    passing       while the backward pass goes through a layer: gradients of its output and input, the columns of a
                  convolution without a kernel of its own (64 MiB at most), cuBLAS's workspace (32 MiB)

What CUDA itself takes for its context, a few hundred MiB, comes on top, and so does what the memory pool cannot use.
"""

from __future__ import annotations

import math

from resnext import counts, create

CONSTANT = (64 + 32) << 20  # columns and cuBLAS's workspace
USABLE = 0.9  # of a card's memory: the rest is left to CUDA and to what the pool cannot use. An estimate


def step_bytes(model: str, batch: int, dtype: str, size: int | None = None, average: bool = False) -> int:
    """Bytes that a training step of a network takes at its peak, with batches of `batch` images of `size` pixels."""
    with counts.outlines():
        network = create(model)
        layers = counts.trace(network, size)
        parameters = counts.parameters(network)
    item = 2 if dtype == "bfloat16" else 4
    side = size or network.input_size  # type: ignore[attr-defined]
    kept, peak = 3 * side * side, 0
    for layer in layers:
        output = math.prod(layer.output)
        kept += 0 if layer.name.endswith("downsample.1") else output
        # Going back through this layer, all before it is still kept: its gradient, its input's, and a shortcut's.
        peak = max(peak, kept + 3 * output)
    return batch * item * peak + parameters * (16 if average else 12) + CONSTANT


def largest_batch(model: str, memory: int, dtype: str, size: int | None = None, average: bool = False) -> int:
    """The largest batch whose step fits into `memory` bytes, a multiple of 8 above 8; 0 if not one image fits."""
    low, high = 0, 1
    while high < 1 << 20 and step_bytes(model, high, dtype, size, average) <= memory:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if step_bytes(model, middle, dtype, size, average) <= memory else (low, middle)
    return low // 8 * 8 if low > 8 else low
