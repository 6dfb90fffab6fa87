"""The part of the Hessian that the Gauss-Newton matrix leaves out.

The Hessian of the loss is A + S. A is the Gauss-Newton matrix, and S has the
second derivatives of the residuals. Where residuals stay large at the minimum,
steps of A alone converge linearly. The gradients of the points so far tell what
S does along the steps between them, as in NL2SOL (Dennis, Gay and Welsch, ACM
TOMS 7(3), 1981). NL2SOL takes the change of J'r at fixed r for S times a step;
here it is the change of the gradient minus A times the step, which needs no
second J.
"""

from typing import NamedTuple
from typing import Self

import numpy as np

from kormos.solvers.least_squares.local_models import FEW
from kormos.solvers.least_squares.local_models import Linearized
from kormos.solvers.least_squares.spectrum import of_matrix
from kormos.solvers.protocols import LocalModel
from kormos.types import Matrix
from kormos.types import Scalar

# The other model takes over if it was closer to the latest decrease by this
# factor. Our choice, so that the model does not change with every step.
_BETTER = 1.5


class SecantTerm(NamedTuple):
    """What is known of S.

    Attributes:
        matrix: S, `(size, size)`, symmetric; or of shape `(0, 0)` if nothing is
            to become known.
        pairs: the number of steps that it is from.
        is_better: whether decreases were lately predicted better with it than
            without it.
    """

    matrix: Matrix
    pairs: Scalar
    is_better: Scalar

    @classmethod
    def unknown(cls, size: int) -> Self:
        """The term before the first step.

        It stays unknown for more than `FEW` parameters. It would take more
        steps than a run has, and the Hessian of a network is rarely positive.

        Args:
            size: the number of parameters; zero for a method without the term.
        """
        size = size if size <= FEW else 0
        return cls(np.zeros((size, size)), np.int32(0), np.bool_(False))

    def model(self, here: Linearized, evaluation_eps: float) -> LocalModel:
        """The model for a step: that of A + S, where it is better and convex.

        Args:
            here: what is known at the point of the step.
            evaluation_eps: the machine epsilon of the evaluations.
        """
        if not self.is_better:
            return here.model
        hessian = _matrix(here) + self.matrix
        model = of_matrix(hessian, here.model.scale, here.grad, evaluation_eps)
        # A negative eigenvalue counts as zero.
        return model if model.has_full_rank else here.model

    def after(self, before: Linearized, here: Linearized) -> Self:
        """The term after a step: NL2SOL's update.

        Args:
            before: what is known at the point before.
            here: what is known at the point.
        """
        if not self.matrix.size:
            return self
        known, own = _matrix(before), _matrix(here)
        step, change = here.theta - before.theta, here.grad - before.grad
        product = self.matrix @ step
        bend, curvature = float(step @ product), float(change @ step)
        without = float(-(before.grad @ step) - step @ known @ step / 2)
        is_better = self._is_better(before.loss - here.loss, without, bend)
        term = self._replace(is_better=np.bool_(is_better))
        if not curvature > 0:
            return term
        # S shrinks to the size that the step shows, so that it vanishes where
        # the residuals do.
        target, size = change - own @ step, 1.0
        if bend:
            size = min(size, abs(float(step @ target) / bend))
        error, change = target - size * product, change / curvature
        outer = np.outer(error, change)
        matrix = size * self.matrix + outer + outer.T
        matrix -= float(step @ error) * np.outer(change, change)
        if not np.isfinite(matrix).all():
            return type(self).unknown(len(step))
        return term._replace(matrix=matrix, pairs=self.pairs + np.int32(1))

    def _is_better(self, gain: float, without: float, bend: float) -> bool:
        """Whether the term predicts decreases better than A alone does.

        Args:
            gain: the decrease of the loss by a step.
            without: its prediction by A.
            bend: the step times S times the step.
        """
        wrong_with = abs(gain - (without - bend / 2))
        wrong_without = abs(gain - without)
        if self.is_better:
            return wrong_with <= _BETTER * wrong_without
        return self.pairs > 0 and _BETTER * wrong_with < wrong_without


def _matrix(at: Linearized) -> Matrix:
    assert at.matrix is not None  # It is kept if the term becomes known.
    return at.matrix
