"""A parameter that two layers share."""

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from minigrad import Module, Tensor, gradcheck, nn, optim


def test_tied_weights_train():
    """One parameter in two layers: updated once, by the sum of both gradients, saved under both names."""

    class Tied(Module):
        def __init__(self):
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    model = Tied().to(dtype="float64")
    assert [name for name, _ in model.named_parameters()] == ["first.weight", "first.bias", "second.bias"]
    x = Tensor(np.random.default_rng(0).standard_normal((4, 3)))
    assert gradcheck(lambda *_: model(x), list(model.parameters()))
    before = model.first.weight.data.copy()
    optimizer = optim.SGD(model.parameters(), 0.1)
    model(x).sum().backward()
    gradient = model.first.weight.grad.copy()
    optimizer.step()
    assert_allclose(model.second.weight.data, before - 0.1 * gradient)
    assert model.second.weight is model.first.weight
    other = Tied().to(dtype="float64")
    other.load_state_dict(model.state_dict())
    assert_array_equal(other(x).data, model(x).data)
