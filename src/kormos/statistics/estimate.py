"""The numbers of a summary: covariance, scale, likelihood, notes."""

import dataclasses
from typing import Any

import numpy as np

from kormos.statistics import covariance as covariances
from kormos.statistics import information as informations
from kormos.statistics.covariance import Scale
from kormos.statistics.fits import Fit
from kormos.statistics.information import Information
from kormos.statistics.likelihoods import Likelihood
from kormos.statistics.totals import Totals
from kormos.statistics.totals import totals
from kormos.types import Matrix

# A point is an optimum if a Newton step would move no parameter by more than
# this part of its standard error. Our choice: smaller moves do not change a
# digit that a table prints.
_MOST_MOVE = 1e-2
# In an exact fit all errors are rounding errors, and so are steps below this
# part of a parameter. This is our choice.
_SMALLEST_MOVE = 1e-8


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The numbers of a summary.

    Attributes:
        kind: the estimator of the covariance.
        covariance: the covariance matrix, `(size, size)`; zero for directions
            that the data do not determine.
        information: the information, in units of the loss.
        scale: the numbers that the covariance is multiplied by.
        deviation: the standard deviation of a residual of weight one, or NaN.
        noise: the standard deviation of an observation of weight one:
            `deviation`, or one if the variance is known, or NaN.
        log_likelihood: the log-likelihood, or NaN.
        spread: the sum of squares of the targets (see `Totals`), or NaN.
        residual_squares: the weighted sum of the squared residuals, or NaN.
        means: the number of means around which the spread is.
        is_penalized: whether the loss has a penalty.
        is_t: whether intervals use Student's distribution.
        notes: sentences for the reader of the table.
    """

    kind: str
    covariance: Matrix
    information: Information
    scale: Scale
    deviation: float
    noise: float
    log_likelihood: float
    spread: float
    residual_squares: float
    means: int
    is_penalized: bool
    is_t: bool
    notes: tuple[str, ...]


def estimate(
    fit: Fit, kind: str, groups: Any = None, absolute_sigma: bool = False
) -> Estimate:
    """The numbers of a summary.

    Args:
        fit: the fit.
        kind: one of `covariance.KINDS`.
        groups: see `kormos.summary`.
        absolute_sigma: whether weights are known variances.
    """
    covariances.check_kind(kind, groups)
    fit.check_size()
    likelihood, notes = fit.likelihood, []
    if kind == "hessian" and not likelihood.is_known:
        raise ValueError(
            "The observed information needs a likelihood: state by "
            "`loss='nll'` that the loss is one, or use a sandwich estimator "
            "such as 'HC0'. Received: covariance='hessian' for "
            f"{likelihood.name}"
        )
    if likelihood.is_gaussian:
        # The rows are known, unless the model cannot be differentiated by row.
        fit.objective.gauss_newton()
    sums = totals(fit) if fit.has_rows else None
    if likelihood.is_gaussian and likelihood.factor is None:
        notes.append(
            "The squares of the blocks or outputs have different factors in "
            "the loss. These count as relative precisions: a block with twice "
            "the factor of another has half its variance."
        )
    if kind == "classical" and not likelihood.is_known:
        kind = "HC0"
        notes.append(
            f"The loss ({likelihood.name}) is not a likelihood: the standard "
            "errors are those of a sandwich estimator (HC0)."
        )
    is_penalized = sums is not None and bool(
        sums.penalty.any() or sums.penalty_loss
    )
    information, middle = _information(fit, kind, sums)
    # The Hessian of the loss without its penalty, in the root's basis.
    effective = float(np.trace(middle)) if is_penalized else information.rank
    scale, deviation = scale_of(likelihood, sums, effective, absolute_sigma)
    if kind in covariances.SANDWICHES:
        matrix = covariances.sandwich(fit, information, kind, scale, groups)
    else:
        root = information.root
        matrix = scale.factor * root @ middle @ root.T
    notes += _notes(fit, information, matrix, is_penalized, effective)
    return Estimate(
        kind=kind,
        covariance=matrix,
        information=information,
        scale=scale,
        deviation=deviation,
        noise=1.0 if absolute_sigma else deviation,
        log_likelihood=likelihood_of(fit, sums, absolute_sigma),
        spread=np.nan
        if sums is None
        else sums.spread / _unit(likelihood, sums),
        residual_squares=_squares(likelihood, sums),
        means=1 if sums is None else sums.means,
        is_penalized=is_penalized,
        is_t=likelihood.is_gaussian
        and not absolute_sigma
        and kind in ("classical", "hessian"),
        notes=tuple(notes),
    )


def _information(
    fit: Fit, kind: str, sums: Totals | None
) -> tuple[Information, Matrix]:
    """The information, and its part without the penalty.

    Returns:
        The information of the loss, and the Hessian of the loss without
        penalty in the basis of its root, `(rank, rank)`.
    """
    rounding = max(fit.objective.evaluation_eps, 2.0**-52)
    is_expected = sums is not None and fit.likelihood.is_expected
    if sums is not None and is_expected and kind != "hessian":
        rows = sums.factor
        if sums.penalty.any():
            rows = np.concatenate([rows, np.diag(np.sqrt(sums.penalty))])
        found = informations.of_rows(rows, fit.active, rounding)
        turned = sums.factor @ found.root
        return found, turned.T @ turned
    hessian = fit.objective.hessian(fit.theta)
    found = informations.of_matrix(hessian, fit.active, rounding)
    if sums is not None and sums.penalty.any():
        hessian = hessian - np.diag(sums.penalty)
        return found, found.root.T @ hessian @ found.root
    return found, np.eye(found.rank)


def _unit(likelihood: Likelihood, sums: Totals) -> float:
    """The second derivative of the loss in a residual of weight one."""
    if likelihood.factor is None:
        return sums.curvatures / max(sums.entries, 1)
    return 2 * likelihood.factor


def _squares(likelihood: Likelihood, sums: Totals | None) -> float:
    """The weighted sum of the squared residuals, or NaN."""
    if sums is None or not likelihood.is_gaussian:
        return np.nan
    return sums.squares / _unit(likelihood, sums)


def scale_of(
    likelihood: Likelihood,
    sums: Totals | None,
    effective: float,
    absolute_sigma: bool,
) -> tuple[Scale, float]:
    """The scale of the covariance, and the standard deviation of residuals.

    Args:
        likelihood: the likelihood.
        sums: the sums over the rows, or `None` if they are not known.
        effective: the number of parameters that the data determine.
        absolute_sigma: whether weights are known variances.

    Raises:
        ValueError: if they are, and the loss does not count squares alike.
    """
    if not likelihood.is_gaussian or sums is None:
        count = likelihood.observations
        if count is None:
            count = float(sums.entries) if sums is not None else np.nan
        return Scale(likelihood.factor or np.nan, count, effective), np.nan
    if absolute_sigma and likelihood.factor is None:
        raise ValueError(
            "With `absolute_sigma=True` the variance of every residual is "
            "known, and the loss must count all squared residuals alike: "
            "pass `reduction='sum'` without `loss_weights`, and divide "
            "residuals by their deviations. Received: a loss in which the "
            "squares of blocks or outputs have different factors"
        )
    left = sums.entries - effective
    squares = _squares(likelihood, sums)
    variance = squares / left if left > 0 else np.nan
    unit = _unit(likelihood, sums)
    factor = unit if absolute_sigma else unit * variance
    return Scale(factor, sums.entries, effective), float(np.sqrt(variance))


def likelihood_of(fit: Fit, sums: Totals | None, absolute_sigma: bool) -> float:
    """The log-likelihood of the data, without any penalty."""
    likelihood = fit.likelihood
    if not likelihood.is_known:
        return np.nan
    if likelihood.is_gaussian:
        assert sums is not None  # A sum of squares has rows.
        count, squares = sums.entries, _squares(likelihood, sums)
        logs = sums.logs - count * np.log(_unit(likelihood, sums))
        if squares == 0 and not absolute_sigma:
            return np.inf
        variance = 1.0 if absolute_sigma else squares / count
        spread = count * np.log(2 * np.pi * variance)
        return float(-(spread + squares / variance - logs) / 2)
    assert likelihood.factor is not None
    loss = float(fit.objective.value(fit.theta))
    if sums is not None:
        loss -= sums.penalty_loss
    return -loss / likelihood.factor + likelihood.constant


def _notes(
    fit: Fit,
    information: Information,
    matrix: Matrix,
    is_penalized: bool,
    effective: float,
) -> list[str]:
    """Sentences that a reader of the table must know."""
    notes = []
    if is_penalized:
        notes.append(
            "The loss has a penalty: the estimates are shrunk, the standard "
            "errors are those of a sandwich estimator and do not include the "
            f"bias, and the data determine {effective:.4g} effective "
            "parameters."
        )
    combined = information.combinations(fit.objective.name_of)
    if combined:
        notes.append(
            "The data do not determine: " + "; ".join(combined[:8]) + "."
        )
    if information.negative:
        notes.append(
            "The loss curves downwards along "
            f"{information.negative} direction(s): it is not at a minimum."
        )
    root = information.root
    move = np.abs(root @ (root.T @ fit.gradient()))
    errors = np.sqrt(np.diag(matrix))
    seen = (errors > 0) & (move > _SMALLEST_MOVE * np.abs(fit.theta))
    far = np.max(move[seen] / errors[seen], initial=0.0)
    if far > _MOST_MOVE:
        notes.append(
            "The loss is not at its optimum: a Newton step would move a "
            f"parameter by {far:.2g} standard errors. Fit to the end first."
        )
    return notes
