"""Predictions with their errors, by the delta method."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kormos.objective.functions.residuals import ResidualObjective
from kormos.statistics.estimate import Estimate
from kormos.statistics.fits import Fit
from kormos.statistics.rows import row_blocks
from kormos.types import Array
from kormos.types import Matrix

# A prediction depends on an undetermined direction if more than this part of
# its derivative is along it. Our choice, far above rounding.
_PART = 1e-6


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predictions with their standard errors.

    Attributes:
        mean: The predictions, array of shape `(rows, outputs)`.
        standard_error: Their standard errors, with the same shape; NaN where
            they depend on parameters that the data do not determine.
        confidence: The band that covers the true mean with the probability
            `level` in each row, array of shape `(rows, outputs, 2)`.
        prediction: The band that covers a new observation of weight one, or
            `None` if the loss is not a sum of squares.

    Example:

    ```python
    kormos.fit(model, x, y, optimizer="lm", epochs=100)
    at = kormos.summary(model, x, y).predict(x)
    lower, upper = at.confidence[..., 0], at.confidence[..., 1]
    ```
    """

    mean: Matrix
    standard_error: Matrix
    confidence: Array
    prediction: Array | None


def predict(
    fit: Fit,
    errors_at: Callable[[Array], Matrix],
    noise: float,
    x: Any,
    quantile: float,
    function: Callable[..., Any] | None,
) -> Prediction:
    """Predictions with their errors.

    Args:
        fit: the fit.
        errors_at: function of the derivatives of predictions, `(n, k, size)`,
            that returns their standard errors, `(n, k)`.
        noise: the standard deviation of an observation of weight one, or NaN.
        x: the inputs to predict for.
        quantile: the width of a band on each side, in standard errors.
        function: function of `x` that predicts, with `keras.ops`.
    """
    function = fit.function if function is None else function
    if function is None:
        raise ValueError(
            "Residuals do not say what the predictions are: pass `function`, "
            "which takes data and returns predictions, with `keras.ops`. "
            "Received: function=None"
        )
    is_wide = fit.objective.evaluation_eps < 1e-10
    objective = ResidualObjective(
        function,
        fit.objective.variables,
        data=x,
        reduction="sum",
        precision="float64" if is_wide else None,
        data_name="x",
    )
    means, errors = [], []
    for block in row_blocks(objective, fit.theta):
        # Slopes and weights as those of a sum of squares: twice the values, and
        # two.
        means.append(block.slopes / 2)
        jacobian = block.matrix / np.sqrt(block.weights)[:, :, None]
        errors.append(errors_at(jacobian))
    mean, error = np.concatenate(means), np.concatenate(errors)
    bands = None
    if not np.isnan(noise):
        bands = _band(mean, quantile * np.hypot(error, noise))
    return Prediction(mean, error, _band(mean, quantile * error), bands)


def errors_of(jacobian: Array, estimate: Estimate) -> Matrix:
    """The standard errors of predictions with these derivatives."""
    squares = np.einsum("nkq,nkq->nk", jacobian @ estimate.covariance, jacobian)
    free = estimate.information.free
    along = np.abs(jacobian @ free)
    size = np.abs(jacobian) @ np.abs(free)
    is_known = (along <= _PART * size).all(axis=2)
    return np.where(is_known, np.sqrt(np.maximum(squares, 0.0)), np.nan)


def _band(mean: Matrix, reach: Matrix) -> Array:
    return np.stack([mean - reach, mean + reach], axis=-1)
