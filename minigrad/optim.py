"""Stochastic gradient descent, and the schedules that change its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .backend import Array, array_module, check_gradient, device_of, to_device
from .nn import Parameter
from .ops.arguments import as_amount, as_array, as_factor, as_list, as_number
from .registry import choose
from .tensor import Tensor


def sgd_update(
    w: Array, dw: Array, velocity: Array, lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> None:
    """One step on one parameter, in place (Sutskever et al., ICML 2013, in PyTorch's form):

        d = dw + weight_decay w          velocity ← momentum velocity + d
        w ← w - lr velocity              or, with Nesterov's look-ahead, w ← w - lr (d + momentum velocity)

    The velocity starts at 0, so the first step follows d alone (Nesterov's form: 1 + momentum times as far).
    """
    d = dw + weight_decay * w if weight_decay else dw
    if momentum:
        velocity *= momentum
        velocity += d
        d = d + momentum * velocity if nesterov else velocity
    w -= lr * d


def sgd_step(updates: list[tuple], lr: float) -> None:
    """One `sgd_update` for each of `[(w, dw, velocity, momentum, weight_decay, nesterov), ...]`."""
    for w, dw, velocity, *options in updates:
        sgd_update(w, dw, velocity, lr, *options)


def update_all(device: str, updates: list[tuple], lr: float) -> None:
    """Do `sgd_step` for arrays on one device, by what is fastest there."""
    choose(sgd_step, device, updates, lr)(updates, lr)


class SGD:
    """Gradient descent with momentum and weight decay by PyTorch's rule (see `sgd_update`).

    `params` are parameters, or groups `{"params": [...], "weight_decay": 0.0}` with options of their own. The learning
    rate may be changed before every step: `optimizer.lr = x`. Raises ValueError for options out of range, a parameter
    given twice and no parameters at all; TypeError for one that is no tensor with a gradient. A `Parameter` that is
    frozen, with `requires_grad = False`, may be among them: it gets no gradient and stays as it is until it is thawed.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        self.lr = as_amount(lr, "SGD: lr")
        defaults = {"params": (), "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        items = as_list(params, "parameters")
        groups = items if items and all(isinstance(g, dict) for g in items) else [{"params": items}]
        self.groups = [{**defaults, **g, "params": as_list(g.get("params", ()), "parameters")} for g in groups]
        for group in self.groups:
            for name in group.keys() - defaults.keys():
                raise ValueError(f"SGD: {name!r} is not an option that a group of parameters can have")
            for name in ("momentum", "weight_decay"):
                group[name] = as_amount(group[name], f"SGD: {name}")
            if group["nesterov"] and not group["momentum"]:
                raise ValueError(f"SGD: Nesterov's rule needs a momentum above 0, got {group['momentum']}")
        every = self.parameters()
        if not every:
            raise ValueError("SGD got no parameters")
        for i, p in enumerate(every):
            if not isinstance(p, Tensor) or p.node or not (p.requires_grad or isinstance(p, Parameter)):
                raise TypeError(
                    f"SGD updates leaf tensors with requires_grad=True, parameter {i} is none: {type(p).__name__}"
                )
        if len({id(p) for p in every}) < len(every):
            raise ValueError("SGD got the same parameter twice")
        self.velocities: list[Array | None] = [None] * len(every)

    def parameters(self) -> list[Tensor]:
        """All parameters, group by group."""
        return [p for group in self.groups for p in group["params"]]

    def step(self) -> None:
        """Change every parameter that has a gradient by one step of the rule.

        Raises TypeError or ValueError, and changes nothing, where a gradient is no array of its parameter's shape.
        """
        for i, p in enumerate(self.parameters()):
            if p.grad is not None:
                check_gradient(p.grad, p.shape, f"parameter {i}")
        updates: dict[str, list[tuple]] = {}
        for i, (p, group) in enumerate((p, g) for g in self.groups for p in g["params"]):
            if p.grad is not None:
                v = self.velocities[i]
                # New, left behind by `Module.to`, or of weights of another shape, of which it knows nothing.
                if v is None or (v.shape, v.dtype, device_of(v)) != (p.shape, p.dtype, p.device):
                    self.velocities[i] = v = (
                        to_device(v, p.device).astype(p.dtype)
                        if v is not None and v.shape == p.shape
                        else array_module(p.data).zeros_like(p.data)
                    )
                p.changed()
                updates.setdefault(p.device, []).append(
                    (p.data, p.grad, v, group["momentum"], group["weight_decay"], group["nesterov"])
                )
        for device, some in updates.items():
            update_all(device, some, self.lr)

    def zero_grad(self) -> None:
        """Forget the gradients; `backward()` would add to them otherwise."""
        for p in self.parameters():
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return {"lr": the learning rate, "velocities": copies as NumPy arrays, None where no step was made}."""
        return {
            "lr": self.lr,
            "velocities": [None if v is None else np.array(to_device(v, "cpu")) for v in self.velocities],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`. Raises TypeError or ValueError, and changes nothing, where it does not fit."""
        if not isinstance(state, Mapping) or not {"lr", "velocities"} <= state.keys():
            raise ValueError("SGD's state is a dictionary with lr and velocities, as state_dict() returns it")
        lr, params = as_amount(state["lr"], "SGD's state: lr"), self.parameters()
        velocities = [
            None if v is None else as_array(v, "a velocity") for v in as_list(state["velocities"], "velocities")
        ]
        if len(velocities) != len(params):
            raise ValueError(
                f"the state has velocities for {len(velocities)} parameters, the optimizer has {len(params)}"
            )
        for i, (v, p) in enumerate(zip(velocities, params, strict=True)):
            if v is not None and (v.shape != p.shape or v.dtype.kind not in "fiu"):
                raise ValueError(f"velocity {i} has shape {v.shape} in the state, its parameter has {p.shape}")
        self.lr = lr
        self.velocities = [
            None if v is None else to_device(np.array(v, p.dtype), device_of(p.data))
            for v, p in zip(velocities, params, strict=True)
        ]


# A schedule is a function of the time t, in epochs (or steps: any unit), that returns the learning rate: nothing to
# save, nothing to restore. Before each step: optimizer.lr = schedule(t).
Schedule = Callable[[float], float]


def multi_step(lr: float, milestones: Sequence[float], gamma: float = 0.1) -> Schedule:
    """lr · gamma^(number of milestones passed): constant in between, the step schedule of the paper (Appendix A)."""
    passed = [as_number(m, "a milestone of multi_step") for m in as_list(milestones, "milestones")]
    lr, gamma = as_amount(lr, "multi_step's lr"), as_factor(gamma, len(passed), "multi_step's gamma")
    return lambda t: lr * gamma ** sum(t >= m for m in passed)


def cosine(lr: float, total: float, warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """Half a cosine from lr down to `final` at `total` (Loshchilov & Hutter, ICLR 2017), after a linear warm-up."""
    return _decay(lr, total, warmup, final, lambda s: (1 + math.cos(math.pi * s)) / 2)


def linear(lr: float, total: float, warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """A straight line from lr down to `final` at `total` (Li et al., ICLR 2020), after a linear warm-up from 0."""
    return _decay(lr, total, warmup, final, lambda s: 1 - s)


def _decay(lr: float, total: float, warmup: float, final: float, shape: Callable[[float], float]) -> Schedule:
    """Rise linearly to lr over `warmup`, then fall to `final` as `shape` goes from 1 to 0 over the rest of `total`."""
    numbers = {"lr": lr, "total": total, "warmup": warmup, "final": final}
    lr, total, warmup, final = (as_amount(value, f"a schedule's {name}") for name, value in numbers.items())
    if not warmup < total:
        raise ValueError(
            f"a schedule needs 0 <= warmup < total, got warmup {numbers['warmup']} and total {numbers['total']}"
        )

    def schedule(t: float) -> float:
        if t < warmup:
            return lr * t / warmup
        return final + (lr - final) * shape(min((t - warmup) / (total - warmup), 1.0))

    return schedule
