"""Compare the logits of ImageNet networks with PyTorch's: same weights, same images, torchvision's architecture.

    python benchmarks/logits.py resnet50 resnext50_32x4d

draws weights, running statistics and two images of 224x224 and prints, for each network, the largest difference of any
of the 2,000 logits as a part of their standard deviation: of minigrad from PyTorch, and of both from PyTorch in
float64. `MINIGRAD_FAST=0` computes minigrad's side by the formulas. PyTorch is needed (`pip install torch`), on a CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch

import minigrad
import resnext
from minigrad import Tensor, no_grad
from train.measure.torch_model import ResNeXt


def main(names: Sequence[str]) -> None:
    """Compare the networks of these names."""
    torch.set_num_threads(1)  # several wait for each other in a loop where the machine is busy
    print("network            minigrad - PyTorch   minigrad - float64   PyTorch - float64")
    for name in names:
        minigrad.manual_seed(0)
        rng = np.random.default_rng(0)
        network = resnext.create(name)
        if not isinstance(network, resnext.ResNeXt):
            sys.exit(f"{name} is no ResNet or ResNeXt with bottlenecks")
        state = network.state_dict()
        for key, values in state.items():
            if key.endswith("running_mean"):
                values[...] = 0.1 * rng.standard_normal(values.shape)
            elif key.endswith("running_var"):
                values[...] = rng.uniform(0.5, 1.5, values.shape)
        network.load_state_dict(state)
        network.eval()
        twin = ResNeXt(network).eval()
        images = rng.standard_normal((2, 3, network.input_size, network.input_size), np.float32)
        with no_grad(), torch.no_grad():
            mine = network(Tensor(images)).numpy()
            theirs = twin(torch.from_numpy(images)).numpy()
            exact = twin.double()(torch.from_numpy(images).double()).numpy()
        pairs = ((mine, theirs), (mine, exact), (theirs, exact))
        parts = [np.abs(a - b).max() / exact.std() for a, b in pairs]
        print(f"{name:18} {parts[0]:18.1e} {parts[1]:20.1e} {parts[2]:19.1e}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
