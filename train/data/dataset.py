"""What every source of images ends in: a data set in memory."""

from dataclasses import dataclass

import numpy as np


@dataclass(eq=False)
class Dataset:
    """Labelled images of one split, and what normalises them: the statistics of the training split in both."""

    images: np.ndarray  # (N, 3, H, W) uint8
    labels: np.ndarray  # (N,) int64, each in 0..len(classes) - 1
    classes: list[str]
    name: str  # cifar10, cifar100, shapes or the folder's name
    mean: np.ndarray  # (3,) float64, of each channel, in the 0..255 scale
    std: np.ndarray  # (3,) float64, positive
    # Photographs of all shapes, squeezed into squares: their widths over their heights, (N,) float64, and the side of
    # the random crops that training takes. None: the images are as the network sees them.
    aspects: np.ndarray | None = None
    crop: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def at_once(self) -> int:
        """How many images are classified at once: 256, or fewer large ones, so that tests need little memory."""
        H, W = self.shown
        return max(1, min(256, 256 * 128**2 // (H * W)))

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width of what the network sees, in pixels."""
        return (self.crop, self.crop) if self.crop else self.images.shape[2:]


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of (N, 3, H, W) uint8 images, (3,) float64 each, in one pass.

    From the histogram of the channel's 256 values: mean = sum_v p_v v, std = sqrt(sum_v p_v (v - mean)^2). A channel of
    one single value gets the deviation one.
    """
    counts = np.zeros((3, 256))
    for start in range(0, len(images), 1000):  # bincount widens its input to int64: a thousand images at a time
        for channel in range(3):
            counts[channel] += np.bincount(images[start : start + 1000, channel].ravel(), minlength=256)
    p = counts / counts.sum(axis=1, keepdims=True)
    v = np.arange(256)
    mean = (p * v).sum(axis=1)
    std = np.sqrt((p * (v - mean[:, None]) ** 2).sum(axis=1))
    return mean, np.where(std > 0, std, 1.0)
