"""Convolution and pooling in the CPU's engine room, each held to its formula over drawn shapes."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engine import assert_same, both, only
from support.strategies import conv_cases, normal, positive, seeds

from minigrad import Tensor, no_grad
from minigrad import functional as F
from minigrad.fast import cpu
from minigrad.fast.cpu.conv import phases, pointwise, runs
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
from minigrad.fast.cpu.pool import FastMaxPool2d
from minigrad.ops.conv import im2col, output_size, pad_image
from minigrad.ops.norm import batch_norm_relu
from minigrad.registry import register
from minigrad.tensor import add_gradients


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
    """3x3 convolutions of many groups of at most 8 channels, on images whose width divides by 2 or 4, or does not."""
    groups = draw(st.sampled_from([32, 33, 34, 64]))
    c, o = draw(st.sampled_from([(1, 1), (1, 2), (2, 2), (3, 4), (4, 4), (5, 8), (8, 7)]))
    n, H, W, seed = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(seeds)
    return normal(seed, n, groups * c, H, W), normal(seed + 1, groups * o, c, 3, 3), groups


@pytest.mark.usefixtures("threads", "eager")
@pytest.mark.parametrize(("most_pixels", "most_channels"), [(1024, 128), (20, 9)])
def test_many_narrow_groups_match_the_book(monkeypatch, most_pixels, most_channels):
    """All at once, and in bands of a few rows and chunks of a few groups."""
    monkeypatch.setattr(runs, "PIXELS", most_pixels)
    monkeypatch.setattr(runs, "NUMBERS", most_pixels)
    monkeypatch.setattr(runs, "CHANNELS", most_channels)

    @given(narrow_cases())
    def check(case):
        x, w, groups = case
        s = geometry(x.shape, w.shape, (1, 1), (1, 1), (1, 1), groups)
        assert runs.Runs.suits(s)
        assert_same(lambda x, w: F.conv2d(x, w, padding=1, groups=groups), [x, w])

    check()


@st.composite
def halved_cases(draw):
    """3x3 convolutions of stride 2, of narrow and wide groups, on images of even height and width."""
    groups, c, o = draw(st.sampled_from([(1, 3, 5), (2, 20, 17), (32, 1, 1), (19, 7, 6), (5, 2, 3)]))
    n, H, W, seed = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(seeds)
    return normal(seed, n, groups * c, 2 * H, 2 * W), normal(seed + 1, groups * o, c, 3, 3), groups


@pytest.mark.usefixtures("threads", "eager")
@pytest.mark.parametrize("most_channels", [128, 9])
def test_stride_2_matches_the_book(monkeypatch, most_channels):
    monkeypatch.setattr(phases, "CHANNELS", most_channels)

    @given(halved_cases())
    def check(case):
        x, w, groups = case
        assert phases.Phases.suits(geometry(x.shape, w.shape, (2, 2), (1, 1), (1, 1), groups))
        assert_same(lambda x, w: F.conv2d(x, w, stride=2, padding=1, groups=groups), [x, w])

    check()


def test_stride_2_takes_over_from_batch_norm():
    """dx is masked, and x made again, for the batch norm before it; many images in several pieces."""
    arrays = [normal(0, 9, 24, 16, 32), positive(1, 24), normal(2, 24), normal(3, 24, 6, 3, 3)]

    def after_norm(x, scale, shift, w):
        return F.conv2d(batch_norm_relu(x, scale, shift, None, None, True), w, stride=2, padding=1, groups=4)

    assert_same(after_norm, arrays, tolerance=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("band", [(0, 7), (0, 2), (3, 5), (5, 7)])
@pytest.mark.parametrize("run", [2, 4])
def test_runs_of_outputs_share_a_window(dtype, band, run):
    """The book's windows of a run's outputs are the run's own, each a pixel further on."""
    x, groups, (H, W) = normal(0, 2, 7, 16, 6).astype(dtype), 2, (7, 16)
    book = im2col(pad_image(x.transpose(0, 3, 1, 2), (1, 1)), (3, 3), (H, W), (1, 1), (1, 1))
    book = book.reshape(2, groups, 3, 3, 3, H, W // run, run).transpose(
        1, 0, 5, 6, 7, 3, 4, 2
    )  # (G, n, H, R, run, KH, KW, c)
    found = runs.windows(x, groups, band, run).reshape(groups, 2, band[1] - band[0], W // run, 3, run + 2, 3)
    for q in range(run):
        np.testing.assert_array_equal(found[..., q : q + 3, :], book[:, :, slice(*band), :, q])


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
    assert not FastMaxPool2d.accepts(x, kernel=(17, 17))  # a tap's number would not fit
    assert_same(lambda x: F.max_pool2d(x, 17), [x])


# ------------------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("O", [2, 8])
def test_filters_alone_have_a_gradient(O):
    """As in a network's first convolution: from the columns of x or of dy, whichever are fewer."""
    x = Tensor(normal(0, 3, 3, 9, 8))
    assert_same(lambda w: F.conv2d(x, w, padding=1), [normal(1, O, 3, 3, 3)])


def test_gradients_of_one_input_are_added_by_its_convolutions():
    """A 1x1, a 1x1 of stride 2 and a 3x3 that read one array, in any order."""
    kernels = [
        (normal(1, 5, 4, 1, 1), {}),
        (normal(2, 5, 4, 1, 1), {"stride": 2}),
        (normal(3, 4, 4, 3, 3), {"padding": 1}),
    ]

    def nowhere_else(a, b):
        raise AssertionError("two gradients were added in a sweep of their own")

    def function(x, *weights):
        a = batch_norm_relu(x, Tensor(np.ones(4)), Tensor(np.zeros(4)), None, None, True)
        return F.concat([F.conv2d(a, w, **o).sum((2, 3)) for w, (_, o) in zip(weights, order, strict=True)], axis=1)

    for order in permutations(kernels):
        arrays = [normal(0, 3, 4, 6, 8), *(w for w, _ in order)]
        assert_same(function, arrays, 1e-11)
        register(add_gradients, "cpu", nowhere_else)
        function(*(Tensor(a, requires_grad=True) for a in arrays)).sum().backward()


def test_strided_pointwise_after_relu():
    def function(x, w):
        return F.conv2d(batch_norm_relu(x, Tensor(np.ones(4)), Tensor(np.zeros(4)), None, None, True), w, stride=2)

    assert_same(function, [normal(0, 2, 4, 6, 7), normal(1, 5, 4, 1, 1)], 1e-11)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([np.float32, np.float64]))
def test_transposed(O, C, dtype):
    w = np.arange(O * C, dtype=dtype).reshape(O, C)
    turned = pointwise.transposed(w)
    assert turned.flags.c_contiguous and turned.dtype == dtype
    np.testing.assert_array_equal(turned, w.T)


METHODS = pytest.mark.parametrize(
    ("shape", "weights", "options"),
    [
        ((2, 48, 6, 6), (48, 48, 3, 3), {"padding": 1}),
        ((2, 64, 4, 16), (64, 8, 3, 3), {"padding": 1, "groups": 8}),
        ((2, 64, 4, 16), (64, 1, 3, 3), {"padding": 1, "groups": 64}),
        ((2, 4, 6, 7), (4, 2, 3, 3), {"padding": 1, "groups": 2}),
        ((2, 16, 6, 7), (16, 16, 3, 3), {"padding": 1}),
        ((2, 4, 6, 7), (4, 2, 3, 3), {"padding": 1, "groups": 2, "stride": 2}),
        ((2, 8, 6, 8), (8, 4, 3, 3), {"padding": 1, "groups": 2, "stride": 2}),
        ((2, 4, 6, 7), (5, 4, 1, 1), {}),
        ((2, 16, 6, 7), (16, 1, 1, 1), {"groups": 16}),
    ],
    ids=[
        "winograd",
        "runs",
        "merged runs",
        "columns of dy",
        "one group",
        "columns of x",
        "phases",
        "pointwise",
        "merged pointwise",
    ],
)


@METHODS
@pytest.mark.parametrize("where", ["x", "w", "dy"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("around", ["leaf", "bias", "norm"])
def test_nan_and_infinity_come_out_where_the_formulas_let_them(shape, weights, options, where, bad, around):
    """In every output and gradient, with their sign: 0 times infinity and differences of infinities are NaN.

    Merged groups multiply zeros, Winograd's transforms take differences, windows of dy meet zeros beyond the edge. So
    the number stands in a corner of one image, and inside another, where windows of several outputs see it.
    """
    results = []
    for rooms in ([cpu.register], []):
        with only(*rooms), np.errstate(invalid="ignore"):
            arrays = {"x": normal(0, *shape), "w": normal(1, *weights)}
            if where in arrays:
                arrays[where][1, 0, 0, 0] = bad
            if where == "x":
                arrays["x"][0, 1, 2, 3] = bad
            x, w = (Tensor(a, requires_grad=True) for a in arrays.values())
            C, O = shape[1], weights[0]
            # In evaluation, so that no mean spreads what is not finite to its whole channel.
            own = (Tensor(np.ones(C)), Tensor(np.zeros(C)), np.zeros(C), np.ones(C), False)
            a = batch_norm_relu(x, *own) if around == "norm" else x
            y = F.conv2d(a, w, Tensor(np.ones(O)) if around == "bias" else None, **options)
            dy = normal(2, *y.shape)
            if where == "dy":
                dy[1, 2, 0, 0] = dy[0, 1, 1, 2] = bad
            y.backward(dy)
            with no_grad():
                results.append((y.data, F.relu(F.conv2d(x, w, **options)).data, x.grad, w.grad))
    for fast, book in zip(*results, strict=True):
        np.testing.assert_allclose(fast, book, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("shape", "weights", "options"),
    [
        ((1, 4, 4, 1), (4, 1, 4, 3), {"padding": (5, 8), "dilation": (3, 4), "groups": 4}),
        ((1, 4, 2, 5), (4, 4, 2, 2), {"padding": (2, 1), "dilation": (3, 1)}),
        ((1, 4, 3, 3), (4, 4, 1, 1), {"padding": 1}),
        ((1, 16, 4, 4), (16, 16, 3, 3), {"padding": 3, "stride": 2}),
    ],
    ids=["taps on both sides", "rows", "pointwise", "stride 2"],
)
def test_a_gradient_whose_window_sees_no_pixel(shape, weights, options):
    """The weights' gradient has its product with the zeros of the border: NaN, wherever it stands."""
    x, w = Tensor(normal(0, *shape), requires_grad=True), Tensor(normal(1, *weights), requires_grad=True)
    size = F.conv2d(x, w, **options).shape
    for place in np.ndindex(*size[2:]):
        dy = normal(2, *size)
        dy[0, 1, *place] = np.nan
        nans = []
        for rooms in ([cpu.register], []):
            with only(*rooms):
                x.grad = w.grad = None
                F.conv2d(x, w, **options).backward(dy)
                nans.append((np.isnan(x.grad), np.isnan(w.grad)))
        for fast, book in zip(*nans, strict=True):
            np.testing.assert_array_equal(fast, book)


def test_zero_times_infinity_in_a_product_of_one_row():
    """A gradient of 0 meets an infinite pixel: NumPy's `dot` skips a factor of 0 where the other side has one row."""
    x, w = Tensor(np.full((1, 2, 1, 1), np.inf)), Tensor(np.ones((1, 2, 1, 1)), requires_grad=True)
    with np.errstate(invalid="ignore"):
        F.conv2d(x, w).backward(np.zeros((1, 1, 1, 1)))
    assert np.isnan(w.grad).all()


def test_numbers_that_a_sum_cannot_hold():
    """Winograd adds neighbouring pixels before it multiplies: too large for float32, where the definition's are not."""
    x, w = np.full((1, 64, 4, 4), 3e38, np.float32), np.full((64, 64, 3, 3), 1e-3 / 576, np.float32)
    for recorded in (True, False):
        with np.errstate(over="ignore"):
            y = F.conv2d(Tensor(x, requires_grad=recorded), Tensor(w), padding=1)
        assert np.isfinite(y.data).all()


@pytest.mark.parametrize("shape", [(16, 2, 224, 224), (1, 600, 5, 5), (3, 7, 40, 40)], ids=["tall", "wide", "square"])
def test_the_bias_gradient_does_not_drift(shape):
    """Sums of 1,024 numbers at most in float32, the rest in float64: 1e-4 is far above, 0.8 % was the drift."""
    x, w, bias = (Tensor._of(np.zeros(s, np.float32)) for s in (shape, (3, shape[1], 1, 1), 3))
    bias.requires_grad = True
    y = F.conv2d(x, w, bias)
    y.backward(np.full(y.shape, 0.1, np.float32))
    exact = float(np.float32(0.1)) * y.size / 3
    np.testing.assert_allclose(bias.grad, exact, rtol=1e-5)
