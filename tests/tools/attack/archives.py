"""Archives that somebody made for this: what `--data PATH` reads when the official hash does not protect it.

The readers give the official images or one sentence, write nothing but what they keep, and take no more memory than an
honest archive may. The binary archive, the one for Python and the one of PNG files are damaged as bytes, inside a sound
compression, and with headers that lie; and built from members that nobody should unpack.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image
from test_fuzz_data import FORMAT, MEMORY, PICKLE, TAR, with_checksums

from train.data import CIFAR10, DataError, archives, decode

PYTHON = replace(FORMAT, python=replace(CIFAR10.python, files=("one", "two", "test")))
KINDS = (
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
    tarfile.CONTTYPE,
    b"S",
    b"Z",
)
NAMES = (
    "../x",
    "{folder}/x",
    "a/../../x",
    "./a.bin",
    "a\nb",
    "\x1b[31m",
    "x" * 300,
    "",
    ".",
    "..",
    "con",
    "a\\..\\x",
    "\udcff",
)


def png(rng: random.Random, side: int = 2) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (rng.randrange(256), 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def honest_members(rng: random.Random, kind: str) -> list[tuple[str, bytes]]:
    """Names and contents of an honest archive of two images a file."""
    if kind == "binary":
        record = bytes([3]) + bytes(3 * FORMAT.side**2)
        return [(f"{FORMAT.folder}/{name}", 2 * record) for name in FORMAT.file_bytes]
    if kind == "python":
        return [(f"{PYTHON.python.folder}/{name}", PICKLE) for name in PYTHON.python.files]
    images = [("train", i) for i in range(4)] + [("test", i) for i in range(2)]
    return [(f"cifar10/{split}/cat/{i}_cat.png", png(rng)) for split, i in images]


READERS: dict[str, Callable[[Path], archives.Contents]] = {
    "binary": lambda path: archives.read_archive(path, FORMAT),
    "python": lambda path: archives.read_python_archive(path, PYTHON),
    "png": lambda path: archives.read_png_archive(path, FORMAT, progress=False),
}


def add(tar: tarfile.TarFile, name: str, content: bytes, **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


def build(rng: random.Random, kind: str, folder: Path) -> tuple[bytes, str]:
    """An archive with members that are malicious, in the wrong place, twice, too many, too large, or missing; which."""
    members = honest_members(rng, kind)
    trick = rng.choice(["link", "name", "twice", "missing", "large", "order", "pax", "sparse", "bomb", "many", "image"])
    buffer = io.BytesIO()
    kind_of_tar = rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    with tarfile.open(fileobj=buffer, mode="w", format=kind_of_tar, errors="surrogateescape") as tar:
        at = rng.randrange(len(members))
        name, content = members[at]
        if trick == "missing":
            del members[at]
        elif trick == "order":
            rng.shuffle(members)
        elif trick == "twice":
            members.append(rng.choice(members))
        elif trick == "large":
            members[at] = name, content + bytes(rng.choice([1, 10_000, 1 << 20]))
        elif trick == "name":
            members.insert(at, (rng.choice(NAMES).format(folder=folder) or "x", b"x"))
        elif trick == "image":
            members[at] = name, png(rng, rng.choice([1, 3, 4000])) if kind == "png" else rng.randbytes(len(content))
        elif trick == "link":
            target = rng.choice(["/etc/passwd", "../x", members[0][0]])
            add(tar, rng.choice([name, *NAMES[:5]]).format(folder=folder), b"", type=rng.choice(KINDS), linkname=target)
        elif trick == "pax":
            headers = {
                rng.choice(["path", "size", "linkpath", "mtime", "x"]): rng.choice(["../x", "-1", "9" * 30, "a\nb"])
            }
            add(tar, name, content, pax_headers=headers)
        elif trick == "sparse":
            add(
                tar,
                name,
                content,
                pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.size": "9" * 15},
            )
        elif trick == "bomb":
            add(tar, "bomb", bytes(64 << 20))
        elif trick == "many":
            for i in range(2000):
                add(tar, f"{i}", b"")
        for name, content in members:
            add(tar, name, content)
    return gzip.compress(buffer.getvalue(), 1, mtime=0), trick


def damage(rng: random.Random, content: bytes) -> bytes:
    """Overwrite, cut, repeat or insert bytes somewhere."""
    for _ in range(rng.randint(1, 4)):
        at, new = (
            rng.randrange(len(content) or 1),
            rng.choice([rng.randbytes(rng.randint(1, 8)), b"\xff" * 8, b"7777777"]),
        )
        head, tail = content[:at], content[at:]
        content = rng.choice([head + new + tail[len(new) :], head + tail[len(new) :], head, head + new + tail])
    return content


def trial(rng: random.Random, folder: Path) -> None:
    """Build or damage an archive; read it as what it says to be, or as another kind."""
    kind = rng.choice(list(READERS))
    how = rng.choice(["built", "built", "bytes", "inside", "headers"])
    archive, trick = build(rng, kind, folder)
    if how == "bytes":
        archive = damage(rng, archive)
    elif how == "inside":
        archive = gzip.compress(damage(rng, gzip.decompress(archive)), 1, mtime=0)
    elif how == "headers":
        archive = gzip.compress(with_checksums(damage(rng, TAR)), 1, mtime=0)
    (folder / "inner").mkdir()
    path = folder / "inner" / "a.tar.gz"
    path.write_bytes(archive)
    del archive
    before = os.getcwd()
    os.chdir(folder / "inner")  # what is unpacked by its own name would lie there
    tracemalloc.start()
    try:
        contents = READERS[kind](path)
        assert {name: len(content) for name, content in contents.items()} == FORMAT.file_bytes
        decode(contents, FORMAT.train_files, FORMAT, None, path)
        assert (how, trick) != ("built", "bomb"), f"{kind}: {64 << 20:,} bytes too many were unpacked"
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error), f"{kind}, {how}: {error!r}"
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        os.chdir(before)
    assert peak < MEMORY, f"{kind}, {how}: {peak:,} bytes of memory"
    assert os.listdir(folder) == ["inner"] and os.listdir(folder / "inner") == ["a.tar.gz"], "something was unpacked"
