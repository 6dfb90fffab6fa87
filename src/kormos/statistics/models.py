"""`kormos.summary`: how precisely the data determine a Keras model."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kormos.data.memory import leaves
from kormos.float64.choice import Float64Error
from kormos.objective.bounds import resolve_bounds
from kormos.objective.fixed import with_fixed
from kormos.objective.keras_model.model_checks import check_has_loss
from kormos.objective.keras_model.objective import Objective
from kormos.objective.keras_model.with_loss import with_loss
from kormos.optimizers.base import BatchOptimizer
from kormos.processes import processes_of
from kormos.session.float64_tail import resolved
from kormos.statistics.estimate import estimate
from kormos.statistics.fits import Fit
from kormos.statistics.fits import active_constraints
from kormos.statistics.likelihoods import Likelihood
from kormos.statistics.likelihoods import of_model
from kormos.statistics.partial import PartialSummary
from kormos.statistics.rows import check_alone
from kormos.statistics.summary import Summary
from kormos.types import Array
from kormos.types import Matrix

# The argument that says that a loss is a negative log-likelihood.
STATED = "nll"


def summary(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    sample_weight: Any = None,
    loss: Any = None,
    covariance: str = "classical",
    groups: Any = None,
    level: float = 0.95,
    *,
    absolute_sigma: bool = False,
    batch_size: int | None = None,
    names: list[str] | None = None,
    parameters: Sequence[Any] | None = None,
    fixed: Any = None,
    bounds: Any = None,
    constraints: Any = None,
) -> Summary | PartialSummary:
    """Says how precisely the data determine the parameters of a fitted model.

    The model must be at the optimum of its loss. If a Newton step would still
    move it, the table has a note about that. Everything is computed with exact
    derivatives, and in float64 if the model can be computed in float64.

    A mean squared error counts as a Gaussian likelihood. Binary and categorical
    cross-entropies (without label smoothing) and `"poisson"` count as the
    likelihoods of their distributions. For any other loss, the standard errors
    are those of a sandwich estimator, unless you state that the loss is a
    likelihood. The reduction of the loss does not matter.

    Args:
        model: A `keras.Model`, compiled unless `loss` is given.
        x: Inputs, the data of the fit. See `kormos.fit`.
        y: Targets. Leave it out if `x` is a dataset.
        sample_weight: Weights of the rows, an array of shape `(rows,)`. For
            squared errors they are the reciprocals of the variances. For other
            likelihoods they count how often a row occurs. A sandwich estimator
            takes a row as one observation, whatever its weight.
        loss: A loss, as `model.compile` takes it, in place of the loss of the
            model; or `"nll"`, to state that the loss of the model is the mean
            over the rows of negative log-likelihoods.
        covariance: String, the estimator of the covariance. `"classical"`, the
            default, uses the expected information (or the observed one, if the
            outputs of the model do not give the expected one). `"hessian"` uses
            the observed information. `"HC0"`, `"HC1"`, `"HC2"` and `"HC3"` are
            sandwich estimators for variances that differ between rows.
            `"cluster"` is for rows that depend on each other within `groups`.
        groups: The group of every row, an array of shape `(rows,)`, for
            `"cluster"`.
        level: Float, the probability with which an interval covers the true
            value. Defaults to 0.95.
        absolute_sigma: Boolean, whether the reciprocal of `sample_weight` is
            the variance of a target itself. By default weights are relative,
            and the variance is estimated.
        batch_size: Integer, the largest number of rows that are evaluated at
            the same time.
        names: List of the names of the parameters, in the order of the flat
            vector of all trainable variables. By default, a name is the path of
            a variable and an index.
        parameters: List of the parameters to report, by their names or by their
            indices in the flat vector. The result is then a `PartialSummary`,
            which does not need the covariance of all parameters. With `[]`, it
            only predicts.
        fixed: Parameters that the fit has kept fixed. See `kormos.fit`.
        bounds: Bounds of the fit, if they were given to `kormos.fit` or
            `model.fit`. Defaults to those of the model's optimizer.
        constraints: Constraints of the fit, likewise.

    Returns:
        A `Summary`, or a `PartialSummary` if `parameters` is given. `print`
        shows it as a table. Programs read `estimates`, `standard_errors`,
        `covariance`, `intervals()` and its other members.

    Raises:
        ValueError: If an argument, the data or the model cannot be used, or if
            there are so many parameters that their covariance does not fit
            into memory.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.LevenbergMarquardt(), loss="mse")
    model.fit(x, y, epochs=100)
    print(kormos.summary(model, x, y))
    ```
    """
    check_has_loss(model, loss not in (None, STATED), "give `loss`, or ")
    _check_penalties(model)
    optimizer = getattr(model, "optimizer", None)
    if loss is not None and loss != STATED:
        model = with_loss(model, loss)
    objective = _objective(model, x, y, sample_weight, batch_size)
    _check_weights(objective)
    likelihood = of_model(objective, loss == STATED)
    if isinstance(optimizer, BatchOptimizer):
        bounds = optimizer.bounds if bounds is None else bounds
        if constraints is None:
            constraints = optimizer.constraints
    constraints = resolved(objective, constraints) if constraints else []
    given = with_fixed(bounds, fixed, objective.variables)
    box = resolve_bounds(given, objective.program.packing, ())
    theta = objective.initial_position()
    fit = Fit(
        objective,
        theta,
        likelihood,
        active_constraints(
            theta, box, constraints, 1e3 * objective.storage_eps
        ),
        targets=_targets(objective, likelihood),
        channels=_channels(objective),
        function=lambda data: model(data),
        box=box,
        is_constrained=bool(constraints),
    )
    if parameters is not None:
        return PartialSummary(
            fit, parameters, covariance, level, names, absolute_sigma
        )
    return Summary(
        fit, estimate(fit, covariance, groups, absolute_sigma), level, names
    )


def _check_penalties(model: keras.Model) -> None:
    """Refuses penalties that are no sums of penalties of single parameters.

    Only the diagonal of a penalty's Hessian is known.
    """
    for layer in model._flatten_layers():
        found = [
            value
            for name, value in vars(layer).items()
            if isinstance(value, keras.regularizers.OrthogonalRegularizer)
            or (name == "activity_regularizer" and value is not None)
        ]
        if found:
            raise ValueError(
                "A summary counts penalties of single parameters, such as L1 "
                "and L2, but not those of outputs or of whole columns. "
                f"Received: layer '{layer.name}' with {found[0]!r}"
            )


def _objective(
    model: keras.Model, x: Any, y: Any, sample_weight: Any, batch_size: Any
) -> Objective:
    """The objective, in float64 where the model can be computed in it."""
    check_alone(processes_of(model))

    def made(precision: str | None) -> Objective:
        return Objective(
            model,
            x,
            y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            with_jacobian=True,
            precision=precision,
        )

    try:
        return made("float64")
    except Float64Error:
        return made(None)


def _check_weights(objective: Objective) -> None:
    """Refuses negative weights, which no likelihood has."""
    data = objective.data
    for weights in leaves(data[2]) if data is not None and data[2:] else ():
        least = float(np.min(weights, initial=0.0))
        if least < 0:
            raise ValueError(
                "A summary takes the weights of rows for precisions or "
                "counts, which are 0 or more. Received: a `sample_weight` of "
                f"{least:g}"
            )


def _channels(objective: Objective) -> Array:
    """The output channel of each entry of a row, of all outputs together."""
    found, first = [], 0
    for shape in objective.program.model_loss.outputs.shapes:
        count = shape[-1] if shape else 1
        found.append(first + np.arange(int(np.prod(shape))) % count)
        first += count
    return np.concatenate(found)


def _targets(objective: Objective, likelihood: Likelihood) -> Matrix | None:
    """The targets as `(rows, outputs)`, for a sum of squares."""
    data = objective.data
    widths = objective.program.model_loss.outputs.widths
    if not likelihood.is_gaussian or data is None:
        return None
    found = [
        np.asarray(a, "float64").reshape(len(a), -1) for a in leaves(data[1])
    ]
    if [a.shape[1] for a in found] != widths:
        return None
    return np.concatenate(found, axis=1)
