"""Class folders: what is read, what is refused, and that each refusal names the file and the numbers."""

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.data import DataError, cache, channel_statistics, load, read_image


def write_images(root: Path, train: str = "train", test: str = "test", size: tuple[int, int] = (6, 5)) -> np.ndarray:
    """Two classes with three and two training images and a test image each; returns the pixels by file, sorted."""
    rng = np.random.default_rng(0)
    pixels = []
    for path in (f"{train}/cat/0.png", f"{train}/cat/1.PNG", f"{train}/cat/2.png", f"{train}/dog/a.png",
                 f"{train}/dog/b.png", f"{test}/cat/x.png", f"{test}/dog/y.png"):  # fmt: skip
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels.append(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        Image.fromarray(pixels[-1]).save(root / path, format="png")
    return np.stack(pixels).transpose(0, 3, 1, 2)


def test_the_two_sets_are_found_in_any_case(tmp_path: Path) -> None:
    """Else a network is trained to tell "Train" from "Test"."""
    for train, test in (("Train", "Test"), ("training", "TESTING"), ("train", "Val")):
        root = tmp_path / train
        write_images(root, train, test)
        assert [d.classes for d in load(str(root), tmp_path)] == [["cat", "dog"]] * 2
        with pytest.raises(DataError, match=f"{test} is there: --validate is for folders without one"):
            load(str(root), tmp_path, validate=0.5, image_size=16)
    write_images(tmp_path / "other", "pictures", "Test")
    for name in ("train", "Test"):  # images without class folders
        (tmp_path / "flat" / name).mkdir(parents=True)
        (tmp_path / "flat" / name / "1.png").hardlink_to(tmp_path / "other" / "Test" / "dog" / "y.png")
    for root in (tmp_path / "other", tmp_path / "flat"):
        with pytest.raises(DataError, match="has Test/ but no train/ with class folders beside it"):
            load(str(root), tmp_path, validate=0.5, image_size=16)


def test_a_test_set_without_classes_is_none(tmp_path: Path) -> None:
    """Competitions give out test images without labels."""
    write_images(tmp_path, test="elsewhere")
    (tmp_path / "test").mkdir()
    (tmp_path / "elsewhere" / "cat" / "x.png").rename(tmp_path / "test" / "1.png")
    with pytest.raises(
        DataError, match=r"has train/ but no test/, .* with two class folders or more beside it; --validate 0.2"
    ):
        load(str(tmp_path), tmp_path)
    train_set, test_set = load(str(tmp_path), tmp_path, validate=0.5, image_size=16)
    assert train_set.classes == ["cat", "dog"] and len(train_set) + len(test_set) == 5


def test_a_single_folder_of_test_images_is_no_test_set(tmp_path: Path) -> None:
    """Other competitions put the unlabelled images into one folder: test/unknown/0001.jpg."""
    write_images(tmp_path, test="test")
    shutil.rmtree(tmp_path / "test" / "dog")
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "unknown")
    with pytest.raises(DataError, match=r"no test/, .* with two class folders or more beside it; --validate 0.2"):
        load(str(tmp_path), tmp_path)
    train_set, test_set = load(str(tmp_path), tmp_path, validate=0.5, image_size=16)
    assert train_set.classes == ["cat", "dog"] and len(train_set) + len(test_set) == 5


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path / "vehicles", "a", "b")
    for old, new in (("cat", "bus"), ("dog", "train")):
        (tmp_path / "vehicles" / "a" / old).rename(tmp_path / "vehicles" / "a" / new)
    train_set, _ = load(str(tmp_path / "vehicles" / "a"), tmp_path, validate=0.5, image_size=16)
    assert train_set.classes == ["bus", "train"]


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    (tmp_path / "train" / "cat" / "more").mkdir()
    scandir = os.scandir

    def broken(path: str) -> object:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(DataError, match=r"cannot read .*more: Permission denied"):
        load(str(tmp_path), tmp_path)


@pytest.mark.parametrize("test", ["test", "val"])
def test_reads_class_folders_taking_classes_in_turn(tmp_path: Path, test: str) -> None:
    pixels = write_images(tmp_path, test=test)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("passed over")
    (tmp_path / "train" / "cat" / "._0.png").write_text("passed over")
    (tmp_path / "train" / ".hidden").mkdir()
    train_set, test_set = load(str(tmp_path), tmp_path)
    assert train_set.classes == test_set.classes == ["cat", "dog"]
    assert train_set.name == tmp_path.name
    assert train_set.labels.tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_array_equal(train_set.images, pixels[[0, 3, 1, 4, 2]])
    np.testing.assert_array_equal(test_set.images, pixels[5:])
    few, fewer = load(str(tmp_path), tmp_path, limit_train=2, limit_test=1)
    np.testing.assert_array_equal(few.images, train_set.images[:2])
    assert fewer.labels.tolist() == [0]
    reference = train_set.images.astype(np.float64)
    for split in (train_set, test_set):
        np.testing.assert_allclose(split.mean, reference.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(split.std, reference.std(axis=(0, 2, 3)), rtol=1e-12)


def test_statistics_of_many_and_of_constant_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 3, 2), dtype=np.uint8)
    images[:, 1] = 7
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.astype(np.float64).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[[0, 2]], images[:, [0, 2]].astype(np.float64).std(axis=(0, 2, 3)), rtol=1e-12)
    assert std[1] == 1


def spoil(path: str, action: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: action(root / path)


def save(mode: str, size: tuple[int, int] = (6, 5)) -> Callable[[Path], object]:
    return lambda path: Image.new(mode, size).save(path)


def remove_folder(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def bomb(path: Path) -> None:
    """A small PNG file that claims 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))))


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "size": (
        spoil("train/dog/b.png", save("RGB", (6, 6))),
        r"dog/b.png is 6 x 6 pixels where the others are 6 x 5; .* or --image-size",
    ),
    "test size": (
        lambda root: [save("RGB", (1, 5))(root / name) for name in ("test/dog/y.png", "test/cat/x.png")],
        r"the test images are 1 x 5 pixels where the training images are 6 x 5; .* --image-size N scales them",
    ),
    "truncated": (spoil("train/cat/0.png", lambda p: p.write_bytes(p.read_bytes()[:70])), "cat/0.png is no readable"),
    "empty": (spoil("train/cat/0.png", lambda p: p.write_bytes(b"")), "cat/0.png is no readable image"),
    "text": (spoil("train/cat/0.png", lambda p: p.write_text("hello")), "cat/0.png is no readable image"),
    "large": (spoil("train/cat/0.png", save("1", (1100, 1000))), "0.png would unpack to 1100 x 1000 pixels; at most"),
    "huge": (spoil("train/cat/0.png", lambda p: os.truncate(p, 1 << 40)), "0.png has 1,099,511,627,776 bytes; at most"),
    "bomb": (spoil("train/cat/0.png", bomb), r"0.png (would unpack|is no readable)"),
    "empty class": (spoil("train/owl", Path.mkdir), r"train/owl holds no image file \(.png, .jpg, "),
    "classes": (
        spoil("test/dog", lambda p: p.rename(p.with_name("owl"))),
        "has 2, and 'dog' is only in one of them",
    ),
    "one class": (spoil("test/dog", remove_folder), "no test/, .* with two class folders or more beside it"),
    "no test": (
        spoil("test", lambda p: p.rename(p.with_name("tests"))),
        "has train/ but no test/, val/, .* beside it; --validate 0.2 keeps a fifth",
    ),
}


@pytest.mark.parametrize("kind", FOLDER_FAULTS)
def test_a_faulty_class_folder_is_refused(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path)
    action, sentence = FOLDER_FAULTS[kind]
    action(tmp_path)
    with pytest.raises(DataError, match=sentence) as caught:
        load(str(tmp_path), tmp_path)
    assert "\n" not in str(caught.value)


def test_all_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A person who repairs a folder is not sent back for each of them, nor for those of the test set."""
    write_images(tmp_path)
    bad = [tmp_path / name for name in ("train/cat/0.png", "train/dog/b.png", "test/dog/y.png")]
    for path in bad:
        path.write_text("hello")
    with pytest.raises(DataError) as caught:
        load(str(tmp_path), tmp_path)
    reason = "is no readable image (PNG, JPEG, WEBP, BMP, GIF, TIFF)"
    assert str(caught.value) == f"{bad[0]} {reason}; 2 more cannot be read: {bad[1]}, {bad[2]}"
    assert str(cache.Unreadable(dict.fromkeys(map(Path, "abcdefghi"), DataError("a is bad")))) == (
        "a is bad; 8 more cannot be read: b, c, d, e, f, g, ..."
    )


def test_images_in_no_class_folder_are_told_so(tmp_path: Path) -> None:
    write_images(tmp_path)
    with pytest.raises(DataError, match=r"train/cat holds images but no class folders: put them into a folder for"):
        load(str(tmp_path / "train" / "cat"), tmp_path)


def test_a_fifo_among_the_images_does_not_hang(tmp_path: Path) -> None:
    write_images(tmp_path)
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    assert len(load(str(tmp_path), tmp_path)[0]) == 5


def one_pixel(tmp_path: Path, image: Image.Image, suffix: str = "png", **options: object) -> list[int]:
    path = tmp_path / f"image.{suffix}"
    image.save(path, **options)  # type: ignore[arg-type]
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (image.height, image.width, 3)
    return pixels[0, 0].tolist()


def test_paths_may_be_text(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    folder, root = str(tmp_path / "images"), str(tmp_path / "root")
    assert read_image(f"{folder}/test/cat/x.png").shape == (5, 6, 3)
    for data in (load(folder, root), load(folder, root, image_size=16)):
        assert [len(part) for part in data] == [5, 2]
    with pytest.raises(DataError, match=r"none\.png"):
        read_image(f"{folder}/none.png")


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    assert one_pixel(tmp_path, Image.new("RGB", (3, 2), (1, 2, 3))) == [1, 2, 3]
    assert one_pixel(tmp_path, Image.new("L", (3, 2), 77)) == [77, 77, 77]
    assert one_pixel(tmp_path, Image.new("1", (3, 2), 1)) == [255, 255, 255]
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert one_pixel(tmp_path, palette) == [9, 8, 7]
    assert one_pixel(tmp_path, palette, transparency=1) == [255, 255, 255]
    assert one_pixel(tmp_path, Image.new("RGBA", (3, 2), (10, 20, 30, 255))) == [10, 20, 30]
    assert one_pixel(tmp_path, Image.new("RGBA", (3, 2), (10, 20, 30, 0))) == [255, 255, 255]
    assert one_pixel(tmp_path, Image.new("RGBA", (3, 2), (0, 0, 0, 51))) == [204, 204, 204]
    assert one_pixel(tmp_path, Image.new("LA", (3, 2), (100, 255))) == [100, 100, 100]
    grey16 = Image.fromarray(np.full((2, 3), 0xABCD, np.uint16))
    assert one_pixel(tmp_path, grey16) == [0xAB, 0xAB, 0xAB]
    assert one_pixel(tmp_path, Image.new("CMYK", (3, 2), (0, 0, 0, 255)), "jpg") == [0, 0, 0]
    close = one_pixel(tmp_path, Image.new("RGB", (8, 8), (200, 100, 50)), "jpeg", quality=95)
    np.testing.assert_allclose(close, [200, 100, 50], atol=3)


def test_sixteen_bit_colour_keeps_the_upper_bits(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">3H", 0x1234, 0xABCD, 0xFF00)
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert read_image(tmp_path / "x.png")[0, 0].tolist() == [0x12, 0xAB, 0xFF]
