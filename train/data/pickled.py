"""CIFAR's files for Python, read without being executed.

They are pickles, and a pickle is a program: loading one may run anything. `pickletools.genops` walks over the program's
instructions and their arguments and runs nothing. Of these a batch needs two kinds: one string with all pixels, image
after image, and the integers that follow the word "labels".
"""

import pickletools

import numpy as np

from train.data.download import DataError
from train.data.formats import BinaryFormat

INTEGERS = {"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2"}
KEYS = {"data", "labels", "fine_labels", "coarse_labels", "filenames", "batch_label"}
WORDS = 512  # bytes that an image may take beside its pixels: its label, its file's name


def most_bytes(format: BinaryFormat, file: str) -> int:
    """The size that the pickle of a binary file may have at most; pixels that Python 3 wrote in UTF-8 take double."""
    return format.records(file) * (2 * 3 * format.side**2 + WORDS) + (1 << 16)


def records(content: bytes, format: BinaryFormat, file: str, where: str) -> bytes:
    """The content of the binary `file`, from the pickle that stands for it. Raises DataError, which names `where`."""
    n = format.records(file)
    names = format.python.labels
    labels: dict[str, list[int]] = {name: [] for name in names}
    pixels, key, by_columns = None, "", False
    try:
        for i, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if i > 16 * n + 1000:
                raise ValueError("it has more instructions than such a file needs")
            if isinstance(argument, str | bytes | bytearray):
                if len(argument) == n * 3 * format.side**2 and pixels is None:
                    if by_columns:
                        raise ValueError("its array is stored column by column")
                    pixels = argument.encode("latin-1") if isinstance(argument, str) else bytes(argument)
                    continue
                word = argument.decode("latin-1") if isinstance(argument, bytes | bytearray) else argument
                key = word if word in KEYS else key
            elif opcode.name in INTEGERS and key in labels:
                labels[key].append(int(argument or 0))
            elif opcode.name in ("NEWTRUE", "NEWFALSE"):
                by_columns = opcode.name == "NEWTRUE"  # NumPy says so just before the array's bytes
    except Exception as error:  # genops raises half a dozen types for what is no pickle
        raise DataError(f"{where} is no batch of {format.name} for Python ({error})") from None
    if pixels is None:
        raise DataError(f"{where} is no batch of {format.name} for Python: it has no array of {n:,} images")
    table = np.empty((n, format.record_bytes), np.uint8)
    for column, name in enumerate(names):
        found = labels[name]
        if len(found) != n or not all(0 <= label <= 255 for label in found):
            raise DataError(f"{where} has {len(found):,} {name}, or some outside 0..255, where {n:,} are expected")
        table[:, column] = found
    table[:, format.label_bytes :] = np.frombuffer(pixels, np.uint8).reshape(n, -1)
    return table.tobytes()
