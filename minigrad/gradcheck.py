"""Checking gradients against finite differences: for minigrad's own operations, and for yours.

For y = fn(x₁, x₂, ...) and a random array v of y's shape, `backward(v)` claims to have computed g = Jᵀ v, the gradient
of the number s(x) = Σ v · fn(x). That number can be differentiated without calculus, one entry of x at a time:

    ∂s/∂x[i]  ≈  (s(x + h eᵢ) - s(x - h eᵢ)) / 2h          error ~ h² + 10⁻¹⁶/h, least near h = 10⁻⁵

Why v is random: with v = 1 everywhere, mistakes that cancel in a sum stay hidden. The sum of batch norm's output does
not depend on its input at all, so a backward pass that returns zeros would pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import array_module, is_float, to_device, to_numpy
from .tensor import Function, Tensor, no_grad

Call = tuple[type[Function], list[Any], dict[str, Any]]  # an operation, copies of its input arrays, its options


class GradcheckError(AssertionError):
    """A gradient differs from its finite difference; the message names the operation, the entry and both numbers."""


def gradcheck(
    fn: Callable[..., Any],
    inputs: Sequence[Any] | Any,
    eps: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    seed: int = 0,
    max_entries: int | None = None,
) -> bool:
    """Compare the gradients of `fn(*inputs)` with central differences in float64; return True or raise.

    `inputs` are tensors or arrays. Float64 tensors that require a gradient are checked in place, so `fn` may also be a
    function of a network's parameters; if none does, all floating-point inputs are checked, as float64 copies. `fn`
    returns a tensor or several. An entry passes if |exact - numeric| <= atol + rtol max(|exact|, |numeric|); the step
    is h = eps max(1, |x|). `max_entries` checks so many random entries of each input instead of all.

    Raises GradcheckError (an AssertionError) with the operation, the entry and both numbers where they differ, and
    ValueError where `fn` is not connected to its inputs, changes them, or gives two values for the same input.
    """
    if not eps > 0:
        raise ValueError(f"gradcheck needs a step eps above 0, got {eps}")
    arguments = _prepare(list(inputs) if isinstance(inputs, list | tuple) else [inputs])
    operation = getattr(fn, "__self__", None)
    if isinstance(operation, type) and issubclass(operation, Function):
        fn = lambda *tensors: operation.apply(*tensors)  # noqa: E731  looks `apply` up anew, so that it can be recorded
    mismatch = _compare(fn, arguments, eps, rtol, atol, seed, max_entries)
    if mismatch is None:
        return True

    with _recorded() as calls:
        fn(*arguments)
    names = " -> ".join(dict.fromkeys(cls.__name__ for cls, _, _ in calls))
    message = f"the gradient of input {mismatch} (operations: {names})."
    if mismatch.kink:
        raise GradcheckError(
            f"{message} The slope is {mismatch.left:.6g} on the left of this point and {mismatch.right:.6g} on its "
            "right: a kink, as ReLU has at 0 and max at ties. Choose inputs away from it."
        )
    for cls, arrays, options in calls if len(calls) > 1 else []:
        tensors = [None if a is None else Tensor(a, requires_grad=is_float(a.dtype)) for a in arrays]
        alone = _compare(lambda *ts, c=cls, o=options: c.apply(*ts, **o), tensors, eps, rtol, atol, seed, 20)
        if alone is not None:
            shapes = ", ".join("None" if a is None else str(a.shape) for a in arrays)
            raise GradcheckError(
                f"{message} {cls.__name__}.backward is wrong when it is checked alone, on inputs of shape {shapes}: "
                f"its gradient of input {alone}."
            )
    raise GradcheckError(
        message if len(calls) == 1 else f"{message} Each operation passes alone: does a value bypass the tape (.data)?"
    )


@dataclass
class Mismatch:
    """An entry whose gradient and finite difference differ, and the slopes on both sides of it."""

    position: int
    index: tuple[int, ...]
    x: float
    exact: float
    numeric: float
    left: float
    right: float
    step: float

    def __str__(self) -> str:
        return (
            f"{self.position} at {list(self.index)}, where x = {self.x:.6g}, is {self.exact:.10g} by backward() but "
            f"{self.numeric:.10g} by finite differences with step {self.step:.1e}"
        )

    @property
    def kink(self) -> bool:
        """Whether the slopes on both sides differ far more than curvature explains, with `exact` between them."""
        low, high = sorted((self.left, self.right))
        margin = 1e-2 * max(abs(low), abs(high))
        return high - low > margin and low - margin <= self.exact <= high + margin


def _compare(
    fn: Callable[..., Any],
    arguments: list[Any],
    eps: float,
    rtol: float,
    atol: float,
    seed: int,
    max_entries: int | None,
) -> Mismatch | None:
    """Return the first entry where the gradient by the tape and by finite differences differ, or None."""
    checked = [(i, t) for i, t in enumerate(arguments) if isinstance(t, Tensor) and t.requires_grad]
    if not checked:
        raise ValueError("gradcheck needs at least one floating-point input")
    before = [to_numpy(t.data).copy() for _, t in checked]
    rng = np.random.default_rng(seed)
    outputs = _outputs(fn(*arguments))
    cotangents = [rng.standard_normal(y.shape) for y in outputs]

    def objective() -> float:
        """s(x) = Σ v · fn(x), a number."""
        with no_grad():
            ys = _outputs(fn(*arguments))
        return float(sum(np.vdot(v, to_numpy(y.data)) for v, y in zip(cotangents, ys, strict=True)))

    here, again = objective(), objective()
    if not np.isfinite(here):
        raise ValueError(f"gradcheck: fn's output has values that are not finite (their weighted sum is {here})")
    if here != again:
        raise ValueError(f"gradcheck: fn gave {here!r} and then {again!r} for the same input: fix its random seed")
    gradients = _by_tape(outputs, cotangents, [t for _, t in checked])
    for (i, t), old in zip(checked, before, strict=True):
        if not np.array_equal(to_numpy(t.data), old, equal_nan=True):
            raise ValueError(f"gradcheck: fn changed its input {i}")

    for (i, t), gradient in zip(checked, gradients, strict=True):
        for index in _entries(t.shape, max_entries, rng):
            x, exact = float(t.data[index]), float(gradient[index])
            h = eps * max(1.0, abs(x))
            above, below = _moved(objective, t, index, x + h), _moved(objective, t, index, x - h)
            numeric = (above - below) / (2 * h)
            if not abs(exact - numeric) <= atol + rtol * max(abs(exact), abs(numeric)):
                return Mismatch(i, index, x, exact, numeric, (here - below) / h, (above - here) / h, h)
    return None


def _prepare(inputs: list[Any]) -> list[Any]:
    """Return the arguments for fn: tensors whose gradient is checked, in float64, and the rest as it came."""
    chosen = [isinstance(x, Tensor) and x.requires_grad for x in inputs]
    arguments = []
    for x, wanted in zip(inputs, chosen, strict=True):
        array = x.data if isinstance(x, Tensor) else x
        checkable = hasattr(array, "dtype") and is_float(array.dtype) and (wanted or not any(chosen))
        in_place = wanted and array.dtype == np.float64
        if checkable and not in_place:
            arguments.append(Tensor(array_module(array).asarray(array, np.float64), requires_grad=True))
        else:
            arguments.append(x)
    return arguments


def _outputs(value: Any) -> list[Tensor]:
    """Return what fn returned as a list of tensors."""
    outputs = list(value) if isinstance(value, tuple | list) else [value]
    for y in outputs:
        if not isinstance(y, Tensor):
            raise ValueError(f"gradcheck: fn must return a Tensor or several, it returned a {type(y).__name__}")
        if is_float(y.dtype) and y.dtype != np.float64:
            raise ValueError(
                f"gradcheck needs float64, fn returned {y.dtype}: does it use a module? module.to(dtype=...)"
            )
    return outputs


def _by_tape(outputs: list[Tensor], cotangents: list[np.ndarray], tensors: list[Tensor]) -> list[np.ndarray]:
    """Return Jᵀ v for every tensor by backward(); the tensors' own `.grad` is put back afterwards."""
    kept = [t.grad for t in tensors]
    for t in tensors:
        t.grad = None
    parts = [
        (y * Tensor(to_device(v, y.device))).sum() for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad
    ]
    if not parts:
        raise ValueError("gradcheck: fn's output is not connected to its inputs by the tape: was it computed outside?")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    total.backward()
    if all(t.grad is None for t in tensors):
        raise ValueError("gradcheck: fn's output depends on other tensors, on none of the inputs")
    gradients = [np.zeros(t.shape) if t.grad is None else to_numpy(t.grad).copy() for t in tensors]
    for t, grad in zip(tensors, kept, strict=True):
        t.grad = grad
    return gradients


def _moved(objective: Callable[[], float], t: Tensor, index: tuple[int, ...], value: float) -> float:
    """The objective with one entry of t set to `value`; the entry is put back afterwards."""
    old = float(t.data[index])
    try:
        t.data[index] = value
        return objective()
    finally:
        t.data[index] = old


def _entries(shape: tuple[int, ...], limit: int | None, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Yield the indices to check: all, or `limit` random ones."""
    size = int(np.prod(shape))
    chosen = np.arange(size) if limit is None or limit >= size else rng.choice(size, limit, replace=False)
    for flat in chosen:
        yield tuple(int(i) for i in np.unravel_index(flat, shape))


@contextmanager
def _recorded() -> Iterator[list[Call]]:
    """Record every operation that goes on the tape, with copies of its inputs."""
    calls: list[Call] = []
    original = Function.__dict__["apply"]

    def apply(cls: type[Function], *tensors: Tensor | None, **options: Any) -> Tensor:
        y = original.__func__(cls, *tensors, **options)
        if y.requires_grad and len(calls) < 1000:
            calls.append((cls, [None if t is None else to_numpy(t.data).copy() for t in tensors], dict(options)))
        return y

    Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield calls
    finally:
        Function.apply = original  # type: ignore[method-assign]
