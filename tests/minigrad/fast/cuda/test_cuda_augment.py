"""The kernel that makes a training batch, kernels/augment.cu, held to the formulas of train/data/augment.py."""

import ml_dtypes
import numpy as np
import pytest
from support import host_gpu, tiny
from support.cuda_shim import compiler

from minigrad import registry
from minigrad.fast.cuda import augment as kernel
from train.data.augment import augmented, draw, normalise

needs_compiler = pytest.mark.skipif(compiler() is None, reason="the host shim needs a C++ compiler (g++ or c++)")
MEAN, STD = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("size", "padding", "mode", "cutout"),
    [((32, 32), 4, "zero", 0), ((32, 32), 4, "reflect", 12), ((5, 7), 4, "reflect", 3), ((6, 3), 0, "zero", 3)],
)
def test_the_kernel_makes_the_very_numbers_of_the_formulas(monkeypatch, dtype, size, padding, mode, cutout):
    launches = host_gpu.install(monkeypatch)
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (20, 3, *size), dtype=np.uint8)
    choices = draw(rng.permutation(20)[:9], size, rng, padding, cutout=cutout)
    arguments = images, choices, MEAN, STD, np.dtype(dtype)
    options = {"padding": padding, "mode": mode, "cutout": cutout}
    assert kernel.accepts(*arguments, **options)
    y = kernel.augmented(*arguments, **options)
    assert launches == [f"augment_{np.dtype(dtype).name}"]
    assert y.dtype == dtype
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(y, augmented(*arguments, **options))


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_images_to_evaluate_are_normalised_by_the_same_kernel(monkeypatch, dtype):
    launches = host_gpu.install(monkeypatch)
    images = np.random.default_rng(8).integers(0, 256, (20, 3, 6, 5), dtype=np.uint8)
    arguments = images[4:11], MEAN, STD, np.dtype(dtype)
    assert kernel.normalise.accepts(*arguments)
    y = kernel.normalise(*arguments)
    assert launches == [f"augment_{np.dtype(dtype).name}"]
    np.testing.assert_array_equal(y, normalise(*arguments))


def test_the_kernel_leaves_to_the_formulas_what_it_does_not_know(monkeypatch):
    host_gpu.install(monkeypatch)
    images, choices = np.zeros((4, 3, 8, 8), np.uint8), np.zeros((2, 6), np.int32)
    assert not kernel.accepts(images, choices, MEAN, STD, np.dtype(np.float64))
    assert not kernel.accepts(images[:, :, ::2], choices, MEAN, STD, np.dtype(np.float32))
    assert not kernel.normalise.accepts(images[:, :, ::2], MEAN, STD, np.dtype(np.float32))
    assert not kernel.normalise.accepts(images[:0], MEAN, STD, np.dtype(np.float32))
    assert not kernel.normalise.accepts(images.astype(int), MEAN, STD, np.dtype(np.float32))
    five = np.zeros(5)
    assert not kernel.accepts(np.zeros((4, 5, 8, 8), np.uint8), choices, five, five, np.dtype(np.float32))


def test_a_kernel_that_computes_wrong_numbers_is_left_out(tmp_path, monkeypatch, capfd):
    wrong = lambda *arguments, **options: augmented(*arguments, **options) + 0.1  # noqa: E731
    kinds = dict(registry._stand_ins)
    monkeypatch.setattr(registry, "_stand_ins", kinds)
    assert tiny.train(tmp_path / "formulas", "--epochs", "1") == 0
    registry.register(augmented, "cpu", wrong)
    assert tiny.train(tmp_path / "kernel", "--epochs", "1") == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "the kernel that makes batches of images computes wrong numbers" in said
    assert tiny.log(tmp_path / "kernel")[0]["train_loss"] == tiny.log(tmp_path / "formulas")[0]["train_loss"]
    monkeypatch.setenv("MINIGRAD_CHECK", "0")
    registry.register(augmented, "cpu", wrong)
    assert tiny.train(tmp_path / "unchecked", "--epochs", "1") == 0
    assert "wrong numbers" not in " ".join(capfd.readouterr().err.split())
