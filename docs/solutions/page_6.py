"""Page 6, the block's three forms: solutions. `python docs/solutions/page_6.py` prints the answers."""

import numpy as np

from minigrad import Tensor
from minigrad import functional as F
from resnext import Bottleneck


def exercise_1() -> None:
    """(a) 32 paths of 3: 96 convolutions. (b) 32 paths of 2, and one: 65. (c) 3.

    The weights are the same in all forms: 256·128 + 128·4·9 + 128·256 = 70,144.
    """
    for form, convolutions in (("a", 96), ("b", 65), ("c", 3)):
        block = Bottleneck(in_channels=256, out_channels=256, cardinality=32, d=4, form=form)
        weights = [p for name, p in block.named_parameters() if "conv" in name]
        total = sum(p.size for p in weights)
        print(f"form ({form}): {len(weights)} convolutions, {total:,} weights")
        assert len(weights) == convolutions and total == 70_144


def exercise_2() -> None:
    """Each BN gives its path deviation 1, whatever it was before.

    So a path with a tiny output counts as much as a path with a large one.
    BN of the sum keeps the paths' sizes relative to each other.
    """

    def bn(x):
        return (x - x.mean()) / x.std()

    a, b = np.array([0.0, 1.0, 5.0]), np.array([0.002, 0.0, 0.001])
    print("BN(a) + BN(b) =", (bn(a) + bn(b)).round(2), "  BN(a + b) =", bn(a + b).round(2))
    assert not np.allclose(bn(a) + bn(b), bn(a + b), atol=0.1)
    assert np.allclose(bn(a + b), bn(a), atol=0.01)  # the small path hardly counts, as it should


def exercise_3() -> None:
    """The first weights are stacked by filters, the second by channels. A ReLU between them changes nothing."""
    rng = np.random.default_rng(0)
    G, C, d, O = 3, 4, 2, 5
    x = Tensor(rng.standard_normal((2, C, 6, 6)))
    firsts = [rng.standard_normal((d, C, 3, 3)) for _ in range(G)]
    seconds = [rng.standard_normal((O, d, 3, 3)) for _ in range(G)]

    def two_layers(first, second):
        return F.conv2d(F.relu(F.conv2d(x, Tensor(first), padding=1)), Tensor(second), padding=1).numpy()

    paths = sum(two_layers(a, b) for a, b in zip(firsts, seconds, strict=True))
    wide = two_layers(np.concatenate(firsts, axis=0), np.concatenate(seconds, axis=1))  # (G·d, C, 3, 3), (O, G·d, 3, 3)
    print("paths of two layers are one wide block:", np.allclose(paths, wide))
    assert np.allclose(paths, wide)


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        exercise()
