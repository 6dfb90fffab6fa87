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
from kormos.solvers.quasi_newton.unit_changes import LimitedMemoryRun

# The default memory has at most this many numbers, and this many pairs.
_MOST_NUMBERS = 10**8
_MOST_PAIRS = 100
_FEWEST_PAIRS = 10

# Pairs of at least this many numbers are distributed over devices by default.
# Our choice: fewer (256 MB) fit on one device, which then does not wait for the
# others in each iteration.
_SPREAD_FROM = 2**25

# With fewer pairs than this, a larger initial inverse Hessian may be worse.
_ADAPTIVE_FROM = 20


def default_pairs(size: int) -> int:
    """The number of curvature pairs that L-BFGS keeps by default.

    Args:
        size: the number of parameters.
    """
    fits = _MOST_NUMBERS // (2 * size)
    return max(_FEWEST_PAIRS, min(_MOST_PAIRS, fits))


@keras.saving.register_keras_serializable(package="kormos")
class LBFGS(QuasiNewton):
    """Limited-memory BFGS, compiled on the device.

    Source: Nocedal and Wright, Numerical Optimization, 2nd edition, section
    7.2, with the inverse Hessian in the compact form of equation 7.24 (Byrd,
    Nocedal and Schnabel, Math. Programming 63, 1994). Where the parameters have
    very different scales, a run of more than 500 iterations begins anew in the
    units that it has learned.

    Args:
        name: String, the name of the optimizer.
        memory: Integer, the number of curvature pairs. Each pair takes two
            vectors of the size of the parameters, in float64; in float32 for
            models of that precision with at least 256 parameters on JAX, or
            16,384 on PyTorch, unless pairs are distributed. Defaults to 100, or
            to as many as fit into 800 MB in float64, but at least 10.
        scaling: The size of the initial inverse Hessian: `"usual"` for
            `s'y / y'y`, `"geometric"` for `|s| / |y|`, `"adaptive"` for a value
            between the two that follows the line search. Defaults to
            `"adaptive"` if `memory` is 20 or more, and to `"usual"` otherwise.
        shard_memory: Boolean, whether to distribute the pairs over the devices
            of `keras.distribution`, on JAX, so that each device keeps a part of
            every vector. Otherwise every device keeps a copy. Defaults to
            `True` for pairs of more than 256 MB on several devices. If there
            are several processes, each uses its own devices.
        **kwargs: `epochs`, `batch_size`, `pretrain_fn`, `gtol`, `ftol`,
            `xtol`, `bounds`, `constraints` and `keep_state`. See
            `kormos.optimizers.quasi_newton.QuasiNewton`.

    Raises:
        ValueError: If `memory`, `scaling` or `shard_memory` has another value,
            or if a fit with `shard_memory=True` has only one device.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.LBFGS(memory=50), loss="mse")
    history = model.fit(x, y, epochs=100)
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
                "Argument `memory` must be an integer, the number of pairs, "
                f"1 or more. Received: memory={memory!r}"
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

    _run_type = LimitedMemoryRun

    def pairs(self, size: int) -> int:
        """Returns the number of curvature pairs that are kept."""
        return self.memory or default_pairs(size)

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
                "With `shard_memory=True` the pairs of L-BFGS are "
                "distributed over the devices of one process, on JAX: before "
                "the model is built, call "
                "`keras.distribution.set_distribution("
                "keras.distribution.DataParallel())`, "
                "or leave `shard_memory` out. Received: one device, on the "
                f"backend '{keras.backend.backend()}'"
            )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "memory": self.memory,
            "scaling": self.scaling,
            "shard_memory": self.shard_memory,
        }
