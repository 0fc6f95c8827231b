"""One image file: decoded, upright, in RGB, and brought to a size.

Training, evaluation and `train.predict` read images through here, so that they see the same pictures.
"""

import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from train.data.download import DataError

# What is opened, whatever a file is called: Pillow knows forty formats more, one of which starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")

MAX_PIXELS = 1 << 20  # of one image that is taken as it is; more is taken for a decompression bomb
MAX_PHOTO_PIXELS = 89_000_000  # of one that is scaled down, where Pillow begins to warn
MAX_SCALED_PIXELS = 1 << 26  # of an image scaled to the network's size, before the middle is cut out
BYTES_A_PIXEL = 16  # of its file, at most: twice the size of an image uncompressed, in 16 bits with alpha

# How an image is scaled that is cropped afterwards: its shorter side is so many times the side of the crop, as in the
# paper's tests, on the central 224 x 224 pixels of images whose shorter side is 256.
MARGIN = 256 / 224

# EXIF's orientation: what turns the stored rows and columns into the picture.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Pillow neither warns nor logs: errors say what matters. For all threads, so enter it in one.

    Nor does it refuse large images when it has read no more than their size: `open_image` does, after a JPEG file's has
    become an eighth.
    """
    log = logging.getLogger("PIL")
    before, limit = log.level, Image.MAX_IMAGE_PIXELS
    log.setLevel(logging.CRITICAL + 1)
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(before)
        Image.MAX_IMAGE_PIXELS = limit


def open_image(path: Path | str, side: int | None = None) -> Image.Image:
    """Decode one image file to RGB, turned upright as its EXIF says; of several frames or pages, the first.

    Grey becomes three equal channels, a palette its colours, CMYK RGB; of 16-bit samples the upper 8 bits count; where
    an image is transparent, white shows through. With `side`, the image will be scaled down to about that many pixels:
    more pixels are accepted then, and JPEG files are decoded at an eighth, a quarter or half of their size where twice
    `side` pixels remain. Raises DataError for an image that is damaged, cut off or too large.
    """
    path, most = Path(path), MAX_PHOTO_PIXELS if side else MAX_PIXELS
    try:
        size = path.stat().st_size
        if size > BYTES_A_PIXEL * most:
            raise DataError(f"{path} has {size:,} bytes; at most {BYTES_A_PIXEL * most:,} are accepted for an image")
        # Decoded from memory, where a chunk that claims gigabytes gets no more than there is.
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            if side:
                image.draft(None, (2 * side, 2 * side))
            if image.width * image.height > most:
                advice = "" if side else "; --image-size scales larger ones down"
                pixels = f"{image.width} x {image.height} pixels"
                raise DataError(f"{path} would unpack to {pixels}; at most {most:,} are accepted{advice}")
            image.load()
            return upright(in_rgb(image), orientation(image))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path} is no readable image ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's decoders raise a dozen types for damaged files, SyntaxError among them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is no readable image ({reason})") from None


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where the image says nothing about it or its metadata is damaged."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # the pixels are good all the same
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def in_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":  # of TIFF; nothing says whether white is 1, 255 or 65,535
        raise ValueError("its pixels are floating-point numbers, of which nothing says what white is: save it as PNG")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def read_image(path: Path | str) -> np.ndarray:
    """Decode one image file as it is: (H, W, 3) uint8. Raises DataError."""
    with quiet():
        return np.asarray(open_image(path))


def centre_crop(image: Image.Image, size: tuple[int, int], margin: float = 1.0) -> Image.Image:
    """Scale an image until it just covers `margin` times `size` (H, W), and cut H x W pixels out of the middle."""
    H, W = size
    scale = max(margin * H / image.height, margin * W / image.width)
    height, width = max(H, int(image.height * scale + 1e-6)), max(W, int(image.width * scale + 1e-6))
    if height * width > MAX_SCALED_PIXELS:
        raise DataError(f"an image of {image.width} x {image.height} pixels is too long and narrow to be classified")
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - H) / 2), round((width - W) / 2)
    return image.crop((left, top, left + W, top + H))


def photograph(path: Path, size: tuple[int, int], margin: float) -> np.ndarray:
    """The middle of an image of any size, as a network sees it that is not being trained: (H, W, 3) uint8.

    Evaluation and `train.predict` both call this. Raises DataError.
    """
    try:
        return np.asarray(centre_crop(open_image(path, math.ceil(margin * max(size))), size, margin))
    except DataError as error:
        raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def whole_photograph(path: Path, side: int) -> tuple[np.ndarray, float]:
    """All of an image, squeezed or stretched to side x side: (side, side, 3) uint8, and its width over its height.

    Training cuts a part of any place, size and shape out of it and scales that anyway; so images of all shapes fit into
    one array, and no part of an image is lost.
    """
    image = open_image(path, side)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)), image.width / image.height
