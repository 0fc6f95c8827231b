"""A run on photographs of all sizes: it can be resumed bit by bit, and tests as train.predict looks at images."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from support import tiny

from train import cifar, predict
from train.data import cache
from train.run import checkpoint


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
