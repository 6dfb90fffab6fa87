"""Models of a sum of squares, and their matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import NamedTuple
from typing import Protocol

from kormos.types import Matrix
from kormos.types import Vector

if TYPE_CHECKING:
    from kormos.solvers.least_squares.spectrum import Step


class LocalModel(Protocol):
    """A quadratic model of the loss at a point: F + g'p + p'Ap / 2.

    Steps are measured in the norm of the scale D, in which a *damping* l makes
    the step -(A + l D^2)^-1 g.

    Attributes:
        scale: D, float64 array of shape `(size,)`, positive; infinite for
            parameters that are held fixed.
        name: the linear algebra behind it, for the result's `detail`.
    """

    scale: Vector
    name: str

    @property
    def has_full_rank(self) -> bool:
        """Whether A is known to be regular in the parameters that are free."""

    def promise(self, enough: float) -> float | None:
        """The decrease that the undamped step predicts; `None` if unknown.

        Args:
            enough: if the decrease is above this, a smaller number above it may
                be returned.
        """

    def flat(self, vector: Vector) -> Vector | None:
        """The part of a vector along which A is zero, or `None` if unknown.

        Args:
            vector: the vector, in scaled parameters, `(size,)`.
        """

    def damped(self, damping: float) -> Step:
        """The step that a damping makes."""

    def within(self, radius: float, guess: float) -> Step:
        """A step whose scaled length is at most about `radius`.

        Args:
            radius: the longest scaled length.
            guess: a damping to search from: that of the step before, or zero.
        """

    def scaled(self, step: Vector) -> float:
        """The 2-norm of D times a step `(size,)`, without fixed parameters."""

    def bend(self, slope: Vector, damping: float) -> Vector:
        """-(A + l D^2)^-1 times a vector `(size,)`, for the acceleration.

        Raises:
            NotImplementedError: by a model that has no matrix.
        """


class Damping(Protocol):
    """How far damped Gauss-Newton steps go, from one step to the next.

    Attributes:
        damping: the damping of the latest step, for the saved state.
        radius: the longest scaled step, for the saved state; zero if the rule
            has no radius.
        is_guess: whether the radius is still a guess: no step was taken yet,
            and the parameters at the start do not tell how long it may be.
    """

    damping: float
    radius: float
    is_guess: bool

    def begin(self, model: LocalModel, theta: Vector, loss: float) -> None:
        """Called once, at the start.

        Args:
            model: the model there.
            theta: the start, float64 array of shape `(size,)`.
            loss: the loss there.
        """

    def step(self, model: LocalModel) -> Step:
        """The step to try next."""

    def shorten(self, step: Step) -> None:
        """Called when the outputs bend too much along a step.

        The step was not tried.
        """

    def reject(self, step: Step, is_wild: bool) -> None:
        """Called when a step did not lower the loss.

        Args:
            step: the step.
            is_wild: whether the next one is to be much shorter.
        """

    def accept(self, step: Step, ratio: float) -> None:
        """Called when a step was taken.

        Args:
            step: the step.
            ratio: the decrease of the loss over the predicted one.
        """

    @property
    def is_exhausted(self) -> bool:
        """Whether steps have become too short to continue."""

    def logs(self) -> dict[str, float]:
        """Numbers for the History."""


class Squares(NamedTuple):
    """The quantities of a loss that may be a sum of squares, `sum u_i e_i^2`.

    Attributes:
        errors: the number of errors e with a weight u above zero.
        weight: the mean of these weights.
        log_weights: the sum of the logarithms of these weights divided by their
            mean.
        total: the sum, computed from first and second derivatives in the
            outputs; it equals the loss if that is a sum of squares.
        loss: the loss.
    """

    errors: int
    weight: float
    log_weights: float
    total: float
    loss: float


class GaussNewtonMatrix(Protocol):
    """The Gauss-Newton matrix A = J'HJ of a loss of outputs.

    J has the derivatives of the outputs, H those of the loss by the outputs.
    Arrays are NumPy's, in float64.
    """

    @property
    def can_bend(self) -> bool:
        """Whether `bend` can be called."""

    @property
    def outputs(self) -> int:
        """The number of outputs of all rows of data."""

    @property
    def has_penalty(self) -> bool:
        """Whether a part of the loss depends on more than the outputs."""

    def normal_equations(
        self, theta: Vector, keep: bool = False
    ) -> tuple[float, Vector, Matrix]:
        """Loss, gradient `(size,)` and A, of which the upper triangle counts.

        Args:
            theta: the point, `(size,)`.
            keep: whether to keep J for `bend`, where it is small.
        """

    def rows(
        self, theta: Vector, keep: bool = False
    ) -> tuple[float, Vector, Matrix]:
        """Loss, gradient, and R of shape `(rows, size)`, with R'R = A."""

    def squares(self, theta: Vector) -> Squares | None:
        """The loss as a sum of squares; `None` if it cannot be one."""

    def product(self, theta: Vector, vector: Vector) -> Vector:
        """A times a vector, both `(size,)`."""

    def bend(self, theta: Vector, vector: Vector) -> Vector:
        """J'H times the second derivative of the outputs along a vector."""

    def bend_of_rows(self, theta: Vector, vector: Vector) -> Vector | None:
        """The vector w, `(rows,)`, for which `bend` is R'w with R of `rows`.

        `None` if the latest call of `rows` was not at this point.
        """
