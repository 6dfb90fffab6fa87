"""A loss of a flat vector that the user brings."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from kormos import backend
from kormos.arithmetic.vectors import to_array
from kormos.objective.arguments import ProgramArguments
from kormos.objective.base import FlatObjective
from kormos.objective.compiled import refuse_gauss_newton
from kormos.solvers.protocols import Objective
from kormos.types import Array
from kormos.types import Vector


class GivenObjective(FlatObjective):
    """An objective of the user's own, as a session needs one.

    It is evaluated in Python, outside of what is compiled.

    Args:
        objective: an `Objective`.
        theta: the start, `(size,)`.

    Raises:
        ValueError: if the objective or the start cannot be used.
    """

    can_widen = False
    has_own_derivatives = True

    def __init__(self, objective: Objective, theta: Any):
        size = getattr(objective, "size", None)
        value_and_grad = getattr(objective, "value_and_grad", None)
        if not (isinstance(size, (int, np.integer)) and size > 0):
            raise ValueError(
                "An objective has an attribute `size`, its number of "
                f"parameters. Received: size={size!r} of {objective!r}"
            )
        if not callable(value_and_grad):
            raise ValueError(
                "An objective has a method `value_and_grad(theta)` that "
                f"returns the loss and its gradient. Received: {objective!r}"
            )
        start = np.array(theta, "float64")
        if start.shape != (size,):
            raise ValueError(
                f"Argument `theta` must be a vector of the {size} parameters "
                f"of the objective. Received: shape {start.shape}"
            )
        self._objective = objective
        # The user's function has data of its own.
        self.arguments = ProgramArguments([], chunks=None)
        self._loops: dict[Any, Any] = {}
        self.unused_variables: list[Any] = []
        epsilon = float(getattr(objective, "epsilon", 2.0**-52))
        self.program: Any = types.SimpleNamespace(
            packing=_Layout(start, epsilon),
            frozen_variables=(),
            frozen_values=list,
            # There is no other form of this loss to compare it with.
            is_verified=True,
        )
        self.refresh()

    @property
    def epsilon(self) -> float:
        """The spacing of numbers near one in the user's arithmetic."""
        return self.rounding

    def value(self, theta: npt.ArrayLike) -> float:
        """The loss."""
        return self.value_and_grad(theta)[0]

    def value_and_grad(self, theta: npt.ArrayLike) -> tuple[float, Vector]:
        """The loss and its gradient."""
        # The user's function gets a copy, because it may change its argument.
        loss, grad = self._objective.value_and_grad(np.array(theta))
        grad = to_array(grad)
        if grad.shape != (self.size,):
            raise ValueError(
                "`value_and_grad` of an objective must return a gradient of "
                f"shape {(self.size,)}. Received: shape {grad.shape}"
            )
        return float(loss), grad

    def hvp(self, theta: npt.ArrayLike, vector: npt.ArrayLike) -> Vector:
        """The Hessian times a vector."""
        product = self._own_hvp()(np.array(theta), np.array(vector))
        return to_array(product)

    def gauss_newton(self) -> NoReturn:
        """Refuses methods for least squares."""
        refuse_gauss_newton(repr(self._objective))

    def compiled_loop(self, key: Any, fn: Callable[..., Any]) -> Any:
        """`fn(state, *args) -> state`, compiled once for a key."""
        if key not in self._loops:
            self._loops[key] = backend.compile_loop(fn)
        return self._loops[key]

    def check_hessian(self) -> None:
        """Refuses a method with Hessian products where there are none."""
        self._own_hvp()

    def _own_hvp(self) -> Callable[..., Any]:
        found = getattr(self._objective, "hvp", None)
        if not callable(found):
            raise ValueError(
                "This method needs `hvp(theta, vector)` of the objective, "
                "the Hessian times a vector: add it, or use a method such as "
                f"'lbfgs'. Received: {self._objective!r}"
            )
        return found


class _Layout:
    """One vector where a `Packing` has variables.

    Args:
        theta: the start, `(size,)`.
        rounding: the spacing of numbers near one in the user's arithmetic.
    """

    dtype = None

    def __init__(self, theta: Vector, rounding: float):
        self.size = theta.size
        self.shapes = [theta.shape]
        self.rounding = rounding
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
