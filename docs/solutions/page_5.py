"""Page 5, batch norm: solutions. `python docs/solutions/page_5.py` prints the answers."""

import numpy as np

from minigrad import Tensor, gradcheck
from minigrad import functional as F
from minigrad.ops.norm import BatchNorm

OPTIONS = {"running_mean": None, "running_var": None, "training": True, "momentum": 0.1, "eps": 1e-9}


def exercise_1() -> None:
    """σ = √5, x̂ = (-3, -1, 1, 3)/√5. mean(dy) = 1/4. mean(dy·x̂) = -3/(4√5).

    dy - 1/4 = (3, -1, -1, -1)/4, and x̂·mean(dy·x̂) = (9, 3, -3, -9)/20. The rest is (15 - 9, -5 - 3, -5 + 3, -5 + 9)/20
    = (6, -8, -2, 4)/20. It adds up to 0. dx is that, divided by √5.
    """
    x = Tensor(np.array([[1.0], [3.0], [5.0], [7.0]]), requires_grad=True)
    ones, zeros = Tensor(np.ones(1)), Tensor(np.zeros(1))
    F.batch_norm(x, ones, zeros, None, None, training=True, eps=0).backward(np.array([[1.0], [0.0], [0.0], [0.0]]))
    print("dx =", x.grad.ravel().round(4))
    assert np.allclose(x.grad.ravel(), np.array([6, -8, -2, 4]) / 20 / np.sqrt(5))


class NoStretch(BatchNorm):
    """Without the part along x̂."""

    def backward(self, dy):
        _, dweight, dbias = super().backward(dy)
        dx = (dy - dy.mean(axis=0)) * self.weight * self.inv_std
        return dx, dweight, dbias


class NoWeight(BatchNorm):
    """Without the factor `weight`."""

    def backward(self, dy):
        dx, dweight, dbias = super().backward(dy)
        return dx / self.weight, dweight, dbias


def notice(broken):
    """Which of three objectives sees that dx and central differences are not the same."""
    rng = np.random.default_rng(0)
    values, v = rng.standard_normal((6, 1)), Tensor(rng.standard_normal((6, 1)))
    a, b = Tensor(np.array([2.0])), Tensor(np.array([0.5]))
    objectives = {
        "sum": lambda y: y.sum(),
        "squares": lambda y: (y * y).sum(),
        "gradcheck": lambda y: (v * y).sum(),
    }
    found = []
    for name, objective in objectives.items():
        try:
            gradcheck(lambda x, objective=objective: objective(broken.apply(x, a, b, **OPTIONS)), [values])
        except AssertionError:
            found.append(name)
    return found


def exercise_2() -> None:
    """The sum has dy = 1: no part along x̂, so the missing term is 0 anyway, and it does not notice.

    The squares have dy = 2·(weight·x̂ + bias), which has a part along x̂, so they do. A missing factor scales dx. The
    sum's is 0, scaled or not. The squares' would be 0, too, but for ε, which leaves 10⁻⁸: small, and yet noticed, since
    `gradcheck` looks closely at a gradient that is all below its `atol`.
    """
    stretch, weight = notice(NoStretch), notice(NoWeight)
    print(f"without the part along x̂: noticed by {stretch}; without the factor: by {weight}")
    assert stretch == ["squares", "gradcheck"] and weight == ["squares", "gradcheck"] and notice(BatchNorm) == []


def layer_norm(x, eps=1e-5):
    """(x - μ) / √(σ² + ε), with μ and σ² over the channels of each example; x is (N, C)."""
    centred = x - x.mean(axis=1, keepdims=True)
    variance = (centred * centred).mean(axis=1, keepdims=True)
    return centred / (variance + eps).sqrt()


def exercise_3() -> None:
    """Transposed, the examples are the channels, and batch norm normalises each over what was its channels."""
    rng = np.random.default_rng(0)
    values, dy = rng.standard_normal((3, 5)), rng.standard_normal((3, 5))
    results = []
    for norm in (
        layer_norm,
        lambda x: F.batch_norm(x.T, Tensor(np.ones(3)), Tensor(np.zeros(3)), None, None, training=True).T,
    ):
        x = Tensor(values, requires_grad=True)
        y = norm(x)
        y.backward(dy)
        results.append((y.numpy(), x.grad))
    same = [np.allclose(a, b) for a, b in zip(*results, strict=True)]
    print("layer norm in two ways: y and dx agree:", same)
    assert all(same) and gradcheck(layer_norm, values)


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        exercise()
