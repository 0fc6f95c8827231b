"""Page 1, the tape: solutions. `python docs/solutions/page_1.py` prints the answers."""

import numpy as np

from minigrad import Tensor
from minigrad.ops.basic import Add, Multiply, Sum
from minigrad.tensor import consumers


def exercise_1() -> None:
    """y = (a + b) a = a² + ab, so da = 2a + b = 7 and db = a = 2.

    Two gradients arrive at a: b + a = 5 from Multiply, whose second input is a, and 2 from Add.
    """
    a, b = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
    y = (a + b) * a
    waits = consumers(y.node)[a]
    y.backward()
    print(f"da = {a.grad}, db = {b.grad}; {waits} gradients arrive at a")
    assert (a.grad, b.grad, waits) == (7, 2, 2)


def exercise_2() -> None:
    """Four entries: Sum waits for none (it is the root), Add for one, Multiply for one, x for three.

    Multiply has two edges to x, Add has one.
    """
    x = Tensor(np.ones(4), requires_grad=True)
    counts = consumers((x * x + x).sum().node)
    named = {type(node): count for node, count in counts.items()}
    print("waiting for:", {kind.__name__: count for kind, count in named.items()})
    assert named == {Sum: 0, Add: 1, Multiply: 1, Tensor: 3}


class Value:
    """A number on a tape."""

    def __init__(self, data: float, parents: tuple[tuple["Value", float], ...] = ()):
        self.data, self.grad = data, 0.0
        self.parents = parents  # (input, derivative of this value with respect to it)

    def __add__(self, other: "Value") -> "Value":
        return Value(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other: "Value") -> "Value":
        return Value(self.data * other.data, ((self, other.data), (other, self.data)))

    def backward(self) -> None:
        order: list[Value] = []  # every value after all of its inputs

        def visit(value: "Value") -> None:
            if value not in order:
                for parent, _ in value.parents:
                    visit(parent)
                order.append(value)

        visit(self)
        self.grad = 1.0
        for value in reversed(order):  # so a value comes after everything that was computed from it
            for parent, slope in value.parents:
                parent.grad += slope * value.grad


def exercise_3() -> None:
    """`reversed(order)` does what counting does in tensor.py: a value's gradient is complete when its turn comes.

    Two things are simpler than in tensor.py: the derivatives are numbers, so each edge can hold its own, and `visit`
    calls itself, so a chain of some thousand operations would meet Python's limit on recursion.
    """
    x = Value(3.0)
    u = Value(2.0) * x
    y = u * u + u
    y.backward()
    print(f"y = {y.data}, du = {u.grad}, dx = {x.grad}")
    assert (y.data, u.grad, x.grad) == (42, 13, 26)


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        exercise()
