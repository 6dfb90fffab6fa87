"""A loss of a flat vector that the user has written."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import scipy.optimize

from kormos import backend
from kormos.arithmetic.vectors import to_array
from kormos.objective.arguments import ProgramArguments
from kormos.objective.base import FlatObjective
from kormos.objective.bounds import VectorConstraint
from kormos.solvers.protocols import Objective
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector


class GivenObjective(FlatObjective):
    """An objective that the user has written, in the form that a session needs.

    It is evaluated in Python, outside of compiled functions.

    Args:
        objective: an `Objective`.
        theta: the start, `(size,)`.

    Raises:
        ValueError: if the objective or the start cannot be used.
    """

    has_float64 = False
    has_own_derivatives = True

    def __init__(self, objective: Objective, theta: Any):
        size = getattr(objective, "size", None)
        value_and_grad = getattr(objective, "value_and_grad", None)
        if not (isinstance(size, (int, np.integer)) and size > 0):
            raise ValueError(
                "An objective must have an attribute `size`, its number of "
                f"parameters. Received: size={size!r} of {objective!r}"
            )
        if not callable(value_and_grad):
            raise ValueError(
                "An objective must have a method `value_and_grad(theta)` "
                "that returns the loss and its gradient. Received: "
                f"{objective!r}"
            )
        start = np.array(theta, "float64")
        if start.shape != (size,):
            raise ValueError(
                f"Argument `theta` must be a vector of the {size} parameters "
                f"of the objective. Received: shape {start.shape}"
            )
        self._objective = objective
        self._compiled: FlatObjective | None = None
        if isinstance(objective, FlatObjective):
            self._compiled = objective
        # The user's function has its own data.
        self.arguments = ProgramArguments([], chunks=None)
        self._loops: dict[Any, Any] = {}
        # A point, and the loss and gradient there: Gauss-Newton steps ask for
        # them twice.
        self._latest: tuple[Vector, float, Vector] | None = None
        self.unused_variables: list[Any] = []
        own = getattr(objective, "evaluation_eps", 2.0**-52)
        evaluation_eps = float(getattr(objective, "epsilon", own))
        self.program: Any = types.SimpleNamespace(
            packing=_Layout(start, evaluation_eps),
            frozen_variables=(),
            frozen_values=list,
            # Another loss has no other form to compare it with.
            is_verified=self._compiled is None,
        )
        self.refresh()

    @property
    def evaluation_eps(self) -> float:
        """The machine epsilon of the user's arithmetic."""
        return self.storage_eps

    def value(self, theta: npt.ArrayLike) -> float:
        """The loss."""
        return self.value_and_grad(theta)[0]

    def note(self) -> None:
        """Nothing but the run itself changes the point."""

    def followed(self, theta: Vector) -> Vector | None:
        """`None`: callbacks cannot assign the point, nor change the loss."""
        del theta
        return None

    def reference(self, theta: Vector) -> tuple[Vector, float]:
        """The point, and the loss in the form in which it was written."""
        if self._compiled is not None:
            return self._compiled.in_memory().reference(theta)
        return theta, self.value(theta)

    def value_and_grad(self, theta: npt.ArrayLike) -> tuple[float, Vector]:
        """The loss and its gradient."""
        if self._latest is not None and np.array_equal(self._latest[0], theta):
            _, loss, grad = self._latest
            return loss, grad.copy()
        # The user's function gets a copy, because it may change its argument.
        loss, grad = self._objective.value_and_grad(np.array(theta))
        grad = to_array(grad)
        if grad.shape != (self.size,):
            raise ValueError(
                "`value_and_grad` of an objective must return a gradient of "
                f"shape {(self.size,)}. Received: shape {grad.shape}"
            )
        self._latest = np.array(theta), float(loss), grad.copy()
        return float(loss), grad

    def hvp(self, theta: npt.ArrayLike, vector: npt.ArrayLike) -> Vector:
        """The Hessian times a vector."""
        product = self._own_hvp()(np.array(theta), np.array(vector))
        return to_array(product)

    def gauss_newton(self) -> _GivenMatrix:
        """The Gauss-Newton matrix of the loss.

        Raises:
            ValueError: if the objective has none.
        """
        return _GivenMatrix(
            self, self._own("gauss_newton(theta)", "the Gauss-Newton matrix")
        )

    def compiled_loop(self, key: Any, fn: Callable[..., Any]) -> Any:
        """`fn(state, *args) -> state`, compiled once for a key."""
        if key not in self._loops:
            self._loops[key] = backend.compile_loop(fn)
        return self._loops[key]

    def check_hessian(self) -> None:
        """Refuses a method with Hessian products where there are none."""
        self._own_hvp()

    def _own_hvp(self) -> Callable[..., Any]:
        return self._own("hvp(theta, vector)", "the Hessian times a vector")

    def _own(self, method: str, about: str) -> Callable[..., Any]:
        """A method of the user's objective.

        Args:
            method: its name, with its arguments.
            about: what it returns.
        """
        found = getattr(self._objective, method.partition("(")[0], None)
        if not callable(found):
            raise ValueError(
                f"This method needs `{method}` of the objective, {about}: add "
                "it, or use a method such as 'lbfgs'. "
                f"Received: {self._objective!r}"
            )
        return found


class _GivenMatrix:
    """The Gauss-Newton matrix of the user's objective.

    Args:
        objective: the objective.
        matrix: the user's function from a point to the matrix.
    """

    has_penalty = False
    # The matrix contains no second derivatives of the outputs.
    can_bend = False

    def __init__(
        self, objective: GivenObjective, matrix: Callable[[Vector], Any]
    ):
        self._objective = objective
        self._matrix = matrix
        self._latest: tuple[Vector, Matrix] | None = None

    @property
    def outputs(self) -> int:
        return self._objective.size

    def normal_equations(
        self, theta: Vector, keep: bool = False
    ) -> tuple[float, Vector, Matrix]:
        del keep
        return *self._objective.value_and_grad(theta), self._at(theta)

    def rows(
        self, theta: Vector, keep: bool = False
    ) -> tuple[float, Vector, Matrix]:
        loss, grad, matrix = self.normal_equations(theta, keep)
        if not np.isfinite(matrix).all():
            return loss, grad, matrix
        eigenvalues, vectors = np.linalg.eigh(matrix)
        roots = np.sqrt(np.maximum(eigenvalues, 0.0))
        return loss, grad, roots[:, np.newaxis] * vectors.T

    def squares(self, theta: Vector) -> None:
        del theta

    def product(self, theta: Vector, vector: Vector) -> Vector:
        # Conjugate gradients take many products at a point.
        if self._latest is None or not np.array_equal(self._latest[0], theta):
            self._latest = np.array(theta), self._at(theta)
        return self._latest[1] @ vector

    def bend(self, theta: Vector, vector: Vector) -> NoReturn:
        raise NotImplementedError

    def bend_of_rows(self, theta: Vector, vector: Vector) -> None:
        """`None`: second derivatives are not known."""
        del theta, vector

    def _at(self, theta: Vector) -> Matrix:
        size = self._objective.size
        matrix = to_array(self._matrix(np.array(theta)))
        if matrix.shape != (size, size):
            raise ValueError(
                "`gauss_newton` of an objective must return a matrix of shape "
                f"{(size, size)}. Received: shape {matrix.shape}"
            )
        return matrix


def vector_constraints(constraints: Any) -> list[Any]:
    """The constraints of `kormos.solve`, in the form of `resolve_constraints`.

    Args:
        constraints: see `kormos.solve`.

    Raises:
        ValueError: if one cannot be used.
    """
    if constraints is None:
        return []
    if not isinstance(constraints, (list, tuple)):
        constraints = [constraints]
    return [
        constraint
        if isinstance(constraint, scipy.optimize.LinearConstraint)
        else _vector_constraint(constraint)
        for constraint in constraints
    ]


def _vector_constraint(constraint: Any) -> VectorConstraint:
    if (
        not isinstance(constraint, dict)
        or set(constraint) != {"type", "fun", "jac"}
        or constraint["type"] not in ("eq", "ineq")
        or not callable(constraint["fun"])
        or not callable(constraint["jac"])
    ):
        raise ValueError(
            "A constraint must be a `scipy.optimize.LinearConstraint`, or a "
            "dict with the keys 'type', 'eq' or 'ineq'; 'fun', a function of "
            "`theta`; and 'jac', a function of `theta` that returns the "
            f"derivatives of `fun`. Received: {constraint!r}"
        )
    fun, jac = constraint["fun"], constraint["jac"]
    return VectorConstraint(
        constraint["type"],
        lambda theta: np.atleast_1d(to_array(fun(np.array(theta)))),
        lambda theta: np.atleast_2d(to_array(jac(np.array(theta)))),
    )


class _Layout:
    """The layout of a single vector, in place of a `Packing` of variables.

    Args:
        theta: the start, `(size,)`.
        storage_eps: the machine epsilon of the user's arithmetic.
    """

    dtype = None

    def __init__(self, theta: Vector, storage_eps: float):
        self.size = theta.size
        self.shapes = [theta.shape]
        self.storage_eps = storage_eps
        self.variables = [
            types.SimpleNamespace(
                path="theta", name="theta", shape=theta.shape, constraint=None
            )
        ]
        self.write(theta)

    def read(self) -> Vector:
        return self._theta.copy()

    def write(self, theta: Vector) -> None:
        self._theta = np.array(theta)

    def name_of(self, index: int) -> str:
        return f"theta[{index}]"

    def split_array(self, theta: Array) -> list[Array]:
        return [theta]

    def join_arrays(self, arrays: list[Array]) -> Array:
        return np.broadcast_to(arrays[0], (self.size,)).copy()
