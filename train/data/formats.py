"""CIFAR-10 and CIFAR-100: their official binary files, and how their records become a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.data.dataset import Dataset
from train.data.download import DataError, Remote


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
