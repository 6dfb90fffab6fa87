"""Pooling: of windows, of everything, of bins."""

import numpy as np
from keras import layers

from audit.formulas import patches
from audit.inputs import IMAGE
from audit.inputs import MASK
from audit.inputs import SEQUENCE
from audit.inputs import VOLUME
from audit.making import layer
from audit.making import masked


def max_pool(x, size, **kwargs):
    seen = patches(x, size, **kwargs)
    return np.max([np.where(ok, p, -np.inf) for _, p, ok in seen], 0)


def average_pool(x, size, **kwargs):
    seen = list(patches(x, size, **kwargs))
    return sum(p for _, p, _ in seen) / sum(ok for _, _, ok in seen)


def adaptive(reduce, sizes):
    """The reduction over bins of nearly equal length, axis by axis."""

    def formula(x):
        for axis, size in enumerate(sizes, 1):
            n = x.shape[axis]
            bins = [
                reduce(
                    x.take(range(i * n // size, -(-(i + 1) * n // size)), axis),
                    axis,
                )
                for i in range(size)
            ]
            x = np.stack(bins, axis)
        return x

    return formula


POOLING = {
    "MaxPooling1D": layer(
        layers.MaxPooling1D,
        lambda x: max_pool(x, 2, strides=2, padding="same"),
        SEQUENCE,
        pool_size=2,
        padding="same",
    ),
    "MaxPooling2D": layer(
        layers.MaxPooling2D,
        lambda x: max_pool(x, 3, strides=2, padding="same"),
        IMAGE,
        pool_size=3,
        strides=2,
        padding="same",
    ),
    "MaxPooling3D": layer(
        layers.MaxPooling3D,
        lambda x: max_pool(x, 2),
        VOLUME,
        pool_size=2,
        strides=1,
    ),
    "AveragePooling1D": layer(
        layers.AveragePooling1D,
        lambda x: average_pool(x, 2, strides=2, padding="same"),
        SEQUENCE,
        pool_size=2,
        padding="same",
    ),
    "AveragePooling2D": layer(
        layers.AveragePooling2D,
        lambda x: average_pool(x, 3, strides=2, padding="same"),
        # On torch Keras counts padding where it has it on one side alone.
        IMAGE[:, :, :5],
        pool_size=3,
        strides=2,
        padding="same",
    ),
    "AveragePooling3D": layer(
        layers.AveragePooling3D,
        lambda x: average_pool(x, 2),
        VOLUME,
        pool_size=2,
        strides=1,
    ),
    **{
        f"Global{kind}Pooling{n}D": layer(
            getattr(layers, f"Global{kind}Pooling{n}D"),
            lambda x, reduce=reduce: reduce(x, tuple(range(1, x.ndim - 1))),
            x,
        )
        for n, x in enumerate((SEQUENCE, IMAGE, VOLUME), 1)
        for kind, reduce in (("Max", np.max), ("Average", np.mean))
    },
    **{
        f"Adaptive{kind}Pooling{n}D": layer(
            getattr(layers, f"Adaptive{kind}Pooling{n}D"),
            adaptive(reduce, (2,) * n),
            x,
            output_size=2,
        )
        for n, x in enumerate((SEQUENCE, IMAGE, VOLUME), 1)
        for kind, reduce in (("Max", np.max), ("Average", np.mean))
    },
    "GlobalAveragePooling1D, mask": layer(
        layers.GlobalAveragePooling1D,
        lambda x: np.sum(x * MASK[..., None], 1) / MASK.sum(1, keepdims=True),
        SEQUENCE,
        call=masked,
    ),
}
