"""Decoding many image files, on several threads, and keeping the result for the next run.

What was decoded is kept in `decoded/` below the data folder, in one safetensors file for each list of files. Its name
is a hash of what it depends on: the files' paths, sizes and times, and how they were decoded. So a file that is
changed, added or removed makes another name, and the folder may be deleted at any time.
"""

import hashlib
import os
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

import minigrad
from minigrad import registry
from train.data.download import DataError
from train.data.fetch import note, silent
from train.data.images import MARGIN, photograph, quiet, read_image, whole_photograph

VERSION = 1  # of the way in which images are decoded: another number makes all that is kept another's
NAMED = 6  # files that cannot be read, after the first
KEPT = 8  # lists of files of one folder that are kept, the latest
ADVICE = "all images must have one size, or --image-size N scales them"

Decoded = tuple[np.ndarray, np.ndarray]  # images (N, 3, H, W) uint8, and width over height of each file's (N,) float64


@dataclass(frozen=True)
class Decoding:
    """How an image becomes H x W pixels: "as it is", "middle" of any size, or all of it "squeezed" into a square."""

    kind: str
    size: int = 0  # of what the network is to see

    def read(self, path: Path) -> tuple[np.ndarray, float]:
        """(H, W, 3) uint8, and the file's width over its height."""
        if self.kind == "middle":
            return photograph(path, (self.size, self.size), MARGIN), 1.0
        if self.kind == "squeezed":
            return whole_photograph(path, round(MARGIN * self.size))
        pixels = read_image(path)
        return pixels, pixels.shape[1] / pixels.shape[0]


AS_IT_IS = Decoding("as it is")


class Unreadable(DataError):
    """Image files that cannot be read, and what is wrong with each: a person who repairs a folder wants all of them."""

    def __init__(self, wrong: dict[Path, DataError]):
        first, *others = wrong
        names = ", ".join(str(path) for path in others[:NAMED]) + (", ..." if len(others) > NAMED else "")
        super().__init__(f"{wrong[first]}" + (f"; {len(others):,} more cannot be read: {names}" if others else ""))
        self.wrong = wrong


def threads() -> int:
    """As many as the fast operations use: what `--threads` says, else the cores that this process or container has."""
    return minigrad.fast.cpu.threads() if registry.fast("cpu") else os.cpu_count() or 1


def decode(paths: Sequence[Path], how: Decoding, title: str, progress: bool) -> Decoded:
    """Decode image files, one on each thread. Raises Unreadable, or DataError where one has another size."""
    images, aspects = np.empty((0, 3, 0, 0), np.uint8), np.ones(len(paths))
    wrong: dict[Path, DataError] = {}
    bar = tqdm(total=len(paths), desc=title, unit=" images", leave=False, disable=None if progress else True)
    with quiet(), bar, ThreadPoolExecutor(threads()) as pool:
        for i, found in enumerate(pool.map(partial(attempt, how), paths)):
            bar.update()
            if isinstance(found, DataError):
                wrong[paths[i]] = found
                continue
            pixels, aspect = found
            if not images.size:
                images = np.empty((len(paths), 3, *pixels.shape[:2]), np.uint8)
            if pixels.shape[:2] != images.shape[2:]:
                H, W = images.shape[2:]
                h, w = pixels.shape[:2]
                raise DataError(f"{paths[i]} is {w} x {h} pixels where the others are {W} x {H}; {ADVICE}")
            images[i], aspects[i] = pixels.transpose(2, 0, 1), aspect
    if wrong:
        raise Unreadable(wrong)
    return images, aspects


def attempt(how: Decoding, path: Path) -> tuple[np.ndarray, float] | DataError:
    """What a file holds, or what is wrong with it."""
    try:
        return how.read(path)
    except DataError as error:
        return error


def decoded(
    paths: Sequence[Path], how: Decoding, folder: Path, source: Path, title: str, progress: bool = True
) -> Decoded:
    """The decoded images of `paths`, files below `source`: from `folder` if they are kept there, else decoded now."""
    digest = hashlib.sha256(f"{VERSION} {how.kind} {how.size}".encode())
    try:
        for path in paths:
            stat = path.stat()
            name = os.fsencode(path.relative_to(source))
            # Of two files of one size that were unpacked in the same moment, the number tells which is where.
            digest.update(b"\n%b\0%d %d %d %d" % (name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
    where = hashlib.sha256(os.fsencode(os.path.realpath(source))).hexdigest()[:12]
    path = folder / where / f"{digest.hexdigest()[:24]}.safetensors"
    found = kept(path, len(paths))
    if found is None:
        found = decode(paths, how, title, progress)
        keep(path, found, progress)
    return found


def kept(path: Path, number: int) -> Decoded | None:
    """What a file holds, None if there is none or it is not whole."""
    try:
        with safe_open(path, "numpy") as file:
            images, aspects = file.get_tensor("images"), file.get_tensor("aspects")
            crc = (file.metadata() or {}).get("crc32")
    except (OSError, SafetensorError):
        return None
    whole = crc == checksum(images, aspects) and images.ndim == 4 and len(images) == len(aspects) == number
    if whole:
        with suppress(OSError):
            os.utime(path)  # used last
    return (images, aspects) if whole else None


def checksum(*arrays: np.ndarray) -> str:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(f"{array.dtype} {array.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return str(crc)


def left_behind(folder: Path) -> list[Path]:
    """What decoders that were killed had begun to write: parts that nobody has written to for an hour."""
    return [part for part in folder.glob("*.part") if part.stat().st_mtime < time.time() - 3600]


def keep(path: Path, found: Decoded, progress: bool) -> None:
    """Write what was decoded, whole or not at all; the oldest files make room. A full disk is no reason to stop."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": found[0], "aspects": found[1]}, part, metadata={"crc32": checksum(*found)})
        os.replace(part, path)
        newest = sorted(path.parent.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for old in (*newest[KEPT:], *left_behind(path.parent)):
            old.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        (note if progress else silent)(f"the decoded images are not kept in {path.parent}: {reason}")
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
