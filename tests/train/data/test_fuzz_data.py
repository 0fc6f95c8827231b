"""Thousands of damaged files for the readers: each is read or refused in one sentence, and nothing else happens.

Nothing else means: no other exception than DataError, no file written, no more memory than an honest file may take, and
no more than seconds of the processor's time.
"""

import gzip
import io
import pickle
import pickletools
import struct
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from train.data import CIFAR10, DataError, decode, load, pickled, read_archive, read_folder, read_image

FORMAT = replace(CIFAR10, train_files=("a.bin", "b.bin"), train_records=2, test_records=2, side=2)
EXAMPLES = 500 * settings().max_examples // 25  # 25 is what the usual profile draws
MANY = settings(max_examples=EXAMPLES)
SECONDS = 10  # of this process's time on a processor, which other processes do not lengthen
MEMORY = 16 << 20  # bytes that reading one of these tiny files may take


@st.composite
def mutations(draw: st.DrawFn, length: int) -> Callable[[bytes], bytes]:
    """Overwrite, cut, repeat or insert bytes somewhere, one to four times."""
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["set", "set", "cut", "end", "repeat", "insert"]),
                st.integers(0, length - 1),
                st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"7777777"])),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def apply(content: bytes) -> bytes:
        for kind, at, new in edits:
            head, tail = content[:at], content[at:]
            content = {
                "set": head + new + tail[len(new) :],
                "cut": head + tail[len(new) :],
                "end": head,
                "repeat": head + tail[: 64 * len(new)] + tail,
                "insert": head + new + tail,
            }[kind]
        return content

    return apply


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outer") / "inner"


def attempt(folder: Path, files: dict[str, bytes], read: Callable[[], object]) -> None:
    """Write `files` into `folder`, read them, and see that they are still all that is there."""
    folder.mkdir(exist_ok=True)
    for leftover in folder.iterdir():  # of an example that failed
        leftover.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    tracemalloc.start()
    begin = time.process_time()
    try:
        read()
    except DataError as error:
        sentence = str(error)
        assert str(folder) in sentence
        assert "\n" not in sentence
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY
    assert time.process_time() - begin < SECONDS
    assert sorted(p.name for p in folder.iterdir()) == sorted(files)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def honest_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    records = rng.integers(0, 10, (2, FORMAT.record_bytes), dtype=np.uint8).tobytes()
    return dict.fromkeys(FORMAT.file_bytes, records)


def honest_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in honest_files().items():
            info = tarfile.TarInfo(f"{FORMAT.folder}/{name}")
            info.size = len(content)
            info.mtime = 0.5  # a fraction of a second makes Python write an extended header
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()[: 12 * 512]


TAR = honest_tar()
ARCHIVE = gzip.compress(TAR, mtime=0)


def read_and_decode(path: Path) -> None:
    contents = read_archive(path, FORMAT)
    decode(contents, FORMAT.train_files, FORMAT, None, path)


def test_the_honest_archive_is_read(folder: Path) -> None:
    def read() -> None:
        assert read_archive(folder / "a.tar.gz", FORMAT) == honest_files()

    attempt(folder, {"a.tar.gz": ARCHIVE}, read)


@MANY
@given(mutate=mutations(len(ARCHIVE)))
def test_damaged_compressed_archives(folder: Path, mutate: Callable[[bytes], bytes]) -> None:
    attempt(folder, {"a.tar.gz": mutate(ARCHIVE)}, lambda: read_and_decode(folder / "a.tar.gz"))


def with_checksums(tar: bytes) -> bytes:
    """Make the checksum of each block that looks like a header right, so that its other fields are believed."""
    blocks = [tar[i : i + 512] for i in range(0, len(tar), 512)]
    for i, block in enumerate(blocks):
        if b"ustar" in block and len(block) == 512:
            total = sum(block[:148]) + sum(block[156:]) + 8 * 32
            blocks[i] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


@MANY
@given(mutate=mutations(len(TAR)), believed=st.booleans())
def test_damaged_archives_inside_a_sound_compression(
    folder: Path, mutate: Callable[[bytes], bytes], believed: bool
) -> None:
    tar = mutate(TAR)
    archive = gzip.compress(with_checksums(tar) if believed else tar, 1, mtime=0)
    attempt(folder, {"a.tar.gz": archive}, lambda: read_and_decode(folder / "a.tar.gz"))


@MANY
@given(
    header=st.sampled_from([0, 3, 6]),
    field=st.sampled_from([(0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)]),
    value=st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777", b"-0000000001", b"../x", b"/x"]),
        st.sampled_from([bytes([kind]) for kind in b"0123456789DgKLMSxX"]),
    ),
)
def test_lying_headers(folder: Path, header: int, field: tuple[int, int], value: bytes) -> None:
    start = 512 * header + field[0]
    tar = TAR[:start] + value.ljust(field[1], b"\0")[: field[1]] + TAR[start + field[1] :]
    archive = gzip.compress(with_checksums(tar), 1, mtime=0)
    attempt(folder, {"a.tar.gz": archive}, lambda: read_and_decode(folder / "a.tar.gz"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_a_header_that_claims_gigabytes_takes_no_memory(folder: Path, kind: bytes) -> None:
    info = tarfile.TarInfo(f"{FORMAT.folder}/a.bin" if kind == tarfile.REGTYPE else "x")
    info.type, info.size = kind, 4 << 30
    archive = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20), 1)
    sentence = r"unpacks to more than|has 4,294,967,296 bytes where 26 are expected"

    def read() -> None:
        with pytest.raises(DataError, match=sentence):
            read_archive(folder / "a.tar.gz", FORMAT)

    attempt(folder, {"a.tar.gz": archive}, read)


@MANY
@given(name=st.sampled_from(sorted(FORMAT.file_bytes)), mutate=mutations(2 * FORMAT.record_bytes))
def test_damaged_binary_files(folder: Path, name: str, mutate: Callable[[bytes], bytes]) -> None:
    files = honest_files()
    files[name] = mutate(files[name])

    def read() -> None:
        contents = read_folder(folder, FORMAT)
        for split in (FORMAT.train_files, FORMAT.test_files):
            labels = decode(contents, split, FORMAT, None, folder).labels
            assert labels.max() < 10

    attempt(folder, files, read)


PICKLE = pickle.dumps(
    {"labels": [3, 7], "filenames": ["a.png", "b.png"], "data": np.arange(24, dtype=np.uint8).reshape(2, 12)}, 2
)


@MANY
@given(mutate=mutations(len(PICKLE)), protocol=st.booleans())
def test_damaged_pickles(folder: Path, mutate: Callable[[bytes], bytes], protocol: bool) -> None:
    honest = pickletools.optimize(PICKLE) if protocol else PICKLE

    def read() -> None:
        content = pickled.records(mutate(honest), FORMAT, "a.bin", str(folder))
        assert len(content) == 2 * FORMAT.record_bytes

    attempt(folder, {}, read)


def encoded(mode: str, kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (9, 12), colour) for colour in ("red", "green", "blue")]
    frames[0].save(buffer, "png", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


IMAGES = {
    "rgb": encoded("RGB", "png"),
    "palette": encoded("P", "png", transparency=3),
    "alpha": encoded("RGBA", "png"),
    "animated": animated(),
    "jpeg": encoded("RGB", "jpeg"),
    "progressive": encoded("RGB", "jpeg", progressive=True, comment=b"hello"),
    "cmyk": encoded("CMYK", "jpeg"),
}


def with_crcs(png: bytes) -> bytes:
    """Make each chunk's CRC right as far as the chunks can be followed, so that damaged contents are believed."""
    out, at = png[:8], 8
    while at + 12 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        body = png[at + 4 : at + 8 + length]
        if at + 12 + length > len(png):
            break
        out += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out + png[at:]


@pytest.mark.slow
@MANY
@given(data=st.data(), kind=st.sampled_from(sorted(IMAGES)), believed=st.booleans())
def test_damaged_images(folder: Path, data: st.DataObject, kind: str, believed: bool) -> None:
    image = data.draw(mutations(len(IMAGES[kind])))(IMAGES[kind])
    if believed and image.startswith(b"\x89PNG"):
        image = with_crcs(image)

    def read() -> None:
        pixels = read_image(folder / "x.png")
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)

    attempt(folder, {"x.png": image}, read)


@MANY
@given(content=st.binary(max_size=200), name=st.sampled_from(["cifar-10-binary.tar.gz", "x.bin", "data_batch_1.bin"]))
def test_any_file_at_all(folder: Path, content: bytes, name: str) -> None:
    attempt(folder, {name: content}, lambda: load(str(folder / name), folder))
    attempt(folder, {name: content}, lambda: load(str(folder), folder))
