"""The registry of what stands in for what: asked in order, with an inverse, and a way to do without."""

import threading

import numpy as np
import pytest

from minigrad import Function, Tensor, registry


class Double(Function):
    """y = 2 x,  dx = 2 dy."""

    def forward(self, x):
        return x + x

    def backward(self, dy):
        return dy + dy


class Large(Double):
    @classmethod
    def accepts(cls, x):
        return x.size > 2


class Any(Double):
    @classmethod
    def accepts(cls, x):
        return x.ndim > 0


@pytest.fixture(autouse=True)
def registered():
    registry.register(Double, "cpu", Large, Any)
    yield
    registry.register(Double, "cpu")


def made(shape):
    return type(Double.apply(Tensor(np.ones(shape), requires_grad=True)).node)


def test_the_first_that_accepts_computes_and_the_book_where_none_does():
    assert [made(shape) for shape in (3, 2, ())] == [Large, Any, Double]
    assert registry.choose(Double, "cuda:1", np.ones(3)) is Double, "nothing is registered there"


def test_the_inverse():
    assert [registry.book_of(cls) for cls in (Large, Any, Double)] == [Double] * 3


def test_the_book_alone():
    assert registry.fast("cpu")
    with registry.book_only():
        assert made(3) is Double and not registry.fast("cpu")
        registry.register(Double, "cpu", Any)
        assert made(3) is Any
    assert made(3) is Large, "and as before afterwards"


def test_the_book_alone_in_two_threads_that_overlap():
    entered, leave = threading.Event(), threading.Event()

    def compare():
        with registry.book_only():
            entered.set()
            assert leave.wait(10)

    thread = threading.Thread(target=compare)
    thread.start()
    assert entered.wait(10)
    with registry.book_only():
        leave.set()
        thread.join(10)
        assert made(3) is Double, "the other thread has left, this one has not"
    assert made(3) is Large


def test_a_function_may_decline_too():
    def plain(a):
        return "book"

    @registry.accepting(lambda a: a > 0)
    def positive(a):
        return "fast"

    registry.register(plain, "cpu", positive)
    try:
        assert [registry.choose(plain, "cpu", a)(a) for a in (1, -1)] == ["fast", "book"]
    finally:
        registry.register(plain, "cpu")
