"""Using the gradient checker: operations that change what they are given, networks, several inputs and outputs."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.strategies import normal
from test_gradcheck import X, Y, broken

import minigrad.functional as F
from minigrad import Function, GradcheckError, Tensor, gradcheck, nn, no_grad
from minigrad.ops.basic import Multiply
from minigrad.ops.matmul import MatMul


class ScalesItsInput(Function):
    def forward(self, x):
        x *= 2
        return x * 1

    def backward(self, dy):
        return 2 * dy


class ScalesWhatItKept(Function):
    def forward(self, x):
        self.x = x
        return x * x

    def backward(self, dy):
        self.x *= 2
        return dy * self.x


class ScalesItsGradient(Function):
    """Right alone, and wrong beside an operation that gets the same dy."""

    def forward(self, x):
        return 3 * x

    def backward(self, dy):
        dy *= 3
        return dy


@pytest.mark.parametrize("fn", [lambda op, x: op(x), lambda op, x: x.exp() + op(x.exp())])
@pytest.mark.parametrize(
    ("operation", "sentence"),
    [
        (ScalesItsInput, "ScalesItsInput.forward changed its input 0 in place"),
        (ScalesWhatItKept, "ScalesWhatItKept.backward changed its input 0 in place"),
        (ScalesItsGradient, "ScalesItsGradient.backward changed dy in place"),
    ],
)
def test_an_operation_that_changes_what_it_is_given_is_named(operation, fn, sentence):
    with pytest.raises(ValueError, match=sentence):
        gradcheck(lambda x: fn(operation.apply, x), [X])


def test_a_network_whose_parameters_would_not_be_checked_is_refused():
    """Float32 parameters are checked as float64 copies, which a network that holds its own never looks at."""
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"needs float64, fn returned float32: .* module.to\(dtype=...\)"):
        gradcheck(lambda *_: net(Tensor(X.astype(np.float32))), list(net.parameters()))
    with pytest.raises(ValueError, match="depends on other tensors, on none of the inputs"):
        gradcheck(lambda *_: net(Tensor(X)), list(net.parameters()))


def test_all_parameters_of_a_network_are_checked_in_place():
    net = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    net.to(dtype="float64")
    before = net.state_dict()
    images, labels = Tensor(normal(0, 3, 2, 4, 5)), [0, 2, 1]
    parameters = list(net.parameters())
    parameters[0].grad = np.ones(parameters[0].shape)
    assert gradcheck(lambda *_: F.cross_entropy(net(images), labels), parameters, max_entries=8)
    for name, value in net.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert_array_equal(value, before[name])
    assert_array_equal(parameters[0].grad, np.ones(parameters[0].shape))
    assert parameters[1].grad is None

    net[4].forward = lambda x: broken(MatMul, lambda op, right, dy: (right[0], 2 * right[1])).apply(x, net[4].weight.T)
    with pytest.raises(GradcheckError, match=r"BrokenMatMul\.backward is wrong when it is checked alone"):
        gradcheck(lambda *_: F.cross_entropy(net(images), labels), parameters, max_entries=8)


def test_inputs_may_be_one_tensor_arrays_or_a_mixture():
    assert gradcheck(F.exp, X)
    assert gradcheck(F.exp, Tensor(X.astype(np.float32)))
    assert gradcheck(lambda x, n, y: x[n] * y, [X, np.array([1, 0]), Tensor(Y)])
    assert gradcheck(lambda x, c: x * c, [Tensor(X, requires_grad=True), Tensor(Y)])


@pytest.mark.parametrize("beside", [Tensor([3.0, 4.0]), Tensor([3.0, 4.0]) * 1.0, Tensor(np.float64([3, 4]))])
def test_tensors_beside_the_checked_ones_come_in_float64_too(beside):
    """Python's numbers become float32, which nobody has to think of."""
    seen = []

    def fn(x, w):
        seen.append((w.dtype, w.requires_grad))
        return (x * w).sum()

    assert gradcheck(fn, [Tensor([1.0, 2.0], requires_grad=True), beside])
    assert gradcheck(fn, [Tensor(np.ones(2), requires_grad=True), beside])
    assert set(seen) == {(np.dtype(np.float64), False)}
    assert gradcheck(lambda x, n: x * n.to(dtype="float64"), [Tensor([1.0], requires_grad=True), Tensor([2])])


def test_what_fn_brings_along_in_float32_is_told():
    w, net = Tensor([3.0, 4.0]), nn.BatchNorm2d(2)
    x = Tensor(normal(0, 2, 2, 2, 2).astype(np.float32), requires_grad=True)
    for fn, operation in ((lambda x: x * w, "Multiply"), (net, "BatchNorm")):
        with pytest.raises(TypeError) as raised:
            gradcheck(fn, [x])
        told = f"{operation} got tensors of dtypes float64 and float32: convert one with .to(); gradcheck computes in "
        assert str(raised.value).startswith(f'{told}float64: give fn w.to(dtype="float64") in place of a tensor w')
    w64, net64 = w.to(dtype="float64"), net.to(dtype="float64")  # the advice works as it stands
    assert gradcheck(lambda x: x * w64, [x])
    assert gradcheck(net64, [x])


def test_several_outputs_are_checked_together():
    assert gradcheck(lambda x: (x * 2, x.exp().sum()), [X])
    wrong = broken(Multiply, lambda op, right, dy: (-right[0], right[1]))
    with pytest.raises(GradcheckError):
        gradcheck(lambda x: (x * 2, wrong.apply(x, Tensor(Y))), [X])


def test_integers_among_the_outputs_are_passed_over():
    class Largest(Function):
        def forward(self, x):
            return x.argmax(axis=-1)

    assert gradcheck(lambda x: (x * x, x == 0.0, Largest.apply(x), Tensor([1, 2])), [X])
    with pytest.raises(ValueError, match="not connected"):
        gradcheck(Largest.apply, [X])


def test_a_tensor_that_was_computed_or_cannot_be_written_to_is_checked_as_a_copy():
    computed, constant = Tensor(X, requires_grad=True) * 0.5, Tensor(0.0, requires_grad=True)
    constant.data = np.broadcast_to(X[:1], X.shape)
    for x in (computed, constant):
        assert gradcheck(lambda x: x * x, [x])
    assert_array_equal(computed.data, 0.5 * X)


def test_an_operation_in_the_place_of_a_function_is_told():
    with pytest.raises(TypeError, match=r"ScalesItsGradient is an operation: pass ScalesItsGradient\.apply"):
        gradcheck(ScalesItsGradient, [X])


def test_an_operation_with_an_init_of_its_own_is_named():
    class Own(Function):
        def __init__(self):
            self.factor = 2.0

        def forward(self, x):
            return self.factor * x

        def backward(self, dy):
            return 3 * dy

    with pytest.raises(GradcheckError, match=r"Own\.backward is wrong when it is checked alone"):
        gradcheck(lambda x: Own.apply(x).exp(), [X])


def test_checks_inside_checks_and_in_threads():
    """Each watches its own operations, and leaves nothing behind."""
    from minigrad import tensor

    before, inner = tensor.choose, Tensor(X, requires_grad=True)
    recorded = iter([True])
    assert gradcheck(lambda x: (next(recorded, False) and gradcheck(lambda z: z * z, [inner]), x * x)[1], [X])
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: gradcheck(lambda x: (x * x).exp(), [X]), range(40)))
    assert tensor.choose is before


def test_an_input_that_has_no_effect_has_gradient_zero():
    assert gradcheck(lambda x, y: x * 2, [X, Y])


def test_max_entries_limits_the_work():
    calls = []

    def fn(x):
        calls.append(1)
        return x * 2

    assert gradcheck(fn, [normal(0, 1000)], max_entries=5)
    assert len(calls) < 20


def test_an_error_leaves_the_input_as_it_was():
    x = Tensor(X, requires_grad=True)
    calls = []

    def fn(t):
        calls.append(1)
        if len(calls) == 6:
            raise KeyError
        return t * 2

    with pytest.raises(KeyError):
        gradcheck(fn, [x])
    assert_array_equal(x.data, X)


def test_gradients_of_tensors_that_are_no_inputs_stay_as_they_were():
    """The next optimizer.step() would use them. Also where the check fails."""
    net, x = nn.Linear(3, 2).to(dtype="float64"), Tensor(X, requires_grad=True)
    net.bias.grad = before = np.array([5.0, 6.0])
    x.grad = of_x = np.ones(X.shape)
    wrong = broken(Multiply, lambda op, right, dy: (-right[0], right[1]))
    stuck = broken(Multiply, lambda op, right, dy: 1 / 0)

    def left_alone():
        return net.weight.grad is None and net.bias.grad is before and x.grad is of_x

    assert gradcheck(net, [x])
    assert left_alone() and before.tolist() == [5.0, 6.0]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda seed: gradcheck(net, [normal(seed, 2, 3)]), range(8)))
    assert left_alone()
    for operation, error in ((wrong, GradcheckError), (stuck, ZeroDivisionError)):
        with pytest.raises(error):
            gradcheck(lambda x, op=operation: op.apply(x, net(x).sum()), [x])
        assert left_alone()
    assert gradcheck(lambda w: net(x) * w, [Tensor(np.ones(2))])
    assert left_alone()


def test_nothing_is_checked_without_recording():
    with no_grad(), pytest.raises(ValueError, match="not connected"):
        gradcheck(F.exp, [X])


def test_an_operation_of_ones_own_can_be_checked():
    class Cube(Function):
        def forward(self, x):
            self.x = x
            return x**3

        def backward(self, dy):
            return dy * 3 * self.x**2

    assert gradcheck(Cube.apply, [X])
