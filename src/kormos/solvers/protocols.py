"""The protocols between the parts of the library."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple
from typing import Protocol
from typing import Self

import numpy as np

from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector

if TYPE_CHECKING:
    from kormos.solvers.least_squares.spectrum import Step
    from kormos.solvers.outcome import Outcome
    from kormos.solvers.problem import Problem
    from kormos.solvers.quasi_newton.state import Pair
    from kormos.solvers.solver_state import SolverState


class Point(NamedTuple):
    """Where a solver starts.

    Attributes:
        theta: the point, float64 array of shape `(size,)`.
        loss: the loss there.
        grad: the gradient there, or `None` for a method without gradients.
    """

    theta: Vector
    loss: float
    grad: Vector | None

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the gradient are finite, as far as known."""
        grad = self.grad
        return bool(
            np.isfinite(self.loss) and (grad is None or np.isfinite(grad).all())
        )


class Iterate(NamedTuple):
    """A point that a solver has accepted.

    Attributes:
        theta: the point, float64 array of shape `(size,)`, or `None` for an
            iterate inside a compiled call, whose point is gone.
        loss: the loss there.
        grad: the gradient there or its 2-norm, or `None` for a method without
            gradients.
        state: the state from which a later run can continue. It is valid until
            the observer returns. `None` for a solver that keeps no state.
        logs: numbers of the method for the History, by name.
        is_penalized: whether the method minimizes the loss and a penalty of its
            own, so that an earlier point with a lower loss is no better.
        readings: what the objective has computed there besides, from the same
            pass over the data: float64 array of shape `(readings,)`; `None` if
            it has to be asked for them.
    """

    theta: Vector | None
    loss: float
    grad: Vector | float | None
    state: SolverState | None = None
    logs: Mapping[str, Any] = {}
    is_penalized: bool = False
    readings: Vector | None = None


class Observer(Protocol):
    """Observes a solver, and tells it when to stop."""

    def started(self, point: Point) -> bool:
        """Called once, before the first step; returns whether to stop."""

    def accepted(self, iterate: Iterate) -> bool:
        """Called after each accepted iterate; returns whether to stop."""


class Solver(Protocol):
    """An algorithm. It has no side effects; all results are returned."""

    def __call__(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        """Minimizes a loss from a point.

        Args:
            problem: the loss, its derivatives and its limits.
            theta: the start, float64 array of shape `(size,)`.
            state: the state of an earlier run to continue from, or `None`.
            observer: told of the start and of every accepted iterate.

        Returns:
            An `Outcome`, with the new state in it.
        """


class Objective(Protocol):
    """The protocol of an objective that the user has written.

    It has two optional methods. `hvp(theta, vector)` returns the product of the
    Hessian and a vector, an array of shape `(size,)`; methods such as
    `"newton"` and `"trust-ncg"` need it. `gauss_newton(theta)` returns the
    Gauss-Newton matrix, an array of shape `(size, size)`; `"lm"` and
    `"gauss-newton"` need it.

    Attributes:
        size: Integer, the number of parameters.
    """

    size: int

    def value_and_grad(self, theta: Vector) -> tuple[Scalar, Array]:
        """Computes the loss and its gradient.

        Args:
            theta: float64 array of shape `(size,)`.

        Returns:
            A tuple of the loss, a float, and the gradient, an array of shape
            `(size,)`.
        """


class Tolerances(Protocol):
    """The tolerances of one of kormos' own methods, all relative.

    Attributes:
        gtol: on what a model of the loss predicts.
        ftol: on the decrease of the loss.
        xtol: on the length of a step.
    """

    gtol: float
    ftol: float
    xtol: float


class LeastSquaresSettings(Tolerances, Protocol):
    """The options of Levenberg-Marquardt's method.

    Attributes:
        acceleration: whether half the geodesic acceleration is added to steps.
        preset: `"matlab"` for the rule of MATLAB's `trainlm`, or `None`.
        linear_solver: `"rows"`, `"dense"`, `"cg"` or `"auto"`.
        regularization: `"evidence"` or `"evidence-by-variable"` for a penalty
            whose weights the data choose, or `None`.
    """

    acceleration: bool
    preset: str | None
    linear_solver: str
    regularization: str | None


class Method(Protocol):
    """The state of a method's compiled loop, besides the point.

    Attributes:
        key: a name of the formulas and their options. Two methods of the same
            key share a compiled function and can resume each other's state.
    """

    key: str

    def empty(self, size: int) -> tuple[Structure, Structure]:
        """The store and what is known before the first step.

        Args:
            size: the number of parameters.

        Returns:
            A tuple of NumPy arrays, or of tuples of these, for large arrays;
            and a named tuple of NumPy arrays and scalars.
        """


class Curvature(Method, Protocol):
    """A quasi-Newton method's approximation of the inverse Hessian H.

    The object has the formulas; it holds no numbers of a run. What it knows is
    passed in and returned, so that a compiled function can carry it. It is in
    two parts: a *store* of large arrays, and the rest, *known*. A branch of a
    compiled loop copies every array that it returns. So only `record` and
    `settle`, which are called outside of branches, may return the store.

    An iteration calls `record`, then `update`, then perhaps `clear`, then
    `settle`. Arrays are float64: NumPy's in `empty`, tensors of the backend
    elsewhere. Vectors are `(size,)`. A scalar is a NumPy scalar on an eager
    backend and a tensor of shape `()` in a trace. The structure, shapes and
    dtypes of both parts must not change during a run. Steps and gradients are
    in the units of `State.units`.

    Attributes:
        key: a name of the formulas and their options. Two curvatures of the
            same key share a compiled function and can resume each other's
            state.
        overshoots: whether directions are often too long. If so, the line
            search first tries the part of the direction that would gain as
            much as the step before it.
    """

    key: str
    overshoots: bool

    def empty(self, size: int) -> tuple[Structure, Structure]:
        """The store and what is known before the first pair.

        Args:
            size: the number of parameters.

        Returns:
            Two structures of NumPy arrays and NumPy scalars; the store may be
            of arrays by `backend.spread_zeros` instead. What is known is a
            named tuple, whose names are those of saved states.
        """

    def clear(self, known: Any, scale: Scalar) -> Any:
        """What is known when H is `scale` times the identity.

        Args:
            known: what was known; its values are forgotten.
            scale: scalar, positive.

        Returns:
            What is known. The store may keep its values, if they no longer
            count.
        """

    def record(
        self,
        store: Any,
        known: Any,
        good: Scalar,
        step: Tensor,
        change: Tensor,
    ) -> Any:
        """The store with a pair, if that is good.

        It is called after every evaluation.

        Args:
            store: the store.
            known: what is known before the pair.
            good: bool scalar, whether the pair is to be used. If it is not,
                its entries may be infinite or NaN.
            step: s, the change of the parameters, `(size,)`.
            change: y, the change of the gradient, `(size,)`.

        Returns:
            The store.
        """

    def update(
        self, store: Any, known: Any, pair: Pair, grad: Tensor
    ) -> tuple[Any, Tensor]:
        """What is known after a pair, and the direction at a new point.

        Args:
            store: the store, in which the pair was recorded if it is good.
            known: what is known before the pair.
            pair: the latest step and its change; to be ignored if it is not
                good.
            grad: the gradient at the new point, `(size,)`.

        Returns:
            What is known, and the direction -H grad, `(size,)`. A direction of
            zeros, or one that is not finite, makes the caller `clear`.
        """

    def product(self, store: Any, known: Any, vector: Tensor) -> Tensor:
        """H times a vector `(size,)`, with what waits to be settled."""

    def settle(self, store: Any, known: Any) -> tuple[Any, Any]:
        """Moves pending changes from `known` into the store.

        Returns:
            The store, and what is known.
        """


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
            enough: a decrease above which less than all of it may be told.
        """

    def damped(self, damping: float) -> Step:
        """The step that a damping makes."""

    def within(self, radius: float, guess: float) -> Step:
        """A step whose scaled length is at most about `radius`.

        Args:
            radius: the longest scaled length.
            guess: a damping to search from, that of the step before; or zero.
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
        damping: the damping of the latest step, as it is saved.
        radius: the longest scaled step, as it is saved; zero if the rule has
            no radius.
        is_guess: whether the parameters at the start did not say how long the
            first step may be, and no step was taken yet.
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
        log_weights: the sum of the logarithms of these weights over the mean.
        total: the sum, from first and second derivatives in the outputs; it
            is the loss if the loss is a sum of squares.
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


class Layout(Protocol):
    """Where each variable lies in the flat vector.

    Attributes:
        variables: the variables, in order.
        dtype: the dtype in which they are evaluated, or `None` for their own.
    """

    variables: Any
    dtype: Any

    def split_array(self, theta: Vector) -> list[Array]:
        """The array of each variable in a flat array."""

    def join_arrays(self, parts: list[Array]) -> Vector:
        """The flat array of arrays, one for each variable."""


class CompiledProgram(Protocol):
    """A loss that was compiled.

    Attributes:
        is_verified: whether it was compared with the loss as it was written.
    """

    is_verified: bool

    @property
    def packing(self) -> Layout:
        """The layout of the flat vector."""


class ComparableObjective(Protocol):
    """A compiled loss that can also be evaluated as the user wrote it."""

    @property
    def program(self) -> CompiledProgram:
        """The compiled program."""

    @property
    def evaluation_eps(self) -> float:
        """The spacing of numbers near one in the evaluation's dtype."""

    @property
    def storage_eps(self) -> float:
        """The same for the variables that store the point."""

    def reference(self, theta: Vector) -> tuple[Vector, float]:
        """The point as the variables round it, and the loss as written."""


class ProblemObjective(ComparableObjective, Protocol):
    """The loss of a `Problem`.

    Points and vectors are float64 arrays of shape `(size,)`.
    """

    @property
    def size(self) -> int:
        """The number of parameters."""

    @property
    def is_streamed(self) -> bool:
        """Whether data are read again at every evaluation."""

    @property
    def has_float64(self) -> bool:
        """Whether `in_float64` can be called."""

    @property
    def is_hosted(self) -> bool:
        """Whether the loss cannot be a part of a compiled function."""

    @property
    def readings(self) -> int:
        """How many numbers `traceable` returns besides loss and gradient.

        Solvers hand them on with an iterate; they are metrics of a model, say.
        """

    def name_of(self, index: int) -> str:
        """The name of an entry of the flat vector."""

    def value(self, theta: Vector) -> float:
        """The loss."""

    def value_and_grad(self, theta: Vector) -> tuple[float, Vector]:
        """The loss and its gradient."""

    def hvp(self, theta: Vector, vector: Vector) -> Vector:
        """The Hessian times a vector."""

    def hessian(self, theta: Vector) -> Matrix:
        """The Hessian, `(size, size)`."""

    def gauss_newton(self) -> GaussNewtonMatrix:
        """The Gauss-Newton matrix of the loss."""

    def in_memory(self) -> Self:
        """The same loss; of the first rows alone if data are streamed."""

    def in_float64(self) -> ProblemObjective:
        """The same loss, evaluated in float64."""

    def traceable(
        self,
    ) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Structure, ...]]:
        """Loss and gradient for use inside a compiled function.

        Returns:
            A function `(theta, *arguments) -> (loss, gradient)` of tensors,
            and the arguments. Where there are `readings`, the function returns
            them too, `(readings,)`.
        """

    def traceable_hvp(self) -> Callable[..., Tensor]:
        """A function `(theta, vector, *arguments)`: the Hessian times it."""

    def traceable_gauss_newton(self) -> Callable[..., Tensor]:
        """As `traceable_hvp`, with the Gauss-Newton matrix."""

    def compiled_loop(
        self, key: Hashable, fn: Callable[..., Structure]
    ) -> Callable[..., Structure]:
        """The function `fn(state, *args) -> state`, compiled once for a key."""

    def in_parts(
        self, lower: Vector | None, upper: Vector | None
    ) -> PartsObjective | None:
        """The loss without the kinks of L1 regularizers.

        Args:
            lower, upper: the bounds, `(size,)`, or `None`.

        Returns:
            The loss of weights in two parts, or `None` if no weight has an L1
            regularizer.
        """


class PartsObjective(ProblemObjective, Protocol):
    """A loss of weights in two parts, as `objective/l1.py` has it."""

    def parts_of(self, theta: Vector) -> Vector:
        """The vector of a point."""

    def point_of(self, parts: Vector) -> Vector:
        """The point of a vector."""

    def box_of(
        self, lower: Vector | None, upper: Vector | None
    ) -> tuple[Vector, Vector]:
        """The bounds of the vector, from those of the point."""

    def columns_of(self, jacobian: Matrix) -> Matrix:
        """Derivatives with respect to the vector, from those for the point."""


class BatchedObjective(Protocol):
    """A loss of data that can be divided into batches."""

    def batches(self, rng: np.random.Generator) -> Iterator[ProblemObjective]:
        """The losses of batches of the data, in an order that `rng` draws."""


class OutputTerm(Protocol):
    """A part of a loss that is a function of outputs.

    The outputs are those of a model, or the residuals of a function. They are
    computed for the rows of a chunk of data, and the loss is a sum over the
    rows. Every method is called inside compiled functions, with tensors.

    In the methods' arguments, `parts` is the list of the values of the
    variables to optimize, and `frozen` that of the other variables that the
    loss reads. Each value has the shape of its variable and the dtype in
    which it is evaluated. `term_factors` is a float64 vector of the factors
    by which the terms of the loss are multiplied. `chunk` holds arrays with
    the same number of rows, `n`, as their first dimension.

    Attributes:
        width: the number of outputs of a row, `k`.
        is_diagonal: whether the Hessian of the loss in the outputs of a row
            is diagonal.
        is_convex: whether the loss is known to be convex in the outputs.
        is_residual: whether the outputs are residuals, so that the loss is
            smallest where they are zero.
        has_penalty: whether a part of the loss does not depend on the outputs
            only. `penalty` is called only in this case.
    """

    width: int
    is_diagonal: bool
    is_convex: bool
    is_residual: bool
    has_penalty: bool

    def rows(self, chunk: Structure) -> Structure:
        """The arrays of a chunk that `outputs` needs.

        Args:
            chunk: the chunk.

        Returns:
            Arrays in any structure, of shapes `(n, ...)`, or `None`.
        """
        ...

    def outputs(
        self, parts: list[Tensor], frozen: list[Tensor], rows: Structure
    ) -> Tensor:
        """The outputs of rows.

        Args:
            parts: values of the variables.
            frozen: values of the other variables.
            rows: what `rows` returns, or a single row of that, `n = 1`.

        Returns:
            A tensor of shape `(n, k)`, in the dtype of the model or function.
        """
        ...

    def loss(
        self,
        values: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Structure,
    ) -> Scalar:
        """What a chunk adds to the loss, as a function of its outputs.

        Args:
            values: the outputs, of shape `(n, k)`, in the dtype of the
                outputs or in float64.
            frozen: values of the other variables.
            term_factors: the factors of the terms.
            chunk: the chunk.
        """
        ...

    def penalty(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Structure,
    ) -> Scalar:
        """The other contributions of a chunk to the loss: regularizers.

        Args:
            parts: values of the variables.
            frozen: values of the other variables.
            term_factors: the factors of the terms.
            chunk: the chunk.
        """
        ...
