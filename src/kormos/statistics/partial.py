"""Errors of some parameters, or of predictions, without a covariance matrix.

A standard error needs only the product of the inverse of the information and
one vector. Conjugate gradients (Hestenes and Stiefel, 1952), preconditioned by
the diagonal, compute it from products. The memory is that of a few vectors.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from kormos import markup
from kormos.statistics import tables
from kormos.statistics.estimate import likelihood_of
from kormos.statistics.estimate import scale_of
from kormos.statistics.fits import Fit
from kormos.statistics.prediction import Prediction
from kormos.statistics.prediction import predict
from kormos.statistics.summary import check_level
from kormos.statistics.summary import names_of
from kormos.statistics.totals import sums_alone
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# A solution leaves this part of its right side, in the norm of the
# preconditioner. Our choice: a standard error then has about eight digits.
_LEFT = 1e-10
# If more products are needed, the error counts as unknown. Our choice: this
# many take minutes for a large network.
_MOST_PRODUCTS = 2000
# With parameters scaled to curvature one, a direction of a smaller curvature
# than this is not determined.
_LEAST_CURVATURE = 1e-13
# The effective parameters of a penalized loss are a mean over random vectors
# (Hutchinson, 1990). Our choice: the error is then a few percent.
_PROBES = 32


class PartialSummary:
    """How precisely the data determine some parameters, or predictions.

    It is for models whose covariance matrix does not fit into memory. It has
    the attributes of `Summary`, for the parameters that were requested.

    Attributes:
        names: List of the names of the parameters.
        indices: Their indices in the flat vector of all variables.
        estimates: Their estimates, float64 array of shape `(count,)`.
        covariance: Their covariance matrix, array of shape `(count, count)`,
            with NaN for a parameter that the data do not determine, that
            conjugate gradients could not determine, or that a bound holds.
        standard_errors: The square roots of its diagonal, `(count,)`.
        observations: The number of observations.
        parameters: The number of all parameters that are not held or, with a
            penalty, an estimate of the effective number of them.
        degrees_of_freedom: `observations - parameters`.
        residual_standard_error: The standard deviation of the residuals, or
            NaN.
        log_likelihood: The log-likelihood at the estimate.

    Example:

    ```python
    kormos.fit(model, x, y, optimizer="lm", epochs=100)
    print(kormos.summary(model, x, y, parameters=[0, 1]))
    ```
    """

    def __init__(
        self,
        fit: Fit,
        parameters: Sequence[Any],
        covariance: str = "classical",
        level: float = 0.95,
        names: Sequence[str] | None = None,
        absolute_sigma: bool = False,
    ) -> None:
        check_level(level)
        _check(fit, covariance)
        self._fit, self.level = fit, level
        named = names_of(fit, names) if names or _has_names(parameters) else []
        self.indices = [_index(p, named, fit) for p in parameters]
        self.names = [
            named[i] if named else fit.objective.name_of(i)
            for i in self.indices
        ]
        self.estimates = np.array(fit.theta[self.indices])
        self._inverse = _Inverse(fit)
        sums = self._inverse.sums
        scale, deviation = scale_of(
            fit.likelihood, sums, self._inverse.effective(), absolute_sigma
        )
        self._factor, self._noise = scale.factor, deviation
        if absolute_sigma:
            self._noise = 1.0
        self._is_t = fit.likelihood.is_gaussian and not absolute_sigma
        self.observations = scale.observations
        self.parameters = scale.parameters
        self.degrees_of_freedom = scale.observations - scale.parameters
        self.residual_standard_error = deviation
        self.log_likelihood = likelihood_of(fit, sums, absolute_sigma)
        vectors = np.zeros((len(self.indices), fit.theta.size))
        vectors[np.arange(len(vectors)), self.indices] = 1.0
        self.covariance = self._factor * self._inverse.products(vectors)

    @property
    def standard_errors(self) -> Vector:
        """The standard errors, `(count,)`."""
        return np.sqrt(np.diag(self.covariance))

    def intervals(self, level: float | None = None) -> Matrix:
        """Returns confidence intervals by standard errors, `(count, 2)`.

        Args:
            level: See `Summary.intervals`.

        Returns:
            An array of shape `(count, 2)`.

        Raises:
            ValueError: If `level` is not between 0 and 1.
        """
        reach = self._quantile(level) * self.standard_errors
        return np.stack([self.estimates - reach, self.estimates + reach], 1)

    def predict(
        self,
        x: Any,
        level: float | None = None,
        function: Callable[..., Any] | None = None,
    ) -> Prediction:
        """Returns predictions with their standard errors, by the delta method.

        It solves a system of equations for each output and row.

        Args:
            x: See `Summary.predict`.
            level: See `Summary.predict`.
            function: See `Summary.predict`.

        Returns:
            A `Prediction`.

        Raises:
            ValueError: If an argument cannot be used.
        """
        return predict(
            self._fit,
            self._errors,
            self._noise,
            x,
            self._quantile(level),
            function,
        )

    def _errors(self, jacobian: Array) -> Matrix:
        """The standard errors of predictions with these derivatives."""
        rows = jacobian.reshape(-1, jacobian.shape[-1])
        squares = [self._inverse.products(row[None])[0, 0] for row in rows]
        errors = np.sqrt(self._factor * np.array(squares))
        return np.asarray(errors).reshape(jacobian.shape[:2])

    def _quantile(self, level: float | None) -> float:
        level = self.level if level is None else level
        check_level(level)
        distribution = scipy.stats.norm()
        if self._is_t:
            distribution = scipy.stats.t(self.degrees_of_freedom)
        return float(distribution.ppf((1 + level) / 2))

    def __repr__(self) -> str:
        return (
            f"<PartialSummary of {len(self.names)} of "
            f"{self._fit.theta.size} parameters>"
        )

    def _repr_html_(self) -> str:
        head, *rows = self._rows()
        return markup.paragraph(self._title()) + markup.table(head, rows)

    def __str__(self) -> str:
        return f"{self._title()}\n{tables.aligned(self._rows())}"

    def _title(self) -> str:
        return (
            f"{len(self.names)} of {self._fit.theta.size:,} parameters, "
            f"{self.observations:g} observations, log-likelihood "
            f"{self.log_likelihood:.6g}"
        )

    def _rows(self) -> list[list[str]]:
        """The cells of the table, beginning with the headings."""
        percent = f"{100 * self.level:g}%"
        rows = [
            ["", "estimate", "std. error", f"low {percent}", f"high {percent}"]
        ]
        columns = self.estimates, self.standard_errors, *self.intervals().T
        for name, *numbers in zip(self.names, *columns, strict=True):
            rows.append([name, *map(tables.number, numbers)])
        return rows


class _Inverse:
    """The inverse of the information, computed from products.

    Args:
        fit: the fit.

    Attributes:
        sums: the sums over the rows of data.
    """

    def __init__(self, fit: Fit) -> None:
        gauss_newton, theta = fit.objective.gauss_newton(), fit.theta
        self._product = lambda vector: gauss_newton.product(theta, vector)
        self.sums, diagonal = sums_alone(fit)
        self._penalty = self.sums.penalty
        diagonal = diagonal + self._penalty
        self._is_free = np.ones(theta.size, bool)
        lower, upper = fit.box
        if lower is not None and upper is not None:
            self._is_free = (theta > lower) & (theta < upper)
        # The entries are zero for parameters that are held, or have no effect.
        is_used = self._is_free & (diagonal > 0)
        self._units = np.where(
            is_used, 1 / np.sqrt(np.where(is_used, diagonal, 1.0)), 0.0
        )

    def products(self, vectors: Matrix) -> Matrix:
        """The covariance of linear functions of the parameters.

        Args:
            vectors: their coefficients, `(count, size)`.

        Returns:
            A matrix `(count, count)`, which is to be multiplied by the scale;
            NaN for functions that are not determined.
        """
        found = np.array([self._solved(v) for v in vectors])
        found = found.reshape(vectors.shape)
        # Without penalty: A^-1; with it, A^-1 (A - P) A^-1.
        own = vectors * self._is_free - found * self._penalty
        return found @ own.T

    def effective(self) -> float:
        """The number of parameters that the data determine."""
        if not (self._penalty.any() or self.sums.penalty_loss):
            return float(self._is_free.sum())
        rng, total = np.random.default_rng(0), 0.0
        for _ in range(_PROBES):
            probe = rng.choice([-1.0, 1.0], self._is_free.size) * self._is_free
            own = self._product(probe) - self._penalty * probe
            total += float(self._solved(own) @ probe)
        return total / _PROBES

    def _solved(self, right: Vector) -> Vector:
        """The inverse times a vector; NaN where there is none."""
        nothing = np.full(right.size, np.nan)
        if (right[self._is_free & (self._units == 0)] != 0).any():
            return nothing
        if not (right * self._is_free).any():
            # A held parameter has no standard error, but a constant function of
            # the parameters has one of zero.
            return nothing if right.any() else np.zeros(right.size)
        left = right * self._units
        found, direction, square = np.zeros(right.size), left, left @ left
        least = _LEFT**2 * square
        for _ in range(_MOST_PRODUCTS):
            product = self._units * self._product(self._units * direction)
            curvature = direction @ product
            if not curvature > _LEAST_CURVATURE * (direction @ direction):
                return nothing
            length = square / curvature
            found = found + length * direction
            left = left - length * product
            before, square = square, left @ left
            if square <= least:
                return found * self._units
            direction = left + square / before * direction
        return nothing


def _check(fit: Fit, covariance: str) -> None:
    likelihood = fit.likelihood
    is_expected = likelihood.is_known and likelihood.is_expected
    if covariance != "classical" or not (fit.has_rows and is_expected):
        raise ValueError(
            "`parameters` needs the expected information, and therefore a "
            "loss of outputs that is a likelihood: leave it out, or use "
            f"`covariance='classical'`. Received: covariance={covariance!r} "
            f"for {likelihood.name}"
        )
    if fit.is_constrained:
        raise ValueError(
            "`parameters` supports bounds, but not constraints: leave it "
            "out. Received: a fit with constraints"
        )


def _has_names(parameters: Sequence[Any]) -> bool:
    return any(isinstance(parameter, str) for parameter in parameters)


def _index(parameter: Any, names: list[str], fit: Fit) -> int:
    """The index of a parameter that is given by its name or its index."""
    if isinstance(parameter, str) and parameter in names:
        return names.index(parameter)
    is_place = isinstance(parameter, (int, np.integer))
    if not is_place or not 0 <= parameter < fit.theta.size:
        raise ValueError(
            "Argument `parameters` must be a list of names of parameters, or "
            "of their places in the flat vector of all variables, from 0 to "
            f"{fit.theta.size - 1}. Received: {parameter!r}"
        )
    return int(parameter)
