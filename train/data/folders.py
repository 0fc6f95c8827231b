"""Class folders: one folder of images for each class, with more folders in it or not.

flowers/train/daisy/0001.jpg        or, for `validate`,     flowers/daisy/0001.jpg
flowers/test/daisy/0001.jpg         (or testing/, val/, valid/, validation/, training/ for train/; in any case)
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from minigrad.ops.arguments import is_integer
from train.data import cache
from train.data.dataset import Dataset, channel_statistics
from train.data.download import DataError
from train.data.fetch import note, silent
from train.data.images import MAX_PIXELS, SUFFIXES

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
JUNK = ("__macosx", "thumbs.db", "desktop.ini")  # what systems leave behind; hidden files are junk as well

Classes = dict[str, list[Path]]  # the image files of each class, both sorted by name


def is_junk(name: str) -> bool:
    """Whether a file or folder is nobody's: hidden (.ipynb_checkpoints, ._0001.jpg) or left behind by a system."""
    return name.startswith(".") or name.lower() in JUNK


def files_below(folder: Path, passed: Counter[str]) -> Iterator[Path]:
    """Every image file in a folder and in the folders in it; what is passed over is counted by its kind."""

    def refuse(error: OSError) -> None:
        raise error  # os.walk would leave out a folder that cannot be read, and say nothing

    seen = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        identity = os.path.realpath(place)
        if identity in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not is_junk(name))
        for name in sorted(files):
            path = Path(place, name)
            if is_junk(name):
                passed["hidden or left by a system"] += 1
            elif path.suffix.lower() in SUFFIXES and path.is_file():
                yield path
            else:
                passed[path.suffix.lower() or "without a suffix"] += 1


def class_folders(split: Path, passed: Counter[str]) -> Classes:
    """The image files of each class below `split`. Raises DataError where there are no two classes, or one is empty."""
    classes = {}
    for folder in sorted(split.iterdir()):
        if not folder.is_dir():
            kind = folder.suffix.lower() or "without a suffix"
            passed["hidden or left by a system" if is_junk(folder.name) else f"{kind} in no class folder"] += 1
        elif not is_junk(folder.name):
            classes[folder.name] = list(files_below(folder, passed))
            if not classes[folder.name]:
                raise DataError(f"{folder} holds no image file ({', '.join(SUFFIXES)}){heic(passed)}")
    if len(classes) < 2:
        raise DataError(f"{split} needs at least two class folders with images, found {len(classes)}")
    return classes


def heic(passed: Counter[str]) -> str:
    """What an owner of an iPhone wants to know."""
    return "; .heic is not read: convert these to JPEG" if passed[".heic"] or passed[".heif"] else ""


def holds_classes(folder: Path) -> bool:
    """Whether a folder has class folders with images right in it."""
    try:
        places = [f for f in folder.iterdir() if f.is_dir() and not is_junk(f.name)]
        return any(next(files_below(place, Counter()), None) for place in places)
    except OSError:
        return False


def find_split(folder: Path, names: tuple[str, ...], least: int = 1) -> Path | None:
    """The first folder of these names, in upper or lower case, with at least `least` folders in it.

    Any other is a class, or no split: `train` is also a thing that can be photographed, and an unlabelled `test` holds
    images without classes, or a single folder of them.
    """
    found = {f.name.lower(): f for f in sorted(folder.iterdir(), reverse=True) if f.is_dir()}
    splits = (found[name] for name in names if name in found)
    return next((s for s in splits if sum(f.is_dir() and not is_junk(f.name) for f in s.iterdir()) >= least), None)


def split_off(classes: Classes, share: float, seed: int) -> tuple[Classes, Classes]:
    """Keep `share` of each class's files back, drawn by `seed`: (the rest, what is kept back), both sorted.

    At least one file of each class goes to either side.
    """
    rest, kept = {}, {}
    for label, (name, files) in enumerate(classes.items()):
        if len(files) < 2:
            raise DataError(f"class {name!r} has a single image: --validate needs at least two of each class")
        number = min(max(round(share * len(files)), 1), len(files) - 1)
        chosen = set(np.random.default_rng((seed, label)).permutation(len(files))[:number].tolist())
        kept[name] = [file for i, file in enumerate(files) if i in chosen]
        rest[name] = [file for i, file in enumerate(files) if i not in chosen]
    return rest, kept


def find_splits(folder: Path, validate: float | None, seed: int, passed: Counter[str]) -> tuple[Classes, Classes]:
    """The files of the training and of the test set, by class. Raises DataError where the classes differ."""
    train_folder, test_folder = find_split(folder, TRAIN_FOLDERS), find_split(folder, TEST_FOLDERS, least=2)
    if test_folder and validate and train_folder:
        raise DataError(f"{test_folder} is there: --validate is for folders without one")
    tests = sorted(f.name for f in folder.iterdir() if f.name.lower() in TEST_FOLDERS and f.is_dir())
    if tests and not train_folder:  # else a network would be trained to tell "test" from "train", or from the classes
        raise DataError(f"{folder} has {tests[0]}/ but no train/ with class folders beside it")
    if not test_folder and not validate:
        there = f"has {train_folder.name}/ but no" if train_folder else "has class folders but neither train/ nor"
        raise DataError(
            f"{folder} {there} test/, val/, valid/ or validation/ with two class folders or more beside it; "
            "--validate 0.2 keeps a fifth of the images back for testing"
        )
    train = class_folders(train_folder or folder, passed)
    if not test_folder:
        return split_off(train, validate or 0.0, seed)
    test = class_folders(test_folder, passed)
    if list(train) != list(test):
        odd = sorted(set(train) ^ set(test))
        raise DataError(
            f"{folder}: {(train_folder or folder).name}/ has {len(train)} classes and {test_folder.name}/ has "
            f"{len(test)}, and {odd[0]!r} is only in one of them"
        )
    return train, test


def take_turns(classes: Classes) -> Iterable[tuple[Path, int]]:
    """Every file with its label, the first of each class, then the second of each, ...: a limit keeps all classes."""
    for i in range(max(len(files) for files in classes.values())):
        for label, files in enumerate(classes.values()):
            if i < len(files):
                yield files[i], label


def balance(name: str, train: Classes, test: Classes) -> str:
    """How many images each class has, in a sentence: a network that always says the largest may look good."""
    counts = {kind: len(files) for kind, files in train.items()}
    least, most = min(counts, key=lambda k: counts[k]), max(counts, key=lambda k: counts[k])
    total, tests = sum(counts.values()), sum(map(len, test.values()))
    classes = f"{len(counts)} equally large classes"
    if counts[least] < counts[most]:
        classes = f"{len(counts)} classes of {counts[least]:,} ({least}) to {counts[most]:,} ({most})"
    unequal = ""
    if counts[most] >= 2 * counts[least]:
        unequal = (
            f"; the largest class has {counts[most] / counts[least]:.1f} times the images of the smallest: a network "
            f"that always says {most} errs in {100 * (1 - counts[most] / total):.1f} %"
        )
    return f"{name}: {total:,} training and {tests:,} test images, {classes}{unequal}"


def load_class_folder(
    folder: Path,
    root: Path,
    *,
    image_size: int | None = None,
    validate: float | None = None,
    seed: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    progress: bool = True,
    tested: bool = False,
) -> tuple[Dataset, Dataset]:
    """Read train/<class>/ and test/<class>/, or <class>/ alone with a share `validate` kept back for testing.

    Without `image_size` all images must have one size. With it they may have any: tests see the central `image_size`
    pixels of each, training random parts of it (`augment.random_resized_crop`). What was decoded is kept below `root`.
    With `tested` only the test set is wanted: no train/ is needed then.
    """
    name, passed = folder.resolve().name, Counter[str]()
    try:
        test_folder = find_split(folder, TEST_FOLDERS, least=2) if tested else None
        if test_folder:
            train = test = class_folders(test_folder, passed)
        else:
            train, test = find_splits(folder, validate, seed, passed)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
    say = note if progress else silent
    if passed:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in passed.most_common())
        say(f"{name}: passed over {sum(passed.values()):,} files: {kinds}{heic(passed)}")
    if not tested:
        say(balance(name, train, test))

    parts, wrong = [], dict[Path, DataError]()
    for split, classes, limit in (("training", train, limit_train), ("test", test, limit_test)):
        files = list(take_turns(classes))[:limit]
        paths = [path for path, _ in files]
        labels = np.array([label for _, label in files], np.int64)
        kind = "squeezed" if split == "training" else "middle"
        how = cache.Decoding(kind, image_size) if image_size else cache.AS_IT_IS
        try:
            parts.append((cache.decoded(paths, how, root / "decoded", folder, f"{split} images", progress), labels))
        except cache.Unreadable as error:
            wrong |= error.wrong
    if wrong:
        raise cache.Unreadable(wrong)
    (images, aspects), labels = parts[0]
    (test_images, _), test_labels = parts[1]
    if not image_size and images.shape[2:] != test_images.shape[2:]:
        (H, W), (h, w) = images.shape[2:], test_images.shape[2:]
        raise DataError(f"the test images are {w} x {h} pixels where the training images are {W} x {H}; {cache.ADVICE}")
    mean, std = channel_statistics(images)
    return (
        Dataset(images, labels, list(train), name, mean, std, aspects if image_size else None, image_size),
        Dataset(test_images, test_labels, list(train), name, mean, std),
    )


def check_options(image_size: int | None, validate: float | None) -> None:
    """Raise ValueError for an image size or a share that is out of range."""
    most = int(MAX_PIXELS**0.5)
    if image_size is not None and not (is_integer(image_size) and 8 <= image_size <= most):
        raise ValueError(f"--image-size must lie in 8..{most}, got {image_size}")
    if validate is not None and not 0 < validate < 1:
        raise ValueError(f"--validate takes a share above 0 and below 1, got {validate:g}")
