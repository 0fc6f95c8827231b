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

_watching = threading.RLock()  # held while `_watched` stands in for what all threads call, and `.grad` is borrowed

# An operation, copies of its input arrays, which of them want a gradient, and its options.
Call = tuple[type[Function], list[Any], tuple[bool, ...], dict[str, Any]]


class GradcheckError(AssertionError):
    """A gradient differs from its finite difference; the message names the operation, the entry and both numbers."""


@np.errstate(all="ignore")  # what is not finite is told in words
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
    returns a tensor or several; integers among them have no gradient and are passed over. An entry passes if
    |exact - numeric| <= atol + rtol max(|exact|, |numeric|); the step is h = eps max(1, |x|). `max_entries` checks so
    many random entries of each input instead of all. Where all of an input's gradient is below atol, it may be off by
    10⁻⁴ of its largest entry. Each input's gradient must also come out the same where no other input wants one. `.grad`
    of all tensors, inputs or not, stays as it was.

    Raises GradcheckError (an AssertionError) with the operation, the entry and both numbers where they differ, and
    ValueError where `fn` is not connected to its inputs or gives two values for the same input, and where it or one of
    its operations changes an array that it was given.
    """
    if isinstance(fn, type) and issubclass(fn, Function):
        raise TypeError(
            f"gradcheck checks a function of tensors, {fn.__name__} is an operation: pass {fn.__name__}.apply"
        )
    check_kind(fn, Callable, "gradcheck checks a function of tensors")
    numbers = {"eps": eps, "rtol": rtol, "atol": atol}
    eps, rtol, atol = (as_number(value, f"gradcheck's {name}") for name, value in numbers.items())
    if not 0 < eps < np.inf:
        raise ValueError(f"gradcheck needs a step eps above 0, got {eps}")
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"gradcheck needs tolerances of at least 0, got rtol {rtol} and atol {atol}")
    if rtol >= 1:  # a gradient of zeros would pass
        raise ValueError(f"gradcheck needs a relative tolerance below 1, got rtol {rtol}")
    max_entries = None if max_entries is None else as_size(max_entries, "gradcheck's max_entries")
    arguments = _prepare(list(inputs) if isinstance(inputs, list | tuple) else [inputs])
    mismatch = _compare(fn, arguments, eps, rtol, atol, seed, max_entries)
    if mismatch is None:
        return True

    calls = mismatch.calls
    names = " -> ".join(dict.fromkeys(cls.__name__ for cls, *_ in calls))
    message = f"the gradient of input {mismatch} (operations: {names})."
    if not np.isfinite(mismatch.numeric):
        raise GradcheckError(
            f"{message} fn is not finite a step away from this point: choose another, or a smaller eps."
        )
    if mismatch.off <= mismatch.rounding:
        raise GradcheckError(
            f"{message} fn's values, up to {mismatch.largest:.3g} in size, are rounded by as much as that: take a "
            "constant away from them, or choose a larger eps."
        )
    if mismatch.kink or mismatch.bend:
        raise GradcheckError(
            f"{message} The slope is {mismatch.left:.6g} on the left of this point and {mismatch.right:.6g} on its "
            "right: a kink, as ReLU has at 0 and max at ties, or a bend sharper than the step. Choose inputs away from "
            "it, or a smaller eps."
        )
    limit, one = (20, "Each") if len(calls) > 1 else (max_entries, "The")
    for cls, arrays, needs, options in calls:
        tensors = [None if a is None else Tensor(a, requires_grad=n) for a, n in zip(arrays, needs, strict=True)]
        alone = _compare(lambda *ts, c=cls, o=options: c.apply(*ts, **o), tensors, eps, rtol, atol, seed, limit)
        if alone is not None:
            again = f": its gradient of input {alone}" if len(calls) > 1 else ""  # else the numbers are the message's
            raise GradcheckError(
                f"{message} {cls.__name__}.backward is wrong when it is checked alone, on inputs of shape "
                f"{', '.join('None' if a is None else str(a.shape) for a in arrays)}{again}."
            )
    raise GradcheckError(f"{message} {one} operation passes alone: does a value bypass the tape (.data)?")


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
    def off(self) -> float:
        """How far the two are apart."""
        return abs(self.exact - self.numeric)

    @property
    def largest(self) -> float:
        """The largest number among fn's values."""
        return max(float(np.abs(y).max(initial=0.0)) for _, y in self.values)

    @property
    def rounding(self) -> float:
        """How far rounding fn's values may move `numeric`: each by one part in 2⁵³, and a few more on the way."""
        size = max(float(np.abs(v * y).max(initial=0.0)) * y.size**0.5 for v, y in self.values)
        return 4 * float(np.finfo(np.float64).eps) * size / self.step

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
        kinds = ", ".join(str(getattr(x, "dtype", type(x).__name__)) for x in arguments) or "none"
        raise ValueError(f"gradcheck needs a tensor or array of float32 or float64 among the inputs, got {kinds}")
    before = _copies(_data(arguments))
    rng = np.random.default_rng(seed)
    with _watched() as calls:
        outputs = _outputs(fn(*arguments))
    cotangents = [rng.standard_normal(y.shape) for y in outputs]

    def values() -> list[Any]:
        """fn(x) as arrays of their own: an output may share its memory with x, which moves."""
        with no_grad():
            return _copies([y.data for y in _outputs(fn(*arguments))])

    def slope(above: list[Any], below: list[Any], step: float) -> float:
        """(s(above) - s(below)) / step, subtracted before it is summed: large values of fn do not drown small ones."""
        return float(sum(np.vdot(v, a - b) for v, a, b in zip(cotangents, above, below, strict=True))) / step

    here, again = values(), values()
    _refuse_changes("fn", _data(arguments), before)
    for y, other in zip(here, again, strict=True):
        if not np.isfinite(y).all():
            raise ValueError(
                f"gradcheck: fn's output has values that are not finite, {y[~np.isfinite(y)][0]} among them"
            )
        if (y != other).any():
            first, second = (z[y != other][0] for z in (y, other))
            raise ValueError(f"gradcheck: fn gave {first} and then {second} for the same input: fix its random seed")
    gradients = _by_tape(outputs, cotangents, [t for _, t in checked])
    _refuse_changes("fn", _data(arguments), before)

    def entry(i: int, t: Tensor, index: tuple[int, ...], exact: float, eps: float) -> Mismatch:
        x = float(t.data[index])
        h = eps * max(1.0, abs(x))
        above, below = _moved(values, t, index, x + h), _moved(values, t, index, x - h)
        slopes = slope(above, below, 2 * h), slope(here, below, h), slope(above, here, h)
        return Mismatch(i, index, x, exact, *slopes, h, list(zip(cotangents, above, strict=True)), calls)

    for (i, t), gradient in zip(checked, gradients, strict=True):
        indices, largest = list(_entries(t.shape, max_entries, rng)), float(np.abs(gradient).max(initial=0.0))
        for index in indices:
            found = entry(i, t, index, float(gradient[index]), eps)
            if not found.off <= atol + rtol * max(abs(found.exact), abs(found.numeric)):
                found.bend = entry(i, t, index, found.exact, eps / 4).off < found.off / 4
                return found
            largest = max(largest, abs(found.numeric))
        for index in indices if largest <= atol else []:  # which lets every gradient pass: look closer
            near, found, far = (entry(i, t, index, float(gradient[index]), step) for step in (eps / 4, eps, 4 * eps))
            steady = max(abs(near.numeric - found.numeric), abs(far.numeric - found.numeric)) < found.off / 4
            if found.off > largest / 10_000 + found.rounding and steady:  # neither rounding nor the step makes it
                return found

    # What a backward pass leaves out where an input wants no gradient must not be another input's.
    for k, (i, t) in enumerate(checked if len(checked) > 1 else []):
        others = [x.detach() if isinstance(x, Tensor) and x is not t else x for x in arguments]
        if gradients[k].any():
            alone = _by_tape(_outputs(fn(*others)), cotangents, [u for _, u in checked])[k]
            if not np.allclose(alone, gradients[k], rtol, atol):
                raise GradcheckError(
                    f"the gradient of input {i} is right beside the others' and wrong, by up to "
                    f"{np.abs(alone - gradients[k]).max():.3g}, where no other input wants one: is `needs` mixed up in "
                    f"one of {', '.join(dict.fromkeys(cls.__name__ for cls, *_ in calls))}?"
                )
    return None


def _prepare(inputs: list[Any]) -> list[Any]:
    """Return the arguments for fn: the tensors of numbers and what is checked in float64, and the rest as it came."""
    chosen = [isinstance(x, Tensor) and x.requires_grad for x in inputs]
    arguments = []
    for x, wanted in zip(inputs, chosen, strict=True):
        array = x.data if isinstance(x, Tensor) else x
        checkable = is_array(array) and is_float(array.dtype) and (wanted or not any(chosen))
        in_place = wanted and x.node is None and getattr(array.flags, "writeable", True) and array.dtype == np.float64
        if checkable and not in_place:
            arguments.append(Tensor(array_module(array).asarray(array, np.float64), requires_grad=True))
        else:
            arguments.append(x.to(dtype="float64") if isinstance(x, Tensor) and is_float(x.dtype) else x)
    return arguments


def _outputs(value: Any) -> list[Tensor]:
    """Return what fn returned as a list of tensors, without integers and booleans, which have no gradient."""
    outputs = list(value) if isinstance(value, tuple | list) else [value]
    for y in outputs:
        if not isinstance(y, Tensor):
            raise ValueError(f"gradcheck: fn must return a Tensor or several, it returned a {type(y).__name__}")
        if is_float(y.dtype) and y.dtype != np.float64:
            raise ValueError(
                f"gradcheck needs float64, fn returned {y.dtype}: does it use a module? module.to(dtype=...)"
            )
    return [y for y in outputs if is_float(y.dtype)]


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


def _entries(shape: tuple[int, ...], limit: int | None, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Yield the indices to check: all, or `limit` random ones."""
    size = int(np.prod(shape))
    chosen = np.arange(size) if limit is None or limit >= size else rng.choice(size, limit, replace=False)
    for flat in chosen:
        yield tuple(int(i) for i in np.unravel_index(flat, shape))


def _data(arguments: Sequence[Any]) -> list[Array | None]:
    """The arrays of the tensors among the arguments, None in place of all else."""
    return [x.data if isinstance(x, Tensor) else None for x in arguments]


def _copies(arrays: Sequence[Array | None]) -> list[Any]:
    """Copies of the arrays, in the host's memory."""
    return [None if a is None else to_numpy(a).copy() for a in arrays]


def _refuse_changes(who: str, arrays: Sequence[Array | None], before: Sequence[Any], what: str = "") -> None:
    """Raise ValueError where an array is no longer what it was: other operations may hold it."""
    for i, (a, old) in enumerate(zip(arrays, before, strict=True)):
        if a is not None and not np.array_equal(to_numpy(a), old, equal_nan=True):
            raise ValueError(f"gradcheck: {who} changed {what or f'its input {i}'} in place: compute into a new array")


@contextmanager
def _watched() -> Iterator[list[Call]]:
    """Record the operations that go on the tape, and see that each leaves the arrays that it is given as they are."""
    calls: list[Call] = []

    thread, choose = threading.get_ident(), registry.choose

    def watch(cls: type[Function], node: Function) -> Function:
        forward, backward = node.forward, node.backward
        given: list[Array | None] = []

        def watched_forward(*arrays: Any, **options: Any) -> Array:
            given.extend(arrays)
            before, wanted = _copies(arrays), any(node.needs)
            y = forward(*arrays, **options)
            _refuse_changes(f"{cls.__name__}.forward", arrays, before)
            dtype = getattr(y, "dtype", np.dtype(np.float64))  # what is no array is refused by `apply`
            if is_float(dtype) and dtype != np.float64 and any(a is not None and a.dtype == np.float64 for a in arrays):
                raise ValueError(f"gradcheck needs float64, {cls.__name__}.forward turned it into {dtype}")
            if wanted and len(calls) < 1000:
                calls.append((cls, before, node.needs, dict(options)))
            return y

        def watched_backward(dy: Array) -> Any:
            before, dy_before = _copies(given), _copies([dy])
            dxs = backward(dy)
            _refuse_changes(f"{cls.__name__}.backward", given, before)
            if type(node) is cls:  # the engine room knows when a dy is nobody else's
                _refuse_changes(f"{cls.__name__}.backward", [dy], dy_before, "dy")
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
