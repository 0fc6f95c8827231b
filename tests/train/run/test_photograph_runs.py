"""A run on photographs of all sizes: it can be resumed bit by bit, and tests as train.predict looks at images."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from support import tiny

from train import cifar, predict
from train.data import cache
from train.run import checkpoint
from train.show.report import write_report


@pytest.fixture
def options(tmp_path):
    """A folder of stripes, lying and standing, of any size, and a run of a second on it."""
    rng = np.random.default_rng(0)
    for name in ("lying", "standing"):
        (tmp_path / "p" / name).mkdir(parents=True)
        for i in range(12):
            height, width = rng.integers(20, 50, 2)
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[(slice(None, None, 4) if name == "lying" else (slice(None), slice(None, None, 4)))] = 200
            Image.fromarray(pixels).save(tmp_path / "p" / name / f"{i:02}.png")
    return [
        *("--data", tmp_path / "p", "--data-root", tmp_path / "root", "--image-size", 16, "--validate", 0.25),
        *("--model", "resnext11_2x4d_w8", "--epochs", 3, "--batch-size", 8, "--lr", 0.05),
    ]


def run(*words):
    return cifar.main([str(word) for word in words])


def test_it_is_resumed_bit_by_bit_and_its_report_written(options, tmp_path):
    assert run(*options, "--out", tmp_path / "whole") == 0
    assert (tmp_path / "whole" / "report.html").stat().st_size > 10_000

    class Stop(RuntimeError):
        pass

    calls = []

    def stop(*args):
        calls.append(args)
        if len(calls) == 5:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.faults.Guard.check", stop)
        with pytest.raises(Stop):
            run(*options, "--out", tmp_path / "parts", "--save-every", 1)
    assert run("--out", tmp_path / "parts", "--resume", "--data-root", tmp_path / "root") == 0
    assert not tiny.differences(tmp_path / "whole", tmp_path / "parts")


def test_other_images_are_noticed_wherever_a_run_meets_them(options, tmp_path, capsys):
    out, root = tmp_path / "run", ("--data-root", tmp_path / "root")
    with tiny.undecorated():
        assert run(*options, "--out", out, "--epochs", 1) == 0
    state = checkpoint.read(out / "last.safetensors")[1]
    assert "Confusion after epoch 1<" in write_report(out, tmp_path / "root").read_text()

    # One more of each class: other images are kept back, and some of them were trained on.
    for name in ("lying", "standing"):
        shutil.copy(tmp_path / "p" / name / "00.png", tmp_path / "p" / name / "12.png")
    capsys.readouterr()
    assert run("--evaluate", out / "last.safetensors", *root) == 0
    assert "may have been trained on some of them" in capsys.readouterr().err
    assert run("--out", out, "--resume", "--epochs", 1, *root) == cifar.USAGE
    assert "are others" in capsys.readouterr().err

    # Another name for a class: nothing is counted for it.
    for name in ("lying", "standing"):
        (tmp_path / "p" / name / "12.png").unlink()
    capsys.readouterr()
    assert run("--evaluate", out / "last.safetensors", *root) == 0
    assert "trained on" not in capsys.readouterr().err
    (tmp_path / "p" / "lying").rename(tmp_path / "p" / "sleeping")
    page = write_report(out, tmp_path / "root").read_text()
    assert "others than those of the run" in page and "Confusion after" not in page
    assert state["test_images"] != state["images"]


def test_other_test_images_are_noticed(tmp_path, capsys):
    out, root = tmp_path / "run", tmp_path / "p"
    rng = np.random.default_rng(0)
    for part, number in (("train", 6), ("test", 3)):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for i in range(number):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / part / name / f"{i}.png")
    words = ["--data", root, "--model", "resnext11_2x4d_w8", "--batch-size", 6, "--lr", 0.02, "--out", out]
    words += ["--schedule", "constant"]
    with tiny.undecorated():
        assert run(*words, "--epochs", 1) == 0
        (root / "test" / "a" / "0.png").unlink()
        assert run(*words, "--epochs", 2, "--resume") == cifar.USAGE
    assert "the test images of" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--data-root"])
def test_what_a_run_writes_does_not_become_a_class(options, tmp_path, capsys, option):
    inside = tmp_path / "p" / "here"
    assert run(*options, "--out", tmp_path / "run", option, inside) == cifar.USAGE
    assert f"{option} {inside} lies inside --data {tmp_path / 'p'}" in capsys.readouterr().err
    assert not inside.exists()


def test_predict_sees_what_the_evaluation_saw(options, tmp_path, capsys):
    assert run(*options, "--out", tmp_path / "run") == 0
    state = checkpoint.read(tmp_path / "run" / "last.safetensors")[1]
    assert state["size"] == [16, 16] and state["config"]["image_size"] == 16
    capsys.readouterr()
    assert run("--evaluate", tmp_path / "run" / "last.safetensors", "--data-root", tmp_path / "root") == 0
    error = float(re.match(r"test_error (\S+)", capsys.readouterr().out)[1])
    assert error == state["history"][-1]["test_error"]
    # The same images by the other road: the files that were kept back, one by one.
    files, decoded = [], cache.decoded

    def noting(paths, how, *rest):
        files.extend(paths if how.kind == "middle" else ())
        return decoded(paths, how, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "decoded", noting)
        assert run("--evaluate", tmp_path / "run" / "last.safetensors", "--data-root", tmp_path / "root") == 0
    capsys.readouterr()
    assert (
        predict.main([*map(str, files), "--checkpoint", str(tmp_path / "run" / "last.safetensors"), "--top", "1"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    wrong = sum(file.parent.name not in said for file, said in zip(files, lines[1::2], strict=True))
    assert 100 * wrong / len(files) == pytest.approx(error)


def test_a_run_of_version_0_1_has_no_image_size(options, tmp_path):
    assert tiny.train(tmp_path / "run") == 0
    arrays, state = checkpoint.read(tmp_path / "run" / "last.safetensors")
    for name in ("image_size", "validate"):
        del state["config"][name]
    del state["config"]["recipe"]["crop_area"]
    checkpoint.write(tmp_path / "run" / "last.safetensors", arrays, state)
    assert tiny.train(tmp_path / "run", "--resume") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["image_size"] is None
