"""Dense quasi-Newton methods: BFGS and its self-scaled variants."""

from typing import Any

import keras

from kormos.free_memory import check_square
from kormos.optimizers.quasi_newton import QuasiNewton
from kormos.solvers.protocols import Curvature
from kormos.solvers.protocols import Method
from kormos.solvers.quasi_newton import handover
from kormos.solvers.quasi_newton.dense_curvature import Dense
from kormos.solvers.quasi_newton.dense_curvature import bfgs
from kormos.solvers.quasi_newton.dense_curvature import self_scaled_bfgs
from kormos.solvers.quasi_newton.dense_curvature import self_scaled_broyden
from kormos.solvers.solver_state import SolverState

# The number of matrices in memory: the inverse Hessian, the next one, and outer
# products that are added to it. Measured with 10,065 parameters: 5.0 on
# PyTorch, fewer on JAX.
_MATRICES = 5


class _DenseQuasiNewton(QuasiNewton):
    _factors: Any = None

    def method(self, size: int) -> Curvature:
        return Dense(type(self)._factors)

    def _takes_state(self, state: SolverState, size: int) -> bool:
        is_limited = handover.is_limited(state)
        return is_limited or super()._takes_state(state, size)

    def _converted(self, state: SolverState, method: Method) -> SolverState:
        if handover.is_limited(state) and isinstance(method, Dense):
            return handover.as_dense(state, method)
        return state

    def check_size(self, size: int) -> None:
        check_square(
            f"Optimizer '{self.name}' keeps a dense inverse Hessian",
            size,
            _MATRICES,
            "Use 'lbfgs'.",
        )


@keras.saving.register_keras_serializable(package="kormos")
class BFGS(_DenseQuasiNewton):
    """BFGS with a dense inverse Hessian, compiled on the device.

    For n parameters the inverse Hessian takes `8 n**2` bytes.

    Source: Nocedal and Wright, Numerical Optimization, 2nd edition, algorithm
    6.1.

    Args:
        name: String, the name of the optimizer.
        **kwargs: `epochs`, `batch_size`, `pretrain_fn`, `gtol`, `ftol`,
            `xtol`, `bounds`, `constraints` and `keep_state`. See
            `kormos.optimizers.quasi_newton.QuasiNewton`.

    Raises:
        ValueError: In a fit with so many parameters that the matrix does not
            fit into memory.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.BFGS(), loss="mse")
    history = model.fit(x, y, epochs=50)
    ```
    """

    _factors = staticmethod(bfgs)

    def __init__(self, name: str = "dense-bfgs", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)


@keras.saving.register_keras_serializable(package="kormos")
class SSBFGS(_DenseQuasiNewton):
    """Self-scaled BFGS with a dense inverse Hessian, compiled on the device.

    Source: Al-Baali, J. Optim. Theory Appl. 96 (1998).

    Args:
        name: String, the name of the optimizer.
        **kwargs: See `kormos.optimizers.BFGS`.

    Raises:
        ValueError: As `kormos.optimizers.BFGS`.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.SSBFGS(), loss="mse")
    history = model.fit(x, y, epochs=50)
    ```
    """

    _factors = staticmethod(self_scaled_bfgs)

    def __init__(self, name: str = "ssbfgs", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)


@keras.saving.register_keras_serializable(package="kormos")
class SSBroyden(_DenseQuasiNewton):
    """Self-scaled Broyden method with a dense inverse Hessian, compiled.

    It is recommended for a smooth loss of a few thousand parameters that must
    become very small, as in physics-informed networks.

    Source: Urbán, Stefanou and Pons, J. Comput. Phys. 523 (2025), 113656.

    Args:
        name: String, the name of the optimizer.
        **kwargs: See `kormos.optimizers.BFGS`.

    Raises:
        ValueError: As `kormos.optimizers.BFGS`.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.SSBroyden(), loss="mse")
    history = model.fit(x, y, epochs=50)
    ```
    """

    _factors = staticmethod(self_scaled_broyden)

    def __init__(self, name: str = "ssbroyden", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
