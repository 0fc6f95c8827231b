"""Where a step's time goes: seconds by module of the network and by kind of operation, forward and backward.

The tape calls an observer around every operation (see `observer` in minigrad/tensor.py). On a GPU each operation is
waited for, so the parts add up to more than a step takes whose work is only handed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from minigrad import Function, Module, tensor
from minigrad.backend import synchronize
from resnext.counts import named_modules

REST = "the rest"  # the loss, and what the network does outside of its layers

Times = dict[str, list[float]]  # by name: seconds forward, seconds backward


@contextmanager
def observed(observer: Callable[..., Any]) -> Iterator[None]:
    """Inside, every operation of the tape is given to `observer`."""
    before = tensor.observer
    tensor.observer = observer
    try:
        yield
    finally:
        tensor.observer = before


@contextmanager
def timed(model: Module, device: str) -> Iterator[tuple[Times, Times]]:
    """Measure every operation inside the block; yield the sums by module ("layer1.0") and by kind of operation."""
    by_module: Times = {}
    by_kind: Times = {}
    inside = [REST]

    def noted(module: Module, name: str) -> Callable[..., Any]:
        """The module's forward pass, with the module's name at hand for the operations inside."""
        forward = module.forward

        def run(*inputs: Any, **options: Any) -> Any:
            inside.append(name)
            try:
                return forward(*inputs, **options)
            finally:
                inside.pop()

        return run

    def observe(operation: type[Function], node: Function, compute: Any, /, *arrays: Any, **options: Any) -> Any:
        backward = hasattr(node, "counted_as")
        if not backward:
            node.counted_as = (inside[-1], kind_of(operation, arrays, options))  # type: ignore[attr-defined]
        module, kind = node.counted_as  # type: ignore[attr-defined]
        begin = time.perf_counter()
        result = compute(*arrays, **options)
        synchronize(device)
        seconds = time.perf_counter() - begin
        for times, name in ((by_module, module), (by_kind, kind)):
            times.setdefault(name, [0.0, 0.0])[backward] += seconds
        return result

    named = list(named_modules(model))
    for name, module in named:
        vars(module)["forward"] = noted(module, name)  # found before the class's own
    try:
        with observed(observe):
            yield by_module, by_kind
    finally:
        for _, module in named:
            del vars(module)["forward"]


def kind_of(operation: type[Function], arrays: tuple, options: dict[str, Any]) -> str:
    """The operation's name, and for a convolution its window, stride and groups."""
    if operation.__name__ != "Conv2d":
        return operation.__name__
    KH, KW = arrays[1].shape[2:]
    stride, groups = options["stride"][0], options["groups"]
    return f"Conv2d {KH}x{KW}" + f", stride {stride}" * (stride > 1) + f", {groups} groups" * (groups > 1)


def times_of_step(step: Callable[[], Any], model: Module, device: str, steps: int = 1) -> tuple[Times, Times, float]:
    """Seconds by module, by kind and altogether of one step, the mean of a few after one that warms up."""
    step()
    synchronize(device)
    with timed(model, device) as (by_module, by_kind):
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        whole = (time.perf_counter() - begin) / steps
    for times in (by_module, by_kind):
        for pair in times.values():
            pair[:] = [seconds / steps for seconds in pair]
    return by_module, by_kind, whole


def summed(times: Times, depth: int) -> Times:
    """Times by the first `depth` parts of each module's name, in the order of the forward pass."""
    sums: Times = {}
    for name, (forward, backward) in sorted(times.items(), key=lambda item: item[0] == REST):
        pair = sums.setdefault(".".join(name.split(".")[:depth]), [0.0, 0.0])
        pair[0] += forward
        pair[1] += backward
    return sums
