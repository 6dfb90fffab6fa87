"""Newton's method and the Gauss-Newton method, within a trust region."""

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

    Conjugate gradients compute each step from exact Hessian products. They are
    preconditioned by the L-BFGS matrix of the steps before. A direction of
    negative curvature is followed to the boundary of the trust region, so that
    the run leaves saddle points.

    Use it for a badly conditioned loss that must become very small, where
    `"lbfgs"` is slow. Its memory is proportional to the number of parameters.
    A first step from a plateau may be long, and lead to another plateau. With
    bounds, a parameter is held if the gradient presses it against its bound,
    and steps are projected. For streamed data, or in several processes, steps
    are computed in Python.

    Source: Steihaug, SIAM J. Numer. Anal. 20 (1983); Nocedal and Wright,
    Numerical Optimization, 2nd edition, algorithms 4.1 and 7.2.

    Args:
        name: String, the name of the optimizer.
        memory: Integer, the number of pairs of the preconditioner. Each pair
            takes two float64 vectors of the size of the parameters. Defaults to
            20.
        max_products: Integer, the largest number of Hessian products per step.
            Defaults to 200.
        **kwargs: `epochs`, `batch_size`, `pretrain_fn`, `gtol`, `ftol`,
            `xtol`, `bounds` and `keep_state`. See
            `kormos.optimizers.quasi_newton.QuasiNewton`.

    Raises:
        ValueError: If `memory` or `max_products` is not a positive integer. A
            fit raises it for constraints, and for layers whose second
            derivatives are wrong.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.Newton(), loss="mse")
    history = model.fit(x, y, epochs=20)
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
        # The number of products is counted for each run.
        known = state.curvature._replace(products=np.int32(0))
        return state._replace(curvature=known)


@keras.saving.register_keras_serializable(package="kormos")
class GaussNewton(Newton):
    """Gauss-Newton steps within a trust region, compiled on the device.

    It differs from `Newton` in that the products are those of the generalized
    Gauss-Newton matrix, which is also the matrix of `"lm"`. It has no negative
    curvature. No matrix is stored, so the number of parameters is not limited.
    The loss must be a function of outputs or residuals. If most columns of the
    Jacobian differ in length by more than a factor of 1,000 at the start, up to
    1,000 parameters are measured in units that make these lengths about equal.
    Estimating the lengths takes 8 to 64 products.

    Source: Schraudolph, Neural Computation 14 (2002), for the matrix; see
    `Newton` for the steps.

    Args:
        name: String, the name of the optimizer.
        memory: See `Newton`.
        max_products: See `Newton`.
        **kwargs: See `Newton`.

    Raises:
        ValueError: As `Newton`, and if the loss is not a function of outputs.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.GaussNewton(), loss="mse")
    history = model.fit(x, y, epochs=20)
    ```
    """

    uses_hessian = False
    uses_jacobian = True
    _is_gauss_newton = True

    def __init__(self, name: str = "gauss-newton", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
