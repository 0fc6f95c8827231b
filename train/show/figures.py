"""Figures in the paper's form, from runs of `train.cifar`.

    python -m train.figures curves RUN...   error over the epochs of several runs, training and test (Figure 5)
    python -m train.figures sweep           test error as cardinality or width grow, or at equal size (Figure 7)
    python -m train.figures road            the systems that led to ResNeXt, under one budget

`sweep` and `road` train what they draw, every network with several seeds; a run that is done is not done again, and one
that was stopped goes on. Options of `train.cifar` that say how to train (--data, --epochs, --lr, ...) are passed on.
Beside each picture stands a table of the same name, in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .run.signals import end_at_once

if __name__ == "__main__":
    end_at_once("python -m train.figures")  # runs are saved by train.cifar, which catches signals itself

from matplotlib.ticker import MaxNLocator
from safetensors import safe_open

from resnext import counts, create, zoo

from . import cifar
from .options import Parser, said
from .run import checkpoint
from .run.config import Config, configure
from .run.config import parser as parser_of_runs
from .show.plots import plt

FAILED, USAGE = 1, 2  # exit codes
# Apart in colour, in grey and, with the marker, in black and white.
STYLES = (("black", "o"), ("#0b5394", "s"), ("#c55a11", "^"), ("#38761d", "D"), ("#7f7f7f", "v"), ("#b07aa1", "P"))
OWN = ("--model", "--seed", "--out", "--resume", "--evaluate", "--save-every")  # what this command decides by itself
ROAD = (
    ("HOG + linear", "hog_linear"),
    ("VGG-16", "vgg16_w14"),
    ("Inception", "inception_w16"),
    ("plain-20", "plain20_w10"),
    ("ResNet-20", "resnet20_w10"),
    ("ResNeXt-20, 2x4d", "resnext20_2x4d_w16"),
)  # all but the first take about 15 million multiply-adds an image


class Stopped(Exception):
    """A run did not get to its end; its command has said why."""

    def __init__(self, code: int):
        self.code = code


# ----------------------------------------------------------------------------------------------------------------- runs


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, one an epoch. Raises FileNotFoundError or ValueError for a folder that is no run."""
    log = run / "metrics.jsonl"
    if not log.is_file():
        raise FileNotFoundError(f"{run} is no run: it has no metrics.jsonl")
    try:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        if not all(map(checkpoint.has_numbers("epoch", "train_error", "test_error", "images_per_second"), lines)):
            raise ValueError
    except (ValueError, RecursionError):  # ValueError: no JSON, no text, a number of thousands of digits
        raise ValueError(f"{log} is no log of a run: an epoch's line is damaged") from None
    if not lines:
        raise ValueError(f"{run} has not finished an epoch yet")
    return lines


def train(models: Sequence[str], seeds: int, folder: Path, options: Sequence[str]) -> dict[str, list[Path]]:
    """Train every network with every seed, unless that is done; return the folders of each network's runs.

    Raises Stopped where a run does not end well, and ValueError for options that do not work.
    """
    cells = [(model, seed) for seed in range(seeds) for model in dict.fromkeys(models)]
    runs: dict[str, list[Path]] = {model: [] for model in models}
    for i, (model, seed) in enumerate(cells, start=1):
        out = folder / f"{model}-seed{seed}"
        command = [*options, "--model", model, "--seed", str(seed), "--out", str(out), "--resume"]
        config = configure(parser_of_runs().parse_args(command))
        title = f"[{i}/{len(cells)}] {model}, seed {seed}"
        if is_done(out, config):
            print(f"{title}: done")
        else:
            print(title, flush=True)
            code = cifar.main(command)
            if code:
                raise Stopped(code)
            if not is_done(out, config):  # --resume keeps the options of a run that was begun with others
                raise ValueError(f"{out} holds a run with other options: choose another folder with --runs")
        runs[model].append(out)
    return runs


def is_done(out: Path, config: Config) -> bool:
    """Whether a folder holds a run of just this configuration with all its epochs."""
    try:
        same = json.loads((out / "config.json").read_text()) == json.loads(json.dumps(asdict(config)))
        return same and len(read_metrics(out)) == config.recipe.epochs
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Result:
    """A network's size, and its errors in per cent over several seeds: mean and standard error (nan for one seed)."""

    model: str
    parameters: int
    multiply_adds: int
    seeds: int
    train_error: tuple[float, float]  # in the last epoch, on augmented images, while the weights still moved
    test_error: tuple[float, float]  # after the last epoch
    best_error: tuple[float, float]  # after each run's best epoch, which is chosen on the test images
    images_per_second: float  # in training


def summarise(model: str, runs: Sequence[Path]) -> Result:
    """Put a network's runs together."""
    with safe_open(runs[0] / "last.safetensors", "numpy") as weights:
        classes = weights.get_slice("fc.weight").get_shape()[0]
    with counts.outlines():
        network = create(model, num_classes=classes)
    logs = [read_metrics(run) for run in runs]
    return Result(
        model,
        counts.parameters(network),
        counts.multiply_adds(network),
        len(logs),
        mean_and_error([log[-1]["train_error"] for log in logs]),
        mean_and_error([log[-1]["test_error"] for log in logs]),
        mean_and_error([min(line["test_error"] for line in log) for log in logs]),
        statistics.median(line["images_per_second"] for log in logs for line in log),
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error s / √n, with s² = Σ (v - mean)² / (n - 1); nan for a single value."""
    n = len(values)
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan


# --------------------------------------------------------------------------------------------------------------- tables


def in_words(value: tuple[float, float]) -> str:
    """A mean with its standard error: 12.34 ± 0.56, or 12.34 for a single seed."""
    mean, error = value
    return f"{mean:.2f}" if math.isnan(error) else f"{mean:.2f} ± {error:.2f}"


def write_table(path: Path, title: str, command: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a Markdown table, numbers flush right, under its title and the command that makes it again."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows)]
    path.write_text(f"# {title}\n\n```\n{command}\n```\n\n" + "\n".join(lines) + "\n")


def write_results(path: Path, title: str, command: str, results: Sequence[tuple[str, Result]]) -> None:
    """Write the table of trained networks."""
    header = (
        "network",
        "parameters",
        "multiply-adds",
        "seeds",
        "train error %",
        "test error %",
        "best epoch %",
        "images/s",
    )
    rows = []
    for label, r in results:
        size = (f"{r.parameters:,}", f"{r.multiply_adds / 1e6:.1f} M", f"{r.seeds}")
        errors = (in_words(r.train_error), in_words(r.test_error), in_words(r.best_error))
        name = f"`{r.model}`" if label == r.model else f"{label} (`{r.model}`)"
        rows.append((name, *size, *errors, f"{r.images_per_second:.0f}"))
    write_table(path, title, command, header, rows)
    with path.open("a") as file:
        file.write(
            "\nErrors are means over the seeds ± their standard error; train and test error after the last epoch. "
            "The best epoch is\nchosen on the test images, so its error flatters.\n"
        )


# ------------------------------------------------------------------------------------------------------------- pictures


def new_axes(width: float, height: float) -> tuple[Any, Any]:
    """An empty picture without the frame's upper and right side."""
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write the picture, sharp enough for print, and say where it is."""
    figure.savefig(path, dpi=200)
    plt.close(figure)
    print(f"{path}\n{path.with_suffix('.md')}")


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart until neighbours are `gap` from each other, as little as that takes."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[list[int]] = []  # labels that touch move as one, around the mean of their positions
    for i in order:
        groups.append([i])
        while len(groups) > 1 and top(groups[-2], positions, gap) + gap > bottom(groups[-1], positions, gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [0.0] * len(positions)
    for group in groups:
        for step, i in enumerate(group):
            moved[i] = bottom(group, positions, gap) + step * gap
    return moved


def bottom(group: Sequence[int], positions: Sequence[float], gap: float) -> float:
    """Where the lowest label of a group goes."""
    return statistics.mean(positions[i] for i in group) - gap * (len(group) - 1) / 2


def top(group: Sequence[int], positions: Sequence[float], gap: float) -> float:
    """Where the highest label of a group goes."""
    return bottom(group, positions, gap) + gap * (len(group) - 1)


def draw_curves(logs: Sequence[tuple[str, Sequence[dict]]], path: Path, title: str) -> None:
    """Figure 5's form: for each run training error dashed and test error solid, its name and errors at the end."""
    figure, axes = new_axes(8, 5)
    last = max(line["epoch"] for _, log in logs for line in log)
    highest = 0.0
    for (_, log), (colour, marker) in zip(logs, STYLES, strict=False):
        epochs = [line["epoch"] for line in log]
        every = max(1, len(epochs) // 12)
        for part, line, width in (("train_error", (0, (4, 2)), 1.0), ("test_error", "-", 1.8)):
            errors = [entry[part] for entry in log]
            highest = max(highest, *errors)
            face = colour if part == "test_error" else "white"
            axes.plot(
                epochs, errors, color=colour, linestyle=line, linewidth=width, marker=marker, markersize=4,
                markevery=every, markerfacecolor=face, clip_on=False,
            )  # fmt: skip
    ends = spread([log[-1]["test_error"] for _, log in logs], 0.1 * highest)
    lift = max(0.0, 0.05 * highest - min(ends))  # no label below the axis
    for (name, log), y, (colour, _) in zip(logs, ends, STYLES, strict=False):
        final = log[-1]
        text = f"{name}\ntest {final['test_error']:.2f} %, train {final['train_error']:.2f} %"
        axes.text(1.04 * last, y + lift, text, color=colour, va="center", fontsize=9)
        axes.plot(
            (final["epoch"], 1.03 * last), (final["test_error"], y + lift), color=colour, linewidth=0.6, clip_on=False
        )
    axes.plot([], [], color="black", linewidth=1.8, label="test")
    axes.plot([], [], color="black", linewidth=1.0, linestyle=(0, (4, 2)), label="training (augmented images)")
    axes.legend(frameon=False, loc="upper right")
    axes.set(xlabel="epoch", ylabel="error (%)", title=title, xlim=(0, last), ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="0.9")
    save(figure, path)


def draw_sweep(series: dict[str, list[tuple[str, float, Result]]], path: Path, title: str, xlabel: str) -> None:
    """Figure 7's form: curves of (label, x, result), test error with its standard error, every point labelled."""
    figure, axes = new_axes(7, 5)
    labelled: set[str] = set()
    for k, ((name, points), (colour, marker)) in enumerate(zip(series.items(), STYLES, strict=False)):
        xs = [x for _, x, _ in points]
        means = [r.test_error[0] for _, _, r in points]
        errors = [r.test_error[1] for _, _, r in points]
        bars = None if any(map(math.isnan, errors)) else errors
        axes.errorbar(
            xs, means, bars, color=colour, marker=marker, markersize=6, capsize=3, linewidth=1.5,
            linestyle=("-", (0, (5, 2)))[k % 2],
        )  # fmt: skip
        for (label, _, _), x, y, error in zip(points, xs, means, bars or [0.0] * len(points), strict=True):
            if label in labelled:
                continue  # where the curves begin, they share a point
            labelled.add(label)
            side = 1 if k else -1  # labels of the first curve below it, of the second above
            axes.annotate(
                label, (x, y + side * error), (0, side * 6), textcoords="offset points", ha="center",
                va="bottom" if k else "top", fontsize=9, color=colour,
            )  # fmt: skip
        if len(series) > 1:
            axes.annotate(
                f"  {name}", (xs[-1], means[-1]), (8, 0), textcoords="offset points", color=colour, va="center",
                annotation_clip=False, fontweight="bold",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = sorted({x for points in series.values() for _, x, _ in points})
    ticks = [x for i, x in enumerate(ticks) if i == 0 or x > 1.15 * ticks[i - 1]]
    axes.set_xticks(ticks, [f"{x:.3g}" for x in ticks])
    axes.margins(x=0.1, y=0.2)
    axes.set(xlabel=xlabel, ylabel="test error (%)", title=title)
    axes.grid(axis="y", color="0.9")
    save(figure, path)


def draw_road(results: Sequence[tuple[str, Result]], path: Path, title: str) -> None:
    """One row a system, the oldest on top: test error with its standard error, and what the system costs."""
    figure, axes = new_axes(8, 0.55 * len(results) + 1.6)
    ends = []
    for row, (_, r) in enumerate(results):
        mean, error = r.test_error
        axes.barh(row, mean, height=0.55, color="0.82" if row < len(results) - 1 else "#0b5394")
        axes.errorbar(mean, row, xerr=None if math.isnan(error) else error, color="black", capsize=3, linewidth=1)
        right = mean + (0 if math.isnan(error) else error)
        ends.append(right)
        millions = r.multiply_adds / 1e6
        cost = f"{r.parameters:,} parameters, {millions:.{0 if millions >= 10 else 2}f} M multiply-adds"
        for text, below, size, grey in ((f"{in_words(r.test_error)} %", -0.12, 9, "0"), (cost, 0.2, 7, "0.35")):
            axes.annotate(
                text, (right, row + below), (6, 0), textcoords="offset points", va="center", fontsize=size, color=grey
            )
    axes.set_yticks(range(len(results)), [label for label, _ in results])
    axes.invert_yaxis()
    axes.set(xlabel="test error (%)", title=title, xlim=(0, 1.5 * max(ends)))
    axes.tick_params(axis="y", length=0)
    save(figure, path)


# ------------------------------------------------------------------------------------------------------------- commands


def curves(args: argparse.Namespace, command: str, options: Sequence[str]) -> None:
    """Overlay the curves of finished or running runs."""
    if len(args.run) > len(STYLES):
        raise ValueError(f"at most {len(STYLES)} runs can be told apart in one picture, got {len(args.run)}")
    logs, names = [], args.names or [run.name for run in args.run]
    if len(names) != len(args.run):
        raise ValueError(f"--names needs a name for each of the {len(args.run)} runs, got {len(names)}")
    logs = [(name, read_metrics(run)) for name, run in zip(names, args.run, strict=True)]
    draw_curves(logs, args.out, args.title or "Error over the epochs")
    header = ("run", "epochs", "train error %", "test error %", "best epoch %")
    rows = []
    for name, log in logs:
        best = min(log, key=lambda line: line["test_error"])
        errors = (f"{log[-1]['train_error']:.2f}", f"{log[-1]['test_error']:.2f}")
        rows.append((name, f"{log[-1]['epoch']}", *errors, f"{best['test_error']:.2f} (epoch {best['epoch']})"))
    write_table(args.out.with_suffix(".md"), args.title or "Error over the epochs", command, header, rows)


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
    runs = train(models, args.seeds, args.runs, options)
    results = {model: summarise(model, runs[model]) for model in models}
    large = max(r.parameters for r in results.values()) >= 1e6
    unit, word = (1e6, "millions") if large else (1e3, "thousands")
    series = {
        name: [
            (label, c if args.size == "equal" else results[m].parameters / unit, results[m]) for label, m, c in points
        ]
        for name, points in named.items()
    }
    xlabel = "cardinality, at equal size" if args.size == "equal" else f"parameters ({word})"
    title = args.title or f"ResNeXt-{args.depth}, {args.seeds} seed{'s' * (args.seeds > 1)}, standard errors"
    draw_sweep(series, args.out, title, xlabel)
    write_results(args.out.with_suffix(".md"), title, command, [(m, results[m]) for m in models])


def road(args: argparse.Namespace, command: str, options: Sequence[str]) -> None:
    """Train the systems that led to ResNeXt and draw their test errors."""
    systems = [(name, name) for name in args.models] if args.models else ROAD
    runs = train([model for _, model in systems], args.seeds, args.runs, options)
    results = [(label, summarise(model, runs[model])) for label, model in systems]
    title = args.title or f"The road to ResNeXt, {args.seeds} seed{'s' * (args.seeds > 1)}"
    draw_road(results, args.out, title)
    write_results(args.out.with_suffix(".md"), title, command, results)


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
        q.add_argument("--title", help="written above the picture")
        return q

    q = add("curves", curves, "training and test error of runs over the epochs (Figure 5)")
    q.add_argument("run", nargs="+", type=Path, metavar="RUN", help="folders that train.cifar wrote (its --out)")
    q.add_argument("--names", nargs="+", metavar="NAME", help="how the runs are called (default: their folders' names)")

    passed = "All other options go to train.cifar: --data, --epochs, --recipe, --lr, --limit-train, --device, ..."
    for q in (
        add("sweep", sweep, "test error of a grid of cardinalities and widths (Figure 7)", passed),
        add("road", road, "test error of the systems that led to ResNeXt", passed),
    ):
        q.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each network (default: 3)")
        name = "sweep" if q.prog.endswith("sweep") else "road"
        q.add_argument("--runs", type=Path, default=Path(f"runs/{name}"), metavar="DIR", help="where the runs are kept")
        if name == "road":
            q.add_argument(
                "--models",
                nargs="+",
                metavar="NAME",
                help="networks to compare (default: six, of 15 million multiply-adds)",
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
    try:
        if getattr(args, "seeds", 1) < 1:
            raise ValueError(f"--seeds must be at least 1, got {args.seeds}")
        if args.out.suffix != ".png":
            raise ValueError(f"--figure names a .png file, got {args.out}")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.run_command(args, f"python -m train.figures {shlex.join(arguments)}", options)
    except Stopped as stop:
        return stop.code
    except (ValueError, FileNotFoundError) as error:
        print(f"python -m train.figures: {said(error)}", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"python -m train.figures: {said(error)}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
