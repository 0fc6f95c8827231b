"""Data sets from files: what is read, what is refused, and that each refusal names the file and the numbers."""

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train import data
from train.data import (
    CIFAR10,
    CIFAR100,
    BinaryFormat,
    DataError,
    channel_statistics,
    load,
    read_archive,
    sources,
)
from train.data.download import Remote
from train.data.formats import Archive

TINY10 = replace(CIFAR10, train_records=3, test_records=4, side=4)
TINY100 = replace(CIFAR100, train_records=6, test_records=4, side=4)


def make_files(format: BinaryFormat) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """Random files of a format, and their records' labels and pixels: (N, label_bytes + 3 side side) each."""
    rng = np.random.default_rng(0)
    records = {}
    for name, size in format.file_bytes.items():
        records[name] = rng.integers(0, 256, (size // format.record_bytes, format.record_bytes), dtype=np.uint8)
        records[name][:, : format.label_bytes] %= len(format.classes)
    return {name: r.tobytes() for name, r in records.items()}, records


def write_files(folder: Path, format: BinaryFormat) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    files, records = make_files(format)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return records


def member(name: str, content: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), 1, mtime=0)


def honest_members(format: BinaryFormat) -> list[tuple[tarfile.TarInfo, bytes]]:
    files, _ = make_files(format)
    names = [member(f"{format.folder}/{name}", content) for name, content in files.items()]
    return [member(format.folder, type=tarfile.DIRTYPE), member(f"{format.folder}/readme.html", b"<html>"), *names]


def pinned(format: BinaryFormat, archive: bytes) -> BinaryFormat:
    """The format with `archive` as its official archive."""
    remote = Remote(format.remote.url, len(archive), hashlib.sha256(archive).hexdigest())
    return replace(format, archives=(Archive("binary", remote), *format.archives[1:]))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> tuple[BinaryFormat, BinaryFormat]:
    """Make `load` expect tiny files."""
    formats = tuple(pinned(f, archive_of(*honest_members(f))) for f in (TINY10, TINY100))
    monkeypatch.setattr(sources, "FORMATS", formats)
    return formats[0], formats[1]


def check_records(split: data.Dataset, records: list[np.ndarray], format: BinaryFormat) -> None:
    joined = np.concatenate(records)
    assert split.name == format.name
    assert split.classes == list(format.classes)
    assert split.images.dtype == np.uint8
    assert split.images.flags.c_contiguous
    assert split.labels.dtype == np.int64
    assert len(split) == len(joined)
    for image, label, record in zip(split.images, split.labels, joined, strict=True):
        assert label == record[format.label_bytes - 1]
        np.testing.assert_array_equal(image.ravel(), record[format.label_bytes :])


# ---- binary files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1], ids=["cifar10", "cifar100"])
@pytest.mark.parametrize("below", [False, True], ids=["directly", "below"])
@pytest.mark.parametrize("by_name", [False, True], ids=["path", "name"])
def test_reads_unpacked_files(
    tiny: tuple[BinaryFormat, BinaryFormat], tmp_path: Path, which: int, below: bool, by_name: bool
) -> None:
    format = tiny[which]
    records = write_files(tmp_path / format.folder if below else tmp_path, format)
    if by_name:
        train, test = load(format.name, tmp_path)
    else:
        train, test = load(str(tmp_path), Path("/nonexistent"))
    check_records(train, [records[name] for name in format.train_files], format)
    check_records(test, [records[name] for name in format.test_files], format)


@pytest.mark.parametrize("which", [0, 1], ids=["cifar10", "cifar100"])
def test_reads_archives_by_path_and_from_the_data_root(
    tiny: tuple[BinaryFormat, BinaryFormat], tmp_path: Path, which: int
) -> None:
    format = tiny[which]
    _, records = make_files(format)
    archive = tmp_path / format.remote.name
    archive.write_bytes(archive_of(*honest_members(format)))
    for train, test in (load(str(archive), Path("/nonexistent")), load(format.name, tmp_path)):
        check_records(train, [records[name] for name in format.train_files], format)
        check_records(test, [records[name] for name in format.test_files], format)
    assert sorted(os.listdir(tmp_path)) == sorted([archive.name, format.folder])  # where it is kept unpacked
    assert sorted(os.listdir(tmp_path / format.folder)) == sorted([*format.file_bytes, "SHA256SUMS"])
    archive.write_bytes(b"not read any more")
    check_records(load(format.name, tmp_path)[1], [records[name] for name in format.test_files], format)
    archive.write_bytes(archive_of(*honest_members(format)))
    renamed = archive.rename(tmp_path / "renamed.tgz")
    assert len(load(str(renamed), tmp_path)[0]) == len(train)


def test_limits_take_the_first_records(tiny: tuple[BinaryFormat, BinaryFormat], tmp_path: Path) -> None:
    write_files(tmp_path, tiny[0])
    train, test = load("cifar10", tmp_path)
    few, fewer = load("cifar10", tmp_path, limit_train=5, limit_test=1)
    np.testing.assert_array_equal(few.images, train.images[:5])
    np.testing.assert_array_equal(few.labels, train.labels[:5])
    np.testing.assert_array_equal(fewer.images, test.images[:1])
    assert len(load("cifar10", tmp_path, limit_train=10**9)[0]) == 15


@pytest.mark.parametrize("name", ["limit_train", "limit_test"])
@pytest.mark.parametrize("limit", [0, -3, 1.5, True])
def test_limits_must_be_positive(tmp_path: Path, name: str, limit: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {limit}"):
        load("shapes", tmp_path, **{name: limit})  # type: ignore[arg-type]


def test_statistics_are_the_published_constants(tiny: tuple[BinaryFormat, BinaryFormat], tmp_path: Path) -> None:
    write_files(tmp_path, tiny[0])
    for split in load("cifar10", tmp_path):
        assert split.mean.tolist() == [125.3, 123.0, 113.9]
        assert split.std.tolist() == [63.0, 62.1, 66.7]


@pytest.mark.parametrize("change", [-1, 1, -49])
def test_a_file_of_the_wrong_size_is_refused(
    tiny: tuple[BinaryFormat, BinaryFormat], tmp_path: Path, change: int
) -> None:
    write_files(tmp_path, tiny[0])
    path = tmp_path / "data_batch_4.bin"
    path.write_bytes((path.read_bytes() + b"x")[: 147 + change])
    with pytest.raises(DataError, match=rf"data_batch_4.bin has {147 + change} bytes where cifar10 has 147"):
        load(str(tmp_path), tmp_path)


def test_a_missing_file_is_named(tiny: tuple[BinaryFormat, BinaryFormat], tmp_path: Path) -> None:
    write_files(tmp_path, tiny[0])
    (tmp_path / "data_batch_2.bin").unlink()
    (tmp_path / "data_batch_2.bin").mkdir()
    with pytest.raises(DataError, match=r"data_batch_2.bin is missing; cifar10 needs data_batch_1.bin, .*test_batch"):
        load("cifar10", tmp_path)


def test_a_label_out_of_range_is_located(tiny: tuple[BinaryFormat, BinaryFormat], tmp_path: Path) -> None:
    write_files(tmp_path, tiny[0])
    path = tmp_path / "data_batch_3.bin"
    content = bytearray(path.read_bytes())
    content[2 * 49] = 10
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"record 2 of data_batch_3.bin has label 10, outside 0..9 of cifar10"):
        load("cifar10", tmp_path)


def test_what_was_looked_for_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither data_batch_1.bin .* nor train.bin, .* nor train/<class>/"):
        load(str(tmp_path), tmp_path)
    with pytest.raises(DataError, match=r"data 'cifar11' is not cifar10, cifar100 or shapes, and there is no such"):
        load("cifar11", tmp_path)
    (tmp_path / "cifar-10.zip").write_bytes(b"x")
    with pytest.raises(DataError, match=r"cifar-10.zip is not one of the official archives, cifar-10-binary.tar.gz, "):
        load(str(tmp_path / "cifar-10.zip"), tmp_path)


@pytest.mark.parametrize("by_name", [False, True])
def test_an_archive_of_the_wrong_size_or_hash_is_refused(
    tiny: tuple[BinaryFormat, BinaryFormat], tmp_path: Path, by_name: bool
) -> None:
    archive = archive_of(*honest_members(TINY10))
    path = tmp_path / "cifar-10-binary.tar.gz"
    source = "cifar10" if by_name else str(path)
    path.write_bytes(archive[:-9])
    with pytest.raises(DataError, match=f"has {len(archive) - 9:,} bytes where the official .* has {len(archive):,}"):
        load(source, tmp_path)
    path.write_bytes(archive[:-1] + b"!")
    with pytest.raises(DataError, match=r"has SHA-256 .* where the official cifar-10-binary.tar.gz has"):
        load(source, tmp_path)


def link(name: str, kind: bytes, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target)


FOLDER = TINY10.folder
FIRST = f"{FOLDER}/data_batch_1.bin"
# A file whose header promises more bytes than the archive holds: 147 at the start of 1 TB.
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**12)}
SPARSE_MAP = b"1\n0\n147\n".ljust(512, b"\0")
HOSTILE: dict[str, tuple[Callable[[list], list], str]] = {
    "traversal": (lambda m: [member("../evil", b"x"), *m], r"outside its own folder, '../evil'"),
    "traversal inside": (lambda m: [member(f"{FOLDER}/../../evil", b"x"), *m], "outside its own folder"),
    "absolute": (lambda m: [member("/tmp/evil", b"x"), *m], "outside its own folder, '/tmp/evil'"),
    "symbolic link": (lambda m: [link(FIRST, tarfile.SYMTYPE, "/etc/passwd"), *m], f"no regular file, '{FIRST}'"),
    "other link": (lambda m: [link("x", tarfile.SYMTYPE, "/"), *m], "no regular file, 'x'"),
    "hard link": (lambda m: [link(FIRST, tarfile.LNKTYPE, "/etc/passwd"), *m], "no regular file"),
    "device": (lambda m: [link("x", tarfile.CHRTYPE, ""), *m], "no regular file"),
    "fifo": (lambda m: [link(FIRST, tarfile.FIFOTYPE, ""), *m], "no regular file"),
    "sparse": (
        lambda m: [*m[:2], member(FIRST, SPARSE_MAP + bytes(147), pax_headers=SPARSE), *m[3:]],
        "no regular file",
    ),
    "twice": (lambda m: [*m, m[2]], f"the member '{FIRST}' twice"),
    "short": (lambda m: [*m[:2], member(FIRST, bytes(146)), *m[3:]], f"{FIRST} has 146 bytes where 147 are expected"),
    "long": (lambda m: [*m[:2], member(FIRST, bytes(148)), *m[3:]], f"{FIRST} has 148 bytes where 147 are expected"),
    "missing": (lambda m: m[:-1], f"lacks {FOLDER}/test_batch.bin"),
    "empty": (lambda m: [], f"lacks {FIRST}"),
    "bomb": (lambda m: [member("zeros", bytes(1 << 22)), *m], "unpacks to more than the 1,049,507 bytes"),
    "bomb behind": (lambda m: [*m, member("zeros", bytes(1 << 22))], "unpacks to more than"),
    "bomb of members": (lambda m: [member(f"{i}") for i in range(3000)] + m, "unpacks to more than"),
    "bomb in a name": (lambda m: [member("n" * (1 << 21)), *m], "unpacks to more than"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_even_with_the_right_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    change, sentence = HOSTILE[kind]
    archive = archive_of(*change(honest_members(TINY10)))
    path = tmp_path / "below" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    path.write_bytes(archive)
    monkeypatch.setattr(sources, "FORMATS", (pinned(TINY10, archive),))
    with pytest.raises(DataError, match=sentence):
        load(str(path), tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["below", "cifar-10-binary.tar.gz"]


NO_ARCHIVES = {
    "empty": b"",
    "a page": b"<html>",
    "no tar": gzip.compress(b"no tar", mtime=0),
    "cut off": gzip.compress(bytes(1000), mtime=0)[:-12],
}


@pytest.mark.parametrize("content", NO_ARCHIVES.values(), ids=NO_ARCHIVES)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is no readable .tar.gz archive|lacks"):
        read_archive(path, TINY10)


def test_the_official_numbers() -> None:
    assert set(CIFAR10.file_bytes.values()) == {30_730_000}
    assert CIFAR100.file_bytes == {"train.bin": 153_700_000, "test.bin": 30_740_000}
    assert len(CIFAR10.classes) == 10
    assert len(set(CIFAR100.classes)) == 100
    assert sorted(CIFAR100.classes) == list(CIFAR100.classes)


def test_real_cifar10() -> None:
    folder = os.environ.get("MINIGRAD_CIFAR10")
    if not folder:
        pytest.skip("set MINIGRAD_CIFAR10 to a folder that holds cifar-10-batches-bin")
    train, test = load(folder, Path(folder))
    assert train.images.shape == (50_000, 3, 32, 32)
    assert test.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert train.labels[:5].tolist() == [6, 9, 9, 4, 1]
    mean, std = channel_statistics(train.images)
    np.testing.assert_allclose(mean, train.mean, atol=1.5)
    np.testing.assert_allclose(std, train.std, atol=1.5)


# ---- drawn shapes ------------------------------------------------------------------------------------------------


def test_shapes_need_no_files(tmp_path: Path) -> None:
    train, test = load("shapes", tmp_path / "none", seed=3, limit_train=20, limit_test=10)
    assert train.images.shape == (20, 3, 32, 32)
    assert test.images.shape == (10, 3, 32, 32)
    assert train.classes == test.classes
    assert (train.images[:10] != test.images).any()
    again, _ = load("shapes", tmp_path / "none", seed=3, limit_train=20, limit_test=10)
    np.testing.assert_array_equal(train.images, again.images)
    assert (load("shapes", tmp_path, seed=4, limit_train=20, limit_test=10)[0].images != train.images).any()
    assert os.listdir(tmp_path) == []
