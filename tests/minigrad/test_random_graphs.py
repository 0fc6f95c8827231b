"""Random expression graphs, in minigrad and in forward-mode dual numbers that live in this file."""

import operator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule
from numpy.testing import assert_allclose
from support.strategies import normal, seeds

from minigrad import Tensor


class Dual:
    """A value and its derivative in one direction: forward-mode differentiation, with rules of its own."""

    def __init__(self, value, slope):
        self.value, self.slope = value, slope

    def __add__(self, other):
        return Dual(self.value + other.value, self.slope + other.slope)

    def __sub__(self, other):
        return Dual(self.value - other.value, self.slope - other.slope)

    def __mul__(self, other):
        return Dual(self.value * other.value, self.slope * other.value + self.value * other.slope)

    def __truediv__(self, other):
        quotient = self.value / other.value
        return Dual(quotient, (self.slope - quotient * other.slope) / other.value)

    def __neg__(self):
        return Dual(-self.value, -self.slope)

    def exp(self):
        return Dual(np.exp(self.value), np.exp(self.value) * self.slope)

    def tanh(self):
        return Dual(np.tanh(self.value), self.slope / np.cosh(self.value) ** 2)

    def sigmoid(self):
        value = 1 / (1 + np.exp(-self.value))
        return Dual(value, value * (1 - value) * self.slope)

    def mean(self, axis, keepdims):
        return Dual(self.value.mean(axis, keepdims=keepdims), self.slope.mean(axis, keepdims=keepdims))

    def transpose(self, *axes):
        return Dual(self.value.transpose(*axes), self.slope.transpose(*axes))


SHAPES = [(), (3,), (2, 1), (2, 3)]


class Graphs(RuleBasedStateMachine):
    """Builds a graph of random operations, in minigrad and in dual numbers at once.

    Every leaf moves in a random direction; then d(Σ v y)/dt = Σ over leaves <gradient, direction>. Values stay small:
    products and exponentials are squashed by tanh.
    """

    values = Bundle("values")

    @initialize()
    def start(self):
        self.leaves = []

    @rule(target=values, shape=st.sampled_from(SHAPES), seed=seeds)
    def leaf(self, shape, seed):
        tensor = Tensor(normal(seed, *shape), requires_grad=True)
        direction = normal(seed + 1, *shape)
        self.leaves.append((tensor, direction))
        return tensor, Dual(tensor.data.copy(), direction)

    @rule(target=values, shape=st.sampled_from(SHAPES), seed=seeds)
    def constant(self, shape, seed):
        value = normal(seed, *shape)
        return Tensor(value), Dual(value, np.zeros(shape))

    @rule(target=values, a=values, b=values, name=st.sampled_from(["add", "sub", "mul"]))
    def arithmetic(self, a, b, name):
        combine = getattr(operator, name)
        return combine(a[0], b[0]).tanh(), combine(a[1], b[1]).tanh()

    @rule(target=values, a=values, b=values)
    def divide(self, a, b):
        """By sigmoid(b) + 1, which is not 0."""
        one = Tensor(np.ones(())), Dual(np.ones(()), np.zeros(()))
        return a[0] / (b[0].sigmoid() + one[0]), a[1] / (b[1].sigmoid() + one[1])

    @rule(target=values, a=values)
    def exponential(self, a):
        return (-a[0].tanh()).exp(), (-a[1].tanh()).exp()

    @rule(target=values, a=values)
    def average(self, a):
        axis = 0 if a[0].ndim else None
        return a[0].mean(axis, True) if a[0].ndim else a[0].mean(), a[1].mean(axis, True)

    @rule(target=values, a=values, b=values)
    def products_of_transposes(self, a, b):
        return (a[0].transpose().transpose() * b[0]).tanh(), (a[1].transpose().transpose() * b[1]).tanh()

    @rule(y=values, seed=seeds)
    def differentiate(self, y, seed):
        tensor, dual = y
        assert_allclose(tensor.data, dual.value, rtol=1e-12, atol=1e-14)
        v = normal(seed, *tensor.shape)
        for t, _ in self.leaves:
            t.grad = None
        if tensor.requires_grad:
            try:
                tensor.backward(v)
            except ValueError as error:  # a part of this graph was walked before
                assert "already freed" in str(error)
                return
        total = sum(np.vdot(t.grad, d) for t, d in self.leaves if t.grad is not None)
        assert total == pytest.approx(np.vdot(v, dual.slope), rel=1e-9, abs=1e-9)


Graphs.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
TestRandomGraphs = Graphs.TestCase
