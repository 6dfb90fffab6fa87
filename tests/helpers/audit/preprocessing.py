"""Layers that prepare data: scales, crops, counts, spectrograms."""

import numpy as np
from keras import layers

from audit.formulas import bilinear
from audit.inputs import IMAGE
from audit.inputs import TOKENS
from audit.inputs import X2
from audit.inputs import X
from audit.making import layer


def stft(x, length=8, step=4):
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    angle = np.outer(np.arange(length), np.arange(length // 2 + 1))
    angle = 2 * np.pi * angle / length
    starts = range(0, x.shape[1] - length + 1, step)
    frames = np.stack([x[:, s : s + length, 0] for s in starts], 1) * window
    return np.sqrt(
        (frames @ np.cos(angle)) ** 2 + (frames @ np.sin(angle)) ** 2
    )


def _adapted():
    made = layers.Normalization()
    made.adapt(X2)
    return made


PREPROCESSING = {
    "Rescaling": layer(
        layers.Rescaling,
        lambda x: x / 255 - 0.3,
        X,
        scale=1 / 255,
        offset=-0.3,
    ),
    "Normalization": layer(
        layers.Normalization,
        lambda x: (x - 0.3) / np.sqrt(1.7),
        X,
        mean=[0.3] * 6,
        variance=[1.7] * 6,
    ),
    "Normalization, inverted": layer(
        layers.Normalization,
        lambda x: x * np.sqrt(1.7) + 0.3,
        X,
        mean=[0.3] * 6,
        variance=[1.7] * 6,
        invert=True,
    ),
    "Normalization, adapted": layer(
        _adapted, lambda x: (x - X2.mean(0)) / X2.std(0), X, keep=True
    ),
    "CategoryEncoding": layer(
        layers.CategoryEncoding,
        lambda i: np.sum(np.eye(5)[i] * X[:2, :3, None], 1),
        TOKENS,
        num_tokens=5,
        output_mode="count",
        # No input: TensorFlow has no gradient of it.
        call=lambda made, i: made(i, count_weights=X[:2, :3]),
    ),
    "Resizing": layer(
        layers.Resizing,
        lambda x: bilinear(x, 7, 9),
        IMAGE,
        height=7,
        width=9,
    ),
    "CenterCrop": layer(
        layers.CenterCrop, lambda x: x[:, 1:4, 1:5], IMAGE, height=3, width=4
    ),
    "STFTSpectrogram": layer(
        layers.STFTSpectrogram,
        stft,
        IMAGE.reshape(4, 30, 1)[:, :16],
        mode="magnitude",
        scaling=None,
        periodic=True,
        keep=True,
        frame_length=8,
        frame_step=4,
        fft_length=8,
    ),
}
