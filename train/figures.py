"""Figures in the paper's form, from runs of `train.cifar`.

    python -m train.figures curves RUN...   error over the epochs of several runs, training and test (Figure 5)
    python -m train.figures sweep           test error as cardinality or width grow, or at equal size (Figure 7)
    python -m train.figures road            the systems that led to ResNeXt, under one budget

`sweep` and `road` train what they draw, every network with several seeds; a run that is done is not done again, and one
that was stopped goes on. `--jobs 2` trains two at a time. Options of `train.cifar` that say how to train (--data,
--epochs, --lr, ...) are passed on. Beside each picture stands a table of the same name, in Markdown.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .run.signals import end_at_once

if __name__ == "__main__":
    end_at_once("python -m train.figures")  # runs are saved by train.cifar, which catches signals itself

from tqdm import tqdm

from minigrad.diagnosis import shown
from resnext import zoo

from . import cifar
from .options import DONE, FAILED, USAGE, Parser, prepare_process, printable, refuse
from .run.jobs import train_side_by_side
from .run.series import Cell, Result, Stopped, System, mean_and_error, plan, read_metrics, summarise, train_in_turn
from .show.figures import STYLES, draw_curves, draw_road, draw_sweep
from .show.tables import check_table, in_words, write_results, write_table

Results = list[tuple[str, Result]]
OWN = ("--model", "--seed", "--out", "--resume", "--evaluate", "--save-every")  # what this command decides by itself
MOST = {"seeds": 1000, "jobs": 1000, **dict.fromkeys(("depth", "cardinality", "width", "wider", "stem"), 65_536)}
# All but the first take 15.3 to 16.5 million multiply-adds an image, within 4 % of their middle. VGG and the plain
# network have no shortcuts for the gradient: they begin more slowly, at half the learning rate. The last two have the
# same blocks (bottlenecks), with one path and with four.
CAREFUL = ("--lr", "0.05", "--warmup", "0.2")
ROAD = (
    System("HOG + linear", "hog_linear"),
    System("VGG-16", "vgg16_w14", CAREFUL),
    System("Inception", "inception_w16"),
    System("plain-20", "plain20_w10", CAREFUL),
    System("ResNet-20", "resnet20_w10"),
    System("ResNet-20, bottlenecks", "resnext20_1x13d_w8"),
    System("ResNeXt-20, 4x5d", "resnext20_4x5d_w8"),
)


def curves(args: argparse.Namespace, command: str, options: Sequence[str]) -> None:
    """Overlay the curves of finished or running runs: one curve for all that share a name."""
    names = args.names or [printable(re.sub(r"-seed\d+$", "", run.resolve().name)) for run in args.run]
    if len(names) != len(args.run):
        raise ValueError(f"--names needs a name for each of the {len(args.run)} runs, got {len(names)}")
    if len({(name, run.resolve()) for name, run in zip(names, args.run, strict=True)}) < len(names):
        raise ValueError("the same run is given twice")
    series: dict[str, list[list[dict[str, Any]]]] = {}
    for name, run in zip(names, args.run, strict=True):
        series.setdefault(name, []).append(read_metrics(run))
    if len(series) > len(STYLES):
        raise ValueError(f"at most {len(STYLES)} curves can be told apart in one picture, got {len(series)}")
    for name in series if args.names is None else ():
        configs = [settings(run) for run, its in zip(args.run, names, strict=True) if its == name]
        if any(config != configs[0] for config in configs):
            raise ValueError(f"the runs called {name} differ in more than the seed: name them apart with --names")
    title = args.title or "Error over the epochs"
    draw_curves(list(series.items()), args.out, title)
    header = ("run", "seeds", "epochs", "train error %", "test error %", "best epoch %")
    rows = []
    for name, logs in series.items():
        epochs = min(map(len, logs))
        logs = [log[:epochs] for log in logs]
        errors = [in_words(mean_and_error([log[-1][part] for log in logs])) for part in ("train_error", "test_error")]
        best = [min(log, key=lambda line: line["test_error"]) for log in logs]
        when = ", ".join(f"{line['epoch']}" for line in best)
        flatters = in_words(mean_and_error([line["test_error"] for line in best]))
        rows.append((name, f"{len(logs)}", f"{epochs}", *errors, f"{flatters} (epoch {when})"))
    write_table(args.out.with_suffix(".md"), title, command, header, rows)


def settings(run: Path) -> dict[str, Any] | None:
    """All of a run's configuration but its seed; None where it is not there or damaged."""
    with suppress(OSError, ValueError):
        return {**json.loads((run / "config.json").read_text()), "seed": None}
    return None


def trained(
    args: argparse.Namespace, systems: Sequence[System], title: str, command: str, options: Sequence[str]
) -> Results:
    """Train what is missing of the systems; write the table anew after every run, and return its rows."""
    cells = plan(systems, args.seeds, args.runs, options)

    def so_far(ended: Cell | None = None) -> Results:
        done = [cell for cell in cells if cell.is_done()]
        runs = {s.model: [cell.out for cell in done if cell.model == s.model] for s in systems}
        results = [(s.label, summarise(s.model, runs[s.model])) for s in systems if runs[s.model]]
        if results:
            rest = f", {len(done)} of {len(cells)} runs" if len(done) < len(cells) else ""
            write_results(args.out.with_suffix(".md"), title + rest, command, results)
        if ended:
            error = read_metrics(ended.out)[-1]["test_error"]
            tqdm.write(
                f"{f'{len(done)}/{len(cells)}':>7}  {ended.model:32} seed {ended.seed}  test error {error:6.2f} %"
            )
        return results

    if args.jobs > 1:
        train_side_by_side(cells, args.jobs, so_far)
    else:
        train_in_turn(cells, cifar.main, so_far)
    return so_far()


def sweep(args: argparse.Namespace, command: str, options: Sequence[str]) -> None:
    """Train a grid of cardinalities and widths and draw test error against size, or against cardinality."""
    C, d = args.cardinality, args.width
    if args.size == "equal":
        pairs = {"equal size": [(c, zoo.equal_width(c, d, 4 * args.stem)) for c in C]}
    else:
        pairs = {"more paths": [(c, d) for c in C], "wider paths": [(1, w) for w in (d, *args.wider)]}
    suffix = "" if args.stem == 64 else f"_w{args.stem}"
    named = {
        name: [(f"{c}x{w}d", f"resnext{args.depth}_{c}x{w}d{suffix}", c) for c, w in points]
        for name, points in pairs.items()
    }
    models = list(dict.fromkeys(model for points in named.values() for _, model, _ in points))
    bars = f"{args.seeds} seeds, standard errors" if args.seeds > 1 else "1 seed"
    title = args.title or f"ResNeXt-{args.depth}, {bars}"
    results = dict(trained(args, [System(model, model) for model in models], title, command, options))
    large = max(r.parameters for r in results.values()) >= 1e6
    unit, word = (1e6, "millions") if large else (1e3, "thousands")
    series = {
        name: [
            (label, c if args.size == "equal" else results[m].parameters / unit, results[m]) for label, m, c in points
        ]
        for name, points in named.items()
    }
    xlabel = "cardinality, at equal size" if args.size == "equal" else f"parameters ({word})"
    draw_sweep(series, args.out, title, xlabel)


def road(args: argparse.Namespace, command: str, options: Sequence[str]) -> None:
    """Train the systems that led to ResNeXt and draw their test errors."""
    systems = [System(name, name) for name in args.models] if args.models else ROAD
    for system in systems:
        zoo.create(system.model)  # raises, where there is none of this name, before others are trained
    title = args.title or f"The road to ResNeXt, {args.seeds} seed{'s' * (args.seeds > 1)}"
    draw_road(trained(args, systems, title, command, options), args.out, title)


def parser() -> argparse.ArgumentParser:
    """The options of `python -m train.figures`."""
    p = Parser(prog="python -m train.figures", description="Draw figures in the paper's form from training runs.")
    commands = p.add_subparsers(dest="command", required=True)

    def add(name: str, run: Any, help: str, epilog: str | None = None) -> argparse.ArgumentParser:
        q = commands.add_parser(name, help=help, description=help, epilog=epilog, allow_abbrev=False)
        q.set_defaults(run_command=run)
        q.add_argument(
            "--figure", dest="out", type=Path, default=Path(f"runs/{name}.png"), metavar="FILE",
            help=f"the picture; the table goes beside it (default: runs/{name}.png)",
        )  # fmt: skip
        q.add_argument("--title", type=printable, help="written above the picture")
        return q

    q = add("curves", curves, "training and test error of runs over the epochs (Figure 5)")
    q.add_argument("run", nargs="+", type=Path, metavar="RUN", help="folders that train.cifar wrote (its --out)")
    q.add_argument(
        "--names",
        type=printable,
        nargs="+",
        metavar="NAME",
        help="what the runs are called (default: their folders)",
    )

    passed = "All other options go to train.cifar: --data, --epochs, --recipe, --lr, --limit-train, --device, ..."
    for q in (
        add("sweep", sweep, "test error of a grid of cardinalities and widths (Figure 7)", passed),
        add("road", road, "test error of the systems that led to ResNeXt", passed),
    ):
        q.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each network (default: 3)")
        name = "sweep" if q.prog.endswith("sweep") else "road"
        q.add_argument(
            "--jobs", type=int, default=1, metavar="N",
            help="runs side by side, with one thread each (default: 1, with all threads)",
        )  # fmt: skip
        q.add_argument("--runs", type=Path, default=Path(f"runs/{name}"), metavar="DIR", help="where the runs are kept")
        if name == "road":
            q.add_argument(
                "--models",
                nargs="+",
                metavar="NAME",
                help="networks to compare (default: HOG, and six of about 16 million multiply-adds)",
            )
            continue
        q.add_argument(
            "--size",
            choices=("growing", "equal"),
            default="growing",
            help="let the network grow, or trade width for cardinality (default: growing)",
        )
        q.add_argument("--depth", type=int, default=11, help="layers, 9n + 2 (default: 11)")
        q.add_argument(
            "--cardinality", type=int, nargs="+", default=[1, 2, 4, 8], metavar="C", help="paths (default: 1 2 4 8)"
        )
        q.add_argument("--width", type=int, default=4, metavar="D", help="width of a path (default: 4)")
        q.add_argument(
            "--wider",
            type=int,
            nargs="*",
            default=[8, 12, 16],
            metavar="D",
            help="widths of a single path, in the second curve (default: 8 12 16)",
        )
        q.add_argument(
            "--stem",
            type=int,
            default=16,
            metavar="N",
            help="channels after the first convolution (default: 16; the paper's networks have 64)",
        )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    p = parser()
    args, options = p.parse_known_args(arguments)
    own = [option for option in options if option.split("=")[0] in OWN]
    if own or (options and args.command == "curves"):
        p.error(f"{args.command} does not take {' '.join(own or options)}")
    prepare_process()
    try:
        for name, most in MOST.items():
            given = getattr(args, name, 1)
            for value in given if isinstance(given, list) else [given]:
                if not 1 <= value <= most:
                    raise ValueError(f"--{name} must be from 1 to {most:,}, got {shown(value)}")
        if args.out.suffix != ".png":
            raise ValueError(f"--figure names a .png file, got {args.out}")
        check_table(args.out.with_suffix(".md"))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.run_command(args, f"python -m train.figures {shlex.join(arguments)}", options)
    except Stopped as stop:
        return stop.code
    except (ValueError, OSError, MemoryError) as error:
        return refuse(error, p.prog, USAGE if isinstance(error, ValueError | FileNotFoundError) else FAILED)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
