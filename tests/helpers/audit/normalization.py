"""Normalization, of batches, layers, groups and weights."""

import numpy as np
from keras import layers

from audit.formulas import moments
from audit.formulas import unit
from audit.inputs import IMAGE
from audit.inputs import SEQUENCE
from audit.inputs import X
from audit.making import layer
from audit.measuring import Case


def standard(x, axis, epsilon=1e-3):
    mean, variance = moments(x, axis)
    return (x - mean) / np.sqrt(variance + epsilon)


def batch_norm(x, gamma, beta, mean, variance):
    return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta


def batch_norm_training(x, gamma, beta, mean, variance):
    now, spread = moments(x, tuple(range(x.ndim - 1)))
    return (
        gamma * (x - now) / np.sqrt(spread + 1e-3) + beta,
        0.99 * mean + 0.01 * now,
        0.99 * variance + 0.01 * spread,
    )


def group_norm(x, gamma, beta, groups):
    split = x.reshape(*x.shape[:-1], groups, -1)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return standard(split, axes).reshape(x.shape) * gamma + beta


def spectral(x, kernel, u, bias):
    w = kernel.reshape(-1, kernel.shape[-1])
    # No gradient goes through the power iteration.
    v = unit((u @ w.T).real, None)
    u = unit((v @ w).real, None)
    return x @ (kernel / (v @ w @ u.T)) + bias


def training(made, x):
    return made(x, training=True)


NORMALIZATION = {
    "BatchNormalization": layer(layers.BatchNormalization, batch_norm, IMAGE),
    "BatchNormalization, training": layer(
        layers.BatchNormalization,
        batch_norm_training,
        IMAGE,
        call=lambda made, x: [
            made(x, training=True),
            made.moving_mean.value,
            made.moving_variance.value,
        ],
    ),
    "LayerNormalization": layer(
        layers.LayerNormalization,
        lambda x, g, b: standard(x, -1) * g + b,
        SEQUENCE,
    ),
    "LayerNormalization, axes": layer(
        layers.LayerNormalization,
        lambda x, g, b: standard(x, (1, 2)) * g + b,
        SEQUENCE,
        axis=(1, 2),
    ),
    "GroupNormalization": layer(
        layers.GroupNormalization,
        lambda *a: group_norm(*a, groups=2),
        X.reshape(2, 3, 4),
        groups=2,
    ),
    "RMSNormalization": layer(
        layers.RMSNormalization,
        lambda x, g: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * g,
        SEQUENCE,
    ),
    "UnitNormalization": layer(layers.UnitNormalization, unit, SEQUENCE),
    "SpectralNormalization": Case(
        lambda: layers.SpectralNormalization(layers.Dense(3)),
        spectral,
        (X,),
        training,
    ),
}
