"""The checker's verdicts (minigrad/gradcheck.py): which mistakes no accident hides, and whom the message names."""

import numpy as np
import pytest
from support.strategies import normal

import minigrad
import minigrad.functional as F
from minigrad import Function, GradcheckError, Tensor, gradcheck, nn

X = normal(0, 2, 3)


def own(forward, backward):
    """An operation of one input, named Own; `backward(self, dy)` finds x and y on `self`."""

    class Own(Function):
        def forward(self, x):
            self.x, self.y = x, forward(x)
            return self.y

    Own.backward = backward
    return Own.apply


wrong_cube = own(lambda x: x**3, lambda self, dy: 2 * dy * self.x**2)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_is_no_number_is_caught(value):
    """An infinite one is within any relative tolerance of itself."""
    square = own(lambda x: x * x, lambda self, dy: np.where(self.x > 0.5, value, 2 * dy * self.x))
    with pytest.raises(GradcheckError, match=rf"is {value} by backward\(\) but .* Own\.backward is wrong"):
        gradcheck(square, [X])


def test_a_gradient_that_is_no_number_is_not_left_to_chance():
    triple = own(lambda x: 3 * x, lambda self, dy: np.where(np.arange(900) == 777, np.nan, 3 * dy))
    with pytest.raises(GradcheckError, match=r"at \[777\], .* is nan by backward\(\)"):
        gradcheck(triple, [normal(0, 900)], max_entries=1)


@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (lambda x: 1 / x, 1e-5),
        (own(lambda x: 1 / x, lambda self, dy: 0 * dy), 1e-5),  # a pole within reach of the step
        (lambda x: x.exp(), 709.782),  # the last that float64 holds
    ],
)
def test_an_infinite_slope_passes_no_gradient(fn, x):
    with pytest.raises(GradcheckError, match=r"inf by finite differences .* fn is not finite a step away"):
        gradcheck(fn, [np.array([x])])


def test_an_infinite_slope_inside_a_function_is_thought_of():
    """The length of a vector at 0: the gradient is 0 times infinity."""
    with pytest.raises(GradcheckError, match=r"is nan by .* Each operation passes alone: .* slope infinite"):
        gradcheck(lambda x: (x * x).sum().sqrt(), [np.zeros(3)])


class Adds(Function):
    """Keeps a sum between calls, as a class of one's own may."""

    total = 0.0

    def forward(self, x):
        return 3 * x

    def backward(self, dy):
        Adds.total = Adds.total + 3 * dy
        return Adds.total


@pytest.mark.parametrize(
    "operation",
    [Adds.apply, own(lambda x: 3 * x, lambda self, dy: 3 * dy.ravel(order="K").reshape(dy.shape))],
    ids=["keeps something", "reads dy's memory row by row"],
)
def test_a_gradient_that_is_right_only_the_first_time_is_caught(operation):
    Adds.total = 0.0
    with pytest.raises(
        GradcheckError, match=r"right at first and wrong, by up to .*asked for again.*in one of (Own|A)"
    ):
        gradcheck(operation, [X])


def test_an_operation_that_writes_into_its_own_output_is_named():
    """Whoever prints y after backward() would read something else."""
    square = own(lambda x: x * x, lambda self, dy: np.multiply(2 * self.x, dy, out=self.y))
    with pytest.raises(ValueError, match=r"Own\.backward changed its output in place"):
        gradcheck(square, [X])


def dropped(x):
    minigrad.manual_seed(0)
    return F.dropout(x, 0.5)


@pytest.mark.parametrize(
    "around",
    [
        lambda x: x.relu().relu() + 1.0,  # the second at its kink, which the first keeps still
        lambda x: F.max_pool2d(x.relu().reshape(1, 1, 3, 2), (1, 2)),  # a tie of zeros
        lambda x: (x * 0.0 + 1e-7).log() + x,  # a step out of the domain
        lambda x: (x * 1e-5 + 1e-4).log() + x,  # a bend sharper than the step
        lambda x: (x + 1e9) - 1e9 + x,  # rounded
        lambda x: 1.0 / ((x * 0.0 + 800.0).exp() + 1.0) + x,  # infinite on the way
        lambda x: dropped(x),  # random by itself
    ],
)
def test_no_right_operation_is_blamed_for_anothers_mistake(around):
    with pytest.raises(GradcheckError, match=r"\. Own\.backward is wrong when it is checked alone"):
        gradcheck(lambda x: wrong_cube(around(x)), [np.array([[-1.0, 2.0, 3.0], [-2.5, -1.5, -0.5]])])


def test_a_mistake_beside_a_kink_is_told_first():
    relu = own(lambda x: np.maximum(x, 0), lambda self, dy: 0.9 * dy * (self.x > 0))
    with pytest.raises(GradcheckError, match=r"at \[1\], .* Own\.backward is wrong"):
        gradcheck(relu, [np.array([0.0, 1.0, 2.0])])


def test_an_operation_that_is_wrong_for_columns_is_named():
    """Alone it is given its inputs in the memory layout that they had."""
    triple = own(lambda x: 3 * x, lambda self, dy: (3 if self.x.flags.c_contiguous else 4) * dy)
    with pytest.raises(GradcheckError, match=r"Own\.backward is wrong when it is checked alone"):
        gradcheck(lambda x: triple(x.transpose()), [X])


def test_chance_is_never_taken_for_a_kink():
    """Of one value dropout keeps or drops the same as before every other time."""
    for seed in range(20):
        minigrad.manual_seed(seed)
        with pytest.raises(ValueError, match="for the same input: fix its random seed"):
            gradcheck(nn.Dropout(0.5), [np.ones(1)])


def test_a_tensor_with_a_graph_of_its_own_may_be_brought_along():
    """Its graph is used up by the first backward pass: the gradients are not asked for again."""
    for inputs in ([X], [X, X + 1]):
        h = Tensor(X, requires_grad=True) * 2.0
        assert gradcheck(lambda *xs, h=h: sum(x * x * h for x in xs), inputs)


def test_a_network_may_hand_over_its_parameters_as_they_come():
    net, x = nn.Linear(3, 2).to(dtype="float64"), Tensor(X)
    assert gradcheck(lambda *parameters: net(x).exp(), net.parameters())
    with pytest.raises(GradcheckError, match="the gradient of input 0"):
        gradcheck(lambda *parameters: wrong_cube(net(x)), net.parameters())


def test_one_tensor_may_be_two_inputs():
    x = Tensor(X, requires_grad=True)
    assert gradcheck(lambda a, b: a * b.exp(), [x, x])


def test_arrays_may_come_in_another_byte_order():
    assert gradcheck(lambda x, y: x * y, [X.astype(">f8"), X.astype(">f4")])
    with pytest.raises(GradcheckError):
        gradcheck(wrong_cube, [X.astype(">f8")])


def test_outputs_may_come_in_dicts_and_in_one_another():
    assert gradcheck(lambda x: {"loss": x * x, "more": [x.exp(), (x, x == 0.0)]}, [X])
    with pytest.raises(GradcheckError, match=r"Own\.backward is wrong"):
        gradcheck(lambda x: {"loss": x * x, "more": [x.exp(), (x, wrong_cube(x))]}, [X])


def test_a_failure_shows_the_lines_of_the_test_and_not_the_checkers():
    for fn, error in ((wrong_cube, GradcheckError), (lambda x: x.detach(), ValueError)):
        with pytest.raises(error) as raised:
            gradcheck(fn, [X])
        assert [str(frame.path) for frame in raised.traceback.filter(raised)] == [__file__]
