"""The data set that needs no download: ten shapes drawn by Pillow, 32x32 pixels, RGB.

A class is the outline of one shape: a polygon with its centroid at the origin and an area of one. An image is that
polygon turned, sheared, scaled and moved at random, in a random colour, over a random background with strokes and
noise. Outlines of equal area, colours and places that know nothing of the class: only the shape tells, so that a linear
classifier on the pixels fails and a convolutional network does not.

Everything random comes from one `numpy.random.Generator`; the same seed draws the same bytes.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

SIDE = 32  # pixels
SUPERSAMPLING = 4  # polygons are drawn this much larger and averaged down, which gives smooth edges
STROKES = 2  # the clutter in each image
CANVAS = SIDE * SUPERSAMPLING
MEAN, STD = (123.0, 123.0, 123.0), (58.0, 58.0, 58.0)  # of the channels, rounded; the same for every seed and size
CHUNK = 250  # images drawn from one random stream and coloured at once; bounds the memory of the float arrays


# ---- the ten outlines -----------------------------------------------------------------------------------------------


def arc(radius: float, start: float, stop: float, x: float = 0.0, y: float = 0.0, steps: int = 48) -> list:
    """Points on the circle of `radius` around (x, y), from angle `start` to `stop` in degrees."""
    angles = [math.radians(start + (stop - start) * i / steps) for i in range(steps + 1)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def corners(*radii: float) -> list:
    """One point per radius at equal angles, from the top: a regular polygon, or a star where the radii alternate."""
    angles = [math.pi / 2 + 2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def heart(steps: int = 64) -> list:
    """The well-known curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
    turn = [2 * math.pi * i / steps for i in range(steps)]
    return [
        (16 * math.sin(t) ** 3, 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
        for t in turn
    ]


def centred(points: list) -> np.ndarray:
    """Move a polygon's centroid to the origin and scale its area to one: (V, 2) float64, y turned downwards.

    area = 1/2 sum_i (x_i y_{i+1} - x_{i+1} y_i), and the centroid likewise (the shoelace formula).
    """
    outline = np.array(points, np.float64)
    following = np.roll(outline, -1, axis=0)
    cross = outline[:, 0] * following[:, 1] - following[:, 0] * outline[:, 1]
    area = cross.sum() / 2
    centroid = ((outline + following) * cross[:, None]).sum(axis=0) / (6 * area)
    return (outline - centroid) * (1, -1) / math.sqrt(abs(area))


OUTLINES = {
    "arrow": centred([(-9, -3), (1, -3), (1, -8), (10, 0), (1, 8), (1, 3), (-9, 3)]),
    "bolt": centred([(-1, 7), (-7, -1.5), (-1, -1.5), (-3, -7), (7, 2), (1, 2), (5, 7)]),
    "circle": centred(arc(1, 0, 360)[:-1]),
    "crescent": centred(arc(1, 58, 302) + arc(0.85, 276, 84, x=0.45)),
    "cross": centred(
        [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
    ),
    "heart": centred(heart()),
    "ring": centred(arc(1, 0, 360) + arc(0.58, 360, 0)),  # one polygon with a seam: out along the rim, back inside
    "square": centred([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "star": centred(corners(*(1, 0.45) * 5)),
    "triangle": centred(corners(1, 1, 1)),
}
CLASSES = list(OUTLINES)


# ---- masks: what Pillow draws ---------------------------------------------------------------------------------------


def place(outline: np.ndarray, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Turn, shear, scale and move an outline at random so that it lies inside the canvas."""
    angle = rng.uniform(-math.pi / 8, math.pi / 8)
    cos, sin = math.cos(angle), math.sin(angle)
    stretch = rng.uniform(0.9, 1.1)  # x * stretch, y / stretch: the area stays as it is
    shear = rng.uniform(-0.1, 0.1)
    scale = SUPERSAMPLING * math.sqrt(rng.uniform(140, 230))  # the area in pixels of the finished image
    x = outline[:, 0] * stretch + outline[:, 1] * shear
    y = outline[:, 1] / stretch
    points = np.stack([x * cos - y * sin, x * sin + y * cos], axis=1) * scale
    low, high = points.min(axis=0), points.max(axis=0)
    room = CANVAS - (high - low)
    return [tuple(p) for p in points - low + room * rng.uniform(0.15, 0.85, 2)]


def draw_masks(label: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two coverage masks of one image, (32, 32) uint8 each: thin straight strokes, and the shape over them."""
    strokes, shape = Image.new("L", (CANVAS, CANVAS)), Image.new("L", (CANVAS, CANVAS))
    for x0, y0, x1, y1 in rng.uniform(0, CANVAS, (STROKES, 4)):
        ImageDraw.Draw(strokes).line([(x0, y0), (x1, y1)], fill=255, width=SUPERSAMPLING)
    ImageDraw.Draw(shape).polygon(place(OUTLINES[CLASSES[label]], rng), fill=255)
    return np.asarray(strokes.reduce(SUPERSAMPLING)), np.asarray(shape.reduce(SUPERSAMPLING))


# ---- colour: what NumPy paints --------------------------------------------------------------------------------------


def clouds(number: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random textures in [-1, 1): a coarse grid of random values, interpolated: (number, 32, 32, 3) float32."""
    grid = rng.random((number, cells + 1, cells + 1, 3), np.float32) * 2 - 1
    position = np.arange(SIDE, dtype=np.float32) * np.float32(cells / SIDE)
    cell = position.astype(np.int64)
    t = position - cell.astype(np.float32)
    rows = grid[:, cell] + (grid[:, cell + 1] - grid[:, cell]) * t[:, None, None]  # (number, 32, cells + 1, 3)
    return rows[:, :, cell] + (rows[:, :, cell + 1] - rows[:, :, cell]) * t[:, None]


def contrasting(colours: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour for each of `colours` (N, 3): lighter than it four times in five, else darker.

    The difference in brightness is 45 or more, or the largest of 32 tries where that is less.
    If all shapes were lighter than their ground, a linear classifier could match templates; if half of them were, it
    would be at a loss, but a network would also learn much more slowly that the sign does not matter.
    """
    number = len(colours)
    tries = rng.uniform(0, 255, (number, 32, 3)).astype(np.float32)
    gap = (tries - colours[:, None]).mean(axis=2)  # (N, 32), in brightness
    gap *= np.where(rng.random((number, 1)) < 0.8, 1, -1)
    choice = np.where((gap >= 45).any(axis=1), (gap >= 45).argmax(axis=1), gap.argmax(axis=1))
    return tries[np.arange(number), choice]


def paint(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour masks (N, 2, 32, 32) uint8 into images (N, 3, 32, 32) uint8: background, layers over it, noise."""
    number = len(masks)
    ground = rng.uniform(30, 200, (number, 3)).astype(np.float32)
    front = contrasting(ground, rng)
    canvas = ground[:, None, None] + 28 * clouds(number, 2, rng) + 12 * clouds(number, 8, rng)
    surface = front[:, None, None] + 20 * clouds(number, 2, rng)
    scribble = rng.uniform(10, 245, (number, 1, 1, 3)).astype(np.float32)
    for layer, colour in enumerate((scribble, surface)):
        coverage = masks[:, layer, :, :, None].astype(np.float32) / 255
        canvas += coverage * (colour - canvas)
    canvas += rng.standard_normal(canvas.shape, np.float32) * 5
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)  # (N, 32, 32, 3)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def draw_chunk(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw CHUNK images and their labels; each run of ten holds every class once, in random order."""
    rounds = CHUNK // len(CLASSES)
    labels = rng.permuted(np.tile(np.arange(len(CLASSES)), (rounds, 1)), axis=1).ravel()
    masks = np.stack([np.stack(draw_masks(label, rng)) for label in labels])
    return paint(masks, rng), labels


def draw_shapes(number: int, seed: int, split: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw `number` images, (number, 3, 32, 32) uint8, and their labels, (number,) int64.

    `seed` and `split` (0 for training, 1 for testing) choose the random stream; a larger `number` begins with the same
    images. Raises ValueError for a number that is not positive or a seed that is negative.
    """
    if number < 1:
        raise ValueError(f"the number of images must be positive, got {number}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    chunks = [draw_chunk(np.random.default_rng([seed, split, i])) for i in range(-(-number // CHUNK))]
    images, labels = (np.concatenate(parts)[:number] for parts in zip(*chunks, strict=True))
    return images, labels
