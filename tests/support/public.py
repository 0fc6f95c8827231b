"""The table of public constructors and functions: each with valid arguments, for one of which a hostile value is put.

The operations have a table of their own (operations.py). test_public.py checks every row of this one in the same way,
and fails where something public has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minigrad
import resnext
from minigrad import Function, Parameter, Tensor, draw, nn, optim
from minigrad.fold import fold
from support.strategies import normal


@dataclass
class Public:
    """Something public: how it is called and used, and arguments that it takes."""

    call: Callable[..., Any]
    valid: dict[str, Callable[[], Any]]  # by parameter; made anew for every call
    errors: tuple[type[Exception], ...] = (TypeError, ValueError)
    skip: tuple[str, ...] = ()  # parameters that take anything


def images():
    return Tensor(normal(0, 2, 4, 6, 6).astype(np.float32))


def layer(make):
    """A layer that is made and then used, in training and in evaluation."""

    def used(x=images, **options):
        module = make(**options)
        x = x() if callable(x) else x
        module(x)
        return module.eval()(x)

    return used


def values(**given):
    return {name: lambda value=value: value for name, value in given.items()}


def scheduled(make):
    """A schedule and its rate at three times: finite numbers."""

    def used(**options):
        rate = make(**options)
        assert all(math.isfinite(rate(t)) for t in (0.0, 0.5, 2.0, 100.0))

    return used


def parameter():
    return Parameter(np.ones((2, 3), np.float32))


def optimizer(**options):
    p = parameter()
    sgd = optim.SGD([p], 0.1, momentum=0.9)
    p.grad = np.ones_like(p.data)
    return sgd


def sgd(**options):
    made = optim.SGD(**options)
    for p in made.parameters():
        p.grad = np.ones_like(p.data)
    made.step()
    made.step()


def go_on(state):
    made = optimizer()
    made.load_state_dict(state)
    made.step()


def velocities(change):
    made = optimizer()
    made.step()
    go_on({**made.state_dict(), **change})


class Identity(Function):
    def forward(self, x):
        return x + 0

    def backward(self, dy):
        return dy


def linear():
    return nn.Linear(3, 2)


def size():
    return values(kernel_size=2, stride=2, padding=1)


def product():
    return (parameter() * 2.0).sum()


def backward(gradient):
    (parameter() * 2.0).backward(gradient)


def network(**options):
    return resnext.ResNeXt(**options)(Tensor(np.zeros((2, 3, 8, 8), np.float32)))


def block(x=None, **options):
    return resnext.Bottleneck(**options)(Tensor(normal(0, 2, 4, 6, 6).astype(np.float32)))


CHANNELS = values(in_channels=4, out_channels=4)
PUBLIC = {
    "Tensor": Public(
        Tensor, values(data=[1.0, 2.0], requires_grad=True, device="cpu", dtype="float32"), skip=("data",)
    ),
    "Tensor.to": Public(lambda **o: Tensor([1.0]).to(**o), values(device="cpu", dtype="float64")),
    "Tensor.backward": Public(backward, values(gradient=np.ones((2, 3)))),
    "Parameter": Public(Parameter, values(data=[1.0], requires_grad=True), skip=("data",)),
    "Function.apply": Public(lambda x: Identity.apply(x), values(x=Tensor([1.0]))),
    "from_dlpack": Public(minigrad.from_dlpack, values(source=np.ones(2)), (TypeError, ValueError, BufferError)),
    "manual_seed": Public(minigrad.manual_seed, values(seed=3)),
    "no_grad": Public(minigrad.no_grad, {}),
    "gradcheck": Public(
        minigrad.gradcheck,
        values(fn=lambda x: x * x, inputs=[np.ones(2)], eps=1e-5, rtol=1e-5, atol=1e-7, seed=0, max_entries=2),
        (TypeError, ValueError, AssertionError),
        skip=("seed",),  # whatever NumPy takes
    ),
    "fold": Public(
        lambda network: fold(network).eval()(images()),
        {"network": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))},
    ),
    "load_weights": Public(
        minigrad.load_weights,
        {**values(path="weights.safetensors"), "module": linear},
        (TypeError, ValueError, OSError),
    ),
    "save_weights": Public(
        minigrad.save_weights,
        {**values(path="new.safetensors"), "module": linear},
        (TypeError, ValueError, OSError),
    ),
    "nn.Module.load_state_dict": Public(
        lambda state, **o: linear().load_state_dict(state, **o),
        {"state": lambda: linear().state_dict(), "strict": lambda: True},
    ),
    "nn.Module.load_state_dict (an entry)": Public(
        lambda value: nn.Linear(3, 1, bias=False).load_state_dict({"weight": value}), values(value=np.ones((1, 3)))
    ),
    "nn.Module.to": Public(lambda **o: linear().to(**o), values(device="cpu", dtype="float64")),
    "nn.Module.train": Public(lambda mode: linear().train(mode), values(mode=False)),
    "nn.Sequential": Public(lambda first: nn.Sequential(first, nn.ReLU())(images()), {"first": nn.ReLU}),
    "nn.Conv2d": Public(
        layer(nn.Conv2d),
        {
            **values(**{n: v() for n, v in CHANNELS.items()}, kernel_size=3, stride=1, padding=1, dilation=1, groups=2),
            "bias": lambda: True,
            "x": images,
        },
    ),
    "nn.BatchNorm2d": Public(layer(nn.BatchNorm2d), {**values(num_features=4, eps=1e-5, momentum=0.1), "x": images}),
    "nn.Linear": Public(
        layer(nn.Linear),
        {**values(in_features=4, out_features=2, bias=True), "x": lambda: Tensor(np.ones((2, 4), np.float32))},
    ),
    "nn.MaxPool2d": Public(layer(nn.MaxPool2d), {**size(), "x": images}),
    "nn.AvgPool2d": Public(layer(nn.AvgPool2d), {**size(), "x": images}),
    "nn.GlobalAvgPool2d": Public(layer(nn.GlobalAvgPool2d), {"x": images}),
    "nn.ReLU": Public(layer(nn.ReLU), {"x": images}),
    "nn.Dropout": Public(layer(nn.Dropout), {**values(p=0.5), "x": images}),
    "nn.Flatten": Public(layer(nn.Flatten), {"x": images}),
    "nn.Identity": Public(layer(nn.Identity), {"x": images}, skip=("x",)),
    "optim.SGD": Public(
        sgd,
        {
            **values(lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
            "params": lambda: [parameter()],
        },
    ),
    "optim.SGD (a group)": Public(
        lambda group: sgd(params=[group], lr=0.1), {"group": lambda: {"params": [parameter()]}}
    ),
    "optim.SGD (a group's parameters)": Public(
        lambda params: sgd(params=[{"params": params}], lr=0.1), {"params": lambda: [parameter()]}
    ),
    "optim.SGD.load_state_dict": Public(go_on, {"state": lambda: optimizer().state_dict()}),
    "optim.SGD.load_state_dict (lr)": Public(lambda lr: velocities({"lr": lr}), values(lr=0.1)),
    "optim.SGD.load_state_dict (velocities)": Public(
        lambda v: velocities({"velocities": v}), values(v=[np.ones((2, 3), np.float32)])
    ),
    "optim.SGD.load_state_dict (a velocity)": Public(
        lambda v: velocities({"velocities": [v]}), values(v=np.ones((2, 3), np.float32))
    ),
    "optim.multi_step": Public(scheduled(optim.multi_step), values(lr=0.1, milestones=[1, 2], gamma=0.1)),
    "optim.cosine": Public(scheduled(optim.cosine), values(lr=0.1, total=3.0, warmup=1.0, final=0.01)),
    "optim.linear": Public(scheduled(optim.linear), values(lr=0.1, total=3.0, warmup=1.0, final=0.01)),
    "draw.graph": Public(draw.graph, {"y": product, "names": linear}),
    "draw.svg": Public(draw.svg, {"y": product, "names": linear}, (TypeError, ValueError, FileNotFoundError)),
    "resnext.create": Public(resnext.create, values(name="resnext11_1x4d", num_classes=3)),
    "resnext.names": Public(resnext.names, {}),
    "resnext.Bottleneck": Public(block, {**CHANNELS, **values(cardinality=2, d=2, stride=1, form="c", residual=True)}),
    "resnext.ResNeXt": Public(
        network,
        values(blocks=[1, 1], cardinality=2, width=2, num_classes=3, imagenet=False, form="c", residual=True, stem=4),
    ),
    "resnext.convert": Public(resnext.convert, {"block": lambda: resnext.Bottleneck(4, 4, 2, 2), "form": lambda: "b"}),
    "resnext.convert_network": Public(
        resnext.convert_network, {"network": lambda: resnext.create("resnext11_2x4d"), "form": lambda: "b"}
    ),
}
# Reached through what the table holds, or without arguments of their own.
INSIDE = {
    "GradcheckError": "an exception",
    "functional": "a module; its functions have the operations table",
    "nn": "a module, in this table name by name",
    "optim": "a module, in this table name by name",
    "Module": "a base class; its methods are in this table",
    "nn.Parameter": "Parameter",
    "draw.Picture": "what draw.svg returns: text that a notebook shows",
    "nn.Module": "a base class; its methods are in this table",
    "nn.he_normal": "called by the layers, with sizes that they have checked",
    "nn.uniform": "called by the layers, with sizes that they have checked",
    "optim.sgd_update": "called by SGD, with arrays that it has checked",
    "optim.sgd_step": "called by SGD, with arrays that it has checked",
    "optim.update_all": "called by SGD, with arrays that it has checked",
}
HOSTILE = {
    "none": lambda: None,
    "text": lambda: "text",
    "no text": lambda: "",
    "minus one": lambda: -1,
    "zero": lambda: 0,
    "a fraction": lambda: 1.5,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "true": lambda: True,
    "huge": lambda: 10**30,
    "complex": lambda: 1j,
    "no list": list,
    "list": lambda: [1.0, "a"],
    "dictionary": dict,
    "object": object,
    "array": lambda: np.array([1.0, 2.0]),
    "rows": lambda: np.ones((30, 30)),
    "objects": lambda: np.array([None, {}], object),
    "tensor": lambda: Tensor([1.0, 2.0]),
    "ragged": lambda: [[1.0], [1.0, 2.0]],
    "structured": lambda: np.zeros(2, [("a", "f4")]),
    "dates": lambda: np.array(["2020"], "M8[Y]"),
    "bytes": lambda: b"\xff\0",
    "a null": lambda: "a\0b",
    "a surrogate": lambda: "\udcff",
    "a generator": lambda: (i for i in range(3)),
    "no tensor at all": lambda: Tensor(np.zeros((0, 4), np.float32)),
    "type": lambda: Tensor,
    "path": lambda: Path("nowhere"),
}
