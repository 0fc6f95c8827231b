"""The images of a configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data import Dataset, load
from ..options import UsageError
from .config import Config


def load_data(
    args: argparse.Namespace, config: Config, tested: bool = False, progress: bool = True
) -> tuple[Dataset, Dataset]:
    """Load the images of a configuration; with `tested` only the test set counts, see `load`."""
    path = Path(config.data)
    if config.data not in ("cifar10", "cifar100", "shapes") and not (path.is_file() or path.is_dir()):
        raise UsageError(
            f"--data {config.data} is not cifar10, cifar100 or shapes, and there is no such folder or file"
        )
    return load(
        config.data,
        args.data_root,
        seed=config.seed,
        mirror=args.data_mirror,
        limit_train=config.limit_train,
        limit_test=config.limit_test,
        image_size=config.image_size,
        validate=config.validate,
        progress=progress,
        tested=tested,
    )
