"""Batch norm in the CPU's engine room, the whole residual block, and what is beside the tape: sums and steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engine import assert_same, block, block_arrays, both, only
from support.strategies import normal, seeds

import minigrad
from minigrad import Tensor, optim, registry
from minigrad import functional as F
from minigrad.fast import cpu
from minigrad.fast.cpu import add, layout, sgd
from minigrad.ops.norm import batch_norm, batch_norm_relu
from minigrad.tensor import add_gradients


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
    for rooms in ([cpu.register], []):
        with only(*rooms):
            states.append(norm_state(6))
            batch_norm_relu(Tensor(x), Tensor(one), Tensor(zero), *states[-1], True)
    np.testing.assert_allclose(states[0], states[1], rtol=1e-12)


def test_statistics_do_not_cancel():
    """A mean a thousand times the deviation leaves float32 three digits of x̂ to lose, not all of them."""
    x = (normal(0, 8, 4, 16, 16) + 1000).astype(np.float32)
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    fast = batch_norm(Tensor(x), Tensor(one), Tensor(zero), None, None, True).data
    wide = x.astype(np.float64)
    exact = (wide - wide.mean((0, 2, 3), keepdims=True)) / np.sqrt(wide.var((0, 2, 3), keepdims=True) + 1e-5)
    assert np.abs(fast - exact).max() < 1e-3


@pytest.mark.parametrize("offset", [0, 1, 2.7, 2.9, 7.9, 8.1, 100])
@pytest.mark.parametrize("shape", [(3000, 12), (8192, 8), (2047, 3), (7, 300)])
def test_statistics_in_float32(shape, offset):
    """Σ x² - n μ² where it does not cancel, else Σ (x - μ)²: five digits either way."""
    x = (normal(0, *shape) + offset).astype(np.float32)
    moments = layout.Moments(shape[1])
    moments.measure(x, 0)
    count, mean, deviations = layout.Moments.join(moments)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(deviations, wide.var(0) * count, rtol=1e-5)


@given(st.integers(1, 3000), st.integers(1, 70), st.booleans(), seeds)
def test_sums_over_rows(rows, channels, part, seed):
    """Of whole rows, which may be treated as fewer longer ones, and of some of their columns."""
    x, y = (normal(seed + i, rows, channels + part)[:, part:] for i in range(2))
    out = np.empty(channels)
    np.testing.assert_allclose(layout.column_sums(x, out), x.sum(0), atol=1e-11)
    np.testing.assert_allclose(layout.product_sums(x, y, out), (x * y).sum(0), atol=1e-11)


@pytest.mark.parametrize("where", ["x", "weight", "bias", "mean", "var", "shortcut", "dy"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("operation", ["norm", "relu", "shortcut"])
def test_nan_and_infinity_come_out_where_the_formulas_let_them(where, bad, training, operation):
    """In outputs, gradients and running statistics, with their sign; a mean of 100 is subtracted before all else."""
    results = []
    for rooms in ([cpu.register], []):
        with only(*rooms), np.errstate(invalid="ignore"):
            arrays = {"x": normal(0, 2, 3, 4, 4), "weight": normal(1, 3), "bias": normal(2, 3)}
            arrays["x"][:, 2] += 100
            arrays |= {"mean": normal(3, 3), "var": np.ones(3), "shortcut": normal(4, 2, 3, 4, 4)}
            arrays["dy"] = normal(5, 2, 3, 4, 4)
            arrays[where][(0, 1, 2, 2) if arrays[where].ndim == 4 else 1] = bad
            x, weight, bias, shortcut = (
                Tensor(arrays[name], requires_grad=True) for name in ("x", "weight", "bias", "shortcut")
            )
            statistics = arrays["mean"], arrays["var"]
            if operation == "norm":
                y = batch_norm(x, weight, bias, *statistics, training)
            else:
                added = {"shortcut": shortcut} if operation == "shortcut" else {}
                y = batch_norm_relu(x, weight, bias, *statistics, training, **added)
            y.backward(arrays["dy"])
            results.append((y.data, x.grad, weight.grad, bias.grad, *statistics))
    for fast, book in zip(*results, strict=True):
        np.testing.assert_allclose(fast, book, rtol=0, atol=1e-10)


@pytest.mark.parametrize("inside", [np.inf, np.nan])
def test_a_gradient_that_a_convolution_masked(inside):
    """The batch norm gets it with its sums, where the convolution takes its output made again."""

    def function(x, w):
        y = batch_norm_relu(x, Tensor(np.ones(4)), Tensor(np.zeros(4)), None, None, True)
        return F.conv2d(y, w) * Tensor(scale)

    scale = np.ones((2, 3, 5, 5))
    scale[1, 2, 3, 3] = inside
    with np.errstate(invalid="ignore"):
        for fast, book in zip(*both(function, [normal(0, 2, 4, 5, 5), normal(1, 3, 4, 1, 1)]), strict=True):
            np.testing.assert_allclose(fast, book, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("threads", "eager")
@pytest.mark.parametrize(("N", "width"), [(2, 96), (5, 8), (3, 32)])
def test_fused_block_matches_the_book(N, width):
    assert_same(block, block_arrays(N, width), 1e-11)


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
        np.testing.assert_array_equal(registry.choose(add_gradients, "cpu", x, y)(x, y), x + y)
    assert add.channels_last(a, b) == (layout == (0, 3, 1, 2))
    assert not add.channels_last(a, b.copy())


@given(st.integers(1, 300), st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 1e-2]), st.booleans(), seeds)
def test_sgd_matches_the_book(size, momentum, weight_decay, nesterov, seed):
    w, dw, velocity = normal(seed, size), normal(seed + 1, size), normal(seed + 2, size)
    book = [w.copy(), dw.copy(), velocity.copy()]
    sgd.sgd_step([(w, dw, velocity, momentum, weight_decay, nesterov and momentum > 0)], 0.1)
    optim.sgd_update(*book, 0.1, momentum, weight_decay, nesterov and momentum > 0)
    for fast, expected in zip((w, dw, velocity), book, strict=True):
        np.testing.assert_allclose(fast, expected, rtol=1e-12, atol=1e-14)


def test_sgd_of_many_numbers_and_of_views():
    size = 300_001
    for view in (lambda a: a, lambda a: a.reshape(1, -1)[:, ::2].T):
        w, dw, velocity = (view(normal(i, size)) for i in range(3))
        book = [w.copy(), dw.copy(), velocity.copy()]
        sgd.sgd_step([(w, dw, velocity, 0.9, 1e-3, True)], 0.1)
        optim.sgd_update(*book, 0.1, 0.9, 1e-3, True)
        np.testing.assert_allclose(w, book[0], rtol=1e-12, atol=1e-14)


def test_a_network_takes_the_same_step_both_ways():
    from resnext import create

    losses = []
    for rooms in ([cpu.register], []):
        with only(*rooms):
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
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)


@pytest.mark.parametrize("far", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("function", [batch_norm, batch_norm_relu])
def test_no_sum_cancels_where_the_mean_is_far(function, far):
    """Against float64 the error is at most four times the book's, whose own sums do not cancel."""
    x, dy = (normal(0, 8, 4, 16, 16) + far).astype(np.float32), normal(1, 8, 4, 16, 16)

    def errors(rooms, dtype):
        with only(*rooms):
            inputs = [Tensor(a.astype(dtype), requires_grad=True) for a in (x, np.ones(4), np.full(4, 5.0))]
            y = function(*inputs, None, None, True)  # with a bias of 5 no value is near ReLU's kink
            y.backward(dy.astype(dtype))
            return [y.data, *(t.grad for t in inputs)]

    exact, book, fast = errors([], np.float64), errors([], np.float32), errors([cpu.register], np.float32)
    for e, b, f in zip(exact, book, fast, strict=True):
        assert np.abs(f - e).max() <= 4 * np.abs(b - e).max() + 1e-6 * np.abs(e).max()


def test_a_far_mean_is_handed_over_between_convolutions():
    """The convolution after a batch norm takes the batch norm's sums: shifted as it is told."""

    def function(x, w1, weight, bias, w2):
        c = F.conv2d(x, w1) + 1000.0
        return F.conv2d(batch_norm_relu(c, weight, bias, None, None, True), w2)

    arrays = [normal(0, 4, 8, 8, 8), normal(1, 8, 8, 1, 1), normal(2, 8), normal(3, 8), normal(4, 8, 8, 1, 1)]
    assert_same(function, arrays, 1e-9)
