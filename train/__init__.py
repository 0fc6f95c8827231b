"""Training: where images come from, how a batch is augmented, and the commands that train, measure and predict.

In a notebook: `from train import fit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run.fit import fit

__all__ = ["fit"]


def __getattr__(name: str) -> Any:
    """Import `fit` when it is asked for: the commands catch signals before they import anything that takes long."""
    if name != "fit":
        raise AttributeError(f"module 'train' has no attribute {name!r}")
    from .run.fit import fit

    return fit
