"""What the tests of the tape build graphs from."""

import numpy as np

from minigrad import Function, Tensor


def leaf(*values):
    """A float64 tensor of these values that wants a gradient."""
    return Tensor(np.array(values, np.float64), requires_grad=True)


def operation(gradient, broadcasts=False):
    """An operation y = a + b whose backward pass returns what `gradient(dy)` says."""
    attributes = {
        "broadcasts": broadcasts,
        "forward": lambda self, a, b: a + b,
        "backward": lambda self, dy: gradient(dy),
    }
    return type("Faulty", (Function,), attributes)
