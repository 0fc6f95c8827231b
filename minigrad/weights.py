"""Weights in files: the safetensors format, which holds arrays by name and cannot run code.

The names are torchvision's, so a file saved from torchvision's or timm's ResNet or ResNeXt loads as it is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from .nn import Module
from .ops.arguments import check_kind

# The names that safetensors has for little-endian types, and NumPy's.
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip


def save_weights(module: Module, path: str | os.PathLike[str]) -> None:
    """Write all parameters and buffers to a safetensors file, which appears whole or not at all."""
    check_kind(module, Module, "save_weights writes the weights of a module")
    write_atomically(Path(path), save(module.state_dict()))


def load_weights(module: Module, path: str | os.PathLike[str], strict: bool = True) -> tuple[list[str], list[str]]:
    """Read parameters and buffers from a safetensors file; return (missing, unexpected) names.

    A state that a run of train.cifar saved will do too. Raises FileNotFoundError for a missing file, and ValueError for
    one that is damaged, whose shapes differ or (when `strict`) whose names do; the module is unchanged then.
    Half-precision weights are converted.
    """
    check_kind(module, Module, "load_weights reads the weights of a module")
    return module.load_state_dict(to_evaluate(read_arrays(Path(path))), strict)


def to_evaluate(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights in a run's state, without its momentum: the averaged ones where it keeps an average.

    The prefixes are those of train/run/checkpoint.py. Of plain weights these are all.
    """
    averaged = {n.removeprefix("average:"): a for n, a in arrays.items() if n.startswith("average:")}
    return averaged or {n: a for n, a in arrays.items() if not n.startswith("velocity:")}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file by name, bfloat16 as float32; ValueError names the file if it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}" + (": it is a folder" if path.is_dir() else ""))
    content = path.read_bytes()
    try:
        entries = dict(deserialize(content))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from None
    arrays: dict[str, np.ndarray] = {}
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    # As pairs, because a dict would hide a name given twice.
    for name in (name for name, _ in json.loads(header, object_pairs_hook=list) if name != "__metadata__"):
        if name in arrays:
            raise ValueError(f"{path} has two arrays of the name {name}")
        dtype, shape, data = (entries[name][key] for key in ("dtype", "shape", "data"))
        if dtype not in DTYPES:
            raise ValueError(f"{path}: {name} is of type {dtype}, which cannot be read")
        try:
            array = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
        except ValueError as error:  # an empty array can have a shape that NumPy has no room for
            raise ValueError(f"{path}: {name} is of shape {shape}, which cannot be read: {error}") from None
        # A bfloat16 is the upper half of a float32.
        arrays[name] = (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array
    return arrays


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, never half of one.

    The bytes go to a neighbour in the same folder, are flushed to the disk, and the neighbour replaces the target. What
    is no regular file, such as a pipe, is written to as it is: a file in the place of /dev/null would spoil a system.
    """
    if (path.exists() and not path.is_file()) or path.absolute().parent == Path("/dev"):
        path.write_bytes(content)
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":  # makes the new name durable; Windows opens no folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
