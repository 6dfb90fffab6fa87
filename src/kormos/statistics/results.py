"""Summaries of the results of `kormos.least_squares` and `kormos.minimize`."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from kormos.checks import check_reduction
from kormos.objective.base import FlatObjective
from kormos.objective.functions.residuals import ResidualObjective
from kormos.objective.functions.row_losses import RowLossObjective
from kormos.session.result import Result
from kormos.session.task import Task
from kormos.solvers.verification import is_unchanged
from kormos.statistics import likelihoods
from kormos.statistics.estimate import estimate
from kormos.statistics.fits import Fit
from kormos.statistics.fits import active_constraints
from kormos.statistics.partial import PartialSummary
from kormos.statistics.rows import row_blocks
from kormos.statistics.summary import Summary
from kormos.types import Matrix
from kormos.types import Vector


def with_summary(
    result: Result,
    summarize: Callable[..., Summary | PartialSummary],
    task: Task,
) -> Result:
    """The result of a session, with a `summary` method that works.

    Args:
        result: the result.
        summarize: function of the task, the estimate and settings.
        task: the task of the session.
    """
    objective = task.objective
    theta, loss = objective.initial_position(), result.loss

    def summary(**settings: Any) -> Summary | PartialSummary:
        if not is_unchanged(objective, theta, loss):
            raise ValueError(
                "The function, or a value that it reads, has changed since "
                "the fit. Call `summary` before the change, or give each fit "
                "a function of its own. Received: a function whose loss at "
                f"the estimate was {loss:.6g}, and is "
                f"{objective.reference(theta)[1]:.6g} now"
            )
        return summarize(task, theta, **settings)

    result._summarize = summary
    return result


def of_residuals(
    deviations: Any,
    task: Task,
    theta: Vector,
    covariance: str = "classical",
    groups: Any = None,
    level: float = 0.95,
    absolute_sigma: bool = False,
    names: list[str] | None = None,
    targets: Any = None,
    parameters: Sequence[Any] | None = None,
) -> Summary | PartialSummary:
    """The summary of a fit of residuals.

    Args:
        deviations: `sigma` of `kormos.least_squares`, or `None`.
        task: the task of the session.
        theta: the estimate.
        covariance: see `kormos.summary`.
        groups: see `kormos.summary`.
        level: see `kormos.summary`.
        absolute_sigma: whether residuals are divided by their own standard
            deviations, so that their variance is one.
        names: see `kormos.summary`.
        targets: the observed values, for R-squared.
        parameters: see `kormos.summary`.
    """
    objective = task.objective
    assert isinstance(objective, ResidualObjective)
    factors = objective.block_factors
    likelihood = likelihoods.of_quasi(objective.loss)
    if objective.loss == "linear":
        is_equal = bool(np.all(factors == factors[0]))
        likelihood = likelihoods.of_squares(
            float(factors[0]) if is_equal else None
        )
    fit = Fit(
        objective,
        theta,
        likelihood,
        _active(task, theta),
        targets=_as_rows(targets),
        box=task.box,
        is_constrained=bool(task.constraints),
        deviations=_deviations(deviations, objective),
    )
    if parameters is not None:
        return PartialSummary(
            fit, parameters, covariance, level, names, absolute_sigma
        )
    return Summary(
        fit, estimate(fit, covariance, groups, absolute_sigma), level, names
    )


def of_loss(
    task: Task,
    theta: Vector,
    covariance: str = "classical",
    groups: Any = None,
    level: float = 0.95,
    names: list[str] | None = None,
    losses: Callable[[], Any] | None = None,
    observations: int | None = None,
    reduction: str | None = None,
) -> Summary:
    """The summary of a minimized loss.

    Args:
        task: the task of the session.
        theta: the estimate.
        covariance: see `kormos.summary`.
        groups: see `kormos.summary`.
        level: see `kormos.summary`.
        names: see `kormos.summary`.
        losses: function of no arguments that returns the negative
            log-likelihood of every row, `(rows,)`. Not needed for a loss of
            rows of `data`.
        observations: the number of rows.
        reduction: `"mean"` or `"sum"`: how the loss reduces the rows. Defaults
            to the reduction of the fit, or `"mean"` for a loss without rows.
    """
    objective = task.objective
    if reduction is None:
        reduction = getattr(objective, "reduction", "mean")
    check_reduction(reduction)
    values, scores = None, None
    if losses is not None:
        values, scores = _by_row(_residuals_of(losses, objective), theta)
    elif isinstance(objective, RowLossObjective) and observations is None:
        if objective.names[1:]:
            raise ValueError(
                "A loss of several parts has no summary, because a penalty "
                "is no likelihood: fit the negative log-likelihoods of the "
                "rows alone. Received: a loss of the parts "
                f"{', '.join(map(repr, objective.names))}"
            )
        values, scores = _by_row(objective.by_row(), theta)
    likelihood = likelihoods.of_rows(
        float(objective.value(theta)), values, observations, reduction
    )
    if scores is not None:
        assert likelihood.factor is not None  # Its rows give the factor.
        scores = likelihood.factor * scores
    fit = Fit(
        objective,
        theta,
        likelihood,
        _active(task, theta),
        scores=scores,
        box=task.box,
        is_constrained=bool(task.constraints),
    )
    return Summary(fit, estimate(fit, covariance, groups), level, names)


def _residuals_of(
    losses: Callable[[], Any], objective: FlatObjective
) -> ResidualObjective:
    """The values of a function of the variables of a loss, as residuals."""
    return ResidualObjective(
        lambda: ops.reshape(losses(), (-1,)),
        objective.variables,
        reduction="sum",
        precision="float64",
    )


def _by_row(
    objective: ResidualObjective, theta: Vector
) -> tuple[Vector, Matrix]:
    """The residuals at a point, and their gradients.

    Args:
        objective: the sum of their squares.
        theta: the point.
    """
    # The slope of a square is twice the value.
    values, scores = [], []
    for block in row_blocks(objective, theta):
        values.append(block.slopes[:, 0] / 2)
        scores.append(block.matrix[:, 0] / np.sqrt(block.weights))
    return np.concatenate(values), np.concatenate(scores)


def _active(task: Task, theta: Vector) -> Matrix:
    return active_constraints(
        theta, task.box, task.constraints, 1e3 * task.objective.storage_eps
    )


def _deviations(sigma: Any, objective: ResidualObjective) -> Matrix | None:
    """The standard deviations of `Fit`.

    Args:
        sigma: that of `kormos.least_squares`, or `None`.
        objective: the objective, whose data include `sigma` of several rows.
    """
    if sigma is None:
        return None
    deviations = np.asarray(sigma, "float64")
    if deviations.ndim and objective.data is not None:
        # Rows with missing values have been left out.
        deviations = np.asarray(objective.data[1], "float64")
    return deviations.reshape(len(deviations) if deviations.ndim else 1, -1)


def _as_rows(targets: Any) -> Matrix | None:
    if targets is None:
        return None
    return np.asarray(targets, "float64").reshape(len(targets), -1)
