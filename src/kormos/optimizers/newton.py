"""A trust-region Newton method."""

from typing import Any

import keras
import numpy as np

from kormos.optimizers.quasi_newton import QuasiNewton
from kormos.solvers.newton.loop import NewtonRun
from kormos.solvers.newton.method import MOST_PRODUCTS
from kormos.solvers.newton.method import PAIRS
from kormos.solvers.newton.method import NewtonMethod
from kormos.solvers.newton.method import first_state
from kormos.solvers.problem import Problem
from kormos.solvers.quasi_newton.state import State
from kormos.types import Vector


@keras.saving.register_keras_serializable(package="kormos")
class Newton(QuasiNewton):
    """Newton's method within a trust region, compiled on the device.

    Conjugate gradients find each step from exact products with the Hessian.
    They are preconditioned by the L-BFGS matrix of the steps before. A
    direction of negative curvature is followed to the edge of the region, so
    that the run leaves saddle points.

    The method is for losses that are badly conditioned and are to be driven far
    down, from where `"lbfgs"` goes slowly. It takes memory in proportion to the
    parameters. A first step from a plateau may be long, and lead to another.
    Within bounds, parameters that the gradient presses against one are held,
    and steps are projected. Where data are read as a stream, or by several
    processes, steps are computed in Python.

    Args:
        name: name of the optimizer.
        memory: the number of pairs of the preconditioner. Each takes two
            vectors of the size of the parameters, in float64. Defaults to 20.
        max_products: the most Hessian products for a step. Defaults to 200.
        **kwargs: `epochs`, `batch_size`, `pretrain_fn`, `gtol`, `ftol`,
            `xtol`, `bounds` and `keep_state`, as for `QuasiNewton`.

    Raises:
        ValueError: if `memory` or `max_products` is not a positive integer; in
            a fit with constraints, or with a layer whose second derivatives
            are wrong.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.Newton(), loss="mse")
    model.fit(x, y, epochs=50)
    ```
    """

    uses_hessian = True
    takes_constraints = takes_parts = False
    _is_gauss_newton = False
    _run_type = NewtonRun

    def __init__(
        self,
        name: str = "newton",
        memory: int = PAIRS,
        max_products: int = MOST_PRODUCTS,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        numbers = {"memory": memory, "max_products": max_products}
        for key, value in numbers.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"Argument `{key}` must be an integer, 1 or more. "
                    f"Received: {key}={value!r}"
                )
        self.memory = memory
        self.max_products = max_products

    def method(self, size: int) -> NewtonMethod:
        del size
        return NewtonMethod(
            self.memory, self.max_products, self._is_gauss_newton
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "memory": self.memory,
            "max_products": self.max_products,
        }

    def _first_state(self, problem: Problem, theta: Vector) -> State:
        return first_state(self.method(problem.size), problem, theta)

    def _resumed(self, state: State) -> State:
        # Products are counted for each run.
        known = state.curvature._replace(products=np.int32(0))
        return state._replace(curvature=known)


@keras.saving.register_keras_serializable(package="kormos")
class GaussNewton(Newton):
    """Gauss-Newton steps by conjugate gradients, compiled on the device.

    As `Newton`, with products of the generalized Gauss-Newton matrix, that of
    `"lm"`, which has no negative curvature. No matrix is kept, so that the
    number of parameters has no limit. The loss must be one of outputs or of
    residuals. Up to 1,000 parameters get units in which the columns of the
    Jacobian are about equally long, where most of them differ by more than a
    factor of 1,000 at the start; to know takes 8 to 64 products.

    Args:
        name: name of the optimizer.
        memory: as for `Newton`.
        max_products: as for `Newton`.
        **kwargs: as for `Newton`.

    Raises:
        ValueError: as `Newton`, and for a loss of other things than outputs.
    """

    uses_hessian = False
    uses_jacobian = True
    _is_gauss_newton = True

    def __init__(self, name: str = "gauss-newton", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
