"""The checker checked (minigrad/gradcheck.py): right gradients pass, wrong ones are caught and explained."""

import functools
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose
from support import oracles
from support.strategies import distinct, normal, positive

import minigrad.functional as F
from minigrad import Function, GradcheckError, Tensor, gradcheck
from minigrad.ops.basic import Add, Divide, Max, Multiply, Power, Sum
from minigrad.ops.conv import Conv2d
from minigrad.ops.matmul import MatMul
from minigrad.ops.norm import BatchNorm


def broken(operation, backward):
    """The operation with another backward pass; `backward(self, right, dy)` gets what the right one returns."""

    def wrong(self, dy):
        return backward(self, operation.backward(self, dy), dy)

    return type(f"Broken{operation.__name__}", (operation,), {"backward": wrong})


X, Y = positive(0, 2, 3), positive(1, 2, 3)
IMAGES, FILTERS, BIAS = normal(2, 2, 4, 5, 4), normal(3, 4, 2, 2, 3), normal(4, 4)
CONV = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 1), "groups": 2}
NORM = {"running_mean": None, "running_var": None, "training": True, "momentum": 0.1, "eps": 1e-5}

# What is broken: the operation, its wrong backward pass, inputs, options.
WRONG = {
    "the sign": (Multiply, lambda op, right, dy: (-right[0], right[1]), [X, Y], {}),
    "the sign of the second": (Divide, lambda op, right, dy: (right[0], -right[1]), [X, Y], {}),
    "a factor": (Power, lambda op, right, dy: (2 * right[0], right[1]), [X, Y], {}),
    "a factor near 1": (Multiply, lambda op, right, dy: (right[0] * 1.0001, right[1]), [X, Y], {}),
    "zeros": (Multiply, lambda op, right, dy: (0 * right[0], right[1]), [X, Y], {}),
    "dy alone": (Multiply, lambda op, right, dy: (dy, right[1]), [X, Y], {}),
    "swapped operands": (Multiply, lambda op, right, dy: right[::-1], [X, Y], {}),
    "a transposed factor": (
        MatMul,
        lambda op, right, dy: (dy @ op.b, right[1]),
        [normal(0, 3, 3), normal(1, 3, 3)],
        {},
    ),
    "the axis of a sum": (
        Sum,
        lambda op, right, dy: np.broadcast_to(dy, op.shape),
        [normal(0, 3, 3)],
        {"axes": (1,), "keepdims": False},
    ),
    "a missing sum over a broadcast axis": (
        type("Add", (Add,), {"broadcasts": False}),
        lambda op, right, dy: (dy, dy[:1] * 1),
        [X, Y[:1]],
        {},
    ),
    "gradient of max to every value": (
        Max,
        lambda op, right, dy: dy.reshape(op.kept) * np.ones(X.shape),
        [distinct(0, 2, 3)],
        {"axes": (0,), "keepdims": False},
    ),
    "groups mixed up": (
        Conv2d,
        lambda op, right, dy: (right[0], right[1][[2, 3, 0, 1]], right[2]),
        [IMAGES, FILTERS, BIAS],
        CONV,
    ),
    "one image forgotten": (
        Conv2d,
        lambda op, right, dy: (right[0], right[1], dy[1:].sum((0, 2, 3))),
        [IMAGES, FILTERS, BIAS],
        CONV,
    ),
    "a flipped kernel": (
        Conv2d,
        lambda op, right, dy: (right[0], right[1][:, :, ::-1], right[2]),
        [IMAGES, FILTERS, BIAS],
        CONV,
    ),
    "batch norm's zero": (
        BatchNorm,
        lambda op, right, dy: (0 * right[0], *right[1:]),
        [IMAGES, BIAS, normal(5, 4)],
        NORM,
    ),
    "batch norm without the way through the mean": (
        BatchNorm,
        lambda op, right, dy: (
            right[0] + (dy.mean(op.axes) * op.weight * op.inv_std).reshape(op.channels),
            *right[1:],
        ),
        [IMAGES, BIAS, normal(5, 4)],
        NORM,
    ),
    "batch norm without the way through the variance": (
        BatchNorm,
        lambda op, right, dy: (
            right[0] + op.x_hat * ((dy * op.x_hat).mean(op.axes) * op.weight * op.inv_std).reshape(op.channels),
            *right[1:],
        ),
        [IMAGES, BIAS, normal(5, 4)],
        NORM,
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_backward_pass_is_caught(wrong):
    operation, backward, inputs, options = WRONG[wrong]
    assert gradcheck(lambda *ts: operation.apply(*ts, **options), inputs) if "broadcast axis" not in wrong else True
    with pytest.raises(GradcheckError, match=f"operations: Broken{operation.__name__}"):
        gradcheck(lambda *ts: broken(operation, backward).apply(*ts, **options), inputs)


@pytest.mark.parametrize("entry", [(0, 0), (1, 2)])
def test_one_wrong_entry_is_found_and_named_with_both_numbers(entry):
    def backward(op, right, dy):
        right[1][entry] += 1.0
        return right

    with pytest.raises(GradcheckError) as raised:
        gradcheck(broken(Multiply, backward).apply, [X, Y])
    message = str(raised.value)
    assert f"input 1 at {list(entry)}, where x = {Y[entry]:.6g}" in message
    exact, numeric = re.search(r"is (\S+) by backward\(\) but (\S+) by finite differences", message).groups()
    assert float(exact) - float(numeric) == pytest.approx(1.0, abs=1e-6)
    assert "operations: BrokenMultiply" in message
    assert "\n" not in message


def test_the_culprit_is_named_within_a_longer_computation():
    faulty = broken(Multiply, lambda op, right, dy: (right[0], -right[1]))

    def fn(x, y):
        return faulty.apply(x.tanh(), y.exp()).sum(axis=1)

    with pytest.raises(GradcheckError) as raised:
        gradcheck(fn, [X, Y])
    message = str(raised.value)
    assert "operations: Tanh -> Exp -> BrokenMultiply -> Sum" in message
    assert "BrokenMultiply.backward is wrong when it is checked alone, on inputs of shape (2, 3), (2, 3)" in message


def test_the_culprit_is_named_where_its_apply_was_given_another_name():
    faulty = broken(Multiply, lambda op, right, dy: (right[0], -right[1])).apply
    with pytest.raises(GradcheckError, match=r"operations: Exp -> BrokenMultiply\)\. BrokenMultiply.backward is wrong"):
        gradcheck(lambda x, y: faulty(x, y.exp()), [X, Y])


def test_a_value_that_bypasses_the_tape_is_explained():
    with pytest.raises(GradcheckError, match=r"Each operation passes alone: does a value bypass the tape \(.data,"):
        gradcheck(lambda x: x * Tensor(x.data) + x, [X])
    with pytest.raises(GradcheckError, match=r"Multiply\)\. The operation passes alone: does a value bypass the tape"):
        gradcheck(lambda x: Tensor(x.data * 2) * x, [X])


def test_one_operation_is_blamed_only_where_it_is_wrong_alone():
    class MaskedTwice(Function):  # has no gradient for its mask, which nobody asks for
        def forward(self, x, mask):
            self.mask = mask
            return 2 * x * mask

        def backward(self, dy):
            dx = dy * self.mask * 2
            dx[20:] *= 3  # some entries of many
            return dx, None

    mask = Tensor(normal(5, 40, 3))
    alone = r"MaskedTwice\.backward is wrong when it is checked alone, on inputs of shape \(40, 3\), \(40, 3\)"
    for fn in (lambda x: MaskedTwice.apply(x, mask), lambda x: MaskedTwice.apply(x, mask).exp()):
        with pytest.raises(GradcheckError, match=alone):
            gradcheck(fn, [normal(6, 40, 3) / 10])


@pytest.mark.parametrize("fn", [F.relu, lambda x: x.max(), lambda x: F.max_pool2d(x.reshape(1, 1, 2, 2), 2)])
def test_a_kink_is_explained(fn):
    x = np.array([0.5, -0.25, 0.5, 0.0])  # a tie for max, a zero for ReLU
    if fn is F.relu:
        assert gradcheck(fn, [x[:3]])
    try:
        gradcheck(fn, [x])
    except GradcheckError as error:
        assert re.search(r"The slope is \S+ on the left of this point and \S+ on its right: a kink", str(error))
        return
    assert fn(Tensor([1.0, 1.0, 0.0, 0.0])).shape == (), "only the mean of both slopes, max's equal shares, may pass"


@pytest.mark.parametrize("fn", [F.log, lambda x: 1 / x])
def test_a_bend_within_one_step_is_not_said_to_be_a_kink_alone(fn):
    with pytest.raises(GradcheckError, match=r"a kink, .*, or a bend sharper than the step. .* or a smaller eps"):
        gradcheck(fn, [np.array([1e-4])])
    assert gradcheck(fn, [np.array([1e-4])], eps=1e-8)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_step_out_of_the_domain_is_explained():
    with pytest.raises(GradcheckError, match=r"nan by finite differences .* not finite a step away from this point"):
        gradcheck(F.sqrt, [np.array([1e-6])])


def test_large_values_do_not_drown_small_ones():
    assert gradcheck(lambda x: x * x, [np.array([1e100, 1.0])])


def test_a_wrong_gradient_where_the_function_is_flat_is_not_excused_as_a_kink():
    """x² at 0 has slopes ∓h on both sides: nothing that could explain a gradient of 1."""
    square = broken(Multiply, lambda op, right, dy: (right[0] + dy, right[1]))
    with pytest.raises(GradcheckError) as raised:
        gradcheck(lambda x: square.apply(x, x), [np.zeros(2)])
    assert "kink" not in str(raised.value)


def test_ones_as_cotangent_would_miss_what_the_random_one_finds():
    """Σ batch_norm(x) does not depend on x: with dy = 1 the gradient is 0 and a backward pass of zeros looks right."""
    x = Tensor(IMAGES, requires_grad=True)
    F.batch_norm(x, Tensor(np.ones(4)), Tensor(np.zeros(4)), None, None, True).sum().backward()
    assert_allclose(x.grad, 0, atol=1e-12)


def test_a_gradient_that_is_wrong_where_nobody_else_wants_one_is_caught():
    """`needs` of the wrong input: right as long as both are asked for."""

    class Product(Multiply):
        def backward(self, dy):
            da, db = (dy * self.b, dy * self.a)
            return (da if self.needs[1] else 0 * da), db

    a, b = Tensor(X, requires_grad=True), Tensor(Y, requires_grad=True)
    with pytest.raises(
        GradcheckError, match=r"input 0 is right at first and wrong.*`needs` mixed up, in one of Product"
    ):
        gradcheck(Product.apply, (a, b))
    assert gradcheck(lambda b: Product.apply(Tensor(X), b), b), "the other input's gradient is right, alone too"


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_differences_of_its_own(seed):
    """The oracle's finite differences share nothing with the checker; both accept the same gradient."""
    x, y = Tensor(positive(seed, 2, 3), requires_grad=True), Tensor(positive(seed + 9, 3), requires_grad=True)
    dy = normal(seed, 2, 3)
    (x / y).backward(dy)
    for exact, numeric in zip(
        (x.grad, y.grad), oracles.numeric_gradients(np.divide, [x.data, y.data], dy), strict=True
    ):
        assert_allclose(exact, numeric, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("fn", "inputs", "sentence"),
    [
        (lambda x: F.dropout(x), [np.ones(50)], "fn gave .* and then .* for the same input: fix its random seed"),
        (lambda x: Tensor(x.data * 2), [X], "fn's output is not connected to its inputs by the tape"),
        (lambda x: x.detach(), [X], "not connected"),
        (lambda x: 3.0, [X], "fn must return a Tensor or several, it returned a float"),
        (lambda x: x.sqrt(), [], "needs a tensor or array of float32 or float64 among the inputs, got none"),
        (lambda x: x, [np.arange(3)], "among the inputs, got int64"),
        (lambda x: x, [X.astype(np.float16)], "among the inputs, got float16"),
        (lambda x: x, [1j * X, 1.0], "among the inputs, got complex128, float"),
        (lambda x: x * np.inf, [X], "values that are not finite, inf among them"),
        (lambda x: x.to(dtype="float32"), [X], "needs float64, To.forward turned it into float32"),
    ],
)
def test_what_cannot_be_checked_is_refused(fn, inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        gradcheck(fn, inputs)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"eps": 0}, "needs a step eps above 0, got 0"),
        ({"rtol": 1.0}, "the relative one below 1, got rtol 1.0"),
        ({"rtol": -1}, "needs tolerances of at least 0, .*, got rtol -1.0 and atol 1e-07"),
        ({"atol": np.nan}, "needs tolerances of at least 0, .*, got rtol 1e-05 and atol nan"),
        ({"max_entries": 0}, "gradcheck's max_entries must be a positive integer, got 0"),
    ],
)
def test_options_with_which_nothing_could_fail_or_pass_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        gradcheck(F.exp, [X], **options)


@pytest.mark.parametrize("change", [lambda a: a.fill(1.0), lambda a: np.multiply(a, 2, out=a)])
def test_a_changed_input_is_noticed(change):
    """Also where the change makes two calls differ: that is not the fault of a random seed."""

    def fn(x):
        change(x.data)
        return x * x

    with pytest.raises(ValueError, match="fn changed its input 0"):
        gradcheck(fn, [X])


class WrongSign(Function):
    def forward(self, x, *, factor):
        self.factor = factor
        return x * factor

    def backward(self, dy):
        return -dy * self.factor


@pytest.mark.parametrize("factor", [1e-8, 1e-9])
def test_a_mistake_is_seen_where_all_of_a_gradient_is_below_atol(factor):
    """There |exact - numeric| <= atol holds of any gradient, of zeros and of wrong signs too."""
    wrong = functools.partial(WrongSign.apply, factor=factor)
    with pytest.raises(GradcheckError, match=r"WrongSign\.backward is wrong|operations: WrongSign"):
        gradcheck(wrong, [X])
    with pytest.raises(GradcheckError, match="the gradient of input 1"):
        gradcheck(lambda a, b: (a * 2, wrong(b)), [X, X])
    assert gradcheck(lambda x: x * factor, [X])


@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (lambda x: x**3, 0.0),
        (lambda x: 1e3 * x**3, 0.0),  # the step makes a slope of 10⁻⁷ of a gradient of 0
        (lambda x: 1 - x.exp() + x, 1e-9),
        (lambda x: F.sigmoid(20 * x), 1.0),
        (lambda x: F.sigmoid(20 * x), -1.0),
        (lambda x: F.tanh(x), 12.0),
        (lambda x: (x + 1e6) - 1e6, 1e-9),
        (lambda x: 1e-9 * ((x + 1e6) - 1e6), 1.0),
        (lambda x: F.softmax(np.array([[50.0, 0.0, 1.0]]) * x), 1.0),
        (lambda x: x * 0.0, 1.0),
    ],
)
def test_right_gradients_that_are_tiny_pass(fn, x):
    """What rounding and the step make of a slope near 0 is no mistake."""
    assert gradcheck(fn, [np.full((1, 3), x)])


@pytest.mark.parametrize("factor", [1e-9, 1e-6, 1e6, 1e200])
def test_a_wrong_sign_is_caught_at_any_scale_and_a_right_gradient_passes(factor):
    with pytest.raises(GradcheckError, match="WrongSign"):
        gradcheck(lambda x: WrongSign.apply(x, factor=factor), [X], atol=1e-7 * min(1, factor))
    assert gradcheck(lambda x: x * factor, [X], atol=1e-7 * min(1, factor))


@pytest.mark.parametrize("options", [{}, {"eps": 1e-20}])
def test_values_whose_rounding_hides_the_slope_are_not_laid_at_an_operations_door(options):
    shift = 0.0 if options else 1e12
    with pytest.raises(GradcheckError, match=r"fn's values, up to .* in size, are rounded by as much") as raised:
        gradcheck(lambda x: x.exp() + shift, [X], **options)
    assert "backward is wrong" not in str(raised.value)


@pytest.mark.parametrize(
    ("fn", "x", "sentence"),
    [(F.log, 1e-10, "not finite a step away"), (lambda x: (x * x).sqrt(), 0.0, "by backward"), (F.sqrt, 0.0, "finite")],
)
def test_what_is_not_finite_is_told_without_a_warning(fn, x, sentence):
    """Warnings are errors in this suite, and in others'."""
    with pytest.raises(GradcheckError, match=sentence):
        gradcheck(fn, [np.full(2, x)])


def test_what_the_engine_refuses_is_refused_with_its_sentence():
    pair = type("Pair", (Function,), {"forward": lambda self, x: (x, x)})
    with pytest.raises(TypeError, match=r"Pair\.forward must return an array, it returned a tuple"):
        gradcheck(pair.apply, [X])
