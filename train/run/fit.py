"""Training as a function, for notebooks and scripts."""

from __future__ import annotations

from argparse import Action
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..options import UsageError
from .config import parser
from .loop import Run
from .parallel import ALONE
from .signals import Interrupted, Signals
from .training import train_command


def fit(**options: Any) -> Run:
    """Train as `python -m train.cifar` does, with its options as keywords; return the run.

        run = fit(model="resnext11_4x4d_w16", data="shapes", epochs=2, out="runs/first")
        run.history[-1]["test_error"], run.model, run.out

    `--batch-size 32` is `batch_size=32`, `--resume` is `resume=True`, `--no-nesterov` is `nesterov=False`; None leaves
    an option out. `run.model` is the network whose test error comes last, with averaged weights where the recipe keeps
    an average. Everything that the command leaves in its folder is left in `out` (default: runs/last). In a notebook
    the bar is the notebook's own, and the run shows its curves. Raises ValueError for options that do not work or data
    that cannot be read, TrainingError for a run that cannot go on, and KeyboardInterrupt after an interrupt, when the
    state is saved and `resume=True` goes on from it.
    """
    p = parser()

    def refuse(status: int = 0, message: str | None = None) -> NoReturn:
        sentence = (message or "").strip()
        raise UsageError(sentence.replace(f"{p.prog}: ", "", 1) or "fit takes the options of train.cifar")

    p.exit = refuse  # type: ignore[method-assign]
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is False:
            words += switched_off(flag, p._option_string_actions)
        elif value is not None:
            for each in value if isinstance(value, list | tuple) else [value]:
                words.append(f"{flag}={each}")
    args = p.parse_args(words)
    if args.evaluate:
        raise UsageError("fit trains: evaluate a file with python -m train.cifar --evaluate FILE")
    signals = Signals()
    try:
        with signals.caught():
            run = train_command(args, ALONE, signals)
    except Interrupted as stop:
        raise KeyboardInterrupt(str(stop)) from None
    run.out = Path(args.out)
    for tensor_name, t in run.model.named_tensors():
        t.data = run.averaged.get(tensor_name, t.data)
    run.model.eval()
    return run


def switched_off(flag: str, known: Mapping[str, Action]) -> list[str]:
    """The words for `option=False`. Raises UsageError where the option is no switch."""
    off = f"--no-{flag[2:]}"
    if off in known:
        return [off]
    if flag not in known or known[flag].nargs != 0:
        name = flag[2:].replace("-", "_")
        raise UsageError(f"{name}=False: " + ("this option takes a value" if flag in known else "no such option"))
    return []
