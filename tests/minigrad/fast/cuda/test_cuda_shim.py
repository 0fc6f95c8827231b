"""The CUDA kernels on the CPU: each one runs through the host shim (tests/cuda_shim) and is held to the book's formula.

The shim executes blocks, warps, barriers, asynchronous copies and tensor-core instructions as the PTX ISA describes
them, under two opposite schedules, and watches every load and store for races, so that indices, fragment layouts, masks
and missing barriers are checked without a GPU.
"""

import numpy as np
import pytest
from support.cuda_shim import compile_host, compiler

from minigrad.fast.cuda.conv import SIDE
from minigrad.fast.cuda.gpu import PARAMETERS, WINDOW
from minigrad.fast.cuda.tiles import Packing, plan
from minigrad.ops.conv import Conv2d, col2im, im2col, output_size, pad_image
from minigrad.ops.loss import CrossEntropy
from minigrad.ops.norm import BatchNorm, BatchNormReLU
from minigrad.optim import sgd_update

ml_dtypes = pytest.importorskip("ml_dtypes", reason="the kernels' bfloat16 arrays need ml_dtypes")
pytestmark = pytest.mark.skipif(compiler() is None, reason="the host shim needs a C++ compiler (g++ or c++)")

BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
i32, i64, f32 = np.int32, np.int64, np.float32
SUFFIX = {F32: "float32", BF16: "bfloat16"}
VECTOR = {F32: 4, BF16: 8}
# One rounding to the type is at most eps / 2 of the value; sums and products round in float32 beside it.
ROUNDING = {F32: 1e-6, BF16: 2**-8}


def close(actual, expected, dtype, scale=None):
    """Assert |actual - expected| <= a few roundings of `dtype` at the expected values' size (or `scale`)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(actual).all()
    bound = 4 * ROUNDING[dtype] * (np.abs(expected) + (np.abs(expected).max() if scale is None else scale))
    assert (np.abs(actual - expected) <= bound).all(), np.abs(actual - expected).max()


# --- batch norm -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def norm():
    return compile_host("norm.cu")


def run_batch_norm(norm, x, gamma, beta, running, dy, shortcut, relu, training, schedule, chunks=3):
    """Forward and backward of norm.cu on rows (M, C); returns y, dx, dgamma, dbeta, dshortcut, stats."""
    (M, C), s, dtype = x.shape, SUFFIX[x.dtype], x.dtype
    vectors = C // VECTOR[dtype]
    bx = 8 if vectors >= 8 else 1
    grid, block, rows = (-(-vectors // bx), chunks), (bx, 256 // bx), -(-M // chunks)

    def launch(name, *arguments):
        norm.launch(name, grid, block, arguments, schedule=schedule)

    partial, stats = np.full((chunks, 2, C), np.nan, F32), np.full((4, C), np.nan, F32)
    y, dx, g = (np.zeros((M, C), dtype) for _ in range(3))
    size = i64(M), i32(C), i64(rows)
    if training:
        launch(f"bn_sums_{s}", x, partial, *size)
    moments = (i32(chunks), i32(True), i32(training), f32(0.1), f32(1e-5))
    launch(f"bn_apply_{s}", x, shortcut, partial, gamma, beta, *running, stats, y, *size, *moments, i32(relu))

    dgamma, dbeta = np.zeros(C, F32), np.zeros(C, F32)
    masked = shortcut is not None
    launch(
        f"bn_backward_sums_{s}", dy, x, y if masked else None, stats, g if masked else None, partial, *size, i32(relu)
    )
    launch(
        f"bn_backward_apply_{s}", g if masked else dy, x, stats, partial, dgamma, dbeta, dx, *size, i32(chunks),
        i32(training), i32(relu), i32(masked),
    )  # fmt: skip
    return y, dx, dgamma, dbeta, g, stats


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("C", [8, 40, 264])
@pytest.mark.parametrize("with_shortcut", [False, True], ids=["plain", "shortcut"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm_is_the_books(norm, dtype, C, with_shortcut, training):
    rng = np.random.default_rng(C)
    M = 77  # not a multiple of anything
    x = (rng.standard_normal((M, C)) * 2 + 3).astype(dtype)
    shortcut = rng.standard_normal((M, C)).astype(dtype) if with_shortcut else None
    dy = rng.standard_normal((M, C)).astype(dtype)
    gamma, beta = (rng.standard_normal(C).astype(F32) for _ in range(2))
    running = [rng.standard_normal(C).astype(F32), rng.uniform(0.5, 2, C).astype(F32)]
    book_running = [r.astype(np.float64) for r in running]

    book = BatchNormReLU()
    book.needs = (True,) * 4
    exact = [None if a is None else a.astype(np.float64) for a in (x, gamma, beta, shortcut)]
    options = {"running_mean": book_running[0], "running_var": book_running[1], "training": training}
    y_book = book.forward(*exact, **options, momentum=0.1, eps=1e-5)
    dx_book, dgamma_book, dbeta_book, dz_book = book.backward(dy.astype(np.float64))

    results = []
    for schedule in (0, 1):
        mine = [r.copy() for r in running]
        results.append(run_batch_norm(norm, x, gamma, beta, mine, dy, shortcut, True, training, schedule))
    for one, other in zip(*results, strict=True):
        assert one.tobytes() == other.tobytes(), "the order of the threads must not change a bit"
    y, dx, dgamma, dbeta, g, _ = results[0]
    close(y, y_book, dtype)
    close(dgamma, dgamma_book, F32, scale=M)
    close(dbeta, dbeta_book, F32, scale=M)
    close(dx, dx_book, dtype)
    if with_shortcut:
        assert (g.astype(np.float64) == dz_book).all(), "the shortcut's gradient is dy or 0, exactly"
    for r, expected in zip(mine, book_running, strict=True):
        close(r, expected, F32)


def test_too_many_chunks_of_sums_become_few(norm):
    partial = np.random.default_rng(2).standard_normal((37, 2, 40)).astype(F32)
    folded = np.full((3, 2, 40), np.nan, F32)
    norm.launch("bn_fold", (1, 3), (256,), [partial, folded, i32(40), i32(37), i32(16)])
    expected = [partial[i : i + 16].sum(0, np.float64) for i in (0, 16, 32)]
    np.testing.assert_allclose(folded, expected, rtol=1e-6, atol=1e-6)


def test_batch_norm_without_relu(norm):
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal((50, 16)).astype(F32) for _ in range(2))
    gamma, beta = (rng.standard_normal(16).astype(F32) for _ in range(2))
    book, options = BatchNorm(), {"training": True, "momentum": 0.1, "eps": 1e-5}
    exact = (a.astype(np.float64) for a in (x, gamma, beta))
    y_book = book.forward(*exact, running_mean=None, running_var=None, **options)
    dx_book, _, _ = book.backward(dy.astype(np.float64))
    y, dx, *_ = run_batch_norm(norm, x, gamma, beta, [np.zeros(16, F32), np.ones(16, F32)], dy, None, False, True, 0)
    close(y, y_book, F32)
    close(dx, dx_book, F32)


def test_batch_norm_keeps_its_digits_when_the_mean_is_large(norm):
    """A channel at 1000 ± 1: plain sums of squares in float32 would leave no digit of the variance."""
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((4096, 8)) + 1000).astype(F32)
    ones, zeros = np.ones(8, F32), np.zeros(8, F32)
    running = [zeros.copy(), ones.copy()]
    *_, stats = run_batch_norm(norm, x, ones, zeros, running, x * 0, None, False, True, 0, chunks=70)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(stats[0], exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(stats[1], 1 / np.sqrt(exact.var(0) + 1e-5), rtol=1e-5)


def test_batch_norm_lets_nan_through(norm):
    """A run that has diverged must show: max(NaN, 0) is NaN here as in the book."""
    x = np.ones((16, 8), F32)
    x[3, 2] = np.nan
    ones, zeros = np.ones(8, F32), np.zeros(8, F32)
    y, *_ = run_batch_norm(norm, x, ones, zeros, [zeros.copy(), ones.copy()], x * 0, None, True, True, 0)
    assert np.isnan(y[:, 2]).all() and np.isfinite(np.delete(y, 2, axis=1)).all()


# --- gradients that meet ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_add_is_the_books(dtype):
    module, rng = compile_host("add.cu"), np.random.default_rng(11)
    a, b = (rng.standard_normal(VECTOR[dtype] * 37).astype(dtype) for _ in range(2))
    out = np.full_like(a, np.nan)
    module.launch(f"add_{SUFFIX[dtype]}", (2,), (8,), [a, b, out, i64(37)])
    assert (out == (a.astype(F32) + b.astype(F32)).astype(dtype)).all()


# --- stochastic gradient descent --------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_the_books(momentum, nesterov):
    """Three steps on parameters of odd sizes, one of them at an address that is not a multiple of 16."""
    module, rng = compile_host("sgd.cu"), np.random.default_rng(3)
    decays = [5e-4, 0.0, 0.1]
    sizes = [1001, 3, 64]
    mine = [rng.standard_normal(n).astype(F32) for n in sizes]
    mine[2] = np.zeros(65, F32)[1:]
    book = [w.copy() for w in mine]
    velocities = [[np.zeros_like(w) for w in mine] for _ in range(2)]
    for _ in range(3):
        gradients = [rng.standard_normal(n).astype(F32) for n in sizes]
        table = np.zeros(1, PARAMETERS)
        for i, (w, dw, v, decay) in enumerate(zip(mine, gradients, velocities[0], decays, strict=True)):
            pointers = w.ctypes.data, dw.ctypes.data, v.ctypes.data if momentum else 0
            table["list"][0][i] = (*pointers, w.size, momentum, decay, nesterov, 0)
        arrays = [*mine, *gradients, *velocities[0]]
        module.launch("sgd", (2, len(sizes)), (128,), [table, np.array([0.1], F32)], memory=arrays)
        for w, dw, v, decay in zip(book, gradients, velocities[1], decays, strict=True):
            sgd_update(w, dw, v, 0.1, momentum, decay, nesterov)
    for w, expected in zip(mine, book, strict=True):
        np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-6)
    for v, expected in zip(*velocities, strict=True):
        np.testing.assert_allclose(v, expected, rtol=1e-5, atol=1e-6)


# --- im2col -----------------------------------------------------------------------------------------------------------

WINDOWS = {  # C, G, (H, W), kernel, stride, padding, dilation
    "3x3": (16, 2, (5, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    "stride 2": (16, 1, (6, 5), (3, 3), (2, 2), (1, 1), (1, 1)),
    "first layer": (3, 1, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
    "uneven": (8, 4, (9, 8), (2, 3), (3, 1), (0, 2), (2, 1)),
    "shortcut": (24, 1, (7, 6), (1, 1), (2, 2), (0, 0), (1, 1)),
}


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_im2col_is_the_books(window, dtype):
    module, rng = compile_host("im2col.cu"), np.random.default_rng(4)
    C, G, size, kernel, stride, padding, dilation = window
    N, c, (KH, KW) = 2, C // G, kernel
    out = OH, OW = output_size(size, kernel, stride, padding, dilation)
    ld = -(-C * KH * KW // 8) * 8
    wide = c % VECTOR[dtype] == 0
    shape = np.array((N, *size, C, G, *kernel, *out, *stride, *padding, *dilation, ld), np.int32).view(WINDOW)

    x = rng.standard_normal((N, *size, C)).astype(dtype)
    columns = np.full((N * OH * OW, ld), np.nan, dtype)
    module.launch(f"im2col_{SUFFIX[dtype]}", (-(-ld // 32), 3), (32, 2), [x, columns, shape, i32(wide)])
    windows = im2col(
        pad_image(x.transpose(0, 3, 1, 2), padding), kernel, out, stride, dilation
    )  # (N, C, KH, KW, OH, OW)
    expected = windows.reshape(N, G, c, KH, KW, OH, OW).transpose(0, 5, 6, 1, 3, 4, 2).reshape(N * OH * OW, -1)
    assert (columns[:, : C * KH * KW] == expected).all()
    assert (columns[:, C * KH * KW :] == 0).all()

    dcolumns = rng.standard_normal((N * OH * OW, ld)).astype(dtype)
    dx = np.full((N, *size, C), np.nan, dtype)
    module.launch(f"col2im_{SUFFIX[dtype]}", (-(-C // 32), 3), (32, 2), [dcolumns, dx, shape, i32(wide)])
    taps = dcolumns[:, : C * KH * KW].astype(np.float64).reshape(N, OH, OW, G, KH, KW, c).transpose(0, 3, 6, 4, 5, 1, 2)
    (H, W), (PH, PW) = size, padding
    padded = col2im(taps.reshape(N, C, KH, KW, OH, OW), (N, C, H + 2 * PH, W + 2 * PW), stride, dilation)
    close(dx, padded[:, :, PH : PH + H, PW : PW + W].transpose(0, 2, 3, 1), dtype)


# --- 3x3 convolution on tensor cores ----------------------------------------------------------------------------------

CONVOLUTIONS = {  # N, C, O, groups, (H, W), stride, KiB of shared memory, which choose the tile
    "one group": (1, 64, 64, 1, (8, 8), 1, 46),
    "two packs": (2, 128, 128, 2, (6, 9), 1, 227),
    "groups of 4": (1, 128, 128, 32, (5, 8), 1, 227),
    "groups of 16, less memory": (1, 64, 64, 4, (5, 8), 1, 64),
    "groups of 8, little memory": (1, 64, 64, 8, (5, 8), 1, 46),
    "groups of 32, stride 2": (1, 64, 64, 2, (9, 6), 2, 227),
    "groups of 32, stride 2, less memory": (1, 64, 64, 2, (9, 6), 2, 90),
    "groups of 32, little memory": (1, 128, 128, 4, (7, 5), 1, 64),
    "wide group": (1, 128, 128, 1, (8, 8), 1, 227),
    "wide group, less memory": (1, 128, 128, 1, (5, 4), 1, 128),
    "stride 2": (2, 128, 128, 1, (7, 8), 2, 101),
    "stride 2, narrow": (1, 64, 64, 4, (9, 6), 2, 227),
    "more filters than channels": (1, 64, 128, 2, (4, 4), 1, 227),
    "more filters than channels, narrow": (1, 64, 128, 4, (4, 4), 1, 227),
    "stride 2, parts of two tiles and of one": (1, 64, 64, 4, (33, 32), 2, 227),
    "larger than a tile": (3, 64, 64, 1, (17, 10), 1, 77),
}


def plan_of(case):
    N, C, O, G, (H, W), stride, kib = case
    return plan((N, H, W, C), O, stride, Packing.of(C, O, G), kib << 10)


def put_together(partial, w, tap_length, CO, o):
    """dw as w's shape and dtype, by filters.cu."""
    dw, (filters, c, KH, KW) = np.full(w.shape, np.nan, w.dtype), w.shape
    row = partial.size // (len(partial) * filters)
    sizes = [i32(n) for n in (filters, c, KH * KW, tap_length, row, CO, o, len(partial))]
    name = f"add_shares_{SUFFIX[w.dtype]}"
    compile_host("filters.cu").launch(name, (-(-w.size // 256),), (256,), [partial, dw, *sizes])
    return dw


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("groups", [None, 1, 4], ids=["columns", "one group", "four groups"])
def test_weight_gradients_are_put_together(dtype, groups):
    """Seven shares of six 2x3 filters (columns, rows padded), or of eight 3x3 filters in two packs."""
    rng = np.random.default_rng(12)
    O, c, taps = (6, 5, (2, 3)) if groups is None else (16, 8 // groups, (3, 3))
    w = np.zeros((O, c, *taps), dtype)
    T = taps[0] * taps[1]
    if groups is None:
        partial = rng.standard_normal((7, O, T * c + 2)).astype(F32)
        expected, CO, o, tap_length = partial.sum(axis=0)[:, : T * c].reshape(O, T, c), O, O, c
    else:  # packs of 8 x 8: the channels of group g, among the pack's groups, are those from g c on
        CO, o, tap_length = 8, 8 // groups, 8
        partial = rng.standard_normal((7, O, T, 8)).astype(F32)
        first = np.arange(O) % CO // o * c
        expected = np.stack([partial.sum(axis=0)[f, :, at : at + c] for f, at in enumerate(first)])
    dw = put_together(partial, w, tap_length, CO, o)
    close(dw, expected.transpose(0, 2, 1).reshape(w.shape), dtype)


def pack(module, w, packing):
    """The weights w (O, c, 3, 3) in packs, as they are and turned, by filters.cu."""
    packed = np.full((packing.packs, packing.CO, 9, packing.CI), np.nan, BF16)
    turned = np.full((packing.packs, packing.CI, 9, packing.CO), np.nan, BF16)
    blocks = packing.packs * (packing.CO // SIDE) * (packing.CI // SIDE)
    arguments = [w, packed, turned, *map(i32, (packing.CO, packing.CI, packing.o, packing.c))]
    module.launch(f"conv3x3_pack_{SUFFIX[w.dtype]}", (blocks,), (256,), arguments)
    return packed, turned


def check_conv3x3(module, case, schedule=0):
    """Forward, input gradient and weight gradient of one case, held to the book."""
    rng = np.random.default_rng(5)
    laying = compile_host("filters.cu")
    for counted in (module, laying):
        counted.bank_conflicts()  # counts from here on
    N, C, O, G, (H, W), stride, _ = case
    forward_pass, weight_pass, input_pass = plan_of(case)
    packing = Packing.of(C, O, G)
    OH, OW = (H - 1) // stride + 1, (W - 1) // stride + 1
    x = rng.standard_normal((N, H, W, C)).astype(BF16)
    w = rng.standard_normal((O, C // G, 3, 3)).astype(BF16)
    dy = rng.standard_normal((N, OH, OW, O)).astype(BF16)

    book = Conv2d()
    book.needs = (True, True, False)
    exact = (x.transpose(0, 3, 1, 2).astype(np.float64), w.astype(np.float64))
    y_book = book.forward(*exact, stride=(stride, stride), padding=(1, 1), dilation=(1, 1), groups=G)
    dx_book, dw_book, _ = book.backward(dy.transpose(0, 3, 1, 2).astype(np.float64))

    packed, turned = pack(laying, w, packing)

    def convolve(launch, source, weights, target, sums=None):
        arguments = [source, weights, target, sums, launch.parts()]
        module.launch(
            launch.kernel(), launch.grid(), launch.block(), arguments, shared=launch.shared_bytes(), schedule=schedule
        )

    y = np.full((N, OH, OW, O), np.nan, BF16)
    sums = np.full((forward_pass.most("tiles"), 2, O), np.nan, F32)
    convolve(forward_pass, x, packed, y, sums)
    close(y, y_book.transpose(0, 2, 3, 1), BF16)
    stored = y.astype(np.float64).reshape(-1, O)
    close(sums.sum(axis=0), [stored.sum(axis=0), (stored**2).sum(axis=0)], F32)

    dx = np.full((N, H, W, C), np.nan, BF16)
    convolve(input_pass, dy, turned, dx)
    close(dx, dx_book.transpose(0, 2, 3, 1), BF16)

    launch, shares = weight_pass, 2
    partial = np.full((shares, packing.packs, packing.CO, 9, packing.CI), np.nan, F32)
    blocks = shares * packing.packs * (packing.CO // 64) * (packing.CI // 64)
    module.launch(
        launch.wgrad_kernel(), (blocks,), (256,), [x, dy, partial, launch.structs, i32(shares)],
        shared=launch.wgrad_bytes(), schedule=schedule,
    )  # fmt: skip
    dw = put_together(partial, w, packing.CI, packing.CO, O // G)
    close(dw, dw_book, BF16)
    if stride * 8 <= W:
        assert module.bank_conflicts() == laying.bank_conflicts() == 0


@pytest.mark.parametrize("schedule", [0, 1])
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv3x3_is_the_books(case, schedule):
    check_conv3x3(compile_host("conv3x3.cu"), case, schedule)


# --- cross-entropy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("N, K", [(3, 2), (70, 10), (5, 100)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_books(N, K, smoothing):
    rng = np.random.default_rng(6)
    logits = (rng.standard_normal((N, K)) * 5 + 80).astype(F32)
    labels = rng.integers(0, K, N)
    module = compile_host("loss.cu")
    mean, one, gradient = np.zeros(1, F32), np.zeros(1, F32), np.zeros((N, K), F32)
    arguments = [logits, labels, mean, one, gradient, i32(N), i32(K), f32(smoothing)]
    module.launch("cross_entropy", (1,), (1024,), arguments)
    book = CrossEntropy()
    expected = book.forward(logits.astype(np.float64), labels=labels, label_smoothing=smoothing)
    np.testing.assert_allclose(mean[0], expected, rtol=1e-5)
    assert one[0] == 1, "what a backward pass begins with"
    np.testing.assert_allclose(gradient, book.backward(np.array(1.0)), rtol=1e-4, atol=1e-7)

    for wrong in (-1, K):
        labels[0] = wrong
        module.launch("cross_entropy", (1,), (1024,), arguments)
        assert np.isnan(mean[0]), "a label that is no class must show"
    labels[0] = 0
    logits[0, K - 1] = np.nan
    module.launch("cross_entropy", (1,), (1024,), arguments)
    assert np.isnan(mean[0]), "and so must a run that has diverged"


@pytest.mark.parametrize(("smoothing", "labels"), [(0.0, [0, 2]), (0.0, [0, 1]), (0.1, [0, 2]), (0.1, [2, 1])])
def test_a_masked_class_means_to_the_kernel_what_it_means_to_the_book(smoothing, labels):
    """A logit of -inf: p = 0, which costs nothing unless the label or label smoothing asks for it."""
    logits, labels = np.array([[1, 2, -np.inf], [0, -np.inf, 3]], F32), np.array(labels)
    mean, one, gradient = np.zeros(1, F32), np.zeros(1, F32), np.zeros((2, 3), F32)
    arguments = [logits, labels, mean, one, gradient, i32(2), i32(3), f32(smoothing)]
    compile_host("loss.cu").launch("cross_entropy", (1,), (1024,), arguments)
    book = CrossEntropy()
    expected = book.forward(logits.astype(np.float64), labels=labels, label_smoothing=smoothing)
    assert np.isfinite(expected) == (smoothing == 0 and labels[1] == 2)
    np.testing.assert_allclose(mean[0], expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, book.backward(np.array(1.0)), rtol=1e-5, atol=1e-7)
