"""The problem that a solver receives: the loss of a flat vector, and limits."""

import copy
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import Self
from typing import TypeVar
from typing import cast

import numpy as np

from kormos.arithmetic.vectors import NARROW
from kormos.backend.common import as_tensor
from kormos.solvers.budget import UNLIMITED
from kormos.solvers.budget import Budget
from kormos.solvers.protocols import BatchedObjective
from kormos.solvers.protocols import ProblemObjective
from kormos.solvers.rejections import Raised
from kormos.solvers.rejections import SafeGaussNewton
from kormos.solvers.rejections import is_rejection
from kormos.solvers.verification import verify
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Tensor
from kormos.types import Vector

# What a `HostGaussNewton` computes from the Jacobian of the outputs.
_JACOBIANS = ("rows", "normal_equations")

# A violation of a constraint by this many roundings is none. Our choice: sums
# of a few dozen terms are rounded by less.
_ROUNDINGS = 64

_Result = TypeVar("_Result")


class Problem:
    """A loss over a box, with constraints, that counts its evaluations.

    Where an evaluation raises an exception, the loss and derivatives are NaN,
    if the same function has returned before. `raised` remembers the exception.

    Args:
        objective: the loss and its derivatives, as functions of float64
            arrays of shape `(size,)`.
        lower: lower bounds of shape `(size,)`, or `None` for no bounds.
        upper: upper bounds of shape `(size,)`, or `None`.
        constraints: list of `Constraint`s.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
        storage_eps: the machine epsilon of the dtype of the variables. Defaults
            to `evaluation_eps`.
        budget: a `Budget`.
        stride: after this many iterations a run is looked at again, if its
            method can make several in one compiled call.
        on_evaluation: function of the loss, called after each evaluation.
        raised: the `Raised` of the fit, if the run is one of several.

    Attributes:
        objective: the loss, for uses that are not counted and do not raise:
            functions for compiled loops, and names of parameters.
        fg_evals: evaluations of the loss so far, with or without its gradient.
        hessp_evals: Hessian products so far, and second derivatives along a
            step.
        jacobians: Jacobians so far, or matrices computed from them.
    """

    def __init__(
        self,
        objective: ProblemObjective,
        lower: Vector | None = None,
        upper: Vector | None = None,
        constraints: Sequence["Constraint"] = (),
        evaluation_eps: float = 2.0**-52,
        storage_eps: float | None = None,
        budget: Budget = UNLIMITED,
        stride: int = 1,
        on_evaluation: Callable[[float], object] | None = None,
        raised: Raised | None = None,
    ):
        self.objective = objective
        self.size = objective.size
        self.lower = lower
        self.upper = upper
        self.is_bounded = lower is not None
        self.constraints = [self._safe(c) for c in constraints]
        self.evaluation_eps = evaluation_eps
        self.storage_eps = (
            evaluation_eps if storage_eps is None else storage_eps
        )
        self.budget = budget
        self.stride = stride
        self.on_evaluation = on_evaluation
        self.fg_evals = 0
        self.hessp_evals = 0
        self.jacobians = 0
        self.raised = Raised() if raised is None else raised
        # The functions that have returned before.
        self._worked: set[Hashable] = set()

    @property
    def box(self) -> tuple[Vector, Vector]:
        """The lower and upper bounds of a problem that is bounded."""
        assert self.lower is not None and self.upper is not None
        return self.lower, self.upper

    @property
    def has_inequalities(self) -> bool:
        return any(c.type == "ineq" for c in self.constraints)

    def project(self, theta: Vector) -> Vector:
        """The nearest point of the box."""
        if not self.is_bounded:
            return theta
        return np.clip(theta, self.lower, self.upper)

    def pull(self, theta: Vector, grad: Vector) -> Vector:
        """The gradient without entries that press parameters against bounds."""
        return np.where(self.held(theta, grad), 0.0, grad)

    def held(self, theta: Vector, grad: Vector) -> Array:
        """A mask of the parameters that the gradient presses against bounds."""
        if not self.is_bounded:
            return np.zeros(theta.shape, bool)
        lower, upper = self.box
        held = (theta <= lower) & (grad >= 0)
        return held | ((theta >= upper) & (grad <= 0))

    @property
    def feasibility(self) -> float:
        """The largest violation of a constraint that counts as rounding."""
        # SciPy's own tolerance, except for losses that are not in float64.
        return max(2.0**-26, _ROUNDINGS * self.evaluation_eps)

    def is_feasible(self, theta: Vector) -> bool:
        """Whether the constraints hold at a point, except for rounding."""
        return all(self._holds(c, theta) for c in self.constraints)

    def _holds(self, constraint: "Constraint", theta: Vector) -> bool:
        worst = constraint.violation(theta)
        doubtful = ~(worst <= self.feasibility)
        if not doubtful.any():
            return True
        # A value is rounded as coarsely as the terms that it is a sum of.
        terms = np.abs(constraint.jac(theta)[doubtful]) @ np.abs(theta)
        rounding = _ROUNDINGS * self.evaluation_eps * terms
        return bool((worst[doubtful] <= rounding).all())

    def value(self, theta: Vector) -> float:
        return self._counted(self.peek(theta))

    def value_and_grad(self, theta: Vector) -> tuple[float, Vector]:
        loss, grad = self.evaluate(theta)
        return self._counted(loss), grad

    def peek(self, theta: Vector) -> float:
        """Like `value`, for callers that count evaluations themselves."""
        return self.tried("value", self.objective.value, _nan, theta)

    def evaluate(self, theta: Vector) -> tuple[float, Vector]:
        """Like `value_and_grad`, for callers that count themselves."""
        return self.tried(
            "value_and_grad",
            self.objective.value_and_grad,
            lambda: (np.nan, self._nans()),
            theta,
        )

    @property
    def gradient_dtype(self) -> str:
        """The dtype that holds all digits of a gradient."""
        return "float64" if self.evaluation_eps < NARROW else "float32"

    @property
    def is_verified(self) -> bool:
        """Whether the compiled loss was compared with the one as written."""
        program = getattr(self.objective, "program", None)
        return program is None or program.is_verified

    def verify(
        self,
        evaluate: Callable[[Self, Vector], Any],
        theta: Vector,
        known: float | None = None,
    ) -> None:
        """Refuses a compiled loss that differs from the loss as written.

        Args:
            evaluate: function `(problem, theta)` that returns the loss as the
                method evaluates it, with or without its gradient. The problem
                is this one, or that of the first rows of a stream.
            theta: the start.
            known: the loss of this problem there, or `None` to compute it.
        """
        if self.is_verified:
            return
        part = copy.copy(self)
        part.objective = self.objective.in_memory()
        verify(
            part.objective,
            lambda point: evaluate(part, point),
            theta,
            self.project,
            None if self.objective.is_streamed else known,
        )
        # What is refused once is refused again.
        self.objective.program.is_verified = True

    def hvp(self, theta: Vector, vector: Vector) -> Vector:
        self.hessp_evals += 1
        hvp = self.objective.hvp
        return self.tried("hvp", hvp, self._nans, theta, vector)

    def hessian(self, theta: Vector) -> Matrix:
        self.hessp_evals += self.size
        return self.tried(
            "hvp",
            self.objective.hessian,
            lambda: np.full((self.size, self.size), np.nan),
            theta,
        )

    def gauss_newton(self) -> SafeGaussNewton:
        """The Gauss-Newton matrix of the loss: a `SafeGaussNewton`."""
        matrix = self.objective.gauss_newton()

        def tried(name: str, *args: Any) -> Any:
            self.jacobians += name in _JACOBIANS
            return self.tried(name, *args)

        return SafeGaussNewton(matrix, tried, self.size)

    def batches(self, rng: np.random.Generator) -> Iterator[Self]:
        """Problems of batches of the data, in an order that `rng` draws.

        Each continues the counts of the one before.
        """
        objective = cast(BatchedObjective, self.objective)
        for batch in objective.batches(rng):
            part = copy.copy(self)
            part.objective = batch
            yield part
            self.fg_evals, self.hessp_evals = part.fg_evals, part.hessp_evals
            self.jacobians = part.jacobians

    def tried(
        self,
        name: Hashable,
        fn: Callable[..., _Result],
        instead: Callable[[], _Result],
        *args: Any,
    ) -> _Result:
        """`fn(*args)`, or `instead()` where that raises.

        Args:
            name: a name for the function. Until it has returned once, every
                exception is raised, except a failure of the numerics.
            fn: the function.
            instead: function of no arguments.
            *args: the arguments of `fn`.
        """
        try:
            result = fn(*args)
        except Exception as error:
            if not is_rejection(error, name in self._worked):
                raise
            self.raised.note(error, self.fg_evals + 1)
            return instead()
        # All of these functions evaluate the loss, so that has worked too.
        self._worked |= {name, "value", "value_and_grad"}
        return result

    def tried_tensors(
        self,
        value_and_grad: Callable[..., tuple[Tensor, ...]],
        theta: Tensor,
        *args: Any,
    ) -> tuple[Tensor, ...]:
        """What `traceable` returns at a tensor; NaN where that raises."""

        def instead() -> tuple[Tensor, ...]:
            nan = theta * np.nan
            if not self.objective.readings:
                return nan[0], nan
            readings = np.full(self.objective.readings, np.nan)
            return nan[0], nan, as_tensor(readings)

        return self.tried(
            "value_and_grad", value_and_grad, instead, theta, *args
        )

    def tried_hvp(
        self,
        hvp: Callable[..., Tensor],
        theta: Tensor,
        vector: Tensor,
        *args: Any,
    ) -> Tensor:
        """The Hessian times a vector, which is NaN where that raises."""
        return self.tried(
            "hvp", hvp, lambda: theta * np.nan, theta, vector, *args
        )

    def spent(self) -> str | None:
        """The limit that is reached, as a status, or `None`."""
        return self.budget.spent(self.fg_evals)

    def affords(self, evaluations: int) -> bool:
        """Whether a number of further evaluations is within the limit."""
        most = self.budget.evaluations
        return most is None or self.fg_evals + evaluations <= most

    def _counted(self, loss: float) -> float:
        self.fg_evals += 1
        if self.on_evaluation is not None:
            self.on_evaluation(loss)
        return loss

    def _nans(self) -> Vector:
        return np.full(self.size, np.nan)

    def _safe(self, constraint: "Constraint") -> "Constraint":
        """A constraint that is NaN where it raises."""
        return constraint._replace(
            fun=self._safe_array(constraint.fun),
            jac=self._safe_array(constraint.jac),
        )

    def _safe_array(
        self, fn: Callable[[Vector], Array]
    ) -> Callable[[Vector], Array]:
        shape: tuple[int, ...] | None = None

        def call(theta: Vector) -> Array:
            nonlocal shape
            if shape is None:
                result = fn(theta)
                shape = result.shape
                self._worked.add(fn)
                return result
            return self.tried(fn, fn, lambda: np.full(shape, np.nan), theta)

        return call


def _nan() -> float:
    return np.nan


class Constraint(NamedTuple):
    """A constraint on the flat vector.

    Attributes:
        type: `"eq"` for `fun(theta) = 0`, `"ineq"` for `fun(theta) >= 0`.
        fun: function from a vector to an array of shape `(m,)`.
        jac: function from a vector to an array of shape `(m, size)`.
        refresh: function that reads other variables again, and returns whether
            they have changed.
    """

    type: str
    fun: Callable[[Vector], Vector]
    jac: Callable[[Vector], Matrix]
    refresh: Callable[[], bool] = bool

    def violation(self, theta: Vector) -> Vector:
        """The violation of each value at a point, `(m,)`; may be NaN."""
        values = self.fun(theta)
        return np.abs(values) if self.type == "eq" else np.maximum(-values, 0.0)


def violation(constraints: Sequence[Constraint], theta: Vector) -> float:
    """The largest violation of a constraint at a point, which may be NaN."""
    worst = 0.0
    for constraint in constraints:
        worst = np.maximum(worst, constraint.violation(theta).max(initial=0.0))
    return float(worst)
