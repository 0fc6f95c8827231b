"""Page 2, one operation: solutions. `python docs/solutions/page_2.py` prints the answers."""

import numpy as np

from minigrad import Function, Tensor, gradcheck
from minigrad.ops.basic import Broadcasting


def exercise_1() -> None:
    """y is (2, 3, 4). a (2, 1, 4) was repeated along axis 1, three times: its gradient is summed over axis 1.

    b (3, 1) got a new axis in front and was repeated along the last: its gradient is summed over axes 0 and 2, which is
    2·4 = 8 entries. So da is 3 everywhere, and db is 8 everywhere.
    """
    a, b = Tensor(np.ones((2, 1, 4)), requires_grad=True), Tensor(np.ones((3, 1)), requires_grad=True)
    y = a * b
    y.sum().backward()
    print(f"y {y.shape}, da {a.grad.shape} of {a.grad.max():g}, db {b.grad.shape} of {b.grad.max():g}")
    assert y.shape == (2, 3, 4) and (a.grad == 3).all() and (b.grad == 8).all()


class PlainAdd(Function):
    """y = a + b, as if the inputs always had one shape."""

    def forward(self, a, b):
        return a + b

    def backward(self, dy):
        return dy, dy


def exercise_2() -> None:
    """`forward` works, since NumPy broadcasts. In `backward()` the engine compares the gradient with the input.

    The class has not said that its inputs may broadcast, so the engine takes the difference for a mistake.
    """
    x, row = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.ones(3), requires_grad=True)
    y = PlainAdd.apply(x, row)
    try:
        y.sum().backward()
    except ValueError as error:
        print(error)
        assert "returned a gradient of shape (2, 3)" in str(error) and "for input 1" in str(error)
    else:
        raise AssertionError("the wrong shape went through")


class Hypot(Broadcasting):
    """y = √(a² + b²),  da = dy a / y,  db = dy b / y."""

    def forward(self, a, b):
        self.a, self.b = a, b
        self.y = (a * a + b * b) ** 0.5
        return self.y

    def backward(self, dy):
        return dy * self.a / self.y, dy * self.b / self.y


def exercise_3() -> None:
    """∂y/∂a = 2a / (2√(a² + b²)) = a / y, and the same for b. At a = b = 0 there is no gradient."""
    rng = np.random.default_rng(0)
    right = gradcheck(Hypot.apply, [rng.standard_normal((2, 1, 4)), rng.standard_normal((3, 1))])
    print("Hypot passes gradcheck:", right)
    assert right


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        exercise()
