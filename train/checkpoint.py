"""The state of a run in one safetensors file, from which it goes on as if it had never stopped.

Weights and batch-norm statistics stand under their own names, as in a file of plain weights; what else there is has a
prefix: "velocity:" for momentum, "average:" for averaged weights. Numbers that are no arrays (epoch, step, configuration,
random generators) are JSON in the file's metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minigrad.weights import read_arrays, write_atomically

VELOCITY, AVERAGE = "velocity:", "average:"
METADATA = "minigrad"


def write(path: Path, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Write arrays and state to a file that appears whole or not at all."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomically(path, save(contiguous, metadata={METADATA: json.dumps(state)}))


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return arrays and state; the state is empty for a plain weights file. Raises ValueError for a damaged file."""
    arrays = read_arrays(path)
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(METADATA, "{}")
        return arrays, json.loads(text)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} has damaged metadata: {error}") from None


def select(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights to evaluate: the averaged ones if the run keeps an average, else the plain ones."""
    return select(arrays, AVERAGE) or {name: array for name, array in arrays.items() if ":" not in name}
