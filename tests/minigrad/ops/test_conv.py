"""Convolution with groups (minigrad/ops/conv.py)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from support import oracles
from support.strategies import conv_cases, normal, seeds

import minigrad.functional as F
from minigrad import Tensor, gradcheck
from minigrad.backend import to_numpy
from minigrad.ops.conv import col2im, conv2d_loops, im2col, output_size


def convolve(case, device="cpu"):
    """Run minigrad on a case; return the output and the leaves (bias only where the case has one)."""
    arrays = [a for a in (case.x, case.w, case.bias) if a is not None]
    leaves = [Tensor(a, requires_grad=True, device=device) for a in arrays]
    return F.conv2d(*leaves, **case.options), leaves


@given(conv_cases())
def test_forward_equals_the_sum_over_windows(device, case):
    y, _ = convolve(case, device)
    assert_allclose(y.numpy(), oracles.conv2d(case.x, case.w, case.bias, **case.options), rtol=1e-12, atol=1e-12)


@given(conv_cases())
def test_the_definition_as_loops_equals_the_oracle(case):
    y = conv2d_loops(case.x, case.w, **case.options)
    assert_allclose(y, oracles.conv2d(case.x, case.w, None, **case.options), rtol=1e-12, atol=1e-12)


@given(conv_cases())
def test_gradients_equal_finite_differences(case):
    gradcheck(lambda *ts: F.conv2d(*ts, **case.options), [a for a in (case.x, case.w, case.bias) if a is not None])


def test_by_hand():
    """A 2x3 image, a 1x2 kernel, one zero of padding on the left and right, stride 2: every number fits on a card."""
    x = Tensor(np.array([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]), requires_grad=True)
    w = Tensor(np.array([[[[10.0, 100.0]]]]), requires_grad=True)
    bias = Tensor(np.array([0.5]), requires_grad=True)
    y = F.conv2d(x, w, bias, stride=(1, 2), padding=(0, 1))
    assert_array_equal(y.data, [[[[100.5, 320.5], [400.5, 650.5]]]])
    y.backward(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert_array_equal(x.grad, [[[[100.0, 20.0, 200.0], [300.0, 40.0, 400.0]]]])
    assert_array_equal(w.grad, [[[[0 + 2 * 2 + 0 + 4 * 5.0, 1 * 1 + 2 * 3 + 3 * 4 + 4 * 6.0]]]])
    assert_array_equal(bias.grad, [10.0])


@given(conv_cases(), seeds)
def test_groups_are_convolutions_side_by_side(device, case, seed):
    """The definition of groups, for outputs and gradients: split channels and filters, convolve each part, join."""
    G, c, o = case.groups, case.x.shape[1] // case.groups, len(case.w) // case.groups
    y, leaves = convolve(case, device)
    dy = normal(seed, *y.shape)
    y.backward(dy)
    options = {**case.options, "groups": 1}
    for g in range(G):
        channels, filters = slice(g * c, (g + 1) * c), slice(g * o, (g + 1) * o)
        parts = [case.x[:, channels], case.w[filters]] + ([] if case.bias is None else [case.bias[filters]])
        part_leaves = [Tensor(a, requires_grad=True, device=device) for a in parts]
        part = F.conv2d(*part_leaves, **options)
        part.backward(dy[:, filters])
        assert_allclose(part.numpy(), y.numpy()[:, filters], rtol=1e-12, atol=1e-12)
        wholes = (to_numpy(leaves[0].grad)[:, channels], *(to_numpy(t.grad)[filters] for t in leaves[1:]))
        for whole, leaf in zip(wholes, part_leaves, strict=True):
            assert_allclose(to_numpy(leaf.grad), whole, rtol=1e-12, atol=1e-12)


@given(conv_cases())
def test_groups_are_a_dense_convolution_with_a_block_diagonal_weight(case):
    G, (O, c, KH, KW) = case.groups, case.w.shape
    dense = np.zeros((G, O // G, G, c, KH, KW))
    dense[range(G), :, range(G)] = case.w.reshape(G, O // G, c, KH, KW)
    y, _ = convolve(case)
    bias = None if case.bias is None else Tensor(case.bias)
    wide = F.conv2d(Tensor(case.x), Tensor(dense.reshape(O, G * c, KH, KW)), bias, **{**case.options, "groups": 1})
    assert_allclose(y.data, wide.data, rtol=1e-12, atol=1e-12)


@given(conv_cases(per_group=(1, 1)))
def test_one_channel_per_group_filters_every_channel_alone(case):
    y, _ = convolve(case)
    for c in range(case.groups):
        bias = None if case.bias is None else case.bias[c : c + 1]
        alone = oracles.conv2d(case.x[:, c : c + 1], case.w[c : c + 1], bias, **{**case.options, "groups": 1})
        assert_allclose(y.data[:, c : c + 1], alone, rtol=1e-12, atol=1e-12)


@given(conv_cases(groups=1))
def test_a_kernel_as_large_as_the_image_is_a_linear_layer(case):
    N, C, H, W = case.x.shape
    w = normal(0, 3, C, H, W)
    y = F.conv2d(Tensor(case.x), Tensor(w))
    assert_allclose(y.data.reshape(N, 3), case.x.reshape(N, -1) @ w.reshape(3, -1).T, rtol=1e-12, atol=1e-12)


@given(conv_cases(), st.floats(-2, 2), seeds)
def test_convolution_is_linear_in_images_and_in_weights(case, factor, seed):
    def run(x, w):
        return F.conv2d(Tensor(x), Tensor(w), **case.options).data

    x2, w2 = normal(seed, *case.x.shape), normal(seed + 1, *case.w.shape)
    assert_allclose(
        run(case.x + factor * x2, case.w), run(case.x, case.w) + factor * run(x2, case.w), rtol=1e-10, atol=1e-10
    )
    assert_allclose(
        run(case.x, case.w + factor * w2), run(case.x, case.w) + factor * run(case.x, w2), rtol=1e-10, atol=1e-10
    )


@given(conv_cases(), seeds)
def test_im2col_and_col2im_are_adjoint(case, seed):
    """<im2col(x), c> = <x, col2im(c)> for every x and c: the one property that makes col2im the gradient."""
    images = oracles.padded(case.x, case.padding)
    kernel = case.w.shape[2:]
    out = output_size(case.x.shape[2:], kernel, case.stride, case.padding, case.dilation)
    columns = im2col(images, kernel, out, case.stride, case.dilation)
    c = normal(seed, *columns.shape)
    back = col2im(c, images.shape, case.stride, case.dilation)
    assert columns.shape == (*case.x.shape[:2], *kernel, *out)
    assert np.vdot(columns, c) == pytest.approx(np.vdot(images, back), rel=1e-10, abs=1e-10)


def test_im2col_lays_windows_side_by_side():
    x = np.arange(12.0).reshape(1, 1, 3, 4)
    columns = im2col(x, (2, 2), (2, 2), (1, 2), (1, 1))
    assert_array_equal(columns[0, 0, :, :, 0, 1], [[2, 3], [6, 7]])
    assert_array_equal(columns[0, 0, :, :, 1, 0], [[4, 5], [8, 9]])


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "expected"),
    [(32, 3, 1, 1, 1, 32), (32, 3, 2, 1, 1, 16), (224, 7, 2, 3, 1, 112), (56, 1, 2, 0, 1, 28), (7, 3, 1, 0, 3, 1)],
)
def test_output_size_of_well_known_layers(size, kernel, stride, padding, dilation, expected):
    assert output_size((size,) * 2, (kernel,) * 2, (stride,) * 2, (padding,) * 2, (dilation,) * 2) == (expected,) * 2


@given(conv_cases())
def test_an_integer_means_the_same_for_both_axes(case):
    x, w = Tensor(normal(0, 1, case.groups * 2, 9, 8)), Tensor(normal(1, case.groups, 2, 2, 3))
    s, p, d = case.stride[0], case.padding[0], case.dilation[0]
    y = F.conv2d(x, w, None, s, p, d, case.groups)
    assert_array_equal(y.data, F.conv2d(x, w, None, (s, s), [p, p], (d, d), np.int64(case.groups)).data)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradient_that_is_wanted_is_computed(wanted):
    x, w = (
        Tensor(normal(i, *s), requires_grad=r)
        for i, (s, r) in enumerate(zip([(1, 2, 4, 3), (2, 2, 2, 2)], wanted, strict=True))
    )
    gradcheck(lambda *_: F.conv2d(x, w), [x, w])
    F.conv2d(x, w).sum().backward()
    assert [t.grad is not None for t in (x, w)] == list(wanted)


@given(conv_cases())
def test_float32_stays_within_its_rounding(device, case):
    """|error| <= 2 (number of terms) eps Σ |w||x|, the classical bound of a sum of products."""
    arrays = [a.astype(np.float32) for a in (case.x, case.w)]
    y = F.conv2d(*(Tensor(a, device=device) for a in arrays), **case.options)
    x, w = (a.astype(np.float64) for a in arrays)
    exact = oracles.conv2d(x, w, None, **case.options)
    size = oracles.conv2d(abs(x), abs(w), None, **case.options)
    assert y.dtype == np.float32
    assert (abs(y.numpy() - exact) <= 2 * (w[0].size + 1) * np.finfo(np.float32).eps * size + 1e-30).all()
