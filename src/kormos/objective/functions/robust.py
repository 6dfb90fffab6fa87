"""Losses of a residual r on which large residuals have little influence.

Each is f^2 rho(z), z = (r / f)^2, as in `scipy.optimize.least_squares`. For
residuals much smaller than f it is about the square, r^2. Tukey's biweight is
constant beyond f (Beaton and Tukey 1974).
"""

from collections.abc import Callable

import numpy as np
from keras import ops

from kormos import backend
from kormos.types import Array
from kormos.types import Tensor


def linear(z: Tensor) -> Tensor:
    return z


def soft_l1(z: Tensor) -> Tensor:
    # The usual 2 (sqrt(1 + z) - 1) would lose the digits of small z.
    return 2 * z / (ops.sqrt(1 + z) + 1)


def huber(z: Tensor) -> Tensor:
    # Where z is below one, the root is not used, but it is differentiated.
    root = ops.sqrt(ops.where(z > 1, z, ops.ones_like(z)))
    return ops.where(z > 1, 2 * root - 1, z)


def cauchy(z: Tensor) -> Tensor:
    return ops.log1p(z)


def arctan(z: Tensor) -> Tensor:
    return backend.arctan(z)


def tukey(z: Tensor) -> Tensor:
    # The usual (1 - (1 - z)^3) / 3 would lose the digits of small z.
    inside = ops.where(z < 1, z, ops.ones_like(z))
    return inside * (1 - inside + inside**2 / 3)


LOSSES = {
    fn.__name__: fn for fn in (linear, soft_l1, huber, cauchy, arctan, tukey)
}


def of_residuals(name: str) -> Callable[[Tensor], Tensor]:
    """The loss of each residual, by the name of one of `LOSSES`."""
    rho = LOSSES[name]
    return lambda residuals: rho(ops.square(residuals))


# The standard deviation of a normal distribution over its median absolute
# deviation, 1 / 0.6745.
_DEVIATION_OVER_MEDIAN = 1.4826

# The number of standard deviations beyond which Tukey's loss is constant. With
# the usual 4.685 it is 95 % as efficient as least squares for normal residuals
# without outliers. A smaller value resists outliers more and is less efficient.
TUKEY_DEVIATIONS = 4.685


def spread(residuals: Array) -> float:
    """A robust estimate of the standard deviation of residuals."""
    deviations = np.abs(residuals - np.median(residuals))
    return _DEVIATION_OVER_MEDIAN * float(np.median(deviations))
