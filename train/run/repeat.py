"""The command line that repeats a run."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from .recipes import RECIPES, Recipe


def command(config: dict[str, Any], out: Path) -> str:
    """The command line that trains a run of this configuration again, into another folder than `out`.

    It leaves nothing open that `adapted` would choose for a small training set: epochs, batch size and learning rate.
    """
    own = Recipe(**config["recipe"])

    def changes(recipe: Recipe) -> list[str]:
        options = []
        for f in fields(Recipe):
            value, flag = getattr(own, f.name), f.name.replace("_", "-")
            if f.name in ("epochs", "lr") or value == getattr(recipe, f.name):  # these two are always told
                continue
            if isinstance(value, bool):
                options.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                options.append(f"--{flag} {shlex.quote(str(value))}")
        return options

    name, options = min(((name, changes(recipe)) for name, recipe in RECIPES.items()), key=lambda pair: len(pair[1]))
    parts = ["python -m train.cifar"]
    for option, value in config.items():
        if option != "recipe" and value is not None and (option, value) != ("freeze", "none"):
            parts.append(f"--{option.replace('_', '-')} {shlex.quote(str(value))}")
    parts += [
        f"--recipe {name}",
        f"--epochs {own.epochs}",
        f"--lr {own.lr}",
        *options,
        f"--out {shlex.quote(f'{out}-again')}",
    ]
    return " ".join(parts)
