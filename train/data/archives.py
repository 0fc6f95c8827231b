"""The official files, from a folder or from a .tar.gz archive that is never unpacked to disk.

Whatever they are packed in, what comes out is the same: the binary files' contents by name. The same images stand in
the same order in all of them.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from train.data import pickled
from train.data.download import DataError
from train.data.formats import Archive, BinaryFormat

Contents = dict[str, bytes]  # of the binary files, by their names

PNG_BYTES = 3  # an image as PNG has at most so many times the bytes of its pixels, and HEADER more
HEADER = 2048  # of a member in an archive, and of a small file: what is allowed for beside the contents


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


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Inside, what goes wrong with an archive becomes a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no readable .tar.gz archive ({error})") from None


def members(path: Path, limit: int) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Name, size and reader of each regular file in a .tar.gz, which may unpack to `limit` bytes in all.

    Folders are passed over; a link, a device or a path that leaves the archive's folder is refused.
    """
    with (
        readable(path),
        gzip.open(path) as stream,
        tarfile.open(mode="r|", fileobj=Bounded(stream, limit, path)) as archive,
    ):
        for member in archive:
            if member.name.startswith("/") or ".." in member.name.split("/"):
                raise DataError(f"{path} has a member outside its own folder, {member.name!r}")
            if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or member.issparse():
                raise DataError(f"{path} has a member that is no regular file, {member.name!r}")
            if not member.isdir():
                yield member.name, member.size, partial(read_member, archive, member, path)


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    """The content of a regular file in an archive."""
    with readable(path):
        file = archive.extractfile(member)
        content = file.read(member.size) if file else b""
    if len(content) != member.size:
        raise DataError(f"{path} ends within {member.name}")
    return content


def read_archive(path: Path, format: BinaryFormat) -> Contents:
    """The contents of the official binary files in a .tar.gz, by name, read without unpacking anything to disk.

    Only regular members called folder/NAME are read, each of exactly its official size and only once; other regular
    members are passed over.
    """
    sizes = {f"{format.folder}/{name}": size for name, size in format.file_bytes.items()}
    contents: Contents = {}
    for member, size, read in members(path, sum(sizes.values()) + (1 << 20)):  # room for the small text files
        name = member.split("/")[-1]
        if member not in sizes:
            continue
        if name in contents:
            raise DataError(f"{path} has the member {member!r} twice")
        if size != sizes[member]:
            raise DataError(f"{path}: {member} has {size:,} bytes where {sizes[member]:,} are expected")
        contents[name] = read()
    missing = [name for name in format.file_bytes if name not in contents]
    if missing:
        raise DataError(f"{path} lacks {format.folder}/{missing[0]}")
    return contents


# ---- the files for Python -------------------------------------------------------------------------------------------


def python_limits(format: BinaryFormat) -> dict[str, tuple[str, int]]:
    """Of each file for Python: the binary file that it stands for, and the size that it may have at most."""
    names = zip(format.python.files, format.file_bytes, strict=True)
    return {name: (binary, pickled.most_bytes(format, binary)) for name, binary in names}


def read_python_archive(path: Path, format: BinaryFormat) -> Contents:
    """The same from the archive of the files for Python."""
    limits = python_limits(format)
    wanted = {f"{format.python.folder}/{name}": place for name, place in limits.items()}
    contents: Contents = {}
    for member, size, read in members(path, sum(most for _, most in limits.values()) + (1 << 20)):
        if member not in wanted:
            continue
        binary, most = wanted[member]
        if binary in contents:
            raise DataError(f"{path} has the member {member!r} twice")
        if size > most:
            raise DataError(f"{path}: {member} has {size:,} bytes where at most {most:,} are expected")
        contents[binary] = pickled.records(read(), format, binary, f"{path}: {member}")
    missing = [name for name, (binary, _) in limits.items() if binary not in contents]
    if missing:
        raise DataError(f"{path} lacks {format.python.folder}/{missing[0]}")
    return {name: contents[name] for name in format.file_bytes}


def read_python_folder(folder: Path, format: BinaryFormat) -> Contents:
    """The same from the folder of the files for Python."""
    contents = {}
    for name, (binary, most) in python_limits(format).items():
        path = folder / name
        if not path.is_file():
            files = ", ".join(format.python.files)
            raise DataError(f"{path} is missing; {format.name} for Python needs {files} in this folder")
        try:
            size = path.stat().st_size
            if size > most:
                raise DataError(f"{path} has {size:,} bytes where {format.name} has at most {most:,}")
            contents[binary] = pickled.records(path.read_bytes(), format, binary, str(path))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
    return contents


# ---- an image a file ------------------------------------------------------------------------------------------------

PLACE = re.compile(r"(?:.*/)?(train|test)/([a-z_]+)/(\d{1,6})_([a-z_]+)\.png")


def read_png_archive(path: Path, format: BinaryFormat, progress: bool = True) -> Contents:
    """The same from fast.ai's archive of PNG files, train/CLASS/NUMBER_CLASS.png and test/...

    NUMBER is an image's place in the official order. Each place must be filled once.
    """
    side, size = format.side, 3 * format.side**2  # bytes of an image
    counts = {
        "train": len(format.train_files) * format.train_records,
        "test": len(format.test_files) * format.test_records,
    }
    records = {split: np.zeros((n, format.record_bytes), np.uint8) for split, n in counts.items()}
    filled = {split: np.zeros(n, bool) for split, n in counts.items()}
    total, most = sum(counts.values()), PNG_BYTES * size + HEADER
    bar = tqdm(total=total, desc=path.name, unit=" images", leave=False, disable=None if progress else True)
    with bar:
        for member, size, read in members(path, total * (most + HEADER) + (1 << 20)):
            match = PLACE.fullmatch(member)
            if match is None or match[2] != match[4] or match[2] not in format.classes:
                continue
            split, label, number = match[1], format.classes.index(match[2]), int(match[3])
            if number >= counts[split] or filled[split][number]:
                raise DataError(f"{path}: the place of {member} is taken or outside 0..{counts[split] - 1}")
            if size > most:
                raise DataError(f"{path}: {member} has {size:,} bytes where at most {most:,} are expected")
            try:
                with Image.open(io.BytesIO(read()), formats=("PNG",)) as image:
                    if image.size != (side, side):
                        raise DataError(
                            f"{path}: {member} is {image.width} x {image.height} pixels, not {side} x {side}"
                        )
                    planes = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            except DataError:
                raise
            except Exception as error:  # Pillow's decoders raise a dozen types for damaged files
                raise DataError(f"{path}: {member} is no readable PNG image ({' '.join(str(error).split())})") from None
            record = records[split][number]
            record[format.label_bytes - 1] = label
            record[format.label_bytes :] = planes.ravel()
            filled[split][number] = True
            bar.update()
    for split, places in filled.items():
        if not places.all():
            raise DataError(f"{path} lacks {split} image {int(places.argmin())} of {counts[split]:,}")
    pieces = {}
    for split, files in (("train", format.train_files), ("test", format.test_files)):
        for name, part in zip(files, np.split(records[split], len(files)), strict=True):
            pieces[name] = part.tobytes()
    return pieces


def unpack(path: Path, format: BinaryFormat, archive: Archive, progress: bool) -> Contents:
    """The binary files' contents, from an archive of any of the three kinds."""
    if archive.kind == "png":
        return read_png_archive(path, format, progress)
    return (read_python_archive if archive.kind == "python" else read_archive)(path, format)
