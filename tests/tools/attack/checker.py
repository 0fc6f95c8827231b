"""`gradcheck` on functions of somebody's own, at scales from 10⁻¹² to 10¹²: right ones pass, wrong ones do not.

A right gradient is passed, or refused in a sentence that says why nothing can be told: `fn` is rounded away, leaves its
domain, or bends. A wrong one is never passed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Function, GradcheckError, Tensor, gradcheck
from minigrad import functional as F

EXCUSES = ("are rounded by as much", "not finite a step away", "a bend sharper than the step")
REFUSALS = ("not finite, ", "values that are not finite")


class Own(Function):
    """y = 3 x², and a gradient with a mistake of some kind."""

    def forward(self, x: np.ndarray, *, mistake: str, seed: int) -> np.ndarray:
        self.x, self.mistake, self.seed = x, mistake, seed
        return 3 * x * x

    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx = 6 * dy * self.x
        flat = dx.reshape(-1)
        at = self.seed % max(flat.size, 1)
        if self.mistake == "sign":
            dx = -dx
        elif self.mistake == "zero":
            dx = 0 * dx
        elif self.mistake == "factor":
            dx = 1.001 * dx
        elif self.mistake == "term":
            dx = 3 * dy * self.x
        elif self.mistake == "one entry":
            flat[at] *= 2
        elif self.mistake == "a neighbour's":
            dx = np.roll(flat, 1).reshape(dx.shape) + 0.5 * dx
        elif self.mistake == "not a number":
            flat[at] = np.nan
        elif self.mistake == "infinite":
            flat[at] = np.inf
        return dx


MISTAKES = ("sign", "zero", "factor", "term", "one entry", "a neighbour's", "not a number", "infinite")
AROUND = {
    "alone": lambda y: y,
    "exp": lambda y: (y * 0.1).exp(),
    "sum": lambda y: y.sum(),
    "softmax": lambda y: F.softmax(y.reshape(1, -1)),
    "log": lambda y: (y + 1.0).log(),
    "several": lambda y: (y, y * y, y.detach() == 0.0, Tensor([1, 2])),
    "picked": lambda y: y[[0, 0]],
    "turned": lambda y: y.transpose() * 2.0,
}


def trial(rng: random.Random, folder: Path) -> None:
    """Check one function with a right or a wrong gradient."""
    values = np.random.default_rng(rng.getrandbits(32))
    shape = rng.choice([(1,), (3,), (2, 3), (1, 1), (2, 1, 2), (4, 5)])
    x = values.uniform(0.5, 1.5, shape) * rng.choice([1, 1, -1]) * rng.choice([1.0, 1.0, 1.0, 1e-3, 10.0])
    mistake = rng.choice(["", rng.choice(MISTAKES)])
    around = rng.choice(list(AROUND))
    scale, shift = 10.0 ** rng.choice([0, 0, 0, 3, 12, -3, -7, -12]), rng.choice([0.0, 0.0, 1.0, 1e6, 1e12])
    seed = rng.randrange(100)

    def function(x: Tensor, mistake: str) -> Any:
        found = AROUND[around](Own.apply(x, mistake=mistake, seed=seed))
        first, *others = found if isinstance(found, tuple) else (found,)
        return (first * scale + shift, *others)

    def fn(x: Tensor, *rest: Any) -> Any:
        return function(x, mistake)

    def gradient(mistake: str) -> np.ndarray:
        """Of the first output, with a gradient of the size that the checker takes."""
        t = Tensor(x.astype(np.float64), requires_grad=True)
        y = function(t, mistake)
        y = y[0] if isinstance(y, tuple) else y
        y.backward(np.random.default_rng(seed).uniform(0.5, 1.5, y.shape))
        return np.asarray(t.grad)

    form = rng.choice(["array", "float32", "tensor", "leaf", "computed", "beside integers"])
    if form == "float32":
        x = x.astype(np.float32)
    inputs = {
        "tensor": lambda: [Tensor(x)],
        "leaf": lambda: [Tensor(x, requires_grad=True)],
        "computed": lambda: [Tensor(x, requires_grad=True) * 1.0],
        "beside integers": lambda: [x, np.arange(3), "text"],
    }.get(form, lambda: [x])()
    atol = rng.choice([1e-7, 1e-7, 1e-7 * scale])
    story = (
        f"{mistake or 'no mistake'}, {around}, {form} of shape {shape}, times {scale:g} plus {shift:g}, atol {atol:g}"
    )
    try:
        assert gradcheck(fn, inputs, atol=atol) is True
    except GradcheckError as error:
        assert mistake or any(excuse in str(error) for excuse in EXCUSES), f"{story}: a false alarm: {error}"
    except ValueError as error:
        assert any(refusal in str(error) for refusal in REFUSALS), f"{story}: {error}"
    else:
        right, wrong = gradient(""), gradient(mistake)
        off, largest = np.abs(right - wrong).max(), np.abs(right).max()
        allowed = 1e-5 * largest + (atol if 10 * largest > atol else 0.0)  # of a smaller gradient nothing may pass
        unseen = largest < 1e-8 * (scale + shift)  # rounded away, as is the finite difference
        assert unseen or off <= 100 * allowed, f"{story}: a wrong gradient passes, {wrong} for {right}"
