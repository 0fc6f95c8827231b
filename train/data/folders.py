"""Where images come from: the official CIFAR binary files, class folders, drawn shapes.

`load` is the way in. Everything it reads is untrusted until checked: sizes, labels, archive members and images that are
not what they should be end in a `DataError`, one sentence that names the file and the numbers. Nothing is unpickled,
nothing is unpacked to disk, and no more is read than an honest file holds.
"""

import gzip
import io
import tarfile
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from train.data import shapes
from train.data.download import DataError, Remote, fetch, verify

__all__ = ["DataError", "Dataset", "channel_statistics", "load"]


@dataclass(eq=False)
class Dataset:
    """Labelled images of one split, and what normalises them: the statistics of the training split in both."""

    images: np.ndarray  # (N, 3, H, W) uint8
    labels: np.ndarray  # (N,) int64, each in 0..len(classes) - 1
    classes: list[str]
    name: str  # cifar10, cifar100, shapes or the folder's name
    mean: np.ndarray  # (3,) float64, of each channel, in the 0..255 scale
    std: np.ndarray  # (3,) float64, positive

    def __len__(self) -> int:
        return len(self.images)


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of (N, 3, H, W) uint8 images, (3,) float64 each, in one pass.

    From the histogram of the channel's 256 values: mean = sum_v p_v v, std = sqrt(sum_v p_v (v - mean)^2). A channel of
    one single value gets the deviation one.
    """
    counts = np.zeros((3, 256))
    for start in range(0, len(images), 1000):  # bincount widens its input to int64: a thousand images at a time
        for channel in range(3):
            counts[channel] += np.bincount(images[start : start + 1000, channel].ravel(), minlength=256)
    p = counts / counts.sum(axis=1, keepdims=True)
    v = np.arange(256)
    mean = (p * v).sum(axis=1)
    std = np.sqrt((p * (v - mean[:, None]) ** 2).sum(axis=1))
    return mean, np.where(std > 0, std, 1.0)


# ---- CIFAR's binary files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BinaryFormat:
    """An official binary data set: records of `label_bytes` labels and 3 x side x side pixels, R then G then B.

    The last label byte is the class (CIFAR-100 puts the superclass before it). The file's numbers are parameters, so
    that tests can make tiny files of the same kind.
    """

    name: str
    remote: Remote
    folder: str  # inside the archive
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    train_records: int  # per file
    test_records: int
    label_bytes: int
    classes: tuple[str, ...]
    mean: tuple[float, float, float]  # of the training images' channels, in the 0..255 scale
    std: tuple[float, float, float]
    side: int = 32

    @property
    def record_bytes(self) -> int:
        return self.label_bytes + 3 * self.side**2

    @property
    def file_bytes(self) -> dict[str, int]:
        """Each file's name and exact size."""
        train = dict.fromkeys(self.train_files, self.train_records * self.record_bytes)
        return train | dict.fromkeys(self.test_files, self.test_records * self.record_bytes)


CIFAR10 = BinaryFormat(
    name="cifar10",
    remote=Remote(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        size=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test_files=("test_batch.bin",),
    train_records=10_000,
    test_records=10_000,
    label_bytes=1,
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(125.3, 123.0, 113.9),  # the constants of the authors' code
    std=(63.0, 62.1, 66.7),
)

CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

CIFAR100 = BinaryFormat(
    name="cifar100",
    remote=Remote(  # size and SHA-256 as pinned by TensorFlow Datasets
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        size=168_513_733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    folder="cifar-100-binary",
    train_files=("train.bin",),
    test_files=("test.bin",),
    train_records=50_000,
    test_records=10_000,
    label_bytes=2,
    classes=tuple(CIFAR100_CLASSES.split()),
    mean=(129.3, 124.1, 112.4),  # as published with many CIFAR-100 recipes
    std=(68.2, 65.4, 70.4),
)

FORMATS = (CIFAR10, CIFAR100)


def read_folder(folder: Path, format: BinaryFormat) -> dict[str, bytes]:
    """The contents of the official files in `folder`, by name; each must have exactly its official size."""
    contents = {}
    for name, size in format.file_bytes.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; {format.name} needs {', '.join(format.file_bytes)} in this folder")
        try:
            found = path.stat().st_size
            if found == size:  # else not a byte is read
                contents[name] = path.read_bytes()
                found = len(contents[name])
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        if found != size:
            raise DataError(f"{path} has {found:,} bytes where {format.name} has {size:,}")
    return contents


class Bounded(io.RawIOBase):
    """A stream that refuses to give more than `limit` bytes, however far a compressed file would expand."""

    def __init__(self, stream: gzip.GzipFile, limit: int, name: Path):
        self.stream, self.left, self.limit, self.name = stream, limit, limit, name

    def read(self, size: int = -1) -> bytes:
        block = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(block)
        if self.left < 0:
            raise DataError(f"{self.name} unpacks to more than the {self.limit:,} bytes that its members may have")
        return block


def read_archive(path: Path, format: BinaryFormat) -> dict[str, bytes]:
    """The contents of the official files in a .tar.gz, by name, read without unpacking anything to disk.

    Only regular members called folder/NAME are read, each of exactly its official size and only once; other regular
    members and folders are passed over; a link, a device or a path that leaves the archive's folder is refused.
    """
    sizes = {f"{format.folder}/{name}": size for name, size in format.file_bytes.items()}
    contents: dict[str, bytes] = {}
    limit = sum(sizes.values()) + (1 << 20)  # room for headers, padding and the small text files
    try:
        with gzip.open(path) as stream, tarfile.open(mode="r|", fileobj=Bounded(stream, limit, path)) as archive:
            for member in archive:
                steps = member.name.split("/")
                if member.name.startswith("/") or ".." in steps:
                    raise DataError(f"{path} has a member outside its own folder, {member.name!r}")
                if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or member.issparse():
                    raise DataError(f"{path} has a member that is no regular file, {member.name!r}")
                name = steps[-1]
                if member.isdir() or member.name not in sizes:
                    continue
                if name in contents:
                    raise DataError(f"{path} has the member {member.name!r} twice")
                if member.size != sizes[member.name]:
                    expected = sizes[member.name]
                    raise DataError(f"{path}: {member.name} has {member.size:,} bytes where {expected:,} are expected")
                file = archive.extractfile(member)
                contents[name] = file.read(member.size) if file else b""
                if len(contents[name]) != member.size:
                    raise DataError(f"{path} ends within {member.name}")
    except DataError:
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no readable .tar.gz archive ({error})") from None
    missing = [name for name in format.file_bytes if name not in contents]
    if missing:
        raise DataError(f"{path} lacks {format.folder}/{missing[0]}")
    return contents


def decode(
    contents: dict[str, bytes], files: Sequence[str], format: BinaryFormat, limit: int | None, where: Path
) -> Dataset:
    """Turn the records of `files`, the first `limit` of them, into a data set."""
    records = np.concatenate(
        [np.frombuffer(contents[name], np.uint8).reshape(-1, format.record_bytes) for name in files]
    )
    records = records[:limit]
    labels = records[:, format.label_bytes - 1].astype(np.int64)
    wrong = np.flatnonzero(labels >= len(format.classes))
    if len(wrong):
        file, record = divmod(int(wrong[0]), len(contents[files[0]]) // format.record_bytes)
        raise DataError(
            f"{where}: record {record} of {files[file]} has label {labels[wrong[0]]}, "
            f"outside 0..{len(format.classes) - 1} of {format.name}"
        )
    images = records[:, format.label_bytes :].reshape(-1, 3, format.side, format.side)
    mean, std = np.array(format.mean), np.array(format.std)
    return Dataset(np.ascontiguousarray(images), labels, list(format.classes), format.name, mean, std)


def find_folder(folder: Path, format: BinaryFormat) -> Path | None:
    """Where official files lie, `folder` itself or their own folder below it; None where there is not one of them."""
    for place in (folder, folder / format.folder):
        if any((place / name).is_file() for name in format.file_bytes):
            return place
    return None


def find_binary(data: str, root: Path, mirror: str | None, progress: bool) -> tuple[Path, BinaryFormat] | None:
    """The folder or verified archive that `data`, a name or a path, stands for, and its format; None for other data."""
    path = Path(data)
    for format in FORMATS:
        if data == format.name:
            place = find_folder(root, format)
            return place or fetch(format.remote, root, mirror=mirror, progress=progress), format
    for format in FORMATS:
        if path.is_file() and (path.name == format.remote.name or path.stat().st_size == format.remote.size):
            verify(path, format.remote)
            return path, format
        place = find_folder(path, format)
        if place:
            return place, format
    return None


# ---- class folders --------------------------------------------------------------------------------------------------

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


# ---- the way in -----------------------------------------------------------------------------------------------------

SHAPES_TRAIN, SHAPES_TEST = 5_000, 1_000  # drawn images


def load(
    data: str,
    root: Path,
    *,
    seed: int = 0,
    mirror: str | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    progress: bool = True,
) -> tuple[Dataset, Dataset]:
    """Load the training and the test set that `data` names.

    `data` is `cifar10` or `cifar100` (taken from `root`, unpacked or as the official archive, else downloaded into it
    from the official address or `mirror`), `shapes` (drawn from `seed`), or a path: a folder with the official binary
    files, an official archive, or a folder with train/<class>/ and test/<class>/. At most the first `limit_train` and
    `limit_test` images are taken, in the order in which they are stored; class folders are read class by class in turn.
    Raises DataError, or ValueError for a limit that is not positive.
    """
    for name, limit in (("limit_train", limit_train), ("limit_test", limit_test)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} must be positive, got {limit}")
    if data == "shapes":
        splits = []
        for split, number, limit in ((0, SHAPES_TRAIN, limit_train), (1, SHAPES_TEST, limit_test)):
            images, labels = shapes.draw_shapes(min(number, limit or number), seed, split)
            mean, std = np.array(shapes.MEAN), np.array(shapes.STD)
            splits.append(Dataset(images, labels, list(shapes.CLASSES), "shapes", mean, std))
        return splits[0], splits[1]

    found = find_binary(data, root, mirror, progress)
    if found is not None:
        where, format = found
        contents = read_archive(where, format) if where.is_file() else read_folder(where, format)
        train = decode(contents, format.train_files, format, limit_train, where)
        return train, decode(contents, format.test_files, format, limit_test, where)

    path = Path(data)
    if (path / "train").is_dir():
        return load_class_folder(path, limit_train, limit_test, progress)
    names = " and ".join(f"{format.remote.name} ({format.name})" for format in FORMATS)
    if path.is_file():
        raise DataError(f"{path} is not one of the official archives of binary files, {names}")
    if path.is_dir():
        raise DataError(
            f"{path} holds neither data_batch_1.bin ... nor train.bin, directly or in cifar-10-batches-bin/ or "
            "cifar-100-binary/, nor train/<class>/ with images"
        )
    raise DataError(f"data {data!r} is not cifar10, cifar100 or shapes, and there is no such folder or file")
