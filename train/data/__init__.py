"""Where images come from: the official CIFAR binary files, class folders, drawn shapes.

`load` is the way in. Everything it reads is untrusted until checked: sizes, labels, archive members and images that are
not what they should be end in a `DataError`, one sentence that names the file and the numbers. Nothing is unpickled,
nothing is unpacked to disk, and no more is read than an honest file holds.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minigrad.ops.arguments import is_integer
from train.data import shapes
from train.data.archives import read_archive, read_folder
from train.data.dataset import Dataset, channel_statistics
from train.data.download import DataError
from train.data.folders import TRAIN_FOLDERS, check_options, find_split, holds_classes, load_class_folder
from train.data.formats import CIFAR10, CIFAR100, FORMATS, BinaryFormat, decode
from train.data.images import SUFFIXES, read_image
from train.data.sources import find_official

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "BinaryFormat",
    "DataError",
    "Dataset",
    "channel_statistics",
    "decode",
    "load",
    "read_archive",
    "read_folder",
    "read_image",
]

SHAPES_TRAIN, SHAPES_TEST = 5_000, 1_000  # drawn images


def load(
    data: str,
    root: Path | str,
    *,
    seed: int = 0,
    mirror: str | Sequence[str] | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    image_size: int | None = None,
    validate: float | None = None,
    progress: bool = True,
    tested: bool = False,
) -> tuple[Dataset, Dataset]:
    """Load the training and the test set that `data` names.

    `data` is `cifar10` or `cifar100` (taken from `root`, in whatever official form, or from where torchvision and Keras
    keep it, else downloaded into `root` from one of the known addresses or `mirror`, one or several), `shapes` (drawn
    from `seed`), or a path: a folder with the official files, binary or for Python, an official archive, or a folder
    with train/<class>/ and test/<class>/, of which `image_size` and `validate` say what folders.py does with it. At
    most the first `limit_train` and `limit_test` images are taken, in the order in which they are stored; class folders
    are read class by class in turn. With `tested` only the test set is wanted, for a network that is trained already:
    of the other there is one image.
    Raises DataError, or ValueError for a limit that is no positive integer.
    """
    for name, limit in (("limit_train", limit_train), ("limit_test", limit_test)):
        if limit is not None and not (is_integer(limit) and limit > 0):
            raise ValueError(f"{name} must be a positive integer, got {limit}")
    check_options(image_size, validate)
    path, root, limit_train = Path(data), Path(root), 1 if tested else limit_train
    if data == "shapes" or data in {format.name for format in FORMATS} or not path.is_dir():
        for option, value in (("--image-size", image_size), ("--validate", validate)):
            if value is not None:
                raise ValueError(f"{option} is for folders of images, not for {data}")
    if data == "shapes":
        splits = []
        for split, number, limit in ((0, SHAPES_TRAIN, limit_train), (1, SHAPES_TEST, limit_test)):
            images, labels = shapes.draw_shapes(min(number, limit or number), seed, split)
            mean, std = np.array(shapes.MEAN), np.array(shapes.STD)
            splits.append(Dataset(images, labels, list(shapes.CLASSES), "shapes", mean, std))
        return splits[0], splits[1]

    mirrors = [mirror] if isinstance(mirror, str) else mirror or ()
    found = find_official(data, root, mirrors, progress)
    if found is not None:
        contents, where, format = found
        train = decode(contents, format.train_files, format, limit_train, where)
        return train, decode(contents, format.test_files, format, limit_test, where)

    if path.is_dir() and (find_split(path, TRAIN_FOLDERS) or holds_classes(path)):
        return load_class_folder(
            path,
            root,
            image_size=image_size,
            validate=validate,
            seed=seed,
            limit_train=limit_train,
            limit_test=limit_test,
            progress=progress,
            tested=tested,
        )
    names = ", ".join(archive.remote.name for format in FORMATS for archive in format.archives)
    if path.is_file():
        raise DataError(f"{path} is not one of the official archives, {names}")
    if path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in path.iterdir()):
        raise DataError(f"{path} holds images but no class folders: put them into a folder for each class")
    if path.is_dir():
        raise DataError(
            f"{path} holds neither data_batch_1.bin ... nor train.bin, directly or in cifar-10-batches-bin/ or "
            "cifar-100-binary/, nor cifar-10-batches-py/ or cifar-100-python/, nor train/<class>/ or "
            "<class>/ with images"
        )
    raise DataError(f"data {data!r} is not cifar10, cifar100 or shapes, and there is no such folder or file")
