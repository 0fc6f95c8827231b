"""Page 4, groups: solutions. `python docs/solutions/page_4.py` prints the answers."""

import numpy as np

from minigrad import Function, Tensor, gradcheck
from minigrad import functional as F
from minigrad.nn import Conv2d
from minigrad.ops.conv import tap


def exercise_1() -> None:
    """c = 12/6 = 2 channels and o = 24/6 = 4 filters in each group. The weights are (24, 2, 3, 3): 432 numbers.

    Filter 13 is in group 13 // 4 = 3 and sees channels 6 and 7. Channel 5 is in group 5 // 2 = 2, so it reaches filters
    8 to 11.
    """
    layer = Conv2d(12, 24, 3, groups=6, bias=False)
    x = Tensor(np.zeros((1, 12, 3, 3), np.float32), requires_grad=True)
    layer(x)[:, 13].sum().backward()
    seen = np.flatnonzero(np.abs(x.grad).sum(axis=(0, 2, 3)))
    changed = np.zeros((1, 12, 3, 3), np.float32)
    changed[:, 5] = 1
    reached = np.flatnonzero(layer(Tensor(changed)).numpy())
    print(f"weights {layer.weight.shape}; filter 13 sees {seen}; channel 5 reaches {reached}")
    assert layer.weight.shape == (24, 2, 3, 3) and layer.weight.size == 432
    assert seen.tolist() == [6, 7] and reached.tolist() == [8, 9, 10, 11]


class Depthwise(Function):
    """y[n, c, oh, ow] = Σ_kh Σ_kw w[c, kh, kw] · x[n, c, oh + kh, ow + kw]: one filter for each channel.

    Tap (kh, kw) meets a slice of x. Forward: y += slice · weight. Backward, for the same slice: the slice's gradient is
    weight · dy, and the weight's gradient is the sum of slice · dy over the images and output pixels.
    """

    def forward(self, x, w):
        self.x, self.w = x, w
        (N, C, H, W), (_, K, _) = x.shape, w.shape
        y = np.zeros((N, C, H - K + 1, W - K + 1), x.dtype)
        for kh, kw, rows, cols in self.taps(y.shape):
            y += x[:, :, rows, cols] * w[:, kh, kw, None, None]  # (N, C, OH, OW) · (C, 1, 1)
        return y

    def backward(self, dy):
        dx, dw = np.zeros_like(self.x), np.empty_like(self.w)
        for kh, kw, rows, cols in self.taps(dy.shape):
            dx[:, :, rows, cols] += dy * self.w[:, kh, kw, None, None]
            dw[:, kh, kw] = (dy * self.x[:, :, rows, cols]).sum(axis=(0, 2, 3))  # (N, C, OH, OW) -> (C,)
        return dx, dw

    def taps(self, shape):
        for kh, kw in np.ndindex(self.w.shape[1:]):
            yield kh, kw, *tap(kh, kw, shape[2:], (1, 1), (1, 1))


def exercise_2() -> None:
    """The backward pass is col2im's idea without columns: where the forward pass read a slice, it adds to the slice."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 5, 6)), rng.standard_normal((3, 3, 3))
    right = gradcheck(Depthwise.apply, [x, w])
    y = Depthwise.apply(Tensor(x), Tensor(w))
    expected = F.conv2d(Tensor(x), Tensor(w[:, None]), groups=3)  # (C, 1, K, K)
    print("depthwise:", right, np.allclose(y.numpy(), expected.numpy()))
    assert right and np.allclose(y.numpy(), expected.numpy())


def shuffle(x, groups):
    """Read the channels as (G, c), exchange the two axes, read them as C again."""
    N, C, H, W = x.shape
    return x.reshape(N, groups, C // groups, H, W).transpose(0, 2, 1, 3, 4).reshape(N, C, H, W)


def exercise_3() -> None:
    """Without shuffling output 0 depends on channels 0 and 1, however many layers there are: its group.

    Shuffled, the channels 0 1 | 2 3 | 4 5 | 6 7 stand in the order 0 2 | 4 6 | 1 3 | 5 7. The second layer's group 0
    sees channels 0 and 2 of the first layer, which come from groups 0 and 1: channels 0 to 3 of x.
    """
    rng = np.random.default_rng(0)
    first, second = (Tensor(rng.standard_normal((8, 2, 1, 1))) for _ in range(2))

    def depends_on(between):
        x = Tensor(rng.standard_normal((1, 8, 2, 2)), requires_grad=True)
        y = F.conv2d(between(F.conv2d(x, first, groups=4)), second, groups=4)
        y[:, 0].sum().backward()
        return np.flatnonzero(np.abs(x.grad).sum(axis=(0, 2, 3))).tolist()

    plain, shuffled = depends_on(lambda x: x), depends_on(lambda x: shuffle(x, 4))
    print(f"output 0 depends on channels {plain}, shuffled on {shuffled}")
    assert plain == [0, 1] and shuffled == [0, 1, 2, 3]


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        exercise()
