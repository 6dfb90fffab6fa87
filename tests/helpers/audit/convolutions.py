"""Convolutions: whole, by depth, separable, transposed."""

import numpy as np
from keras import layers

from audit.formulas import conv
from audit.formulas import pairs
from audit.formulas import patches
from audit.inputs import IMAGE
from audit.inputs import SEQUENCE
from audit.inputs import VOLUME
from audit.making import layer


def depthwise(x, kernel, bias=0.0, **kwargs):
    seen = patches(x, kernel.shape[:-2], **kwargs)
    out = sum(patch[..., None] * kernel[i] for i, patch, _ in seen)
    return out.reshape(*out.shape[:-2], -1) + bias


def separable(x, depth, point, bias, **kwargs):
    return conv(depthwise(x, depth, **kwargs), point) + bias


def conv_transpose(x, kernel, bias, strides=1, padding="valid"):
    *size, outputs, _ = kernel.shape
    strides, inner = pairs(strides, len(size)), x.shape[1:-1]
    shape = [
        n * s + max(k - s, 0)
        for n, k, s in zip(inner, size, strides, strict=True)
    ]
    full = np.zeros((len(x), *shape, outputs), np.result_type(x, kernel))
    for index in np.ndindex(*size):
        span = [
            slice(i, i + n * s, s)
            for i, n, s in zip(index, inner, strides, strict=True)
        ]
        full[:, *span] += x @ kernel[index].T
    if padding == "same":
        for axis, (n, k, s) in enumerate(
            zip(inner, size, strides, strict=True), 1
        ):
            left = max(k - s, 0) // 2
            full = full.take(range(left, left + n * s), axis)
    return full + bias


CONVOLUTIONS = {
    "Conv1D": layer(
        layers.Conv1D,
        lambda *a: conv(*a, padding="same", strides=2),
        SEQUENCE,
        filters=2,
        kernel_size=3,
        strides=2,
        padding="same",
    ),
    "Conv1D, causal": layer(
        layers.Conv1D,
        lambda *a: conv(*a, padding="causal", dilation=2),
        SEQUENCE,
        filters=2,
        kernel_size=2,
        dilation_rate=2,
        padding="causal",
    ),
    "Conv2D": layer(layers.Conv2D, conv, IMAGE, filters=3, kernel_size=(3, 2)),
    "Conv2D, groups": layer(
        layers.Conv2D,
        lambda *a: conv(*a, groups=2, padding="same"),
        IMAGE,
        filters=4,
        kernel_size=2,
        groups=2,
        padding="same",
    ),
    "Conv3D": layer(layers.Conv3D, conv, VOLUME, filters=2, kernel_size=2),
    "DepthwiseConv1D": layer(
        layers.DepthwiseConv1D,
        depthwise,
        SEQUENCE,
        kernel_size=2,
        depth_multiplier=2,
    ),
    "DepthwiseConv2D": layer(
        layers.DepthwiseConv2D,
        lambda *a: depthwise(*a, padding="same"),
        IMAGE,
        kernel_size=3,
        depth_multiplier=2,
        padding="same",
    ),
    "SeparableConv1D": layer(
        layers.SeparableConv1D,
        separable,
        SEQUENCE,
        filters=4,
        kernel_size=2,
    ),
    "SeparableConv2D": layer(
        layers.SeparableConv2D,
        lambda *a: separable(*a, padding="same", strides=2),
        IMAGE,
        filters=3,
        kernel_size=3,
        strides=2,
        padding="same",
    ),
    "Conv1DTranspose": layer(
        layers.Conv1DTranspose,
        lambda *a: conv_transpose(*a, strides=2),
        SEQUENCE,
        filters=2,
        kernel_size=3,
        strides=2,
    ),
    "Conv2DTranspose": layer(
        layers.Conv2DTranspose,
        lambda *a: conv_transpose(*a, strides=2, padding="same"),
        IMAGE,
        filters=3,
        kernel_size=3,
        strides=2,
        padding="same",
    ),
    "Conv3DTranspose": layer(
        layers.Conv3DTranspose,
        conv_transpose,
        VOLUME,
        filters=2,
        kernel_size=2,
    ),
}
