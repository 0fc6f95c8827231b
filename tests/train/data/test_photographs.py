"""Photographs: of any size, orientation and format, in any folders; decoded once, on all cores."""

import io
import os
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import minigrad
from minigrad import registry
from train.data import DataError, cache, folders, load, read_image
from train.data.images import MARGIN, TURNS, centre_crop, open_image, photograph, quiet

EXIF_SUFFIXES = ("jpg", "png", "webp", "tif")
UNDO = {  # what a camera does to the picture before it stores it with this orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def scene(width: int = 96, height: int = 64) -> Image.Image:
    """A picture that no turn leaves as it is: red at the top left, green at the top right, blue at the bottom left."""
    image = Image.new("RGB", (width, height), "gray")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2, height // 2), "red")
    draw.rectangle((width // 2, 0, width, height // 2), "lime")
    draw.rectangle((0, height // 2, width // 2, height), "blue")
    return image


def store(path: Path, image: Image.Image, orientation: int, **options: object) -> None:
    """Write a picture as a camera that was held in this orientation writes it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = UNDO[orientation]
    path.parent.mkdir(parents=True, exist_ok=True)
    lossless = {"quality": 95} if path.suffix == ".jpg" else {"lossless": True} if path.suffix == ".webp" else {}
    (image.transpose(turn) if turn is not None else image).save(path, exif=exif, **lossless, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", EXIF_SUFFIXES)
@pytest.mark.parametrize("orientation", UNDO)
def test_all_orientations_are_upright_in_training_and_in_prediction(
    orientation: int, suffix: str, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            store(tmp_path / "data" / split / name / f"x.{suffix}", scene(), orientation)
    train_set, test_set = load(str(tmp_path / "data"), tmp_path, image_size=32, progress=False)
    expected = np.asarray(centre_crop(scene(), (32, 32), MARGIN)).transpose(2, 0, 1).astype(float)
    for image in test_set.images:
        assert abs(image - expected).mean() < 4
    squeezed = np.asarray(scene().resize((37, 37), Image.Resampling.BILINEAR)).transpose(2, 0, 1).astype(float)
    for image, aspect in zip(train_set.images, train_set.aspects, strict=True):
        assert abs(image - squeezed).mean() < 4 and aspect == 1.5
    seen = photograph(tmp_path / "data" / "test" / "a" / f"x.{suffix}", (32, 32), MARGIN)
    np.testing.assert_array_equal(seen.transpose(2, 0, 1), test_set.images[0])  # what train.predict looks at
    as_it_is, _ = load(str(tmp_path / "data"), tmp_path, progress=False)
    assert as_it_is.images.shape[2:] == (64, 96) and as_it_is.images[0, :, 5, 5].argmax() == 0


def test_turns_undo_what_cameras_do() -> None:
    for orientation, turn in TURNS.items():
        there = scene().transpose(UNDO[orientation])
        assert there.transpose(turn).tobytes() == scene().tobytes()


def test_large_photographs_are_decoded_smaller_and_look_the_same(tmp_path: Path) -> None:
    store(tmp_path / "x.jpg", scene(1920, 1280), 6)
    expected = np.asarray(centre_crop(scene(1920, 1280), (32, 32), MARGIN)).astype(float)
    assert abs(photograph(tmp_path / "x.jpg", (32, 32), MARGIN) - expected).mean() < 2
    with pytest.raises(DataError, match=r"would unpack to .* 1,048,576 are accepted; --image-size scales larger ones"):
        read_image(tmp_path / "x.jpg")
    with open_image(tmp_path / "x.jpg", 32) as image:
        assert image.size == (240, 160)  # an eighth, the smallest that a JPEG decoder makes by itself


@pytest.mark.parametrize("kind", ["webp", "bmp", "gif", "tiff", "mpo", "png"])
def test_every_format_is_read_and_of_several_frames_the_first(kind: str, tmp_path: Path) -> None:
    path, frames = tmp_path / f"x.{'jpg' if kind == 'mpo' else kind}", [scene(), Image.new("RGB", (96, 64))]
    options: dict = {} if kind == "bmp" else {"save_all": True, "append_images": frames[1:]}
    frames[0].save(path, kind, **options)
    assert abs(read_image(path).astype(float) - np.asarray(scene())).mean() < 4


def test_a_telephones_largest_photographs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 megapixels are more than twice Pillow's limit, but an eighth of each side is decoded; 2.4 stand for them."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    store(tmp_path / "x.jpg", scene(1920, 1280), 1)
    with quiet():
        assert photograph(tmp_path / "x.jpg", (32, 32), MARGIN).shape == (32, 32, 3)
    assert Image.MAX_IMAGE_PIXELS == 1_000_000


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    """A ramp from 0 to 1 would become black."""
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff is no readable image .its pixels are floating-point numbers"):
        read_image(tmp_path / "x.tiff")


def test_only_these_formats_are_opened_whatever_a_file_is_called(tmp_path: Path) -> None:
    scene().save(tmp_path / "x.eps")
    os.rename(tmp_path / "x.eps", tmp_path / "x.png")
    for read in (read_image, lambda path: photograph(path, (8, 8), 1.0)):
        with pytest.raises(DataError, match=r"x.png is no readable image \(PNG, JPEG, WEBP, BMP, GIF, TIFF\)"):
            read(tmp_path / "x.png")


def test_damaged_metadata_does_not_spoil_an_image(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    scene().save(buffer, "jpeg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    with warnings.catch_warnings(action="error"):
        assert read_image(tmp_path / "x.jpg").shape == (64, 96, 3)


# ---- folders -----------------------------------------------------------------------------------------------------


def fill(root: Path, counts: dict[str, int], suffix: str = "png") -> None:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            size = (int(rng.integers(20, 60)), int(rng.integers(20, 60)))
            Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist())).save(root / name / f"{i:03}.{suffix}")


def test_mixed_sizes_are_refused_with_advice(tmp_path: Path) -> None:
    fill(tmp_path / "p" / "train", {"a": 2, "b": 2})
    fill(tmp_path / "p" / "test", {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"pixels where the others are .* --image-size N scales them"):
        load(str(tmp_path / "p"), tmp_path)
    train_set, test_set = load(str(tmp_path / "p"), tmp_path, image_size=24, progress=False)
    assert train_set.images.shape == (4, 3, 27, 27) and test_set.images.shape == (2, 3, 24, 24)
    assert train_set.shown == test_set.shown == (24, 24) and (train_set.crop, test_set.crop) == (24, None)


def test_what_is_passed_over_is_counted_and_named_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "flowers"
    fill(root / "train", {"daisy": 6, "rose/red": 2, "rose/white": 1})
    fill(root / "test", {"daisy": 1, "rose": 1})
    for name in (
        "train/daisy/._0.png", "train/daisy/Thumbs.db", "train/daisy/notes.txt", "train/rose/red/x.heic",
        "train/rose/red/y.HEIC", "train/__MACOSX/daisy/0.png", "train/.ipynb_checkpoints/0.png", "train/readme",
        "train/rose/__MACOSX/z.png",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    (root / "train" / "rose" / "again").symlink_to(root / "train" / "rose")  # a link that leads back
    (root / "train" / "rose" / "elsewhere").symlink_to(root / "train" / "daisy")
    train_set, _ = load(str(root), tmp_path, image_size=16)
    assert train_set.classes == ["daisy", "rose"]
    assert np.bincount(train_set.labels).tolist() == [6, 9]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "flowers: passed over 8 files: 4 hidden or left by a system, 2 .txt, 2 .heic, 1 without a suffix in no class "
        "folder; .heic is not read: convert these to JPEG".replace("8 files", "9 files"),
        "flowers: 15 training and 2 test images, 2 classes of 6 (daisy) to 9 (rose)",
    ]


def test_imbalance_is_shown_before_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fill(tmp_path / "p" / "train", {"a": 9, "b": 3})
    fill(tmp_path / "p" / "test", {"a": 1, "b": 1})
    load(str(tmp_path / "p"), tmp_path, image_size=16)
    assert capsys.readouterr().err == (
        "p: 12 training and 2 test images, 2 classes of 3 (b) to 9 (a); the largest class has 3.0 times the images of "
        "the smallest: a network that always says a errs in 25.0 %\n"
    )


@pytest.mark.parametrize("flat", [False, True])
def test_a_share_is_kept_back_stratified_and_by_seed(tmp_path: Path, flat: bool) -> None:
    root = tmp_path / "p"
    fill(root if flat else root / "train", {"a": 10, "b": 5, "c": 2})
    with pytest.raises(DataError, match=r"--validate 0.2 keeps a fifth of the images back for testing"):
        load(str(root), tmp_path, image_size=16)
    splits = [load(str(root), tmp_path, image_size=16, validate=0.2, seed=s, progress=False) for s in (0, 0, 1)]
    for train_set, test_set in splits:
        assert np.bincount(train_set.labels).tolist() == [8, 4, 1]
        assert np.bincount(test_set.labels).tolist() == [2, 1, 1]
    np.testing.assert_array_equal(splits[0][1].images, splits[1][1].images)
    assert (splits[0][1].images != splits[2][1].images).any()
    classes = {name: [Path(f"{name}{i}") for i in range(n)] for name, n in (("a", 10), ("b", 5))}
    rest, kept = folders.split_off(classes, 0.3, 7)
    for name, files in classes.items():
        assert sorted(rest[name] + kept[name]) == sorted(files) and not set(rest[name]) & set(kept[name])


@pytest.mark.parametrize(
    ("data", "options", "sentence"),
    [
        ("shapes", {"image_size": 32}, "--image-size is for folders of images, not for shapes"),
        ("cifar10", {"validate": 0.5}, "--validate is for folders of images, not for cifar10"),
        (".", {"image_size": 7}, r"--image-size must lie in 8\.\.1024, got 7"),
        (".", {"image_size": 16.0}, r"--image-size must lie in 8\.\.1024, got 16.0"),
        (".", {"image_size": 1025}, r"--image-size must lie in 8\.\.1024, got 1025"),
        (".", {"validate": 1.0}, "--validate takes a share above 0 and below 1, got 1"),
        ("both", {"validate": 0.5}, "both/test is there: --validate is for folders without one"),
        ("single", {"validate": 0.5, "image_size": 16}, "class 'b' has a single image"),
    ],
)
def test_options_that_do_not_fit(data: str, options: dict, sentence: str, tmp_path: Path) -> None:
    fill(tmp_path / "both" / "train", {"a": 2, "b": 2})
    fill(tmp_path / "both" / "test", {"a": 2, "b": 2})
    fill(tmp_path / "single", {"a": 2, "b": 1})
    with pytest.raises(ValueError, match=sentence):
        load(str(tmp_path / data) if data in ("both", "single") else data, tmp_path, **options)


# ---- what is kept ------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each file is decoded."""
    counts, read = Counter[str](), cache.Decoding.read

    def counting(self: cache.Decoding, path: Path) -> tuple[np.ndarray, float]:
        counts[path.name] += 1
        return read(self, path)

    monkeypatch.setattr(cache.Decoding, "read", counting)
    return counts


@pytest.mark.skipif(not registry.fast("cpu"), reason="the formulas have no threads of their own")
def test_as_many_threads_decode_as_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--threads 1`, and a container's quota, hold for decoding as well."""
    fill(tmp_path, {"a": 2, "b": 2})
    pools: list[int] = []

    def pool(size: int) -> ThreadPoolExecutor:
        pools.append(size)
        return ThreadPoolExecutor(size)

    monkeypatch.setattr(cache, "ThreadPoolExecutor", pool)
    before = minigrad.fast.cpu.threads()
    minigrad.fast.cpu.set_threads(3)
    try:
        load(str(tmp_path), tmp_path / "root", image_size=8, validate=0.5, progress=False)
    finally:
        minigrad.fast.cpu.set_threads(before)
    assert pools == [3, 3], "for the training and the test images"


def test_classes_that_change_places_are_decoded_again(tmp_path: Path) -> None:
    """All files as large and as old as each other, as unpacked in one moment; only their numbers differ."""
    for name, grey in (("bee", 20), ("cat", 220)):
        (tmp_path / "p" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (grey,) * 3).save(tmp_path / "p" / name / f"{i}.bmp")
            os.utime(tmp_path / "p" / name / f"{i}.bmp", ns=(0, 12345))

    def first_class() -> int:
        train, _ = load(str(tmp_path / "p"), tmp_path / "root", image_size=16, validate=0.25, progress=False)
        return int(train.images[train.labels == 0].mean())

    assert first_class() == 20
    for old, new in (("bee", "x"), ("cat", "bee"), ("x", "cat")):
        (tmp_path / "p" / old).rename(tmp_path / "p" / new)
    assert first_class() == 220


def test_what_was_decoded_is_kept_until_a_file_changes(tmp_path: Path, reads: Counter[str]) -> None:
    root = tmp_path / "p"
    fill(root, {"a": 4, "b": 4})

    def read(**options: object) -> tuple:
        reads.clear()
        return load(str(root), tmp_path / "root", **{"image_size": 16, "validate": 0.25, "progress": False} | options)

    first = read()
    assert reads.total() == 8
    second = read()
    assert reads.total() == 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(first[0].aspects, second[0].aspects)
    read(image_size=20)
    assert reads.total() == 8
    os.utime(root / "a" / "000.png", ns=(0, 12345))
    read()
    assert reads.total() in (2, 6)  # the split that it is in
    os.rename(root / "a" / "000.png", root / "a" / "zero.png")
    read()
    assert reads["zero.png"] == 1
    for kept in (tmp_path / "root" / "decoded").rglob("*.safetensors"):
        content = bytearray(kept.read_bytes())
        content[-9] ^= 1
        kept.write_bytes(content)
    damaged = read()
    assert reads.total() == 8
    np.testing.assert_array_equal(damaged[0].images, read()[0].images)
    assert reads.total() == 0
    assert not list((tmp_path / "root").rglob("*.part"))


def test_old_results_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT", 3)
    fill(tmp_path / "p", {"a": 2, "b": 2})
    for size in (8, 9, 10, 11):
        load(str(tmp_path / "p"), tmp_path / "root", image_size=size, validate=0.5, progress=False)
    assert len(list((tmp_path / "root" / "decoded").rglob("*.safetensors"))) == 3


def test_what_killed_decoders_left_behind_makes_room_too(tmp_path: Path) -> None:
    fill(tmp_path / "p", {"a": 2, "b": 2})
    load(str(tmp_path / "p"), tmp_path / "root", image_size=8, validate=0.5, progress=False)
    folder = next((tmp_path / "root" / "decoded").rglob("*.safetensors")).parent
    for name, hours in (("old", 2), ("another.decoder.writes.now", 0)):
        (folder / f"{name}.part").write_bytes(b"half")
        then = time.time() - 3600 * hours
        os.utime(folder / f"{name}.part", (then, then))
    load(str(tmp_path / "p"), tmp_path / "root", image_size=9, validate=0.5, progress=False)
    assert [path.name for path in folder.glob("*.part")] == ["another.decoder.writes.now.part"]


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fill(tmp_path / "p", {"a": 2, "b": 2})
    (tmp_path / "root").write_text("a file")
    assert len(load(str(tmp_path / "p"), tmp_path / "root", image_size=16, validate=0.5)[0]) == 2
    assert "the decoded images are not kept in" in capsys.readouterr().err


def test_what_pillow_logs_about_a_damaged_image_is_not_printed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would stand on standard error beside the sentence that names the file."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "TIFF")
    samples = (0x0115).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    (tmp_path / "x.tif").write_bytes(buffer.getvalue().replace(samples + b"\x03\0", samples + b"\xff\xff"))
    with pytest.raises(DataError, match=r"x\.tif is no readable image"):
        read_image(tmp_path / "x.tif")
    assert caplog.records == []
