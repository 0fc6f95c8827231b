"""The command line that repeats a run."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from .recipes import RECIPES, Recipe


def command(config: dict[str, Any], out: Path) -> str:
    """The command line that trains a run of this configuration again, into another folder than `out`."""
    own = Recipe(**config["recipe"])

    def changes(recipe: Recipe) -> list[str]:
        options = []
        for f in fields(Recipe):
            value, flag = getattr(own, f.name), f.name.replace("_", "-")
            if f.name == "epochs" or value == getattr(recipe, f.name):
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
    parts += [f"--recipe {name}", f"--epochs {own.epochs}", *options, f"--out {shlex.quote(f'{out}-again')}"]
    return " ".join(parts)
