"""Where the official files are: in a folder, in an archive, or still on the web."""

from pathlib import Path

from train.data.download import fetch, verify
from train.data.formats import FORMATS, BinaryFormat


def find_folder(folder: Path, format: BinaryFormat) -> Path | None:
    """Where official files lie, `folder` itself or their own folder below it; None where there is not one of them."""
    for place in (folder, folder / format.folder):
        if any((place / name).is_file() for name in format.file_bytes):
            return place
    return None


def find_binary(data: str, root: Path, mirror: str | None, progress: bool) -> tuple[Path, BinaryFormat] | None:
    """The folder or verified archive that `data`, a name or a path, stands for, and its format; None for other data."""
    path = Path(data)
    for format in FORMATS:
        if data == format.name:
            place = find_folder(root, format)
            return place or fetch(format.remote, root, mirror=mirror, progress=progress), format
    for format in FORMATS:
        if path.is_file() and (path.name == format.remote.name or path.stat().st_size == format.remote.size):
            verify(path, format.remote)
            return path, format
        place = find_folder(path, format)
        if place:
            return place, format
    return None
