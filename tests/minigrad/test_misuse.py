"""What users put where it does not belong: a sentence of ours, never another network than they think they train."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.engine import only

from minigrad import Function, Parameter, Tensor, no_grad, optim, registry
from minigrad import functional as F
from minigrad.fast import cpu

X = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)


@pytest.fixture(params=["engine room", "book"])
def room(request):
    """Who computes."""
    with only(cpu.register) if request.param == "engine room" else registry.book_only():
        yield


def step(p):
    optim.SGD([p], 0.5, momentum=0.9).step()
    return p.data


def test_weights_that_are_changed_in_place_as_in_pytorch(room):
    """`for p in parameters: p -= lr * p.grad` would train nothing, and say nothing."""
    p = Parameter(X)
    (p * p).sum().backward()
    for change in ("p -= 0.1 * p.grad", "p += Tensor(X)", "p *= 2", "p /= 2.0", "p **= 2"):
        with no_grad(), pytest.raises(TypeError, match=r"leave w as it is: write w\.data -= change, an array$"):
            exec(change, {"p": p, "Tensor": Tensor, "X": X})
        frozen = Parameter(X, requires_grad=False)  # an average of weights, for one
        with pytest.raises(TypeError, match="leave w as it is"):  # recording or not
            exec(change, {"p": p, "Tensor": Tensor, "X": X})
        with no_grad(), pytest.raises(TypeError, match="leave w as it is"):
            exec(change.replace("p.grad", "X"), {"p": frozen, "Tensor": Tensor, "X": X})
    assert_array_equal(p.data, X)
    x = leaf = Tensor(X, requires_grad=True)
    x *= 2
    assert x is not leaf and x.requires_grad
    p.data -= np.float32(0.5) * p.grad
    assert_array_equal(p.data, 0 * X)
    h = y = p * 2
    h += 1  # a new tensor under the old name
    assert h.requires_grad and (y.data == 0).all() and (h.data == 1).all()
    with no_grad():
        h += 1
        assert (h.data == 2).all()


# ---- gradients that were put there ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), (2, 1), (3,), (), (7,)])
def test_a_gradient_of_another_shape_is_refused_and_changes_nothing(shape, room):
    """The engine room reads an array from its first number to its last, whatever its shape."""
    p, other = Parameter(X), Parameter(X)
    p.grad, other.grad = np.ones(shape, np.float32), np.ones_like(X)
    with pytest.raises(ValueError, match=r"parameter 1 of shape \(2, 3\) has a gradient of shape") as raised:
        optim.SGD([other, p], 0.5, momentum=0.9).step()
    assert "\n" not in str(raised.value)
    assert_array_equal(p.data, X)
    assert_array_equal(other.data, X)


def test_a_step_that_is_refused_leaves_a_recorded_graph_as_it_was():
    """A parameter that was only looked at has not changed, so what needs it may still go backward."""
    p, other = Parameter(X), Parameter(X)
    loss = (p * p).sum()
    p.grad, other.grad = np.ones_like(X), np.ones((7,), np.float32)
    optimizer = optim.SGD([p, other], 0.5, momentum=0.9)
    with pytest.raises(ValueError, match="parameter 1 of shape"):
        optimizer.step()
    assert optimizer.velocities == [None, None]
    p.grad = None
    loss.backward()
    assert_array_equal(p.grad, 2 * X)


@pytest.mark.parametrize("gradient", ["text", 1.0, [1.0], Tensor(X), np.array([["a"]])])
def test_a_gradient_that_is_no_array_of_numbers_is_refused(gradient, room):
    p = Parameter(X)
    p.grad = gradient
    with pytest.raises(TypeError, match=r"parameter 0 .* has a gradient that is no array of numbers"):
        step(p)
    with pytest.raises(TypeError, match="has a gradient that is no array of numbers"):
        p.sum().backward()


def test_gradients_in_other_orders_and_precisions_are_taken(room):
    for gradient in (np.asfortranarray(X), X[::-1, ::-1], X.astype(np.float64), np.ones((2, 3), int)):
        p = Parameter(X)
        p.grad = gradient
        assert_array_equal(step(p), X - np.float32(0.5) * gradient.astype(np.float32))


def test_a_gradient_of_another_shape_is_not_added_to():
    p = Parameter(X)
    p.grad = np.ones((3, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"a leaf of shape \(2, 3\) has a gradient of shape \(3, 1, 1\)"):
        p.sum().backward()


# ---- arrays that were put there -------------------------------------------------------------------------------------


def test_a_parameter_with_a_single_value_is_trained_after_it_was_replaced(room):
    """NumPy makes a scalar of 0-d array times number, which nothing can change in place."""
    p = Parameter(2.0)
    p.data = p.data * 0.5
    for _ in range(2):
        (p * 1.0).backward()
    assert isinstance(p.data, np.ndarray)
    assert isinstance(p.grad, np.ndarray)
    assert step(p) == 0.0


@pytest.mark.parametrize("value", [None, 3.0, [1.0, 2.0], "text", Tensor(X), np.array(["a"]), np.array([None])])
def test_what_is_no_array_is_refused_where_it_is_put(value):
    p = Parameter(X)
    with pytest.raises(TypeError, match="Tensor"):
        p.data = value
    assert_array_equal(p.data, X)


@pytest.mark.parametrize("kind", [np.matrix, np.ma.masked_array])
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_subclass_of_arrays_has_no_arithmetic_of_its_own(kind):
    """To a matrix, x * y is the matrix product."""
    square = X[:, :2].copy()
    t = Tensor(0.0, requires_grad=True)
    t.data = kind(square)
    y = t * t
    y.sum().backward()
    assert_array_equal(y.data, square * square)
    assert_array_equal(t.grad, 2 * square)


@pytest.mark.parametrize("kind", [np.asmatrix, np.ma.masked_array], ids=["matrix", "masked"])
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_what_an_operation_returns_has_no_arithmetic_of_its_own(kind):
    """scipy.sparse returns matrices, too."""

    class Rows(Function):
        def forward(self, x):
            return kind(x)

        def backward(self, dy):
            return dy

    x = Tensor(X[:, :2], requires_grad=True)
    y = Rows.apply(x)
    z = y * y
    z.sum().backward()
    assert type(z.data) is np.ndarray
    assert_array_equal(z.data, x.data * x.data)
    assert_array_equal(x.grad, 2 * x.data)


def test_what_an_operation_returns_is_of_a_kind_that_tensors_hold():
    class Half(Function):
        def forward(self, x):
            return x.astype(np.float16)

    with pytest.raises(TypeError, match="a Tensor holds float32, float64, integers or booleans, not float16"):
        Half.apply(Tensor(X))


def test_integers_have_no_gradient_however_it_is_asked_for():
    x = Tensor([1, 2, 3])
    x.requires_grad = True
    y = (x.to(dtype="float32") * 0.5).sum()
    assert not y.requires_grad
    with pytest.raises(ValueError, match="requires"):
        y.backward()


# ---- operations of one's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "inputs",
        "parents",
        "versions",
        "pending",
        "needs",
        "gradients",
        "check_unchanged",
        "free",
        "broadcasts",
        "mixed",
    ],
)
def test_an_operation_that_keeps_something_under_a_name_of_the_tapes_is_told(name):
    class Square(Function):
        def forward(self, x):
            setattr(self, name, x)
            return x * x

        def backward(self, dy):
            return 2 * dy * getattr(self, name)

    with pytest.raises(TypeError, match=rf"Square\.forward sets self\.{name}, which the tape needs: .* another name"):
        Square.apply(Tensor(X, requires_grad=True))


def test_an_operation_that_returns_integers_has_no_gradient():
    class Largest(Function):
        def forward(self, x):
            return x.argmax(axis=1)

        def backward(self, dy):
            raise AssertionError("nobody can want this")

    x = Tensor(X, requires_grad=True)
    y = Largest.apply(x)
    assert y.data.tolist() == [2, 2]
    assert not y.requires_grad
    assert y.node is None


# ---- values with another kind's place ------------------------------------------------------------------------------


def test_a_comparison_of_shapes_that_do_not_fit_is_told():
    with pytest.raises(ValueError, match=r"eq cannot broadcast shapes \(2, 3\) and \(2,\)"):
        _ = Tensor(X) == [1, 2]


def test_flags_are_what_has_a_truth_value():
    assert Tensor([1.0], requires_grad=1).requires_grad is True
    assert Tensor([1.0], requires_grad=None).requires_grad is False
    x = Tensor(X)
    assert x.sum(0, "yes").shape == x.mean(0, 1).shape == x.max(0, [0]).shape == (1, 3)


def test_widths_of_padding_may_be_an_array():
    assert_array_equal(F.pad(Tensor(X), np.array([[1, 0], [0, 2]])).data, np.pad(X, [(1, 0), (0, 2)]))
