"""Dense quasi-Newton methods: BFGS and its self-scaled relatives."""

from typing import Any

import keras

from kormos.free_memory import check_square
from kormos.optimizers.quasi_newton import QuasiNewton
from kormos.solvers.protocols import Curvature
from kormos.solvers.quasi_newton.dense_curvature import Dense
from kormos.solvers.quasi_newton.dense_curvature import bfgs
from kormos.solvers.quasi_newton.dense_curvature import self_scaled_bfgs
from kormos.solvers.quasi_newton.dense_curvature import self_scaled_broyden

# The inverse Hessian, the next one, and outer products that are added to it.
# Measured at 10,065 parameters: PyTorch takes 5.0, JAX fewer.
_MATRICES = 5


class _DenseQuasiNewton(QuasiNewton):
    _factors: Any = None

    def method(self, size: int) -> Curvature:
        return Dense(type(self)._factors)

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

    Args:
        name: name of the optimizer.
        **kwargs: `epochs`, `batch_size`, `pretrain_fn`, `gtol`, `ftol`,
            `xtol` and `keep_state`, as for `QuasiNewton`.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.BFGS(), loss="mse")
    ```
    """

    _factors = staticmethod(bfgs)

    def __init__(self, name: str = "dense-bfgs", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)


@keras.saving.register_keras_serializable(package="kormos")
class SSBFGS(_DenseQuasiNewton):
    """Self-scaled BFGS (Al-Baali 1998), compiled on the device.

    Args:
        name: name of the optimizer.
        **kwargs: as for `BFGS`.
    """

    _factors = staticmethod(self_scaled_bfgs)

    def __init__(self, name: str = "ssbfgs", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)


@keras.saving.register_keras_serializable(package="kormos")
class SSBroyden(_DenseQuasiNewton):
    """Self-scaled Broyden (Urban, Stefanou and Pons 2025), compiled.

    The method of choice for a smooth loss of a few thousand parameters that
    is to be driven far down, as in physics-informed networks.

    Args:
        name: name of the optimizer.
        **kwargs: as for `BFGS`.
    """

    _factors = staticmethod(self_scaled_broyden)

    def __init__(self, name: str = "ssbroyden", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
