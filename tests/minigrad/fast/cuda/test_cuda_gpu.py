"""The CUDA engine room against the book where CuPy finds a GPU: the same cases, and the layers of the paper."""

import os

import numpy as np
import pytest
from support.cuda_cases import (
    BF16,
    CONVOLUTIONS,
    F32,
    TOLERANCE,
    batch_norm_case,
    chosen,
    close,
    convolution_case,
    run,
)

import minigrad
from minigrad import functional as F
from minigrad import optim
from minigrad.fast.cuda import add, augment, sgd
from minigrad.fast.cuda import gpu as device
from minigrad.fast.cuda import loss as fast_loss
from minigrad.fast.cuda import norm as fast_norm
from minigrad.fast.cuda.arrays import to_nchw, to_nhwc
from minigrad.fast.cuda.graph import EAGER_CALLS, CudaGraph
from minigrad.ops import conv, norm
from minigrad.ops.loss import CrossEntropy
from resnext.model import cifar
from train.data.augment import augmented, draw, normalise


@pytest.fixture(scope="module")
def cp():
    """CuPy, where there is a GPU that the kernels run on."""
    try:
        cupy = minigrad.backend.cupy()
    except minigrad.backend.DeviceError as error:
        pytest.skip(str(error))
    if device.properties().compute < 80:
        pytest.skip("the kernels need compute capability 8.0")
    return cupy


def to_gpu(cp, arrays):
    return tuple(None if a is None else cp.asarray(a) for a in arrays)


def to_cpu(array):
    return minigrad.backend.to_numpy(array)


REAL = {  # the paper's layers, few images: dtype, x shape, O, kernel, stride, padding, dilation, groups
    "8x64d, stage 1": (BF16, (4, 512, 32, 32), 512, (3, 3), (1, 1), (1, 1), (1, 1), 8),
    "8x64d, stage 2, stride 2": (BF16, (4, 1024, 32, 32), 1024, (3, 3), (2, 2), (1, 1), (1, 1), 8),
    "8x64d, stage 3": (BF16, (16, 2048, 8, 8), 2048, (3, 3), (1, 1), (1, 1), (1, 1), 8),
    "4x16d, stage 1": (BF16, (8, 64, 32, 32), 64, (3, 3), (1, 1), (1, 1), (1, 1), 4),
    "32x4d, ImageNet": (BF16, (2, 128, 56, 56), 128, (3, 3), (1, 1), (1, 1), (1, 1), 32),
    "1x1, stage 1": (BF16, (4, 256, 32, 32), 512, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "shortcut, stride 2": (BF16, (4, 256, 32, 32), 512, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "first layer": (BF16, (16, 3, 32, 32), 64, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "float32": (F32, (4, 64, 16, 16), 64, (3, 3), (1, 1), (1, 1), (1, 1), 4),
}


@pytest.mark.cuda
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in {**CONVOLUTIONS, **REAL}.items()])
def test_convolution_on_the_gpu(cp, case):
    dtype, arrays, dy, options = convolution_case(case)
    there = to_gpu(cp, arrays)
    assert chosen(there, options) is not conv.Conv2d
    book = [a.astype(np.float64) for a in there]
    y_book, gradients_book = run(conv.Conv2d, book, cp.asarray(dy).astype(np.float64), **options)
    y, gradients = run(chosen(there, options), there, cp.asarray(dy), **options)
    for mine, expected in zip((y, *gradients), (y_book, *gradients_book), strict=True):
        close(to_cpu(mine), to_cpu(expected), dtype)
    again, gradients_again = run(chosen(there, options), there, cp.asarray(dy), **options)
    for one, other in zip((y, *gradients), (again, *gradients_again), strict=True):
        assert to_cpu(one).tobytes() == to_cpu(other).tobytes(), "the same bits every time"


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(3, 8, 5, 7), (128, 64, 32, 32), (64, 1024, 8, 8)],
    ids=str,
)
@pytest.mark.parametrize("with_shortcut", [False, True], ids=["plain", "shortcut"])
def test_batch_norm_on_the_gpu(cp, dtype, shape, with_shortcut):
    arrays, dy, running = batch_norm_case(dtype, shape, with_shortcut)
    there, upstream = to_gpu(cp, arrays), cp.asarray(dy)
    options = {"training": True, "momentum": 0.1, "eps": 1e-5}
    mine, book = (tuple(cp.asarray(r).astype(t) for r in running) for t in (np.float32, np.float64))
    state = {"running_mean": mine[0], "running_var": mine[1], **options}
    book_state = {"running_mean": book[0], "running_var": book[1], **options}
    wide = [None if a is None else a.astype(np.float64) for a in there]
    y_book, gradients_book = run(norm.BatchNormReLU, wide, upstream.astype(np.float64), **book_state)
    y, gradients = run(fast_norm.BatchNormReLU, there, upstream, **state)
    close(to_cpu(y), to_cpu(y_book), dtype)
    # A value within rounding of the kink may fall on the other side of it, so gradients are compared in the mean.
    for a, b in zip(gradients, gradients_book, strict=True):
        difference = float(cp.abs(a.astype(np.float64) - b).mean() / cp.abs(b).mean())
        assert difference <= TOLERANCE[dtype]
    for a, b in zip(mine, book, strict=True):
        close(to_cpu(a), to_cpu(b), F32)


@pytest.mark.cuda
def test_gradients_that_meet_on_the_gpu(cp):
    rng = np.random.default_rng(18)
    a, b = (rng.standard_normal((8, 40, 30, 256)).astype(BF16) for _ in range(2))  # (N, H, W, C)
    total = add.add_gradients(*(to_nchw(cp.asarray(x)) for x in (a, b)))
    assert total.transpose(0, 2, 3, 1).flags.c_contiguous
    assert (to_cpu(to_nhwc(total)) == a + b).all()


@pytest.mark.cuda
def test_sgd_on_the_gpu(cp):
    rng = np.random.default_rng(13)
    sizes = [int(n) for n in rng.integers(1, 5000, 100)]  # more parameters than one launch takes
    host = [tuple(rng.standard_normal(n).astype(F32) for _ in range(3)) for n in sizes]
    there = [to_gpu(cp, arrays) for arrays in host]
    sgd.sgd_step([(*arrays, 0.9, 5e-4, True) for arrays in there], 0.1)
    for (w, dw, velocity), (mine, _, mine_velocity) in zip(host, there, strict=True):
        optim.sgd_update(w, dw, velocity, 0.1, 0.9, 5e-4, True)
        np.testing.assert_allclose(to_cpu(mine), w, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(to_cpu(mine_velocity), velocity, rtol=1e-5, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("outputs", [10, 300])  # few, for the kernel, and many, for products
def test_a_linear_layer_on_the_gpu(cp, dtype, outputs):
    rng = np.random.default_rng(21)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((33, 320), (outputs, 320), (outputs,))]
    dy, results = rng.standard_normal((33, outputs)).astype(dtype), []
    for convert in (lambda a: a.astype(np.float64), cp.asarray):
        tensors = [minigrad.Tensor(convert(a), requires_grad=True) for a in arrays]
        y = F.linear(*tensors)
        y.backward(convert(dy))
        results.append([y.data, *(t.grad for t in tensors)])
    for book, mine in zip(*results, strict=True):
        close(to_cpu(mine), book, dtype)


@pytest.mark.cuda
def test_cross_entropy_on_the_gpu(cp):
    rng = np.random.default_rng(14)
    logits, labels = rng.standard_normal((130, 100)).astype(F32), rng.integers(0, 100, 130)
    node, book = fast_loss.CrossEntropy(), CrossEntropy()
    y = node.forward(cp.asarray(logits), labels=cp.asarray(labels), label_smoothing=0.1)
    close(to_cpu(y), book.forward(logits.astype(np.float64), labels=labels, label_smoothing=0.1), F32)
    close(to_cpu(node.backward(cp.float32(1.0))), book.backward(np.float64(1.0)), F32)


def training_step(cp, dtype):
    """A small network, a step as CudaGraph wants it, and three batches on the device."""
    minigrad.manual_seed(0)
    rng = np.random.default_rng(15)
    small = os.environ.get("MINIGRAD_VIRTUAL_GPU") == "1"
    network = cifar(11, cardinality=2 if small else 8, width=8 if small else 64).to("cuda")
    optimizer = optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = [
        (cp.asarray(rng.standard_normal((16, 3, 32, 32)).astype(dtype)), cp.asarray(rng.integers(0, 10, 16)))
        for _ in range(3)
    ]

    def step(batch, labels, lr):
        optimizer.lr = lr
        optimizer.zero_grad()
        logits = network(minigrad.Tensor._of(batch)).to(dtype="float32")
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return loss.data, logits.data

    return network, step, batches


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_captured_step_is_the_eager_step_on_the_gpu(cp, dtype):
    """Ten steps with a falling learning rate: eager and captured end at the same bits, and both learn."""
    results = []
    for wrap in (lambda step: step, CudaGraph):
        network, step, batches = training_step(cp, dtype)
        call = wrap(step)
        losses = [float(call(*batches[i % 3], cp.full(1, 0.02 * (1 - i / 10), np.float32))[0]) for i in range(10)]
        assert all(np.isfinite(losses)) and losses[-1] < losses[0]
        results.append((losses, {name: p.numpy().tobytes() for name, p in network.named_parameters()}))
    assert results[0] == results[1]


@pytest.mark.cuda
def test_a_graph_takes_a_smaller_last_batch_on_the_gpu(cp):
    graph = CudaGraph(lambda x: (x + 1,))
    for value in range(9):
        size = 3 if value in (5, 6) else 4
        (y,) = graph(cp.full(size, value, np.float32))
        assert y.shape == (size,) and (to_cpu(y) == value + 1).all()


@pytest.mark.cuda
def test_max_pooling_can_be_captured_on_the_gpu(cp):
    """The book's formula, which no kernel replaces: it must not look at a value, as a mask in an index does."""

    def step(x):
        leaf = minigrad.Tensor._of(x)
        leaf.requires_grad = True
        y = F.max_pool2d(leaf, 3, 2, 1)
        y.sum().backward()
        return y.data, leaf.grad

    x = cp.asarray(np.random.default_rng(17).standard_normal((2, 3, 6, 7)).astype(BF16))
    graph = CudaGraph(step)
    for _ in range(EAGER_CALLS + 2):
        results = graph(x)
    assert graph.graph is not None
    for captured, eager in zip(results, step(x), strict=True):
        assert captured.dtype == BF16 and to_cpu(captured).tobytes() == to_cpu(eager).tobytes()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_pooling_on_the_gpu(cp, dtype):
    """Through the tape, as the networks for ImageNet begin and end."""
    rng = np.random.default_rng(19)
    x, dy = (rng.standard_normal(shape).astype(dtype) for shape in ((4, 64, 30, 28), (4, 64)))
    results = []
    for convert in (lambda a: a.astype(np.float64), cp.asarray):
        t = minigrad.Tensor(convert(x), requires_grad=True)
        y = F.global_avg_pool2d(F.max_pool2d(t, 3, 2, 1), None if t.device == "cpu" else "float32")
        y.backward(convert(dy))
        results.append([y.data, t.grad])
    for book, mine in zip(*results, strict=True):
        close(to_cpu(mine), book, dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(("mode", "cutout"), [("zero", 0), ("reflect", 12)])
def test_a_training_batch_on_the_gpu(cp, dtype, mode, cutout):
    """The kernel's, which is float32 before it is rounded, and the formulas' on the CPU."""
    rng = np.random.default_rng(20)
    images, mean, std = rng.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8), rng.uniform(90, 140, 3), np.full(3, 63.0)
    choices = draw(rng.permutation(40)[:17], (32, 32), rng, cutout=cutout)
    options = {"padding": 4, "mode": mode, "cutout": cutout}
    batch = augment.augmented(*to_gpu(cp, (images, choices)), mean, std, np.dtype(dtype), **options)
    close(to_cpu(batch), augmented(images, choices, mean, std, np.float32, **options), dtype)
    whole = augment.normalise(cp.asarray(images), mean, std, np.dtype(dtype))
    close(to_cpu(whole), normalise(images, mean, std), dtype)
