"""Where the official images are: here already, in one of the places where people keep them, or still on the web.

Whatever came in from the web, or was found in an archive, is kept as the official binary files with their SHA-256
beside them, in `SHA256SUMS` (`sha256sum -c` reads it): the next start reads those and nothing else.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from minigrad.weights import write_atomically
from train.data.archives import Contents, read_folder, read_python_folder, unpack
from train.data.download import DataError, verify
from train.data.fetch import alone, fetch, note, silent
from train.data.formats import FORMATS, Archive, BinaryFormat

SUMS = "SHA256SUMS"


def usual_places() -> Iterator[Path]:
    """The folders in which torchvision and Keras, or their users, keep their data sets."""
    home = Path(os.path.expanduser("~"))  # which raises nothing where there is no home
    yield Path("data")
    yield home / "data"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    torch = Path(os.environ.get("TORCH_HOME") or cache / "torch")
    yield torch
    yield torch / "datasets"
    yield Path(os.environ.get("KERAS_HOME") or home / ".keras") / "datasets"


def find_folder(folder: Path, format: BinaryFormat) -> Path | None:
    """Where official files lie, `folder` itself or their own folder below it: two of them, one may be somebody else's.

    (CIFAR-100's are called train.bin and test.bin, and so are files of other programs.)
    """
    for place in (folder, folder / format.folder):
        if sum((place / name).is_file() for name in format.file_bytes) >= 2:
            return place
    return None


def find_python(folder: Path, format: BinaryFormat) -> Path | None:
    """Where the official files for Python lie: `folder` itself, or below it where torchvision or Keras put them."""
    python = format.python
    below = (python.folder, f"{python.folder}-target/{python.folder}")
    for place in (folder, *(folder / name for name in below)):
        # Of CIFAR-100 the names are train and test, which other folders have too: there, both must be files.
        if all((place / name).is_file() for name in (python.files[0], python.files[-1])):
            return place
    return None


def find_archive(folder: Path, format: BinaryFormat) -> tuple[Path, Archive] | None:
    """The first archive of the format that lies in a folder."""
    for archive in format.archives:
        for name in (archive.remote.name, *([f"{format.python.folder}.tar.gz"] if archive.kind == "python" else [])):
            if (folder / name).is_file():  # the second is Keras's name
                return folder / name, archive
    return None


def has_official_bytes(folder: Path, format: BinaryFormat) -> bool:
    """Whether the files for Python in a folder have the hashes of the official ones."""
    for name, digest in zip(format.python.files, format.python.digests, strict=True):
        try:
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "md5" if len(digest) == 32 else "sha256").hexdigest() != digest:
                    return False
        except OSError:
            return False
    return True


# ---- the form in which they are kept --------------------------------------------------------------------------------


def keep(contents: Contents, folder: Path, say: Callable[[str], None]) -> bool:
    """Write the binary files, then their SHA-256; return whether there was room for them.

    What ends it, a full disk or Ctrl-C, leaves none that it wrote, so that the next start reads the archive again. A
    file that was there already, and has the right bytes, is the user's and stays.
    """
    begun: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMS).unlink(missing_ok=True)
        for name, content in contents.items():
            if not holds(folder / name, content):
                begun.append(folder / name)
                write_atomically(folder / name, content)
        lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
        write_atomically(folder / SUMS, "".join(lines).encode())
        return True
    except BaseException as error:
        for path in begun:
            path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        say(f"the images are not kept in {folder}, and will be unpacked again next time: {error.strerror or error}")
        return False


def holds(path: Path, content: bytes) -> bool:
    """Whether a file is there and has exactly these bytes."""
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def check_sums(contents: Contents, folder: Path) -> None:
    """Raise DataError unless the files read from a folder have the SHA-256 that were kept with them, if any were."""
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return  # somebody's own copy
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {folder / SUMS}: {error}") from None
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name, content in contents.items():
        if name in sums and sums[name] != hashlib.sha256(content).hexdigest():
            raise DataError(
                f"{folder / name} is damaged: it does not have the SHA-256 in {SUMS}; delete the folder to have it anew"
            )


# ---- the way in -----------------------------------------------------------------------------------------------------


def by_name(
    format: BinaryFormat, root: Path, mirrors: Sequence[str], progress: bool, say: Callable[[str], None]
) -> tuple[Contents, Path]:
    """The contents of the binary files, and where they are from: `root`, the usual places or the web, in this order."""
    found = here(format, root, progress, say)
    if found:
        return found
    for place in usual_places():
        python = find_python(place, format)
        if python and has_official_bytes(python, format):
            say(f"{format.name}: found in {python}")
            return read_python_folder(python, format), python
        if python:
            say(f"{format.name}: {python} has other bytes than the official files; --data {python} would take them")
        packed = find_archive(place, format)
        if packed:
            try:
                verify(packed[0], packed[1].remote)
            except DataError as error:
                say(f"{format.name}: passed over: {error}")
                continue
            say(f"{format.name}: found in {packed[0]}")
            contents = unpack(packed[0], format, packed[1], progress)
            keep(contents, root / format.folder, say)
            return contents, packed[0]
    try:
        with alone(root / f".{format.name}.lock"):
            found = here(format, root, progress, say)  # another process may have fetched it in the meantime
            if found is None:
                remotes = [archive.remote for archive in format.archives]
                path = fetch(remotes, root, mirrors=mirrors, progress=progress)
                archive = next(a for a in format.archives if a.remote.name == path.name)
                contents = unpack(path, format, archive, progress)
                if keep(contents, root / format.folder, say):
                    path.unlink()
                found = contents, root / format.folder
    except FileExistsError:
        raise DataError(f"cannot write {format.name} to {root}, which is no folder") from None
    except OSError as error:
        raise DataError(f"cannot write {format.name} to {root}: {error.strerror or error}") from None
    (root / f".{format.name}.lock").unlink(missing_ok=True)  # whoever still waits for it finds the files
    return found


def here(
    format: BinaryFormat, root: Path, progress: bool, say: Callable[[str], None], for_next_time: bool = True
) -> tuple[Contents, Path] | None:
    """What lies in a folder itself, in any form; what an archive holds is kept there `for_next_time`."""
    place, packed = find_folder(root, format), find_archive(root, format)
    if place and (packed is None or all((place / name).is_file() for name in format.file_bytes)):
        contents = read_folder(place, format)
        check_sums(contents, place)
        return contents, place
    if packed:  # also where some of its files were unpacked, and the process was killed
        verify(packed[0], packed[1].remote)
        contents = unpack(packed[0], format, packed[1], progress)
        if for_next_time:
            keep(contents, root / format.folder, say)
        return contents, packed[0]
    python = find_python(root, format)
    if python:
        return read_python(python, format, say), python
    return None


def read_python(folder: Path, format: BinaryFormat, say: Callable[[str], None]) -> Contents:
    """The files for Python in a folder that the user named: other bytes than the official ones are told, and taken."""
    if not has_official_bytes(folder, format):
        say(f"{folder} does not have the official bytes of {format.name}; it is taken as it is")
    return read_python_folder(folder, format)


def by_path(path: Path, progress: bool, say: Callable[[str], None]) -> tuple[Contents, Path, BinaryFormat] | None:
    """The same for a path: an official archive, or a folder with official files or archives; None for anything else.

    Nothing is written there: it is the user's folder.
    """
    for format in FORMATS:
        for archive in format.archives:
            if path.is_file() and (path.name == archive.remote.name or path.stat().st_size == archive.remote.size):
                verify(path, archive.remote)
                return unpack(path, format, archive, progress), path, format
        found = here(format, path, progress, say, for_next_time=False)
        if found:
            return *found, format
    return None


def find_official(
    data: str, root: Path, mirrors: Sequence[str], progress: bool
) -> tuple[Contents, Path, BinaryFormat] | None:
    """The contents of the official files that `data`, a name or a path, stands for; None for other data."""
    say = note if progress else silent
    for format in FORMATS:
        if data == format.name:
            return *by_name(format, root, mirrors, progress, say), format
    return by_path(Path(data), progress, say)
