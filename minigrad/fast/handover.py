"""What one fast operation tells the next about an array, beside the tape.

A convolution that has just computed an image knows its sums while the image is still in the cache; the batch norm that
follows wants them. A batch norm knows how to make its output again from its input; the convolution that follows can
then keep three vectors instead of an array. The tape passes plain arrays, so such knowledge is pinned to the array
itself: `attach(array, note)` here, `find(array, kind)` there. A note vanishes with its array, and an array that is not
the very same object has none. Whoever finds no note computes what is missing, so notes change speed, never results.
"""

from __future__ import annotations

import weakref
from typing import Any, TypeVar

from ..backend import Array

T = TypeVar("T")

_notes: dict[int, tuple[weakref.ref, Any]] = {}


def attach(array: Array, note: Any) -> None:
    """Pin a note to an array, in place of an earlier one, for as long as the array lives."""
    key = id(array)
    _notes[key] = (weakref.ref(array, lambda _: _notes.pop(key, None)), note)


def find(array: Array, kind: type[T]) -> T | None:
    """Return the array's note if it has one of this kind."""
    reference, note = _notes.get(id(array), (None, None))
    return note if isinstance(note, kind) and reference is not None and reference() is array else None
