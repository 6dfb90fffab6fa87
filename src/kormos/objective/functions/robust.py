"""Losses of a residual r that large residuals hardly move.

Each is f^2 rho(z), z = (r / f)^2, with f the residual at which it leaves the
square, as in `scipy.optimize.least_squares`; Tukey's biweight is constant
beyond f (Beaton and Tukey 1974).
"""

import numpy as np
from keras import ops

from kormos import backend


def linear(z):
    return z


def soft_l1(z):
    return 2 * (ops.sqrt(1 + z) - 1)


def huber(z):
    # The root of what lies below one is not used, but it is differentiated.
    root = ops.sqrt(ops.where(z > 1, z, ops.ones_like(z)))
    return ops.where(z > 1, 2 * root - 1, z)


def cauchy(z):
    return ops.log1p(z)


def arctan(z):
    return backend.arctan(z)


def tukey(z):
    rest = ops.where(z < 1, 1 - z, ops.zeros_like(z))
    return (1 - rest**3) / 3


LOSSES = {
    fn.__name__: fn for fn in (linear, soft_l1, huber, cauchy, arctan, tukey)
}

# A normal distribution's deviation over its median absolute deviation.
_NORMAL = 1.4826

# Deviations beyond which Tukey's loss is constant, for 95 % of the efficiency
# of least squares where there are no outliers.
TUKEY_DEVIATIONS = 4.685


def spread(residuals):
    """A robust estimate of residuals' standard deviation."""
    deviations = np.abs(residuals - np.median(residuals))
    return _NORMAL * float(np.median(deviations))
