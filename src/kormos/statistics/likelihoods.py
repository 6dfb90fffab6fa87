"""Which losses are negative log-likelihoods, and in what units.

A loss of kormos is a factor times the sum of the negative log-likelihoods of
all rows, except for a constant. The factor relates the loss's curvature to the
information: with a mean over n rows, the information is n times the curvature.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from kormos.objective.keras_model.links import is_own_class
from kormos.objective.keras_model.objective import Objective
from kormos.statistics.entries import entry_sums
from kormos.types import Array

# The minimized loss must agree to this part with the mean or the sum of the
# negative log-likelihoods. Our choice, which allows for losses in float32.
_SAME = 1e-4


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What a loss says about the probability of the data.

    Attributes:
        name: its name in a table.
        factor: the ratio of the loss to the negative log-likelihood of the
            data, without constants. For a sum of squares: the factor of the
            squared residuals whose weight is one, or `None` for a mean weight
            of one. `None` for a loss that is not a likelihood.
        is_gaussian: whether it is a sum of squares, whose variance is
            estimated unless it is known.
        is_expected: whether the Gauss-Newton matrix is the expected
            information.
        observations: the number of observations, or `None` for a sum of
            squares, in which every residual with a weight is an observation.
        constant: the constant to add to the log-likelihood of the data.
    """

    name: str
    factor: float | None
    is_gaussian: bool = False
    is_expected: bool = True
    observations: float | None = None
    constant: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether the loss is a likelihood."""
        return self.is_gaussian or self.factor is not None


def of_squares(factor: float | None) -> Likelihood:
    """The `Likelihood` of a sum of squares.

    Args:
        factor: see `Likelihood`.
    """
    return Likelihood("Gaussian", factor, is_gaussian=True)


def of_quasi(name: str, observations: float | None = None) -> Likelihood:
    """The `Likelihood` of a loss that is not a likelihood.

    Args:
        name: the name of the loss.
        observations: see `Likelihood`.
    """
    return Likelihood(name, None, is_expected=False, observations=observations)


def of_model(objective: Objective, is_stated: bool) -> Likelihood:
    """The `Likelihood` of the loss of a Keras model.

    Args:
        objective: the objective.
        is_stated: whether the user states that the loss is the mean or the sum
            of negative log-likelihoods of rows.
    """
    if is_stated:
        return _stated(objective)
    terms = objective.program.model_loss.terms
    factors = objective.arguments.term_factors[:-1]
    shapes = objective.program.model_loss.outputs.shapes
    # A row's loss is a mean over the last axis, except for the classes.
    found = [
        (_distribution(loss), shape)
        for losses, shape in zip(
            terms.by_output, shapes, strict=bool(terms.by_output)
        )
        for loss in losses
    ]
    names = {name for name, _ in found}
    label = " + ".join(dict.fromkeys(terms.names)) or str(terms.own_name)
    if len(found) != len(factors) or None in names or not names:
        return of_quasi(label, float(objective.rows))
    widths = [_averaged(name, shape) for name, shape in found]
    scales = [f / width for f, width in zip(factors, widths, strict=True)]
    is_equal = np.allclose(scales, scales[0], rtol=1e-12)
    if names == {"Gaussian"}:
        return of_squares(scales[0] if is_equal else None)
    if "Gaussian" in names or not is_equal:
        return of_quasi(label, float(objective.rows))
    weights, constants = entry_sums(
        objective, [name == "Poisson" for name, _ in found]
    )
    return Likelihood(
        " + ".join(sorted(map(str, names))),
        float(scales[0]),
        is_expected=objective.gauss_newton().is_convex,
        observations=float(np.dot(weights, widths)),
        constant=-sum(constants),
    )


def _averaged(name: str | None, shape: tuple[int, ...]) -> int:
    """The number of entries of an output over which a row's loss is a mean."""
    return 1 if name == "categorical" or not shape else shape[-1]


def _stated(objective: Objective) -> Likelihood:
    """The `Likelihood` of a loss that is one according to the user."""
    factors = objective.arguments.term_factors
    if len(factors) > 2:
        raise ValueError(
            "With `loss='nll'`, the loss must be one function of all "
            "outputs: use a model with one loss. Received: "
            f"{len(factors) - 1} losses"
        )
    weights, _ = entry_sums(objective, [False])
    # The last factor is one over the number of rows.
    return Likelihood(
        "as stated",
        float(factors[0]),
        is_expected=False,
        observations=float(
            objective.rows if np.isnan(weights[0]) else weights[0]
        ),
    )


def of_rows(
    loss: float, rows: Array | None, observations: int | None, reduction: str
) -> Likelihood:
    """The `Likelihood` of a loss that a function computes from variables.

    Args:
        loss: the loss at the estimate.
        rows: the negative log-likelihood of every row there, or `None`.
        observations: the number of rows, or `None` for that of `rows`.
        reduction: `"mean"` or `"sum"`, if `rows` is not given.

    Raises:
        ValueError: if the loss is neither the mean nor the sum of the rows.
    """
    if rows is None:
        if observations is None:
            raise ValueError(
                "Standard errors depend on the number of rows over which the "
                "loss is a mean or a sum: pass `observations`, or `losses`, "
                "a function of no arguments that returns the negative "
                "log-likelihood of every row. Received: neither"
            )
        factor = 1.0 if reduction == "sum" else 1.0 / observations
        return Likelihood("as stated", factor, False, False, observations)
    count = len(rows) if observations is None else observations
    total = float(np.sum(rows))
    factors = 1.0, 1.0 / len(rows), 1.0 / count
    for factor in factors:
        if np.isclose(loss, factor * total, rtol=_SAME, atol=0):
            return Likelihood("as stated", factor, False, False, count)
    raise ValueError(
        "Argument `losses` must be a function whose values have the minimized "
        "loss as their mean or their sum. "
        f"Received: a loss of {loss:.6g}, and {len(rows)} values with mean "
        f"{total / len(rows):.6g}"
    )


# For each loss function, the distribution whose log-likelihood it is.
_DISTRIBUTIONS: dict[Callable[..., object], str] = {
    keras.losses.mean_squared_error: "Gaussian",
    keras.losses.binary_crossentropy: "Bernoulli",
    keras.losses.categorical_crossentropy: "categorical",
    keras.losses.sparse_categorical_crossentropy: "categorical",
    keras.losses.poisson: "Poisson",
}


def _distribution(loss: keras.losses.Loss) -> str | None:
    """The distribution whose log-likelihood a Keras loss is, or `None`."""
    if not is_own_class(loss):
        return None
    # `get_config` of some losses imports TensorFlow, which takes seconds.
    if getattr(loss, "label_smoothing", 0) or getattr(loss, "axis", -1) != -1:
        return None
    return _DISTRIBUTIONS.get(getattr(loss, "fn", loss.call))
