"""Random networks of convolutions, batch norms, poolings and what stands between them, computed three ways.

The engine room is held to the book, and both to PyTorch where it is installed: outputs, running statistics and every
gradient, in float64, where a difference of more than rounding is a mistake. Images and gradients come in nine memory
layouts. The engine room cuts its work for one to three threads, of small networks too, and somebody may look at what
stands between two operations. One trial in four puts NaN and infinities into images, weights or the gradient: then the
same numbers must be NaN, and the same infinite with the same sign.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from support.engine import only, thread_count

from minigrad import Tensor, registry
from minigrad import functional as F
from minigrad.fast import cpu
from minigrad.ops.norm import batch_norm, batch_norm_relu

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]
else:
    torch.set_num_threads(1)  # the networks are small

TOLERANCE = 1e-8  # of the largest value: each batch norm of few values may cost two digits of sixteen

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda x: x.copy(),
    "column-major": lambda x: np.asfortranarray(x),
    "channels last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "columns first": lambda x: np.ascontiguousarray(x.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2),
    "every other": lambda x: np.repeat(np.repeat(x, 2, 3), 2, 0)[::2, :, :, ::2],
    "backwards": lambda x: x[:, ::-1, ::-1].copy()[:, ::-1, ::-1],
    "a part": lambda x: np.pad(x, 1)[1:-1, 1:-1, 1:-1, 1:-1],
    "read-only": lambda x: read_only(x.copy()),
    "repeated": lambda x: np.broadcast_to(x[:1], x.shape),
}


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


@dataclass
class Chain:
    """A network as a list of steps, each the name of an operation, its options and the places of its inputs."""

    x: np.ndarray
    steps: list[tuple[str, dict[str, Any], tuple[int, ...]]] = field(default_factory=list)
    leaves: list[np.ndarray] = field(default_factory=list)  # the weights, in the order of use
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    looks: set[int] = field(default_factory=set)  # the tensors, by their place, whose arrays somebody reads in between

    def leaf(self, rng: np.random.Generator, *shape: int, around: float = 0.0) -> int:
        self.leaves.append(rng.standard_normal(shape) * 0.5 + around)
        return len(self.leaves) - 1


def window(rng: random.Random, size: tuple[int, int], most: int, dilate: bool) -> dict[str, tuple[int, int]]:
    """Kernel, stride, padding and dilation that fit an image."""
    pairs: dict[str, list[int]] = {"kernel": [], "stride": [], "padding": [], "dilation": []}
    plain = rng.random() < 0.5  # half of the windows are the same both ways, as those of networks are
    for n in size:
        if plain and pairs["kernel"] and n == size[0]:
            for values in pairs.values():
                values.append(values[0])
            continue
        k = rng.randint(1, most)
        d = rng.choice([1, 1, 1, 2, 3]) if dilate else 1
        p = rng.randint(0, k // 2) if not dilate else rng.choice([0, d * (k - 1) // 2, rng.randint(0, 3)])
        if d * (k - 1) + 1 > n + 2 * p:
            k, d, p = 1, 1, 0
        for values, value in zip(pairs.values(), (k, rng.choice([1, 1, 2, 3]), p, d), strict=True):
            values.append(value)
    return {name: (values[0], values[1]) for name, values in pairs.items()}


def positions(size: tuple[int, int], w: dict[str, tuple[int, int]]) -> tuple[int, int]:
    a, b = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, w["kernel"], w["stride"], w["padding"], w["dilation"], strict=True)
    )
    return a, b


def draw(rng: random.Random) -> Chain:
    """Draw a network and its images."""
    values = np.random.default_rng(rng.getrandbits(32))
    N, C = rng.randint(1, 4), rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 96, 128])
    H, W = rng.randint(1, 20 if C < 64 else 10), rng.randint(1, 20 if C < 64 else 10)
    chain = Chain(values.standard_normal((N, C, H, W)) * rng.choice([1.0, 1.0, 10.0]) + rng.choice([0.0, 0.0, 3.0]))
    chain.shapes.append(chain.x.shape)
    for _ in range(rng.randint(1, 6)):
        N, C, H, W = chain.shapes[-1]
        here = len(chain.shapes) - 1
        same = [i for i, shape in enumerate(chain.shapes) if shape == chain.shapes[-1]]
        kind = rng.choice(["conv", "conv", "conv", "norm", "norm relu", "relu", "max", "avg", "add", "concat", "twice"])
        options: dict[str, Any] = {}
        inputs: tuple[int, ...] = (here,)
        shape: tuple[int, ...] = (N, C, H, W)
        if kind == "conv":
            options = window(rng, (H, W), 5 if C < 32 else 3, dilate=True)
            if rng.random() < 0.3 and min(H, W) > 1:
                options = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
            groups = rng.choice([g for g in range(1, C + 1) if C % g == 0])
            O = groups * rng.choice([1, 2, 3, 4, 8, 48 if C // groups >= 48 else 5])
            O = O if O <= 160 else groups
            options |= {"groups": groups, "w": chain.leaf(values, O, C // groups, *options["kernel"])}
            options["bias"] = chain.leaf(values, O) if rng.random() < 0.3 else None
            shape = (N, O, *positions((H, W), options))
        elif kind.startswith("norm"):
            if N * H * W < 3:
                continue
            options = {"training": rng.random() < 0.8, "eps": rng.choice([1e-5, 1e-3, 0.1])}
            options |= {"weight": chain.leaf(values, C, around=1.0), "bias": chain.leaf(values, C)}
            if kind == "norm relu" and rng.random() < 0.5:
                inputs = (here, rng.choice(same))
        elif kind in ("max", "avg"):
            options = window(rng, (H, W), 3, dilate=False)
            shape = (N, C, *positions((H, W), options))
        elif kind == "add":
            inputs = (here, rng.choice(same))
        elif kind == "concat":
            inputs = (here, rng.choice(same))
            if 2 * C > 200:
                continue
            shape = (N, 2 * C, H, W)
        chain.steps.append((kind, options, inputs))
        chain.shapes.append(shape)
    if rng.random() < 0.3:
        chain.looks = {i for i in range(len(chain.shapes)) if rng.random() < 0.4}
    return chain


@contextmanager
def cut_for(threads: int, everything: bool) -> Iterator[None]:
    """Inside, the engine room has so many threads, and cuts work for them however small it is."""
    rooms = [
        m for name, m in list(sys.modules.items()) if name.startswith("minigrad.fast.cpu") and hasattr(m, "parts_for")
    ]
    with thread_count(threads), ExitStack() as stack:
        for room in rooms if everything else []:
            stack.enter_context(mock.patch.object(room, "parts_for", lambda operations: threads))
        yield


Result = tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]  # output, gradients, running statistics


class Minigrad:
    """What runs a chain; which implementation computes, the registry says."""

    f = F

    @staticmethod
    def leaf(array: np.ndarray) -> Tensor:
        t = Tensor(0.0, requires_grad=True)
        t.data = array  # a tensor's own copy would be plain
        return t

    @staticmethod
    def running(array: np.ndarray) -> np.ndarray:
        return array

    @staticmethod
    def norm(t: list, weight: Any, bias: Any, mean: Any, var: Any, training: bool, eps: float, rectified: bool) -> Any:
        arguments = (t[0], weight, bias, mean, var, training, 0.1, eps)
        return batch_norm_relu(*arguments, *t[1:]) if rectified else batch_norm(*arguments)

    @staticmethod
    def concat(t: list) -> Any:
        return F.concat(t, axis=1)

    @staticmethod
    def backward(y: Any, dy: np.ndarray) -> np.ndarray:
        y.backward(dy)
        return y.data


class Torch:
    """The same in PyTorch, which gets plain arrays.

    Given a column-major gradient of shape (1, C, H, 1), the backward pass of PyTorch 2.13.0's batch norm after a max
    pooling is wrong on a CPU; this attack found it. With a plain gradient it has our numbers.
    """

    f = torch and torch.nn.functional

    @staticmethod
    def leaf(array: np.ndarray) -> Any:
        return torch.tensor(np.array(array, order="C"), requires_grad=True)

    @staticmethod
    def running(array: np.ndarray) -> Any:
        return torch.tensor(array)

    @staticmethod
    def norm(t: list, weight: Any, bias: Any, mean: Any, var: Any, training: bool, eps: float, rectified: bool) -> Any:
        z = torch.nn.functional.batch_norm(t[0], mean, var, weight, bias, training, 0.1, eps)
        z = z + t[1] if len(t) > 1 else z
        return torch.nn.functional.relu(z) if rectified else z

    @staticmethod
    def concat(t: list) -> Any:
        return torch.cat(t, 1)

    @staticmethod
    def backward(y: Any, dy: np.ndarray) -> np.ndarray:
        y.backward(torch.tensor(np.array(dy, order="C")))
        return y.detach().numpy()


def run(engine: Any, chain: Chain, x: np.ndarray, dy: np.ndarray) -> Result:
    """Run a chain forward and backward."""
    f, leaves = engine.f, [engine.leaf(array) for array in (x, *chain.leaves)]
    tensors, running, weights = [leaves[0]], [], leaves[1:]
    for kind, o, inputs in chain.steps:
        t = [tensors[i] for i in inputs]
        if kind == "conv":
            bias = None if o["bias"] is None else weights[o["bias"]]
            names = ("stride", "padding", "dilation", "groups")
            y = f.conv2d(t[0], weights[o["w"]], bias, **{name: o[name] for name in names})
        elif kind.startswith("norm"):
            running += [engine.running(np.full(t[0].shape[1], value)) for value in (0.25, 1.5)]
            own = weights[o["weight"]], weights[o["bias"]], *running[-2:]
            y = engine.norm(t, *own, o["training"], o["eps"], kind == "norm relu")
        elif kind in ("max", "avg"):
            pool = f.max_pool2d if kind == "max" else f.avg_pool2d
            y = pool(t[0], o["kernel"], o["stride"], o["padding"])
        elif kind == "relu":
            y = f.relu(t[0])
        elif kind == "concat":
            y = engine.concat(t)
        else:
            y = t[0] + t[1] if kind == "add" else t[0] * 2.0
        tensors.append(y)
        if len(tensors) - 1 in chain.looks and engine is Minigrad:
            assert y.numpy().shape == y.shape
    out = engine.backward(tensors[-1], dy)
    gradients = [np.zeros(tuple(t.shape)) if t.grad is None else np.asarray(t.grad) for t in leaves]
    return out, gradients, [np.asarray(r) for r in running]


def compare(one: Result, other: Result, who: str) -> None:
    """Raise AssertionError where two results differ by more than rounding."""
    names = ["output", "dx", *(f"gradient {i}" for i in range(len(one[1]) - 1))]
    names += [f"running {i}" for i in range(len(one[2]))]
    for name, a, b in zip(names, [one[0], *one[1], *one[2]], [other[0], *other[1], *other[2]], strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, f"{who}: {name} {a.shape} {a.dtype}, {b.shape} {b.dtype}"
        for kind, of in (("NaN", np.isnan), ("infinite", np.isposinf), ("negatively infinite", np.isneginf)):
            different = (of(a) != of(b)).sum()
            assert not different, f"{who}: {different} of {a.size} numbers of {name} are {kind} in one only"
        finite = np.isfinite(b)
        if finite.any():
            error, scale = np.abs(a[finite] - b[finite]).max(), max(1.0, np.abs(b[finite]).max())
            assert error <= TOLERANCE * scale, f"{who}: {name} differs by {error:.3g} where the largest is {scale:.3g}"


def trial(rng: random.Random, folder: Path) -> None:
    """Draw a network, compute it three ways, compare."""
    chain, layout, of_gradient = draw(rng), rng.choice(list(LAYOUTS)), rng.choice(list(LAYOUTS))
    dy = np.random.default_rng(rng.getrandbits(32)).standard_normal(chain.shapes[-1])
    poison = rng.choice([0, 0, 0, 0, 0, 0, 1, 2])
    for _ in range(poison):
        target = rng.choice([chain.x, dy, *chain.leaves])
        target[tuple(rng.randrange(n) for n in target.shape)] = rng.choice([np.nan, np.inf, -np.inf])
    x, dy = LAYOUTS[layout](chain.x), LAYOUTS[of_gradient](dy)
    threads, everything = rng.choice([1, 2, 3]), rng.random() < 0.7
    with np.errstate(all="ignore"):
        with only(cpu.register), cut_for(threads, everything):
            fast = run(Minigrad, chain, x, dy)
        with registry.book_only():
            book = run(Minigrad, chain, x, dy)
    story = f"{threads} threads, images {chain.x.shape} {layout}, gradient {of_gradient}, {chain.steps}, {chain.looks}"
    compare(fast, book, f"engine room and book, {story}")
    if torch is not None and not poison:
        compare(book, run(Torch, chain, x, dy), f"book and PyTorch, {story}")
