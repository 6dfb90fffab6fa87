"""Limited-memory BFGS."""

import functools
from typing import Any

import keras

from kormos import backend
from kormos.optimizers.quasi_newton import MakeCurvature
from kormos.optimizers.quasi_newton import QuasiNewton
from kormos.solvers.constrained.curvature import LimitedCurvature
from kormos.solvers.protocols import Curvature
from kormos.solvers.quasi_newton.lbfgs_curvature import LimitedMemory

# A default memory takes no more numbers than this, and no more pairs.
_MOST_NUMBERS = 10**8
_MOST_PAIRS = 100
_FEWEST_PAIRS = 10

# From so many numbers on, pairs are spread over devices by themselves. Our
# choice: a device has room for fewer (256 MB), and has no need to wait for the
# others, once an iteration, for a direction of which each computes a part.
_SPREAD_FROM = 2**25

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
        shard_memory: whether to spread the pairs over the devices that
            `keras.distribution` names, on JAX, so that each keeps a part of
            every vector. They are copied to each otherwise. Defaults to
            `True` for pairs of more than 256 MB where there are several
            devices. Each of several processes uses its own devices.
        **kwargs: `epochs`, `batch_size`, `pretrain_fn`, `gtol`, `ftol`,
            `xtol`, `bounds`, `constraints` and `keep_state`, as for
            `QuasiNewton`.

    Raises:
        ValueError: if `memory`, `scaling` or `shard_memory` is another value,
            and in a fit with `shard_memory=True` on one device.

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
        shard_memory: bool | None = None,
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
        if shard_memory not in (None, True, False):
            raise ValueError(
                "Argument `shard_memory` must be `None`, `True` or `False`. "
                f"Received: shard_memory={shard_memory!r}"
            )
        self.memory = memory
        self.scaling = scaling
        self.shard_memory = shard_memory

    def pairs(self, size: int) -> int:
        """How many curvature pairs it keeps for so many parameters."""
        fits = _MOST_NUMBERS // (2 * size)
        return self.memory or max(_FEWEST_PAIRS, min(_MOST_PAIRS, fits))

    def method(self, size: int) -> Curvature:
        pairs = self.pairs(size)
        default = "adaptive" if pairs >= _ADAPTIVE_FROM else "usual"
        is_spread = self.shard_memory
        if is_spread is None:
            is_spread = 2 * pairs * size >= _SPREAD_FROM
        return LimitedMemory(pairs, self.scaling or default, is_spread)

    def constrained_curvature(self, size: int) -> MakeCurvature:
        pairs = self.pairs(size)
        if size <= pairs:
            return super().constrained_curvature(size)
        return functools.partial(LimitedCurvature, size, memory=pairs)

    def check_size(self, size: int) -> None:
        if self.shard_memory and backend.devices() == 1:
            raise ValueError(
                "With `shard_memory=True` the pairs of L-BFGS are spread over "
                "the devices of one process, on JAX: before the model is "
                "made, call `keras.distribution.set_distribution("
                "keras.distribution.DataParallel())`, or leave "
                "`shard_memory` out. Received: one device, on the backend "
                f"'{keras.backend.backend()}'"
            )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "memory": self.memory,
            "scaling": self.scaling,
            "shard_memory": self.shard_memory,
        }
