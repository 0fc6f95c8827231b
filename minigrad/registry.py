"""What stands in for what: from the book's operations to the engine room's faster ones, and back.

    register(Conv2d, "cpu", Winograd, Columns)      on a CPU ask first Winograd, then Columns, then the book's Conv2d
    choose(Conv2d, "cpu", x, w, None, stride=...)   the first whose `accepts` says that it can compute these inputs

Where nothing is registered, or all decline, `choose` returns the book's own. What is registered is a subclass of the
book's Function or, for the functions beside the tape (`tensor.add_gradients`, `optim.sgd_step`), another function,
which accepts all inputs unless it is decorated with `accepting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .backend import device_kind

_stand_ins: dict[tuple[Any, str], tuple[Any, ...]] = {}  # by the book's operation and the kind of device
_set_aside: list[dict[tuple[Any, str], tuple[Any, ...]]] = []  # while `book_only` runs, once for each that does


def register(book: Any, kind: str, *stand_ins: Any) -> None:
    """Let others compute `book` on a kind of device, "cpu" or "cuda".

    They replace what was registered before; without any, the book's own computes again.
    """
    _stand_ins[book, kind] = stand_ins


def choose(book: Any, device: str, /, *arguments: Any, **options: Any) -> Any:
    """Return what computes `book` for these arguments on a device: the first that accepts them, or the book's own."""
    for candidate in _stand_ins.get((book, device_kind(device)), ()):
        accepts = getattr(candidate, "accepts", None)
        if accepts is None or accepts(*arguments, **options):
            return candidate
    return book


def accepting(accepts: Callable[..., bool]) -> Callable[[Callable], Callable]:
    """Decorate a function that stands in for another: it computes where `accepts(*arguments)` is true."""

    def mark(function: Callable) -> Callable:
        function.accepts = accepts  # type: ignore[attr-defined]
        return function

    return mark


def book_of(operation: Any) -> Any:
    """Return the book's operation that this one stands in for; the book's own are their own."""
    return next((book for (book, _), candidates in _stand_ins.items() if operation in candidates), operation)


def fast(device: str) -> bool:
    """Whether the engine room computes on this device; `MINIGRAD_FAST=0` leaves it out."""
    return any(candidates for (_, kind), candidates in _stand_ins.items() if kind == device_kind(device))


def leave_out(operation: Any) -> None:
    """Do without an operation that stands in for the book's: from now on the next in line is asked."""
    for key, candidates in _stand_ins.items():
        _stand_ins[key] = tuple(candidate for candidate in candidates if candidate is not operation)


@contextmanager
def book_only() -> Iterator[None]:
    """Compute by the book's formulas alone, in all threads: to compare the two.

    Several threads may be in here at once. All share one stack, so the last to leave gets what the first set aside.
    """
    global _stand_ins
    _set_aside.append(_stand_ins)
    _stand_ins = {}
    try:
        yield
    finally:
        _stand_ins = _set_aside.pop()
