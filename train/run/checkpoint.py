"""The state of a run in one safetensors file, from which it goes on as if it had never stopped.

Weights and batch-norm statistics stand under their own names, as in a file of plain weights; what else there is has a
prefix: "velocity:" for momentum, "average:" for averaged weights. What is no array (epoch, step, configuration, random
generators, the log so far) is JSON in the file's metadata. A SHA-256 over everything tells a damaged file.

A run folder keeps two states, `last.safetensors` and the one before, `previous.safetensors`; a file appears whole or
not at all. So there is a state to go on from at every moment, whatever happens to the process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minigrad.weights import read_arrays, write_atomically

from ..options import UsageError

LAST, PREVIOUS, BEST, DAMAGED = (f"{name}.safetensors" for name in ("last", "previous", "best", "damaged"))
VELOCITY, AVERAGE = "velocity:", "average:"
STATE, CHECKSUM = "minigrad", "sha256"  # keys of the metadata

State = dict[str, Any]


# ---- one file -------------------------------------------------------------------------------------------------------


def write(path: Path, arrays: Mapping[str, np.ndarray], state: State) -> None:
    """Write arrays and state to a file that appears whole or not at all."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    text = json.dumps(state, allow_nan=False)
    write_atomically(path, save(contiguous, metadata={STATE: text, CHECKSUM: checksum(contiguous, text)}))


def read(path: Path) -> tuple[dict[str, np.ndarray], State]:
    """Return arrays and state; the state is empty for a file of plain weights.

    Raises FileNotFoundError, and ValueError for a file that is damaged, no safetensors file, whose numbers are not
    finite, or whose state is not of the form that a run writes. The file may come from anywhere: nothing in it is
    executed.
    """
    if path.is_dir():
        inside = path / LAST
        raise UsageError(
            f"{path} is a folder" + (f": name the file in it, {inside}" if inside.is_file() else ", no file")
        )
    arrays = read_arrays(path)
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} has damaged metadata: {error}") from None
    for name, array in arrays.items():
        counted, variance = name.endswith("num_batches_tracked"), name.endswith("running_var")
        if (counted or variance) and array.size and array.min() < 0:
            raise ValueError(f"{path} has {name} = {array.min()}, which cannot be negative")
        if array.dtype.kind == "f" and not counted and not (np.abs(array) <= np.finfo(np.float32).max).all():
            raise ValueError(f"{path} has values in {name} that are not finite in float32")
    if STATE not in metadata:
        return arrays, {}
    text = metadata[STATE]
    if metadata.get(CHECKSUM) != checksum(arrays, text):
        raise ValueError(f"{path} is damaged: its content does not have the SHA-256 that was saved with it")
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a state that is no JSON: {error}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} has a state that is no JSON object")
    for name, valid in {**FIELDS, **OPTIONAL}.items():
        if name in state and valid(state[name]):
            continue
        if name in state or name in FIELDS:
            raise ValueError(f"{path} has a state that train.cifar does not write: {name} is {brief(state.get(name))}")
    return arrays, state


def checksum(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """SHA-256 over the state's text and every array's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def select(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


# ---- the form of a state --------------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    most = 1e300 if isinstance(value, float) else 1 << 62  # so NaN is none, nor an integer that no array holds
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < most


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _list_of(valid: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and len(value) == (length or len(value)) and all(valid(item) for item in value)
    )


def has_numbers(*names: str) -> Callable[[Any], bool]:
    """What tells whether a value is a JSON object with these names, and numbers under all that it has."""
    return lambda value: isinstance(value, dict) and value.keys() >= set(names) and all(map(is_number, value.values()))


def _generator(value: Any) -> bool:
    try:
        np.random.PCG64().state = value
        return True
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


TOTALS = ("loss", "errors", "images", "seconds")  # the sums of an epoch so far


def _totals(value: Any) -> bool:
    return has_numbers(*TOTALS)(value) and all(number >= 0 for number in value.values())


FIGURES = ("epoch", "lr", "train_loss", "train_error", "images_per_second", "test_loss", "test_error")  # of an epoch

# What a state holds, and of what form each part must be.
FIELDS: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, dict) and isinstance(value.get("recipe"), dict),
    "classes": _list_of(lambda value: isinstance(value, str)),
    "mean": _list_of(is_number, 3),
    "std": _list_of(lambda value: is_number(value) and value > 0, 3),
    "size": _list_of(lambda value: _count(value) and 0 < value <= 1 << 16, 2),
    "images": _count,
    "epoch": _count,
    "step": _count,
    "best_error": lambda value: value is None or is_number(value),
    "totals": _totals,
    "history": _list_of(has_numbers(*FIGURES)),
    "generator": _generator,
}
# What earlier versions did not write.
OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "seconds": lambda value: is_number(value) and value >= 0,
    "test_images": _count,
}


def brief(value: Any) -> str:
    """A value as it appears in a sentence, however long it is."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- a run folder ---------------------------------------------------------------------------------------------------


def write_last(folder: Path, arrays: Mapping[str, np.ndarray], state: State) -> None:
    """Write `last.safetensors`; what was the last state becomes the previous one."""
    last, previous = folder / LAST, folder / PREVIOUS
    if last.exists():
        part = folder / f".{PREVIOUS}.{os.getpid()}.part"
        part.unlink(missing_ok=True)
        try:
            os.link(last, part)  # a second name for the same file: at no moment is there no last state
            os.replace(part, previous)
        except OSError:  # a file system without hard links
            os.replace(last, previous)
    write(last, arrays, state)


def read_last(folder: Path, warn: Callable[[str], None]) -> tuple[dict[str, np.ndarray], State] | None:
    """The state to go on from: the last one or, with a warning, the latest other one where that is damaged or missing.

    A best state is a whole one too, and the only one where a disk was full, or a process killed, between the two writes
    of the first epoch. None where there is none at all. A damaged file is renamed to `damaged.safetensors`, out of the
    way of the next save. Raises ValueError where there is no state but a damaged one.
    """
    problem = ""
    others: list[tuple[Path, tuple[dict[str, np.ndarray], State]]] = []
    for path in (folder / LAST, folder / PREVIOUS, folder / BEST):
        try:
            found = read(path)
            if not found[1]:
                raise ValueError(f"{path} holds weights but no state of a run")
        except FileNotFoundError:
            problem = problem or f"{path} is missing"
        except ValueError as error:
            problem = str(error) if not problem or "missing" in problem else problem
        else:
            if path.name == LAST:
                return found
            others.append((path, found))
    damaged = [folder / name for name in (LAST, PREVIOUS, BEST) if (folder / name).exists()]
    if others:
        path, found = max(others, key=lambda other: (other[1][1]["epoch"], other[1][1]["step"]))
        warn(f"{problem}; going on from {path}")
        if (folder / LAST).exists():
            os.replace(folder / LAST, folder / DAMAGED)
        return found
    if damaged:
        raise ValueError(f"{problem}, and there is no other state to go on from")
    return None
