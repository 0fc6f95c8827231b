"""Random programs: operations on tensors, and between them whatever a user may do to an array, run twice alike.

An edit is legal where no recorded operation needs the old values for its backward pass: on what nobody has used yet,
and on what only batch norms, views and sums have used (the book's formulas keep no input there).
"""

import copy
import pickle
from typing import ClassVar

import numpy as np
from hypothesis import strategies as st

from minigrad import Function, Tensor
from minigrad import functional as F
from minigrad.ops.norm import batch_norm, batch_norm_relu
from support.strategies import normal

SHAPE = (3, 8, 4, 4)
C = SHAPE[1]


class Same(Function):
    """Returns its input's own array, and leaves it where somebody else finds it."""

    seen: ClassVar[list] = []

    def forward(self, x):
        Same.seen.append(x)
        return x

    def backward(self, dy):
        return dy


TOLD = ["conv1x1", "conv3x3", "norm", "norm relu", "norm shortcut"]  # the operations that tell each other
OPERATIONS = TOLD * 3 + ["add", "relu", "view", "same", "failure"]
EDITS = ["add", "zero", "numpy", "asarray", "dlpack", "detach", "view", "kept"]
COPIES = ["copy", "deepcopy", "pickle", "detach", "look"]

steps = st.lists(
    st.tuples(
        st.sampled_from(["operation", "operation", "edit", "copy"]),
        st.sampled_from(OPERATIONS),
        st.sampled_from(EDITS),
        st.sampled_from(COPIES),
        st.sampled_from([0, 0, 0, 1, 1, 2]),  # which of the last tensors, counted from the end
        st.integers(0, 2),
        st.integers(0, 1000),
    ),
    min_size=2,
    max_size=8,
)


def step(kind, name, back=0, seed=0):
    """One step of a program on the tensor `back` places from the last."""
    fields = {"operation": (name, "add", "look"), "edit": ("add", name, "look"), "copy": ("add", "add", name)}
    return (kind, *fields[kind], back, 0, seed)


class Program:
    """Runs steps; `memory` says for each tensor which memory it shows, `frozen` which memory a backward pass needs."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self.tensors, self.leaves, self.memory, self.frozen = [], [], [], set()
        Same.seen.clear()
        self.kept = []
        self.take(self.leaf(normal(0, *SHAPE)))

    def leaf(self, array):
        self.leaves.append(Tensor(array.astype(self.dtype), requires_grad=True))
        return self.leaves[-1]

    def take(self, t, like=None):
        self.tensors.append(t)
        self.memory.append(len(self.memory) if like is None else self.memory[like])

    def pick(self, back):
        return max(0, len(self.tensors) - 1 - back)

    def operate(self, name, i, j, seed):
        x, other = self.tensors[i], self.tensors[j]

        def parameters():
            return [self.leaf(normal(seed + k, C) + 1) for k in (1, 2)]

        if name.startswith("conv"):
            groups = (1, 2, 8)[seed % 3] if name == "conv3x3" else 1
            k = int(name[-1])
            y = F.conv2d(x, self.leaf(normal(seed, C, C // groups, k, k)), padding=k // 2, groups=groups)
            self.frozen.add(self.memory[i])
        elif name == "norm":
            y = batch_norm(x, *parameters(), None, None, True)
        elif name == "norm relu":
            y = batch_norm_relu(x, *parameters(), None, None, True)
        elif name == "norm shortcut":
            y = batch_norm_relu(x, *parameters(), None, None, True, shortcut=other)
        elif name == "add":
            y = x + other
        elif name == "relu":
            y = F.relu(x)
            self.frozen |= {self.memory[i], len(self.memory)}
        elif name == "view":
            return self.take(x.transpose(2, 0, 3, 1).transpose(1, 3, 0, 2), i)
        elif name == "same":
            self.take(Same.apply(x), i)
            return self.kept.append((Same.seen[-1], self.memory[i]))
        else:
            try:
                Same.apply(x, other)  # takes one input
            except TypeError:
                return None
            raise AssertionError("an operation with too many inputs went through")
        return self.take(y)

    def edit(self, name, i, seed):
        if self.memory[i] in self.frozen:
            return
        t = self.tensors[i]
        if name == "add":
            t.data += seed % 7
        elif name == "zero":
            t.data[:, : 1 + seed % 4] = 0
        elif name == "detach":
            t.detach().data[:, 1] -= 2
        elif name == "view":
            t.transpose(3, 1, 2, 0).data[::3] *= 0.5  # a reshaped tensor may be a copy, that depends on the layout
        elif name == "dlpack":
            if self.dtype.name != "bfloat16":
                np.from_dlpack(t)[:, 2] += 1
        elif name == "kept":
            for array, memory in self.kept:
                if memory not in self.frozen:
                    array[0] *= 2
        else:
            {"numpy": t.numpy, "asarray": lambda: np.asarray(t)}[name]()[:, :, 1] = 1 + seed % 3

    def copy(self, name, i):
        t = self.tensors[i]
        if name == "copy":
            self.take(copy.copy(t.detach()), i)  # only leaves are copied
        elif name == "detach":
            self.take(t.detach(), i)
        elif name == "look":
            t.data.sum()
        else:
            t = t.detach()
            self.take(copy.deepcopy(t) if name == "deepcopy" else pickle.loads(pickle.dumps(t)))

    def run(self, steps):
        for kind, operation, edit, copied, back, other, seed in steps:
            i, j = self.pick(back), self.pick(other)
            if kind == "operation":
                self.operate(operation, i, j, seed)
            elif kind == "edit":
                self.edit(edit, i, seed)
            else:
                self.copy(copied, i)
        loss = None
        for k, t in enumerate(self.tensors):
            term = (t * Tensor(normal(k, *SHAPE).astype(self.dtype))).sum()
            loss = term if loss is None else loss + term
        loss.backward()
        return [t.numpy() for t in self.tensors] + [np.zeros(1) if t.grad is None else t.grad for t in self.leaves]
