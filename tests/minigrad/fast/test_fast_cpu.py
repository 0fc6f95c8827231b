"""The CPU engine room is held to the book: every fast function against its formula, over drawn shapes."""

import os
import subprocess
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import conv_cases, normal, seeds

import minigrad
from minigrad import Tensor, optim, tensor
from minigrad import functional as F
from minigrad.fast import cpu, handover, process
from minigrad.fast.cpu.conv import base, stacks
from minigrad.fast.cpu.conv.columns import Windows
from minigrad.fast.cpu.conv.geometry import geometry
from minigrad.fast.cpu.conv.winograd import (
    FILTER,
    filter_gradients,
    input_transform,
    input_transposed,
    output_transform,
)
from minigrad.fast.cpu.conv.winograd import output_transposed as transposed
from minigrad.fast.cpu.layout import Moments
from minigrad.fast.cpu.norm import Recipe
from minigrad.fast.cpu.threads import Pool, pool, spans, steps
from minigrad.ops.conv import im2col, output_size, pad_image
from minigrad.ops.norm import batch_norm, batch_norm_relu
from minigrad.ops.pool import MaxPool2d

FAST = {}


@pytest.fixture(scope="module", autouse=True)
def registered():
    """What `cpu.register` puts into the tables, whether or not MINIGRAD_FAST did; and the tables as they were after."""
    tables = tensor.faster, tensor.faster_add, optim.faster_update
    saved = [dict(table) for table in tables]
    cpu.register()
    FAST.update({key: value for key, value in tensor.faster.items() if key[1] == "cpu"})
    yield
    for table, before in zip(tables, saved, strict=True):
        table.clear()
        table.update(before)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """One thread, two, and more than most of the cases have work for."""
    with thread_count(request.param):
        yield request.param


class thread_count:
    """Use so many threads inside, and for every operation, however small."""

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        self.before = cpu.threads()
        cpu.set_threads(self.count)

    def __exit__(self, *_):
        cpu.set_threads(self.before)


@pytest.fixture
def eager(monkeypatch):
    """Wake threads for small work too, so that small cases test how work is cut up."""
    for module in ("cpu.conv.geometry", "cpu.conv.base", "cpu.norm", "cpu.pooling", "cpu"):
        monkeypatch.setattr(f"minigrad.fast.{module}.parts_for", lambda operations: cpu.threads())


def both(function, arrays, seed=0):
    """Run `function` of tensors fast and by the book: two lists of the output and every input's gradient."""
    results = []
    for table in (FAST, {}):
        tensor.faster.clear()
        tensor.faster.update(table)
        inputs = [None if a is None else Tensor(a, requires_grad=True) for a in arrays]
        y = function(*inputs)
        y.backward(normal(seed, *y.shape).astype(y.dtype))
        results.append([y.data] + [t.grad for t in inputs if t is not None])
    tensor.faster.update(FAST)
    return results


def assert_same(function, arrays, tolerance=1e-12):
    """Fast and book agree, forward and backward, to `tolerance` times the largest value."""
    for fast, book in zip(*both(function, arrays), strict=True):
        assert fast.shape == book.shape and fast.dtype == book.dtype
        np.testing.assert_allclose(fast, book, rtol=0, atol=tolerance * max(1, np.abs(book).max()))


# ------------------------------------------------------------------------------------------------ convolution


@pytest.mark.usefixtures("threads", "eager")
def test_convolution_matches_the_book():
    @given(conv_cases())
    def check(case):
        assert_same(lambda x, w, b: F.conv2d(x, w, b, **case.options), [case.x, case.w, case.bias])

    check()


@st.composite
def wide_cases(draw):
    """3x3 convolutions with enough channels a group for Winograd, images of even and odd sizes, and pointwise ones."""
    groups, kernel = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3]))
    c, o = draw(st.sampled_from([(48, 48), (48, 64), (64, 50)]))
    groups = groups if kernel == 3 else 1
    size = draw(st.integers(1, 4)), draw(st.integers(2, 8)), draw(st.integers(2, 8))
    seed = draw(seeds)
    x, w = normal(seed, size[0], groups * c, *size[1:]), normal(seed + 1, groups * o, c, kernel, kernel)
    return x, w, {"padding": kernel // 2, "groups": groups, "stride": draw(st.sampled_from([1, 1, 2]))}


@pytest.mark.usefixtures("threads", "eager")
def test_wide_convolution_matches_the_book():
    @given(wide_cases())
    def check(case):
        x, w, options = case
        assert_same(lambda x, w: F.conv2d(x, w, **options), [x, w])

    check()


@pytest.mark.parametrize("shape", [(3, 8, 40, 44), (1, 3, 70, 66), (18, 4, 16, 16)])
def test_convolution_of_many_rows_matches_the_book(shape):
    """Images larger than one product has rows, and more small images than fit one product."""
    w = normal(1, 8, shape[1], 7, 7)
    assert_same(lambda x, w: F.conv2d(x, w, padding=3), [normal(0, *shape), w])
    assert_same(lambda x, w: F.conv2d(x, w, padding=3, stride=2), [normal(0, *shape), w])


def test_narrow_groups_match_the_book():
    x, w = normal(0, 3, 32, 8, 8), normal(1, 32, 1, 3, 3)
    assert geometry(x.shape, w.shape, (1, 1), (1, 1), (1, 1), 32).merge == 8
    assert_same(lambda x, w: F.conv2d(x, w, padding=1, groups=32), [x, w])
    assert_same(lambda x, w: F.conv2d(x, w, padding=1, groups=32, stride=2), [x, w])


@st.composite
def narrow_cases(draw):
    """3x3 convolutions of many groups of at most 8 channels, on images of 16 pixels a row or more."""
    groups, c, o = draw(st.integers(8, 11)), draw(st.integers(5, 8)), draw(st.integers(5, 8))
    n, H, W, seed = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(16, 21)), draw(seeds)
    return normal(seed, n, groups * c, H, W), normal(seed + 1, groups * o, c, 3, 3), groups


@pytest.mark.usefixtures("threads", "eager")
@pytest.mark.parametrize(("most_pixels", "most_channels"), [(1024, 128), (60, 9)])
def test_narrow_groups_of_wide_images_match_the_book(monkeypatch, most_pixels, most_channels):
    """All at once, and in bands of a few rows and chunks of a few groups."""
    monkeypatch.setattr(stacks, "PIXELS", most_pixels)
    monkeypatch.setattr(stacks, "CHANNELS", most_channels)

    @given(narrow_cases())
    def check(case):
        x, w, groups = case
        s = geometry(x.shape, w.shape, (1, 1), (1, 1), (1, 1), groups)
        assert isinstance(base.method(s), stacks.Narrow)
        assert_same(lambda x, w: F.conv2d(x, w, padding=1, groups=groups), [x, w])

    check()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("band", [(0, 7), (0, 2), (3, 5), (5, 7)])
def test_three_neighbouring_stacks_are_a_window(dtype, band):
    x, groups, (H, W) = normal(0, 2, 7, 16, 6).astype(dtype), 2, (7, 16)
    book = im2col(pad_image(x.transpose(0, 3, 1, 2), (1, 1)), (3, 3), (H, W), (1, 1), (1, 1))
    book = book.reshape(2, groups, 3, 3, 3, H, W).transpose(1, 0, 5, 6, 4, 3, 2)  # (G, n, H, W, KW, KH, c)
    rows = band[1] - band[0]
    windows = np.full((groups, 2 * rows * (W + 2), 27), np.nan, dtype)
    for which, matrix in stacks.thirds(stacks.stacked(x, groups, band)):
        windows[:, which] = matrix
    found = windows.reshape(groups, 2, rows, W + 2, 27)[:, :, :, :W]
    np.testing.assert_array_equal(found, book[:, :, slice(*band)].reshape(found.shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (1, 2)])
def test_windows_are_unfolded_as_the_book_unfolds_them(dtype, dilation):
    """Bytes are moved as they are, a band at a time, from fewer images than the buffer holds and from a slice."""
    x = normal(0, 3, 7, 8, 10).astype(dtype)
    kernel, stride, padding = (3, 2), (2, 1), (1, 2)
    OH, OW = output_size((7, 8), kernel, stride, padding, dilation)
    windows = Windows(3, (7, 8), 4, kernel, OW, stride, padding, dilation, x.dtype)
    for images in (x[..., 2:6], x[:2, ..., 6:]):
        windows.load(images)
        book = im2col(pad_image(images.transpose(0, 3, 1, 2), padding), kernel, (OH, OW), stride, dilation)
        book = book.transpose(0, 4, 5, 2, 3, 1)  # (n, OH, OW, KH, KW, c)
        for band in ((0, 1), (1, OH)):
            np.testing.assert_array_equal(windows.unfold(band), book[:, slice(*band)].reshape(-1, 3 * 2 * 4))


def test_float32_convolution_is_as_exact_as_float32_allows():
    """Winograd's additions cost a digit at most: it is held to the book in float64, not to the book in float32."""
    x, w = normal(0, 2, 128, 16, 16), normal(1, 128, 64, 3, 3)
    exact = both(lambda x, w: F.conv2d(x, w, padding=1, groups=2), [x, w])[1]
    fast = both(lambda x, w: F.conv2d(x, w, padding=1, groups=2), [x.astype(np.float32), w.astype(np.float32)])[0]
    for a, b in zip(fast, exact, strict=True):
        assert a.dtype == np.float32
        assert np.abs(a - b).max() < 3e-6 * np.abs(b).max()


def test_winograd_transforms_are_transposes_of_each_other():
    """⟨Bᵀ d B, v⟩ = ⟨d, B v Bᵀ⟩ and so on: what the backward pass rests on."""
    x, v = normal(0, 2, 6, 4, 3), normal(1, 4, 4, 2, 3, 2, 3)
    forward = (input_transform(x) * v).sum()
    dx = np.empty_like(x)
    input_transposed(v.copy(), dx)
    assert forward == pytest.approx((x * dx).sum())

    y, dy = np.empty((2, 6, 4, 3)), normal(2, 2, 6, 4, 3)
    output_transform(v.copy(), y)
    assert (y * dy).sum() == pytest.approx((v * transposed(dy)).sum())

    g, u = normal(3, 9, 6), normal(4, 16, 6)
    assert (FILTER @ g * u).sum() == pytest.approx((g * filter_gradients(u.reshape(1, 16, 2, 3)).reshape(9, 6)).sum())


def test_views_and_odd_layouts_are_read_correctly():
    x, w = normal(0, 4, 6, 8, 8), normal(1, 5, 6, 3, 3)
    for view in (x[::-1], x[:, ::-1, :, ::-1], x.transpose(0, 1, 3, 2), np.broadcast_to(x[:1], x.shape)):
        inputs = Tensor._of(view), Tensor(w)
        np.testing.assert_allclose(
            F.conv2d(*inputs, padding=1).data, F.conv2d(Tensor(view), Tensor(w), padding=1).data, atol=1e-12
        )


# ---------------------------------------------------------------------------------------------------- pooling


@st.composite
def pool_cases(draw):
    """Images with equal values and NaN among them, and windows that fit."""
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    H, W = draw(st.integers(kernel[0], 9)), draw(st.integers(kernel[1], 9))
    x = normal(draw(seeds), draw(st.integers(1, 4)), draw(st.integers(1, 5)), H, W)
    if draw(st.booleans()):
        x = np.round(x)
    if draw(st.booleans()):
        x[..., 0, 0] = np.nan
    return x, kernel, stride, padding


@pytest.mark.usefixtures("threads", "eager")
@pytest.mark.parametrize("function", [F.max_pool2d, F.avg_pool2d])
def test_pooling_matches_the_book(function):
    @given(pool_cases())
    def check(case):
        x, *window = case
        for a, b in zip(*both(lambda x: function(x, *window), [x]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)

    check()


def test_pooling_leaves_large_windows_to_the_book():
    x = normal(0, 1, 2, 17, 17)
    assert not FAST[MaxPool2d, "cpu"].accepts(x, kernel=(17, 17))  # a tap's number would not fit
    assert_same(lambda x: F.max_pool2d(x, 17), [x])


# ------------------------------------------------------------------------------------------------- batch norm


def norm_state(C, seed=9):
    """Running mean and variance."""
    return normal(seed, C), np.abs(normal(seed + 1, C)) + 0.5


@pytest.mark.usefixtures("threads", "eager")
def test_batch_norm_matches_the_book():
    @given(st.integers(2, 5), st.integers(1, 40), st.integers(1, 9), st.booleans(), st.booleans(), seeds)
    def check(N, C, size, training, shortcut, seed):
        arrays = [normal(seed, N, C, size, size + 1), normal(seed + 1, C), normal(seed + 2, C)]
        added = [normal(seed + 3, *arrays[0].shape)] if shortcut else []

        def rectified(x, weight, bias, s=None):
            return batch_norm_relu(x, weight, bias, *norm_state(C), training, shortcut=s)

        assert_same(rectified, arrays + added, 1e-11)
        assert_same(lambda x, w, b: batch_norm(x, w, b, *norm_state(C), training), arrays, 1e-11)

    check()


def test_running_statistics_match_the_book():
    x, one, zero = normal(0, 4, 6, 5, 5) + 3, np.ones(6), np.zeros(6)
    states = []
    for table in (FAST, {}):
        tensor.faster.clear()
        tensor.faster.update(table)
        states.append(norm_state(6))
        batch_norm_relu(Tensor(x), Tensor(one), Tensor(zero), *states[-1], True)
    tensor.faster.update(FAST)
    np.testing.assert_allclose(states[0], states[1], rtol=1e-12)


def test_statistics_do_not_cancel():
    """A mean a thousand times the deviation leaves float32 three digits of x̂ to lose, not all of them."""
    x = (normal(0, 8, 4, 16, 16) + 1000).astype(np.float32)
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    fast = batch_norm(Tensor(x), Tensor(one), Tensor(zero), None, None, True).data
    wide = x.astype(np.float64)
    exact = (wide - wide.mean((0, 2, 3), keepdims=True)) / np.sqrt(wide.var((0, 2, 3), keepdims=True) + 1e-5)
    assert np.abs(fast - exact).max() < 1e-3


def test_nan_and_infinity_pass_through():
    x = normal(0, 2, 3, 4, 4)
    x[0, 1, 2, 2] = np.nan
    y = batch_norm_relu(Tensor(x), Tensor(np.ones(3)), Tensor(np.zeros(3)), None, None, True).data
    assert np.isnan(y[:, 1]).all() and np.isfinite(y[:, [0, 2]]).all()


# ------------------------------------------------------------------------------- what operations tell each other


def block(x, w1, g1, b1, w2, g2, b2, w3, g3, b3):
    """A residual block with everything that is fused: notes on statistics, recipes, masked gradients, shortcuts."""
    y = batch_norm_relu(F.conv2d(x, w1), g1, b1, None, None, True)
    y = batch_norm_relu(F.conv2d(y, w2, padding=1, groups=2), g2, b2, None, None, True)
    y = batch_norm_relu(F.conv2d(y, w3), g3, b3, None, None, True, shortcut=x)
    z = batch_norm(F.conv2d(y, w1, stride=2), g1, b1, None, None, True)
    q = batch_norm_relu(F.conv2d(y, w1), g1, b1, None, None, True)
    return batch_norm_relu(F.conv2d(q, w2, stride=2, padding=1, groups=2), g2, b2, None, None, True, shortcut=z)


def block_arrays(N, width, dtype=np.float64):
    c = width // 2
    shapes = [(N, 16, 8, 8), (width, 16, 1, 1), (width,), (width,), (width, c, 3, 3), (width,), (width,)]
    shapes += [(16, width, 1, 1), (16,), (16,)]
    return [normal(i, *shape).astype(dtype) for i, shape in enumerate(shapes)]


@pytest.mark.usefixtures("threads", "eager")
@pytest.mark.parametrize(("N", "width"), [(2, 96), (5, 8), (3, 32)])
def test_fused_block_matches_the_book(N, width):
    assert_same(block, block_arrays(N, width), 1e-11)


def relu_input(x, C):
    """A rectified batch norm's output with a note on how to make it again."""
    y = batch_norm_relu(x, Tensor(np.ones(C)), Tensor(np.zeros(C)), None, None, True)
    assert handover.find(y.data, Recipe) is not None
    return y


def test_a_leaf_that_shares_the_array_gets_its_own_gradient():
    """The mask of the ReLU that made an array belongs to that ReLU, not to whoever else holds the array."""
    x = Tensor(normal(0, 2, 4, 6, 6), requires_grad=True)
    leaf = relu_input(x, 4).detach()
    leaf.requires_grad = True
    w = normal(1, 5, 4, 1, 1)
    y = F.conv2d(leaf, Tensor(w))
    dy = normal(2, *y.shape)
    y.backward(dy)
    np.testing.assert_allclose(leaf.grad, np.einsum("nohw,oc->nchw", dy, w[:, :, 0, 0]), atol=1e-12)


def test_two_consumers_of_one_activation():
    """Gradients that meet are added before the mask, whatever each of them was told."""
    w = normal(3, 4, 4, 1, 1)

    def function(x, w):
        y = batch_norm_relu(x, Tensor(np.ones(4)), Tensor(np.zeros(4)), None, None, True)
        return F.conv2d(y, w) + F.conv2d(y * y, w) + y

    assert_same(function, [normal(0, 2, 4, 6, 6), w], 1e-11)


def test_one_gradient_for_two_batch_norms():
    """A gradient that two nodes read may be overwritten by neither."""

    def function(x, z, w):
        one, zero = Tensor(np.ones(4)), Tensor(np.zeros(4))
        y = batch_norm_relu(x, one, zero, None, None, True) + batch_norm_relu(z, one, zero, None, None, True)
        return F.conv2d(y, w)

    assert_same(function, [normal(0, 2, 4, 6, 6), normal(1, 2, 4, 6, 6), normal(2, 4, 4, 1, 1)], 1e-11)


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_gradients_are_added_in_any_layout(layout):
    a, b = (normal(i, 6, 7, 64, 80).transpose(layout) for i in range(2))
    for x, y in ((a, b), (a, b.copy()), (a[:, :3], b[:, :3])):
        np.testing.assert_array_equal(cpu.add_gradients(x, y), x + y)
    assert cpu.add_gradients(a, b).strides == (a + b).strides


def test_strided_pointwise_after_relu():
    def function(x, w):
        return F.conv2d(batch_norm_relu(x, Tensor(np.ones(4)), Tensor(np.zeros(4)), None, None, True), w, stride=2)

    assert_same(function, [normal(0, 2, 4, 6, 7), normal(1, 5, 4, 1, 1)], 1e-11)


def test_notes_die_with_their_arrays():
    before = len(handover._notes)
    array = np.zeros(3)
    handover.attach(array, Moments(3))
    assert handover.find(array, Moments) is not None and handover.find(array, Recipe) is None
    assert handover.find(array.view(), Moments) is None
    del array
    assert len(handover._notes) == before


# --------------------------------------------------------------------------------------------------- threads


def test_same_threads_same_bits_and_other_threads_same_numbers():
    results = {}
    for count in (1, 2, 2, 3):
        with thread_count(count):
            result = both(block, block_arrays(9, 96, np.float32))[0]
        if count in results:
            assert all(np.array_equal(a, b) for a, b in zip(result, results[count], strict=True))
        results[count] = result
    for count in (2, 3):
        for a, b in zip(results[count], results[1], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_two_threads_of_the_user_do_not_disturb_each_other():
    arrays = block_arrays(4, 96)
    expected = both(block, arrays)[1]
    failures = []

    def work():
        inputs = [Tensor(a, requires_grad=True) for a in arrays]
        y = block(*inputs)
        y.backward(normal(0, *y.shape))
        for a, b in zip([y.data] + [t.grad for t in inputs], expected, strict=True):
            if np.abs(a - b).max() > 1e-10 * max(1, np.abs(b).max()):
                failures.append(np.abs(a - b).max())

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
        assert not t.is_alive()
    assert not failures


def test_an_exception_reaches_the_caller_and_the_pool_goes_on():
    own = Pool(3)

    def fail(part):
        if part == 2:
            raise ArithmeticError("part 2")

    with pytest.raises(ArithmeticError, match="part 2"):
        own.run(fail, [0, 1, 2])
    done = []
    own.run(done.append, [0, 1, 2])
    assert sorted(done) == [0, 1, 2]
    own.stop()


def test_blas_threads_are_put_back():
    from threadpoolctl import threadpool_info

    before = [i["num_threads"] for i in threadpool_info()]
    pool().run(lambda part: None, [0])
    assert [i["num_threads"] for i in threadpool_info()] == before


def test_the_turn_of_pythons_lock_and_numpys_buffer_are_put_back():
    def settings():
        return round(sys.getswitchinterval(), 6), np.getbufsize()

    before, seen, own = settings(), [], Pool(2)
    own.run(lambda part: seen.append(settings()), [0, 1])
    assert seen == [(1e-4, 512)] * 2
    assert settings() == before
    with pytest.raises(ZeroDivisionError):
        own.run(lambda part: 1 // part, [1, 0])
    assert settings() == before
    own.stop()


@pytest.mark.parametrize(
    ("family", "flags", "zen4"),
    [
        (25, "avx2 avx512f fma", True),
        (25, "avx2 fma", False),
        (26, "avx2 avx512f fma", False),
        (6, "avx512f fma", False),
    ],
)
def test_the_processor_is_recognised(family, flags, zen4):
    text = f"processor\t: 0\ncpu family\t: {family}\nmodel\t\t: 17\nflags\t\t: fpu {flags} sse\n\nprocessor\t: 1\n"
    assert process.is_zen4(text) == zen4


KERNELS = """
import ctypes, sys, threading
import numpy as np
from minigrad.fast import process
{before}
found = [b for b in process.libraries() if b.internal_api == "openblas"]
if not found or not hasattr(handle := ctypes.CDLL(found[0].filepath), "gotoblas_corename"):
    print("no choice")
    sys.exit()
handle.gotoblas_corename.restype = ctypes.c_char_p
found[0].architecture = "SkylakeX"
then = handle.gotoblas_corename().decode()
process.choose_kernels(sys.argv[1])
a = np.random.default_rng(0).standard_normal((300, 300))
assert np.allclose(a.astype(np.float32) @ a.astype(np.float32), a @ a, atol=1e-3)
print(then, handle.gotoblas_corename().decode(), found[0].architecture)
"""


@pytest.mark.parametrize(
    ("before", "pin", "chooses"),
    [
        ("", None, True),
        ("", "Nehalem", False),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", None, False),
    ],
)
def test_openblas_is_asked_for_other_kernels_on_zen4_alone(tmp_path, before, pin, chooses):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("cpu family\t: 25\nflags\t\t: fma avx512f sse\n")
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"} | {"MINIGRAD_FAST": "0"}
    if pin is not None:
        environment["OPENBLAS_CORETYPE"] = pin
    code = KERNELS.format(before=before)
    answer = subprocess.run(
        [sys.executable, "-c", code, str(cpuinfo)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    if answer == ["no", "choice"]:
        pytest.skip("NumPy's BLAS is no OpenBLAS that can choose its kernels")
    then, now, noted = answer
    if chooses:
        assert now == noted == "Haswell"  # the AVX2 kernels, whatever the machine would have by itself
    else:
        assert now == then


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([np.float32, np.float64]))
def test_transposed(O, C, dtype):
    w = np.arange(O * C, dtype=dtype).reshape(O, C)
    turned = base.transposed(w)
    assert turned.flags.c_contiguous and turned.dtype == dtype
    np.testing.assert_array_equal(turned, w.T)


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), (True, TypeError)])
def test_set_threads_refuses(count, error):
    with pytest.raises(error, match="number of threads"):
        cpu.set_threads(count)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 16))
def test_spans_cover_everything_once(total, parts, unit):
    cut = spans(total, parts, unit)
    assert len(cut) <= parts and cut[0][0] == 0 and cut[-1][1] == total
    assert all(a[1] == b[0] for a, b in pairwise(cut)) and all(a < b for a, b in cut)
    pieces = [p for span in cut for p in steps(span, unit)]
    assert sum(b - a for a, b in pieces) == total and all(0 < b - a <= unit for a, b in pieces)


def test_threads_survive_a_fork():
    """A child process has none of its parent's threads and must start its own."""
    code = (
        "import os, numpy as np, minigrad\n"
        "from minigrad import Tensor, functional as F\n"
        "minigrad.fast.cpu.set_threads(2)\n"
        "x = Tensor(np.ones((8, 16, 16, 16), np.float32)); w = Tensor(np.ones((16, 16, 3, 3), np.float32))\n"
        "F.conv2d(x, w, padding=1)\n"
        "pid = os.fork()\n"
        "F.conv2d(x, w, padding=1)\n"
        "if pid: raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "os._exit(0)\n"
    )
    environment = {**os.environ, "MINIGRAD_FAST": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60, env=environment)


# ------------------------------------------------------------------------------------------------------- SGD


@given(st.integers(1, 300), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 1e-2]), st.booleans(), seeds)
def test_sgd_matches_the_book(size, momentum, weight_decay, nesterov, seed):
    w, dw, velocity = normal(seed, size), normal(seed + 1, size), normal(seed + 2, size)
    book = [w.copy(), dw.copy(), velocity.copy()]
    cpu.sgd_update(w, dw, velocity, 0.1, momentum, weight_decay, nesterov and momentum > 0)
    optim.sgd_update(*book, 0.1, momentum, weight_decay, nesterov and momentum > 0)
    for fast, expected in zip((w, dw, velocity), book, strict=True):
        np.testing.assert_allclose(fast, expected, rtol=1e-12, atol=1e-14)


def test_sgd_of_many_numbers_and_of_views():
    size = 300_001
    for view in (lambda a: a, lambda a: a.reshape(1, -1)[:, ::2].T):
        w, dw, velocity = (view(normal(i, size)) for i in range(3))
        book = [w.copy(), dw.copy(), velocity.copy()]
        cpu.sgd_update(w, dw, velocity, 0.1, 0.9, 1e-3, True)
        optim.sgd_update(*book, 0.1, 0.9, 1e-3, True)
        np.testing.assert_allclose(w, book[0], rtol=1e-12, atol=1e-14)


def test_a_network_takes_the_same_step_both_ways():
    from resnext import create

    losses = []
    for table in (FAST, {}):
        tensor.faster.clear()
        tensor.faster.update(table)
        minigrad.manual_seed(3)
        model = create("resnext11_4x8d").to(dtype="float64")
        optimizer = optim.SGD(model.parameters(), 0.05, 0.9, 1e-3, True)
        images, labels = normal(0, 4, 3, 16, 16), np.arange(4)
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(Tensor(images)), labels)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    tensor.faster.update(FAST)
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
