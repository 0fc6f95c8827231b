"""CIFAR in all its forms, and in all the places where it may lie; what came in is kept in one form."""

import contextlib
import hashlib
import io
import os
import pickle
import pickletools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.web import Server
from test_data import TINY10, TINY100, archive_of, check_records, honest_members, make_files, member, write_files

from train.data import BinaryFormat, DataError, load, pickled, sources
from train.data.archives import read_png_archive, read_python_archive
from train.data.download import Remote
from train.data.formats import Archive


def batches(format: BinaryFormat, protocol: int = 2, keys: type = str) -> dict[str, bytes]:
    """The pickles that stand for the random files of a format, by name."""
    _, records = make_files(format)
    result = {}
    for name, file in zip(format.python.files, format.file_bytes, strict=True):
        rows = records[file]
        batch: dict = {"batch_label": "batch", "filenames": [f"labels_{i}.png" for i in range(len(rows))]}
        for column, label in enumerate(format.python.labels):
            batch[label] = rows[:, column].tolist()
        batch["data"] = np.ascontiguousarray(rows[:, format.label_bytes :])
        if keys is bytes:
            batch = {key.encode(): value for key, value in batch.items()}
        result[name] = pickle.dumps(batch, protocol)
    return result


def python_archive(format: BinaryFormat, **options: object) -> bytes:
    folder = format.python.folder
    return archive_of(*[member(f"{folder}/{name}", c) for name, c in batches(format, **options).items()])  # type: ignore[arg-type]


def png_archive(format: BinaryFormat) -> bytes:
    """An image a file, in an order that is not the official one."""
    _, records = make_files(format)
    members = [member("cifar10/labels.txt", b"airplane")]
    for split, files in (("train", format.train_files), ("test", format.test_files)):
        rows = np.concatenate([records[file] for file in files])
        for place, row in enumerate(rows):
            buffer, name = io.BytesIO(), format.classes[row[0]]
            planes = row[1:].reshape(3, format.side, format.side)
            Image.fromarray(planes.transpose(1, 2, 0)).save(buffer, "png")
            members.append(member(f"cifar10/{split}/{name}/{place}_{name}.png", buffer.getvalue()))
    return archive_of(*sorted(members, key=lambda m: m[0].name))


def packed(format: BinaryFormat) -> tuple[BinaryFormat, dict[str, bytes]]:
    """The format with its tiny archives' hashes, and the archives by name."""
    make = {"binary": lambda f: archive_of(*honest_members(f)), "python": python_archive, "png": png_archive}
    contents = {a.remote.name: make[a.kind](format) for a in format.archives}
    archives = tuple(
        Archive(a.kind, Remote(a.remote.url, len(content), hashlib.sha256(content).hexdigest()))
        for a, content in zip(format.archives, contents.values(), strict=True)
    )
    digests = tuple(hashlib.sha256(content).hexdigest() for content in batches(format).values())
    return replace(format, archives=archives, python=replace(format.python, digests=digests)), contents


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[BinaryFormat, BinaryFormat]:
    """Make `load` expect tiny files, and a home without any."""
    formats = packed(TINY10)[0], packed(TINY100)[0]
    monkeypatch.setattr(sources, "FORMATS", formats)
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "TORCH_HOME", "KERAS_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return formats


def check(splits: tuple, format: BinaryFormat) -> None:
    _, records = make_files(format)
    check_records(splits[0], [records[name] for name in format.train_files], format)
    check_records(splits[1], [records[name] for name in format.test_files], format)


@pytest.mark.parametrize("format", [TINY10, TINY100], ids=["cifar10", "cifar100"])
@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("keys", [str, bytes])
def test_pickles_are_read_without_being_executed(
    format: BinaryFormat, protocol: int, keys: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    files, _ = make_files(format)
    path = tmp_path / "x.tar.gz"
    path.write_bytes(python_archive(format, protocol=protocol, keys=keys))
    assert read_python_archive(path, format) == files


def test_a_pickle_as_python_2_wrote_it(tmp_path: Path) -> None:
    """The instructions of the official files: strings of bytes, a list in pieces, and the array's state."""
    files, records = make_files(TINY10)
    rows = records["data_batch_1.bin"]
    pixels = rows[:, 1:].tobytes()

    def word(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    labels = b"".join(b"K" + bytes([label]) for label in rows[:, 0])
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85" + word(b"b") + b"\x87R"
        b"(K\x01K\x03K\x30\x86cnumpy\ndtype\n" + word(b"u1") + b"K\x00K\x01\x87R(K\x03" + word(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    )  # fmt: skip
    content = (
        b"\x80\x02}q\x01(" + word(b"batch_label") + b"q\x02" + word(b"training batch 1 of 5") + word(b"labels")
        + b"]q\x05(" + labels + b"e" + word(b"data") + array + word(b"filenames")
        + b"](" + 3 * word(b"a_1.png") + b"eu."
    )  # fmt: skip
    pickletools.dis(content, out=io.StringIO())  # it is one
    assert pickled.records(content, TINY10, "data_batch_1.bin", "x") == files["data_batch_1.bin"]


WRONG = {
    "no pickle": (lambda c: b"hello", "is no batch of cifar10 for Python"),
    "empty": (lambda c: b"", "is no batch of cifar10 for Python"),
    "cut off": (lambda c: c[:-100], "is no batch of cifar10 for Python"),
    "no array": (lambda c: pickle.dumps({"labels": [1, 2, 3]}, 2), "it has no array of 3 images"),
    "labels": (lambda c: c.replace(b"labels", b"labelz"), "has 0 labels, or some outside 0..255"),
    "large": (lambda c: c + bytes(1 << 20), "bytes where cifar10 has at most"),
    "instructions": (lambda c: b"\x80\x02" + b"N0" * 2000 + c[2:], "more instructions than such a file needs"),
    "columns": (  # as an array in Fortran's order is pickled
        lambda c: pickle.dumps({"labels": [1, 2, 3], "data": np.asfortranarray(np.zeros((3, 48), np.uint8))}, 2),
        "stored column by column",
    ),
    "command": (lambda c: b"cos\nsystem\n(S'touch executed'\ntR.", "it has no array"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_batch_is_refused(kind: str, tiny: tuple, tmp_path: Path) -> None:
    change, sentence = WRONG[kind]
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in batches(tiny[0]).items():
        (folder / name).write_bytes(change(content) if name == "data_batch_3" else content)
    with pytest.raises(DataError, match=sentence) as error:
        load(str(folder), tmp_path)
    assert f"{folder}/data_batch_3" in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_pngs_are_put_into_the_official_order(tmp_path: Path) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(png_archive(TINY10))
    assert read_png_archive(path, TINY10) == make_files(TINY10)[0]


@pytest.mark.parametrize("kind", ["missing", "twice", "outside", "size", "damaged"])
def test_a_png_archive_that_is_not_whole_is_refused(kind: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "png")
    large = io.BytesIO()
    Image.new("RGB", (5, 4)).save(large, "png")
    members = [
        member(f"{split}/cat/{i}_cat.png", buffer.getvalue())
        for split, count in (("train", 15), ("test", 4))
        for i in range(count)
    ]
    change = {
        "missing": (members[1:], "lacks train image 0 of 15"),
        "twice": ([*members, member("train/dog/3_dog.png", buffer.getvalue())], "is taken or outside"),
        "outside": ([member("test/cat/4_cat.png", buffer.getvalue()), *members], "is taken or outside 0..3"),
        "size": ([member("test/cat/0_cat.png", large.getvalue())], "is 5 x 4 pixels, not 4 x 4"),
        "damaged": ([member("test/cat/0_cat.png", b"\x89PNG")], "test/cat/0_cat.png is no readable PNG image"),
    }
    path = tmp_path / "x.tgz"
    path.write_bytes(archive_of(*change[kind][0]))
    with pytest.raises(DataError, match=change[kind][1]):
        read_png_archive(path, TINY10)


# ---- what is there already ---------------------------------------------------------------------------------------


def put(folder: Path, format: BinaryFormat) -> None:
    folder.mkdir(parents=True)
    for name, content in batches(format).items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("which", [0, 1], ids=["cifar10", "cifar100"])
def test_a_path_may_be_what_torchvision_keeps(tiny: tuple, tmp_path: Path, which: int) -> None:
    format = tiny[which]
    folder = tmp_path / "somewhere" / format.python.folder
    put(folder, format)
    check(load(str(folder), tmp_path / "root"), format)
    check(load(str(folder.parent), tmp_path / "root"), format)
    archive = tmp_path / f"{format.python.folder.replace('batches-py', 'python')}.tar.gz"
    archive.write_bytes(packed(replace(format, archives=format.archives))[1][archive.name])
    check(load(str(archive), tmp_path / "root"), format)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("some", [False, True], ids=["alone", "beside some of its files"])
def test_a_folder_with_an_archive_is_read_and_nothing_is_written_there(tiny: tuple, tmp_path: Path, some: bool) -> None:
    """Somebody downloaded it, and began to unpack it."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    if some:
        write_files(folder / "cifar-10-batches-bin", tiny[0])
        (folder / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    (folder / "cifar-10-binary.tar.gz").write_bytes(packed(TINY10)[1]["cifar-10-binary.tar.gz"])
    before = sorted(folder.rglob("*"))
    check(load(str(folder), tmp_path / "root"), tiny[0])
    assert sorted(folder.rglob("*")) == before and not (tmp_path / "root").exists()


PLACES = (
    "data/{}", "HOME/data/{}", "TORCH_HOME/{}", "TORCH_HOME/datasets/{}",
    "KERAS_HOME/datasets/{}", "KERAS_HOME/datasets/{}-target/{}",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("which", [0, 1], ids=["cifar10", "cifar100"])
def test_the_usual_places_are_looked_at(
    tiny: tuple, tmp_path: Path, which: int, place: str, capsys: pytest.CaptureFixture
) -> None:
    format = tiny[which]
    folder = tmp_path / place.replace("{}", format.python.folder)
    put(folder, format)
    check(load(format.name, tmp_path / "root"), format)
    assert (
        capsys.readouterr().err == f"{format.name}: found in {os.path.relpath(folder) if place[0] == 'd' else folder}\n"
    )
    assert not (tmp_path / "root").exists()


def test_an_archive_in_a_usual_place_is_kept_unpacked(
    tiny: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "KERAS_HOME" / "datasets"
    folder.mkdir(parents=True)
    path = folder / "cifar-10-batches-py.tar.gz"
    path.write_bytes(packed(TINY10)[1]["cifar-10-python.tar.gz"])
    check(load("cifar10", tmp_path / "root"), tiny[0])
    assert capsys.readouterr().err == f"cifar10: found in {path}\n"
    path.unlink()
    check(load("cifar10", tmp_path / "root"), tiny[0])
    assert capsys.readouterr().err == ""


def test_other_bytes_are_taken_only_where_they_are_asked_for(
    tiny: tuple, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "HOME" / "data" / "cifar-10-batches-py"
    put(folder, tiny[0])
    path = folder / "data_batch_1"
    path.write_bytes(path.read_bytes().replace(b"labels_0.png", b"labels_9.png"))
    server.behaviours = [lambda h: h.answer(404, b"")]
    with pytest.raises(DataError, match="404"):
        load("cifar10", tmp_path / "root", mirror=server.base)
    assert (
        f"{folder} has other bytes than the official files; --data {folder} would take them" in capsys.readouterr().err
    )
    check(load(str(folder), tmp_path), tiny[0])
    assert "does not have the official bytes of cifar10; it is taken as it is" in capsys.readouterr().err


# ---- what comes in from the web ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "cifar10.tgz"])
def test_whichever_archive_comes_in_the_same_files_are_kept(
    tiny: tuple, tmp_path: Path, server: Server, name: str
) -> None:
    archives = packed(TINY10)[1]
    server.behaviours = [lambda h: h.answer(200, archives[name]) if h.path == f"/{name}" else h.answer(404, b"")]
    root = tmp_path / "root"
    check(load("cifar10", root, mirror=[server.base]), tiny[0])
    assert os.listdir(root) == ["cifar-10-batches-bin"]
    files, _ = make_files(TINY10)
    kept = {path.name: path.read_bytes() for path in (root / "cifar-10-batches-bin").iterdir()}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {file}\n" for file, content in files.items())
    assert kept == files | {"SHA256SUMS": sums.encode()}
    server.requests.clear()
    check(load("cifar10", root), tiny[0])
    assert not server.requests

    damaged = root / "cifar-10-batches-bin" / "data_batch_2.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=r"data_batch_2.bin is damaged: .* SHA256SUMS; delete the folder"):
        load("cifar10", root)


def test_no_room_for_the_kept_form_is_no_reason_to_stop(
    tiny: tuple, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    archive = packed(TINY10)[1]["cifar-10-binary.tar.gz"]
    server.behaviours = [lambda h: h.answer(200, archive)]
    monkeypatch.setattr(sources, "write_atomically", full)
    check(load("cifar10", tmp_path / "root", mirror=server.base), tiny[0])
    assert "will be unpacked again next time: No space left on device" in capsys.readouterr().err
    check(load("cifar10", tmp_path / "root"), tiny[0])
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_ends_the_keeping_half_way_leaves_the_archive_to_the_next_start(
    tiny: tuple, tmp_path: Path, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or Ctrl-C, at the third file; and a kill, after which nobody cleans up."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "cifar-10-binary.tar.gz").write_bytes(packed(TINY10)[1]["cifar-10-binary.tar.gz"])
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        written: list[Path] = []

        def third(path: Path, content: bytes) -> None:
            written.append(path)
            if len(written) == 3:
                raise fault
            path.write_bytes(content)

        patch.setattr(sources, "write_atomically", third)
        check(load("cifar10", root), tiny[0])
    assert not list((root / "cifar-10-batches-bin").glob("*.bin"))
    write_files(root / "cifar-10-batches-bin", tiny[0])
    (root / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    check(load("cifar10", root), tiny[0])


def test_a_file_of_another_program_is_not_taken_for_cifar_100(tiny: tuple, tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"nanoGPT")
    assert sources.find_official(str(tmp_path), tmp_path, (), False) is None


def test_half_a_kept_form_is_not_believed(tiny: tuple, tmp_path: Path) -> None:
    write_files(tmp_path / "root" / "cifar-10-batches-bin", tiny[0])
    (tmp_path / "root" / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch.bin is missing"):
        load("cifar10", tmp_path / "root")


def leave_no_room_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when a file of this name is kept."""
    write = sources.write_atomically

    def full(path: Path, content: bytes) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(sources, "write_atomically", full)


def test_a_kept_form_that_was_half_replaced_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of before would say of the new files that they are damaged."""
    said: list[str] = []
    assert sources.keep({"a.bin": b"1", "b.bin": b"2"}, tmp_path, said.append)
    leave_no_room_for("b.bin", monkeypatch)
    assert not sources.keep({"a.bin": b"3", "b.bin": b"4"}, tmp_path, said.append) and len(said) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_users_own_stays_where_the_others_find_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.bin").write_bytes(b"1")
    leave_no_room_for("c.bin", monkeypatch)
    assert not sources.keep({"a.bin": b"1", "b.bin": b"2", "c.bin": b"3"}, tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
