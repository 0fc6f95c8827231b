"""What one fast operation tells the next, beside the tape, and the rule that keeps it true.

A convolution that has just computed its output can sum the channels while they are still in the cache; the batch norm
that follows wants these sums. A batch norm knows how to make its output again from its input; the convolution that
follows can then keep three vectors instead of an array. Such knowledge is a note on the output's tensor: `pin` here,
`note_on` there.

The rule: **notes hold only while nobody but the engine room can reach the array.** A user may change an array at any
time, through the tensor, a view, another library, and no check of its values would be both cheap and safe. So the first
`Tensor.data` that anybody reads ends the tensor's notes for good, and every way to the array leads through it:
`.numpy()`, `detach`, DLPack, copies, pickles, and the arrays that a book's or a user's operation gets. Whoever finds no
note computes what is missing: a look at an array costs speed, never a result. A training step looks at nothing on its
way.

On the way back gradients meet, as those of a residual block's two ways do. An operation that can add its own to
another's at no cost (a matrix product can) takes that one from the tape, with `take_pending`, and returns the sum. It
writes into it, so it takes only what a fast operation has just made (`fresh`), which nobody else has seen.

For the same reason an operation does not simply keep an array that a tensor shows to the user. It keeps it as `Kept`,
which takes a copy before anybody else can reach the array.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from ..backend import Array, array_module
from ..tensor import Function, Tensor

T = TypeVar("T")


class Note:
    """What an operation tells about an array."""

    def before_exposure(self) -> None:
        """Called before somebody outside the engine room may reach the array."""


class Kept(Note):
    """An array that an operation needs later as it is now, although a tensor shows it to the user."""

    def __init__(self, array: Array):
        self.array = array

    def before_exposure(self) -> None:
        self.array = self.array.copy()


class Informed(Function):
    """An operation that reads the notes on its inputs, and pins notes to its output.

    It keeps no view of an input in its output, and hands its arrays to nobody.
    """

    input_notes: tuple[list[Note] | None, ...] = ()  # while `forward` runs, for each input; None: others can reach it
    output_notes: list[Note] | None = None  # while `run` runs
    fresh = False  # whether `backward` returns new arrays, of which it keeps no view
    fresh_dy: weakref.ref[Array] | None = None  # the last gradient of this node's output that came, if a fresh one

    def gradients(self, dy: Array) -> list[tuple[Function | Tensor, Array]]:
        found = super().gradients(dy)
        for parent, dx in found:
            if isinstance(parent, Informed):
                parent.fresh_dy = weakref.ref(dx) if self.fresh else None
        return found

    def take_pending(self) -> Array | None:
        """Take another operation's gradient of the first input from the tape, if it is fresh; for `backward`."""
        parent = self.parents[0] if self.parents else None
        if isinstance(parent, Informed) and parent.fresh_dy and parent.fresh_dy() is self.pending.get(parent, parent):
            return self.pending.pop(parent)
        return None

    def run(self, forward: Callable[..., Array], tensors: tuple[Tensor | None, ...], options: dict[str, Any]) -> Tensor:
        self.input_notes, self.output_notes = tuple(None if t is None else t._notes for t in tensors), []
        try:
            y = Tensor._of(forward(*(None if t is None else t._array for t in tensors), **options))
            y._notes = self.output_notes
        finally:
            del self.input_notes, self.output_notes
        return y

    def note_on(self, i: int, kind: type[T]) -> T | None:
        """The note of this kind on input i, if there is one; for `forward`."""
        notes = self.input_notes[i] if i < len(self.input_notes) else None
        return next((note for note in notes or () if isinstance(note, kind)), None)

    def pin(self, note: Note) -> None:
        """Pin a note to the output; for `forward`, and without effect where it is called by itself, without `run`."""
        if self.output_notes is not None:
            self.output_notes.append(note)

    def keep(self, i: int, x: Array, memory: Array) -> Kept:
        """Keep `memory`, input i's array x or one made from it; a copy where others can reach it. For `forward`."""
        notes = self.input_notes[i] if i < len(self.input_notes) else None
        if notes is None:
            shared = array_module(x).may_share_memory(memory, x)
            return Kept(memory.copy() if shared else memory)
        kept = Kept(memory)
        notes.append(kept)
        return kept
