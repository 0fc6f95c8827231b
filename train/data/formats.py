"""CIFAR-10 and CIFAR-100: their official binary files, and how their records become a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.data.dataset import Dataset
from train.data.download import DataError, Remote


@dataclass(frozen=True)
class Archive:
    """One way in which the data set is packed: `kind` is binary, python (pickled arrays) or png (an image each)."""

    kind: str
    remote: Remote


@dataclass(frozen=True)
class PythonFiles:
    """The official files for Python, which torchvision and Keras keep: what they are called, and how to know them."""

    folder: str
    files: tuple[str, ...]  # in the order of the binary files
    labels: tuple[str, ...]  # the lists of labels, in the order of a record's label bytes
    digests: tuple[str, ...]  # of the files: SHA-256, or MD5 where no other is known


@dataclass(frozen=True)
class BinaryFormat:
    """An official binary data set: records of `label_bytes` labels and 3 x side x side pixels, R then G then B.

    The last label byte is the class (CIFAR-100 puts the superclass before it). The file's numbers are parameters, so
    that tests can make tiny files of the same kind.
    """

    name: str
    archives: tuple[Archive, ...]  # in the order in which they are asked for; the first one holds the binary files
    folder: str  # inside the binary archive
    python: PythonFiles
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
    def remote(self) -> Remote:
        """The official archive of the binary files."""
        return self.archives[0].remote

    @property
    def record_bytes(self) -> int:
        return self.label_bytes + 3 * self.side**2

    @property
    def file_bytes(self) -> dict[str, int]:
        """Each file's name and exact size."""
        train = dict.fromkeys(self.train_files, self.train_records * self.record_bytes)
        return train | dict.fromkeys(self.test_files, self.test_records * self.record_bytes)

    def records(self, file: str) -> int:
        return self.train_records if file in self.train_files else self.test_records


HOME = "https://www.cs.toronto.edu/~kriz/"

CIFAR10 = BinaryFormat(
    name="cifar10",
    # The home server gave 66 to 85 kB/s in June 2026 (pytorch/vision#9536). The other archives hold the same images:
    # the same SHA-256 as torchvision pins for the second, and as FluxML/FastAI.jl pins for the third.
    archives=(
        Archive(
            "binary",
            Remote(
                url=f"{HOME}cifar-10-binary.tar.gz",
                size=170_052_171,
                sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                also=(
                    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
                    "https://mindspore-courses.obs.cn-north-4.myhuaweicloud.com/LLMDatasets/Parallel/cifar-10-binary.tar.gz",
                ),
            ),
        ),
        Archive(
            "python",
            Remote(
                url="https://huggingface.co/datasets/wyxu/dataset_copied/resolve/"
                "81a52b93ff1d1fcdf61a20d4197919c714730c2c/cifar-10-python.tar.gz",
                size=170_498_071,
                sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                also=(f"{HOME}cifar-10-python.tar.gz",),
            ),
        ),
        Archive(
            "png",
            Remote(
                url="https://s3.amazonaws.com/fast-ai-imageclas/cifar10.tgz",
                size=168_168_549,
                sha256="637c5814e11aefcb6ee76d5f59c67ddc8de7f5b5077502a195b0833d1e3e4441",
                also=("https://s3.amazonaws.com/fast-ai-sample/cifar10.tgz",),
            ),
        ),
    ),
    folder="cifar-10-batches-bin",
    python=PythonFiles(
        folder="cifar-10-batches-py",
        files=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
        labels=("labels",),
        digests=(
            "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
            "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
            "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
            "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
            "d91802434d8376bbaeeadf58a737e3a1b12ac839079e931237e0dcd43adcb154",
            "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
        ),
    ),
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
    # Size and SHA-256 of the first as pinned by TensorFlow Datasets; no other server is known to have either.
    archives=(
        Archive(
            "binary",
            Remote(
                url=f"{HOME}cifar-100-binary.tar.gz",
                size=168_513_733,
                sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        Archive(
            "python",
            Remote(
                url=f"{HOME}cifar-100-python.tar.gz",
                size=169_001_437,
                sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            ),
        ),
    ),
    folder="cifar-100-binary",
    python=PythonFiles(
        folder="cifar-100-python",
        files=("train", "test"),
        labels=("coarse_labels", "fine_labels"),
        digests=("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),  # as torchvision knows them
    ),
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
