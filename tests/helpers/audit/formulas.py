"""Formulas that several subjects need."""

import numpy as np

EPSILON = 1e-7  # Keras' `backend.epsilon()`.


def absolute(x):
    return np.where(x > 0, x, -x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def softmax(x, axis=-1):
    e = np.exp(x - np.max(x.real, axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x):
    x = x - np.max(x.real, -1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def hard_sigmoid(x):
    return np.clip(x / 6 + 0.5, 0, 1)


def cosine(y, p):
    norms = np.sqrt(np.sum(y**2, -1) * np.sum(p**2, -1))
    return np.sum(y * p, -1) / norms


def dense(x, kernel, bias):
    return x @ kernel + bias


def pairs(size, axes):
    return (size,) * axes if isinstance(size, int) else tuple(size)


def patches(x, size, strides=1, padding="valid", dilation=1):
    """The entries in a window, by its offsets; 1 where they are no padding."""
    axes = x.ndim - 2
    size, strides = pairs(size, axes), pairs(strides, axes)
    dilation = pairs(dilation, axes)
    extent = [(k - 1) * d for k, d in zip(size, dilation, strict=True)]
    sides = [(0, 0)] * axes
    if padding == "causal":
        sides = [(extent[0], 0)]
    elif padding == "same":
        for i, n in enumerate(x.shape[1:-1]):
            left = max(
                (-(-n // strides[i]) - 1) * strides[i] + extent[i] + 1 - n, 0
            )
            sides[i] = (left // 2, left - left // 2)
    sides = [(0, 0), *sides, (0, 0)]
    padded, inside = np.pad(x, sides), np.pad(np.ones(x.shape), sides)
    for index in np.ndindex(*size):
        span = [
            slice(i * d, n - e + i * d, s)
            for i, d, n, e, s in zip(
                index,
                dilation,
                padded.shape[1:-1],
                extent,
                strides,
                strict=True,
            )
        ]
        yield index, padded[:, *span], inside[:, *span]


def conv(x, kernel, bias=0.0, groups=1, **kwargs):
    size = kernel.shape[:-2]
    if groups == 1:
        seen = patches(x, size, **kwargs)
        return sum(patch @ kernel[i] for i, patch, _ in seen) + bias
    parts = zip(
        np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True
    )
    return np.concatenate([conv(a, k, **kwargs) for a, k in parts], -1) + bias


def bilinear(x, height, width):
    for axis, size in ((1, height), (2, width)):
        n = x.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), n - 2)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        x = (1 - weight) * x.take(low, axis) + weight * x.take(low + 1, axis)
    return x


def moments(x, axis):
    mean = x.mean(axis, keepdims=True)
    return mean, np.mean((x - mean) ** 2, axis, keepdims=True)


def unit(x, axis=-1):
    return x / np.sqrt(np.sum(x**2, axis, keepdims=True))


def attend(q, k, v, where=True):
    """Attention of tensors (batch, heads, steps, size): values, scores."""
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = softmax(np.where(where, scores, -1e300))
    return np.einsum("bhqk,bhkd->bhqd", scores, v), scores
