"""The CUDA engine room against the book: on the CPU through the host shim, and, marked `cuda`, on a GPU.

The first half runs fast/cuda.py's Python on NumPy arrays with its kernels in the shim (see host_gpu.py); the second
half runs the same comparisons where CuPy finds a GPU.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from support.cuda_shim import compiler

import minigrad
from minigrad import functional as F
from minigrad import optim
from minigrad.fast.cuda import conv as cuda
from minigrad.fast.cuda import cublas
from minigrad.fast.cuda.graph import EAGER_CALLS, Graph
from minigrad.ops import basic, conv, matmul, norm
from minigrad.ops.loss import CrossEntropy
from resnext.model import cifar
from train.run import loop as training

ml_dtypes = pytest.importorskip("ml_dtypes", reason="the kernels' bfloat16 arrays need ml_dtypes")
from support import host_gpu  # noqa: E402

BF16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
# |fast - book| <= TOLERANCE * (|book| + largest |book|): one rounding of a result is 2^-9 in bfloat16 (2^-8 spacing);
# batch norm's input gradient adds three rounded terms. In float32 the sums' order differs.
TOLERANCE = {BF16: 2**-7, F32: 1e-5}


def close(actual, expected, dtype):
    actual, expected = (np.asarray(a).astype(np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape
    error = np.abs(actual - expected) / (np.abs(expected) + np.abs(expected).max() + 1e-30)
    assert np.isfinite(actual).all() and error.max() <= TOLERANCE[dtype], f"relative error {error.max():.2g}"


def run(operation, arrays, dy, needs=None, **options):
    """Forward and backward of a Function class; returns (y, gradients)."""
    node = operation()
    node.needs = needs or tuple(a is not None for a in arrays)
    y = node.forward(*arrays, **options)
    gradients = node.backward(dy)
    return y, [g for g, needed in zip(gradients, node.needs, strict=True) if needed]


def exact(arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


CONVOLUTIONS = {  # dtype, x shape, O, kernel, stride, padding, dilation, groups
    "1x1": (BF16, (2, 16, 3, 4), 24, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x1, stride 2": (BF16, (4, 16, 5, 4), 8, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "1x1, groups": (F32, (2, 12, 3, 4), 8, (1, 1), (1, 1), (0, 0), (1, 1), 2),
    "1x1, stride 2, chunks of 4 images of 5": (F32, (5, 24, 10, 8), 8, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "first layer": (BF16, (2, 3, 6, 6), 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "3x3, tensor cores": (BF16, (2, 64, 6, 6), 64, (3, 3), (1, 1), (1, 1), (1, 1), 8),
    "3x3, tensor cores, stride 2": (BF16, (2, 128, 7, 8), 128, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "3x3, groups of 40": (BF16, (2, 80, 4, 5), 80, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "3x3, float32": (F32, (3, 8, 5, 6), 12, (3, 3), (1, 1), (1, 1), (1, 1), 4),
    "uneven": (F32, (2, 6, 9, 8), 4, (2, 3), (3, 1), (0, 2), (2, 1), 2),
    "depthwise": (BF16, (1, 8, 5, 5), 8, (3, 3), (1, 1), (1, 1), (1, 1), 8),
}


def convolution_case(case):
    dtype, shape, O, kernel, stride, padding, dilation, groups = case
    rng = np.random.default_rng(7)
    out = conv.output_size(shape[2:], kernel, stride, padding, dilation)
    x = rng.standard_normal(shape).astype(dtype)
    w = rng.standard_normal((O, shape[1] // groups, *kernel)).astype(dtype)
    bias = rng.standard_normal(O).astype(dtype)
    dy = rng.standard_normal((shape[0], O, *out)).astype(dtype)
    return dtype, (x, w, bias), dy, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def batch_norm_case(dtype, shape, with_shortcut):
    rng = np.random.default_rng(8)
    C = shape[1]
    x, dy, shortcut = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    weight, bias = (rng.standard_normal(C).astype(F32) for _ in range(2))
    running = rng.standard_normal(C).astype(F32), rng.uniform(0.5, 2, C).astype(F32)
    return (x, weight, bias, shortcut if with_shortcut else None), dy, running


# --- on the CPU -------------------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(compiler() is None, reason="the host shim needs a C++ compiler (g++ or c++)")


@pytest.fixture
def gpu(monkeypatch):
    """The CPU in the GPU's place; the value is the list of kernels launched so far."""
    return host_gpu.install(monkeypatch)


@needs_compiler
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_is_the_books(gpu, case, monkeypatch):
    monkeypatch.setattr(cuda, "COLUMN_BYTES", 8000)  # columns in several chunks
    dtype, arrays, dy, options = convolution_case(case)
    assert cuda.Conv2d.accepts(*arrays, **options)
    y_book, gradients_book = run(conv.Conv2d, exact(arrays), dy.astype(np.float64), **options)
    y, gradients = run(cuda.Conv2d, arrays, dy, **options)
    assert y.dtype == dtype and y.transpose(0, 2, 3, 1).flags.c_contiguous
    close(y, y_book, dtype)
    for mine, book, array in zip(gradients, gradients_book, arrays, strict=True):
        assert mine.dtype == array.dtype
        close(mine, book, dtype)


@needs_compiler
def test_each_convolution_takes_its_method(gpu):
    methods = {}
    for name, case in CONVOLUTIONS.items():
        _, arrays, dy, options = convolution_case(case)
        gpu.clear()
        run(cuda.Conv2d, arrays, dy, **options)
        methods[name] = set(gpu)
    assert methods["1x1"] == {"cublas", "add_shares_bfloat16"}
    assert methods["1x1, groups"] == {"cublas", "add_shares_float32"}
    assert methods["first layer"] == {"cublas", "im2col_bfloat16", "col2im_bfloat16", "add_shares_bfloat16"}
    assert "cublas" not in methods["3x3, tensor cores"] | methods["3x3, tensor cores, stride 2"]
    assert {"conv3x3_256x64_d16", "conv3x3_wgrad_128_d16"} < methods["3x3, tensor cores"]
    assert "conv3x3_128x128" in methods["3x3, tensor cores, stride 2"]
    assert "cublas" in methods["3x3, groups of 40"], "64 channels hold no whole number of groups of 40"


@needs_compiler
def test_a_gpu_with_little_shared_memory_falls_back_to_columns(gpu, monkeypatch):
    monkeypatch.setattr(cuda, "properties", lambda: host_gpu.HOPPER._replace(shared_bytes=24 << 10))
    dtype, arrays, dy, options = convolution_case(CONVOLUTIONS["3x3, tensor cores"])
    y, _ = run(cuda.Conv2d, arrays, dy, **options)
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
    assert cuda.BatchNormReLU.accepts(*arrays, **state)
    y_book, gradients_book = run(norm.BatchNormReLU, exact(arrays), dy.astype(np.float64), **book_state)
    y, gradients = run(cuda.BatchNormReLU, arrays, dy, **state)
    close(y, y_book, dtype)
    assert y.dtype == dtype
    for i, (a, b) in enumerate(zip(gradients, gradients_book, strict=True)):
        close(a, b, F32 if i in (1, 2) and dtype == F32 else BF16)
    for a, b in zip(mine, book, strict=True):
        close(a, b, F32)

    y_book, gradients_book = run(norm.BatchNorm, exact(arrays[:3]), dy.astype(np.float64), **book_state)
    y, gradients = run(cuda.BatchNorm, arrays[:3], dy, **state)
    close(y, y_book, dtype)
    close(gradients[0], gradients_book[0], dtype)


@needs_compiler
@pytest.mark.parametrize("stride", [1, 2])
def test_batch_norm_takes_the_sums_that_the_convolution_has_left(gpu, stride):
    """The same moments as from reading the convolution's output again, which is not done."""
    _, (x, w, _), _, options = convolution_case(CONVOLUTIONS["3x3, tensor cores"])
    options["stride"] = (stride, stride)
    node = cuda.Conv2d()
    node.needs = (True, True)
    y = node.forward(x, w, **options)
    C = w.shape[0]
    found = []
    for rows in (y, y.view()):  # a view is another array, without the note
        running = np.zeros(C, F32), np.ones(C, F32)
        state = dict(zip(("running_mean", "running_var"), running, strict=True), momentum=0.1, eps=1e-5)
        gpu.clear()
        out = cuda.BatchNorm().forward(rows, np.ones(C, F32), np.zeros(C, F32), **state, training=True)
        found.append((*running, out, "bn_sums_bfloat16" in gpu))
        cuda.BatchNorm().forward(rows, np.ones(C, F32), np.zeros(C, F32), **state, training=False)
    (*taken, swept), (*measured, measured_swept) = found
    assert (swept, measured_swept) == (False, True)
    for a, b, kind in zip(taken, measured, (F32, F32, BF16), strict=True):
        close(a, b, kind)


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
        a = cuda.images(np.ascontiguousarray(a.transpose(0, 2, 3, 1)))  # one channels last, the other not
    total = cuda.add_gradients(a, b)
    assert (total == a + b).all() and total.dtype == dtype and total.shape == shape
    assert (f"add_{dtype.name}" in gpu) == taken
    assert not taken or total.transpose(0, 2, 3, 1).flags.c_contiguous


@needs_compiler
def test_batch_norm_without_running_statistics(gpu):
    (x, weight, bias, _), dy, _ = batch_norm_case(F32, (4, 8, 3, 3), False)
    options = {"running_mean": None, "running_var": None, "training": True, "momentum": 0.1, "eps": 1e-5}
    y_book, _ = run(norm.BatchNorm, exact((x, weight, bias)), dy.astype(np.float64), **options)
    y, _ = run(cuda.BatchNorm, (x, weight, bias), dy, **options)
    close(y, y_book, F32)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("flip", [False, True], ids=["rows", "columns"])
def test_matrix_product_is_the_books(gpu, dtype, flip):
    rng = np.random.default_rng(9)
    a = rng.standard_normal((5, 7)).astype(dtype)
    b = rng.standard_normal((3, 7)).astype(dtype).T if flip else rng.standard_normal((7, 3)).astype(dtype)
    dy = rng.standard_normal((5, 3)).astype(dtype)
    assert cuda.MatMul.accepts(a, b)
    y_book, gradients_book = run(matmul.MatMul, exact((a, b)), dy.astype(np.float64))
    y, gradients = run(cuda.MatMul, (a, b), dy)
    for mine, book in zip((y, *gradients), (y_book, *gradients_book), strict=True):
        close(mine, book, dtype)
    sliced = np.ascontiguousarray(rng.standard_normal((5, 14)).astype(dtype))[:, ::2]  # neither rows nor columns
    close(cuda.MatMul().forward(sliced, b), exact([sliced])[0] @ exact([b])[0], dtype)


def test_what_is_left_to_the_book(gpu, monkeypatch):
    options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    x, w = np.ones((1, 8, 4, 4)), np.ones((8, 8, 1, 1))
    assert not cuda.Conv2d.accepts(x, w, **options), "float64 is computed by the book"
    assert not cuda.Conv2d.accepts(x.astype(F32), w.astype(BF16), **options)
    state = {"running_mean": None, "running_var": None}
    ones = np.ones(6, F32)
    assert not cuda.BatchNorm.accepts(np.ones((2, 6), F32), ones, ones, **state), "6 channels are no whole vectors"
    assert not cuda.BatchNorm.accepts(np.ones((2, 8)), np.ones(8), np.ones(8), **state)
    assert not cuda.MatMul.accepts(np.ones((2, 3, 4), F32), np.ones((4, 5), F32))
    assert not cuda.Conv2d.accepts(x[:0].astype(F32), w.astype(F32), **options), "CUDA refuses a grid of no blocks"
    assert not cuda.BatchNorm.accepts(np.ones((0, 8), F32), ones, ones, **state)
    assert not cuda.MatMul.accepts(np.ones((0, 4), F32), np.ones((4, 5), F32))
    monkeypatch.setattr(cuda, "properties", lambda: host_gpu.HOPPER._replace(compute=75))
    assert not cuda.Conv2d.accepts(x.astype(F32), w.astype(F32), **options), "Turing lacks the instructions"


def one_backward(dtype, replaced, monkeypatch):
    """The gradients of a small ResNeXt on one batch, and the network; `replaced` is the table of faster operations."""
    minigrad.manual_seed(0)
    rng = np.random.default_rng(10)
    images, labels = rng.standard_normal((8, 3, 8, 8)), np.arange(8)
    network = cifar(11, cardinality=8, width=8)
    network.to(dtype="float64" if dtype == np.float64 else "float32")
    with monkeypatch.context() as patch:
        for module in (basic, minigrad.tensor):  # which refuse bfloat16 on the CPU
            patch.setattr(module, "float_dtype", lambda name, device="cpu": np.dtype(name))
        patch.setattr(minigrad.tensor, "faster", replaced)
        logits = network(minigrad.Tensor._of(images.astype(dtype)))
        F.cross_entropy(logits.to(dtype=np.float32) if dtype == BF16 else logits, labels).backward()
    return {name: p.grad.astype(np.float64) for name, p in network.named_parameters()}, network


@needs_compiler
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_whole_network_learns_as_with_the_book(gpu, monkeypatch, dtype):
    """One backward pass of a small ResNeXt on kernels against the float64 book.

    Eleven layers and batch norm over few values amplify bfloat16's roundings; the measure is what the book's own
    formulas lose in the same dtype.
    """
    replaced = {(book, "cpu"): fast for book, fast in cuda.OPERATIONS.items()}
    truth, _ = one_backward(np.float64, {}, monkeypatch)
    book, _ = one_backward(dtype, {}, monkeypatch)
    gpu.clear()
    fast, network = one_backward(dtype, replaced, monkeypatch)
    assert {"bn_backward_apply_" + dtype.name, "cublas"} < set(gpu)

    def distance(gradients):
        error = sum(((gradients[name] - g) ** 2).sum() for name, g in truth.items())
        return np.sqrt(error / sum((g**2).sum() for g in truth.values()))

    assert distance(fast) <= 1.2 * distance(book) + 1e-6, (distance(fast), distance(book))
    assert distance(fast) <= {F32: 1e-5, BF16: 0.25}[dtype]

    before = {name: p.data.copy() for name, p in network.named_parameters()}
    updates = [(p.data, p.grad, np.zeros_like(p.data), 0.9, 5e-4, True) for p in network.parameters()]
    gpu.clear()
    cuda.sgd_step(updates, 0.1)
    assert gpu == ["sgd"], "one launch for all parameters"
    for name, p in network.named_parameters():
        optim.sgd_update(before[name], p.grad, np.zeros_like(p.grad), 0.1, 0.9, 5e-4, True)
        np.testing.assert_allclose(p.data, before[name], rtol=1e-5, atol=1e-7)


@needs_compiler
def test_cross_entropy_is_the_books(gpu):
    rng = np.random.default_rng(12)
    logits, labels = rng.standard_normal((6, 10)).astype(F32), rng.integers(0, 10, 6).astype(np.int32)
    options = {"labels": labels, "label_smoothing": 0.1}
    assert cuda.CrossEntropy.accepts(logits, **options)
    node, book = cuda.CrossEntropy(), CrossEntropy()
    y, y_book = node.forward(logits, **options), book.forward(logits.astype(np.float64), **options)
    close(y, y_book, F32)
    close(node.backward(np.float32(2.0)), book.backward(np.float64(2.0)), F32)


@needs_compiler
def test_sgd_takes_a_gradient_in_any_order_of_memory(gpu):
    w, dw, velocity = np.ones((2, 3), F32), np.arange(6, dtype=F32).reshape(3, 2).T, np.zeros((2, 3), F32)
    cuda.sgd_step([(w, dw, velocity, 0.0, 0.0, False)], 0.5)
    assert gpu == ["sgd"] and (w == 1 - 0.5 * dw).all()


def test_sgd_leaves_other_dtypes_to_the_book(gpu):
    w, dw, velocity = np.ones(3), np.ones(3), np.zeros(3)
    cuda.sgd_step([(w, dw, velocity, 0.9, 0.0, False)], 0.5)
    assert not gpu and (w == 0.5).all()


def test_a_training_step_is_the_same_through_a_graph():
    """train.cifar hands a graph arrays instead of numbers; here the graph is a plain call."""
    results = []
    for through_graph in (False, True):
        minigrad.manual_seed(0)
        network = cifar(11, cardinality=2, width=4)
        run = SimpleNamespace(
            config=SimpleNamespace(device="cpu", recipe=SimpleNamespace(label_smoothing=0.1)),
            model=network,
            optimizer=optim.SGD(network.parameters(), 1.0, momentum=0.9),
            ranks=SimpleNamespace(size=1),
            average={},
            graph=None,
        )
        if through_graph:
            run.graph = lambda *arrays, run=run: training.update(run, *arrays)
        rng = np.random.default_rng(16)
        batches = [(rng.standard_normal((4, 3, 8, 8)).astype(F32), rng.integers(0, 10, 4)) for _ in range(2)]
        steps = [
            training.outcome(*training.train_step(run, *batch, lr), batch[1])
            for batch, lr in zip(batches, (0.1, 0.05), strict=True)
        ]
        results.append((steps, [p.numpy().tobytes() for p in network.parameters()]))
    assert results[0] == results[1]


def test_sums_of_bfloat16_have_float32_digits():
    """In bfloat16 256 + 1 is 256: a running sum of ones would stop there."""
    ones = np.ones((4, 1000), BF16)
    assert (minigrad.backend.total(ones, 1).astype(float) == 1000).all()
    assert minigrad.backend.total(ones, (0, 1), keepdims=True).shape == (1, 1)
    assert minigrad.tensor.unbroadcast(ones, (1000,)).dtype == BF16


def test_cublas_is_asked_for_row_major_products():
    """The translation to column-major, checked on memory with gaps: (A or Aᵀ) times (B or Bᵀ), a batch of three."""
    rng = np.random.default_rng(11)
    M, N, K = 3, 4, 5
    for flip_a in (False, True):
        for flip_b in (False, True):
            a, b = (
                rng.standard_normal((3, *((K, M) if flip_a else (M, K)))),
                rng.standard_normal((3, *((N, K) if flip_b else (K, N)))),
            )
            wide = [
                np.full((3, m.shape[1], m.shape[2] + pad), np.nan, F32)
                for m, pad in ((a, 2), (b, 1), (np.empty((3, M, N)), 3))
            ]
            wide[0][:, :, : a.shape[2]], wide[1][:, :, : b.shape[2]] = a, b
            start = wide[2][:, :, :N] = rng.standard_normal((3, M, N))
            matrices = [
                cublas.Matrix(m.ctypes.data, "float32", m.shape[2], m[0].size, flip)
                for m, flip in zip(wide, (flip_a, flip_b, False), strict=True)
            ]
            host_gpu.gemm_strided_batched(*cublas.product_arguments(M, N, K, *matrices, 3, True))
            expected = start + (a.swapaxes(1, 2) if flip_a else a) @ (b.swapaxes(1, 2) if flip_b else b)
            np.testing.assert_allclose(wide[2][:, :, :N], expected, rtol=1e-5, atol=1e-5)
            assert np.isnan(wide[2][:, :, N:]).all(), "nothing is written between the rows"


class FakeCuda:
    """The few parts of CuPy that Graph touches, on NumPy arrays: a captured step runs when its graph is launched."""

    def __init__(self):
        self.log = []
        self.recording = None
        self.cuda = SimpleNamespace(
            Stream=lambda non_blocking: self.Stream(self),
            MemoryPool=lambda: SimpleNamespace(malloc=None),
            using_allocator=lambda malloc: nullcontext(),
            get_current_stream=lambda: self.Stream(self),
        )
        self.array, self.asarray = np.array, np.asarray

    class Stream:
        def __init__(self, owner):
            self.owner = owner

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

        def record(self):
            return "event"

        def wait_event(self, event):
            self.owner.log.append("wait")

        def begin_capture(self):
            self.owner.recording = []

        def end_capture(self):
            recorded, self.owner.recording = self.owner.recording, None
            return SimpleNamespace(launch=lambda stream: [work() for work in recorded])


def test_a_graph_runs_eagerly_then_captures_then_replays(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(minigrad.backend, "cupy", lambda: fake)
    total, python_calls = np.zeros(2), []

    def step(x, scale):
        python_calls.append("captured" if fake.recording is not None else "eager")

        def work():
            total[...] += scale * x

        work() if fake.recording is None else fake.recording.append(work)
        return (total,)

    graph = Graph(step)
    for i in range(1, 7):
        (result,) = graph(np.full(2, float(i)), np.full(1, 10.0))
        assert (result == 10 * sum(range(1, i + 1))).all(), "every call is one step, captured or not"
    assert python_calls == ["eager"] * 3 + ["captured"]
    assert fake.log == ["wait", "wait"] * 6, "inputs and outputs are ordered against the caller's stream"
    (result,) = graph(np.full(1, 2.0), np.full(1, 10.0))  # the last batch of an epoch is smaller
    assert (result == 10 * (sum(range(1, 7)) + 2)).all() and python_calls[-1] == "eager"
    (result,) = graph(np.full(2, 1.0), np.full(1, 10.0))
    assert (result == 10 * (sum(range(1, 7)) + 3)).all() and python_calls[-1] == "eager" and len(python_calls) == 5


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_step_that_cannot_be_captured_goes_on_eagerly(monkeypatch, error):
    fake = FakeCuda()
    monkeypatch.setattr(minigrad.backend, "cupy", lambda: fake)
    calls = []

    def step(x):
        if fake.recording is not None:
            raise error("not allowed while capturing")
        calls.append(x)
        return (x + 1,)

    graph = Graph(step)
    for _ in range(3):
        graph(np.zeros(1))
    if error is MemoryError:
        with pytest.raises(MemoryError):
            graph(np.zeros(1))
        assert fake.recording is None and graph.graph is None
        return
    with pytest.warns(RuntimeWarning, match="runs eagerly.*not allowed while capturing"):
        (result,) = graph(np.zeros(1))
    assert result == 1 and len(calls) == 4 and fake.recording is None
    (result,) = graph(np.ones(1))  # without another try, and without another warning
    assert result == 2 and len(calls) == 5


def test_the_learning_rate_may_be_an_array(gpu, monkeypatch):
    seen = []
    update = [(np.ones(4, F32), np.ones(4, F32), np.zeros(4, F32), 0.9, 0.0, False)]
    rate = np.full(1, 0.25, F32)
    monkeypatch.setattr(cuda, "launch", lambda *a: seen.append(a[4][1]))
    cuda.sgd_step(update, rate)
    cuda.sgd_step(update, np.float64(0.5))
    assert seen[0] is rate and seen[1].dtype == F32 and seen[1] == 0.5


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cp():
    """CuPy, where there is a GPU that the kernels run on."""
    try:
        cupy = minigrad.backend.cupy()
    except minigrad.backend.DeviceError as error:
        pytest.skip(str(error))
    if cuda.properties().compute < 80:
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


# Under compute-sanitizer a kernel runs a hundred times slower: benchmarks/gpu.sh gives it what is marked, small arrays.
RACES = ("3x3, tensor cores", "3x3, tensor cores, stride 2")  # the kernels whose threads meet in shared memory
SMALL = [
    pytest.param(case, id=name, marks=[pytest.mark.memcheck, *([pytest.mark.racecheck] if name in RACES else [])])
    for name, case in CONVOLUTIONS.items()
]


@pytest.mark.cuda
@pytest.mark.parametrize("case", [*SMALL, *(pytest.param(case, id=name) for name, case in REAL.items())])
def test_convolution_on_the_gpu(cp, case):
    dtype, arrays, dy, options = convolution_case(case)
    there = to_gpu(cp, arrays)
    assert cuda.Conv2d.accepts(*there, **options)
    book = [a.astype(np.float64) for a in there]
    y_book, gradients_book = run(conv.Conv2d, book, cp.asarray(dy).astype(np.float64), **options)
    y, gradients = run(cuda.Conv2d, there, cp.asarray(dy), **options)
    for mine, expected in zip((y, *gradients), (y_book, *gradients_book), strict=True):
        close(to_cpu(mine), to_cpu(expected), dtype)
    again, gradients_again = run(cuda.Conv2d, there, cp.asarray(dy), **options)
    for one, other in zip((y, *gradients), (again, *gradients_again), strict=True):
        assert to_cpu(one).tobytes() == to_cpu(other).tobytes(), "the same bits every time"


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [pytest.param((3, 8, 5, 7), marks=pytest.mark.memcheck), (128, 64, 32, 32), (64, 1024, 8, 8)],
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
    y, gradients = run(cuda.BatchNormReLU, there, upstream, **state)
    close(to_cpu(y), to_cpu(y_book), dtype)
    # A value within rounding of the kink may fall on the other side of it, so gradients are compared in the mean.
    for a, b in zip(gradients, gradients_book, strict=True):
        difference = float(cp.abs(a.astype(np.float64) - b).mean() / cp.abs(b).mean())
        assert difference <= TOLERANCE[dtype]
    for a, b in zip(mine, book, strict=True):
        close(to_cpu(a), to_cpu(b), F32)


@pytest.mark.cuda
@pytest.mark.memcheck
def test_gradients_that_meet_on_the_gpu(cp):
    rng = np.random.default_rng(18)
    a, b = (rng.standard_normal((8, 40, 30, 256)).astype(BF16) for _ in range(2))  # (N, H, W, C)
    total = cuda.add_gradients(*(cuda.images(cp.asarray(x)) for x in (a, b)))
    assert total.transpose(0, 2, 3, 1).flags.c_contiguous
    assert (to_cpu(cuda.pixels(total)) == a + b).all()


@pytest.mark.cuda
@pytest.mark.memcheck
def test_sgd_on_the_gpu(cp):
    rng = np.random.default_rng(13)
    sizes = [int(n) for n in rng.integers(1, 5000, 100)]  # more parameters than one launch takes
    host = [tuple(rng.standard_normal(n).astype(F32) for _ in range(3)) for n in sizes]
    there = [to_gpu(cp, arrays) for arrays in host]
    cuda.sgd_step([(*arrays, 0.9, 5e-4, True) for arrays in there], 0.1)
    for (w, dw, velocity), (mine, _, mine_velocity) in zip(host, there, strict=True):
        optim.sgd_update(w, dw, velocity, 0.1, 0.9, 5e-4, True)
        np.testing.assert_allclose(to_cpu(mine), w, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(to_cpu(mine_velocity), velocity, rtol=1e-5, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.memcheck
def test_cross_entropy_on_the_gpu(cp):
    rng = np.random.default_rng(14)
    logits, labels = rng.standard_normal((130, 100)).astype(F32), rng.integers(0, 100, 130)
    node, book = cuda.CrossEntropy(), CrossEntropy()
    y = node.forward(cp.asarray(logits), labels=cp.asarray(labels), label_smoothing=0.1)
    close(to_cpu(y), book.forward(logits.astype(np.float64), labels=labels, label_smoothing=0.1), F32)
    close(to_cpu(node.backward(cp.float32(1.0))), book.backward(np.float64(1.0)), F32)


def training_step(cp, dtype):
    """A small network, a step as Graph wants it, and three batches on the device."""
    minigrad.manual_seed(0)
    rng = np.random.default_rng(15)
    network = cifar(11, cardinality=8, width=64).to("cuda")
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
    for wrap in (lambda step: step, Graph):
        network, step, batches = training_step(cp, dtype)
        call = wrap(step)
        losses = [float(call(*batches[i % 3], cp.full(1, 0.02 * (1 - i / 10), np.float32))[0]) for i in range(10)]
        assert all(np.isfinite(losses)) and losses[-1] < losses[0]
        results.append((losses, {name: p.numpy().tobytes() for name, p in network.named_parameters()}))
    assert results[0] == results[1]


@pytest.mark.cuda
@pytest.mark.memcheck
def test_a_graph_takes_a_smaller_last_batch_on_the_gpu(cp):
    graph = Graph(lambda x: (x + 1,))
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
    graph = Graph(step)
    for _ in range(EAGER_CALLS + 2):
        results = graph(x)
    assert graph.graph is not None
    for captured, eager in zip(results, step(x), strict=True):
        assert captured.dtype == BF16 and to_cpu(captured).tobytes() == to_cpu(eager).tobytes()
