"""Limited-memory BFGS.

Nocedal and Wright, "Numerical Optimization", 2nd edition, section 7.2: the
inverse Hessian in the compact form of equation 7.24 (R. H. Byrd, J. Nocedal
and R. B. Schnabel, Mathematical Programming 63, 1994, theorem 2.2),

    H = gamma I + [S, gamma Y] W [S, gamma Y]'.

Differs from it in:

1. pairs lie in a ring (`pair_store.py`); the inverse of the triangle R is kept
   and updated by a column, so that no triangular system is solved and pairs are
   never sorted;
2. S'y and Y'y are differences of S'g and Y'g at two points, so that an
   iteration reads the pairs twice;
3. gamma lies between s'y / y'y and |s| / |y|, the geometric mean of the two
   lengths of Barzilai and Borwein. The mean takes far fewer evaluations on
   networks, but many trials where it is too large. So gamma adapts to the steps
   that the line search accepts;
4. a long run may change the units of the parameters (`unit_changes.py`).
"""

from typing import NamedTuple

import numpy as np

from kormos import backend
from kormos.arithmetic.scalars import cond
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where
from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import matvec
from kormos.arithmetic.vectors import norm
from kormos.arithmetic.vectors import vecmat
from kormos.backend import ops
from kormos.solvers.quasi_newton.pair_store import PairStore
from kormos.solvers.quasi_newton.pair_store import Store
from kormos.solvers.quasi_newton.pair_store import kept
from kormos.solvers.quasi_newton.state import Pair
from kormos.types import Scalar
from kormos.types import Tensor

# The adaptive gamma is multiplied by this after a step of the whole direction,
# and by the square of the step's length after a shorter one. Our choice: a
# larger factor takes fewer iterations, and more evaluations in each.
_GROWTH = 4 / 3
# A step of at least one minus this counts as a whole step.
_ROUNDING = 1e-6


class MiddleMatrix(NamedTuple):
    """The middle matrix W, in parts.

    Attributes:
        inverse: inverse of the triangle of `s_i'y_j` for i not newer than j,
            `(slots, slots)`, zero where there is no pair.
        squares: `y_i'y_j`, `(slots, slots)`.
        lengths: those of the stored `s` and `y`, `(slots, 2)`.
        curvatures: `s_i'y_i`, `(slots,)`.
        scale: gamma, scalar.
        place: the free slot, where the next pair goes, int32.
        used: the number of slots that have held a pair, int32.
        products: the products of all `s` and `y` with the gradient, `(slots,
            2)`.
    """

    inverse: Tensor
    squares: Tensor
    lengths: Tensor
    curvatures: Tensor
    scale: Scalar
    place: Scalar
    used: Scalar
    products: Tensor


class LimitedMemory:
    """The curvature of L-BFGS, as `protocols.Curvature`.

    Args:
        memory: the number of pairs.
        scaling: `"usual"` for gamma = s'y / y'y, `"geometric"` for |s| / |y|,
            `"adaptive"` for a gamma between the two.
        is_spread: whether to spread the store over the devices.
    """

    overshoots = False

    def __init__(self, memory: int, scaling: str, is_spread: bool = False):
        self.key = f"l-bfgs, memory={memory}, scaling={scaling}"
        # One slot is free.
        self._slots = memory + 1
        self._pairs = PairStore(self._slots, is_spread)
        self._scaling = scaling

    def empty(
        self, size: int, dtype: str = "float64"
    ) -> tuple[Store, MiddleMatrix]:
        square = np.zeros((self._slots, self._slots))
        known = MiddleMatrix(
            inverse=square,
            squares=square.copy(),
            lengths=np.ones((self._slots, 2)),
            curvatures=np.zeros(self._slots),
            scale=np.float64(1),
            place=np.int32(0),
            used=np.int32(0),
            products=np.zeros((self._slots, 2)),
        )
        return self._pairs.empty(size, dtype), known

    def clear(self, known: MiddleMatrix, scale: Scalar) -> MiddleMatrix:
        # A pair without its row of the inverse has no effect.
        inverse = ops.zeros_like(known.inverse)
        return known._replace(inverse=inverse, scale=scale)

    def record(
        self,
        store: Store,
        known: MiddleMatrix,
        good: Scalar,
        step: Tensor,
        change: Tensor,
    ) -> Store:
        rows = _rows_of(good, step, change)
        rows, _ = kept(rows, store[0].dtype)
        return self._pairs.recorded(store, known.place, rows)

    def settle(
        self, store: Store, known: MiddleMatrix
    ) -> tuple[Store, MiddleMatrix]:
        return store, known

    def update(
        self, store: Store, known: MiddleMatrix, pair: Pair, grad: Tensor
    ) -> tuple[MiddleMatrix, Tensor]:
        used = larger(known.used, known.place + 1)
        known = known._replace(used=used)
        if store[0].dtype != grad.dtype:
            rows = _rows_of(pair.good, pair.step, pair.change)
            narrow, lengths = kept(rows, store[0].dtype)
            # As they are stored, which is rounded.
            rows = ops.cast(narrow, rows.dtype) * lengths
            pair = pair._replace(step=rows[0], change=rows[1])
            lengths = backend.set_row(
                known.lengths, known.place, ops.reshape(lengths, (-1,))
            )
            known = known._replace(lengths=lengths)
        products = self._pairs.products(store, known.lengths, used, grad)
        differences = products - known.products
        known = cond(
            pair.good,
            lambda: self._extended(known, pair, differences),
            lambda: known,
        )
        known = known._replace(products=products)
        return known, self._direction(store, known, grad)

    def product(
        self, store: Store, known: MiddleMatrix, vector: Tensor
    ) -> Tensor:
        products = self._pairs.products(
            store, known.lengths, known.used, vector
        )
        known = known._replace(products=products)
        return -self._direction(store, known, vector)

    def _extended(
        self, known: MiddleMatrix, pair: Pair, differences: Tensor
    ) -> MiddleMatrix:
        """The middle matrix with a pair that was recorded in the store.

        Args:
            known: the middle matrix without it.
            pair: the pair, as it is stored.
            differences: products of the store with the pair's change.
        """
        sy, yy = dot(pair.step, pair.change), dot(pair.change, pair.change)
        with_s, with_y = differences[:, 0], differences[:, 1]
        none = ops.zeros_like(with_s)
        place, free = known.place, known.place + 1
        free = where(free < self._slots, free, constant(0, like=free))
        # The rows and columns of a free slot are zero; so were those of this
        # slot.
        inverse = backend.set_row(known.inverse, free, none)
        inverse = backend.set_column(inverse, free, none)
        filled = matvec(inverse, with_s) / -sy
        filled = backend.set_row(filled, place, 1 / sy)
        with_y = backend.set_row(with_y, place, yy)
        squares = backend.set_row(known.squares, place, with_y)
        return known._replace(
            inverse=backend.set_column(inverse, place, filled),
            squares=backend.set_column(squares, place, with_y),
            curvatures=backend.set_row(known.curvatures, place, sy),
            scale=self._scale(known.scale, pair, sy, yy),
            place=free,
        )

    def _scale(self, old: Scalar, pair: Pair, sy: Scalar, yy: Scalar) -> Scalar:
        """gamma after a pair.

        Args:
            old: gamma before the pair.
            pair: the pair.
            sy: s'y.
            yy: y'y.
        """
        usual, geometric = sy / yy, norm(pair.step) / yy**0.5
        if self._scaling == "usual":
            return usual
        if self._scaling == "geometric":
            return geometric
        accepted = norm(pair.step) / norm(pair.direction)
        is_shorter = accepted < 1 - _ROUNDING
        factor = where(is_shorter, accepted**2, accepted * 0 + _GROWTH)
        # The first direction has no scale yet: it takes that of its step.
        followed = old * where(pair.is_first, accepted, factor)
        return smaller(geometric, larger(usual, followed))

    def _direction(
        self, store: Store, known: MiddleMatrix, grad: Tensor
    ) -> Tensor:
        """-H times the gradient, of which `known` has the products."""
        inverse, gamma = known.inverse, known.scale
        p, q = known.products[:, 0], known.products[:, 1]
        u = matvec(inverse, p)
        inner = known.curvatures * u + (matvec(known.squares, u) - q) * gamma
        weights = ops.stack([vecmat(inner, inverse), -u * gamma], axis=1)
        return -self._pairs.combined(
            store, known.lengths, known.used, weights, grad * gamma
        )


def _rows_of(good: Scalar, step: Tensor, change: Tensor) -> Tensor:
    """The rows s and y, zero if they are not good, and perhaps not finite."""
    rows = ops.stack([step, change])
    return where(good, rows, ops.zeros_like(rows))
