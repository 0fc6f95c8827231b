"""A run's report: `python -m train.report RUN` writes RUN/report.html, one page that needs no network.

Curves, confusion matrix, the most confident mistakes as images, the first layer's filters, where the time goes,
configuration, versions, commit, and the command that repeats the run. What the page says of the network is measured
when it is written, with the weights after the last epoch.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from unittest import mock

from .run.signals import end_at_once

if __name__ == "__main__":
    end_at_once("python -m train.report")  # the page is written whole or not at all

import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from minigrad import Function, Module, Tensor, no_grad, tensor
from minigrad import functional as F
from minigrad.backend import synchronize, to_device, to_numpy
from minigrad.weights import write_atomically

from .data import Dataset, augment, load
from .options import Parser, said
from .predict import Predictor, load_predictor
from .run import checkpoint
from .run.recipes import RECIPES, Recipe

FAILED, USAGE = 1, 2  # exit codes
MISTAKES = 24  # images shown
CLASSES = 20  # the most classes whose confusion matrix is drawn
TIMED_IMAGES, TIMED_STEPS = 32, 3
REST = "the rest"  # the loss, and what the network does outside of its layers

State = dict[str, Any]


# ------------------------------------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Predictions:
    """What the network says of every test image."""

    probabilities: np.ndarray  # (N, K)
    labels: np.ndarray  # (N,)

    @property
    def said(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)

    def confusion(self) -> np.ndarray:
        """How often class i was taken for class j: (K, K)."""
        K = self.probabilities.shape[1]
        return np.bincount(self.labels * K + self.said, minlength=K * K).reshape(K, K)

    def mistakes(self) -> np.ndarray:
        """The indices of the misclassified images, the most confident first."""
        wrong = np.flatnonzero(self.said != self.labels)
        confidence = self.probabilities[wrong, self.said[wrong]]
        return wrong[np.argsort(-confidence, kind="stable")]


def predict(predictor: Predictor, dataset: Dataset, device: str) -> Predictions:
    """Classify a data set in evaluation mode."""
    parts = []
    with no_grad():
        for begin in range(0, len(dataset), 256):
            images = to_device(dataset.images[begin : begin + 256], device)
            logits = predictor.model(Tensor._of(augment.normalise(images, predictor.mean, predictor.std)))
            parts.append(F.softmax(logits).numpy())
    return Predictions(np.concatenate(parts), dataset.labels)


Times = dict[str, list[float]]  # by name: seconds forward, seconds backward


@contextmanager
def timed(model: Module, device: str) -> Iterator[tuple[Times, Times]]:
    """Measure every operation inside the block; yield the sums by module ("layer1.0") and by kind of operation."""
    by_module: Times = {}
    by_kind: Times = {}
    paths = {id(model): REST}

    def name_children(module: Module, prefix: str) -> None:
        for name, child in module.children():
            paths[id(child)] = prefix + name
            name_children(child, f"{prefix}{name}.")

    name_children(model, "")
    inside = [REST]
    book = {fast: operation for (operation, _), fast in tensor.faster.items()}
    call, apply, gradients = Module.__call__, Function.apply.__func__, Function.gradients  # type: ignore[attr-defined]

    def timed_call(module: Module, *inputs: Any, **options: Any) -> Any:
        inside.append(paths.get(id(module), inside[-1]))
        try:
            return call(module, *inputs, **options)
        finally:
            inside.pop()

    def timed_apply(cls: type[Function], *tensors: Tensor | None, **options: Any) -> Tensor:
        begin = time.perf_counter()
        y = apply(cls, *tensors, **options)
        synchronize(device)
        seconds = time.perf_counter() - begin
        kind = book.get(cls, cls).__name__
        if kind == "Conv2d" and tensors[1] is not None:
            KH, KW = tensors[1].shape[2:]
            kind = f"convolution {KH}x{KW}" + (f", {options['groups']} groups" if options["groups"] > 1 else "")
        if y.node is not None:
            y.node.counted_as = (inside[-1], kind)
        for times, name in ((by_module, inside[-1]), (by_kind, kind)):
            times.setdefault(name, [0.0, 0.0])[0] += seconds
        return y

    def timed_gradients(node: Function, dy: Any) -> Any:
        module, kind = node.counted_as  # type: ignore[attr-defined]
        begin = time.perf_counter()
        dxs = gradients(node, dy)
        synchronize(device)
        seconds = time.perf_counter() - begin
        by_module[module][1] += seconds
        by_kind[kind][1] += seconds
        return dxs

    with (
        mock.patch.object(Module, "__call__", timed_call),
        mock.patch.object(Function, "apply", classmethod(timed_apply)),
        mock.patch.object(Function, "gradients", timed_gradients),
    ):
        yield by_module, by_kind


def step_times(predictor: Predictor, images: np.ndarray, labels: np.ndarray, device: str) -> tuple[Times, Times]:
    """Seconds of one training step by module and by kind of operation, the mean of a few after one that warms up."""
    model = predictor.model.train()
    batch = augment.normalise(to_device(images, device), predictor.mean, predictor.std)

    def step() -> None:
        F.cross_entropy(model(Tensor._of(batch)), labels).backward()
        model.zero_grad()

    step()
    with timed(model, device) as (by_module, by_kind):
        for _ in range(TIMED_STEPS):
            step()
    for times in (by_module, by_kind):
        for pair in times.values():
            pair[:] = [seconds / TIMED_STEPS for seconds in pair]
    return by_module, by_kind


def summed(times: Times, depth: int) -> Times:
    """Times by the first `depth` parts of each module's name, in the order of the forward pass."""
    sums: Times = {}
    for name, (forward, backward) in sorted(times.items(), key=lambda item: item[0] == REST):
        pair = sums.setdefault(".".join(name.split(".")[:depth]), [0.0, 0.0])
        pair[0] += forward
        pair[1] += backward
    return sums


# ------------------------------------------------------------------------------------------------- what is known


def command(state: State, out: Path) -> str:
    """The command line that trains this run again, into another folder."""
    config = state["config"]
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
                options.append(f"--{flag} {value}")
        return options

    name, options = min(((name, changes(recipe)) for name, recipe in RECIPES.items()), key=lambda pair: len(pair[1]))
    parts = ["python -m train.cifar"]
    for option in ("device", "model", "data", "dtype", "batch_size", "seed", "limit_train", "limit_test"):
        if config[option] is not None:
            parts.append(f"--{option.replace('_', '-')} {shlex.quote(str(config[option]))}")
    parts += [f"--recipe {name}", f"--epochs {own.epochs}", *options, f"--out {shlex.quote(f'{out}-again')}"]
    return " ".join(parts)


def commit() -> str | None:
    """The git commit of the source, marked where files have changed since; None outside of a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + (" with changes" if changed.stdout.strip() else "")


def versions() -> dict[str, str]:
    """What the report was written with."""
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "pillow", "safetensors")}
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "Python": platform.python_version(),
        **packages,
        "BLAS": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


# ------------------------------------------------------------------------------------------------- how it is shown


def picture(pixels: np.ndarray, alt: str) -> str:
    """An image (3, H, W) uint8 as an <img> that carries its PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def curve(lines: Sequence[dict[str, float]], quantity: str, unit: str) -> str:
    """Training and test curve over the epochs, as inline SVG; a point says its value under the pointer."""
    left, top, width, height = 44, 14, 345, 226
    epochs = [line["epoch"] for line in lines]
    most = max(line[f"{part}_{quantity}"] for line in lines for part in ("train", "test"))
    ticks = MaxNLocator(5).tick_values(0, most or 1)
    first, last, ceiling = min(epochs), max(epochs), ticks[-1]

    def x(epoch: float) -> float:
        return left + width * (epoch - first) / max(last - first, 1)

    def y(value: float) -> float:
        return top + height * (1 - value / ceiling)

    parts = [f'<svg viewBox="0 0 520 284" role="img" aria-label="{quantity} over the epochs, training and test">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in MaxNLocator(6, integer=True).tick_values(first, last):
        if first <= tick <= last:
            parts.append(f'<text x="{x(tick):.1f}" y="{top + height + 19}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{left + width / 2}" y="280" text-anchor="middle">epoch</text>')
    ends = {part: y(lines[-1][f"{part}_{quantity}"]) for part in ("train", "test")}
    if abs(ends["train"] - ends["test"]) < 20:  # keep the two labels apart
        lower = max(ends, key=lambda part: ends[part])
        middle = min(sum(ends.values()) / 2, top + height - 10)  # and above the epochs
        ends = {part: middle + (10 if part == lower else -10) for part in ends}
    for part in ("train", "test"):
        values = [line[f"{part}_{quantity}"] for line in lines]
        points = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in zip(epochs, values, strict=True))
        parts.append(f'<polyline class="{part}" points="{points}"/>')
        parts += [
            f'<circle class="{part}" cx="{x(e):.1f}" cy="{y(v):.1f}" r="{3 if len(epochs) <= 60 else 1.5}">'
            f"<title>epoch {e:g}: {part} {quantity} {v:.4g}{unit}</title></circle>"
            for e, v in zip(epochs, values, strict=True)
        ]
        parts.append(f'<text class="{part}" x="{x(last) + 9:.1f}" y="{ends[part] + 4:.1f}">')
        parts.append(f"{part} {values[-1]:{'.2f' if unit else '.3f'}}{unit}</text>")
    return "".join([*parts, "</svg>"])


def confusion_table(confusion: np.ndarray, classes: Sequence[str]) -> str:
    """How often class i (row) was taken for class j (column), in per cent of the row."""
    share = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    rows = []
    for i, name in enumerate(classes):
        cells = "".join(
            f'<td{" class=strong" if value > 55 else ""} style="--share:{value:.0f};'
            f'--hue:var(--{"right" if i == j else "wrong"})" '
            f'title="{confusion[i, j]} of {confusion[i].sum()} {escape(name)} images taken for {escape(classes[j])}">'
            f"{f'{value:.0f}' if value >= 0.5 else ''}</td>"
            for j, value in enumerate(share[i])
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        '<div class="scroll" role="region" aria-label="Confusion matrix" tabindex="0"><table class="confusion">'
        f"<thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def confused_pairs(confusion: np.ndarray, classes: Sequence[str], limit: int = 8) -> str:
    """The most frequent confusions as a list."""
    off = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-off, axis=None, kind="stable")[:limit]
    pairs = [tuple(map(int, np.unravel_index(flat, off.shape))) for flat in order]
    rows = "".join(
        f"<tr><td>{off[i, j]} ×</td><td>{escape(classes[i])} taken for {escape(classes[j])}</td></tr>"
        for i, j in pairs
        if off[i, j]
    )
    return f'<table class="list">{rows}</table>' if rows else "<p>None.</p>"


def filters(model: Module) -> str:
    """The first convolution's filters as small colour images; empty where it does not see three channels."""
    weights = next((p.data for p in model.parameters() if p.ndim == 4), None)
    if weights is None or weights.shape[1] != 3 or weights.shape[2] < 2:
        return ""
    images = []
    for w in to_numpy(weights).astype(np.float64):
        span = np.abs(w).max() or 1.0
        images.append(picture(np.rint(127.5 + 127.5 * w / span).astype(np.uint8), "filter"))
    return (
        "<section><h2>First-layer filters</h2><p class=note>What each filter of the first convolution answers to most: "
        f'its weights as colours, grey where they are zero.</p><div class="filters">{"".join(images)}</div></section>'
    )


def bars(times: Times) -> str:
    """Horizontal bars of forward and backward milliseconds."""
    most = max(sum(pair) for pair in times.values())
    rows = []
    for name, (forward, backward) in times.items():
        rows.append(
            f'<span>{escape(name)}</span><span class="bar">'
            f'<i class="forward" style="width:{100 * forward / most:.2f}%"></i>'
            f'<i class="backward" style="width:{100 * backward / most:.2f}%"></i></span>'
            f"<span>{1000 * (forward + backward):.1f} ms</span>"
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def table(rows: dict[str, Any]) -> str:
    cells = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
    return f'<table class="list">{cells}</table>'


# ------------------------------------------------------------------------------------------------- the page


def time_section(predictor: Predictor, test_set: Dataset, device: str) -> str:
    """Where a training step's time goes, by block and by kind of operation."""
    images, labels = test_set.images[:TIMED_IMAGES], test_set.labels[:TIMED_IMAGES]
    by_module, by_kind = step_times(predictor, to_numpy(images), labels, device)
    depth = 2 if len(summed(by_module, 2)) <= CLASSES else 1
    total = sum(sum(pair) for pair in by_kind.values())
    kinds: Times = {}
    for kind, pair in sorted(by_kind.items(), key=lambda item: -sum(item[1])):
        sums = kinds.setdefault(kind if sum(pair) > 0.01 * total else REST, [0.0, 0.0])
        sums[:] = [a + b for a, b in zip(sums, pair, strict=True)]
    return (
        f"<section><h2>Where the time goes</h2><p class=note>One training step on {len(labels)} images, "
        f"{1000 * total:.0f} ms on {escape(device)}, without augmentation and the update of the weights; the mean of "
        f'{TIMED_STEPS} steps, measured when this page was written. <span class="keys">'
        '<span><i class="key forward"></i>forward</span> <span><i class="key backward"></i>backward</span></span></p>'
        f'<div class="pair"><div>{bars(summed(by_module, depth))}</div><div>{bars(kinds)}</div></div></section>'
    )


def mistakes_section(predictions: Predictions, test_set: Dataset) -> str:
    """The images that were wrong with most confidence."""
    wrong = predictions.mistakes()
    items = []
    for i in wrong[:MISTAKES]:
        said, was = (test_set.classes[k] for k in (predictions.said[i], predictions.labels[i]))
        share = 100 * predictions.probabilities[i, predictions.said[i]]
        items.append(
            f"<li>{picture(to_numpy(test_set.images[i]), f'test image {i}, a {was}')}"
            f'<span class="said">{escape(said)} {share:.1f} %</span><span class="was">is {escape(was)}</span></li>'
        )
    if not items:
        return f"<section><h2>Mistakes</h2><p>None: all {len(test_set):,} test images are right.</p></section>"
    shown = f"the {len(items)} most confident ones" if len(wrong) > len(items) else "all of them"
    return (
        f"<section><h2>Mistakes</h2><p class=note>{len(wrong):,} of {len(test_set):,} test images; {shown}, with the "
        f'network’s confidence in what it said.</p><ul class="mistakes">{"".join(items)}</ul></section>'
    )


def body(out: Path, state: State, predictor: Predictor, test_set: Dataset | None, absent: str, device: str) -> str:
    """The page's content."""
    config, history = state["config"], state["history"]
    parameters = sum(p.size for p in predictor.model.parameters())
    name = test_set.name if test_set is not None else config["data"]
    parts = [
        f"<h1>{escape(config['model'])} on {escape(name)}</h1>"
        f'<p class="dim">{escape(out.name)}, written {time.strftime("%Y-%m-%d %H:%M %Z")}</p>'
    ]
    numbers = {"parameters": f"{parameters:,}", "epochs": f"{state['epoch']} of {config['recipe']['epochs']}"}
    if history:
        best = min(history, key=lambda line: line["test_error"])
        numbers = {
            "test error, last epoch": f"{history[-1]['test_error']:.2f} %",
            f"test error, best (epoch {best['epoch']:g})": f"{best['test_error']:.2f} %",
            "training error, last epoch": f"{history[-1]['train_error']:.2f} %",
            "images/s in training": f"{np.median([line['images_per_second'] for line in history]):,.0f}",
            **numbers,
        }
    cells = "".join(f"<div><b>{value}</b><span>{escape(label)}</span></div>" for label, value in numbers.items())
    parts.append(f'<div class="figures">{cells}</div>')
    if history:
        parts.append(
            f'<section class="pair"><div><h2>Error</h2>{curve(history, "error", " %")}</div>'
            f"<div><h2>Loss</h2>{curve(history, 'loss', '')}</div></section>"
        )
    if test_set is None:
        parts.append(f"<section><h2>Test images</h2><p>The page lacks what needs them: {escape(absent)}</p></section>")
    else:
        predictions = predict(predictor, test_set, device)
        confusion = predictions.confusion()
        matrix = confusion_table(confusion, test_set.classes) if len(confusion) <= CLASSES else ""
        parts.append(
            "<section><h2>Confusion</h2><p class=note>True class in rows, answer in columns, in per cent of the row."
            f'</p><div class="{"pair" if matrix else ""}">{matrix}<div><h2>Most frequent</h2>'
            f"{confused_pairs(confusion, test_set.classes)}</div></div></section>"
        )
        parts.append(mistakes_section(predictions, test_set))
    parts.append(filters(predictor.model))
    if test_set is not None:
        parts.append(time_section(predictor, test_set, device))
    known = {"commit": revision} if (revision := commit()) else {}
    recipe = config["recipe"]
    again = escape(command(state, out)).replace(" --", "</span> <span>--")
    parts.append(
        f"<section><h2>Do it again</h2><pre><span>{again}</span></pre></section>"
        '<section class="pair"><div><h2>Configuration</h2>'
        f"{table({**{k: v for k, v in config.items() if k != 'recipe'}, **recipe})}</div>"
        f"<div><h2>Written with</h2>{table({**known, **versions()})}</div></section>"
    )
    return "\n".join(parts)


def write_report(out: Path, data_root: Path = Path("data"), test_set: Dataset | None = None) -> Path:
    """Write `report.html` into the run folder `out`; return its path.

    The test images are loaded anew, as the run's configuration says, unless they are given. Raises FileNotFoundError
    for a folder without a run and ValueError for a damaged one.
    """
    _, state = checkpoint.read(out / checkpoint.LAST)
    if not state:
        raise ValueError(f"{out / checkpoint.LAST} holds weights but no run")
    config, absent = state["config"], ""
    device = str(config["device"])
    predictor = load_predictor(out / checkpoint.LAST, None, None, device)
    if test_set is None:
        try:
            options = {"limit_test": config["limit_test"], "limit_train": config["limit_train"]}
            _, test_set = load(config["data"], data_root, seed=config["seed"], progress=False, **options)
        except (ValueError, OSError) as error:
            absent = str(error)
    template = Template((Path(__file__).parent / "show" / "report.html").read_text(encoding="utf-8"))
    content = body(out, state, predictor, test_set, absent, device)
    page = template.substitute(title=escape(f"{config['model']}: {out.name}"), body=content)
    write_atomically(out / "report.html", page.encode())
    return out / "report.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    p = Parser(prog="python -m train.report", description="Write a run's report.html.")
    p.add_argument("run", type=Path, metavar="RUN", help="a run's folder, the --out of train.cifar")
    p.add_argument("--data-root", type=Path, default=Path("data"), metavar="DIR", help="where data is (default: data)")
    args = p.parse_args(argv)
    try:
        print(f"{write_report(args.run, args.data_root)} is written")
        return 0
    except FileNotFoundError as error:
        print(f"python -m train.report: {said(error)}", file=sys.stderr)
        return USAGE
    except (ValueError, OSError) as error:
        print(f"python -m train.report: {said(error)}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
