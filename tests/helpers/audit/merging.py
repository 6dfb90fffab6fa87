"""Layers that merge tensors or rearrange one."""

import math

import numpy as np
from keras import layers

from audit.formulas import bilinear
from audit.formulas import unit
from audit.inputs import IMAGE
from audit.inputs import POSITIVE
from audit.inputs import SEQUENCE
from audit.inputs import SEQUENCE2
from audit.inputs import VOLUME
from audit.inputs import X2
from audit.inputs import X
from audit.making import layer
from audit.making import listed


def upsampled(x, size):
    for axis, n in enumerate(size, 1):
        x = np.repeat(x, n, axis)
    return x


_THREE = (X, X2, POSITIVE)

MERGING = {
    "Add": layer(layers.Add, lambda *a: sum(a), *_THREE, call=listed),
    "Average": layer(
        layers.Average, lambda *a: sum(a) / 3, *_THREE, call=listed
    ),
    "Subtract": layer(layers.Subtract, lambda a, b: a - b, X, X2, call=listed),
    "Multiply": layer(
        layers.Multiply, lambda *a: math.prod(a), *_THREE, call=listed
    ),
    "Maximum": layer(layers.Maximum, np.maximum, X, X2, call=listed),
    "Minimum": layer(layers.Minimum, np.minimum, X, X2, call=listed),
    "Concatenate": layer(
        layers.Concatenate,
        lambda *a: np.concatenate(a, 1),
        *_THREE,
        axis=1,
        call=listed,
    ),
    "Dot": layer(
        layers.Dot,
        lambda a, b: np.einsum("bqd,bkd->bqk", a, b),
        SEQUENCE,
        SEQUENCE2,
        axes=2,
        call=listed,
    ),
    "Dot, normalized": layer(
        layers.Dot,
        lambda a, b: np.sum(unit(a) * unit(b), 1, keepdims=True),
        X,
        X2,
        axes=1,
        normalize=True,
        call=listed,
    ),
    "Flatten": layer(layers.Flatten, lambda x: x.reshape(2, -1), IMAGE),
    "Reshape": layer(
        layers.Reshape,
        lambda x: x.reshape(4, 3, 2),
        X,
        target_shape=(3, 2),
    ),
    "Permute": layer(
        layers.Permute, lambda x: x.swapaxes(1, 2), SEQUENCE, dims=(2, 1)
    ),
    "RepeatVector": layer(
        layers.RepeatVector, lambda x: np.stack([x, x], 1), X, n=2
    ),
    "Cropping1D": layer(
        layers.Cropping1D, lambda x: x[:, 1:-2], SEQUENCE, cropping=(1, 2)
    ),
    "Cropping2D": layer(
        layers.Cropping2D, lambda x: x[:, 1:-1, 1:-1], IMAGE, cropping=1
    ),
    "Cropping3D": layer(
        layers.Cropping3D, lambda x: x[:, 1:-1, 1:-1, 1:-1], VOLUME, cropping=1
    ),
    **{
        f"ZeroPadding{n}D": layer(
            getattr(layers, f"ZeroPadding{n}D"),
            lambda x, n=n: np.pad(x, [(0, 0), *[(1, 1)] * n, (0, 0)]),
            x,
            padding=1,
        )
        for n, x in enumerate((SEQUENCE, IMAGE, VOLUME), 1)
    },
    **{
        f"UpSampling{n}D": layer(
            getattr(layers, f"UpSampling{n}D"),
            lambda x, n=n: upsampled(x, (2,) * n),
            x,
            size=2,
        )
        for n, x in enumerate((SEQUENCE, IMAGE, VOLUME), 1)
    },
    "UpSampling2D, bilinear": layer(
        layers.UpSampling2D,
        lambda x: bilinear(x, 10, 12),
        IMAGE,
        size=2,
        interpolation="bilinear",
    ),
}
