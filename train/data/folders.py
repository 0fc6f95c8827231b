"""Class folders: one folder of images for each class."""

import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from train.data.dataset import Dataset, channel_statistics
from train.data.download import DataError

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 1 << 20  # of one image; more is taken for a decompression bomb
MAX_BYTES = 16 * MAX_PIXELS  # of its file: twice the size of such an image uncompressed, in 16 bits with alpha


def read_image(path: Path) -> np.ndarray:
    """Decode one PNG or JPEG file to RGB: (H, W, 3) uint8.

    Grey becomes three equal channels, a palette its colours, CMYK RGB; of 16-bit samples the upper 8 bits count; where
    an image is transparent, white shows through. Raises DataError for an image that is damaged, cut off, animated or
    larger than MAX_PIXELS.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are accepted for an image")
        # Decoded from memory, where a chunk that claims gigabytes gets no more than there is. Pillow warns about
        # metadata that does not matter here; its own limit against bombs lies above MAX_PIXELS.
        file = io.BytesIO(path.read_bytes())
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                pixels = f"{image.width} x {image.height} pixels"
                raise DataError(f"{path} would unpack to {pixels}; at most {MAX_PIXELS:,} are accepted")
            frames = getattr(image, "n_frames", 1)
            if frames != 1:
                raise DataError(f"{path} is animated: it has {frames} frames")
            if image.mode.startswith("I"):  # 16-bit grey
                grey = np.asarray(image).astype(np.int64) >> 8
                return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
            return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path} is no readable PNG or JPEG image") from None
    except Exception as error:  # Pillow's decoders raise a dozen types for damaged files, SyntaxError among them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is no readable PNG or JPEG image ({reason})") from None


def class_folders(split: Path) -> dict[str, list[Path]]:
    """The image files of each class below `split`, both sorted by name; hidden and other files are passed over."""
    classes = {}
    for folder in sorted(split.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        files = [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.name[0] != "." and f.is_file()]
        if not files:
            raise DataError(f"{folder} holds no .png, .jpg or .jpeg file")
        classes[folder.name] = sorted(files)
    if len(classes) < 2:
        raise DataError(f"{split} needs at least two class folders with images, found {len(classes)}")
    return classes


def take_turns(classes: dict[str, list[Path]]) -> Iterable[tuple[Path, int]]:
    """Every file with its label, the first of each class, then the second of each, ...: a limit keeps all classes."""
    for i in range(max(len(files) for files in classes.values())):
        for label, files in enumerate(classes.values()):
            if i < len(files):
                yield files[i], label


def read_split(
    classes: dict[str, list[Path]], limit: int | None, shape: tuple[int, ...] | None, split: str, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split; `shape` (H, W) is what the images must have, None takes it from the first."""
    files = list(take_turns(classes))[:limit]
    images = np.empty(0, np.uint8)
    for i, (path, _) in enumerate(
        tqdm(files, desc=f"{split} images", unit=" images", disable=None if progress else True)
    ):
        pixels = read_image(path)
        if shape is None:
            shape = pixels.shape[0], pixels.shape[1]
        if pixels.shape[:2] != shape:
            raise DataError(
                f"{path} is {pixels.shape[1]} x {pixels.shape[0]} pixels where the others are {shape[1]} x {shape[0]}; "
                "all images must have one size"
            )
        if i == 0:
            images = np.empty((len(files), 3, *shape), np.uint8)
        images[i] = pixels.transpose(2, 0, 1)
    return images, np.array([label for _, label in files], np.int64)


def load_class_folder(
    folder: Path, limit_train: int | None, limit_test: int | None, progress: bool
) -> tuple[Dataset, Dataset]:
    """Read train/<class>/ and test/<class>/ (val/<class>/ where there is no test/), PNG or JPEG, all of one size."""
    test_folder = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if test_folder is None:
        raise DataError(f"{folder} has train/ but neither test/ nor val/ beside it")
    try:
        train_classes, test_classes = class_folders(folder / "train"), class_folders(test_folder)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
    if list(train_classes) != list(test_classes):
        odd = sorted(set(train_classes) ^ set(test_classes))
        raise DataError(
            f"{folder}: train/ has {len(train_classes)} classes and {test_folder.name}/ has {len(test_classes)}, "
            f"and {odd[0]!r} is only in one of them"
        )
    images, labels = read_split(train_classes, limit_train, None, "training", progress)
    test_images, test_labels = read_split(test_classes, limit_test, images.shape[2:], "test", progress)
    classes, name = list(train_classes), folder.resolve().name
    mean, std = channel_statistics(images)
    return (
        Dataset(images, labels, classes, name, mean, std),
        Dataset(test_images, test_labels, classes, name, mean, std),
    )
