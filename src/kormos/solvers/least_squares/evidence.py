"""The evidence: how many parameters the data determine, and the weight decay.

References: D. J. C. MacKay, Bayesian interpolation, Neural Computation 4, 415
(1992), for the evidence; F. D. Foresee and M. T. Hagan, Gauss-Newton
approximation to Bayesian learning, ICNN 1997, for its use within
Levenberg-Marquardt's method. MATLAB's `trainbr` has the same units:

    F = beta E_D + sum_g alpha_g E_g,

with the sum of squared errors E_D and the sum E_g of the squares of the
parameters of a group. An error has the variance 1 / (2 beta); a parameter has
the prior variance 1 / (2 alpha_g).
"""

from typing import NamedTuple

import numpy as np

from kormos.solvers.least_squares import spectrum
from kormos.solvers.protocols import Squares
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# The penalty of a parameter is at least this part of the largest curvature of
# the loss, and at most the inverse of this part: beyond these, rounding hides
# one of the two. Data without noise lead there, and so does a group that the
# data do not need.
_LEAST_PENALTY = 2.0**-52
_TINY = float(np.finfo("float64").tiny)
# The first penalty has this part of the largest curvature of the loss, and a
# new estimate raises it by no more than this factor. Our choice: at the start,
# the estimate takes everything that is not fitted yet for noise. It would raise
# the penalty until all parameters are zero, which is a stationary point too.
_FIRST_PENALTY, _GROWTH = 1e-6, 2.0


class Hyperparameters(NamedTuple):
    """The weights of the errors and of the parameters.

    Attributes:
        alpha: the weight of each group of parameters, `(groups,)`.
        beta: the weight of the sum of squared errors.
    """

    alpha: Vector
    beta: float

    def change(self, other: "Hyperparameters") -> float:
        """The largest relative difference from other hyperparameters."""
        ratios = np.append(self.alpha / other.alpha, self.beta / other.beta)
        return float(np.abs(np.log(ratios)).max())

    def limited(self, before: "Hyperparameters") -> "Hyperparameters":
        """The same, with a limit on how fast the penalty grows."""
        most = _GROWTH * before.alpha / before.beta
        return self._replace(alpha=np.minimum(self.alpha, self.beta * most))


class Evidence(NamedTuple):
    """The evidence at a point, for given hyperparameters.

    Attributes:
        effective: the number of parameters of each group that the data
            determine, `(groups,)`; not necessarily an integer.
        log_evidence: the logarithm of the probability density of the data, by
            Laplace's method: exact for a model that is linear in its
            parameters.
    """

    effective: Vector
    log_evidence: float


class EvidenceModel:
    """The evidence of a loss that is a sum of squares.

    Args:
        squares: what is known of the sum.
        groups: the number of each parameter's group, integers `(size,)`.

    Attributes:
        unit: the loss divided by E_D.
    """

    def __init__(self, squares: Squares, groups: Array):
        self._count = squares.errors
        self.unit = squares.weight
        self._log_weights = squares.log_weights
        self._groups = groups
        self._sizes = np.bincount(groups).astype("float64")

    def penalties(self, at: Hyperparameters) -> Vector:
        """The weight in the loss of each parameter's square, `(size,)`."""
        return self.unit * at.alpha[self._groups] / at.beta

    def begin(
        self, theta: Vector, loss: float, largest: float
    ) -> Hyperparameters:
        """The first hyperparameters, with a penalty that is almost zero.

        Args:
            theta: the start.
            loss: the loss there.
            largest: the largest curvature of the loss in a parameter there.
        """
        # The mean square of the errors is an upper bound on their variance.
        beta = self._count / (2 * max(loss / self.unit, _TINY))
        penalty = np.full(self._sizes.shape, _FIRST_PENALTY * largest / 2)
        return Hyperparameters(beta * penalty / self.unit, beta)

    def estimate(
        self, theta: Vector, loss: float, evidence: Evidence, largest: float
    ) -> Hyperparameters:
        """MacKay's new estimate, at which the evidence is stationary.

        Args:
            theta: the point.
            loss: the loss there.
            evidence: the evidence for the previous estimate.
            largest: see `begin`.
        """
        effective = np.maximum(evidence.effective, _LEAST_PENALTY)
        left = self._count - float(effective.sum())
        left = max(left, _LEAST_PENALTY * self._count)
        return self._bounded(theta, loss, effective, left, largest)

    def measure(
        self,
        theta: Vector,
        loss: float,
        matrix: Matrix,
        has_rows: bool,
        at: Hyperparameters,
    ) -> Evidence:
        """The evidence at a point.

        Args:
            theta: the point.
            loss: the loss there.
            matrix: the Gauss-Newton matrix A of the loss, or R with R'R = A.
            has_rows: whether it is R.
            at: the `Hyperparameters`.
        """
        values, vectors = _relative(matrix, self.penalties(at), has_rows)
        shares = vectors**2 @ (values / (1 + values))
        effective = self._grouped(shares)
        energy = at.beta * loss / self.unit + at.alpha @ self._sums(theta)
        likelihood = self._count * np.log(at.beta / np.pi) + self._log_weights
        occam = np.log1p(values).sum()
        return Evidence(effective, float((likelihood - occam) / 2 - energy))

    def _grouped(self, of_parameters: Vector) -> Vector:
        """Sums numbers of the parameters over each group, `(groups,)`."""
        sums = np.bincount(self._groups, weights=of_parameters)
        return sums.astype("float64")

    def _sums(self, theta: Vector) -> Vector:
        return self._grouped(theta**2)

    def _bounded(
        self,
        theta: Vector,
        loss: float,
        effective: Vector,
        left: float,
        largest: float,
    ) -> Hyperparameters:
        """`gamma / (2 E_g)` and `(n - gamma) / (2 E_D)`, within their limits.

        Args:
            theta: the point.
            loss: the loss there.
            effective: gamma of each group.
            left: n - gamma.
            largest: see `begin`.
        """
        unit = self.unit
        # An exact fit has no noise: beta then is such that the penalty is the
        # smallest that is allowed.
        beta = left / (2 * max(loss / unit, _TINY))
        sums = np.maximum(self._sums(theta), _TINY)
        penalty = np.clip(
            unit * effective / (2 * sums) / beta,
            _LEAST_PENALTY * largest / 2,
            largest / _LEAST_PENALTY / 2,
        )
        return Hyperparameters(beta * penalty / unit, beta)


def _relative(
    matrix: Matrix, penalties: Vector, has_rows: bool
) -> tuple[Vector, Matrix]:
    """Eigenvalues and eigenvectors of A relative to the penalty's curvature.

    Args:
        matrix: A, `(size, size)` of which the upper triangle is right, or R.
        penalties: the weights of the parameters' squares, `(size,)`.
        has_rows: whether the matrix is R.

    Returns:
        Values `(rank,)`, zero or more, and vectors `(size, rank)`.
    """
    roots = np.sqrt(2 * penalties)
    scaled = matrix / roots
    if has_rows:
        count, size = matrix.shape
        if spectrum.is_small(count, size) or count < size:
            _, values, rows = np.linalg.svd(scaled, full_matrices=False)
            return values**2, rows.T
        scaled = scaled.T @ scaled
    else:
        scaled = scaled / roots[:, None]
    values, vectors = np.linalg.eigh(scaled, "U")
    return np.maximum(values, 0.0), vectors
