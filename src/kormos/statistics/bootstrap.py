"""Estimates from resampled data: Efron's bootstrap (1979)."""

import copy
from typing import Any

import numpy as np
from keras import tree

from kormos.checks import check_count
from kormos.data.memory import leaves
from kormos.objective.base import FlatObjective
from kormos.objective.functions.residuals import ResidualObjective
from kormos.objective.keras_model.objective import Objective
from kormos.statistics.fits import Fit
from kormos.statistics.refit import refit
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Structure

RESAMPLES = ("rows", "residuals")


def bootstrap(fit: Fit, n: int, resample: str, seed: int) -> Matrix:
    """Estimates from data that are drawn with replacement.

    Args:
        fit: the fit.
        n: the number of draws.
        resample: `"rows"`, or `"residuals"` to add residuals of other rows to
            the predictions.
        seed: the seed of the draws.

    Returns:
        The estimates, `(n, size)`.

    Raises:
        ValueError: if the data cannot be drawn again.
    """
    check_count("n", n, 1)
    fit.check_refits()
    if resample not in RESAMPLES:
        raise ValueError(
            f"Argument `resample` must be one of {list(RESAMPLES)}. "
            f"Received: resample={resample!r}"
        )
    objective, data = fit.objective, _data(fit)
    rng, rows = np.random.default_rng(seed), len(leaves(data)[0])
    redraw = _Residuals(fit) if resample == "residuals" else _take
    held = np.asarray((fit.active != 0).any(axis=0))
    found = np.empty((n, fit.theta.size))
    for i in range(n):
        drawn = redraw(data, rng.integers(0, rows, rows))
        other = _replaced(objective, drawn)
        found[i], _ = refit(other, fit.theta.copy(), held, fit.box)
    return found


def _data(fit: Fit) -> Structure:
    """The data of a fit, whose arrays must have the same number of rows."""
    objective = fit.objective
    known = isinstance(objective, (Objective, ResidualObjective))
    data = objective.data if known else None  # type: ignore[attr-defined]
    lengths = {len(a) for a in leaves(data)} if data is not None else set()
    if len(lengths) != 1:
        raise ValueError(
            "A bootstrap draws rows of the data: pass the points of "
            "`least_squares` as `data`, arrays of the same length, or fit a "
            "Keras model on arrays. Received: a fit without rows of data"
        )
    return data


def _take(data: Structure, places: Array) -> Structure:
    return tree.map_structure(
        lambda a: None if a is None else a[places], data, none_is_leaf=False
    )


def _replaced(objective: FlatObjective, data: Any) -> FlatObjective:
    """A copy of the objective with other data."""
    other = copy.copy(objective)
    other.replace(data)  # type: ignore[attr-defined]
    return other


class _Residuals:
    """Adds residuals of drawn rows to predictions.

    Args:
        fit: the fit, a sum of squares of a Keras model with one output.
    """

    def __init__(self, fit: Fit) -> None:
        if fit.targets is None or not isinstance(fit.objective, Objective):
            raise ValueError(
                "Residuals can only be drawn for a Keras model with a "
                "squared error: use `resample='rows'`. Received: "
                "resample='residuals'"
            )
        blocks = list(fit.rows())
        roots = np.concatenate([np.sqrt(b.weights) for b in blocks])
        errors = np.concatenate([b.errors for b in blocks])
        # These are errors of predictions, with the opposite sign of residuals.
        self._predicted = fit.targets + errors / roots
        self._errors = errors - errors.mean(axis=0)
        self._roots = roots

    def __call__(self, data: Structure, places: Array) -> Structure:
        y = self._predicted - self._errors[places] / self._roots
        x, targets, *weights = data
        (own,) = leaves(targets)
        y = y.reshape(own.shape).astype(own.dtype)
        return (x, tree.pack_sequence_as(targets, [y]), *weights)
