"""Expressions in tensors as users write them, with shapes that nobody thinks of, against PyTorch.

Scalars, empty arrays and axes of size 1 broadcast; axes count from the end; numbers, lists, arrays and NumPy's scalars
stand on either side; NumPy's functions get tensors; indices repeat, are empty, masks, or new axes; tensors are used
twice and looked at. Values, shapes, dtypes and all gradients must be those of PyTorch, which is needed for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Tensor
from minigrad import functional as F

from . import Skipped
from .chains import torch

Both = tuple[Any, Any]  # a tensor of ours and one of PyTorch's


def fitting(rng: random.Random, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts with this one: fewer or more axes, some of size 1."""
    kept = shape[rng.randint(0, len(shape)) :]
    more = (rng.choice([1, 2]),) if len(kept) == len(shape) and rng.random() < 0.3 else ()
    return (*more, *(rng.choice([n, n, 1]) for n in kept))


def leaf(rng: random.Random, values: np.random.Generator, shape: tuple[int, ...], leaves: list[Both]) -> Both:
    array = values.standard_normal(shape)
    made = (
        Tensor(np.array(array, order=rng.choice("CF")), requires_grad=True),
        torch.tensor(array, requires_grad=True),
    )
    leaves.append(made)
    return made


def elementwise(rng: random.Random, t: Both, other: Both) -> tuple[str, Both]:
    sign = rng.choice(["+", "-", "*", "/"])
    a, b = rng.sample([t, other], 2)
    if sign == "/":  # by something that is not near 0
        b = b[0] * b[0] + 1.0, b[1] * b[1] + 1.0
    functions: dict[str, Callable] = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    function = functions.get(sign, lambda a, b: a / b)
    return sign, (function(a[0], b[0]), function(a[1], b[1]))


def with_number(rng: random.Random, values: np.random.Generator, t: Both) -> tuple[str, Both]:
    """A number or an array that is no tensor, on one side; NumPy's own function or an operator."""
    number = rng.choice([2, -1.5, np.float32(0.5), np.float64(3), np.int8(2), np.array(1.5), "array"])
    if isinstance(number, str):
        number = values.standard_normal(fitting(rng, t[0].shape))
    other = torch.tensor(np.asarray(number, np.float64))
    forms: dict[str, Callable[[Any, Any, bool], Any]] = {
        "x + a": lambda x, a, ours: x + a,
        "a - x": lambda x, a, ours: a - x,
        "a * x": lambda x, a, ours: a * x,
        "a / (x x + 1)": lambda x, a, ours: a / (x * x + 1.0),
        "np.add(a, x)": lambda x, a, ours: np.add(a, x) if ours else a + x,
        "np.multiply(x, a)": lambda x, a, ours: np.multiply(x, a) if ours else x * a,
    }
    form = rng.choice(list(forms))
    return f"{form} with {number!r}", (forms[form](t[0], number, True), forms[form](t[1], other, False))


def reduced(rng: random.Random, t: Both) -> tuple[str, Both]:
    shape = t[0].shape
    axes = rng.sample(range(len(shape)), rng.randint(0, len(shape)))
    axis: Any = rng.choice([None, tuple(a - len(shape) * (rng.random() < 0.5) for a in axes) or None])
    axis = axis[0] if axis and len(axis) == 1 and rng.random() < 0.5 else axis
    over = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    name = rng.choice(["sum", "mean", "max"]) if all(shape[a] for a in over) else "sum"
    keepdims = rng.random() < 0.5
    theirs = tuple(over)
    function = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}[name]
    y = function(t[1], theirs, keepdims) if theirs else t[1] * 1.0
    mine = (
        getattr(t[0], name)(axis, keepdims) if rng.random() < 0.5 else getattr(np, name)(t[0], axis, keepdims=keepdims)
    )
    return f"{name} over {axis}, {keepdims}", (mine, y)


def moved(rng: random.Random, t: Both) -> tuple[str, Both]:
    shape = t[0].shape
    kind = rng.choice(["reshape", "transpose", "T", "pad", "concat", "new axis"])
    if kind == "reshape":
        wanted = [*shape, 1] if rng.random() < 0.5 else [1, *shape]
        if t[0].size and rng.random() < 0.5:
            wanted = [-1]
        return f"reshape {wanted}", (t[0].reshape(*wanted), t[1].reshape(wanted))
    if kind == "transpose":
        axes = rng.sample(range(len(shape)), len(shape))
        signed = [a - len(shape) * (rng.random() < 0.5) for a in axes]
        return f"transpose {signed}", (t[0].transpose(signed) if axes else t[0].transpose(), t[1].permute(axes))
    if kind == "T":
        return "T", (t[0].T, t[1].permute(*reversed(range(len(shape)))) if shape else t[1])
    if kind == "pad" and shape:
        widths = [(rng.randint(0, 2), rng.randint(0, 2)) for _ in shape]
        flat = [n for pair in reversed(widths) for n in pair]
        return f"pad {widths}", (F.pad(t[0], widths), torch.nn.functional.pad(t[1], flat))
    if kind == "concat" and shape:
        axis = rng.randrange(-len(shape), len(shape))
        return f"concat {axis}", (F.concat([t[0], t[0] * 2.0], axis), torch.cat([t[1], t[1] * 2.0], axis))
    return "new axis", (t[0][None], t[1][None])


def picked(rng: random.Random, t: Both) -> tuple[str, Both]:
    n = t[0].shape[0]
    choices: list[Any] = [..., slice(0, n // 2), slice(n, 0), slice(None, None, 2), (Ellipsis, None)]
    if n:
        at = [rng.randrange(-n, n) for _ in range(rng.randint(0, 4))]
        choices += [rng.randrange(-n, n), at, np.array(at, int), np.array([rng.random() < 0.5 for _ in range(n)])]
        choices += [(slice(None), None), (np.array([[0], [n - 1]]),)]
    index = rng.choice(choices)

    def theirs(part: Any) -> Any:
        return (
            torch.tensor(part, dtype=None if isinstance(part, np.ndarray) else torch.int64)
            if isinstance(part, np.ndarray | list)
            else part
        )

    other = tuple(map(theirs, index)) if isinstance(index, tuple) else theirs(index)
    mine = Tensor(index) if isinstance(index, np.ndarray) and rng.random() < 0.5 else index
    return f"[{index!r}]", (t[0][mine], t[1][other])


def product(rng: random.Random, values: np.random.Generator, t: Both, leaves: list[Both]) -> tuple[str, Both]:
    K = t[0].shape[-1]
    other = leaf(rng, values, rng.choice([(K,), (K, 2), (1, K, 1), (K, 0), (*t[0].shape[:-2], K, 3)]), leaves)
    return f"@ {other[0].shape}", (t[0] @ other[0], t[1] @ other[1])


def function(rng: random.Random, t: Both) -> tuple[str, Both]:
    name = rng.choice(["exp", "tanh", "sigmoid", "relu", "sqrt", "log", "power", "negative", "softmax"])
    if name in ("sqrt", "log"):
        return name, (getattr(t[0] * t[0] + 1.0, name)(), getattr(t[1] * t[1] + 1.0, name)())
    if name == "power":
        p = rng.choice([2, 3, 1, 0, 2.0])
        return f"** {p}", (t[0] ** p, t[1] ** p)
    if name == "softmax" and t[0].ndim and t[0].shape[-1]:
        return name, (F.softmax(t[0]), torch.softmax(t[1], -1))
    if name in ("negative", "softmax"):
        return "negative", (-t[0], -t[1])
    x = (t[0], t[1]) if name != "exp" else (t[0] * 0.1, t[1] * 0.1)
    return name, (
        getattr(np, name)(x[0]) if name in ("exp", "tanh") and rng.random() < 0.5 else getattr(x[0], name)(),
        getattr(x[1], name)(),
    )


def trial(rng: random.Random, folder: Path) -> None:
    """Write an expression of a few steps twice, and compare."""
    if torch is None:
        raise Skipped("PyTorch is missing: pip install torch")
    values = np.random.default_rng(rng.getrandbits(32))
    shape = tuple(rng.choice([0, 1, 1, 2, 3, 3, 4]) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 4])))
    leaves: list[Both] = []
    tensors = [leaf(rng, values, shape, leaves)]
    story = [str(shape)]
    for _ in range(rng.randint(1, 6)):
        t = rng.choice([tensors[-1], tensors[-1], rng.choice(tensors)])
        if t[0].size > 2000:
            continue
        kind = rng.choice(["elementwise", "again", "number", "reduced", "moved", "picked", "product", "function"])
        if kind == "again":  # with a tensor that was there before, where the shapes allow it
            fits = [o for o in tensors if o[0].shape == t[0].shape or not o[0].ndim]
            words, y = elementwise(rng, t, rng.choice([t, *fits]))
        elif kind == "number":
            words, y = with_number(rng, values, t)
        elif kind == "reduced":
            words, y = reduced(rng, t)
        elif kind == "moved":
            words, y = moved(rng, t)
        elif kind == "picked" and t[0].ndim:
            words, y = picked(rng, t)
        elif kind == "product" and t[0].ndim:
            words, y = product(rng, values, t, leaves)
        elif kind == "function":
            words, y = function(rng, t)
        else:
            words, y = elementwise(rng, t, leaf(rng, values, fitting(rng, t[0].shape), leaves))
        story.append(words)
        tensors.append(y)
        if rng.random() < 0.1:
            assert repr(y[0]) and y[0].numpy().shape == y[0].shape
    mine, theirs = tensors[-1]
    text = ", ".join(story)
    for ours, other in tensors:
        same(text, "a value", ours.numpy(), other)
    assert mine.requires_grad == theirs.requires_grad, text
    if theirs.requires_grad:
        dy = values.standard_normal(mine.shape)
        mine.backward(dy)
        theirs.backward(torch.tensor(dy))
        for i, (a, b) in enumerate(leaves):
            assert (a.grad is None) == (b.grad is None), f"{text}: leaf {i} has {a.grad} and {b.grad}"
            if a.grad is not None:
                same(text, f"the gradient of leaf {i}", a.grad, b.grad)


def same(story: str, what: str, a: Any, b: Any) -> None:
    """Raise AssertionError unless an array of ours is PyTorch's."""
    b = b.detach().numpy()
    assert isinstance(a, np.ndarray) and a.shape == b.shape and a.dtype == b.dtype, f"{story}: {what} {a!r} {b!r}"
    assert np.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True), f"{story}: {what} is {a}, PyTorch has {b}"
