"""Weights in files: the safetensors format, which holds arrays by name and cannot run code.

The names are torchvision's, so a file saved from torchvision's or timm's ResNet or ResNeXt loads as it is.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from .nn import Module


def save_weights(module: Module, path: str | os.PathLike[str]) -> None:
    """Write all parameters and buffers to a safetensors file, which appears whole or not at all."""
    write_atomically(Path(path), save(module.state_dict()))


def load_weights(module: Module, path: str | os.PathLike[str], strict: bool = True) -> tuple[list[str], list[str]]:
    """Read parameters and buffers from a safetensors file; return (missing, unexpected) names.

    Raises FileNotFoundError for a missing file, and ValueError for one that is damaged, whose shapes differ or (when
    `strict`) whose names do; the module is unchanged then. Half-precision weights are converted.
    """
    return module.load_state_dict(read_arrays(Path(path)), strict)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file by name; ValueError names the file if it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, never half of one.

    The bytes go to a neighbour in the same folder, are flushed to the disk, and the neighbour replaces the target.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
