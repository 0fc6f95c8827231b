"""`python -m train.predict`: what it prints, for checkpoints of a run and for plain weights; preparation; bad input."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

import minigrad
from minigrad import Tensor, load_weights, no_grad, save_weights
from minigrad import functional as F
from resnext import create
from train.data import CIFAR10, augment, load
from train.data.images import MARGIN, centre_crop, open_image
from train.predict import main
from train.run import checkpoint
from train.run.config import Config
from train.run.loop import Run
from train.run.predictor import IMAGENET_MEAN, IMAGENET_STD, load_predictor
from train.run.recipes import RECIPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run's checkpoint, its test images as PNG files, and a photo."""
    folder = tmp_path_factory.mktemp("predict")
    train_set, test_set = load("shapes", folder, seed=0, limit_train=20, limit_test=4, progress=False)
    config = Config("shapes", "resnext11_2x4d", replace(RECIPES["paper"], epochs=1), limit_train=20, limit_test=4)
    run = Run.start(config, train_set, test_set)
    rng = np.random.default_rng(0)
    for name, t in run.model.named_tensors():  # statistics that matter
        if name.endswith(("running_mean", "running_var")):
            t.data = (t.data + rng.uniform(0.1, 0.5, t.shape)).astype(np.float32)
    run.save(folder / "run.safetensors")
    save_weights(run.model, folder / "plain.safetensors")
    for i, image in enumerate(test_set.images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(folder / "photo.jpg")
    _, state = checkpoint.read(folder / "run.safetensors")
    batch = augment.normalise(test_set.images, state["mean"], state["std"])
    with no_grad():
        probabilities = F.softmax(run.model.eval()(Tensor(batch))).numpy()
    return folder, probabilities, test_set.classes


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_run_predicts_its_test_images_as_its_evaluation_does(folder, capsys):
    path, probabilities, classes = folder
    images = [str(path / f"{i}.png") for i in range(4)]
    assert main([*images, "--checkpoint", str(path / "run.safetensors")]) == 0
    expected = []
    for image, p in zip(images, probabilities, strict=True):
        best = sorted(range(10), key=lambda k: -p[k])[:5]
        expected += [image, *(f"{100 * p[k]:7.2f} %  {classes[k]}" for k in best)]
    assert lines(capsys) == expected
    predictor = load_predictor(path / "run.safetensors", None, None, "cpu")
    for image, p in zip(images, probabilities, strict=True):
        assert_allclose(predictor.probabilities(path / image, "cpu"), p, rtol=1e-4, atol=1e-7)


def test_averaged_weights_are_the_ones_that_predict(folder, tmp_path):
    path, _, _ = folder
    config = Config("shapes", "resnext11_2x4d", RECIPES["short"], limit_train=20, limit_test=4)
    run = Run.start(config, *load("shapes", path, limit_train=20, limit_test=4, progress=False))
    run.averaged["fc.bias"][:] = 7
    run.save(tmp_path / "run.safetensors")
    predictor = load_predictor(tmp_path / "run.safetensors", None, None, "cpu")
    assert (predictor.model.fc.bias.numpy() == 7).all()
    network = create("resnext11_2x4d")  # the library reads a run's state as well
    assert load_weights(network, tmp_path / "run.safetensors") == ([], [])
    assert (network.fc.bias.numpy() == 7).all()


def test_plain_weights_need_the_networks_name(folder, capsys):
    path, *_ = folder
    command = [str(path / "photo.jpg"), "--checkpoint", str(path / "plain.safetensors")]
    assert main(command) == 2
    assert "give it with --model" in capsys.readouterr().err
    assert main([*command, "--model", "resnext11_2x4d", "--top", "2"]) == 0
    photo, first, second = lines(capsys)
    assert photo.endswith("photo.jpg") and "class " in first and "class " in second
    predictor = load_predictor(path / "plain.safetensors", "resnext11_2x4d", None, "cpu")
    assert_allclose(predictor.mean, CIFAR10.mean) and predictor.size == (32, 32)


def test_class_names_from_a_file(folder, tmp_path, capsys):
    path, probabilities, _ = folder
    names = tmp_path / "names.txt"
    names.write_text("".join(f"thing {k}\n" for k in range(10)))
    command = [str(path / "0.png"), "--checkpoint", str(path / "run.safetensors"), "--classes", str(names)]
    assert main(command) == 0
    assert lines(capsys)[1].endswith(f"thing {probabilities[0].argmax()}")
    names.write_bytes(b"\xef\xbb\xbf" + "".join(f"ding {k}\n" for k in "äbcdefghij").encode())  # with a byte order mark
    assert main([*command, "--top", "10"]) == 0
    assert {line.split()[-1] for line in lines(capsys)[1:]} == set("äbcdefghij")
    names.write_bytes("ä\n".encode("latin-1"))
    assert main(command) == 2
    assert f"{names} is no text in UTF-8" in capsys.readouterr().err
    names.write_text("one\ntwo\n")
    assert main(command) == 2
    assert "has 2 lines, the network has 10 classes" in capsys.readouterr().err


def test_an_imagenet_network_sees_the_middle_of_the_photo(folder, tmp_path, capsys):
    path, *_ = folder
    minigrad.manual_seed(0)
    network = create("resnext50_32x4d").eval()
    save_weights(network, tmp_path / "imagenet.safetensors")
    predictor = load_predictor(tmp_path / "imagenet.safetensors", "resnext50_32x4d", None, "cpu")
    photo = open_image(path / "photo.jpg")
    pixels = np.asarray(photo.resize((341, 256), Image.Resampling.BILINEAR), np.float64)[16:240, 58:282] / 255
    x = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with no_grad():
        expected = F.softmax(network(Tensor(x.transpose(2, 0, 1)[None].astype(np.float32)))).numpy()[0]
    assert_allclose(predictor.probabilities(path / "photo.jpg", "cpu"), expected, rtol=1e-3)
    assert len(predictor.classes) == 1000 and predictor.classes[281] == "class 281"


def test_imagenet_constants():
    assert_allclose(IMAGENET_MEAN / 255, [0.485, 0.456, 0.406])
    assert_allclose(IMAGENET_STD / 255, [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    "photo, margin, scaled, box",
    [  # (width, height) of the photo and of what it is scaled to, left and top of the middle
        ((640, 480), MARGIN, (341, 256), (58, 16)),
        ((480, 640), MARGIN, (256, 341), (16, 58)),
        ((100, 100), MARGIN, (256, 256), (16, 16)),
        ((224, 224), 1.0, (224, 224), (0, 0)),
        ((1000, 10), 1.0, (22400, 224), (11088, 0)),
    ],
)
def test_the_shorter_side_is_scaled_and_the_middle_cut_out(photo, margin, scaled, box):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*photo[::-1], 3), dtype=np.uint8))
    left, top = box
    expected = image.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    assert np.array_equal(np.asarray(centre_crop(image, (224, 224), margin)), np.asarray(expected))


def test_photos_are_turned_upright_and_put_on_white(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, :, 0] = 255  # red on top
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "turned.png")), np.rot90(pixels, -1))
    clear = np.zeros((4, 6, 4), np.uint8)
    clear[1, 1] = (9, 8, 7, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    seen = np.asarray(open_image(tmp_path / "clear.png"))
    assert (seen[0] == 255).all() and seen[1, 1].tolist() == [9, 8, 7]
    Image.fromarray(np.full((4, 6), 77, np.uint8)).save(tmp_path / "grey.png")
    assert (np.asarray(open_image(tmp_path / "grey.png")) == 77).all()


@pytest.mark.parametrize("what", ["missing", "folder", "text", "cut off"])
def test_a_file_that_is_no_image_ends_with_one_sentence(what, folder, tmp_path, capsys):
    path, *_ = folder
    image = tmp_path / "image.png"
    if what == "folder":
        image.mkdir()
    elif what == "text":
        image.write_text("not an image")
    elif what == "cut off":
        image.write_bytes((path / "photo.jpg").read_bytes()[:3000])
    code = 2 if what in ("missing", "folder") else 1
    assert main([str(image), "--checkpoint", str(path / "run.safetensors")]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(image) in error and "Traceback" not in error


def test_an_image_that_cannot_be_read_keeps_no_other_from_its_answer(folder, tmp_path, capsys):
    path, *_ = folder
    (tmp_path / "text.png").write_text("not an image")
    images = [tmp_path / "none.png", path / "0.png", tmp_path / "text.png", path / "1.png"]
    command = ["--checkpoint", str(path / "run.safetensors"), "--top", "1"]
    assert main([*map(str, images), *command]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[::2] == [str(images[1]), str(images[3])]
    assert [line.split(":")[1].split()[0] for line in printed.err.splitlines()] == ["there", str(images[2])]
    assert main([str(tmp_path), str(images[0]), *command]) == 2


def test_a_name_that_begins_with_a_dash_is_no_option(folder, tmp_path, capsys, monkeypatch):
    path, *_ = folder
    for name in ("-1.png", "--top.png"):
        (tmp_path / name).write_bytes((path / "0.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert main(["-1.png", "--top.png", "--checkpoint", str(path / "run.safetensors"), "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[::2] == ["-1.png", "--top.png"]


def test_an_image_too_long_and_narrow_is_refused():
    with pytest.raises(ValueError, match="400000 x 1 pixels is too long and narrow"):
        centre_crop(Image.new("RGB", (400_000, 1)), (224, 224))


def test_bad_checkpoints_end_with_one_sentence(folder, tmp_path, capsys):
    path, *_ = folder
    image = str(path / "0.png")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes((path / "run.safetensors").read_bytes()[:5000])
    missing, plain = tmp_path / "none.safetensors", path / "plain.safetensors"
    for code, command, says in (
        (2, ["--checkpoint", str(missing)], f"there is no file {missing}"),
        (
            2,
            ["--checkpoint", str(path / "run.safetensors"), "--classes", str(tmp_path / "names")],
            f"there is no file {tmp_path / 'names'}",
        ),
        (1, ["--checkpoint", str(bad)], f"{bad} is not a complete safetensors file"),
        (
            1,
            ["--checkpoint", str(plain), "--model", "resnext11_4x4d"],
            "does not fit resnext11_4x4d: layer1.0.conv1.weight has",
        ),
        (1, ["--checkpoint", str(plain), "--model", "resnext20_2x4d"], "missing: layer1.1.conv1.weight"),
        (2, ["--checkpoint", str(plain), "--model", "resnext11_2x4"], "did you mean"),
    ):
        assert main([image, *command]) == code, command
        error = capsys.readouterr().err
        assert error.startswith("python -m train.predict: ") and error.count("\n") == 1 and says in error, error


def test_a_file_that_may_not_be_read_is_named_first(folder, capsys, monkeypatch):
    path, *_ = folder
    checkpoint_file = path / "run.safetensors"

    def read_bytes(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(checkpoint_file), "read_bytes", read_bytes)
    assert main([str(path / "0.png"), "--checkpoint", str(checkpoint_file)]) == 1
    assert capsys.readouterr().err == f"python -m train.predict: {checkpoint_file}: Permission denied\n"


def test_usage_errors(folder):
    path, *_ = folder
    for command in ([], ["--top", "0"], ["--device", "tpu"]):
        arguments = [
            str(path / "0.png"),
            *(["--checkpoint", str(path / "run.safetensors")] if command else []),
            *command,
        ]
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2


def test_as_a_command(folder):
    path, _, _ = folder
    command = [
        sys.executable,
        "-m",
        "train.predict",
        str(path / "0.png"),
        "--checkpoint",
        str(path / "run.safetensors"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and not result.stderr
    assert len(result.stdout.splitlines()) == 6

    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does, once it has seen enough
    cut_off = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert cut_off.returncode == -signal.SIGPIPE and not cut_off.stderr


def test_hostile_names_and_sizes_in_a_checkpoint(folder, tmp_path, capsys):
    path, *_ = folder
    arrays, state = checkpoint.read(path / "run.safetensors")
    names = ["\x1b[2Jred\nalert", *state["classes"][1:]]
    checkpoint.write(tmp_path / "names.safetensors", arrays, {**state, "classes": names})
    assert main([str(path / "0.png"), "--checkpoint", str(tmp_path / "names.safetensors"), "--top", "10"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.count("\n") == 11 and r"\x1b[2Jred\nalert" in out
    checkpoint.write(tmp_path / "large.safetensors", arrays, {**state, "size": [8192, 8192]})
    assert main([str(path / "0.png"), "--checkpoint", str(tmp_path / "large.safetensors")]) == 1
    error = capsys.readouterr().err
    assert "large.safetensors asks for images of 8192 x 8192 pixels; at most 1,048,576" in error


def test_only_the_loaders_formats_are_opened(folder, tmp_path, capsys):
    path, *_ = folder
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    os.rename(tmp_path / "x.eps", tmp_path / "x.png")
    assert main([str(tmp_path / "x.png"), "--checkpoint", str(path / "run.safetensors")]) == 1
    assert "x.png is no readable image (PNG, JPEG, WEBP, BMP, GIF, TIFF)" in capsys.readouterr().err


def test_errors_are_one_line_without_escape_sequences(folder, tmp_path, capsys):
    path, *_ = folder
    image = tmp_path / "\x1b[2Jred\nalert.png"
    image.write_text("no image")
    assert main([str(image), "--checkpoint", str(path / "run.safetensors")]) == 1
    error = capsys.readouterr().err
    assert "\x1b" not in error and error.count("\n") == 1 and r"\x1b[2Jred\nalert.png is no readable image" in error


def test_a_checkpoint_whose_network_has_no_name_is_refused(folder, tmp_path, capsys):
    path, *_ = folder
    arrays, state = checkpoint.read(path / "run.safetensors")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for name in (1.5, [], {"a": 1}, True):
        state["config"]["model"] = name
        checkpoint.write(tmp_path / "x", arrays, state)
        assert main([str(tmp_path / "x.png"), "--checkpoint", str(tmp_path / "x")]) == 2
        assert "a network is created by its name, got " in capsys.readouterr().err
