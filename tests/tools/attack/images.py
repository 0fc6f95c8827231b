"""Images that are damaged, lie about their size, or are something else under an image's name.

Each is decoded to what a network sees, or refused in one sentence with its name; nothing else is started or written.
"""

from __future__ import annotations

import io
import os
import random
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from test_fuzz_data import with_crcs

from train.data import DataError, read_image
from train.data.images import MARGIN, photograph, quiet, whole_photograph

from .archives import damage

MODES = {
    "PNG": ("1", "L", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P", "RGB"),
    "TIFF": ("1", "L", "P", "RGB", "CMYK", "I;16", "F"),
}
OTHER = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\nshowpage\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    b"P6 9 9 255\n" + bytes(300), b"\x00\x00\x01\x00" + bytes(100), b"8BPS" + bytes(100), b"", b"\x89PNG\r\n\x1a\n",
)  # fmt: skip


def encoded(rng: random.Random) -> bytes:
    """A small image in one of the formats that are opened, with what its format allows for."""
    kind = rng.choice(list(MODES))
    height, width = rng.choice([(1, 1), (1, 40), (40, 1), (9, 12), (33, 20)])
    pixels = np.frombuffer(rng.randbytes(height * width * 3), np.uint8).reshape(height, width, 3)
    mode = rng.choice(MODES[kind])
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    options: dict = {}
    if rng.random() < 0.3 and kind in ("JPEG", "PNG", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = rng.choice([0, 1, 6, 8, 9, 65535])
        options["exif"] = exif.tobytes()
    if rng.random() < 0.3 and kind in ("GIF", "PNG", "TIFF", "WEBP") and mode in ("RGB", "L"):
        options |= {"save_all": True, "append_images": [image] * rng.randint(1, 3)}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(rng: random.Random) -> bytes:
    """A PNG of a few kilobytes that claims to have many pixels, and may have them."""
    width, height = rng.choice([(30_000, 30_000), (2**31 - 1, 1), (1, 2**31 - 1), (65_535, 65_535), (13_000, 13_000)])
    data = zlib.compress(bytes(rng.choice([10, 1 << 20])))
    header = struct.pack(">IIBBBBB", width, height, 8, rng.choice([0, 2, 6]), 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def trial(rng: random.Random, folder: Path) -> None:
    """Write a hostile image under an image's name, and read it in the three ways that training and testing do."""
    kind = rng.choice(["damaged", "damaged", "believed", "bomb", "other", "whole"])
    content = {"bomb": lambda: bomb(rng), "other": lambda: rng.choice(OTHER)}.get(kind, lambda: encoded(rng))()
    if kind in ("damaged", "believed"):
        content = damage(rng, content)
    if kind == "believed" and content.startswith(b"\x89PNG"):
        content = with_crcs(content)
    path = folder / rng.choice(["x.png", "x.jpg", "x.GIF", "x.tiff", "x.webp", "\x1b[31m.png"])
    path.write_bytes(content)
    with quiet():
        for read in (
            lambda: read_image(path),
            lambda: photograph(path, (32, 32), MARGIN),
            lambda: whole_photograph(path, 40)[0],
        ):
            try:
                pixels = read()
                assert kind not in ("bomb", "other"), f"{content[:20]!r} was taken for an image"
                assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,), (pixels.dtype, pixels.shape)
            except DataError as error:
                early = kind != "bomb" or re.search("accepted|exceeds limit", str(error))
                assert early, f"{len(content):,} bytes were decoded before they were refused: {error}"
                assert str(path) in str(error) and "\n" not in str(error).replace(str(path), ""), repr(error)
    assert os.listdir(folder) == [path.name], "something was written"
