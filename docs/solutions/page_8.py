"""Page 8, training: solutions. `python docs/solutions/page_8.py` prints the answers."""

import numpy as np

from minigrad import Tensor
from minigrad import functional as F
from minigrad.optim import SGD


def exercise_1() -> None:
    """-log pᵣ = -zᵣ + log Σ e^zⱼ. The gradient with respect to zₖ: -1 if k = r, plus e^zₖ / Σ e^zⱼ = pₖ."""
    z = Tensor(np.array([[1.0, 2.0, 3.0]]), requires_grad=True)
    F.cross_entropy(z, np.array([0])).backward()
    p = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
    print("p - q =", (p - [1, 0, 0]).round(4), "  machine:", z.grad[0].round(4))
    assert np.allclose(z.grad[0], p - [1, 0, 0])


def exercise_2() -> None:
    """Without `zero_grad` the gradients 1, 2, 3 are what three steps see: 5 - 0.1 - 0.2 - 0.3 = 4.4 in place of 4.7.

    Gradients of old batches, computed for old weights, count again and again: as if momentum were 1 and never faded.
    """
    ends = []
    for forget in (True, False):
        w = Tensor(np.array(5.0), requires_grad=True)
        optimizer = SGD([w], lr=0.1)
        for _ in range(3):
            if forget:
                optimizer.zero_grad()
            w.sum().backward()
            optimizer.step()
        ends.append(round(w.item(), 6))
    print("with zero_grad:", ends[0], " without:", ends[1])
    assert ends == [4.7, 4.4]


class Adam:
    """w ← w - lr·m̂/(√v̂ + ε), with m and v running averages of dw and dw² (Kingma & Ba 2015, Algorithm 1)."""

    def __init__(self, parameters, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8):
        self.parameters, self.lr, self.beta1, self.beta2, self.eps = list(parameters), lr, beta1, beta2, eps
        self.t, self.m, self.v = 0, [0.0] * len(self.parameters), [0.0] * len(self.parameters)

    def step(self):
        self.t += 1
        for i, w in enumerate(self.parameters):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * w.grad
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * w.grad**2
            m, v = self.m[i] / (1 - self.beta1**self.t), self.v[i] / (1 - self.beta2**self.t)  # both began at 0
            w.data = w.data - self.lr * m / (np.sqrt(v) + self.eps)
            w.grad = None


def distance(optimizer_of, steps=300):
    """How far from the minimum (3, -1) of (w₁ - 3)² + 10,000·(w₂ + 1)² an optimiser ends."""
    w = Tensor(np.zeros(2), requires_grad=True)
    optimizer, scale = optimizer_of([w]), Tensor(np.array([1.0, 10_000.0]))
    for _ in range(steps):
        w.grad = None
        (((w - Tensor(np.array([3.0, -1.0]))) ** 2) * scale).sum().backward()
        optimizer.step()
    return float(np.abs(w.numpy() - [3, -1]).max())


def exercise_3() -> None:
    """Adam divides by the size of each weight's own gradient, so one rate fits both weights.

    SGD's rate must stay below 2/20,000 = 0.0001, or w₂ overshoots further with each step. With 0.00009 w₁ hardly moves.
    """
    adam = distance(lambda ws: Adam(ws, lr=0.1))
    slow, wild = distance(lambda ws: SGD(ws, lr=0.00009)), distance(lambda ws: SGD(ws, lr=0.00011))
    print(f"distance from the minimum: Adam {adam:.1g}, SGD with 0.00009 {slow:.2g}, with 0.00011 {wild:.2g}")
    assert adam < 0.05 and slow > 1 and wild > 1000


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        exercise()
