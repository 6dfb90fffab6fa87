"""`Summary`: how precisely the data determine parameters."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
import scipy.stats

from kormos.optional import pandas_module
from kormos.statistics import covariance as covariances
from kormos.statistics import tables
from kormos.statistics.bootstrap import bootstrap
from kormos.statistics.estimate import Estimate
from kormos.statistics.fits import Fit
from kormos.statistics.prediction import Prediction
from kormos.statistics.prediction import errors_of
from kormos.statistics.prediction import predict
from kormos.statistics.profile import check_profile
from kormos.statistics.profile import profile_interval
from kormos.types import Matrix
from kormos.types import Vector

if TYPE_CHECKING:
    import pandas


class Summary:
    """How precisely the data determine parameters; `print` shows a table.

    The parameters are in the order of the flat vector of all variables.

    Attributes:
        names: List of the names of the parameters. By default, a name is the
            path of a variable and an index.
        estimates: The parameters, float64 array of shape `(size,)`.
        kind: String, the estimator of the covariance: the argument
            `covariance`, or `"HC0"` if the loss is not a likelihood.
        covariance: The covariance matrix of the parameters, array of shape
            `(size, size)`. It is zero along directions that the data do not
            determine or that constraints forbid.
        standard_errors: The standard errors, array of shape `(size,)`, with NaN
            for parameters that the data do not determine, or that constraints
            hold.
        statistics: The estimates divided by their standard errors.
        p_values: The two-sided p-values, by Student's t distribution for a sum
            of squares with the classical covariance, otherwise by the normal
            distribution.
        is_identified: Boolean array of shape `(size,)`, whether the data
            determine a parameter.
        is_held: Boolean array of shape `(size,)`, whether a parameter is at a
            bound, or held by a constraint.
        undetermined: List of strings, the combinations of parameters that the
            data do not determine.
        observations: The number of observations.
        parameters: The number of parameters that the data determine or, with a
            penalty, the effective number of them.
        degrees_of_freedom: `observations - parameters`.
        residual_standard_error: The standard deviation of the residuals,
            computed with the degrees of freedom. NaN if the loss is not a sum
            of squares.
        log_likelihood: The log-likelihood at the estimate, or NaN.
        aic: Akaike's information criterion. As in statsmodels, the variance
            does not count as a parameter.
        aicc: The same, corrected for a small number of observations.
        bic: The Bayesian information criterion.
        r_squared: The share of the variation of the targets around their mean
            (for a linear model without a constant, around zero) that the model
            explains. NaN if the targets are not known.
        adjusted_r_squared: The same, adjusted for the degrees of freedom.
        condition_number: The ratio of the largest to the smallest singular
            value of the weighted Jacobian.
        notes: Tuple of the sentences at the end of the table.

    Example:

    ```python
    kormos.fit(model, x, y, optimizer="lm", epochs=100)
    summary = kormos.summary(model, x, y)
    print(summary.standard_errors)
    ```
    """

    def __init__(
        self,
        fit: Fit,
        estimate: Estimate,
        level: float = 0.95,
        names: Sequence[str] | None = None,
    ) -> None:
        check_level(level)
        self._fit, self._estimate, self.level = fit, estimate, level
        self.names = names_of(fit, names)
        self.estimates = np.array(fit.theta)
        self.kind = estimate.kind
        self.covariance = estimate.covariance
        information = estimate.information
        self.standard_errors = covariances.standard_errors(
            estimate.covariance, information
        )
        self.is_identified = information.is_identified
        self.is_held = information.is_held
        self.undetermined = information.combinations(self.names.__getitem__)
        self.condition_number = information.condition
        self.observations = estimate.scale.observations
        self.parameters = estimate.scale.parameters
        self.degrees_of_freedom = self.observations - self.parameters
        self.residual_standard_error = estimate.deviation
        self.log_likelihood = estimate.log_likelihood
        self.notes = estimate.notes

    @property
    def likelihood(self) -> str:
        """The name of the distribution of the data, or of the loss."""
        return self._fit.likelihood.name

    @property
    def distribution(self) -> Any:
        """The distribution of the statistics, from `scipy.stats`."""
        if self._estimate.is_t:
            return scipy.stats.t(self.degrees_of_freedom)
        return scipy.stats.norm()

    @property
    def statistics(self) -> Vector:
        """The estimates divided by their standard errors, `(size,)`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.estimates / self.standard_errors

    @property
    def p_values(self) -> Vector:
        """Two-sided p-values of the hypotheses that a parameter is zero."""
        return np.asarray(2 * self.distribution.sf(np.abs(self.statistics)))

    @property
    def correlation(self) -> Matrix:
        """The correlation matrix of the parameters, `(size, size)`."""
        return covariances.correlation(self.covariance, self.standard_errors)

    @property
    def aic(self) -> float:
        """Akaike's information criterion."""
        return float(2 * self.parameters - 2 * self.log_likelihood)

    @property
    def aicc(self) -> float:
        """Akaike's criterion, corrected for few observations."""
        left = self.degrees_of_freedom - 1
        if left <= 0:
            return np.inf
        return float(
            self.aic + 2 * self.parameters * (self.parameters + 1) / left
        )

    @property
    def bic(self) -> float:
        """The Bayesian information criterion."""
        penalty = np.log(self.observations) * self.parameters
        return float(penalty - 2 * self.log_likelihood)

    @property
    def residual_squares(self) -> float:
        """The weighted sum of the squared residuals, or NaN."""
        return self._estimate.residual_squares

    @property
    def r_squared(self) -> float:
        """The share of the variation of the targets that the model explains."""
        return float(1 - self.residual_squares / self._estimate.spread)

    @property
    def adjusted_r_squared(self) -> float:
        """R-squared, adjusted for the degrees of freedom."""
        if self.degrees_of_freedom <= 0:
            return np.nan
        total = self.observations - self._estimate.means
        share = total / self.degrees_of_freedom
        return float(1 - (1 - self.r_squared) * share)

    def intervals(
        self,
        level: float | None = None,
        method: str = "wald",
        *,
        n: int = 1000,
        resample: str = "rows",
        seed: int = 0,
    ) -> Matrix:
        """Returns confidence intervals of the parameters.

        Args:
            level: Float, the probability with which an interval covers the true
                value. Defaults to that of the summary.
            method: `"wald"`, the default, uses the standard errors. `"profile"`
                uses the likelihood, and takes about ten fits per parameter.
                `"bootstrap"` uses the quantiles of `bootstrap`.
            n: See `bootstrap`.
            resample: See `bootstrap`.
            seed: See `bootstrap`.

        Returns:
            An array of shape `(size, 2)`, with NaN where there is no interval,
            and with infinity where the likelihood sets no limit.

        Raises:
            ValueError: If an argument cannot be used.

        Source of the profile intervals: Bates and Watts, Nonlinear Regression
        Analysis (1988), section 6.1.

        Example:

        ```python
        kormos.fit(model, x, y, optimizer="lm", epochs=100)
        print(kormos.summary(model, x, y).intervals(level=0.9))
        ```
        """
        level = self.level if level is None else level
        if method == "wald":
            reach = self._quantile(level) * self.standard_errors
            ends = self.estimates - reach, self.estimates + reach
            return np.stack(ends, axis=1)
        found = np.full((len(self.names), 2), np.nan)
        known = np.flatnonzero(np.isfinite(self.standard_errors))
        if method == "profile":
            check_profile(self._estimate)
            self._fit.check_refits()
            for i in known:
                found[i] = profile_interval(
                    self._fit, self._estimate, int(i), self._quantile(level)
                )
            return found
        if method != "bootstrap":
            raise ValueError(
                "Argument `method` must be 'wald', 'profile' or 'bootstrap'. "
                f"Received: method={method!r}"
            )
        self._quantile(level)
        draws = self.bootstrap(n, resample, seed)
        tails = [(1 - level) / 2, (1 + level) / 2]
        found[known] = np.quantile(draws[:, known], tails, axis=0).T
        return found

    def bootstrap(
        self, n: int = 1000, resample: str = "rows", seed: int = 0
    ) -> Matrix:
        """Returns estimates from data that are drawn again, with replacement.

        Args:
            n: Integer, the number of draws, each of which takes a fit. Defaults
                to 1000.
            resample: `"rows"`, the default, draws rows. `"residuals"`, for a
                squared error of a Keras model, adds the residuals of other rows
                to the predictions.
            seed: Integer, the seed of the draws. Defaults to `0`.

        Returns:
            An array of shape `(n, size)`.

        Raises:
            ValueError: If the fit has no rows of data, or an argument cannot be
                used.

        Source: Efron, The Annals of Statistics 7 (1979).

        Example:

        ```python
        kormos.fit(model, x, y, optimizer="lm", epochs=100)
        table = kormos.summary(model, x, y)
        print(table.bootstrap(n=5).std(axis=0))
        ```
        """
        return bootstrap(self._fit, n, resample, seed)

    def predict(
        self,
        x: Any,
        level: float | None = None,
        function: Callable[..., Any] | None = None,
    ) -> Prediction:
        """Returns predictions with their standard errors, by the delta method.

        Args:
            x: Inputs, as the model or `function` takes them.
            level: Float, the probability with which a band covers its quantity,
                for each row on its own. Defaults to that of the summary.
            function: Function of `x` that computes predictions from the
                variables, with `keras.ops`. Defaults to the model.

        Returns:
            A `Prediction`, with `mean`, `standard_error`, `confidence` and
            `prediction`.

        Raises:
            ValueError: If an argument cannot be used.

        Example:

        ```python
        kormos.fit(model, x, y, optimizer="lm", epochs=100)
        band = kormos.summary(model, x, y).predict(x[:5])
        print(band.mean, band.standard_error)
        ```
        """
        quantile = self._quantile(self.level if level is None else level)
        return predict(
            self._fit,
            lambda jacobian: errors_of(jacobian, self._estimate),
            self._estimate.noise,
            x,
            quantile,
            function,
        )

    def _quantile(self, level: float) -> float:
        """The width of an interval on each side, in standard errors."""
        check_level(level)
        return float(self.distribution.ppf((1 + level) / 2))

    def to_frame(self) -> pandas.DataFrame:
        """Returns the table of parameters as a pandas `DataFrame`.

        Returns:
            A `DataFrame` with one row per parameter, and the columns
            `estimate`, `standard_error`, `statistic`, `p_value`, `low` and
            `high`.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = pandas_module()
        low, high = self.intervals().T
        return pandas.DataFrame(
            {
                "estimate": self.estimates,
                "standard_error": self.standard_errors,
                "statistic": self.statistics,
                "p_value": self.p_values,
                "low": low,
                "high": high,
            },
            index=pandas.Index(self.names, name="parameter"),
        )

    def __str__(self) -> str:
        return tables.as_text(self)

    def __repr__(self) -> str:
        return (
            f"<Summary of {len(self.names)} parameters, "
            f"{self.observations:g} observations>"
        )

    def _repr_html_(self) -> str:
        return tables.as_html(self)


def check_level(level: Any) -> None:
    """Refuses a level that is not a probability between zero and one."""
    if not isinstance(level, numbers.Real) or not 0 < float(level) < 1:
        raise ValueError(
            "Argument `level` must be a probability between 0 and 1, such as "
            f"0.95. Received: level={level!r}"
        )


def names_of(fit: Fit, names: Sequence[str] | None) -> list[str]:
    """The names of the parameters."""
    size = fit.theta.size
    if names is None:
        return [fit.objective.name_of(i) for i in range(size)]
    names = [str(name) for name in names]
    if len(names) != size or len(set(names)) != size:
        raise ValueError(
            f"Argument `names` must hold {size} different names, one for each "
            f"parameter. Received: {len(names)} names"
        )
    return names
