"""Residuals over the standard deviations of their data."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from kormos.data.points import with_columns
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Tensor


def over_sigma(
    residual_fn: Callable[..., Any], data: Structure, sigma: Any
) -> tuple[Callable[..., Any], Structure]:
    """A function of residuals over standard deviations, and its data.

    Args:
        residual_fn: see `kormos.least_squares`.
        data: see `kormos.least_squares`.
        sigma: see `kormos.least_squares`.

    Raises:
        ValueError: if `sigma` holds anything but positive numbers.
    """
    deviations = np.asarray(sigma, "float64")
    if not (np.isfinite(deviations) & (deviations > 0)).all():
        raise ValueError(
            "Argument `sigma` must hold positive, finite numbers. "
            f"Received: {deviations.min()} to {deviations.max()}"
        )
    if data is None:
        return lambda: _divided(residual_fn(), deviations), None
    if deviations.ndim == 0:
        return lambda rows: _divided(residual_fn(rows), deviations), data

    def of_rows(rows: tuple[Structure, Tensor]) -> Tensor:
        return _divided(residual_fn(rows[0]), rows[1])

    # As data, they are cut into the same chunks of rows as the others.
    return of_rows, (with_columns(data), deviations)


def _divided(residuals: Any, deviations: Array | Tensor) -> Tensor:
    if isinstance(residuals, (dict, list, tuple)):
        raise ValueError(
            "Argument `sigma` is for a `residual_fn` that returns one "
            "tensor: if there are several blocks, divide them by their "
            "deviations in the function. Received: a "
            f"{type(residuals).__name__} of {len(residuals)} blocks"
        )
    deviations = ops.cast(ops.convert_to_tensor(deviations), residuals.dtype)
    missing = len(residuals.shape) - len(deviations.shape)
    if missing > 0 and len(deviations.shape) > 0:
        shape = (*deviations.shape, *[1] * missing)
        deviations = ops.reshape(deviations, shape)
    return residuals / deviations
