"""What the operations ought to compute, written a second time: slowly, directly, and without a line of minigrad.

Sums run over Python loops and one number at a time where that is possible, so that an oracle shares neither code nor
idea with what it checks (no im2col, no matrix product, no broadcasting trick).
"""

import math
from itertools import product

import numpy as np


def padded(x, padding, value=0.0):
    """Images with a border of `value`."""
    (ph, pw), (N, C, H, W) = padding, x.shape
    out = np.full((N, C, H + 2 * ph, W + 2 * pw), value, x.dtype)
    for h, w in product(range(H), range(W)):
        out[:, :, h + ph, w + pw] = x[:, :, h, w]
    return out


def positions(size, kernel, stride):
    """The first index of every window that lies inside `size`."""
    return [i for i in range(size) if i % stride == 0 and i + kernel <= size]


def conv2d(x, w, bias, stride, padding, dilation, groups):
    """Every output as the sum of products of the window's pixels with the filter's weights."""
    image = padded(x, padding)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    rows = positions(image.shape[2], reach[0], stride[0])
    cols = positions(image.shape[3], reach[1], stride[1])
    y = np.zeros((len(x), len(w), len(rows), len(cols)))
    filters_per_group, channels_per_group = len(w) // groups, x.shape[1] // groups
    for n, o, (i, r), (j, c) in product(range(len(x)), range(len(w)), enumerate(rows), enumerate(cols)):
        first = (o // filters_per_group) * channels_per_group
        window = image[n, first : first + channels_per_group, r : r + reach[0], c : c + reach[1]]
        y[n, o, i, j] = math.fsum((window[:, :: dilation[0], :: dilation[1]] * w[o]).flat)
        if bias is not None:
            y[n, o, i, j] += bias[o]
    return y


def windows(x, kernel, stride, padding, fill):
    """Yield (n, c, i, j, window) for every position of a pooling window."""
    image = padded(x, padding, fill)
    rows = positions(image.shape[2], kernel[0], stride[0])
    cols = positions(image.shape[3], kernel[1], stride[1])
    for n, c, (i, r), (j, s) in product(range(len(x)), range(x.shape[1]), enumerate(rows), enumerate(cols)):
        yield n, c, i, j, image[n, c, r : r + kernel[0], s : s + kernel[1]]


def pool2d(x, kernel, stride, padding, fill, reduce):
    """Pooling with any function of the window's values."""
    values = {
        (n, c, i, j): reduce(window.ravel().tolist())
        for n, c, i, j, window in windows(x, kernel, stride, padding, fill)
    }
    y = np.zeros([1 + max(index[axis] for index in values) for axis in range(4)])
    for index, value in values.items():
        y[index] = value
    return y


def max_pool2d(x, kernel, stride, padding):
    return pool2d(x, kernel, stride, padding, -math.inf, max)


def avg_pool2d(x, kernel, stride, padding):
    return pool2d(x, kernel, stride, padding, 0.0, lambda values: math.fsum(values) / len(values))


def batch_norm(x, weight, bias, mean, var, training, momentum, eps):
    """Channel by channel; returns y and the new running mean and variance."""
    y, mean, var = np.empty_like(x), np.array(mean), np.array(var)
    for c in range(x.shape[1]):
        values = x[:, c].ravel().tolist()
        m = len(values)
        mu, sigma2 = mean[c], var[c]
        if training:
            mu = math.fsum(values) / m
            squares = math.fsum((v - mu) ** 2 for v in values)
            sigma2 = squares / m
            mean[c] = (1 - momentum) * mean[c] + momentum * mu
            var[c] = (1 - momentum) * var[c] + momentum * squares / (m - 1)
        y[:, c] = (x[:, c] - mu) / math.sqrt(sigma2 + eps) * weight[c] + bias[c]
    return y, mean, var


def softmax(values):
    """Of one list of numbers."""
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / math.fsum(exponentials) for e in exponentials]


def cross_entropy(logits, labels, label_smoothing):
    """The mean over the batch of the cross-entropy between the smoothed label and the softmax."""
    losses = []
    for row, label in zip(logits.tolist(), labels, strict=True):
        K = len(row)
        target = [(1 - label_smoothing) * (k == label) + label_smoothing / K for k in range(K)]
        losses.append(-math.fsum(q * math.log(p) for q, p in zip(target, softmax(row), strict=True)))
    return math.fsum(losses) / len(losses)


def sgd(weights, gradients, lr, momentum, weight_decay, nesterov):
    """torch.optim.SGD's documented algorithm on plain numbers; yields the weights after every step."""
    buffer = None
    for gradient in gradients:
        g = [gi + weight_decay * wi for gi, wi in zip(gradient, weights, strict=True)]
        if momentum != 0:
            buffer = g if buffer is None else [momentum * bi + gi for bi, gi in zip(buffer, g, strict=True)]
            g = [gi + momentum * bi for gi, bi in zip(g, buffer, strict=True)] if nesterov else buffer
        weights = [wi - lr * gi for wi, gi in zip(weights, g, strict=True)]
        yield weights


def numeric_gradients(function, inputs, dy, step=1e-6):
    """Jᵀ dy of a NumPy function by central differences, for every input."""
    gradients = []
    for k, x in enumerate(inputs):
        gradient = np.zeros(x.shape)
        for index in np.ndindex(*x.shape):
            shifted = [[np.array(a) for a in inputs] for _ in range(2)]
            shifted[0][k][index] += step
            shifted[1][k][index] -= step
            above, below = (function(*arrays) for arrays in shifted)
            gradient[index] = ((above - below) * dy).sum() / (2 * step)
        gradients.append(gradient)
    return gradients
