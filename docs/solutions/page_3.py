"""Page 3, convolution: solutions. `python docs/solutions/page_3.py` prints the answers."""

import numpy as np

from minigrad import functional as F
from minigrad import gradcheck
from minigrad.ops import conv
from minigrad.ops.conv import Conv2d, conv2d_loops, im2col, output_size, pad_image, tap


def exercise_1() -> None:
    """OH = (32 + 4 - 4 - 1) // 2 + 1 = 16.

    windows (8, 3, 5, 5, 16, 16); columns (3·25, 8·256) = (75, 2048); y (8, 16, 16, 16); dcolumns before col2im has the
    shape of windows. Multiplications: 8·16·256 outputs times 75 = 2,457,600. The last window begins at row 30 of the
    padded image's 36 and ends at row 34, so row 35 and column 35 lie in no window. Both are
    border, so no pixel is lost.
    """
    N, C, size, O, K = 8, 3, 32, 16, 5
    stride, padding, dilation = (2, 2), (2, 2), (1, 1)
    OH, OW = output_size((size, size), (K, K), stride, padding, dilation)
    x, w = np.ones((N, C, size, size)), np.ones((O, C, K, K))
    windows = im2col(pad_image(x, padding), (K, K), (OH, OW), stride, dilation)
    y = F.conv2d(conv.Tensor(x), conv.Tensor(w), stride=2, padding=2)
    print(f"windows {windows.shape}, y {y.shape}, {y.size * C * K * K:,} multiplications")
    assert windows.shape == (8, 3, 5, 5, 16, 16) and windows.size == 75 * 2048
    assert y.shape == (8, 16, 16, 16) and y.size * C * K * K == 2_457_600
    assert 2 * (OH - 1) + K - 1 == 34


def broken_col2im(columns, shape, stride, dilation):
    """col2im with = in place of +=: of a pixel's copies only the last one counts."""
    _, _, KH, KW, OH, OW = columns.shape
    x = np.zeros(shape, columns.dtype)
    for kh in range(KH):
        for kw in range(KW):
            rows, cols = tap(kh, kw, (OH, OW), stride, dilation)
            x[:, :, rows, cols] = columns[:, :, kh, kw]
    return x


class Broken(Conv2d):
    def backward(self, dy):
        right, conv.col2im = conv.col2im, broken_col2im
        try:
            return super().backward(dy)
        finally:
            conv.col2im = right


def exercise_2() -> None:
    """gradcheck names input 0, the images, and gives both numbers. dw is still right: only dx goes through col2im.

    With stride >= the window's reach no pixel lies in two windows. Nothing has to be added then, and = is enough.
    """
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, 6, 6)), rng.standard_normal((3, 2, 3, 3))

    def broken(stride):
        options = {"stride": (stride, stride), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        return lambda x, w: Broken.apply(x, w, None, **options)  # None: no bias

    try:
        gradcheck(broken(1), [x, w])
    except AssertionError as error:
        print(error)
        assert "input 0" in str(error)
    else:
        raise AssertionError("gradcheck did not notice")
    print("with stride 3:", gradcheck(broken(3), [x, w]))
    assert gradcheck(broken(3), [x, w])


def convolve_by_views(x, w, stride, padding, dilation):
    """The sum over taps of a view of x times that tap's weights: (N, C, OH, OW) and (O, C) give (N, O, OH, OW)."""
    (_, _, H, W), (_, _, KH, KW) = x.shape, w.shape
    out = output_size((H, W), (KH, KW), stride, padding, dilation)
    padded, y = pad_image(x, padding), 0
    for kh in range(KH):
        for kw in range(KW):
            rows, cols = tap(kh, kw, out, stride, dilation)
            y = y + np.einsum("nchw,oc->nohw", padded[:, :, rows, cols], w[:, :, kh, kw])
    return y


def exercise_3() -> None:
    """It needs no columns, so it saves their memory, KH·KW times the image.

    It loses the one large product: there are KH·KW small ones, each with only C to add over, and y is read and written
    KH·KW times.
    """
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 3, 9, 8)), rng.standard_normal((4, 3, 3, 2))
    options = {"stride": (2, 2), "padding": (1, 1), "dilation": (2, 2)}
    same = np.allclose(convolve_by_views(x, w, **options), conv2d_loops(x, w, **options, groups=1))
    print("by views:", same)
    assert same


if __name__ == "__main__":
    for exercise in (exercise_1, exercise_2, exercise_3):
        exercise()
