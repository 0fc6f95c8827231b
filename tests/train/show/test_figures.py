"""`python -m train.figures`: what is trained and what is not trained again, the tables, and the pictures' contents."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from safetensors.numpy import save_file

from resnext import create, zoo
from resnext.counts import multiply_adds
from train import cifar
from train import figures as command_line
from train.figures import ROAD, main
from train.run import series
from train.run.config import configure, parser
from train.run.series import mean_and_error
from train.show import figures
from train.show.figures import spread

SMALL = ["--epochs", "1", "--limit-train", "20", "--limit-test", "10", "--data", "shapes"]


def write_run(folder, errors, **config):
    """A run's folder with test errors `errors`; training errors are one lower."""
    folder.mkdir(parents=True)
    lines = [
        {"epoch": i, "train_error": e - 1.0, "test_error": e, "images_per_second": 100.0}
        for i, e in enumerate(errors, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"fc.weight": np.zeros((10, 3), np.float32)}, folder / "last.safetensors")


@pytest.fixture
def pretend(monkeypatch):
    """Replace training: every run ends with an error that depends on network and seed; returns the list of runs."""
    trained = []

    def pretend_to_train(argv):
        args = parser().parse_args(argv)
        config = json.loads(json.dumps(asdict(configure(args))))
        trained.append((args.model, args.seed))
        error = 10.0 + len(args.model) + args.seed
        write_run(args.out, [50.0, error] if config["recipe"]["epochs"] == 2 else [error], **config)
        return 0

    monkeypatch.setattr(cifar, "main", pretend_to_train)
    return trained


def texts(monkeypatch):
    """Collect the texts of every picture at the moment when it is saved."""
    seen = []
    original = figures.save

    def save(figure, path):
        seen.append([t.get_text() for axes in figure.axes for t in (*axes.texts, axes.xaxis.label, axes.yaxis.label)])
        original(figure, path)

    monkeypatch.setattr(figures, "save", save)
    return seen


def rows(path):
    """The cells of a Markdown table, without its head."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_mean_and_standard_error():
    mean, error = mean_and_error([1.0, 2.0, 4.0, 5.0])
    assert mean == 3 and error == pytest.approx(math.sqrt((4 + 1 + 1 + 4) / 3) / 2)
    mean, error = mean_and_error([7.0])
    assert mean == 7 and math.isnan(error)


@pytest.mark.parametrize(
    "positions, expected",
    [
        ([0.0, 10.0], [0.0, 10.0]),
        ([1.0, 1.0], [0.0, 2.0]),
        ([5.0, 5.5, 20.0], [4.25, 6.25, 20.0]),
        ([3.0, 1.0, 2.0], [4.0, 0.0, 2.0]),
        ([0.0, 0.0, 1.5], [-1.5, 0.5, 2.5]),  # two that part run into the third
    ],
)
def test_labels_move_apart_as_little_as_needed(positions, expected):
    assert_allclose(spread(positions, 2.0), expected)


def test_curves_overlay_runs(tmp_path, monkeypatch):
    seen = texts(monkeypatch)
    write_run(tmp_path / "first", [60.0, 30.0, 35.0])
    write_run(tmp_path / "second", [50.0, 20.0])
    out = tmp_path / "new folder" / "curves.png"
    assert main(["curves", str(tmp_path / "first"), str(tmp_path / "second"), "--figure", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.size == (1600, 1000)
    assert rows(out.with_suffix(".md")) == [
        ["first", "1", "3", "34.00", "35.00", "30.00 (epoch 2)"],
        ["second", "1", "2", "19.00", "20.00", "20.00 (epoch 2)"],
    ]
    assert f"python -m train.figures curves {tmp_path}/first" in out.with_suffix(".md").read_text()
    assert {"first\ntest 35.00 %, train 34.00 %", "second\ntest 20.00 %, train 19.00 %"} <= set(seen[0])
    assert {"epoch", "error (%)"} <= set(seen[0])


def test_a_run_of_one_epoch_stands_in_the_middle(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    write_run(tmp_path / "a|b", [60.0])
    assert main(["curves", str(tmp_path / "a|b"), "--figure", str(tmp_path / "curves.png")]) == 0
    (axes,) = drawn[0].axes
    drawn[0].draw_without_rendering()  # which warned that there was no room for the axes
    assert axes.get_xlim() == (0.5, 1.5) and axes.get_window_extent().width > 300
    assert r"| a\|b | 1 | 1 |" in (tmp_path / "curves.md").read_text()


def test_runs_of_one_name_are_one_curve_with_a_band(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    for seed, errors in enumerate(([60.0, 30.0, 20.0], [50.0, 26.0, 22.0, 21.0], [55.0, 31.0, 27.0])):
        write_run(tmp_path / f"net-seed{seed}", errors)
    write_run(tmp_path / "other", [70.0, 60.0, 50.0])
    command = ["curves", *(str(tmp_path / name) for name in ("net-seed0", "net-seed1", "net-seed2", "other"))]
    assert main([*command, "--figure", str(tmp_path / "curves.png")]) == 0
    (axes,) = drawn[0].axes
    test = next(line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3)
    assert_allclose(test.get_ydata(), [55.0, 29.0, 23.0])  # to the epoch that all have reached
    assert len(axes.collections) == 2  # bands of training and test error; none for a single run
    band = axes.collections[1].get_paths()[0].vertices
    last = band[band[:, 0] == 3, 1]
    assert_allclose([last.min(), last.max()], [23 - np.sqrt(13 / 3), 23 + np.sqrt(13 / 3)])
    assert "net\ntest 23.00 ± 2.08 %, train 22.00 ± 2.08 %" in {t.get_text() for t in axes.texts}
    assert_allclose([tick for tick in axes.get_xticks() if 0 <= tick <= 3], [0, 1, 2, 3])
    assert rows(tmp_path / "curves.md") == [
        ["net", "3", "3", "22.00 ± 2.08", "23.00 ± 2.08", "23.00 ± 2.08 (epoch 3, 3, 3)"],
        ["other", "1", "3", "49.00", "50.00", "50.00 (epoch 3)"],
    ]


def test_a_long_name_leaves_room_for_its_curve(tmp_path, monkeypatch):
    """Beside 400 letters Matplotlib has no room for axes, and warns."""
    seen = texts(monkeypatch)
    write_run(tmp_path / "run", [60.0, 30.0])
    command = ["curves", str(tmp_path / "run"), "--names", 400 * "x", "--figure", str(tmp_path / "x.png")]
    assert main(command) == 0
    assert f"{39 * 'x'}…\ntest 30.00 %, train 29.00 %" in seen[0]


def test_a_sweep_trains_its_grid_once_for_every_seed(tmp_path, pretend, monkeypatch):
    seen = texts(monkeypatch)
    out, runs = tmp_path / "sweep.png", tmp_path / "runs"
    command = ["sweep", "--figure", str(out), "--runs", str(runs), "--seeds", "2", "--depth", "11", *SMALL]
    command += ["--width", "4", "--cardinality", "1", "2", "--wider", "8"]
    assert main(command) == 0
    networks = ["resnext11_1x4d_w16", "resnext11_2x4d_w16", "resnext11_1x8d_w16"]
    assert pretend == [(network, seed) for seed in (0, 1) for network in networks]
    table = rows(out.with_suffix(".md"))
    assert [row[0] for row in table] == [f"`{network}`" for network in networks]
    assert {row[5] for row in table} == {"28.50 ± 0.50"}  # 10 + 18 letters + the mean of seeds 0 and 1
    assert table[0][1] == f"{sum(p.size for p in create(networks[0]).parameters()):,}" and table[0][3] == "2"
    labels = [t.strip() for t in seen[0]]
    assert sorted(labels) == sorted(
        ["1x4d", "2x4d", "1x8d", "more paths", "wider paths", "parameters (thousands)", "test error (%)"]
    )
    with Image.open(out) as picture:
        assert picture.format == "PNG"

    del pretend[:]
    for weights in runs.glob("*/last.safetensors"):
        weights.unlink()  # who keeps the logs alone can draw the figure again
    assert main(command) == 0
    assert not pretend and rows(out.with_suffix(".md")) == table  # all done
    (runs / f"{networks[1]}-seed1" / "metrics.jsonl").unlink()
    (runs / f"{networks[1]}-seed1" / "config.json").unlink()
    (runs / f"{networks[1]}-seed1").rmdir()
    assert main(command) == 0
    assert pretend == [(networks[1], 1)]


def test_runs_of_one_name_have_one_configuration(tmp_path, monkeypatch, capsys):
    for folder, config in (("a", {"lr": 1, "seed": 0}), ("b", {"lr": 2, "seed": 1}), ("c", {"lr": 1, "seed": 1})):
        write_run(tmp_path / folder / "last", [5.0], **config)
    a, b, c = (str(tmp_path / folder / "last") for folder in "abc")
    png = ["--figure", str(tmp_path / "x.png")]
    assert main(["curves", a, b, *png]) == 2
    assert "the runs called last differ in more than the seed: name them apart with --names" in capsys.readouterr().err
    assert main(["curves", a, a, *png]) == 2
    assert "the same run is given twice" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
    assert main(["curves", a, c, *png]) == main(["curves", a, b, *png, "--names", "one", "two"]) == 0
    monkeypatch.chdir(a)
    assert main(["curves", ".", *png]) == 0
    assert rows(tmp_path / "x.md")[0][0] == "last"


def test_a_page_of_ones_own_is_not_replaced_by_a_table(tmp_path, capsys):
    write_run(tmp_path / "run", [5.0])
    (tmp_path / "README.md").write_text("# Mine\n")
    assert main(["curves", str(tmp_path / "run"), "--figure", str(tmp_path / "README.png")]) == 2
    assert "README.md, which is none: choose another name with --figure" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_multiply_adds_are_those_of_the_images(tmp_path):
    for size in (None, 64):
        write_run(tmp_path / str(size), [5.0], image_size=size)
        result = series.summarise("resnext11_2x4d_w8", [tmp_path / str(size)])
        assert result.multiply_adds == multiply_adds(create("resnext11_2x4d_w8"), size or 32)


def test_a_run_with_other_settings_is_not_taken_for_done(tmp_path):
    config = configure(parser().parse_args(["--epochs", "2"]))
    for name, errors, changed in (("a", [5.0, 4.0], {}), ("b", [5.0], {}), ("c", [5.0, 4.0], {"seed": 3})):
        write_run(tmp_path / name, errors, **{**json.loads(json.dumps(asdict(config))), **changed})
    text = (tmp_path / "a" / "config.json").read_text()
    before, no_json, no_config = json.loads(text), "}", '["recipe"]'
    del before["recipe"]["crop_area"]  # an option that a version before this one did not have
    for name, content in (("d", json.dumps(before)), ("e", no_json), ("f", no_config), ("g", "{}")):
        write_run(tmp_path / name, [5.0, 4.0])
        (tmp_path / name / "config.json").write_text(content)
    cells = [series.Cell("", 0, tmp_path / name, (), config) for name in ("a", "b", "c", "d", "e", "f", "g", "missing")]
    assert [cell.is_done() for cell in cells] == [True, False, False, True, False, False, False, False]
    assert [cell.epochs() for cell in cells] == [2, 1, 0, 2, 0, 0, 0, 0]


def test_a_sweep_at_equal_size_follows_the_rule_of_table_2(tmp_path, pretend, monkeypatch):
    seen = texts(monkeypatch)
    command = ["sweep", "--size", "equal", "--seeds", "1", "--depth", "29", "--stem", "64", "--width", "64"]
    command += ["--cardinality", "1", "2", "4", "8", "32", "--figure", str(tmp_path / "equal.png")]
    assert main([*command, "--runs", str(tmp_path), *SMALL]) == 0
    assert [model for model, _ in pretend] == [f"resnext29_{s}d" for s in ("1x64", "2x40", "4x24", "8x14", "32x4")]
    assert {"1x64d", "2x40d", "4x24d", "8x14d", "32x4d", "cardinality, at equal size"} <= set(seen[0])
    assert [row[5] for row in rows(tmp_path / "equal.md")] == ["25.00"] * 5  # one seed has no standard error


def test_the_road_runs_from_hand_made_features_to_resnext(tmp_path, pretend, monkeypatch):
    seen = texts(monkeypatch)
    out = tmp_path / "road.png"
    assert main(["road", "--figure", str(out), "--runs", str(tmp_path), "--seeds", "2", *SMALL]) == 0
    assert [model for model, seed in pretend if seed == 0] == [system.model for system in ROAD]
    assert ROAD[0].model == "hog_linear"
    assert [zoo.CIFAR_NAME.fullmatch(system.model)[2] for system in ROAD[-2:]] == ["1", "4"]
    costs = [multiply_adds(create(system.model)) for system in ROAD]
    assert all(abs(cost / costs[-1] - 1) < 0.05 for cost in costs[1:])  # one budget
    assert [row[2] for row in rows(out.with_suffix(".md"))][1:] == [f"{cost / 1e6:.1f} M" for cost in costs[1:]]
    lr = {}
    for system in ROAD:
        lr[system.label] = json.loads((tmp_path / f"{system.model}-seed1" / "config.json").read_text())["recipe"]["lr"]
    assert lr["VGG-16"] == lr["plain-20"] == lr["ResNet-20"] / 2  # their own, where the command does not say
    assert "20.50 ± 0.50 %" in seen[0]


def test_what_the_command_says_goes_before_a_systems_own_options(tmp_path):
    systems = [series.System("careful", "vgg16", ("--lr", "0.05", "--warmup", "0.2"))]
    (cell,) = series.plan(systems, 1, tmp_path, ["--lr", "0.3"])
    assert (cell.config.recipe.lr, cell.config.recipe.warmup) == (0.3, 0.2)


def test_the_longest_error_bar_of_the_road_and_its_label_lie_inside_the_picture(tmp_path, monkeypatch):
    pictures = []
    monkeypatch.setattr(figures, "save", lambda figure, path: pictures.append(figure))
    uneven = series.Result("plain20", 105_940, 15_900_000, 2, (47.0, 27.0), (42.0, 27.0), (42.0, 27.0), 280.0)
    even = series.Result("resnet20", 105_940, 15_900_000, 2, (19.0, 0.7), (14.0, 0.3), (14.0, 0.3), 290.0)
    figures.draw_road([("plain-20", uneven), ("ResNet-20", even)], tmp_path / "road.png", "The road")
    (figure,) = pictures
    figure.canvas.draw()
    assert figure.axes[0].get_xlim()[1] > 42 + 27
    assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in figure.axes[0].texts)


def test_labels_of_networks_of_nearly_one_size_do_not_cover_each_other(tmp_path, monkeypatch):
    pictures = []
    monkeypatch.setattr(figures, "save", lambda figure, path: pictures.append(figure))
    points = [(f"{c}x{d}d", 50 + c / 5, 30.0 - c / 1000) for c, d in ((1, 64), (2, 40), (4, 24), (8, 14))]
    network = series.Result("net", 50_000, 15_900_000, 2, (1.0, 0.1), (30.0, 0.1), (1.0, 0.1), 280.0)
    curve = [(label, x, replace(network, test_error=(y, 0.1))) for label, x, y in points]
    figures.draw_sweep({"a": curve, "b": [("1x80d", 90.0, network)]}, tmp_path / "a.png", "", "")
    (figure,) = pictures
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()[0].isdigit()]
    assert len(boxes) == 5 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_titles_and_labels_lie_inside_the_picture(tmp_path, monkeypatch):
    pictures = []
    monkeypatch.setattr(figures, "save", lambda figure, path: pictures.append(figure))
    title = (
        "ResNeXt-11, 4x3d, on 8,000 images of CIFAR-10: minigrad and PyTorch, three seeds each, from the same weights"
    )
    log = [{"train_error": 70.0, "test_error": 68.0}, {"train_error": 60.0, "test_error": 56.5}]
    result = series.Result("net", 105_940, 15_900_000, 3, (47.0, 1.0), (42.0, 1.0), (42.0, 1.0), 280.0)
    figures.draw_curves([("minigrad", [log, log]), ("PyTorch", [log])], tmp_path / "a.png", title)
    figures.draw_sweep({"equal size": [("1x8d", 1, result), ("4x3d", 4, result)]}, tmp_path / "a.png", title, "C")
    figures.draw_road([("VGG", result), ("ResNeXt", result)], tmp_path / "a.png", title)
    for figure in pictures:
        figure.canvas.draw()
        (axes,) = figure.axes
        for text in (*axes.texts, axes.title, figure._suptitle):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, text
    assert pictures[0].axes[0].get_ylim()[0] > 50  # errors far from 0 are given the height


def test_networks_of_similar_sizes_have_numbers_below_them_and_labels_beside_their_curve(tmp_path, monkeypatch):
    pictures = []
    monkeypatch.setattr(figures, "save", lambda figure, path: pictures.append(figure))
    network = series.Result("net", 50_000, 15_900_000, 1, (1.0, math.nan), (50.0, math.nan), (1.0, math.nan), 280.0)
    for slope in (-0.1, 0.1):
        curves = {
            name: [
                (f"{name}{k}", 20.0 + 2 * k, replace(network, test_error=(50 + i + k * slope, math.nan)))
                for k in range(5)
            ]
            for i, name in enumerate(("more", "wider"))
        }
        figures.draw_sweep(curves, tmp_path / "a.png", "", "")
    for figure in pictures:
        figure.draw_without_rendering()
        (axes,) = figure.axes
        assert sum(bool(label.get_text()) for label in axes.get_xticklabels()) >= 4
        for text in axes.texts:
            box = text.get_window_extent()
            for line in (line for line in axes.lines if len(line.get_xdata()) == 5):
                ends = axes.transData.transform(line.get_xydata())
                between = np.linspace(ends[:-1], ends[1:], 50).reshape(-1, 2)
                assert not any(box.contains(x, y) for x, y in between), text


def test_a_real_run_from_the_command_to_the_table(tmp_path, capsys):
    out = tmp_path / "road.png"
    command = ["road", "--models", "hog_linear", "--seeds", "2", "--runs", str(tmp_path / "runs"), "--figure", str(out)]
    assert main([*command, *SMALL]) == 0
    first = rows(out.with_suffix(".md"))
    assert main([*command, *SMALL]) == 0
    assert rows(out.with_suffix(".md")) == first
    assert capsys.readouterr().out.count(": done") == 2
    last = json.loads((tmp_path / "runs" / "hog_linear-seed1" / "metrics.jsonl").read_text())
    assert last["epoch"] == 1 and 0 <= last["test_error"] <= 100
    assert main([*command, *SMALL, "--lr", "0.5"]) != 0  # the folder belongs to other settings
    assert "other settings" in capsys.readouterr().err


def test_runs_side_by_side_from_the_command_to_the_table(tmp_path, capsys):
    out = tmp_path / "road.png"
    command = ["road", "--models", "hog_linear", "--seeds", "1", "--runs", str(tmp_path / "runs"), "--figure", str(out)]
    assert main([*command, *SMALL, "--jobs", "2"]) == 0
    ((_, _, _, seeds, *_),) = rows(out.with_suffix(".md"))
    assert seeds == "1" and out.exists()
    printed = capsys.readouterr().out
    assert printed.count("hog_linear") == 1 and " 1/1  hog_linear" in printed
    assert main([*command, *SMALL]) == 0  # what one command has done, the other need not do
    assert capsys.readouterr().out.count(": done") == 1


def test_the_table_fills_run_by_run(tmp_path, pretend, monkeypatch):
    tables = []
    write = command_line.write_results
    monkeypatch.setattr(command_line, "write_results", lambda *args: tables.append(args[1:]) or write(*args))
    models = ["resnext11_1x4d_w8", "hog_linear"]
    command = ["road", "--models", *models, "--seeds", "2", "--runs", str(tmp_path), *SMALL]
    assert main([*command, "--title", "The road", "--figure", str(tmp_path / "road.png")]) == 0
    assert [title for title, _, _ in tables] == [
        *(f"The road, {n} of 4 runs" for n in (1, 2, 3)),
        "The road",
        "The road",
    ]
    assert [[r.seeds for _, r in results] for _, _, results in tables[:4]] == [[1], [1, 1], [2, 1], [2, 2]]


def test_a_run_that_stops_ends_the_command_with_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "main", lambda argv: 143)
    assert main(["road", "--models", "hog_linear", "--runs", str(tmp_path), "--figure", str(tmp_path / "x.png")]) == 143
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "damage", [b'"1"', b"null", b"[" * 100_000, b"9" * 5000, b"1e999", b"}{", b"\xff", b'{"a": 1}']
)
def test_a_damaged_log_is_refused_with_its_name(tmp_path, damage):
    write_run(tmp_path / "run", [3.0])
    path = tmp_path / "run" / "metrics.jsonl"
    log = path.read_bytes()
    path.write_bytes(log.replace(b'"epoch": 1', b'"epoch": ' + damage))
    assert path.read_bytes() != log
    with pytest.raises(ValueError, match=r"metrics.jsonl is no log of a run: an epoch's line is damaged"):
        series.read_metrics(tmp_path / "run")


def test_what_is_wrong_is_said_in_one_sentence(tmp_path, capsys):
    write_run(tmp_path / "run", [3.0])
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "metrics.jsonl").write_text('{"epoch": 1}\n')
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "metrics.jsonl").write_text("")
    run, png = str(tmp_path / "run"), ["--figure", str(tmp_path / "x.png")]
    for code, command, says in (
        (2, ["curves", str(tmp_path / "none"), *png], "none is no run: it has no metrics.jsonl"),
        (2, ["curves", str(tmp_path / "damaged"), *png], "no log of a run"),
        (2, ["curves", str(tmp_path / "young"), *png], "has not finished an epoch yet"),
        (2, ["curves", *[run] * 7, *png, "--names", *"abcdefg"], "at most 6 curves"),
        (2, ["curves", run, "--figure", "x.jpg"], "--figure names a .png file, got x.jpg"),
        (2, ["curves", run, run, *png, "--names", "a"], "--names needs a name for each of the 2 runs, got 1"),
        (2, ["road", "--seeds", "0", *png], "--seeds must be from 1 to 1,000, got 0"),
        (2, ["road", "--jobs", "0", *png], "--jobs must be from 1 to 1,000, got 0"),
        (2, ["sweep", "--seeds", "1" + 400 * "0", *png], "--seeds must be from 1 to 1,000, got 10000"),
        (2, ["sweep", "--size", "equal", "--width", "0", *png], "--width must be from 1 to 65,536, got 0"),
        (2, ["sweep", "--size", "equal", "--width", str(2**31), *png], "--width must be from 1 to 65,536, got 2147"),
        (2, ["sweep", "--cardinality", "2", "-1", *png], "--cardinality must be from 1 to 65,536, got -1"),
        (2, ["sweep", "--wider", "8", "0", *png], "--wider must be from 1 to 65,536, got 0"),
        (2, ["road", "--jobs", "2", "--models", "resnext99", *png, *SMALL], "there is no network"),
        (2, ["road", "--models", "resnext99", "--runs", str(tmp_path), *png, *SMALL], "there is no network"),
    ):
        assert main(command) == code, command
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
    for command in (["sweep", "--model", "x"], ["road", "--out=x"], ["curves", run, "--lr", "1"], [], ["road", "--no"]):
        with pytest.raises(SystemExit) as exit:
            main(command)
        assert exit.value.code == 2, command


def test_networks_are_built_before_the_first_is_trained(tmp_path, pretend, capsys):
    """The last one's name was found to be wrong after all others were trained."""
    assert main(["road", "--models", "resnext11_2x4d", "resnext99", "--figure", str(tmp_path / "x.png"), *SMALL]) == 2
    assert "there is no network 'resnext99'" in capsys.readouterr().err
    assert not pretend


def test_a_run_with_other_options_is_not_taken_for_done(tmp_path):
    options = ["--data", "shapes", "--epochs", "1"]
    # What `--resume` does to a finished run: nothing, successfully.
    with pytest.raises(ValueError, match="other options"):
        series.train_in_turn(
            series.plan([series.System("", "resnext11_1x4d_w8")], 1, tmp_path, options), lambda command: 0, print
        )
