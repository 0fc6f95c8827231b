"""The CUDA engine room against the book on the CPU: its own Python on NumPy arrays, its kernels in the host shim."""

import numpy as np
import pytest
from support import host_gpu
from support.cuda_cases import (
    BF16,
    CONVOLUTIONS,
    F32,
    batch_norm_case,
    chosen,
    close,
    convolution_case,
    exact,
    run,
)
from support.cuda_shim import compiler
from support.engine import only
from support.strategies import normal

import minigrad
from minigrad import Tensor, optim, registry
from minigrad import functional as F
from minigrad.fast import cuda
from minigrad.fast.cuda import conv as fast_conv
from minigrad.fast.cuda import gpu as device
from minigrad.fast.cuda import linear, sgd
from minigrad.fast.cuda import loss as fast_loss
from minigrad.fast.cuda import norm as fast_norm
from minigrad.fast.cuda.arrays import to_nchw
from minigrad.ops import basic, conv, matmul, norm
from minigrad.ops.loss import CrossEntropy
from minigrad.tensor import add_gradients
from resnext.model import cifar

needs_compiler = pytest.mark.skipif(compiler() is None, reason="the host shim needs a C++ compiler (g++ or c++)")


@needs_compiler
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_is_the_books(gpu, case, monkeypatch):
    monkeypatch.setattr(fast_conv, "COLUMN_BYTES", 8000)  # columns in several chunks
    dtype, arrays, dy, options = convolution_case(case)
    assert chosen(arrays, options) is not conv.Conv2d
    y_book, gradients_book = run(conv.Conv2d, exact(arrays), dy.astype(np.float64), **options)
    y, gradients = run(chosen(arrays, options), arrays, dy, **options)
    assert y.dtype == dtype and y.transpose(0, 2, 3, 1).flags.c_contiguous
    close(y, y_book, dtype)
    for mine, book, array in zip(gradients, gradients_book, arrays, strict=True):
        assert mine.dtype == array.dtype
        close(mine, book, dtype)


@needs_compiler
@pytest.mark.parametrize(("stored", "dtype"), [(F32, F32), (F32, BF16), (BF16, BF16)], ids=str)
def test_filters_are_laid_in_rows(gpu, stored, dtype):
    """A filter's taps after one another, each with its channels, then zeros; rounded where the images are bfloat16."""
    w = np.random.default_rng(13).standard_normal((6, 5, 2, 3)).astype(stored)
    rows = np.full((6, 32), np.nan, dtype)
    sizes = [np.int32(n) for n in (6, 5, 6, 32)]
    name = f"filters_{stored.name}_{dtype.name}"
    device.launch("filters.cu", name, (1,), (256,), [w, rows, *sizes])
    expected = w.transpose(0, 2, 3, 1).reshape(6, 30).astype(dtype)
    assert (rows[:, :30] == expected).all() and not rows[:, 30:].any()


@needs_compiler
@pytest.mark.parametrize("name", [name for name, case in CONVOLUTIONS.items() if case[0] == BF16])
def test_float32_weights_meet_bfloat16_images_without_a_cast(gpu, name):
    """They are rounded where they are laid out, and their gradient keeps its digits: no cast stands on the tape."""
    dtype, (x, w, bias), dy, options = convolution_case(CONVOLUTIONS[name])
    w, bias = w.astype(F32) * np.float32(1.001), bias.astype(F32)
    arrays = x, w, bias
    y_book, gradients_book = run(conv.Conv2d, exact((x, w.astype(dtype), bias)), dy.astype(np.float64), **options)
    y, (dx, dw, _) = run(chosen(arrays, options), arrays, dy, **options)
    assert y.dtype == dx.dtype == dtype and dw.dtype == F32
    for mine, book in ((y, y_book), (dx, gradients_book[0])):
        close(mine, book, dtype)
    close(dw, gradients_book[1], F32)
    y_plain, _ = run(conv.Conv2d, arrays, dy, **options)  # the book takes them, too
    assert y_plain.dtype == dtype


@needs_compiler
def test_each_convolution_takes_its_method(gpu):
    methods = {}
    for name, case in CONVOLUTIONS.items():
        _, arrays, dy, options = convolution_case(case)
        gpu.clear()
        run(chosen(arrays, options), arrays, dy, **options)
        methods[name] = set(gpu)
    assert methods["1x1"] == {"cublas", "add_shares_bfloat16"}
    assert methods["1x1, groups"] == {"cublas"}, "one share, in the weights' order: it is the gradient already"
    columns = {"cublas", "im2col_bfloat16", "col2im_bfloat16", "add_shares_bfloat16"}
    assert methods["first layer"] == columns | {"filters_bfloat16_bfloat16"}
    assert "cublas" not in methods["3x3, tensor cores"] | methods["3x3, tensor cores, stride 2"]
    assert {"conv3x3_256x64_d16", "conv3x3_wgrad_128_d16"} < methods["3x3, tensor cores"]
    assert "conv3x3_128x128" in methods["3x3, tensor cores, stride 2"]
    assert "cublas" in methods["3x3, groups of 40"], "64 channels hold no whole number of groups of 40"


@needs_compiler
@pytest.mark.parametrize(("filters", "times"), [(16, 1), (8, 2)], ids=["few", "more than y has"])
def test_few_columns_are_built_once(gpu, filters, times):
    case = BF16, (4, 16, 5, 4), filters, (1, 1), (2, 2), (0, 0), (1, 1), 1
    dtype, arrays, dy, options = convolution_case(case)
    y, gradients = run(chosen(arrays, options), arrays, dy, **options)
    assert gpu.count("im2col_bfloat16") == times
    y_book, gradients_book = run(conv.Conv2d, exact(arrays), dy.astype(np.float64), **options)
    for mine, book in zip((y, *gradients), (y_book, *gradients_book), strict=True):
        close(mine, book, dtype)


@needs_compiler
def test_a_gpu_with_little_shared_memory_falls_back_to_columns(gpu, monkeypatch):
    monkeypatch.setattr(device, "properties", lambda: host_gpu.HOPPER._replace(shared_bytes=24 << 10))
    dtype, arrays, dy, options = convolution_case(CONVOLUTIONS["3x3, tensor cores"])
    y, _ = run(chosen(arrays, options), arrays, dy, **options)
    assert "im2col_bfloat16" in gpu
    y_book, _ = run(conv.Conv2d, exact(arrays), dy.astype(np.float64), **options)
    close(y, y_book, dtype)


@needs_compiler
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("shape", [(3, 8, 5, 7), (6, 24), (2, 520, 3, 2)], ids=str)
@pytest.mark.parametrize("with_shortcut", [False, True], ids=["plain", "shortcut"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm_is_the_books(gpu, dtype, shape, with_shortcut, training):
    arrays, dy, running = batch_norm_case(dtype, shape, with_shortcut)
    options = {"training": training, "momentum": 0.1, "eps": 1e-5}
    mine, book = (tuple(r.astype(t) for r in running) for t in (np.float32, np.float64))
    state = {"running_mean": mine[0], "running_var": mine[1], **options}
    book_state = {"running_mean": book[0], "running_var": book[1], **options}
    assert fast_norm.BatchNormReLU.accepts(*arrays, **state)
    y_book, gradients_book = run(norm.BatchNormReLU, exact(arrays), dy.astype(np.float64), **book_state)
    y, gradients = run(fast_norm.BatchNormReLU, arrays, dy, **state)
    close(y, y_book, dtype)
    assert y.dtype == dtype
    for i, (a, b) in enumerate(zip(gradients, gradients_book, strict=True)):
        close(a, b, F32 if i in (1, 2) and dtype == F32 else BF16)
    for a, b in zip(mine, book, strict=True):
        close(a, b, F32)

    y_book, gradients_book = run(norm.BatchNorm, exact(arrays[:3]), dy.astype(np.float64), **book_state)
    y, gradients = run(fast_norm.BatchNorm, arrays[:3], dy, **state)
    close(y, y_book, dtype)
    close(gradients[0], gradients_book[0], dtype)


@needs_compiler
@pytest.mark.parametrize("stride", [1, 2])
def test_batch_norm_takes_the_sums_that_the_convolution_has_left(gpu, stride):
    """The same moments as from reading the convolution's output again, which is not done."""
    _, (x, w, _), _, options = convolution_case(CONVOLUTIONS["3x3, tensor cores"])
    options["stride"] = (stride, stride)
    C = w.shape[0]
    found = []
    with only(lambda: cuda.register("cpu")):
        for looked_at in (False, True):
            running = np.zeros(C, F32), np.ones(C, F32)
            one, zero = Tensor._of(np.ones(C, F32)), Tensor._of(np.zeros(C, F32))
            leaf = Tensor._of(w)
            leaf.requires_grad = True
            y = F.conv2d(Tensor._of(x), leaf, None, stride, 1, groups=8)
            if looked_at:
                y.numpy()
            gpu.clear()
            out = F.batch_norm(y, one, zero, *running, True)
            found.append((*running, out.data, "bn_sums_bfloat16" in gpu))
    (*taken, swept), (*measured, measured_swept) = found
    assert (swept, measured_swept) == (False, True)
    for a, b, kind in zip(taken, measured, (F32, F32, BF16), strict=True):
        close(a, b, kind)


def test_sums_over_many_tiles_are_folded_first(gpu):
    """As many as two for each of the four processors are added where they are needed, more in a launch before."""
    x = Tensor._of(normal(3, 9, 64, 16, 16).astype(BF16))
    w = Tensor._of(normal(4, 64, 64, 3, 3).astype(F32) / 24)
    w.requires_grad = True
    running = np.zeros(64, F32), np.ones(64, F32)
    with only(lambda: cuda.register("cpu")):
        y = F.conv2d(x, w, padding=1)
        F.batch_norm(y, Tensor._of(np.ones(64, F32)), Tensor._of(np.zeros(64, F32)), *running, True, momentum=1.0)
    assert "bn_fold" in gpu and "bn_sums_bfloat16" not in gpu
    stored = y.data.astype(np.float64)
    np.testing.assert_allclose(running[0], stored.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(running[1], stored.var((0, 2, 3), ddof=1), rtol=1e-5)


MEETINGS = {  # shape, dtype, whether the kernel takes them
    "images": ((2, 16, 3, 5), BF16, True),
    "float32": ((3, 4, 2, 2), F32, True),
    "no whole vectors": ((1, 3, 3, 3), BF16, False),
    "no images": ((4, 8), BF16, False),
    "nothing": ((0, 8, 2, 2), BF16, False),
    "float64": ((2, 8, 2, 2), np.dtype(np.float64), False),
}


@needs_compiler
@pytest.mark.parametrize("case", MEETINGS.values(), ids=MEETINGS)
def test_gradients_that_meet(gpu, case):
    shape, dtype, taken = case
    rng = np.random.default_rng(17)
    a, b = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    if len(shape) == 4:
        a = to_nchw(np.ascontiguousarray(a.transpose(0, 2, 3, 1)))  # one channels last, the other not
    total = registry.choose(add_gradients, "cuda", a, b)(a, b)
    assert (total == a + b).all() and total.dtype == dtype and total.shape == shape
    assert (f"add_{dtype.name}" in gpu) == taken
    assert not taken or total.transpose(0, 2, 3, 1).flags.c_contiguous


@needs_compiler
@pytest.mark.parametrize("kept", [(), ("running_mean",), ("running_var",)], ids=["none", "mean", "variance"])
def test_batch_norm_without_running_statistics(gpu, kept):
    """Each may be left out by itself; the other one moves."""
    (x, weight, bias, _), dy, running = batch_norm_case(F32, (4, 8, 3, 3), False)
    values = dict(zip(("running_mean", "running_var"), running, strict=True))
    options = {"training": True, "momentum": 0.1, "eps": 1e-5}
    book = {name: values[name].astype(np.float64) if name in kept else None for name in values}
    mine = {name: values[name].astype(F32) if name in kept else None for name in values}
    y_book, _ = run(norm.BatchNorm, exact((x, weight, bias)), dy.astype(np.float64), **options, **book)
    y, _ = run(fast_norm.BatchNorm, (x, weight, bias), dy, **options, **mine)
    close(y, y_book, F32)
    for name in kept:
        close(mine[name], book[name], F32)
        assert (mine[name] != values[name].astype(F32)).all()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("flip", [False, True], ids=["rows", "columns"])
def test_matrix_product_is_the_books(gpu, dtype, flip):
    rng = np.random.default_rng(9)
    a = rng.standard_normal((5, 7)).astype(dtype)
    b = rng.standard_normal((3, 7)).astype(dtype).T if flip else rng.standard_normal((7, 3)).astype(dtype)
    dy = rng.standard_normal((5, 3)).astype(dtype)
    assert linear.MatMul.accepts(a, b)
    y_book, gradients_book = run(matmul.MatMul, exact((a, b)), dy.astype(np.float64))
    y, gradients = run(linear.MatMul, (a, b), dy)
    for mine, book in zip((y, *gradients), (y_book, *gradients_book), strict=True):
        close(mine, book, dtype)
    sliced = np.ascontiguousarray(rng.standard_normal((5, 14)).astype(dtype))[:, ::2]  # neither rows nor columns
    close(linear.MatMul().forward(sliced, b), exact([sliced])[0] @ exact([b])[0], dtype)


def test_what_is_left_to_the_book(gpu, monkeypatch):
    options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    x, w = np.ones((1, 8, 4, 4)), np.ones((8, 8, 1, 1))
    assert chosen((x, w), options) is conv.Conv2d, "float64 is computed by the book"
    assert chosen((x.astype(F32), w.astype(BF16)), options) is conv.Conv2d
    state = {"running_mean": None, "running_var": None}
    ones = np.ones(6, F32)
    assert not fast_norm.BatchNorm.accepts(np.ones((2, 6), F32), ones, ones, **state), "6 channels are no whole vectors"
    assert not fast_norm.BatchNorm.accepts(np.ones((2, 8)), np.ones(8), np.ones(8), **state)
    assert not linear.MatMul.accepts(np.ones((2, 3, 4), F32), np.ones((4, 5), F32))
    assert chosen((x[:0].astype(F32), w.astype(F32)), options) is conv.Conv2d, "CUDA refuses a grid of no blocks"
    assert not fast_norm.BatchNorm.accepts(np.ones((0, 8), F32), ones, ones, **state)
    assert not linear.MatMul.accepts(np.ones((0, 4), F32), np.ones((4, 5), F32))
    monkeypatch.setattr(device, "properties", lambda: host_gpu.HOPPER._replace(compute=75))
    assert chosen((x.astype(BF16), w.astype(BF16)), options) is conv.Conv2d, "Turing lacks the instructions"
    assert chosen((x.astype(F32), w.astype(F32)), options) is not conv.Conv2d, "but float32 needs none of them"


def one_backward(dtype, rooms, monkeypatch):
    """The gradients of a small ResNeXt on one batch, and the network; `rooms` register faster operations."""
    minigrad.manual_seed(0)
    rng = np.random.default_rng(10)
    images, labels = rng.standard_normal((8, 3, 8, 8)), np.arange(8)
    network = cifar(11, cardinality=8, width=8)
    network.to(dtype="float64" if dtype == np.float64 else "float32")
    with monkeypatch.context() as patch:
        for module in (basic, minigrad.tensor):  # which refuse bfloat16 on the CPU
            patch.setattr(module, "float_dtype", lambda name, device="cpu": np.dtype(name))
        with only(*rooms):
            logits = network(minigrad.Tensor._of(images.astype(dtype)))
            F.cross_entropy(logits.to(dtype=np.float32) if dtype == BF16 else logits, labels).backward()
    return {name: p.grad.astype(np.float64) for name, p in network.named_parameters()}, network


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_whole_network_learns_as_with_the_book(gpu, monkeypatch, dtype):
    """One backward pass of a small ResNeXt on kernels against the float64 book.

    Eleven layers and batch norm over few values amplify bfloat16's roundings; the measure is what the book's own
    formulas lose in the same dtype.
    """
    truth, _ = one_backward(np.float64, [], monkeypatch)
    book, _ = one_backward(dtype, [], monkeypatch)
    gpu.clear()
    fast, network = one_backward(dtype, [lambda: cuda.register("cpu")], monkeypatch)
    assert {"bn_backward_apply_" + dtype.name, "cublas"} < set(gpu)

    def distance(gradients):
        error = sum(((gradients[name] - g) ** 2).sum() for name, g in truth.items())
        return np.sqrt(error / sum((g**2).sum() for g in truth.values()))

    assert distance(fast) <= 1.2 * distance(book) + 1e-6, (distance(fast), distance(book))
    assert distance(fast) <= {F32: 1e-5, BF16: 0.25}[dtype]

    before = {name: p.data.copy() for name, p in network.named_parameters()}
    updates = [(p.data, p.grad, np.zeros_like(p.data), 0.9, 5e-4, True) for p in network.parameters()]
    gpu.clear()
    sgd.sgd_step(updates, 0.1)
    assert gpu == ["sgd"], "one launch for all parameters"
    for name, p in network.named_parameters():
        optim.sgd_update(before[name], p.grad, np.zeros_like(p.grad), 0.1, 0.9, 5e-4, True)
        np.testing.assert_allclose(p.data, before[name], rtol=1e-5, atol=1e-7)


@needs_compiler
def test_cross_entropy_is_the_books(gpu):
    rng = np.random.default_rng(12)
    logits, labels = rng.standard_normal((6, 10)).astype(F32), rng.integers(0, 10, 6).astype(np.int32)
    options = {"labels": labels, "label_smoothing": 0.1}
    assert fast_loss.CrossEntropy.accepts(logits, **options)
    node, book = fast_loss.CrossEntropy(), CrossEntropy()
    y, y_book = node.forward(logits, **options), book.forward(logits.astype(np.float64), **options)
    close(y, y_book, F32)
    close(node.backward(np.float32(2.0)), book.backward(np.float64(2.0)), F32)


@needs_compiler
@pytest.mark.parametrize("last", [True, False], ids=["the loss is the end", "the loss is scaled"])
def test_the_losss_gradient_is_scaled_only_where_it_must_be(gpu, last):
    labels, found = np.arange(6), []
    for rooms in ([], [lambda: cuda.register("cpu")]):
        logits = Tensor(normal(5, 6, 10).astype(F32), requires_grad=True)
        with only(*rooms):
            loss = F.cross_entropy(logits, labels, 0.1)
            (loss if last else 3 * loss).backward()
        found.append(logits.grad)
    close(found[1], found[0], F32)
    assert ("cross_entropy_backward" in gpu) != last


@needs_compiler
def test_sgd_takes_a_gradient_in_any_order_of_memory(gpu):
    w, dw, velocity = np.ones((2, 3), F32), np.arange(6, dtype=F32).reshape(3, 2).T, np.zeros((2, 3), F32)
    sgd.sgd_step([(w, dw, velocity, 0.0, 0.0, False)], 0.5)
    assert gpu == ["sgd"] and (w == 1 - 0.5 * dw).all()


def test_sgd_leaves_other_dtypes_to_the_book(gpu):
    w, dw, velocity = np.ones(3), np.ones(3), np.zeros(3)
    sgd.sgd_step([(w, dw, velocity, 0.9, 0.0, False)], 0.5)
    assert not gpu and (w == 0.5).all()


def test_the_learning_rate_may_be_an_array(gpu, monkeypatch):
    seen = []
    update = [(np.ones(4, F32), np.ones(4, F32), np.zeros(4, F32), 0.9, 0.0, False)]
    rate = np.full(1, 0.25, F32)
    monkeypatch.setattr(device, "launch", lambda *a: seen.append(a[4][1]))
    sgd.sgd_step(update, rate)
    sgd.sgd_step(update, np.float64(0.5))
    assert seen[0] is rate and seen[1].dtype == F32 and seen[1] == 0.5


@needs_compiler
@pytest.mark.parametrize("far", [0, 10, 100])
def test_the_sums_that_a_convolution_leaves_lose_less_than_bfloat16_has_lost(gpu, far):
    """Sums of squares cancel where the mean is `far` deviations from 0, but bfloat16 has rounded the values before.

    A tile adds at most 48 numbers one after the other: the variance is off by (1 + far²) 48 2⁻²⁴ of itself at most.
    bfloat16's own rounding, to 2⁻⁸ of the mean, has changed it by about far² 2⁻¹⁶ / 12 in the mean of squares.
    """
    rng = np.random.default_rng(19)
    x = rng.standard_normal((4, 64, 8, 8)).astype(BF16)
    x[:, ::8] = 1  # one channel of each group lifts all outputs alike
    w = 0.3 * rng.standard_normal((64, 8, 3, 3))
    w[:, 0], w[:, 0, 1, 1] = 0, 2.5 * far
    images, filters = Tensor._of(x), Tensor._of(w.astype(BF16))
    filters.requires_grad = True
    running = np.zeros(64, F32), np.ones(64, F32)
    with only(lambda: cuda.register("cpu")):
        y = F.conv2d(images, filters, None, padding=1, groups=8)
        F.batch_norm(y, Tensor._of(np.ones(64, F32)), Tensor._of(np.zeros(64, F32)), *running, True, momentum=1.0)
    assert "bn_sums_bfloat16" not in gpu
    stored = y.data.astype(np.float64)
    exact, mean = stored.var((0, 2, 3), ddof=1), stored.mean((0, 2, 3))
    bound = (1 + mean**2 / exact) * 48 * 2.0**-24 + 2e-6
    assert (np.abs(running[1] - exact) <= bound * exact).all()
    np.testing.assert_allclose(running[0], mean, rtol=1e-5, atol=1e-5)
