"""Page 7, the network: solutions. `python docs/solutions/page_7.py` prints the answers."""

import numpy as np

from minigrad import Tensor, nn, no_grad


def blocks(depth, G, d):
    """The parameters of every block, as (stage, number); compare `count` on the page."""
    before = 64
    for stage in range(3):
        width, after = G * d * 2**stage, 256 * 2**stage
        for _ in range((depth - 2) // 9):
            shortcut = before * after + 2 * after if before != after else 0
            yield stage, before * width + width * d * 2**stage * 9 + width * after + 2 * (2 * width + after) + shortcut
            before = after


def exercise_1() -> None:
    """68.16 M; the paper says 68.1 M. The last stage holds three quarters of them.

    From stage to stage all widths double, and a convolution's weights are a product of two widths: four times as many.
    The pixels are a quarter, so the multiplications stay the same.
    """
    stages = [0, 0, 0]
    for stage, number in blocks(29, 16, 64):
        stages[stage] += number
    total = sum(stages) + 3 * 64 * 9 + 2 * 64 + 1024 * 10 + 10
    print(f"{total:,} parameters; by stage: {', '.join(f'{n / total:.0%}' for n in stages)}")
    assert 68.0e6 < total < 68.3e6 and stages[2] > 0.7 * total


class Tower(nn.Module):
    def __init__(self):
        self.layers = [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)]


class Mended(nn.Module):
    def __init__(self):
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))


def exercise_2() -> None:
    """An empty list: a module looks for parameters and modules among its attributes, and a list is neither.

    Training would run without an error, and change nothing. `nn.Sequential` is a module, so what is in it is found.
    """
    print(
        "in a list:", len(list(Tower().parameters())), "parameters; in a Sequential:", len(list(Mended().parameters()))
    )
    assert list(Tower().parameters()) == []
    assert next(name for name, _ in Mended().named_parameters()) == "layers.0.weight"


def exercise_3() -> None:
    """Each layer multiplies the mean square by 64·variance/2: by 1/2, 1 and 2.

    After 20 layers that is 2^-20, 1 and 2^20, so the deviation changes by 2^-10 = 1/1000, stays, or grows by 1000.
    """
    rng = np.random.default_rng(0)
    results = []
    for factor in (1, 2, 4):
        x = Tensor(rng.standard_normal((1000, 64)))
        with no_grad():
            for _ in range(20):
                x = (x @ Tensor(rng.standard_normal((64, 64)) * np.sqrt(factor / 64))).relu()
        results.append(x.numpy().std())
        print(f"variance {factor}/64: deviation {results[-1]:.2g}")
    assert results[0] < 0.01 and 0.1 < results[1] < 10 and results[2] > 100


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        exercise()
