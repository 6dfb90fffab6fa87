"""Limited-memory BFGS.

Nocedal and Wright, "Numerical Optimization", 2nd edition, section 7.2: the
inverse Hessian in the compact form of equation 7.24 (R. H. Byrd, J. Nocedal
and R. B. Schnabel, Mathematical Programming 63, 1994, theorem 2.2),

    H = gamma I + [S, gamma Y] W [S, gamma Y]'.

Differs from it in:

1. pairs lie in a ring with a free slot, which takes every trial in; the
   inverse of the triangle R is kept and updated by a column, so that no
   triangular system is solved and no order is restored;
2. S'y and Y'y are differences of S'g and Y'g, so that the pairs are read
   twice an iteration;
3. gamma lies between s'y / y'y and the geometric mean |s| / |y| of the two
   lengths of Barzilai and Borwein, which takes far fewer evaluations on
   networks but many trials where it is too long: it follows the steps that the
   line search accepts.
"""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from kormos import backend
from kormos.numerics.scalars import cond
from kormos.numerics.scalars import constant
from kormos.numerics.scalars import larger
from kormos.numerics.scalars import smaller
from kormos.numerics.scalars import where
from kormos.numerics.vectors import dot
from kormos.numerics.vectors import matvec
from kormos.numerics.vectors import norm
from kormos.numerics.vectors import vecmat
from kormos.optimizers.quasi_newton_driver import QuasiNewton

# By this the adaptive gamma grows when the line search takes a whole step; by
# the square of the step it shrinks. Larger ones take fewer iterations and more
# evaluations each.
_GROWTH = 4 / 3


class Curvature(NamedTuple):
    """The middle matrix W, in parts.

    Attributes:
        inverse: inverse of the triangle of `s_i'y_j` for i not newer than j,
            `(slots, slots)`, zero where there is no pair.
        squares: `y_i'y_j`, `(slots, slots)`.
        curvatures: `s_i'y_i`, `(slots,)`.
        scale: gamma, scalar.
        place: the free slot, where the next pair goes, int32.
        products: of all `s` and all `y` with the gradient, `(2 * slots,)`.
    """

    inverse: Any
    squares: Any
    curvatures: Any
    scale: Any
    place: Any
    products: Any


class LimitedMemory:
    """The curvature of L-BFGS, as `quasi_newton_state.init` describes it.

    The store holds rows `s`, then as many rows `y`: `(2 * slots, size)`, with
    a slot for each pair and a free one.

    Args:
        memory: the number of pairs.
        scaling: `"usual"` for gamma = s'y / y'y, `"geometric"` for |s| / |y|,
            `"adaptive"` for what lies between.
    """

    def __init__(self, memory, scaling):
        self.key = f"l-bfgs, memory={memory}, scaling={scaling}"
        self._slots = memory + 1
        self._scaling = scaling

    def empty(self, size):
        square = np.zeros((self._slots, self._slots))
        curvature = Curvature(
            inverse=square,
            squares=square.copy(),
            curvatures=np.zeros(self._slots),
            scale=np.float64(1),
            place=np.int32(0),
            products=np.zeros(2 * self._slots),
        )
        return np.zeros((2 * self._slots, size)), curvature

    def clear(self, curvature, scale):
        # Without its row of the inverse a pair counts for nothing.
        inverse = ops.zeros_like(curvature.inverse)
        return curvature._replace(inverse=inverse, scale=scale)

    def record(self, store, curvature, good, step, change):
        place = curvature.place
        for row, i in (step, place), (change, place + self._slots):
            # What is not good may not even be finite.
            row = where(good, row, ops.zeros_like(row))
            store = backend.set_row(store, i, row)
        return store

    def settle(self, store, curvature):
        return store, curvature

    def update(self, store, curvature, pair, grad):
        products = matvec(store, grad)
        differences = products - curvature.products
        curvature = cond(
            pair.good,
            lambda: self._extended(curvature, pair, differences),
            lambda: curvature,
        )
        curvature = curvature._replace(products=products)
        return curvature, self._direction(store, curvature, grad)

    def _extended(self, curvature, pair, differences):
        """The curvature with the pair that is in its place in the store.

        Args:
            curvature: the `Curvature` before it.
            pair: the `Pair`.
            differences: products of the store with the pair's change.
        """
        sy, yy = dot(pair.step, pair.change), dot(pair.change, pair.change)
        with_s = differences[: self._slots]
        with_y = differences[self._slots :]
        zero = with_s * 0
        place, free = curvature.place, curvature.place + 1
        free = where(free < self._slots, free, constant(0, like=free))
        slots = ops.arange(self._slots, dtype="int32")
        is_new, is_free = slots == place, slots == free
        column, row = ops.expand_dims(is_new, 0), ops.expand_dims(is_new, 1)
        left = ops.expand_dims(is_free, 0) | ops.expand_dims(is_free, 1)
        kept = curvature.inverse
        kept = ops.where(left | row | column, kept * 0, kept)
        filled = matvec(kept, ops.where(is_new, zero, with_s)) / -sy
        filled = ops.where(is_new, zero + 1 / sy, filled)
        with_y = ops.where(is_new, zero + yy, with_y)
        squares = ops.where(row, ops.expand_dims(with_y, 0), curvature.squares)
        return curvature._replace(
            inverse=ops.where(column, ops.expand_dims(filled, 1), kept),
            squares=ops.where(column, ops.expand_dims(with_y, 1), squares),
            curvatures=ops.where(is_new, zero + sy, curvature.curvatures),
            scale=self._scale(curvature.scale, pair, sy, yy),
            place=free,
        )

    def _scale(self, old, pair, sy, yy):
        usual, geometric = sy / yy, norm(pair.step) / yy**0.5
        if self._scaling == "usual":
            return usual
        if self._scaling == "geometric":
            return geometric
        accepted = norm(pair.step) / norm(pair.direction)
        followed = old * where(
            accepted < 1 - 1e-6, accepted**2, accepted * 0 + _GROWTH
        )
        return smaller(geometric, larger(usual, followed))

    def _direction(self, store, curvature, grad):
        inverse, squares, curvatures, gamma, _, products = curvature
        p, q = products[: self._slots], products[self._slots :]
        u = matvec(inverse, p)
        inner = curvatures * u + (matvec(squares, u) - q) * gamma
        weights = ops.concatenate([vecmat(inner, inverse), -u * gamma])
        return -(grad * gamma + vecmat(weights, store))


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
        **kwargs: `epochs`, `batch_size`, `pretrain_fn`, `gtol`, `ftol` and
            `xtol`, as for `QuasiNewton`.

    Raises:
        ValueError: if `memory` or `scaling` is another value.

    Example:

    ```python
    model.compile(optimizer=kormos.optimizers.LBFGS(memory=50), loss="mse")
    model.fit(x, y, epochs=500)
    ```
    """

    def __init__(self, name="lbfgs", memory=None, scaling=None, **kwargs):
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

    def pairs(self, size):
        """How many curvature pairs it keeps for so many parameters."""
        fits = _MOST_NUMBERS // (2 * size)
        return self.memory or max(_FEWEST_PAIRS, min(_MOST_PAIRS, fits))

    def method(self, size):
        pairs = self.pairs(size)
        default = "adaptive" if pairs >= _ADAPTIVE_FROM else "usual"
        return LimitedMemory(pairs, self.scaling or default)

    def get_config(self):
        return {
            **super().get_config(),
            "memory": self.memory,
            "scaling": self.scaling,
        }
