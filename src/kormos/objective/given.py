"""A loss of a flat vector that the user brings."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from kormos import backend
from kormos.arithmetic.vectors import to_array
from kormos.objective.base import FlatObjective
from kormos.objective.gauss_newton.host import HostGaussNewton
from kormos.solvers.protocols import Objective
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
        self._size = int(size)
        self._epsilon = float(getattr(objective, "epsilon", 2.0**-52))
        self._objective = objective
        self._theta = start
        self._loops: dict[Any, Any] = {}
        variable = types.SimpleNamespace(
            path="theta", name="theta", shape=(self.size,), constraint=None
        )
        self.unused_variables: list[Any] = []
        layout = types.SimpleNamespace(
            variables=[variable],
            shapes=[(self.size,)],
            size=self.size,
            dtype=None,
            split_array=lambda vector: [vector],
            join_arrays=lambda parts: np.broadcast_to(
                parts[0], (self.size,)
            ).copy(),
        )
        # A user's loss is compared with nothing: there is only one of it.
        self.program: Any = types.SimpleNamespace(
            packing=layout, is_verified=True
        )

    @property
    def size(self) -> int:
        return self._size

    @property
    def epsilon(self) -> float:
        return self._epsilon

    @property
    def rounding(self) -> float:
        return self._epsilon

    @property
    def draws(self) -> bool:
        return False

    @property
    def is_streamed(self) -> bool:
        return True

    def name_of(self, index: int) -> str:
        """What to call an entry of the vector."""
        return f"theta[{index}]"

    def refresh(self) -> None:
        """The user's own function reads what it needs."""

    def followed(self, before: Vector, theta: Vector) -> None:
        """Nothing but the session changes the point."""

    def initial_position(self) -> Vector:
        """The present point."""
        return self._theta.copy()

    def assign(self, theta: Vector) -> None:
        """Makes a point the present one."""
        self._theta = np.array(theta, "float64")

    def value(self, theta: Vector) -> float:
        """The loss."""
        return self.value_and_grad(theta)[0]

    def value_and_grad(self, theta: Vector) -> tuple[float, Vector]:
        """The loss and its gradient."""
        # A copy: what is given away may be changed.
        loss, grad = self._objective.value_and_grad(np.array(theta))
        grad = to_array(grad)
        if grad.shape != (self.size,):
            raise ValueError(
                "`value_and_grad` of an objective must return a gradient of "
                f"shape {(self.size,)}. Received: shape {grad.shape}"
            )
        return float(loss), grad

    def hvp(self, theta: Vector, vector: Vector) -> Vector:
        """The Hessian times a vector."""
        product = self._own("hvp")(np.array(theta), np.array(vector))
        return to_array(product)

    def hessian(self, theta: Vector) -> np.ndarray:
        """The Hessian, `(size, size)`, by `size` products."""
        rows = [self.hvp(theta, row) for row in np.eye(self.size)]
        hessian = np.stack(rows)
        return (hessian + hessian.T) / 2

    def gauss_newton(self) -> HostGaussNewton:
        """Refuses methods for least squares."""
        raise ValueError(
            "Gauss-Newton methods need residuals, not a loss: use "
            "`kormos.least_squares`, or a method such as 'lbfgs'. "
            f"Received: {self._objective!r}"
        )

    def compiled_loop(self, key: Any, fn: Callable[..., Any]) -> Any:
        """`fn(state, *args) -> state`, compiled once for a key."""
        if key not in self._loops:
            self._loops[key] = backend.compile_loop(fn)
        return self._loops[key]

    def check_hessian(self) -> None:
        """Refuses a method with Hessian products where there are none."""
        self._own("hvp")

    def _own(self, name: str) -> Callable[..., Any]:
        found = getattr(self._objective, name, None)
        if not callable(found):
            raise ValueError(
                f"This method needs `{name}(theta, vector)` of the objective, "
                "the Hessian times a vector: add it, or use a method such as "
                f"'lbfgs'. Received: {self._objective!r}"
            )
        return found
