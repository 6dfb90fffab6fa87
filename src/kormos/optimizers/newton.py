"""Newton's method and the Gauss-Newton method, within a trust region."""

from typing import Any

import keras
import numpy as np

from kormos.optimizers.quasi_newton import QuasiNewton
from kormos.solvers.newton.loop import NewtonRun
from kormos.solvers.newton.method import NEWTON_ROW
from kormos.solvers.newton.method import NewtonMethod
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
    A first step from a plateau may be long, and lead to another plateau.

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
            `xtol` and `keep_state`. See
            `kormos.optimizers.quasi_newton.QuasiNewton`.

    Raises:
        ValueError: If `memory` or `max_products` is not a positive integer. A
            fit raises it for bounds, constraints, streamed data, several
            processes, and layers whose second derivatives are wrong.

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
        memory: int = 20,
        max_products: int = 200,
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

    def _check(
        self, size: int, bounded: bool, constraint_types: list[str]
    ) -> None:
        super()._check(size, bounded, constraint_types)
        if bounded:
            raise ValueError(
                f"Optimizer '{self.name}' supports neither bounds nor "
                "variables with a `NonNeg` constraint. Use 'lbfgs', "
                f"'ssbroyden' or 'lm'. Received: optimizer='{self.name}' "
                "with bounds"
            )

    def _first_state(self, problem: Problem, theta: Vector) -> State:
        if problem.objective.is_hosted:
            raise ValueError(
                f"Optimizer '{self.name}' compiles the loss with its second "
                "derivatives. This needs data in memory, a single process, "
                "and a loss that the backend can differentiate. Use "
                "'trust-krylov' or 'lbfgs'. Received: "
                f"optimizer='{self.name}' with a loss that is summed up in "
                "Python"
            )
        rows = np.zeros((problem.stride, len(NEWTON_ROW)))
        return super()._first_state(problem, theta)._replace(rows=rows)

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
    The loss must be a function of outputs or residuals.

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
