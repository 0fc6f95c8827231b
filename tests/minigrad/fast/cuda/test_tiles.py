"""Which tile a tensor-core pass takes on which card (minigrad/fast/cuda/tiles.py)."""

import numpy as np
import pytest
from support.cuda_shim import kernel_names
from test_cuda_shim import CONVOLUTIONS, plan_of

from minigrad.fast.cuda.tiles import inverse


def test_the_cases_take_every_tile():
    taken = set()
    for case in CONVOLUTIONS.values():
        forward, wgrad, dgrad = plan_of(case)
        taken |= {forward.kernel(), wgrad.wgrad_kernel(), dgrad.kernel()}
    assert taken == set(kernel_names("conv3x3.cu"))


@pytest.mark.parametrize("kib", [227, 163, 99], ids=["H100", "A100", "RTX 30, 40 and 50"])
@pytest.mark.parametrize("C, d", [(8, 64), (16, 64), (4, 16), (32, 4)])
def test_every_grouped_layer_of_a_network_fits_on_every_card(C, d, kib):
    """The three stages' 3x3 layers, with and without stride, at batch 128."""
    for stage in range(3):
        for stride in {1, min(stage + 1, 2)}:
            size, channels = (32 >> stage) * stride, C * d << stage
            case = (128, channels, channels, C, (size, size), stride, kib)
            assert plan_of(case) is not None, (stage, stride)


def test_a_gpu_with_too_little_shared_memory_gets_no_plan():
    assert plan_of((2, 128, 128, 1, (7, 8), 2, 99)) is None
    assert plan_of((2, 128, 128, 1, (7, 8), 2, 101)) is not None


def test_a_multiplication_divides_the_rows_of_a_patch():
    rows, lengths = np.arange(2048, dtype=np.int32), range(1, 259)
    for length in lengths:
        assert (rows * np.int32(inverse(length)) >> 20 == rows // length).all()
