"""The official files, from a folder or from a .tar.gz archive that is never unpacked to disk."""

import gzip
import io
import tarfile
import zlib
from pathlib import Path

from train.data.download import DataError
from train.data.formats import BinaryFormat


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
