"""Plots of a fit and its uncertainty."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
import scipy.stats
from keras import tree

from kormos.data.memory import leaves
from kormos.objective.keras_model.objective import Objective
from kormos.optional import new_figure
from kormos.statistics.prediction import Prediction
from kormos.statistics.summary import Summary
from kormos.types import Matrix
from kormos.types import Vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Two colors of the palette of Okabe and Ito, which color-blind readers can tell
# apart.
_DATA, _CURVE = "#0072B2", "#D55E00"

# The picture of correlations shows the names of at most this many parameters.
# Our choice: more names would overlap.
_MOST_NAMES = 12

# Points of a curve: more than the horizontal pixels of a figure.
_POINTS = 400


def plot_fit(
    summary: Summary,
    x: Any = None,
    y: Any = None,
    function: Callable[..., Any] | None = None,
    level: float | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Plots a fit: data with bands, residuals, and correlations.

    The first panel shows the data, the curve, its confidence band and, for a
    squared error, the prediction band of new observations. If there are several
    inputs, it shows the observed against the predicted values. The other panels
    show the residuals against the predictions, the residuals against the
    quantiles of the normal distribution, and the correlation of the parameters.

    Args:
        summary: A `Summary` of a fit with one output.
        x: The inputs. Defaults to the data of the summary of a Keras model.
        y: The observed values, array of shape `(rows,)`. Defaults to those of
            the summary.
        function: Function of `x` that computes predictions, if the summary does
            not belong to a Keras model.
        level: Float, the probability with which a band covers its quantity.
            Defaults to that of the summary.
        path: Path of a file to write, in the format of its extension, or
            `None`, the default.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the data are missing, or if there are several outputs.

    Example:

    ```python
    kormos.fit(model, x, y, optimizer="lm", epochs=100)
    kormos.plot_fit(kormos.summary(model, x, y), path="fit.png")
    ```
    """
    x, y = _data(summary, x, y)
    fitted = summary.predict(x, level, function)
    if fitted.mean.shape != y.shape or y.shape[1:] != (1,):
        raise ValueError(
            "A plot of a fit needs a single output: plot several outputs "
            "with `summary.predict`. Received: predictions of shape "
            f"{fitted.mean.shape} for targets of shape {y.shape}"
        )
    observed, mean = y[:, 0], fitted.mean[:, 0]
    figure = new_figure((9.6, 7.2), path)
    curve, residuals, quantiles, correlation = figure.subplots(2, 2).flat
    single = _single(x)
    if single is None:
        _scatter(curve, mean, observed, "predicted", "observed")
        curve.axline((mean.mean(), mean.mean()), slope=1, color=_CURVE)
    else:
        places = np.linspace(single.min(), single.max(), _POINTS)
        band = summary.predict(_like(x, places), level, function)
        _draw_curve(curve, places, band)
        _scatter(curve, single, observed, "x", "y")
    left = observed - mean
    _scatter(residuals, mean, left, "predicted", "residual")
    residuals.axhline(0, color=_CURVE)
    _draw_quantiles(quantiles, left)
    _draw_correlation(figure, correlation, summary)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _data(summary: Summary, x: Any, y: Any) -> tuple[Any, Matrix]:
    """The inputs, and the targets as `(rows, outputs)`."""
    objective = summary._fit.objective
    if x is None and isinstance(objective, Objective):
        known = objective.data
        if known is not None:
            x, y = known[0], leaves(known[1])[0]
    if x is None or y is None:
        raise ValueError(
            "The data of this fit are not known: pass `x` and `y`. Received: "
            f"x={x!r}, y={y!r}"
        )
    y = np.asarray(y, "float64")
    return x, y.reshape(len(y), -1)


def _single(x: Any) -> Vector | None:
    """The only input of every row, or `None` if there are several."""
    found = [np.asarray(a) for a in leaves(x)]
    if len(found) != 1 or found[0].size != len(found[0]):
        return None
    return found[0].reshape(-1).astype("float64")


def _like(x: Any, places: Vector) -> Any:
    """Other inputs, in the structure and the dtype of `x`."""
    (own,) = leaves(x)
    own = np.asarray(own)
    shape = (len(places), *own.shape[1:])
    return tree.pack_sequence_as(x, [places.reshape(shape).astype(own.dtype)])


def _scatter(
    axis: Axes, x: Vector, y: Vector, x_label: str, y_label: str
) -> None:
    axis.plot(x, y, "o", color=_DATA, markersize=3)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_curve(axis: Axes, places: Vector, band: Prediction) -> None:
    axis.plot(places, band.mean[:, 0], "-", color=_CURVE, label="fit")
    bands = [("confidence", band.confidence, 0.35)]
    if band.prediction is not None:
        bands.append(("prediction", band.prediction, 0.15))
    for label, ends, alpha in bands:
        low, high = ends[:, 0].T
        axis.fill_between(
            places, low, high, color=_CURVE, alpha=alpha, lw=0, label=label
        )
    axis.legend(frameon=False)


def _draw_quantiles(axis: Axes, residuals: Vector) -> None:
    """Sorted residuals over quantiles of the normal distribution."""
    count = residuals.size
    # The medians of sorted draws (Blom, 1958).
    quantiles = scipy.stats.norm.ppf(
        (np.arange(count) + 0.625) / (count + 0.25)
    )
    _scatter(axis, quantiles, np.sort(residuals), "normal quantile", "residual")
    middle = (0.0, float(residuals.mean()))
    axis.axline(middle, slope=float(residuals.std()), color=_CURVE)


def _draw_correlation(figure: Figure, axis: Axes, summary: Summary) -> None:
    image = axis.imshow(summary.correlation, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_title("correlation of the parameters", fontsize="medium")
    places = np.arange(len(summary.names))
    if len(places) <= _MOST_NAMES:
        axis.set_xticks(places, summary.names, rotation=90, fontsize="small")
        axis.set_yticks(places, summary.names, fontsize="small")
    figure.colorbar(image, ax=axis)
