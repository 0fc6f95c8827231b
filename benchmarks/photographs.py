"""How long training on photographs takes, by what is frozen: `python benchmarks/photographs.py`.

CPU time for an image, of one thread: what else the machine does in the meantime counts little. Two cores take half as
long at best. Prints a line for each network: preparing a batch (crops) and a training step, both by image.
"""

import time

import numpy as np

from train.data import Dataset
from train.data.images import MARGIN
from train.run import parallel
from train.run.config import Config
from train.run.loop import Run, outcome, prepare, train_step
from train.run.recipes import RECIPES

CASES = (  # network, side of the images, what is frozen, images in a batch
    ("resnext50_32x4d", 224, "none", 8),
    ("resnext50_32x4d", 224, "all-but-last-stage", 8),
    ("resnext50_32x4d", 224, "all-but-last-layer", 8),
    ("resnext50_32x4d", 112, "none", 8),
    ("resnext50_32x4d", 112, "all-but-last-layer", 8),
    ("resnext11_4x16d", 64, "none", 32),
    ("resnext11_4x4d_w16", 64, "none", 32),
)
STEPS = 3  # of which the fastest counts; the first one warms up


def measure(model: str, size: int, freeze: str, batch: int) -> tuple[float, float]:
    """CPU seconds for an image, (of preparing it, of training on it)."""
    side = round(MARGIN * size)
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, side, side), dtype=np.uint8)
    labels, grey, spread = np.arange(batch) % 5, np.full(3, 120.0), np.full(3, 60.0)
    photographs = Dataset(images, labels, list("abcde"), "noise", grey, spread, np.full(batch, 1.5), size)
    config = Config("noise", model, RECIPES["fine-tune"], batch_size=batch, image_size=size, freeze=freeze)
    run = Run.start(config, photographs, photographs)
    run.set_training()
    times = []
    for step in range(STEPS):
        begin = time.process_time()
        crops = prepare(run, np.arange(batch), step)
        middle = time.process_time()
        outcome(*train_step(run, crops, labels, 0.01), labels)
        times.append((middle - begin, time.process_time() - middle))
    best = np.min(times[1:], axis=0) / batch
    return float(best[0]), float(best[1])


if __name__ == "__main__":
    parallel.use_threads(1)
    for case in CASES:
        crop, step = measure(*case)
        model, size, freeze, _ = case
        print(
            f"{model} {size}x{size} freeze {freeze}: crop {1000 * crop:.1f} ms, step {1000 * step:.0f} ms", flush=True
        )
