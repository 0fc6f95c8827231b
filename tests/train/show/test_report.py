"""A run's report: what it says is true, it repeats the run, and it can be read in a browser."""

import json
import re
import shlex
from dataclasses import asdict
from unittest import mock

import numpy as np
import pytest
from support.browser import browser

from minigrad import tensor
from train import cifar
from train import report as command_line
from train.data import Dataset
from train.measure.layers import REST, summed
from train.run import checkpoint, predictor
from train.run.config import Config, adapted, configure, parser
from train.run.predictor import load_predictor
from train.run.repeat import command
from train.show import report


@pytest.fixture(scope="module", autouse=True)
def little_to_time():
    """Time a smaller step: what it takes is not what these tests are about."""
    with mock.patch.multiple(report, TIMED_IMAGES=4, TIMED_STEPS=1):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a tiny run on drawn shapes."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    sizes = ["--model", "resnext11_1x4d", "--limit-train", "8", "--limit-test", "20", "--epochs", "1"]
    assert cifar.main([*sizes, "--batch-size", "4", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def page(run):
    return report.write_report(run).read_text()


def test_the_page_is_self_contained(page):
    assert not re.search(r'(?:src|href)="(?!data:)|https?://|@import|url\(', page)
    assert "$" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def test_the_figures_are_those_of_the_log(run, page):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"<b>{last['test_error']:.2f} %</b><span>test error, last epoch" in page
    assert f"epoch 1: test loss {last['test_loss']:.4g} nats<" in page


def test_confusion_and_mistakes_are_those_of_the_last_epoch(run, page):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    wrong = round(20 * last["test_error"] / 100)
    assert f"{wrong} of 20 test images" in page
    assert page.count('<span class="said">') == min(wrong, report.MISTAKES)
    counts = [[int(n) for n in pair] for pair in re.findall(r'title="(\d+) of (\d+) ', page)]
    assert len(counts) == 100 and sum(n for n, _ in counts) == 20
    assert 20 - sum(n for n, _ in counts[:: 10 + 1]) == wrong  # all but the diagonal


def test_mistakes_come_in_the_order_of_confidence():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    predictions = predictor.Predictions(probabilities, np.array([1, 1, 1, 0]))
    assert predictions.mistakes().tolist() == [1, 3, 0]
    assert predictions.confusion().tolist() == [[0, 1], [2, 1]]


def test_without_mistakes_the_page_says_so():
    images, labels = np.zeros((2, 3, 4, 4), np.uint8), np.array([1, 0])
    test_set = Dataset(images, labels, ["a", "b"], "two", np.full(3, 128.0), np.full(3, 64.0))
    predictions = predictor.Predictions(np.array([[0.1, 0.9], [0.8, 0.2]]), labels)
    assert report.mistakes(predictions, test_set) == {"number": 0, "images": 2, "shown": []}


@pytest.mark.parametrize(
    "options",
    [
        "--model resnext11_1x4d --data shapes --epochs 2 --seed 3",
        "--data shapes --recipe quick --lr 0.1 --batch-size 8 --epochs 3 --limit-train 500",
        "--recipe short --data cifar10 --dtype float64 --batch-size 7",
        "--recipe fine-tune --data photos --image-size 64 --validate 0.2",
        "--recipe short --decay-all --lr 0.2 --no-nesterov --limit-train 9 --limit-test 8 --data 'my images'",
    ],
)
def test_the_command_repeats_the_run(options, tmp_path):
    def configuration(words):
        return configure(parser().parse_args(words))

    config = configuration(shlex.split(options))
    words = shlex.split(command(json.loads(json.dumps(asdict(config))), tmp_path / "a run"))
    assert words[:3] == ["python", "-m", "train.cifar"]
    assert configuration(words[3:]) == config
    assert adapted(config, parser().parse_args(words[3:]), 60) == config, "nothing is left open"
    assert words[-1] == f"{tmp_path}/a run-again"


def test_no_state_puts_something_into_the_command_that_people_copy(run, tmp_path):
    """What is text in a configuration is one of a few words, or stands in quotes."""
    _, state = checkpoint.read(run / checkpoint.LAST)
    evil = "cosine; touch evil"
    for part, name in (
        ("recipe", "schedule"),
        ("recipe", "flip"),
        ("recipe", "padding"),
        ("", "freeze"),
        ("", "dtype"),
    ):
        changed = json.loads(json.dumps(state["config"]))
        (changed[part] if part else changed)[name] = evil
        with pytest.raises(ValueError, match=f"x has {name} = '{evil}' in its configuration"):
            Config.stored(changed, "x")
    state["config"] |= {"data": evil, "weights": evil}
    words = command(state["config"], tmp_path / evil)
    assert words.count("touch") == words.count(f"'{evil}'") + words.count(f"'{tmp_path}/{evil}-again'") == 3


def test_time_is_counted_where_it_is_spent(run):
    trained = load_predictor(run / checkpoint.LAST, None, None, "cpu")
    images, labels = np.zeros((4, 3, 32, 32), np.uint8), np.zeros(4, np.int64)
    by_module, by_kind = report.step_times(trained, images, labels, "cpu")
    assert tensor.observer is None and not any("forward" in vars(m) for m in trained.model.modules())
    assert {"conv1", "layer1.0.conv2", "layer3.0.downsample.0", "fc", REST} <= set(by_module)
    assert {"Conv2d 1x1", "Conv2d 3x3", "BatchNormReLU", "CrossEntropy"} <= set(by_kind)
    for column in (0, 1):
        totals = [sum(pair[column] for pair in times.values()) for times in (by_module, by_kind)]
        assert totals[0] == pytest.approx(totals[1]) and totals[0] > 0
    blocks = summed(by_module, 2)
    assert list(blocks) == ["conv1", "bn1", "layer1.0", "layer2.0", "layer3.0", "fc", REST]


def test_names_are_text_and_not_html(run):
    classes = [f"<b>{k}&" for k in range(10)]
    images, labels = np.zeros((20, 3, 32, 32), np.uint8), np.arange(20) % 10
    test_set = Dataset(images, labels, classes, "<i>", np.full(3, 128.0), np.full(3, 64.0))
    text = report.write_report(run, sets=(test_set, test_set)).read_text()
    assert "&lt;b&gt;0&amp;" in text and "<b>0&" not in text and "<i>" not in text


def test_without_its_images_the_page_says_so(run, tmp_path):
    arrays, state = checkpoint.read(run / checkpoint.LAST)
    state["config"]["data"] = str(tmp_path / "gone")
    checkpoint.write(tmp_path / checkpoint.LAST, arrays, state)
    text = report.write_report(tmp_path).read_text()
    assert "The page lacks what needs them" in text and "gone" in text and "<h2>Mistakes" not in text


def test_exit_codes(run, tmp_path, capsys):
    assert command_line.main([str(run)]) == 0
    assert command_line.main([str(tmp_path)]) == 2
    (tmp_path / checkpoint.LAST).write_bytes(b"no checkpoint")
    assert command_line.main([str(tmp_path)]) == 1
    assert "last.safetensors" in capsys.readouterr().err


def test_in_a_browser(run, tmp_path):
    arrays, state = checkpoint.read(run / checkpoint.LAST)
    line = state["history"][0]
    state["history"] = [line, line | {"epoch": 2, "train_error": 100.0, "train_loss": 10.0}]  # the longest labels
    checkpoint.write(tmp_path / checkpoint.LAST, arrays, state)
    path = report.write_report(tmp_path)
    right = "e => e.getBoundingClientRect().right"
    edges = f"[...document.querySelectorAll('svg text')].map(t => [t, t.ownerSVGElement].map({right}))"
    with browser(tmp_path) as window:
        for width in (320, 390, 768, 1200):
            for dark in (False, True):
                window.open(path, width, 800, dark)
                assert window.overflow() <= 0
                assert all(text <= drawing for text, drawing in window.script(f"return {edges}"))  # no label is cut
                matrix = "document.querySelector('.scroll')"
                assert width == 320 or window.script(f"return {matrix}.scrollWidth <= {matrix}.clientWidth")
                background = window.script("return getComputedStyle(document.body).backgroundColor")
                assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark
        broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert window.script(broken) == 0
        assert window.script("return document.images.length") > 64
        assert window.errors() == []


def test_the_page_says_what_its_numbers_are(run, page):
    """Units on the axes, images of each class, the total time, the epoch of the matrix, and words for None and True."""
    for text in ("error (%)", "loss (nats)", ">epoch</text>", "Confusion after epoch 1", "total time"):
        assert text in page, text
    assert "<h2>Images per class</h2>" in page and '<tr><th scope="row">all 10</th><td>8</td><td>20</td></tr>' in page
    assert not re.search(r">(None|True|False)<", page)
    words = report.settings({"limit_train": None, "nesterov": True, "recipe": {"decay_all": False}})
    assert words == {"limit train": "all training images", "nesterov": "yes", "decay all": "no"}


def test_of_many_classes_the_page_lists_the_most_confused_pairs(run):
    state = checkpoint.read(run / checkpoint.LAST)[1]
    predictor_of_run = load_predictor(run / checkpoint.LAST, None, None, "cpu")
    images, labels = np.zeros((42, 3, 32, 32), np.uint8), np.arange(42) % 10
    many = Dataset(images, labels, [f"class {k}" for k in range(10)], "many", np.full(3, 128.0), np.full(3, 64.0))
    config = Config.stored(state["config"], run)
    with mock.patch.object(report, "CLASSES", 9):
        text = report.render(run, config, state, predictor_of_run, (many, many), "")
    assert 'class="confusion"' not in text and "taken for class" in text and "in place of the matrix" in text


def test_a_run_of_a_gpu_is_reported_on_a_machine_without_one(run, tmp_path):
    arrays, state = checkpoint.read(run / checkpoint.LAST)
    state["config"] |= {"device": "cuda", "dtype": "bfloat16"}
    checkpoint.write(tmp_path / checkpoint.LAST, arrays, state)
    text = report.write_report(tmp_path).read_text()
    assert "--device cuda" in text and "ms on " in text
