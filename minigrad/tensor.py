"""The tape: tensors, the operations that connect them, and the walk that computes gradients.

Read this file first. A `Tensor` is an array that may want a gradient. A `Function` is an operation applied once; its
instance is a node of the graph: it keeps what its backward pass needs and points to the nodes that made its inputs.

    x ──► Multiply ──► Sum ──► y         forward: every operation adds a node
    x ◄── Multiply ◄── Sum ◄── dy = 1    backward: every node turns dy into one gradient per input

`y.backward()` walks from the last node to the leaves. If y = f(u) and u = g(x), the chain rule says
dx = (∂u/∂x)ᵀ (∂f/∂u)ᵀ dy: each node multiplies by the transpose of its own Jacobian and knows nothing of the others.
What all nodes need, adding up gradients that meet, summing over broadcast axes and checking shapes, is done here, once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import (
    Array,
    Memory,
    array_module,
    check_array,
    check_dtype,
    check_gradient,
    device_of,
    float_dtype,
    is_array,
    is_float,
    share_memory,
    to_device,
    to_numpy,
    unbroadcast,
)
from .registry import book_of, choose

_thread = threading.local()
_adding = threading.Lock()  # held while a leaf's gradient grows: other threads may have graphs that end in it too


def recording() -> bool:
    """True while operations are put on the tape, which is everywhere but inside `no_grad()`."""
    return not getattr(_thread, "pauses", 0)


def wants_gradient(value: Any) -> bool:
    """True for a tensor that requires a gradient, and for a list or tuple that holds one, while it is recorded."""
    inside = value if isinstance(value, tuple | list) else ()
    return any(map(wants_gradient, inside)) or (isinstance(value, Tensor) and value.requires_grad and recording())


class no_grad(ContextDecorator):
    """Compute without recording, as a context manager or a decorator: for evaluation and for updating weights.

    What is counted is how often the thread has entered one: a decorator is one object for all threads and all calls.
    """

    def __enter__(self) -> None:
        _thread.pauses = getattr(_thread, "pauses", 0) + 1

    def __exit__(self, *_: object) -> None:
        _thread.pauses -= 1


class Function:
    """An operation applied once: a node of the graph.

    A subclass defines `forward(self, *arrays, **options) -> array`, which may keep what `backward` needs as attributes,
    in lists, tuples and dicts too (in any other object `check_unchanged` does not see it), and `backward(self, dy) ->
    array or tuple of arrays`: the gradient of every input, None where `self.needs` says that it is not wanted. Neither
    may write into the arrays that it is given, which other operations hold too, nor set one of the tape's own
    attributes, `parents` to `pending` below. What returns integers has no gradient.
    """

    broadcasts = False  # True where inputs broadcast as in NumPy: the engine then sums a gradient to its input's shape
    any_dtype = False  # True for operations that only move data, which take integers too
    inputs_at_most = 0  # the last of so many inputs may be left out, which means None; 0: none may
    mixed = False  # True where the weights may be float32 while the first input is bfloat16

    parents: tuple[Function | Tensor | None, ...] | None = None  # where each input's gradient goes; None once freed
    needs: tuple[bool, ...] = ()  # which inputs want a gradient
    inputs: tuple[tuple[tuple[int, ...], np.dtype] | None, ...] = ()  # every input's shape and dtype, for its gradient
    versions: tuple[tuple[Memory, int], ...] = ()  # the memory of inputs and output, and how often it had been changed
    pending: Any = None  # in a walk: the gradients so far, by where they go; the engine room may add to one

    def forward(self, *arrays: Any, **options: Any) -> Array:
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def backward(self, dy: Array) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no backward()")

    @classmethod
    def accepts(cls, *arrays: Array | None, **options: Any) -> bool:
        """Whether this implementation can compute these inputs; one that cannot leaves them to the book's formula."""
        return True

    @classmethod
    def apply(cls, *tensors: Tensor | None, **options: Any) -> Tensor:
        """Run the operation, and put it on the tape if an input wants a gradient."""
        for t in tensors:
            if not isinstance(t, Tensor | None):
                raise TypeError(f"{cls.__name__} takes tensors, got {type(t).__name__}: wrap it in Tensor(...)")
        tensors = (*tensors, *(None,) * (cls.inputs_at_most - len(tensors)))
        arrays = tuple(None if t is None else t._array for t in tensors)
        device = cls._check(arrays)
        node = choose(cls, device, *arrays, **options)()
        node.needs = needs = tuple(
            t is not None and t.requires_grad and is_float(t.dtype) and recording() for t in tensors
        )
        compute = node.forward if observer is None else partial(observer, cls, node, node.forward)
        y = node.run(compute, tensors, options)
        if node.needs is not needs or not OWN.isdisjoint(vars(node)):
            taken = next(iter(OWN & vars(node).keys()), "needs")
            raise TypeError(f"{cls.__name__}.forward sets self.{taken}, which the tape needs: choose another name")
        given = [t for t in tensors if t is not None]
        y.memory = next((t.memory for t in given if share_memory(y._array, t._array)), y.memory)
        if any(needs) and y.dtype.kind not in "biu":
            # The edge leads to the node that made the input, not to the input, which nothing may need any more.
            node.parents = tuple((t.node or t) if n else None for t, n in zip(tensors, needs, strict=True))  # type: ignore[union-attr]
            node.inputs = tuple(None if a is None else (a.shape, a.dtype) for a in arrays)
            node.versions = tuple((t.memory, t.memory.changes) for t in (*given, y))
            y.node, y.requires_grad = node, True
        return y

    def run(self, forward: Callable[..., Array], tensors: tuple[Tensor | None, ...], options: dict[str, Any]) -> Tensor:
        """Call `forward` on the tensors' arrays, which it may keep or show: see `Tensor.data`."""
        result = forward(*(None if t is None else t.data for t in tensors), **options)
        if not is_array(result):
            name, kind = type(self).__name__, type(result).__name__
            raise TypeError(f"{name}.forward must return an array, it returned a {kind}")
        return Tensor._of(check_array(result))

    @classmethod
    def _check(cls, arrays: tuple[Array | None, ...]) -> str:
        """Return the inputs' common device; raise TypeError or ValueError where dtypes or devices do not fit."""
        given = [a for a in arrays if a is not None]
        if not given:
            raise TypeError(f"{cls.__name__} needs at least one tensor")
        dtype, device = given[0].dtype, device_of(given[0])
        for a in given:
            if not cls.any_dtype and not is_float(a.dtype):
                raise TypeError(
                    f"{cls.__name__} computes with floating-point tensors, got {a.dtype}: convert it with .to()"
                )
            if a.dtype != dtype and not (cls.mixed and (dtype.name, a.dtype.name) == ("bfloat16", "float32")):
                raise TypeError(f"{cls.__name__} got tensors of dtypes {dtype} and {a.dtype}: convert one with .to()")
            if device_of(a) != device:
                raise ValueError(f"{cls.__name__} got tensors on {device} and {device_of(a)}: move one with .to()")
        return device

    def gradients(self, dy: Array) -> list[tuple[Function | Tensor, Array]]:
        """Run `backward` and return (parent, checked gradient) for every input that wants one."""
        dxs = self.backward(dy)
        dxs = dxs if isinstance(dxs, tuple | list) else (dxs,)
        if len(dxs) != len(self.needs):
            counts = f"{len(dxs)} gradients, the operation has {len(self.needs)} inputs"
            raise ValueError(f"{type(self).__name__}.backward returned {counts}")
        checked: list[tuple[Function | Tensor, Array]] = []
        for i, (parent, dx) in enumerate(zip(self.parents or (), dxs, strict=True)):
            if parent is None:
                continue
            if dx is None:
                raise ValueError(f"{type(self).__name__}.backward returned None for input {i}, which wants a gradient")
            shape, dtype = self.inputs[i]  # type: ignore[misc]
            # A sum over everything is a scalar in NumPy; the gradient of float32 weights is kept in float32.
            dx = array_module(dx).asarray(dx, dtype if self.mixed else None)
            if self.broadcasts and dx.shape != shape:
                dx = unbroadcast(dx, shape)
            if dx.shape != shape or dx.dtype != dtype:
                repeated = dx.shape == dy.shape != shape
                raise ValueError(
                    f"{type(self).__name__}.backward returned a gradient of shape {dx.shape} and dtype {dx.dtype} "
                    f"for input {i}, which has shape {shape} and dtype {dtype}"
                    + ("; where inputs broadcast, the class says broadcasts = True" if repeated else "")
                )
            if isinstance(parent, Tensor) and (
                dx.base is not None or any(dx is a for a in (dy, *vars(self).values(), *(d for _, d in checked)))
            ):
                dx = dx.copy()  # a leaf keeps its gradient, so it must not share memory with another array
            checked.append((parent, dx))
        return checked

    def check_unchanged(self) -> None:
        """Raise ValueError where an array that the node keeps for its backward pass was changed in place since."""
        changed = [memory.array for memory, before in self.versions if memory.changes != before]
        kept, met = list(vars(self).values()) if changed else [], set[int]()
        for v in kept:  # grows on the way by what lists, tuples and dicts hold, once each: a list may hold itself
            inside = v.values() if isinstance(v, dict) else v if isinstance(v, tuple | list) else ()
            kept += [w for w in inside if id(w) not in met]
            met.update(map(id, inside))
        if any(is_array(v) and share_memory(v, array) for v in kept for array in changed):
            raise ValueError(
                f"{book_of(type(self)).__name__} needs an array for its backward pass that was changed in place after "
                "its forward pass: call backward() before optimizer.step() and before changing .data"
            )

    def free(self) -> None:
        """Let go of the saved arrays and of the edges, so that memory falls while the walk goes on."""
        self.__dict__.clear()


# What the tape sets on a node after its forward pass, or calls and asks.
OWN = {"parents", "inputs", "versions", "pending", "gradients", "check_unchanged", "free", "broadcasts", "mixed"}

# A profiler's place: what is set here is called in place of every operation's forward and backward pass, as
# observer(operation, node, compute, *arrays, **options), and returns what compute(*arrays, **options) returns.
observer: Callable[..., Any] | None = None


def add_gradients(a: Array, b: Array) -> Array:
    """a + b, for two gradients that meet at a node: a new array, where NumPy makes a scalar of two 0-d arrays too."""
    return array_module(a).asarray(a + b)


def consumers(root: Function | Tensor) -> dict[Function | Tensor, int]:
    """Count, for every node below `root`, the edges that lead into it: the gradients it has to wait for."""
    counts: dict[Function | Tensor, int] = {root: 0}
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, Tensor):
            continue
        node.check_unchanged()
        if node.parents is None:
            raise ValueError("backward() reached a part of the graph that an earlier backward() has already freed")
        for parent in node.parents:
            if parent is not None:
                if parent not in counts:
                    stack.append(parent)
                counts[parent] = counts.get(parent, 0) + 1
    return counts


class Tensor:
    """An array that can take part in differentiation.

    `data` is an array, or anything NumPy can turn into one, and is copied. Python floats become float32; arrays keep
    their dtype. `requires_grad` asks for a gradient, which `backward()` leaves in `.grad`, an array like `.data`.
    Raises TypeError for data that is no array of numbers, and for a gradient asked of integers.
    """

    __slots__ = ("__weakref__", "_array", "_notes", "grad", "memory", "node", "requires_grad")

    _array: Array
    _notes: list[Any] | None  # what the engine room knows of the array; None as soon as anybody else can reach it
    grad: Array | None
    memory: Memory
    node: Function | None  # the operation that made this tensor; None for a leaf
    requires_grad: bool

    def __init__(self, data: Any, requires_grad: bool = False, device: str | None = None, dtype: Any = None):
        source = data.data if isinstance(data, Tensor) else data
        if wants_gradient(source):
            raise TypeError("Tensor([...]) would lose the gradient of the tensors in the list: join them with F.concat")
        xp = array_module(source)
        try:
            array = xp.array(source)
        except ValueError:
            raise ValueError("a Tensor needs a rectangular array, got nested sequences of different lengths") from None
        array = array.astype(array.dtype.newbyteorder("="), copy=False)  # whatever byte order a file had
        if dtype is None and array.dtype == np.float64 and not hasattr(source, "dtype"):
            dtype = np.float32  # Python's numbers have no precision of their own
        if dtype is not None and (array.dtype.kind in "biuf" or is_float(array.dtype)):
            place = device_of(array) if device is None else device
            array = array.astype(float_dtype(dtype, place) if "float" in str(dtype) else dtype)
        check_dtype(array)
        self._set(array if device is None else to_device(array, device))
        if requires_grad and not is_float(self.dtype):
            raise TypeError(f"only floating-point tensors can have a gradient, this one is {self.dtype}")
        self.requires_grad = bool(requires_grad)

    def _set(self, array: Array, memory: Memory | None = None) -> None:
        self._array, self.memory, self._notes = array, memory or Memory(), None
        self.grad, self.node, self.requires_grad = None, None, False

    @classmethod
    def _of(cls, array: Array, memory: Memory | None = None) -> Tensor:
        """Wrap an array without a copy; sums over everything return scalars in NumPy, which become 0-d arrays."""
        tensor = Tensor.__new__(Tensor)
        tensor._set(np.asarray(array) if isinstance(array, np.generic) else array, memory)
        return tensor

    @property
    def data(self) -> Array:
        """The array itself, which may be read, changed in place, and replaced.

        From here on it may be another at any time, so what operations noted about it is forgotten. A `backward()` that
        needs the values from before `t.data += x`, `optimizer.step()` or (running statistics) a batch norm in training
        raises ValueError; it misses `t.data[0] = x` or a change through `numpy()`, a view or DLPack. `t.data = array`
        is safe: the old array stays as it was.
        """
        for note in self._notes or ():
            note.before_exposure()
        self._notes = None
        return self._array

    @data.setter
    def data(self, array: Array) -> None:
        array = check_array(array)
        self.memory = self.memory if array is self._array else Memory()
        self._array, self._notes = array, None
        self.changed()

    def changed(self) -> None:
        """Note that the array was changed in place, for the operations that keep it: see `data`."""
        self.memory.changes, self.memory.array = self.memory.changes + 1, self._array

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def size(self) -> int:
        return self._array.size

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def device(self) -> str:
        return device_of(self._array)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("a tensor of shape () has no length")
        return len(self._array)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    __hash__ = object.__hash__  # by identity: == compares elements, as in NumPy

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(f"the truth value of a tensor of shape {self.shape} is ambiguous")
        return bool(self._array.reshape(()).item())

    def __float__(self) -> float:
        return float(self.item())

    def numpy(self) -> np.ndarray:
        """Return the values as a NumPy array, which shares the tensor's memory on the CPU."""
        return to_numpy(self.data)

    def item(self) -> float:
        """Return the only value as a Python number; ValueError if there are more."""
        if self.size != 1:
            raise ValueError(f"item() needs a tensor with one value, this one has shape {self.shape}")
        return self._array.reshape(()).item()

    def detach(self) -> Tensor:
        """Return a tensor with the same memory that is not part of the graph."""
        return Tensor._of(self.data, self.memory)

    def backward(self, gradient: Any = None, after_leaf: Callable[[Tensor], Any] = lambda x: None) -> None:
        """Add to `.grad` of every leaf x below this tensor y the gradient (∂y/∂x)ᵀ dy, and free the graph.

        `gradient` is dy, of y's shape; a tensor with one value may leave it out, it is 1 then. `after_leaf(x)` is
        called as soon as x.grad is complete, while other gradients are still to come. Raises ValueError when y
        does not depend on a tensor that requires a gradient, when shapes differ, on a graph that is freed already, and
        when an array that the graph keeps was changed in place since (see `data`).

        Threads may call it on graphs of their own with common leaves: all gradients are added, in any order, so the
        last digits may differ from run to run.
        """
        root = self.node or self
        pending: dict[Function | Tensor, Array] = {root: self._output_gradient(gradient)}
        waiting = consumers(root)
        ready = [root]
        while ready:
            node = ready.pop()
            dy = pending.pop(node)
            if isinstance(node, Tensor):
                with _adding:
                    if node.grad is not None:
                        check_gradient(node.grad, node.shape, "a leaf")
                        dy = add_gradients(node.grad, dy)
                    node.grad = dy
                after_leaf(node)
                continue
            node.pending = pending
            compute = node.gradients if observer is None else partial(observer, type(node), node, node.gradients)
            for parent, dx in compute(dy):
                if parent in pending:
                    dx = choose(add_gradients, device_of(dx), pending[parent], dx)(pending[parent], dx)
                pending[parent] = dx
                waiting[parent] -= 1
                if not waiting[parent]:
                    ready.append(parent)
            node.free()

    def _output_gradient(self, gradient: Any) -> Array:
        """Return dy as an array like `.data` that the walk may keep; see `backward`."""
        if not self.requires_grad:
            raise ValueError("backward() needs a tensor that was computed from one with requires_grad=True")
        if gradient is None:
            if self.size != 1:
                raise ValueError(f"backward() without a gradient needs a tensor with one value, not shape {self.shape}")
            one = getattr(self.node, "first_gradient", None)  # fast/cuda/loss.py makes it along with the loss
            return array_module(self._array).ones_like(self._array) if one is None else one
        dy = Tensor(gradient, device=self.device, dtype=self.dtype).data
        if dy.shape != self.shape:
            raise ValueError(f"backward() got a gradient of shape {dy.shape} for a tensor of shape {self.shape}")
        return dy

    if TYPE_CHECKING:  # what ops/operators.py attaches, for type checkers: the operations are built on top of this file
        T: Tensor
        __array__: Any

        def _with(self, other: Any) -> Tensor: ...
        def _function(self) -> Tensor: ...
        def _reduction(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def _rearranged(self, *sizes_or_axes: Any) -> Tensor: ...
        def to(self, device: str | None = None, dtype: Any = None) -> Tensor: ...

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _with
        __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __getitem__ = __lt__ = __le__ = __gt__ = __ge__ = _with
        __eq__ = __ne__ = _with  # type: ignore[assignment]
        __neg__ = exp = log = sqrt = relu = sigmoid = tanh = _function
        sum = mean = max = _reduction
        reshape = transpose = _rearranged
