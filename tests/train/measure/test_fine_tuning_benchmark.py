"""benchmarks/fine_tuning.py: the same few images from random weights and from those found on other classes."""

import importlib.util
import types
from pathlib import Path

from train import cifar
from train.data import shapes
from train.run import checkpoint

SMALL = ["--data", "shapes", "--many", "3", "--few", "2", "--tests", "1", "--epochs", "1", "--seeds", "1"]


def test_every_way_is_trained_on_other_classes_than_the_first_and_is_in_the_table(tmp_path, monkeypatch, capsys):
    path = Path(__file__).parents[3] / "benchmarks" / "fine_tuning.py"
    spec = importlib.util.spec_from_file_location("fine_tuning_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    commands, drawn = [], shapes.draw_shapes

    def run(command, **options):
        commands.append(command[3:])
        assert cifar.main(command[3:]) == 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shapes, "draw_shapes", lambda number, seed, split: drawn(min(number, 60), seed, split))
    monkeypatch.setattr("train.run.training.write_report", lambda *arguments: "no page")
    monkeypatch.setattr(benchmark, "subprocess", types.SimpleNamespace(run=run, DEVNULL=None))
    benchmark.main([*SMALL, "--model", "resnext11_2x4d_w8", "--more", "--epochs 1 --batch-size 5"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [row[0].removeprefix("| ") for row in rows] == list(benchmark.WAYS)
    found, *others = (checkpoint.read(Path(words[words.index("--out") + 1], checkpoint.LAST))[1] for words in commands)
    assert len(others) == 4 and all(not set(found["classes"]) & set(state["classes"]) for state in others)
    assert [state["config"]["weights"] is None for state in others] == [True, False, False, False]
    assert [state["config"]["freeze"] for state in others] == [
        "none",
        *(w[1] for w in list(benchmark.WAYS.values())[1:]),
    ]
    for row, state in zip(rows, others, strict=True):
        assert float(row[2]) == round(state["history"][-1]["test_error"], 2)
