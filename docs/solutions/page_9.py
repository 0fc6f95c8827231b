"""Page 9, the gradient of your own function: solutions. `python docs/solutions/page_9.py` prints the answers."""

import numpy as np

from minigrad import Function, Tensor, gradcheck
from minigrad import functional as F
from minigrad.ops.activation import Softmax


def message(fn, x):
    """What gradcheck says, or an empty string."""
    try:
        gradcheck(fn, x)
    except AssertionError as error:
        return str(error)
    return ""


def exercise_1() -> None:
    """Surprise: at x = 0 it passes. The kink is symmetric: the central difference is (|h| - |-h|)/2h = 0.

    And `relu` takes 0 for its slope at 0, so backward() gives 0 - 0 = 0 as well. A test at a kink may pass by luck.
    x = 1e-7 is nearer to the kink than the step h = 1e-5: backward() gives 1, the difference 0.01, and gradcheck names
    entry [1] and the kink. With 0.1 in its place it passes, as it should.
    """

    def absolute(x):
        return x.relu() + (-x).relu()

    assert message(absolute, np.array([2.0, 0.0, -3.0])) == ""
    said = message(absolute, np.array([2.0, 1e-7, -3.0]))
    print(said)
    assert "at [1]" in said and "a kink" in said
    assert message(absolute, np.array([2.0, 0.1, -3.0])) == ""


def right_gradient(fn, x, v, h=1e-5):
    """Whether backward() and central differences of Σ v·fn(x) agree, for an array x in float64."""
    leaf = Tensor(x, requires_grad=True)
    fn(leaf).backward(v)
    numeric = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        numeric[i] = ((fn(Tensor(x + step)).numpy() - fn(Tensor(x - step)).numpy()) * v).sum() / (2 * h)
    return np.allclose(leaf.grad, numeric, rtol=1e-5, atol=1e-7)


class Zero(Softmax):
    def backward(self, dy):
        return super().backward(dy) * 0


def exercise_2() -> None:
    """The random v finds the fault. With v = 1 the sum of a softmax is measured: it is always 1, its gradient 0."""
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((2, 4)), rng.standard_normal((2, 4))
    good = right_gradient(F.softmax, x, v)
    bad = right_gradient(lambda x: Zero.apply(x, axis=1), x, v)
    hidden = right_gradient(lambda x: Zero.apply(x, axis=1), x, np.ones((2, 4)))
    print(f"softmax: {good}; zeros: {bad}; zeros with v = 1: {hidden}")
    assert good and not bad and hidden


class WrongAbs(Function):
    """y = |x|, with a backward pass that is right only where x > 0."""

    def forward(self, x):
        return np.abs(x)

    def backward(self, dy):
        return dy


def exercise_3() -> None:
    """It is accepted where all inputs are positive. A test must draw inputs of both signs, away from 0."""
    assert gradcheck(WrongAbs.apply, np.array([1.0, 2.0]))
    said = message(WrongAbs.apply, np.array([1.0, -2.0]))
    print(said)
    assert "at [1]" in said


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        exercise()
