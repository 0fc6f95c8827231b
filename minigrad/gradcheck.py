"""Checking gradients against finite differences: for minigrad's own operations, and for yours.

For y = fn(x₁, x₂, ...) and a random array v of y's shape, `backward(v)` claims to have computed g = Jᵀ v, the gradient
of the number s(x) = Σ v · fn(x). That number can be differentiated without calculus, one entry of x at a time:

    ∂s/∂x[i]  ≈  (s(x + h eᵢ) - s(x - h eᵢ)) / 2h          error ~ h² + 10⁻¹⁶/h, least near h = 10⁻⁵

Why v is random: with v = 1 everywhere, mistakes that cancel in a sum stay hidden. The sum of batch norm's output does
not depend on its input at all, so a backward pass that returns zeros would pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import registry, tensor
from .backend import Array, array_module, is_array, is_float, to_device, to_numpy
from .ops.arguments import as_number, as_size, check_kind
from .tensor import Function, Tensor, no_grad

__tracebackhide__ = True  # pytest shows the lines of the test that fails, not ours
_watching = threading.RLock()  # held while `_watched` stands in for what all threads call, and `.grad` is borrowed

# An operation, copies of its input arrays, which of them want a gradient, and its options.
Call = tuple[type[Function], list[Any], tuple[bool, ...], dict[str, Any]]


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
    function of a network's parameters; if none does, all floating-point inputs are checked, as float64 copies. Tensors
    beside the checked ones come to `fn` in float64 too; what it takes from elsewhere must be float64 already. `fn`
    returns a tensor or several, in tuples, lists or dicts; integers among them have no gradient and are passed over. An
    entry passes if |exact - numeric| <= atol + rtol max(|exact|, |numeric|); the step is h = eps max(1, |x|).
    `max_entries` checks so many random entries of each input instead of all. Where all of an input's gradient is below
    atol, it may be off by 10⁻⁴ of its largest entry. A gradient must also be finite, and come out the same a second
    time, for a column-major dy, and where no other input wants one. `.grad` of all tensors stays as it was.

    Raises GradcheckError (an AssertionError) with the operation, the entry and both numbers where they differ, and
    ValueError where `fn` is not connected to its inputs or gives two values for the same input, and where it or one of
    its operations changes an array that it was given.
    """
    if isinstance(fn, type) and issubclass(fn, Function):
        raise TypeError(
            f"gradcheck checks a function of tensors, {fn.__name__} is an operation: pass {fn.__name__}.apply"
        )
    check_kind(fn, Callable, "gradcheck checks a function of tensors")
    eps, rtol, atol = (
        as_number(value, f"gradcheck's {name}") for name, value in (("eps", eps), ("rtol", rtol), ("atol", atol))
    )
    if not 0 < eps < np.inf:
        raise ValueError(f"gradcheck needs a step eps above 0, got {eps}")
    if not (0 <= rtol < 1 and atol >= 0):  # with an rtol of 1 a gradient of zeros would pass
        raise ValueError(
            f"gradcheck needs tolerances of at least 0, the relative one below 1, got rtol {rtol} and atol {atol}"
        )
    max_entries = None if max_entries is None else as_size(max_entries, "gradcheck's max_entries")
    with np.errstate(all="ignore"):  # what is not finite is told in words
        inputs = list(inputs) if isinstance(inputs, list | tuple | Iterator) else [inputs]
        chosen = any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        arguments = [_prepare(x, chosen) for x in inputs]
        mismatch = _compare(fn, arguments, eps, rtol, atol, seed, max_entries)
        if mismatch is None:
            return True

        calls = mismatch.calls
        operations = " -> ".join(dict.fromkeys(cls.__name__ for cls, *_ in calls))
        message = f"the gradient of input {mismatch} (operations: {operations})."
        if mismatch.excuse:
            raise GradcheckError(f"{message} {mismatch.excuse}")
        limit, one = (20, "Each operation") if len(calls) > 1 else (max_entries, "The operation")
        for cls, arrays, needs, options in calls:
            tensors = [None if a is None else Tensor(a, requires_grad=n) for a, n in zip(arrays, needs, strict=True)]
            try:
                alone = _compare(lambda *ts, c=cls, o=options: c.apply(*ts, **o), tensors, eps, rtol, atol, seed, limit)
            except ValueError:  # by itself it cannot be checked: it draws random numbers, or its values are not finite
                continue
            if alone is not None and not alone.excuse:
                raise GradcheckError(
                    f"{message} {cls.__name__}.backward is wrong when it is checked alone, on inputs of shape "
                    f"{', '.join('None' if a is None else str(a.shape) for a in arrays)}"
                    f"{'.' if len(calls) == 1 else f': its gradient of input {alone}.'}"  # one: it is in the message
                )
        raise GradcheckError(
            f"{message} {one if len(calls) < 1000 else 'Each of the first 1,000 operations'} passes alone: does a "
            "value bypass the tape (.data, detach()), do two calls share an array, or is a slope infinite (sqrt at 0)?"
        )


@dataclass
class Mismatch:
    """An entry whose gradient and finite difference differ, the slopes on both sides of it, and what fn called."""

    position: int
    index: tuple[int, ...]
    x: float
    exact: float
    numeric: float
    left: float
    right: float
    off: float  # how far exact and numeric are apart
    step: float
    values: list[tuple[np.ndarray, Any]]  # of fn's outputs: v and s(x + h eᵢ)'s share of it
    calls: list[Call]
    bend: bool = False  # whether a smaller step brings them together

    def __str__(self) -> str:
        return (
            f"{self.position} at {list(self.index)}, where x = {self.x:.6g}, is {self.exact:.10g} by backward() but "
            f"{self.numeric:.10g} by finite differences with step {self.step:.1e}"
        )

    @property
    def rounding(self) -> float:
        """How far rounding fn's values may move `numeric`: each by one part in 2⁵³, and a few more on the way."""
        size = max(float(np.abs(v * y).max(initial=0.0)) * y.size**0.5 for v, y in self.values)
        return 4 * float(np.finfo(np.float64).eps) * size / self.step

    @property
    def excuse(self) -> str:
        """Why the two would differ though the gradient were right; empty where nothing speaks for that."""
        if not np.isfinite(self.numeric):
            return "fn is not finite a step away from this point: choose another, or a smaller eps."
        if self.off <= self.rounding:
            largest = max(float(np.abs(y).max(initial=0.0)) for _, y in self.values)
            return (
                f"fn's values, up to {largest:.3g} in size, are rounded by as much as that: take a constant away from "
                "them, or choose a larger eps."
            )
        low, high = sorted((self.left, self.right))
        margin = 1e-2 * max(abs(low), abs(high))  # more than curvature explains
        if not (self.bend or (high - low > margin and low - margin <= self.exact <= high + margin)):
            return ""
        return (
            f"The slope is {self.left:.6g} on the left of this point and {self.right:.6g} on its right: a kink, as "
            "ReLU has at 0 and max at ties, or a bend sharper than the step. Choose inputs away from it, or a smaller "
            "eps."
        )


def _compare(
    fn: Callable[..., Any], arguments: list[Any], eps: float, rtol: float, atol: float, seed: int, limit: int | None
) -> Mismatch | None:
    """Return an entry where the gradient by the tape and by finite differences differ, first one without an excuse."""
    checked = [(i, t) for i, t in enumerate(arguments) if isinstance(t, Tensor) and t.requires_grad]
    if not checked:
        raise ValueError(
            "gradcheck needs a tensor or array of float32 or float64 among the inputs, got "
            f"{', '.join(str(getattr(x, 'dtype', type(x).__name__)) for x in arguments) or 'none'}"
        )
    before = _copies(_data(arguments))
    rng = np.random.default_rng(seed)
    with _watched() as calls:
        outputs = _outputs(fn(*arguments))
    cotangents = [rng.standard_normal(y.shape) for y in outputs]

    def values() -> list[Any]:
        """fn(x) as arrays of their own: an output may share its memory with x, which moves."""
        with no_grad():
            return [to_numpy(y.data).copy() for y in _outputs(fn(*arguments))]

    def slope(above: list[Any], below: list[Any], step: float) -> float:
        """(s(above) - s(below)) / step, subtracted before it is summed: large values of fn do not drown small ones."""
        return float(sum(np.vdot(v, a - b) for v, a, b in zip(cotangents, above, below, strict=True))) / step

    def refuse_chance(trials: int) -> None:
        """Raise ValueError where fn gives other values for the same input: with luck dropout does not in one trial."""
        for _ in range(trials):
            for y, other in zip(here, values(), strict=True):
                if (y != other).any():
                    raise ValueError(
                        f"gradcheck: fn gave {y[y != other][0]} and then {other[y != other][0]} for the same input: "
                        "fix its random seed, or what it keeps between calls"
                    )

    here = values()
    _refuse_changes("fn", _data(arguments), before)
    for y in here:
        if not np.isfinite(y).all():
            raise ValueError(
                f"gradcheck: fn's output has values that are not finite, {y[~np.isfinite(y)][0]} among them"
            )
    refuse_chance(1)
    tensors = [t for _, t in checked]
    gradients = _by_tape(outputs, cotangents, tensors)
    _refuse_changes("fn", _data(arguments), before)

    def entry(i: int, t: Tensor, index: tuple[int, ...], exact: float, eps: float) -> Mismatch:
        x = float(t.data[index])
        h = eps * max(1.0, abs(x))
        above, below = _moved(values, t, index, x + h), _moved(values, t, index, x - h)
        numeric, left, right = slope(above, below, 2 * h), slope(here, below, h), slope(above, here, h)
        shares = list(zip(cotangents, above, strict=True))
        return Mismatch(i, index, x, exact, numeric, left, right, abs(exact - numeric), h, shares, calls)

    excused = None
    for (i, t), gradient in zip(checked, gradients, strict=True):
        indices, largest = _entries(gradient, limit, rng), float(np.abs(gradient).max(initial=0.0))
        for index in indices:
            found = entry(i, t, index, float(gradient[index]), eps)
            largest = max(largest, abs(found.numeric))
            if not (np.isfinite(found.off) and found.off <= atol + rtol * max(abs(found.exact), abs(found.numeric))):
                refuse_chance(0 if excused else 8)
                found.bend = entry(i, t, index, found.exact, eps / 4).off < found.off / 4
                if not found.excuse:
                    return found
                excused = excused or found
        for index in indices if largest <= atol else []:  # which lets every gradient pass: look closer
            near, found, far = (entry(i, t, index, float(gradient[index]), step) for step in (eps / 4, eps, 4 * eps))
            steady = max(abs(near.numeric - found.numeric), abs(far.numeric - found.numeric)) < found.off / 4
            if found.off > largest / 10_000 + found.rounding and steady:  # neither rounding nor the step makes it
                return found
    if excused:
        return excused

    # The same must come out again, and where the other inputs want no gradient, for what is left out then must not be
    # the wanted one. This time dy is in column-major order.
    alone = [[k] for k, gradient in enumerate(gradients) if len(tensors) > 1 and gradient.any()]
    for ks in [list(range(len(tensors))), *alone]:
        given = [x if not isinstance(x, Tensor) or any(x is tensors[k] for k in ks) else x.detach() for x in arguments]
        try:
            again = _by_tape(_outputs(fn(*given)), [np.array(v, order="F") for v in cotangents], tensors)
        except ValueError as error:
            if "already freed" not in str(error):
                raise
            break  # a tensor that fn brings along has a graph of its own, which the first backward() has used up
        for k in ks:
            off, largest = (np.abs(g).max(initial=0.0) for g in (again[k] - gradients[k], gradients[k]))
            if not off <= atol + rtol * largest:
                where = (
                    "no other input wants one: is `needs` mixed up"
                    if ks in alone
                    else "it is asked for again: is something kept between calls, or a row-major dy taken for granted"
                )
                raise GradcheckError(
                    f"the gradient of input {checked[k][0]} is right at first and wrong, by up to {off:.3g}, where "
                    f"{where}, in one of {', '.join(dict.fromkeys(cls.__name__ for cls, *_ in calls))}?"
                )
    return None


def _entries(gradient: np.ndarray, limit: int | None, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Return the indices to check: all, or `limit` random ones; what is not finite is not left to chance."""
    size = gradient.size
    chosen = range(size) if limit is None or limit >= size else rng.choice(size, limit, replace=False)
    flat = [*np.flatnonzero(~np.isfinite(gradient))[:1], *chosen]
    return [tuple(int(i) for i in np.unravel_index(j, gradient.shape)) for j in flat]


def _prepare(x: Any, chosen: bool) -> Any:
    """Return an argument for fn: a tensor of numbers and what is checked in float64, and the rest as it came.

    `chosen` says that some of the arguments are tensors that require a gradient: then only those are checked.
    """
    array, wanted = x.data if isinstance(x, Tensor) else x, isinstance(x, Tensor) and x.requires_grad
    if not (is_array(array) and is_float(array.dtype.newbyteorder("=")) and (wanted or not chosen)):
        return x.to(dtype="float64") if isinstance(x, Tensor) and is_float(x.dtype) else x
    if wanted and x.node is None and getattr(array.flags, "writeable", True) and array.dtype == np.float64:
        return x  # checked in place
    return Tensor(array_module(array).asarray(array, np.float64), requires_grad=True)


def _outputs(value: Any) -> list[Tensor]:
    """Return the tensors in what fn returned, without integers and booleans, which have no gradient."""
    if isinstance(value, tuple | list | dict):
        return [y for part in (value.values() if isinstance(value, dict) else value) for y in _outputs(part)]
    if not isinstance(value, Tensor):
        raise ValueError(f"gradcheck: fn must return a Tensor or several, it returned a {type(value).__name__}")
    if is_float(value.dtype) and value.dtype != np.float64:
        raise ValueError(
            f"gradcheck needs float64, fn returned {value.dtype}: does it use a module? module.to(dtype=...)"
        )
    return [value] if is_float(value.dtype) else []


def _by_tape(outputs: list[Tensor], cotangents: list[np.ndarray], tensors: list[Tensor]) -> list[np.ndarray]:
    """Return Jᵀ v for every tensor by backward(), which leaves `.grad` of all tensors as it was."""
    parts = [
        (y * Tensor(to_device(v, y.device))).sum() for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad
    ]
    if not parts:
        raise ValueError("gradcheck: fn's output is not connected to its inputs by the tape: was it computed outside?")
    total = sum(parts[1:], parts[0])
    with _watching:  # another thread may check what has parameters in common
        # The leaves below are the inputs, and the parameters that fn brings along.
        kept = [(t, t.grad) for t in (*tensors, *tensor.consumers(total.node or total)) if isinstance(t, Tensor)]
        for t, _ in kept:
            t.grad = None
        try:
            total.backward()
            if all(t.grad is None for t in tensors):
                raise ValueError("gradcheck: fn's output depends on other tensors, on none of the inputs")
            return [np.zeros(t.shape) if t.grad is None else to_numpy(t.grad).copy() for t in tensors]
        finally:
            for t, grad in kept:
                t.grad = grad


def _moved(values: Callable[[], list[Any]], t: Tensor, index: tuple[int, ...], value: float) -> list[Any]:
    """fn's values with one entry of t set to `value`; the entry is put back afterwards."""
    old = float(t.data[index])
    try:
        t.data[index] = value
        return values()
    finally:
        t.data[index] = old


def _data(arguments: Sequence[Any]) -> dict[str, Array]:
    """The arrays of the tensors among the arguments, by what they are called in a message."""
    return {f"its input {i}": x.data for i, x in enumerate(arguments) if isinstance(x, Tensor)}


def _copies(arrays: dict[str, Array]) -> dict[str, np.ndarray]:
    """Copies of the arrays, in the host's memory, and transposed where they are."""
    return {what: np.array(to_numpy(a), order="K") for what, a in arrays.items()}


def _refuse_changes(who: str, arrays: dict[str, Array], before: dict[str, np.ndarray]) -> None:
    """Raise ValueError where an array is no longer what it was: other operations may hold it."""
    for what, old in before.items():
        if not np.array_equal(to_numpy(arrays[what]), old, equal_nan=True):
            raise ValueError(f"gradcheck: {who} changed {what} in place: compute into a new array")


@contextmanager
def _watched() -> Iterator[list[Call]]:
    """Record the operations that go on the tape, and see that each leaves the arrays that it is given as they are."""
    calls: list[Call] = []

    thread, choose = threading.get_ident(), registry.choose

    def watch(cls: type[Function], node: Function) -> Function:
        forward, backward = node.forward, node.backward
        held: dict[str, Array] = {}

        def watched_forward(*arrays: Any, **options: Any) -> Array:
            held.update({f"its input {i}": a for i, a in enumerate(arrays) if a is not None})
            before, wanted = _copies(held), any(node.needs)
            y = held["its output"] = forward(*arrays, **options)
            _refuse_changes(f"{cls.__name__}.forward", held, before)
            dtype = getattr(y, "dtype", np.dtype(np.float64))  # what is no array is refused by `apply`
            if is_float(dtype) and dtype != np.float64 and any(a.dtype == np.float64 for a in before.values()):
                raise ValueError(f"gradcheck needs float64, {cls.__name__}.forward turned it into {dtype}")
            if wanted and len(calls) < 1000:
                calls.append(
                    (cls, [before.get(f"its input {i}") for i in range(len(arrays))], node.needs, dict(options))
                )
            return y

        def watched_backward(dy: Array) -> Any:
            held["dy"] = dy
            before = _copies(held)
            dxs = backward(dy)
            if type(node) is not cls:  # the engine room knows when an output or a dy is nobody else's
                del before["its output"], before["dy"]
            _refuse_changes(f"{cls.__name__}.backward", held, before)
            return dxs

        node.forward, node.backward = watched_forward, watched_backward  # type: ignore[method-assign]
        return node

    def watching(book: Any, device: str, /, *arrays: Any, **options: Any) -> Any:
        chosen = choose(book, device, *arrays, **options)
        mine = isinstance(book, type) and threading.get_ident() == thread
        return (lambda: watch(book, chosen())) if mine else chosen

    with _watching:
        before, tensor.choose = tensor.choose, watching
        try:
            yield calls
        except TypeError as error:
            if "got tensors of dtypes" not in str(error):
                raise
            raise TypeError(
                f'{error}; gradcheck computes in float64: give fn w.to(dtype="float64") in place of a tensor w, and a '
                'module after module.to(dtype="float64")'
            ) from error
        finally:
            tensor.choose = before
