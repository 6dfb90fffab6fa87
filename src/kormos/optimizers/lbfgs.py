"""Limited-memory BFGS."""

from typing import Any

import keras

from kormos.optimizers.quasi_newton import QuasiNewton
from kormos.solvers.protocols import Curvature
from kormos.solvers.quasi_newton.lbfgs_curvature import LimitedMemory

# A default memory takes no more numbers than this, and no more pairs.
_MOST_NUMBERS = 10**8
_MOST_PAIRS = 100
_FEWEST_PAIRS = 10

# With fewer pairs a longer first guess may lose.
_ADAPTIVE_FROM = 20


@keras.saving.register_keras_serializable(package="kormos")
class LBFGS(QuasiNewton):
    """Limited-memory BFGS, compiled on the device.

    Args:
        name: name of the optimizer.
        memory: the number of curvature pairs. Each takes two vectors of the
            size of the parameters, in float64. Defaults to 100, or as many
            as keep the memory at 800 MB, but to no fewer than 10.
        scaling: the first inverse Hessian's size: `"usual"` for s'y / y'y,
            `"geometric"` for |s| / |y|, `"adaptive"` for a length between
            the two that follows the line search. Defaults to `"adaptive"`
            with a memory of 20 or more.
        **kwargs: `epochs`, `batch_size`, `pretrain_fn`, `gtol`, `ftol`,
            `xtol` and `keep_state`, as for `QuasiNewton`.

    Raises:
        ValueError: if `memory` or `scaling` is another value.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.LBFGS(memory=50), loss="mse")
    model.fit(x, y, epochs=500)
    ```
    """

    def __init__(
        self,
        name: str = "lbfgs",
        memory: int | None = None,
        scaling: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if memory is not None and (not isinstance(memory, int) or memory < 1):
            raise ValueError(
                "Argument `memory` must be a number of pairs, 1 or more. "
                f"Received: memory={memory!r}"
            )
        if scaling not in (None, "adaptive", "geometric", "usual"):
            raise ValueError(
                "Argument `scaling` must be 'adaptive', 'geometric' or "
                "'usual'. "
                f"Received: scaling={scaling!r}"
            )
        self.memory = memory
        self.scaling = scaling

    def pairs(self, size: int) -> int:
        """How many curvature pairs it keeps for so many parameters."""
        fits = _MOST_NUMBERS // (2 * size)
        return self.memory or max(_FEWEST_PAIRS, min(_MOST_PAIRS, fits))

    def method(self, size: int) -> Curvature:
        pairs = self.pairs(size)
        default = "adaptive" if pairs >= _ADAPTIVE_FROM else "usual"
        return LimitedMemory(pairs, self.scaling or default)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "memory": self.memory,
            "scaling": self.scaling,
        }
